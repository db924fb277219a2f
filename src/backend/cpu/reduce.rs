//! Sums over axes, in an order that depends on the shape alone.

use super::map::Compute;
use super::math::Real;
use super::simd;
use super::view::{In, SERIAL};
use crate::error::Result;
use crate::layout::Layout;
use crate::shape::Dims;
use rayon::prelude::*;

/// Rows per partial sum when the outer axis is summed; fixed, so that the grouping never depends on threads.
const ROWS: usize = 64;

/// An operand with its kept axes before its reduced ones, or in the shape `[outer, reduced, inner]` when that needs no
/// copy. `inner` is 1 when the reduced axes are innermost.
pub(crate) struct Lines {
    pub(crate) layout: Layout,
    pub(crate) outer: usize,
    pub(crate) reduced: usize,
    pub(crate) inner: usize,
}

/// How to walk `layout` to reduce over `axes` (sorted).
pub(crate) fn lines(layout: &Layout, axes: &[usize]) -> Result<Lines> {
    let rank = layout.rank();
    let size = |r: std::ops::Range<usize>| r.map(|i| layout.shape()[i]).product::<usize>();
    let adjacent = axes.windows(2).all(|w| w[1] == w[0] + 1);
    if let (Some(&first), Some(&last), true) = (axes.first(), axes.last(), adjacent) {
        return Ok(Lines { layout: layout.clone(), outer: size(0..first), reduced: size(first..last + 1), inner: size(last + 1..rank) });
    }
    let order: Dims = (0..rank).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect();
    let moved = layout.permute(&order)?;
    let kept = rank - axes.len();
    let outer = moved.shape()[..kept].iter().product();
    let reduced = moved.shape()[kept..].iter().product();
    Ok(Lines { layout: moved, outer, reduced, inner: 1 })
}

/// `y[o, i] = post(Σ_r pre(x[o, r, i]))`.
pub(crate) fn sum<T: Compute>(
    x: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    pre: impl Fn(T::Acc) -> T::Acc + Sync,
    post: impl Fn(T::Acc) -> T::Acc + Sync,
) -> Result<()> {
    let l = lines(x.layout(), axes)?;
    let x = x.with_layout(&l.layout).contiguous::<T>()?;
    let x = &*x;
    let zero = T::Acc::from_f64(0.0);
    if l.reduced == 0 || y.is_empty() {
        y.fill(T::store(post(zero)));
        return Ok(());
    }
    if l.inner == 1 {
        let row = |(y, x): (&mut T, &[T])| {
            let s = simd::dispatch(
                #[inline(always)]
                || long_sum(x, &pre),
            );
            *y = T::store(post(s));
        };
        if x.len() < SERIAL {
            y.iter_mut().zip(x.chunks(l.reduced)).for_each(row);
        } else if l.reduced >= SERIAL {
            // Few long rows: parts of a row in parallel, then their sums.
            for (y, x) in y.iter_mut().zip(x.chunks(l.reduced)) {
                let parts: Vec<T::Acc> = x
                    .par_chunks(SERIAL)
                    .map(|x| {
                        simd::dispatch(
                            #[inline(always)]
                            || long_sum(x, &pre),
                        )
                    })
                    .collect();
                *y = T::store(post(simd::sum(&parts)));
            }
        } else {
            let rows = (SERIAL / l.reduced).max(1);
            y.par_chunks_mut(rows).zip(x.par_chunks(rows * l.reduced)).for_each(|(y, x)| y.iter_mut().zip(x.chunks(l.reduced)).for_each(row));
        }
        return Ok(());
    }
    for (y, x) in y.chunks_mut(l.inner).zip(x.chunks(l.reduced * l.inner)) {
        columns(x, l.inner, y, &pre, &post);
    }
    Ok(())
}

#[inline(always)]
fn long_sum<T: Compute>(x: &[T], pre: &(impl Fn(T::Acc) -> T::Acc + Sync)) -> T::Acc {
    simd::sum_by(
        x,
        #[inline(always)]
        |acc: T::Acc, v: T| acc + pre(v.load()),
    )
}

/// Sums the rows of a `[reduced, inner]` block into one row: partial sums over groups of [`ROWS`] rows, then their sum.
fn columns<T: Compute>(x: &[T], inner: usize, y: &mut [T], pre: &(impl Fn(T::Acc) -> T::Acc + Sync), post: &(impl Fn(T::Acc) -> T::Acc + Sync)) {
    let zero = T::Acc::from_f64(0.0);
    let add_rows = |acc: &mut [T::Acc], block: &[T]| {
        simd::dispatch(
            #[inline(always)]
            || {
                for row in block.chunks(inner) {
                    for (a, &v) in acc.iter_mut().zip(row) {
                        *a = *a + pre(v.load());
                    }
                }
            },
        );
    };
    let group = |block: &[T]| {
        let mut acc = vec![zero; inner];
        add_rows(&mut acc, block);
        acc
    };
    let mut parts: Vec<Vec<T::Acc>> = if x.len() < SERIAL {
        x.chunks(ROWS * inner).map(group).collect()
    } else {
        x.par_chunks(ROWS * inner).map(group).collect()
    };
    // Combine neighbours pairwise: the error grows with the logarithm of the number of groups.
    while parts.len() > 1 {
        let odd = if parts.len() % 2 == 1 { parts.pop() } else { None };
        parts = parts
            .chunks_mut(2)
            .map(|pair| {
                let (a, b) = pair.split_at_mut(1);
                let mut a = std::mem::take(&mut a[0]);
                a.iter_mut().zip(&b[0]).for_each(|(a, &b)| *a = *a + b);
                a
            })
            .collect();
        parts.extend(odd);
    }
    for (y, s) in y.iter_mut().zip(&parts[0]) {
        *y = T::store(post(*s));
    }
}

/// Largest absolute value; NaN when an element is NaN. 0 for an empty operand.
pub(crate) fn max_abs<T: Compute>(x: &In<'_>) -> Result<f64> {
    let x = x.contiguous::<T>()?;
    let piece = |x: &[T]| {
        let m = simd::dispatch(
            #[inline(always)]
            || {
                // A NaN anywhere makes the sum of x·0 NaN; the maximum alone would drop it.
                let mut lanes = [T::Acc::from_f64(0.0); 16];
                let mut bad = [T::Acc::from_f64(0.0); 16];
                let chunks = x.chunks_exact(16);
                for &v in chunks.remainder() {
                    let v = v.load();
                    bad[0] += v * T::Acc::from_f64(0.0);
                    lanes[0] = if v.abs() > lanes[0] { v.abs() } else { lanes[0] };
                }
                for c in chunks {
                    for i in 0..16 {
                        let v = c[i].load();
                        bad[i] += v * T::Acc::from_f64(0.0);
                        lanes[i] = if v.abs() > lanes[i] { v.abs() } else { lanes[i] };
                    }
                }
                let (mut m, mut nan) = (0f64, false);
                for i in 0..16 {
                    m = m.max(lanes[i].to_f64());
                    nan |= bad[i].is_nan() && lanes[i].is_finite();
                }
                if nan { f64::NAN } else { m }
            },
        );
        m
    };
    let parts: Vec<f64> = if x.len() < SERIAL { vec![piece(&x)] } else { x.par_chunks(SERIAL).map(piece).collect() };
    // f64::max drops NaN, so look for it.
    Ok(if parts.iter().any(|m| m.is_nan()) { f64::NAN } else { parts.into_iter().fold(0.0, f64::max) })
}

/// `Σ (x / scale)²` in `f64`.
pub(crate) fn scaled_square_sum<T: Compute>(x: &In<'_>, scale: f64) -> Result<f64> {
    let x = x.contiguous::<T>()?;
    let inverse = 1.0 / scale;
    let piece = |x: &[T]| {
        simd::dispatch(
            #[inline(always)]
            || {
                simd::sum_by(
                    x,
                    #[inline(always)]
                    |acc: f64, v: T| {
                        let v = v.load().to_f64() * inverse;
                        acc + v * v
                    },
                )
            },
        )
    };
    let parts: Vec<f64> = if x.len() < SERIAL { vec![piece(&x)] } else { x.par_chunks(SERIAL).map(piece).collect() };
    Ok(simd::sum(&parts))
}
