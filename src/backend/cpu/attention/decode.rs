//! Attention of few queries to many keys, as in generation: reading the keys and values is all there is to do.
//!
//! Mapping: a task takes a fixed number of keys of one unit and goes once over their rows, whatever they are stored in, for
//! all queries of all heads that share them: scores, their maximum and sum, and the weighted sum of the values. What the tasks
//! of a unit have found is put together in order. Borders follow from the shapes, never from the number of threads.

use super::panel::{Heads, Panel, store};
use super::plan::{Plan, run_all};
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::matmul::Multiply;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::simd;
use crate::dtype::Element;
use crate::error::Result;
use crate::memory;
use std::ops::Range;

/// Queries of all heads of a unit, at most: with more of them, matrix products are faster.
const ROWS: usize = 8;
/// Keys of a task.
const KEYS: usize = 512;
/// Multiply-adds below which everything stays on the calling thread.
const SERIAL_WORK: usize = 1 << 18;

/// Whether this form is the faster one. It draws no dropout masks and knows no packed sequences.
pub(super) fn suits<T: Multiply>(p: &Plan<'_, T>) -> bool {
    p.group * p.tq <= ROWS && p.of.options.dropout.is_none() && p.of.offsets.is_none()
}

/// What a task has found: of each row the maximum and the sum of weights, and the weighted sums of the values.
struct Part {
    stats: Buffer,
    sums: Buffer,
}

/// `y = softmax(cap(scale q kᵀ) + mask) v`.
pub(super) fn forward<T: Multiply>(p: &Plan<'_, T>, y: &mut [T]) -> Result<()> {
    let (rows, dv) = (p.group * p.tq, p.v.cols);
    // Keys that no query sees are left out.
    let all = p.seen(0).start..p.seen(p.tq - 1).end;
    let pieces: Vec<Range<usize>> = memory::try_collect(all.clone().step_by(KEYS).map(|j| j..(j + KEYS).min(all.end)))?;
    let tasks = memory::try_collect((0..p.units).flat_map(|u| pieces.iter().map(move |keys| (u, keys.clone()))))?;
    let serial = p.units * rows * all.len() * (p.q.cols + dv) < SERIAL_WORK;
    let parts = run_all(serial, tasks, |(unit, keys)| part(p, unit, keys))?;
    let units = memory::try_collect(y.chunks_mut(rows * dv).enumerate())?;
    run_all(true, units, |(unit, y)| combine::<T>(&parts[unit * pieces.len()..(unit + 1) * pieces.len()], dv, y))?;
    Ok(())
}

/// Calls `f` with each of some rows of a matrix, loaded. Inlined, or the caller's instruction set would not reach `f`.
#[inline(always)]
fn for_rows<T: Multiply>(x: &Heads<'_, T>, head: usize, rows: Range<usize>, mut f: impl FnMut(usize, &[T::Acc])) -> Result<()>
where
    T::Acc: Compute<Acc = T::Acc>,
{
    let borrowed = if x.col_stride == 1 { T::as_acc(x.data) } else { None };
    let mut row = Buffer::alloc(<T::Acc as Element>::DTYPE, x.cols)?;
    let row = row.slice_mut::<T::Acc>();
    for (n, i) in rows.enumerate() {
        let at = x.offsets[head] + i * x.row_stride;
        match borrowed {
            _ if x.cols == 0 => f(n, &[]),
            Some(data) => f(n, &data[at..at + x.cols]),
            None => {
                let from = &x.data[at..];
                if x.col_stride == 1 {
                    row.iter_mut().zip(from).for_each(|(y, &x)| *y = x.load());
                } else {
                    row.iter_mut().enumerate().for_each(|(c, y)| *y = from[c * x.col_stride].load());
                }
                f(n, row);
            }
        }
    }
    Ok(())
}

fn part<T: Multiply>(p: &Plan<'_, T>, unit: usize, keys: Range<usize>) -> Result<Part>
where
    T::Acc: Compute<Acc = T::Acc>,
{
    let (rows, d, dv, n) = (p.group * p.tq, p.q.cols, p.v.cols, keys.len());
    let acc = <T::Acc as Element>::DTYPE;
    let q: Panel<'_, T::Acc> = p.q.panel(unit * p.group, 0..rows)?;
    let mut scores = Buffer::alloc(acc, rows * n)?;
    let mut out = Part { stats: Buffer::alloc(acc, 2 * rows)?, sums: Buffer::alloc(acc, rows * dv)? };
    let (scores, stats, sums) = (scores.slice_mut::<T::Acc>(), out.stats.slice_mut::<T::Acc>(), out.sums.slice_mut::<T::Acc>());
    sums.fill(T::Acc::ZERO);
    simd::dispatch(
        #[inline(always)]
        || {
            for_rows(
                &p.k,
                unit,
                keys.clone(),
                #[inline(always)]
                |j, k| {
                    for r in 0..rows {
                        let product = if d == 0 { T::Acc::ZERO } else { simd::dot(q.row(r), k) };
                        scores[r * n + j] = product * p.scale;
                    }
                },
            )
        },
    )?;
    for r in 0..rows {
        let row = &mut scores[r * n..(r + 1) * n];
        let seen = p.seen(r % p.tq);
        let (first, end) = (seen.start.clamp(keys.start, keys.end) - keys.start, seen.end.clamp(keys.start, keys.end) - keys.start);
        let end = end.max(first);
        p.finish_scores(unit, r, keys.start + first, &mut row[first..end]);
        row[..first].fill(T::Acc::NEG_INFINITY);
        row[end..].fill(T::Acc::NEG_INFINITY);
        simd::dispatch(
            #[inline(always)]
            || {
                let m = simd::max(row);
                for s in row.iter_mut() {
                    let e = (*s - m).exp();
                    *s = if *s == T::Acc::NEG_INFINITY { T::Acc::ZERO } else { e };
                }
                (stats[2 * r], stats[2 * r + 1]) = (m, simd::sum(row));
            },
        );
    }
    simd::dispatch(
        #[inline(always)]
        || {
            for_rows(
                &p.v,
                unit,
                keys.clone(),
                #[inline(always)]
                |j, v| {
                    for r in 0..rows {
                        let w = scores[r * n + j];
                        // A weight of 0 leaves out what it meets.
                        if w != T::Acc::ZERO {
                            for (s, &v) in sums[r * dv..(r + 1) * dv].iter_mut().zip(v) {
                                *s = w.mul_add(v, *s);
                            }
                        }
                    }
                },
            )
        },
    )?;
    Ok(out)
}

/// Puts the parts of a unit together.
fn combine<T: Multiply>(parts: &[Part], dv: usize, y: &mut [T]) -> Result<()> {
    let mut total = Buffer::alloc(<T::Acc as Element>::DTYPE, dv)?;
    let total = total.slice_mut::<T::Acc>();
    for (r, y) in y.chunks_mut(dv).enumerate() {
        let stat = |part: &Part, which: usize| part.stats.slice::<T::Acc>()[2 * r + which];
        // The first of unordered values wins: NaN stays.
        let m = parts.iter().map(|p| stat(p, 0)).fold(T::Acc::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m });
        let mut sum = T::Acc::ZERO;
        total.fill(T::Acc::ZERO);
        for part in parts.iter().filter(|p| stat(p, 0) != T::Acc::NEG_INFINITY) {
            let factor = (stat(part, 0) - m).exp();
            // What underflowed is gone, even if it is not finite.
            if factor != T::Acc::ZERO {
                sum += factor * stat(part, 1);
                for (t, &x) in total.iter_mut().zip(&part.sums.slice::<T::Acc>()[r * dv..]) {
                    *t += factor * x;
                }
            }
        }
        let inverse = if m == T::Acc::NEG_INFINITY { T::Acc::ZERO } else { T::Acc::ONE / sum };
        total.iter_mut().for_each(|t| *t *= inverse);
        store(total, y);
    }
    Ok(())
}
