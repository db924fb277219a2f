//! Kernels that see whole rows: softmax, norms, losses. A row stays in L1 or L2 while it is passed over several times,
//! so memory is read once. Rows are handed out in groups that depend on the row length alone.

use super::Buffer;
use super::map::Compute;
use super::math::Real;
use super::par::*;
use super::simd;
use super::view::{Contiguous, In, SERIAL, copy_strided};
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::shape::Dims;
use smallvec::SmallVec;

/// Elements per task.
const PIECE: usize = 16 * 1024;

/// Rows per task: a function of the row length.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    (PIECE / cols.max(1)).max(1)
}

/// Calls `task(first_row, pieces)` for groups of rows, in parallel when there is much to do. `y` is cut into groups of
/// `rows_per_task(cols)` rows.
pub(crate) fn for_tasks<T: Send>(cols: usize, y: &mut [T], task: impl Fn(usize, &mut [T]) -> Result<()> + Sync) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let rows = rows_per_task(cols);
    let run = |(t, y): (usize, &mut [T])| task(t * rows, y);
    if y.len() < SERIAL {
        y.chunks_mut(rows * cols).enumerate().try_for_each(run)
    } else {
        y.par_chunks_mut(rows * cols).enumerate().try_for_each(run)
    }
}

/// `f(rows of the inputs, row of the output, scratch)` for each row of `cols` elements, inside [`simd::dispatch`]: mark `f`
/// `#[inline(always)]`. The scratch holds `scratch · cols` numbers of unspecified content.
pub(crate) fn map_rows<T: Compute, const N: usize>(
    cols: usize,
    x: [&[T]; N],
    y: &mut [T],
    scratch: usize,
    f: impl Fn([&[T]; N], &mut [T], &mut [T::Acc]) + Sync,
) -> Result<()> {
    for_tasks(cols, y, |first, y| {
        let mut buffer = Buffer::alloc(T::Acc::DTYPE, scratch * cols)?;
        let scratch = buffer.slice_mut::<T::Acc>();
        simd::dispatch(
            #[inline(always)]
            || {
                for (r, y) in y.chunks_exact_mut(cols).enumerate() {
                    let at = (first + r) * cols;
                    f(std::array::from_fn(|i| &x[i][at..at + cols]), y, scratch);
                }
            },
        );
        Ok(())
    })
}

/// [`map_rows`] for the lines along any axis of operands of one shape; `y` is row-major in that shape. Lines along an axis
/// that is not innermost are gathered into rows and scattered back, both in cache-friendly tiles.
pub(crate) fn map_lines<T: Compute, const N: usize>(
    axis: usize,
    x: [&In<'_>; N],
    y: &mut [T],
    scratch: usize,
    f: impl Fn([&[T]; N], &mut [T], &mut [T::Acc]) + Sync,
) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let shape = x[0].shape();
    let (_, n, inner) = shape.split_at(axis);
    if inner == 1 {
        let data: SmallVec<[Contiguous<'_, T>; 2]> = x.iter().map(|x| x.contiguous()).collect::<Result<_>>()?;
        return map_rows(n, std::array::from_fn(|i| &*data[i]), y, scratch, f);
    }
    let rank = shape.rank();
    let to_rows: Dims = (0..rank).filter(|&i| i != axis).chain([axis]).collect();
    let back: Dims = (0..rank)
        .map(|i| {
            if i < axis {
                i
            } else if i == axis {
                rank - 1
            } else {
                i - 1
            }
        })
        .collect();
    let layouts: SmallVec<[Layout; 2]> = x.iter().map(|x| x.layout().permute(&to_rows)).collect::<Result<_>>()?;
    let data: SmallVec<[Contiguous<'_, T>; 2]> =
        x.iter().zip(&layouts).map(|(x, l)| x.with_layout(l).contiguous()).collect::<Result<_>>()?;
    let mut rows = Buffer::alloc(T::DTYPE, y.len())?;
    map_rows(n, std::array::from_fn(|i| &*data[i]), rows.slice_mut::<T>(), scratch, f)?;
    let layout = Layout::contiguous(layouts[0].shape().clone()).permute(&back)?;
    copy_strided(rows.slice::<T>(), &layout, y);
    Ok(())
}

/// Widens a row.
#[inline(always)]
pub(crate) fn load<T: Compute>(x: &[T], y: &mut [T::Acc]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x.load();
    }
}

/// Largest element, NaN when there is one, −∞ when empty: [`simd::max`] without widening the row first.
#[inline(always)]
pub(crate) fn max<T: Compute>(x: &[T]) -> T::Acc {
    const LANES: usize = 32;
    let mut acc = [T::Acc::NEG_INFINITY; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    for chunk in body {
        for i in 0..LANES {
            acc[i] = acc[i].max_nan(chunk[i].load());
        }
    }
    for (a, &x) in acc.iter_mut().zip(tail) {
        *a = a.max_nan(x.load());
    }
    simd::max(&acc)
}
