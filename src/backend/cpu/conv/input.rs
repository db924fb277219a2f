//! The transposed convolution, which is the derivative of the convolution by its input.

use super::columns::{Span, scatter};
use super::{POINTS, Strided, Tiles, Wide, bars, depthwise, is_few, multiply, store};
use crate::backend::conv::Conv;
use crate::backend::cpu::gemm::Batch;
use crate::backend::cpu::math::Real;
use crate::backend::cpu::matmul::Multiply;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::Element;
use crate::error::Result;
use crate::memory;

/// Rows of a matrix of columns: channels of the input are taken so many at a time.
const ROWS: usize = 1024;

/// `x [n, c, ..] ← bias [c] + Σ y · w` over the positions that read each of the input: y is `[images, groups · outputs, ..]`, w
/// `[groups · outputs, inputs, ..]`.
pub(crate) fn input<T: Multiply>(c: &Conv, y: &In<'_>, w: &In<'_>, bias: Option<&In<'_>>, x: &mut [T]) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let few = is_few(c);
    let y = y.contiguous::<T>()?;
    if c.is_pointwise() && !few && bias.is_none() && c.output() >= POINTS {
        return points(c, &y, &w.contiguous::<T>()?, x);
    }
    let (w, bias) = (Wide::<T>::new(w)?, bias.map(Wide::<T>::new).transpose()?);
    if c.inputs == 1 {
        return depthwise::input(c, &y, w.get(), |channel| bias.as_ref().map(|b| b.get()[channel]), x);
    }
    let block = (ROWS / c.taps()).clamp(1, c.inputs);
    let tiles = Tiles::new(c, block * c.taps(), few);
    let channels = c.groups * c.inputs;
    // Parts of the result, each with its first image and channel and how many it has.
    let mut parts = Vec::new();
    let mut rest = x;
    let mut cut = |image: usize, images: usize, channel: usize, channels: usize| {
        let (own, after) = std::mem::take(&mut rest).split_at_mut(images * channels * c.input());
        rest = after;
        memory::push(&mut parts, Part { image, images, channel, channels, x: own })
    };
    for image in (0..c.images).step_by(tiles.images) {
        if tiles.images > 1 {
            cut(image, tiles.images.min(c.images - image), 0, channels)?;
            continue;
        }
        for first in (0..channels).step_by(c.inputs) {
            for at in (0..c.inputs).step_by(block) {
                cut(image, 1, first + at, block.min(c.inputs - at))?;
            }
        }
    }
    let together = Tiles::together(block * c.taps() * c.outputs * c.output());
    let job = Input { c, y: &y, w: w.get(), bias: bias.as_ref().map(Wide::get), block, tiles, alone: Tiles::alone(parts.len()) };
    parts.into_par_iter().with_min_len(together).try_for_each(|part| job.run(part))
}

/// Neighbouring channels of an image, or all channels of some images.
struct Part<'a, T> {
    image: usize,
    images: usize,
    channel: usize,
    channels: usize,
    x: &'a mut [T],
}

struct Input<'a, T: Multiply> {
    c: &'a Conv,
    y: &'a [T],
    w: &'a [T::Acc],
    bias: Option<&'a [T::Acc]>,
    block: usize,
    tiles: Tiles,
    alone: bool,
}

impl<T: Multiply> Input<'_, T> {
    fn run(&self, part: Part<'_, T>) -> Result<()> {
        let Part { image, images, channel, channels, x } = part;
        if let Some(x) = T::as_acc_mut(x) {
            return self.sums(Part { image, images, channel, channels, x });
        }
        let mut sums = Buffer::alloc(T::Acc::DTYPE, x.len())?;
        let sums = sums.slice_mut::<T::Acc>();
        self.sums(Part { image, images, channel, channels, x: sums })?;
        store(sums, None, x);
        Ok(())
    }

    fn sums(&self, part: Part<'_, T::Acc>) -> Result<()> {
        let (c, plane, positions) = (self.c, self.c.input(), self.c.output());
        let Part { image, images, channel, channels, x } = part;
        for (i, x) in x.chunks_mut(plane).enumerate() {
            x.fill(self.bias.map_or(T::Acc::ZERO, |b| b[channel + i % channels]));
        }
        let most = images * self.tiles.len;
        let mut columns = Buffer::alloc(T::Acc::DTYPE, self.block * c.taps() * most)?;
        let columns = columns.slice_mut::<T::Acc>();
        let mut room = Buffer::alloc(T::Acc::DTYPE, c.outputs * most)?;
        let room = room.slice_mut::<T::Acc>();
        let mut first = channel;
        while first < channel + channels {
            let (group, inner) = (first / c.inputs, first % c.inputs);
            let count = self.block.min(c.inputs - inner).min(channel + channels - first);
            let (rows, depth) = (count * c.taps(), c.depth());
            let w = Strided { data: &self.w[(group * c.outputs * depth + inner * c.taps()).min(self.w.len())..], row: 1, col: depth };
            for at in (0..positions).step_by(self.tiles.len) {
                let span = Span { first: at, len: self.tiles.len.min(positions - at) };
                let n = images * span.len;
                let y = bars(c, self.y, group, (image, images), span, room);
                multiply(self.tiles.few, self.alone, [rows, c.outputs, n], w, y, columns)?;
                for i in 0..images {
                    let x = &mut x[(i * channels + first - channel) * plane..][..count * plane];
                    let columns = &columns[i * span.len..];
                    simd::dispatch(
                        #[inline(always)]
                        || scatter(c, columns, n, span, count, x),
                    );
                }
            }
            first += count;
        }
        Ok(())
    }
}

/// A kernel of one element: `x = wᵀ · y` for each image and group.
fn points<T: Multiply>(c: &Conv, y: &[T], w: &[T], x: &mut [T]) -> Result<()> {
    let (positions, count) = (c.output(), c.images * c.groups);
    let offsets = |step: usize, of: usize| memory::try_collect((0..count).map(|i| i % of * step));
    let (from_w, from_y, to) =
        (offsets(c.outputs * c.inputs, c.groups)?, offsets(c.outputs * positions, count)?, offsets(c.inputs * positions, count)?);
    let a = Batch { data: w, offsets: &from_w, rows: c.inputs, cols: c.outputs, row_stride: 1, col_stride: c.inputs };
    let b = Batch { data: y, offsets: &from_y, rows: c.outputs, cols: positions, row_stride: positions, col_stride: 1 };
    T::products(a, b, Real::from_f64(0.0), x, &to, positions)
}
