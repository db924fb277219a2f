//! Kernels that see whole rows: softmax, norms, losses. A row stays in L1 or L2 while it is passed over several times,
//! so memory is read once. Rows are handed out in groups that depend on the row length alone.

use crate::backend::cpu::math::{Compute, Number, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::map::{by_number, narrow, widen};
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::{Contiguous, In, Out, SERIAL};
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

/// What an op does with each line.
///
/// A trait rather than two closures: a function that is passed as a value is called through a shim, which is compiled for the baseline
/// instruction set.
pub(crate) trait Line<const N: usize>: Sync {
    /// From lines of the inputs to the line of the output. Runs inside [`simd::dispatch`]: mark it `#[inline(always)]`.
    fn line<A: Number>(x: [&[A]; N], y: &mut [A], scratch: &mut [A]);
}

/// [`Line::line`] of one op, for drivers that are compiled once for all.
type LineFn<'a, A, const N: usize> = &'a (dyn Fn([&[A]; N], &mut [A], &mut [A]) + Sync);

fn dispatched<K: Line<N>, A: Number, const N: usize>(x: [&[A]; N], y: &mut [A], scratch: &mut [A]) {
    simd::dispatch(
        #[inline(always)]
        || K::line(x, y, scratch),
    );
}

/// Calls `K` for each line along an axis of operands of one shape, in f32 for half types. The scratch holds `scratch` numbers of
/// unspecified content for each element of a line.
pub(crate) fn map_lines<K: Line<N>, const N: usize>(axis: usize, x: [&In<'_>; N], y: &mut Out<'_>, scratch: usize) -> Result<()> {
    let narrow: LineFn<'_, f32, N> = &dispatched::<K, f32, N>;
    let wide: LineFn<'_, f64, N> = &dispatched::<K, f64, N>;
    by_number!(y, (narrow, wide), |y, line| lines_by(axis, x, y, scratch, line))
}

/// [`map_lines`] for one dtype, compiled once for all ops.
fn lines_by<T: Compute, const N: usize>(axis: usize, x: [&In<'_>; N], y: &mut [T], scratch: usize, f: LineFn<'_, T::Acc, N>) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let (_, n, inner) = x[0].shape().split_at(axis);
    let data: SmallVec<[Contiguous<'_, T>; 2]> = x.iter().map(|x| x.contiguous()).collect::<Result<_>>()?;
    let x: [&[T]; N] = std::array::from_fn(|i| &*data[i]);
    if inner == 1 { rows_by(n, x, y, scratch, f) } else { columns_by(n, inner, x, y, scratch, f) }
}

fn rows_by<T: Compute, const N: usize>(cols: usize, x: [&[T]; N], y: &mut [T], scratch: usize, f: LineFn<'_, T::Acc, N>) -> Result<()> {
    for_tasks(cols, y, |first, y| {
        let widened = if T::DTYPE.is_half() { N + 1 } else { 0 };
        let mut buffer = Buffer::alloc(T::Acc::DTYPE, (widened + scratch) * cols)?;
        let (wide, scratch) = buffer.slice_mut::<T::Acc>().split_at_mut(widened * cols);
        for (r, y) in y.chunks_exact_mut(cols).enumerate() {
            let x: [&[T]; N] = std::array::from_fn(|i| &x[i][(first + r) * cols..][..cols]);
            if let Some(y) = T::as_acc_mut(y) {
                f(std::array::from_fn(|i| T::as_acc(x[i]).unwrap_or_default()), y, scratch);
                continue;
            }
            let (rows, result) = wide.split_at_mut(N * cols);
            for (x, row) in x.iter().zip(rows.chunks_exact_mut(cols)) {
                widen(x, row);
            }
            f(std::array::from_fn(|i| &rows[i * cols..][..cols]), result, scratch);
            narrow(result, y);
        }
        Ok(())
    })
}

/// Along an axis that is not innermost, a few neighbouring lines at a time are turned into rows and back in scratch memory that stays
/// in cache.
fn columns_by<T: Compute, const N: usize>(
    n: usize,
    inner: usize,
    x: [&[T]; N],
    y: &mut [T],
    scratch: usize,
    f: LineFn<'_, T::Acc, N>,
) -> Result<()> {
    let of = inner.div_ceil(LINES);
    // Rows that start a power of two apart would compete for the same cache lines.
    let pitch = n + 64 / size_of::<T::Acc>();
    let serial = if y.len() < SERIAL { usize::MAX } else { 1 };
    y.par_columns(n, inner, LINES).enumerate().with_min_len(serial).try_for_each(|(t, mut y)| {
        let (first, width) = (t / of * n * inner + t % of * LINES, y.width());
        let mut buffer = Buffer::alloc(T::Acc::DTYPE, (N + 1) * LINES * pitch + scratch * n)?;
        let (rows, spare) = buffer.slice_mut::<T::Acc>().split_at_mut((N + 1) * LINES * pitch);
        let (rows, results) = rows.split_at_mut(N * LINES * pitch);
        simd::dispatch(
            #[inline(always)]
            || {
                for (x, rows) in x.iter().zip(rows.chunks_exact_mut(LINES * pitch)) {
                    for r in 0..n {
                        for (c, &v) in x[first + r * inner..][..width].iter().enumerate() {
                            rows[c * pitch + r] = v.load();
                        }
                    }
                }
            },
        );
        for (c, result) in results.chunks_exact_mut(pitch).enumerate().take(width) {
            f(std::array::from_fn(|i| &rows[(i * LINES + c) * pitch..][..n]), &mut result[..n], spare);
        }
        simd::dispatch(
            #[inline(always)]
            || {
                for r in 0..n {
                    for (c, y) in y.row(r).iter_mut().enumerate() {
                        *y = T::store(results[c * pitch + r]);
                    }
                }
            },
        );
        Ok(())
    })
}

/// How many numbers of room [`computed`] and [`stored`] need for `n` elements: none where nothing is widened.
pub(crate) fn room<T: Compute>(n: usize) -> usize {
    if T::DTYPE.is_half() { n } else { 0 }
}

/// A piece of an operand in the type that kernels compute in: itself, or widened into `room`. A kernel is then compiled for two types
/// instead of four.
pub(crate) fn computed<'a, T: Compute>(x: &'a [T], room: &'a mut [T::Acc]) -> &'a [T::Acc] {
    match T::as_acc(x) {
        Some(x) => x,
        None => {
            let room = &mut room[..x.len()];
            widen(x, room);
            room
        }
    }
}

/// Has a piece of an output written in the type that kernels compute in: in place, or into `room`, from where it is rounded.
pub(crate) fn stored<T: Compute>(y: &mut [T], room: &mut [T::Acc], kernel: impl FnOnce(&mut [T::Acc])) {
    match T::as_acc_mut(y) {
        Some(y) => kernel(y),
        None => {
            let room = &mut room[..y.len()];
            kernel(room);
            narrow(room, y);
        }
    }
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
