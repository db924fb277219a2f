//! The derivative of the convolution by its kernel.

use super::columns::{Span, gather};
use super::{Strided, Tiles, bars, depthwise, is_few, store};
use crate::backend::conv::Conv;
use crate::backend::cpu::gemm::{Mat, gemm, gemm_here};
use crate::backend::cpu::math::Real;
use crate::backend::cpu::matmul::Multiply;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::Element;
use crate::error::Result;

/// Multiply-adds that are worth a sum of their own over some of the positions, and how many of these there are at most.
const PART: usize = 1 << 20;
const PARTS: usize = 16;
/// Elements that all of them have together, unless one alone has more.
const ROOM: usize = 1 << 23;

/// `w [o, c, ..] ← Σ y · x` over images and positions: x is `[images, groups · inputs, ..]`, y `[images, groups · outputs, ..]`.
pub(crate) fn weight<T: Multiply>(c: &Conv, x: &In<'_>, y: &In<'_>, w: &mut [T]) -> Result<()> {
    if w.is_empty() {
        return Ok(());
    }
    let (x, y) = (x.contiguous::<T>()?, y.contiguous::<T>()?);
    if depthwise::suits_weight(c) && depthwise::weight(c, &x, &y, w)? {
        return Ok(());
    }
    let (positions, len) = (c.output(), w.len());
    let tiles = Tiles::new(c, c.depth(), is_few(c));
    let pieces = positions.div_ceil(tiles.len);
    let count = c.images.div_ceil(tiles.images) * pieces;
    let work = c.images.saturating_mul(positions).saturating_mul(len);
    let parts = (work / PART).min(PARTS).min(ROOM / len).min(count).max(1);
    let each = count.div_ceil(parts);
    let parts = count.div_ceil(each.max(1)).max(1);
    let mut sums = Buffer::alloc(T::Acc::DTYPE, parts * len)?;
    let sums = sums.slice_mut::<T::Acc>();
    let job = Weight { c, x: &x, y: &y, tiles, alone: Tiles::alone(parts) };
    sums.par_chunks_mut(len).enumerate().try_for_each(|(part, sum)| -> Result<()> {
        sum.fill(T::Acc::ZERO);
        for tile in part * each..((part + 1) * each).min(count) {
            let (image, first) = (tile / pieces * tiles.images, tile % pieces * tiles.len);
            let span = Span { first, len: tiles.len.min(positions - first) };
            job.add((image, tiles.images.min(c.images - image)), span, sum)?;
        }
        Ok(())
    })?;
    const CHUNK: usize = 1 << 14;
    let (total, others) = sums.split_at_mut(len);
    let others = &*others;
    w.par_chunks_mut(CHUNK).zip(total.par_chunks_mut(CHUNK)).enumerate().for_each(|(i, (w, total))| {
        for other in others.chunks(len) {
            let other = &other[i * CHUNK..][..total.len()];
            total.iter_mut().zip(other).for_each(|(t, &o)| *t += o);
        }
        store(total, None, w);
    });
    Ok(())
}

struct Weight<'a, T> {
    c: &'a Conv,
    x: &'a [T],
    y: &'a [T],
    tiles: Tiles,
    alone: bool,
}

impl<T: Multiply> Weight<'_, T> {
    /// Adds what a span of some images contributes.
    fn add(&self, (image, images): (usize, usize), span: Span, sum: &mut [T::Acc]) -> Result<()> {
        let (c, n) = (self.c, images * span.len);
        let (depth, positions, plane) = (c.depth(), c.output(), c.inputs * c.input());
        // Where the columns are the input itself it is read in place.
        let own = if c.is_pointwise() && images == 1 { T::as_acc(self.x) } else { None };
        let mut columns = Buffer::alloc(T::Acc::DTYPE, if own.is_some() { 0 } else { depth * n })?;
        let mut room = Buffer::alloc(T::Acc::DTYPE, c.outputs * n)?;
        let (columns, room) = (columns.slice_mut::<T::Acc>(), room.slice_mut::<T::Acc>());
        for group in 0..c.groups {
            let at = |i: usize| ((image + i) * c.groups + group) * plane;
            let columns = if let Some(x) = own {
                Strided { data: &x[at(0) + span.first..], row: positions, col: 1 }
            } else {
                for i in 0..images {
                    let x = &self.x[at(i)..][..plane];
                    simd::dispatch(
                        #[inline(always)]
                        || gather(c, x, span, &mut columns[i * span.len..], n),
                    );
                }
                Strided { data: &*columns, row: n, col: 1 }
            };
            let y = bars(c, self.y, group, (image, images), span, room);
            let sum = &mut sum[group * c.outputs * depth..][..c.outputs * depth];
            if self.tiles.few {
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for (o, sums) in sum.chunks_exact_mut(depth).enumerate() {
                            let y = &y.data[o * y.row..][..n];
                            for (j, sum) in sums.iter_mut().enumerate() {
                                *sum += simd::dot(y, &columns.data[j * columns.row..][..n]);
                            }
                        }
                    },
                );
                continue;
            }
            let (a, b) = (Mat::new(y.data, c.outputs, n, y.row, 1), Mat::new(columns.data, depth, n, columns.row, 1).transposed());
            let product = if self.alone { gemm_here } else { gemm };
            product(T::Acc::ONE, a, b, T::Acc::ONE, sum, depth)?;
        }
        Ok(())
    }
}
