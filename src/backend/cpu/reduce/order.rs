//! Kernels that look at the order of elements along one axis: where an extremum is, sorting, running sums.

use super::STRIP;
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::{Contiguous, In, SERIAL, copy_strided};
use crate::dtype::{DType, I64};
use crate::error::{Result, bail};
use crate::layout::Layout;
use crate::memory;
use crate::shape::Dims;

/// Whether `v` takes the place of the extremum `best`: NaN beats numbers, and the first of equals stays.
#[inline(always)]
fn beats<A: Real>(v: A, best: A, largest: bool) -> bool {
    let further = if largest { v > best } else { v < best };
    (further | v.is_nan()) & !best.is_nan()
}

/// Index of the extremum along `axis`, the first one of equals; NaN wins. The axis is not empty.
pub(crate) fn arg<T: Compute>(x: &In<'_>, axis: usize, largest: bool, y: &mut [i64]) -> Result<()> {
    let (_, n, inner) = x.shape().split_at(axis);
    let x = x.contiguous::<T>()?;
    let x = &*x;
    if y.is_empty() {
        return Ok(());
    }
    if inner == 1 {
        let rows = (SERIAL / n).max(1);
        let some = |(y, x): (&mut [i64], &[T])| {
            for (y, x) in y.iter_mut().zip(x.chunks(n)) {
                *y = if largest { arg_row::<T, true>(x) } else { arg_row::<T, false>(x) };
            }
        };
        if x.len() < SERIAL {
            some((y, x));
        } else {
            y.par_chunks_mut(rows).zip(x.par_chunks(rows * n)).for_each(some);
        }
        return Ok(());
    }
    let strip = |(at, y): (usize, &mut [i64]), x: &[T]| {
        simd::dispatch(
            #[inline(always)]
            || {
                let mut best = [T::Acc::ZERO; STRIP];
                let w = y.len();
                for (b, v) in best[..w].iter_mut().zip(&x[at..at + w]) {
                    *b = v.load();
                }
                y.fill(0);
                for (r, row) in x.chunks(inner).enumerate().skip(1) {
                    for ((y, b), v) in y.iter_mut().zip(&mut best[..w]).zip(&row[at..at + w]) {
                        let v = v.load();
                        let new = beats(v, *b, largest);
                        *b = if new { v } else { *b };
                        *y = if new { r as i64 } else { *y };
                    }
                }
            },
        );
    };
    let block = |(y, x): (&mut [i64], &[T])| {
        if x.len() < SERIAL {
            y.chunks_mut(STRIP).enumerate().for_each(|(i, y)| strip((i * STRIP, y), x));
        } else {
            // Strips of a cache line or more; narrower ones let more cores help.
            let width = inner.div_ceil(16).clamp(32, STRIP);
            y.par_chunks_mut(width).enumerate().for_each(|(i, y)| strip((i * width, y), x));
        }
    };
    if x.len() < SERIAL {
        y.chunks_mut(inner).zip(x.chunks(n * inner)).for_each(block);
    } else {
        y.par_chunks_mut(inner).zip(x.par_chunks(n * inner)).for_each(block);
    }
    Ok(())
}

/// Lanes that search a row side by side; each looks at every 16th element.
const LANES: usize = 16;

fn arg_row<T: Compute, const LARGEST: bool>(x: &[T]) -> i64 {
    simd::dispatch(
        #[inline(always)]
        || {
            // Which block of 16 holds each lane's best, then which lane.
            let worst = if LARGEST { T::Acc::NEG_INFINITY } else { T::Acc::INFINITY };
            let (mut best, mut block) = ([worst; LANES], [0u32; LANES]);
            let (body, tail) = x.as_chunks::<LANES>();
            if let Some(first) = body.first() {
                for (b, v) in best.iter_mut().zip(first) {
                    *b = v.load();
                }
            }
            for (i, chunk) in body.iter().enumerate().skip(1) {
                for l in 0..LANES {
                    let v = chunk[l].load();
                    let new = beats(v, best[l], LARGEST);
                    best[l] = if new { v } else { best[l] };
                    block[l] = if new { i as u32 } else { block[l] };
                }
            }
            let mut found: Option<(T::Acc, i64)> = None;
            let lanes = if body.is_empty() { 0 } else { LANES };
            let in_body = (0..lanes).map(|l| (best[l], i64::from(block[l]) * LANES as i64 + l as i64));
            let start = body.len() * LANES;
            let in_tail = tail.iter().enumerate().map(|(i, v)| (v.load(), (start + i) as i64));
            for (v, i) in in_body.chain(in_tail) {
                found = Some(match found {
                    None => (v, i),
                    Some((b, at)) => {
                        let same = v == b || (v.is_nan() && b.is_nan());
                        if beats(v, b, LARGEST) || (same && i < at) { (v, i) } else { (b, at) }
                    }
                });
            }
            found.map_or(0, |(_, i)| i)
        },
    )
}

/// A key whose unsigned order is the numeric one, −0 equal to 0, NaN above everything; inverted for descending order.
#[inline(always)]
fn key32(v: f32, descending: bool) -> u32 {
    let bits = (v + 0.0).to_bits();
    let key = if v.is_nan() {
        u32::MAX
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    if descending { !key } else { key }
}

/// [`key32`] for f64.
#[inline(always)]
fn key64(v: f64, descending: bool) -> u64 {
    let bits = (v + 0.0).to_bits();
    let key = if v.is_nan() {
        u64::MAX
    } else if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    };
    if descending { !key } else { key }
}

/// The first `k` elements of every line along `axis` in sorted order (stable, NaN above everything) and their indices.
pub(crate) fn sort<T: Compute>(x: &In<'_>, axis: usize, k: usize, descending: bool, values: &mut [T], indices: &mut [i64]) -> Result<()> {
    let n = x.shape()[axis];
    if u32::try_from(n).is_err() {
        bail!(argument, "cannot sort lines of {n} elements: at most 2³² − 1");
    }
    if values.is_empty() {
        return Ok(());
    }
    let rank = x.shape().rank();
    let to_rows: Dims = (0..rank).filter(|&i| i != axis).chain([axis]).collect();
    let moved = x.layout().permute(&to_rows)?;
    let data: Contiguous<'_, T> = x.with_layout(&moved).contiguous()?;
    let inner: usize = x.shape()[axis + 1..].iter().product();
    if inner == 1 {
        return sort_rows(&data, n, k, descending, values, indices);
    }
    let mut rows = Buffer::alloc(T::DTYPE, values.len())?;
    let mut places = Buffer::alloc(I64, indices.len())?;
    sort_rows(&data, n, k, descending, rows.slice_mut::<T>(), places.slice_mut::<i64>())?;
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
    let layout = Layout::contiguous(moved.shape().with_dim(rank - 1, k)).permute(&back)?;
    copy_strided(rows.slice::<T>(), &layout, values)?;
    copy_strided(places.slice::<i64>(), &layout, indices)
}

fn sort_rows<T: Compute>(x: &[T], n: usize, k: usize, descending: bool, values: &mut [T], indices: &mut [i64]) -> Result<()> {
    // The index breaks ties, so an unstable sort of (key, index) is a stable sort of the keys.
    let wide = T::DTYPE == DType::F64;
    let some = |((values, indices), x): ((&mut [T], &mut [i64]), &[T])| -> Result<()> {
        let (mut narrow, mut broad): (Vec<u64>, Vec<(u64, u32)>) =
            if wide { (Vec::new(), memory::room(n)?) } else { (memory::room(n)?, Vec::new()) };
        for ((values, indices), x) in values.chunks_mut(k).zip(indices.chunks_mut(k)).zip(x.chunks(n)) {
            if wide {
                broad.clear();
                broad.extend(x.iter().zip(0u32..).map(|(v, i)| (key64(v.load().to_f64(), descending), i)));
                first_sorted(&mut broad, k);
                indices.iter_mut().zip(&broad).for_each(|(o, &(_, i))| *o = i64::from(i));
            } else {
                narrow.clear();
                narrow.extend(x.iter().zip(0u64..).map(|(v, i)| u64::from(key32(v.load().to_f64() as f32, descending)) << 32 | i));
                first_sorted(&mut narrow, k);
                indices.iter_mut().zip(&narrow).for_each(|(o, &p)| *o = (p & u64::from(u32::MAX)) as i64);
            }
            for (v, &i) in values.iter_mut().zip(&*indices) {
                *v = x[i as usize];
            }
        }
        Ok(())
    };
    if x.len() < SERIAL / 4 {
        some(((values, indices), x))
    } else {
        // Sorting costs more per element than reading: smaller pieces.
        let rows = (SERIAL / 4 / n).max(1);
        values.par_chunks_mut(rows * k).zip(indices.par_chunks_mut(rows * k)).zip(x.par_chunks(rows * n)).try_for_each(some)
    }
}

/// Sorts so that the first `k` places are right.
fn first_sorted<P: Ord>(pairs: &mut [P], k: usize) {
    if k < pairs.len() {
        pairs.select_nth_unstable(k);
        pairs[..k].sort_unstable();
    } else {
        pairs.sort_unstable();
    }
}

/// Running sums along `axis`, from the far end when `reverse`; in f64, whatever the type: a sum that is added to thousands of times in f32
/// loses as many last bits.
pub(crate) fn cumsum<T: Compute>(x: &In<'_>, axis: usize, reverse: bool, y: &mut [T]) -> Result<()> {
    let (_, n, inner) = x.shape().split_at(axis);
    let x = x.contiguous::<T>()?;
    let x = &*x;
    if y.is_empty() {
        return Ok(());
    }
    let block = n * inner;
    let one = |(y, x): (&mut [T], &[T])| -> Result<()> {
        // Long lines in segments: their totals first, then each from its own start. The cut depends on the size alone.
        let segment = (SERIAL / inner).max(64) * inner;
        if x.len() < 4 * segment {
            scan(x, y, inner, reverse, &mut memory::vec_of(0.0, inner)?);
            return Ok(());
        }
        let totals: Vec<Vec<f64>> = memory::try_collect_ok(x.par_chunks(segment).map(|x| total::<T>(x, inner)).collect()?)?;
        let mut starts = memory::try_collect_ok((0..totals.len()).map(|_| memory::vec_of(0.0, inner)))?;
        let mut acc = memory::vec_of(0.0, inner)?;
        let mut step = |s: usize| {
            starts[s].copy_from_slice(&acc);
            acc.iter_mut().zip(&totals[s]).for_each(|(a, &t)| *a += t);
        };
        if reverse {
            (0..totals.len()).rev().for_each(&mut step)
        } else {
            (0..totals.len()).for_each(&mut step)
        }
        y.par_chunks_mut(segment).zip(x.par_chunks(segment)).zip(starts).for_each(|((y, x), mut acc)| scan(x, y, inner, reverse, &mut acc));
        Ok(())
    };
    if x.len() < SERIAL {
        y.chunks_mut(block).zip(x.chunks(block)).try_for_each(one)
    } else {
        let lines = (SERIAL / block).max(1) * block;
        y.par_chunks_mut(lines).zip(x.par_chunks(lines)).try_for_each(|(y, x)| y.chunks_mut(block).zip(x.chunks(block)).try_for_each(one))
    }
}

fn total<T: Compute>(x: &[T], inner: usize) -> Result<Vec<f64>> {
    let mut acc = memory::vec_of(0.0, inner)?;
    simd::dispatch(
        #[inline(always)]
        || {
            if inner == 1 {
                acc[0] = simd::sum_by(
                    x,
                    #[inline(always)]
                    |a: f64, v: T| a + wide(v),
                );
                return;
            }
            for row in x.chunks(inner) {
                for (a, v) in acc.iter_mut().zip(row) {
                    *a += wide(*v);
                }
            }
        },
    );
    Ok(acc)
}

#[inline(always)]
fn wide<T: Compute>(x: T) -> f64 {
    x.load().to_f64()
}

#[inline(always)]
fn rounded<T: Compute>(x: f64) -> T {
    T::store(<T::Acc as Real>::from_f64(x))
}

/// Continues running sums over the rows of a block.
fn scan<T: Compute>(x: &[T], y: &mut [T], inner: usize, reverse: bool, acc: &mut [f64]) {
    if inner == 1 {
        let mut a = acc[0];
        let mut step = |(y, x): (&mut T, &T)| {
            a += wide(*x);
            *y = rounded(a);
        };
        if reverse {
            y.iter_mut().zip(x).rev().for_each(&mut step)
        } else {
            y.iter_mut().zip(x).for_each(&mut step)
        }
        return;
    }
    let mut step = |(y, x): (&mut [T], &[T])| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((a, y), x) in acc.iter_mut().zip(y.iter_mut()).zip(x) {
                    *a += wide(*x);
                    *y = rounded(*a);
                }
            },
        );
    };
    if reverse {
        y.chunks_mut(inner).zip(x.chunks(inner)).rev().for_each(&mut step);
    } else {
        y.chunks_mut(inner).zip(x.chunks(inner)).for_each(&mut step);
    }
}
