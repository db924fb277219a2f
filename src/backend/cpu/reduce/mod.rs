//! Reductions over axes, in an order that depends on the shape alone.
//!
//! A [`Reduction`] says how a piece of one row, or a few rows of a strip of columns, becomes partial results, and how two
//! partial results merge. The drivers here do the rest: which axes, how the work is cut, in which order parts are merged
//! (neighbours pairwise, so errors grow with the logarithm of the number of parts).

pub(crate) mod moments;
pub(crate) mod order;
pub(crate) mod rows;

use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::{In, SERIAL, copy_strided};
use crate::error::Result;
use crate::layout::Layout;
use crate::memory;
use crate::shape::Dims;

/// Rows per partial result when columns are reduced; fixed, so that the grouping never depends on threads.
const ROWS: usize = 64;

/// Columns that are reduced side by side: their accumulators stay in the first-level cache.
pub(crate) const STRIP: usize = 256;

/// Columns per parallel task.
const TILE: usize = 4 * STRIP;

/// How elements become one number.
pub(crate) trait Reduction<T>: Sync {
    /// A partial result.
    type Part: Copy + Send + Sync;
    /// The part of a row or of a piece of one; never empty. Runs inside [`simd::dispatch`]: mark it `#[inline(always)]`.
    fn row(&self, x: &[T]) -> Self::Part;
    /// The parts of at most [`STRIP`] columns over at least one row; `rows` yields slices as long as `parts`. Runs inside
    /// [`simd::dispatch`]: mark it `#[inline(always)]`.
    fn columns<'a>(&self, rows: impl Iterator<Item = &'a [T]> + Clone, parts: &mut [Self::Part])
    where
        T: 'a;
    /// The part of both, the first one's elements before the second one's.
    fn merge(&self, a: Self::Part, b: Self::Part) -> Self::Part;
    /// Any part: a value to fill scratch memory with.
    fn blank(&self) -> Self::Part;
}

/// An operand with its kept axes before its reduced ones, or in the shape `[outer, reduced, inner]` when that needs no
/// copy. `inner` is 1 when the reduced axes are innermost.
pub(crate) struct Lines {
    pub(crate) layout: Layout,
    pub(crate) reduced: usize,
    pub(crate) inner: usize,
    /// The axes' order in `layout`, when they had to move.
    order: Option<Dims>,
}

/// How to walk `layout` to reduce over `axes` (sorted).
pub(crate) fn lines(layout: &Layout, axes: &[usize]) -> Result<Lines> {
    let rank = layout.rank();
    let size = |r: std::ops::Range<usize>| r.map(|i| layout.shape()[i]).product::<usize>();
    let adjacent = axes.windows(2).all(|w| w[1] == w[0] + 1);
    if let (Some(&first), Some(&last), true) = (axes.first(), axes.last(), adjacent) {
        let (reduced, inner) = (size(first..last + 1), size(last + 1..rank));
        return Ok(Lines { layout: layout.clone(), reduced, inner, order: None });
    }
    let order: Dims = (0..rank).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect();
    let moved = layout.permute(&order)?;
    let kept = rank - axes.len();
    let reduced = moved.shape()[kept..].iter().product();
    Ok(Lines { layout: moved, reduced, inner: 1, order: Some(order) })
}

/// `y[o, i] = finish(all of x[o, ·, i])`, and `empty` when there is nothing to reduce.
pub(crate) fn reduce<T: crate::Element, R: Reduction<T>, O: Copy + Send>(
    x: &In<'_>,
    axes: &[usize],
    y: &mut [O],
    empty: O,
    r: &R,
    finish: impl Fn(R::Part) -> O + Sync,
) -> Result<()> {
    let l = lines(x.layout(), axes)?;
    let x = x.with_layout(&l.layout).contiguous::<T>()?;
    reduce_lines(&x, l.reduced, l.inner, y, empty, r, &finish)
}

fn reduce_lines<T: Sync, R: Reduction<T>, O: Copy + Send>(
    x: &[T],
    reduced: usize,
    inner: usize,
    y: &mut [O],
    empty: O,
    r: &R,
    finish: &(impl Fn(R::Part) -> O + Sync),
) -> Result<()> {
    if reduced == 0 || y.is_empty() {
        y.fill(empty);
        return Ok(());
    }
    if inner == 1 {
        let some = |(y, x): (&mut [O], &[T])| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x.chunks(reduced)) {
                        *y = finish(r.row(x));
                    }
                },
            );
        };
        if reduced >= 2 * SERIAL {
            for (y, x) in y.iter_mut().zip(x.chunks(reduced)) {
                *y = finish(long_row(x, r)?);
            }
        } else if x.len() < SERIAL {
            some((y, x));
        } else {
            let rows = (SERIAL / reduced).max(1);
            y.par_chunks_mut(rows).zip(x.par_chunks(rows * reduced)).for_each(some);
        }
        return Ok(());
    }
    let block = reduced * inner;
    let one = |(y, x): (&mut [O], &[T])| -> Result<()> {
        for (y, part) in y.iter_mut().zip(columns(x, inner, r)?) {
            *y = finish(part);
        }
        Ok(())
    };
    if x.len() < SERIAL || block >= 4 * SERIAL {
        y.chunks_mut(inner).zip(x.chunks(block)).try_for_each(one)
    } else {
        let outers = (SERIAL / block).max(1);
        y.par_chunks_mut(outers * inner)
            .zip(x.par_chunks(outers * block))
            .try_for_each(|(y, x)| y.chunks_mut(inner).zip(x.chunks(block)).try_for_each(one))
    }
}

/// One long row: its pieces in parallel, then their parts.
fn long_row<T: Sync, R: Reduction<T>>(x: &[T], r: &R) -> Result<R::Part> {
    let parts: Vec<R::Part> = x
        .par_chunks(SERIAL)
        .map(|x| {
            simd::dispatch(
                #[inline(always)]
                || r.row(x),
            )
        })
        .collect()?;
    Ok(pairwise(parts, |a, b| *a = r.merge(*a, b))?.unwrap_or_else(|| r.blank()))
}

/// Combines neighbours until one is left.
fn pairwise<P>(mut parts: Vec<P>, merge: impl Fn(&mut P, P)) -> Result<Option<P>> {
    while parts.len() > 1 {
        let mut next = memory::room(parts.len().div_ceil(2))?;
        let mut it = parts.into_iter();
        while let Some(mut a) = it.next() {
            if let Some(b) = it.next() {
                merge(&mut a, b);
            }
            next.push(a);
        }
        parts = next;
    }
    Ok(parts.pop())
}

/// The parts of the columns of a `[reduced, inner]` block.
fn columns<T: Sync, R: Reduction<T>>(x: &[T], inner: usize, r: &R) -> Result<Vec<R::Part>> {
    // Narrow rows are taken several at a time, as one wide row whose columns are merged afterwards.
    let fold = 64 / inner;
    let reduced = x.len() / inner;
    if fold < 2 || reduced < 2 * fold {
        return wide_columns(x, inner, r);
    }
    let (body, tail) = x.split_at(reduced / fold * fold * inner);
    let wide = wide_columns(body, fold * inner, r)?;
    let tail = if tail.is_empty() { None } else { Some(wide_columns(tail, inner, r)?) };
    memory::try_collect_ok((0..inner).map(|i| {
        let own = memory::try_collect(wide.iter().skip(i).step_by(inner).copied().chain(tail.as_ref().map(|t| t[i])))?;
        Ok(pairwise(own, |a, b| *a = r.merge(*a, b))?.unwrap_or_else(|| r.blank()))
    }))
}

fn wide_columns<T: Sync, R: Reduction<T>>(x: &[T], inner: usize, r: &R) -> Result<Vec<R::Part>> {
    let reduced = x.len() / inner;
    let merge = |a: &mut Vec<R::Part>, b: Vec<R::Part>| a.iter_mut().zip(b).for_each(|(a, b)| *a = r.merge(*a, b));
    // Segments of whole groups: at least a task's worth of work each, at most 64 of them.
    let width = inner.min(TILE);
    let work = SERIAL.div_ceil(ROWS * width) * ROWS;
    let segment = work.max(reduced.div_ceil(64).next_multiple_of(ROWS));
    let task = |(first, column): (usize, usize)| -> Result<Vec<R::Part>> {
        let last = (first + segment).min(reduced);
        let width = (inner - column).min(TILE);
        let group = |from: usize| -> Result<Vec<R::Part>> {
            let mut parts = memory::vec_of(r.blank(), width)?;
            let rows = x[from * inner..(from + ROWS).min(last) * inner].chunks(inner);
            for (i, parts) in parts.chunks_mut(STRIP).enumerate() {
                let at = column + i * STRIP;
                let end = at + parts.len();
                simd::dispatch(
                    #[inline(always)]
                    || r.columns(rows.clone().map(move |row| &row[at..end]), parts),
                );
            }
            Ok(parts)
        };
        // A binary counter: slot k holds the parts of 2ᵏ groups.
        let mut slots: Vec<Option<Vec<R::Part>>> = Vec::new();
        for from in (first..last).step_by(ROWS) {
            let mut sum = group(from)?;
            let mut level = 0;
            loop {
                if level == slots.len() {
                    slots.push(None);
                }
                match slots[level].take() {
                    None => break slots[level] = Some(sum),
                    Some(mut older) => {
                        merge(&mut older, sum);
                        sum = older;
                        level += 1;
                    }
                }
            }
        }
        let mut total: Option<Vec<R::Part>> = None;
        for older in slots.into_iter().flatten() {
            total = Some(match total {
                None => older,
                Some(later) => {
                    let mut older = older;
                    merge(&mut older, later);
                    older
                }
            });
        }
        Ok(total.unwrap_or_default())
    };
    let tasks = memory::try_collect((0..inner).step_by(TILE).flat_map(|c| (0..reduced).step_by(segment).map(move |s| (s, c))))?;
    let segments = reduced.div_ceil(segment);
    let done: Vec<Vec<R::Part>> = if x.len() < 4 * SERIAL {
        memory::try_collect_ok(tasks.into_iter().map(task))?
    } else {
        memory::try_collect_ok(tasks.into_par_iter().map(task).collect()?)?
    };
    let mut out = memory::room(inner)?;
    let mut done = done.into_iter();
    for _ in (0..inner).step_by(TILE) {
        out.extend(pairwise(memory::try_collect(done.by_ref().take(segments))?, merge)?.unwrap_or_default());
    }
    Ok(out)
}

/// `y = f(x, all of its group, g)` for every element, in the shape of `x`; `g` has one element per group.
pub(crate) fn spread<T: Compute, R: Reduction<T>>(
    x: &In<'_>,
    g: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    r: &R,
    f: impl Fn(T::Acc, R::Part, T::Acc) -> T::Acc + Sync,
) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let l = lines(x.layout(), axes)?;
    let data = x.with_layout(&l.layout).contiguous::<T>()?;
    let g = g.contiguous::<T>()?;
    match &l.order {
        None => spread_lines(&data, &g, l.reduced, l.inner, y, r, &f)?,
        Some(order) => {
            let mut moved = Buffer::alloc(T::DTYPE, y.len())?;
            spread_lines(&data, &g, l.reduced, 1, moved.slice_mut::<T>(), r, &f)?;
            let mut back = Dims::from_elem(0, order.len());
            for (to, &from) in order.iter().enumerate() {
                back[from] = to;
            }
            copy_strided(moved.slice::<T>(), &Layout::contiguous(l.layout.shape()).permute(&back)?, y)?;
        }
    }
    Ok(())
}

fn spread_lines<T: Compute, R: Reduction<T>>(
    x: &[T],
    g: &[T],
    reduced: usize,
    inner: usize,
    y: &mut [T],
    r: &R,
    f: &(impl Fn(T::Acc, R::Part, T::Acc) -> T::Acc + Sync),
) -> Result<()> {
    if inner == 1 {
        let write = |y: &mut [T], x: &[T], part: R::Part, g: T| {
            simd::dispatch(
                #[inline(always)]
                || {
                    let g = g.load();
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = T::store(f(x.load(), part, g));
                    }
                },
            );
        };
        if reduced >= 2 * SERIAL {
            for ((y, x), &g) in y.chunks_mut(reduced).zip(x.chunks(reduced)).zip(g) {
                let part = long_row(x, r)?;
                y.par_chunks_mut(SERIAL).zip(x.par_chunks(SERIAL)).for_each(|(y, x)| write(y, x, part, g));
            }
            return Ok(());
        }
        // The row is still in cache when it is read again.
        let some = |((y, x), g): ((&mut [T], &[T]), &[T])| {
            for ((y, x), &g) in y.chunks_mut(reduced).zip(x.chunks(reduced)).zip(g) {
                let part = simd::dispatch(
                    #[inline(always)]
                    || r.row(x),
                );
                write(y, x, part, g);
            }
        };
        if x.len() < SERIAL {
            some(((y, x), g));
        } else {
            let rows = (SERIAL / reduced).max(1);
            y.par_chunks_mut(rows * reduced).zip(x.par_chunks(rows * reduced)).zip(g.par_chunks(rows)).for_each(some);
        }
        return Ok(());
    }
    let block = reduced * inner;
    let rows_of = |y: &mut [T], x: &[T], parts: &[R::Part], g: &[T]| {
        for (y, x) in y.chunks_mut(inner).zip(x.chunks(inner)) {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (((y, &x), &part), &g) in y.iter_mut().zip(x).zip(parts).zip(g) {
                        *y = T::store(f(x.load(), part, g.load()));
                    }
                },
            );
        }
    };
    let one = |((y, x), g): ((&mut [T], &[T]), &[T])| -> Result<()> {
        let parts = columns(x, inner, r)?;
        if block < 4 * SERIAL {
            rows_of(y, x, &parts, g);
        } else {
            let rows = (SERIAL / inner).max(1) * inner;
            y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| rows_of(y, x, &parts, g));
        }
        Ok(())
    };
    if x.len() < SERIAL || block >= 4 * SERIAL {
        y.chunks_mut(block).zip(x.chunks(block)).zip(g.chunks(inner)).try_for_each(one)
    } else {
        y.par_chunks_mut(block).zip(x.par_chunks(block)).zip(g.par_chunks(inner)).try_for_each(one)
    }
}

/// `y[o, i] = post(Σ_r pre(x[o, r, i]))`.
pub(crate) fn sum<T: Compute>(
    x: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    pre: impl Fn(T::Acc) -> T::Acc + Sync,
    post: impl Fn(T::Acc) -> T::Acc + Sync,
) -> Result<()> {
    let empty = T::store(post(T::Acc::ZERO));
    reduce::<T, _, _>(x, axes, y, empty, &SumOf(pre), |s| T::store(post(s)))
}

/// `Σ pre(x)`.
struct SumOf<F>(F);

impl<T: Compute, F: Fn(T::Acc) -> T::Acc + Sync> Reduction<T> for SumOf<F> {
    type Part = T::Acc;
    #[inline(always)]
    fn row(&self, x: &[T]) -> T::Acc {
        simd::sum_by(
            x,
            #[inline(always)]
            |acc: T::Acc, v: T| acc + (self.0)(v.load()),
        )
    }
    #[inline(always)]
    fn columns<'a>(&self, rows: impl Iterator<Item = &'a [T]> + Clone, parts: &mut [T::Acc]) {
        parts.fill(T::Acc::ZERO);
        for row in rows {
            for (p, &v) in parts.iter_mut().zip(row) {
                *p += (self.0)(v.load());
            }
        }
    }
    fn merge(&self, a: T::Acc, b: T::Acc) -> T::Acc {
        a + b
    }
    fn blank(&self) -> T::Acc {
        T::Acc::ZERO
    }
}

/// Folds with an associative and commutative function, `f(init, x) = x`.
pub(crate) struct Fold<A, L, F> {
    pub(crate) init: A,
    pub(crate) load: L,
    pub(crate) f: F,
}

impl<T: Copy + Sync, A: Copy + Send + Sync, L: Fn(T) -> A + Sync, F: Fn(A, A) -> A + Sync> Reduction<T> for Fold<A, L, F> {
    type Part = A;
    #[inline(always)]
    fn row(&self, x: &[T]) -> A {
        let mut acc = [self.init; 32];
        let (body, tail) = x.as_chunks::<32>();
        for chunk in body {
            for i in 0..32 {
                acc[i] = (self.f)(acc[i], (self.load)(chunk[i]));
            }
        }
        for (a, &v) in acc.iter_mut().zip(tail) {
            *a = (self.f)(*a, (self.load)(v));
        }
        let mut width = 16;
        while width > 0 {
            for i in 0..width {
                acc[i] = (self.f)(acc[i], acc[i + width]);
            }
            width /= 2;
        }
        acc[0]
    }
    #[inline(always)]
    fn columns<'a>(&self, rows: impl Iterator<Item = &'a [T]> + Clone, parts: &mut [A])
    where
        T: 'a,
    {
        parts.fill(self.init);
        for row in rows {
            for (p, &v) in parts.iter_mut().zip(row) {
                *p = (self.f)(*p, (self.load)(v));
            }
        }
    }
    fn merge(&self, a: A, b: A) -> A {
        (self.f)(a, b)
    }
    fn blank(&self) -> A {
        self.init
    }
}

/// Largest absolute value; NaN when an element is NaN. 0 for an empty operand.
pub(crate) fn max_abs<T: Compute>(x: &In<'_>) -> Result<f64> {
    let x = x.contiguous::<T>()?;
    let piece = |x: &[T]| {
        simd::dispatch(
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
        )
    };
    let parts: Vec<f64> = if x.len() < SERIAL { vec![piece(&x)] } else { x.par_chunks(SERIAL).map(piece).collect()? };
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
    let parts: Vec<f64> = if x.len() < SERIAL { vec![piece(&x)] } else { x.par_chunks(SERIAL).map(piece).collect()? };
    Ok(simd::sum(&parts))
}
