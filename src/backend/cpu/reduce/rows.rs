//! Kernels that see whole rows: softmax, norms, losses. A row stays in L1 or L2 while it is passed over several times,
//! so memory is read once. Rows are handed out in groups that depend on the row length alone.

use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::{Contiguous, In, SERIAL};
use crate::dtype::Element;
use crate::error::Result;
use smallvec::SmallVec;

/// Elements per task.
const PIECE: usize = 16 * 1024;

/// Neighbouring lines that [`map_lines`] takes at a time: one or two cache lines of each row.
const LINES: usize = 16;

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

/// [`map_rows`] for the lines along any axis of operands of one shape; `y` is row-major in that shape. Along an axis that is
/// not innermost, a few neighbouring lines at a time are turned into rows and back in scratch memory that stays in cache.
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
    let (_, n, inner) = x[0].shape().split_at(axis);
    let data: SmallVec<[Contiguous<'_, T>; 2]> = x.iter().map(|x| x.contiguous()).collect::<Result<_>>()?;
    let x: [&[T]; N] = std::array::from_fn(|i| &*data[i]);
    if inner == 1 {
        return map_rows(n, x, y, scratch, f);
    }
    let of = inner.div_ceil(LINES);
    // Rows that start a power of two apart would compete for the same cache lines.
    let pitch = n + 64 / size_of::<T>();
    let serial = if y.len() < SERIAL { usize::MAX } else { 1 };
    y.par_columns(n, inner, LINES).enumerate().with_min_len(serial).try_for_each(|(t, mut y)| {
        let (first, width) = (t / of * n * inner + t % of * LINES, y.width());
        let mut buffer = Buffer::alloc(T::DTYPE, (N + 1) * LINES * pitch)?;
        let mut spare = Buffer::alloc(T::Acc::DTYPE, scratch * n)?;
        let (rows, results) = buffer.slice_mut::<T>().split_at_mut(N * LINES * pitch);
        let spare = spare.slice_mut::<T::Acc>();
        simd::dispatch(
            #[inline(always)]
            || {
                for (x, rows) in x.iter().zip(rows.chunks_exact_mut(LINES * pitch)) {
                    for r in 0..n {
                        for (c, &v) in x[first + r * inner..][..width].iter().enumerate() {
                            rows[c * pitch + r] = v;
                        }
                    }
                }
                for (c, result) in results.chunks_exact_mut(pitch).enumerate().take(width) {
                    f(std::array::from_fn(|i| &rows[(i * LINES + c) * pitch..][..n]), &mut result[..n], spare);
                }
                for r in 0..n {
                    for (c, y) in y.row(r).iter_mut().enumerate() {
                        *y = results[c * pitch + r];
                    }
                }
            },
        );
        Ok(())
    })
}

/// Widens a row.
#[inline(always)]
pub(crate) fn load<T: Compute>(x: &[T], y: &mut [T::Acc]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x.load();
    }
}

/// Largest element, NaN when there is one, −∞ when empty: [`simd::max`] without widening the row first. The comparisons form a
/// longer chain than an addition does, so more of them run side by side.
#[inline(always)]
pub(crate) fn max<T: Compute>(x: &[T]) -> T::Acc {
    const LANES: usize = 64;
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
