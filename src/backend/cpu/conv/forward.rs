//! The convolution.

use super::columns::{Span, gather};
use super::{POINTS, Strided, Tiles, Wide, depthwise, is_few, multiply, store};
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

/// `y [n, o, p] ← bias [o] + Σ x · w`: x is `[images, groups · inputs, ..]`, w `[groups · outputs, inputs, ..]`.
pub(crate) fn forward<T: Multiply>(c: &Conv, x: &In<'_>, w: &In<'_>, bias: Option<&In<'_>>, y: &mut [T]) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let (few, positions, channels) = (is_few(c), c.output(), c.groups * c.outputs);
    let own = x.contiguous::<T>()?;
    if c.is_pointwise() && !few && positions >= POINTS {
        return points(c, &own, &w.contiguous::<T>()?, bias, y);
    }
    let (w, bias) = (Wide::<T>::new(w)?, bias.map(Wide::<T>::new).transpose()?);
    let (w, bias) = (w.get(), bias.as_ref().map(Wide::get));
    let plus = |channel: usize| bias.map(|b| b[channel]);
    if depthwise::suits(c, w) {
        return depthwise::forward(c, &own, w, plus, y);
    }
    let tiles = Tiles::new(c, c.depth(), few);
    let together = Tiles::together(channels * c.depth() * tiles.images * tiles.len);
    let job = |alone| Forward { c, x: &own, w, few, alone };
    if tiles.len == positions {
        let parts = y.par_chunks_mut(tiles.images * channels * positions);
        let job = job(Tiles::alone(parts.len()));
        return parts.enumerate().with_min_len(together).try_for_each(|(i, y)| {
            let images = y.len() / (channels * positions);
            job.run((i * tiles.images, images), Span { first: 0, len: positions }, |image, channel, sums| {
                store(sums, plus(channel), &mut y[(image * channels + channel) * positions..][..positions]);
            })
        });
    }
    let strips = positions.div_ceil(tiles.len);
    let job = job(true);
    y.par_columns(channels, positions, tiles.len).enumerate().with_min_len(together).try_for_each(|(i, mut strip)| {
        let span = Span { first: i % strips * tiles.len, len: strip.width() };
        job.run((i / strips, 1), span, |_, channel, sums| store(sums, plus(channel), strip.row(channel)))
    })
}

struct Forward<'a, T: Multiply> {
    c: &'a Conv,
    x: &'a [T],
    w: &'a [T::Acc],
    few: bool,
    alone: bool,
}

impl<T: Multiply> Forward<'_, T> {
    /// Hands the sums of every channel, for the span's positions of each image, to `put`.
    fn run(&self, (image, images): (usize, usize), span: Span, mut put: impl FnMut(usize, usize, &[T::Acc])) -> Result<()> {
        let (c, n) = (self.c, images * span.len);
        let (depth, plane) = (c.depth(), c.inputs * c.input());
        let (mut columns, mut sums) = (Buffer::alloc(T::Acc::DTYPE, depth * n)?, Buffer::alloc(T::Acc::DTYPE, c.outputs * n)?);
        let (columns, sums) = (columns.slice_mut::<T::Acc>(), sums.slice_mut::<T::Acc>());
        for group in 0..c.groups {
            for i in (0..images).filter(|_| depth > 0) {
                let x = &self.x[((image + i) * c.groups + group) * plane..][..plane];
                simd::dispatch(
                    #[inline(always)]
                    || gather(c, x, span, &mut columns[i * span.len..], n),
                );
            }
            let w = Strided { data: &self.w[group * c.outputs * depth..], row: depth, col: 1 };
            multiply(self.few, self.alone, [c.outputs, depth, n], w, Strided { data: columns, row: n, col: 1 }, sums)?;
            for i in 0..images {
                for o in 0..c.outputs {
                    put(i, group * c.outputs + o, &sums[o * n + i * span.len..][..span.len]);
                }
            }
        }
        Ok(())
    }
}

/// A kernel of one element: a product of matrices for each image and group, of operands as they stand.
fn points<T: Multiply>(c: &Conv, x: &[T], w: &[T], bias: Option<&In<'_>>, y: &mut [T]) -> Result<()> {
    let (positions, count) = (c.output(), c.images * c.groups);
    let beta = if let Some(bias) = bias {
        // The product is added to the bias, so that a half type rounds the sum once.
        let bias = bias.contiguous::<T>()?;
        y.chunks_mut(positions).zip(bias.iter().cycle()).for_each(|(y, &b)| y.fill(b));
        1.0
    } else {
        0.0
    };
    let offsets = |step: usize, of: usize| memory::try_collect((0..count).map(|i| i % of * step));
    let (from_w, from_x, to) =
        (offsets(c.outputs * c.inputs, c.groups)?, offsets(c.inputs * positions, count)?, offsets(c.outputs * positions, count)?);
    let a = Batch { data: w, offsets: &from_w, rows: c.outputs, cols: c.inputs, row_stride: c.inputs, col_stride: 1 };
    let b = Batch { data: x, offsets: &from_x, rows: c.inputs, cols: positions, row_stride: positions, col_stride: 1 };
    T::products(a, b, Real::from_f64(beta), y, &to, positions)
}
