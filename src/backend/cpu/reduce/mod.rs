//! Reductions over axes, in an order that depends on the shape alone.
//!
//! A [`Reduction`] says how a piece of one row, or a few rows of a strip of columns, becomes partial results, and how two
//! partial results merge. The drivers here do the rest: which axes, how the work is cut, in which order parts are merged
//! (neighbours pairwise, so errors grow with the logarithm of the number of parts).
//!
//! The drivers are compiled once per type of operand: they keep parts as bytes and reach a reduction through `Parts`. Half
//! types are widened piece by piece in cache, so a reduction is compiled for the types that it computes in alone.

pub(crate) mod moments;
pub(crate) mod order;
mod parts;
pub(crate) mod rows;

pub(crate) use parts::{Part, Reduction, Rows};

use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::map::WIDE;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::{In, SERIAL, copy_strided};
use crate::error::Result;
use crate::layout::Layout;
use crate::memory;
use crate::shape::Dims;
use parts::{FEW, Few, Operand, Parts, as_numbers, parts_room, spare, typed, write_numbers};

/// Rows per partial result when columns are reduced; fixed, so that the grouping never depends on threads.
const ROWS: usize = 64;

/// Columns that are reduced side by side: their accumulators stay in the first-level cache.
pub(crate) const STRIP: usize = 256;

/// Columns per parallel task.
const TILE: usize = 4 * STRIP;

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
pub(crate) fn reduce<T: Operand, R: Reduction<T::Number>>(
    x: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    empty: T,
    r: &R,
    finish: impl Fn(R::Part) -> T::Number + Sync,
) -> Result<()> {
    reduce_with(x, axes, y, empty, r, &|parts, y| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, &part) in y.iter_mut().zip(typed::<R::Part>(parts)) {
                    *y = finish(part);
                }
            },
        );
    })
}

/// Turns some parts into as many results.
type Finish<'a, A> = &'a (dyn Fn(&[u8], &mut [A]) + Sync);

fn reduce_with<T: Operand>(
    x: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    empty: T,
    r: &dyn Parts<T::Number>,
    finish: Finish<'_, T::Number>,
) -> Result<()> {
    let l = lines(x.layout(), axes)?;
    let (reduced, inner) = (l.reduced, l.inner);
    let x = &*x.with_layout(&l.layout).contiguous::<T>()?;
    if reduced == 0 || y.is_empty() {
        y.fill(empty);
        return Ok(());
    }
    let size = r.size();
    // Results of the parts from number `first` on.
    let finish_all = |parts: &[u8], y: &mut [T]| write_numbers(y, |first, y| finish(&parts[first * size..][..y.len() * size], y));
    if inner == 1 {
        if reduced >= 2 * SERIAL {
            let mut part = Few::NEW;
            for (y, x) in y.iter_mut().zip(x.chunks(reduced)) {
                long_row(x, r, &mut part.0[..size])?;
                finish_all(&part.0[..size], std::slice::from_mut(y));
            }
            return Ok(());
        }
        // A few rows at a time, whose parts have room on the stack.
        let (rows, few) = ((SERIAL / reduced).max(1), FEW / size);
        return y.par_chunks_mut(rows).zip(x.par_chunks(rows * reduced)).try_for_each(|(y, x)| {
            let mut parts = Few::NEW;
            let mut wide = spare::<T>(few.min(y.len()) * reduced)?;
            for (y, x) in y.chunks_mut(few).zip(x.chunks(few * reduced)) {
                let parts = &mut parts.0[..y.len() * size];
                r.rows(as_numbers(x, wide.slice_mut()), reduced, parts);
                finish_all(parts, y);
            }
            Ok(())
        });
    }
    let block = reduced * inner;
    let one = |(y, x): (&mut [T], &[T])| -> Result<()> {
        let mut parts = parts_room(inner, size)?;
        columns(x, inner, r, parts.slice_mut())?;
        finish_all(parts.slice(), y);
        Ok(())
    };
    let (blocks, serial) = blocks_per_task(x.len(), block);
    y.par_chunks_mut(blocks * inner)
        .zip(x.par_chunks(blocks * block))
        .with_min_len(serial)
        .try_for_each(|(y, x)| y.chunks_mut(inner).zip(x.chunks(block)).try_for_each(one))
}

/// How many blocks a task takes, and how many tasks stay together: all where the blocks are few, and cut themselves.
fn blocks_per_task(all: usize, block: usize) -> (usize, usize) {
    if block >= 4 * SERIAL { (1, usize::MAX) } else { ((SERIAL / block).max(1), if all < SERIAL { usize::MAX } else { 1 }) }
}

/// The part of one long row: its pieces in parallel, then their parts.
fn long_row<T: Operand>(x: &[T], r: &dyn Parts<T::Number>, part: &mut [u8]) -> Result<()> {
    let size = r.size();
    let pieces = x.len().div_ceil(SERIAL);
    let mut parts = parts_room(pieces, size)?;
    let parts = parts.slice_mut::<u8>();
    parts.par_chunks_mut(size).zip(x.par_chunks(SERIAL)).try_for_each(|(part, x)| -> Result<()> {
        let mut wide = spare::<T>(x.len())?;
        r.rows(as_numbers(x, wide.slice_mut()), x.len(), part);
        Ok(())
    })?;
    pairwise(parts, size, &|a, b| r.merge(a, b));
    part.copy_from_slice(&parts[..size]);
    Ok(())
}

/// Merges neighbours among rows of parts until the first one has all.
fn pairwise(parts: &mut [u8], row: usize, merge: &dyn Fn(&mut [u8], &[u8])) {
    let mut step = row;
    while step < parts.len() {
        for pair in parts.chunks_mut(2 * step) {
            if pair.len() > step {
                let (a, b) = pair.split_at_mut(step);
                merge(&mut a[..row], &b[..row]);
            }
        }
        step *= 2;
    }
}

/// The parts of the columns of a `[reduced, inner]` block.
fn columns<T: Operand>(x: &[T], inner: usize, r: &dyn Parts<T::Number>, parts: &mut [u8]) -> Result<()> {
    // Narrow rows are taken several at a time, as one wide row whose columns are merged afterwards.
    let fold = 64 / inner;
    let reduced = x.len() / inner;
    if fold < 2 || reduced < 2 * fold {
        return wide_columns(x, inner, r, parts);
    }
    let (body, tail) = x.split_at(reduced / fold * fold * inner);
    let row = parts.len();
    let mut rows = parts_room((fold + usize::from(!tail.is_empty())) * inner, r.size())?;
    let rows = rows.slice_mut::<u8>();
    wide_columns(body, fold * inner, r, &mut rows[..fold * row])?;
    if !tail.is_empty() {
        wide_columns(tail, inner, r, &mut rows[fold * row..])?;
    }
    pairwise(rows, row, &|a, b| r.merge(a, b));
    parts.copy_from_slice(&rows[..row]);
    Ok(())
}

fn wide_columns<T: Operand>(x: &[T], inner: usize, r: &dyn Parts<T::Number>, parts: &mut [u8]) -> Result<()> {
    let (reduced, size) = (x.len() / inner, r.size());
    // Segments of whole groups: at least a task's worth of work each, at most 64 of them.
    let work = SERIAL.div_ceil(ROWS * inner.min(TILE)) * ROWS;
    let segment = work.max(reduced.div_ceil(64).next_multiple_of(ROWS));
    let segments = reduced.div_ceil(segment);
    let mut rows = parts_room(segments * inner, size)?;
    let rows = rows.slice_mut::<u8>();
    let tiles = inner.div_ceil(TILE);
    let serial = if x.len() < 4 * SERIAL { usize::MAX } else { 1 };
    rows.par_columns(1, inner * size, TILE * size).enumerate().with_min_len(serial).try_for_each(|(t, mut out)| {
        let first = t / tiles * segment;
        let groups = Groups { x, inner, rows: first..(first + segment).min(reduced), column: t % tiles * TILE, r };
        groups.parts(out.row(0))
    })?;
    pairwise(rows, inner * size, &|a, b| r.merge(a, b));
    parts.copy_from_slice(&rows[..inner * size]);
    Ok(())
}

/// Some columns over some rows, which are taken in groups of [`ROWS`].
struct Groups<'a, T: Operand> {
    x: &'a [T],
    inner: usize,
    rows: std::ops::Range<usize>,
    column: usize,
    r: &'a dyn Parts<T::Number>,
}

impl<T: Operand> Groups<'_, T> {
    /// The parts of all rows.
    fn parts(&self, out: &mut [u8]) -> Result<()> {
        let mut wide = spare::<T>(ROWS * STRIP)?;
        if self.rows.len() <= ROWS {
            self.group(self.rows.start, wide.slice_mut(), out);
            return Ok(());
        }
        // A binary counter: slot k holds the parts of 2ᵏ groups.
        let mut slots: Vec<Option<Buffer>> = Vec::new();
        for from in self.rows.clone().step_by(ROWS) {
            let mut sum = parts_room(out.len(), 1)?;
            self.group(from, wide.slice_mut(), sum.slice_mut());
            let mut level = 0;
            loop {
                if level == slots.len() {
                    memory::push(&mut slots, None)?;
                }
                match slots[level].take() {
                    None => break slots[level] = Some(sum),
                    Some(mut older) => {
                        self.r.merge(older.slice_mut(), sum.slice());
                        sum = older;
                        level += 1;
                    }
                }
            }
        }
        let mut total: Option<Buffer> = None;
        for mut older in slots.into_iter().flatten() {
            if let Some(later) = total {
                self.r.merge(older.slice_mut(), later.slice());
            }
            total = Some(older);
        }
        if let Some(total) = total {
            out.copy_from_slice(total.slice());
        }
        Ok(())
    }

    /// The parts of the group that begins at row `from`.
    fn group(&self, from: usize, wide: &mut [T::Number], out: &mut [u8]) {
        let to = (from + ROWS).min(self.rows.end);
        let size = self.r.size();
        for (i, parts) in out.chunks_mut(STRIP * size).enumerate() {
            let (at, width) = (self.column + i * STRIP, parts.len() / size);
            let x = &self.x[from * self.inner + at..(to - 1) * self.inner + at + width];
            if let Some(x) = T::numbers(x) {
                self.r.columns(x, self.inner, parts);
                continue;
            }
            for (x, wide) in x.chunks(self.inner).zip(wide.chunks_exact_mut(width)) {
                T::widen(&x[..width], wide);
            }
            self.r.columns(&wide[..(to - from) * width], width, parts);
        }
    }
}

/// `y = f(x, all of its group, g)` for every element, in the shape of `x`; `g` has one element per group.
pub(crate) fn spread<T: Compute, R: Reduction<T::Acc>>(
    x: &In<'_>,
    g: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    r: &R,
    f: impl Fn(T::Acc, R::Part, T::Acc) -> T::Acc + Sync,
) -> Result<()> {
    spread_with(x, g, axes, y, r, &|x, parts, g, y| {
        let parts = typed::<R::Part>(parts);
        simd::dispatch(
            #[inline(always)]
            || {
                if let (&[part], &[g]) = (parts, g) {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = f(x, part, g);
                    }
                } else {
                    for (((y, &x), &part), &g) in y.iter_mut().zip(x).zip(parts).zip(g) {
                        *y = f(x, part, g);
                    }
                }
            },
        );
    })
}

/// Writes elements from operands, the parts of their groups and the groups' cotangents: one of both for all, or one for each.
type Write<'a, A> = &'a (dyn Fn(&[A], &[u8], &[A], &mut [A]) + Sync);

fn spread_with<T: Compute>(
    x: &In<'_>,
    g: &In<'_>,
    axes: &[usize],
    y: &mut [T],
    r: &dyn Parts<T::Acc>,
    write: Write<'_, T::Acc>,
) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let l = lines(x.layout(), axes)?;
    let data = x.with_layout(&l.layout).contiguous::<T>()?;
    let g = g.contiguous::<T>()?;
    let Some(order) = &l.order else {
        return spread_lines(&data, &g, l.reduced, l.inner, y, r, write);
    };
    let mut moved = Buffer::alloc(T::DTYPE, y.len())?;
    spread_lines(&data, &g, l.reduced, 1, moved.slice_mut::<T>(), r, write)?;
    let mut back = Dims::from_elem(0, order.len());
    for (to, &from) in order.iter().enumerate() {
        back[from] = to;
    }
    copy_strided(moved.slice::<T>(), &Layout::contiguous(l.layout.shape()).permute(&back)?, y)
}

fn spread_lines<T: Compute>(
    x: &[T],
    g: &[T],
    reduced: usize,
    inner: usize,
    y: &mut [T],
    r: &dyn Parts<T::Acc>,
    write: Write<'_, T::Acc>,
) -> Result<()> {
    let size = r.size();
    if inner == 1 {
        let mut part = Few::NEW;
        if reduced >= 2 * SERIAL {
            for ((y, x), &g) in y.chunks_mut(reduced).zip(x.chunks(reduced)).zip(g) {
                long_row(x, r, &mut part.0[..size])?;
                let part = &part.0[..size];
                y.par_chunks_mut(SERIAL).zip(x.par_chunks(SERIAL)).try_for_each(|(y, x)| -> Result<()> {
                    write_pieces(x, part, &[g.load()], spare::<T>(WIDE)?.slice_mut(), y, write);
                    Ok(())
                })?;
            }
            return Ok(());
        }
        let rows = (SERIAL / reduced).max(1);
        return y.par_chunks_mut(rows * reduced).zip(x.par_chunks(rows * reduced)).zip(g.par_chunks(rows)).try_for_each(|((y, x), g)| {
            let (mut part, mut wide) = (Few::NEW, spare::<T>(reduced)?);
            for ((y, x), &g) in y.chunks_mut(reduced).zip(x.chunks(reduced)).zip(g) {
                let (part, x) = (&mut part.0[..size], as_numbers(x, wide.slice_mut()));
                r.rows(x, reduced, part);
                // The row is still in cache when it is read again.
                write_numbers(y, |from, y| write(&x[from..][..y.len()], part, &[g.load()], y));
            }
            Ok(())
        });
    }
    let block = reduced * inner;
    let one = |((y, x), g): ((&mut [T], &[T]), &[T])| -> Result<()> {
        let mut parts = parts_room(inner, size)?;
        columns(x, inner, r, parts.slice_mut())?;
        let parts = parts.slice::<u8>();
        let mut wide = spare::<T>(inner)?;
        let g = as_numbers(g, wide.slice_mut());
        let rows = (SERIAL / inner).max(1) * inner;
        let serial = if block < 4 * SERIAL { usize::MAX } else { 1 };
        y.par_chunks_mut(rows).zip(x.par_chunks(rows)).with_min_len(serial).try_for_each(|(y, x)| {
            let mut wide = spare::<T>(WIDE)?;
            for (y, x) in y.chunks_mut(inner).zip(x.chunks(inner)) {
                write_pieces(x, parts, g, wide.slice_mut(), y, write);
            }
            Ok(())
        })
    };
    let (blocks, serial) = blocks_per_task(x.len(), block);
    y.par_chunks_mut(blocks * block)
        .zip(x.par_chunks(blocks * block))
        .zip(g.par_chunks(blocks * inner))
        .with_min_len(serial)
        .try_for_each(|((y, x), g)| y.chunks_mut(block).zip(x.chunks(block)).zip(g.chunks(inner)).try_for_each(one))
}

/// `write` for elements that may have to be widened; `parts` and `g` are one for all of them, or one for each. `wide` has room for
/// [`WIDE`] numbers where they have to be.
fn write_pieces<T: Compute>(x: &[T], parts: &[u8], g: &[T::Acc], wide: &mut [T::Acc], y: &mut [T], write: Write<'_, T::Acc>) {
    let size = parts.len() / g.len();
    write_numbers(y, |from, y| {
        let own = from..from + y.len();
        let (parts, g) = if g.len() == 1 { (parts, g) } else { (&parts[own.start * size..own.end * size], &g[own.clone()]) };
        write(as_numbers(&x[own], wide), parts, g, y);
    });
}

/// `y[o, i] = post(Σ_r x[o, r, i])`.
pub(crate) fn sum<T: Compute>(x: &In<'_>, axes: &[usize], y: &mut [T], post: impl Fn(T::Acc) -> T::Acc + Sync) -> Result<()> {
    let empty = T::store(post(T::Acc::ZERO));
    reduce::<T, _>(x, axes, y, empty, &Sum, post)
}

/// `Σ x`.
struct Sum;

impl<A: Real> Reduction<A> for Sum {
    type Part = A;
    #[inline(always)]
    fn row(&self, x: &[A]) -> A {
        simd::sum(x)
    }
    #[inline(always)]
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [A]) {
        parts.fill(A::ZERO);
        for row in rows {
            for (p, &v) in parts.iter_mut().zip(row) {
                *p += v;
            }
        }
    }
    fn merge(&self, a: A, b: A) -> A {
        a + b
    }
}

/// Folds with an associative and commutative function, `f(init, x) = x`.
pub(crate) struct Fold<A, F> {
    pub(crate) init: A,
    pub(crate) f: F,
}

impl<A: Part, F: Fn(A, A) -> A + Sync> Reduction<A> for Fold<A, F> {
    type Part = A;
    #[inline(always)]
    fn row(&self, x: &[A]) -> A {
        let mut acc = [self.init; 32];
        let (body, tail) = x.as_chunks::<32>();
        for chunk in body {
            for i in 0..32 {
                acc[i] = (self.f)(acc[i], chunk[i]);
            }
        }
        for (a, &v) in acc.iter_mut().zip(tail) {
            *a = (self.f)(*a, v);
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
    fn columns(&self, rows: Rows<'_, A>, parts: &mut [A]) {
        parts.fill(self.init);
        for row in rows {
            for (p, &v) in parts.iter_mut().zip(row) {
                *p = (self.f)(*p, v);
            }
        }
    }
    fn merge(&self, a: A, b: A) -> A {
        (self.f)(a, b)
    }
}

/// One number for each piece of an operand, widened where it has to be.
fn of_pieces<T: Compute>(x: &In<'_>, piece: &(dyn Fn(&[T::Acc]) -> f64 + Sync)) -> Result<Vec<f64>> {
    let x = x.contiguous::<T>()?;
    let mut parts = memory::vec_of(0.0, x.len().div_ceil(SERIAL))?;
    parts.par_chunks_mut(1).zip(x.par_chunks(SERIAL)).try_for_each(|(part, x)| -> Result<()> {
        let mut wide = spare::<T>(x.len())?;
        part[0] = piece(as_numbers(x, wide.slice_mut()));
        Ok(())
    })?;
    Ok(parts)
}

/// Largest absolute value; NaN when an element is NaN. 0 for an empty operand.
pub(crate) fn max_abs<T: Compute>(x: &In<'_>) -> Result<f64> {
    let parts = of_pieces::<T>(x, &|x| {
        simd::dispatch(
            #[inline(always)]
            || {
                // A NaN anywhere makes the sum of x·0 NaN; the maximum alone would drop it.
                let mut lanes = [T::Acc::from_f64(0.0); 16];
                let mut bad = [T::Acc::from_f64(0.0); 16];
                let chunks = x.chunks_exact(16);
                for &v in chunks.remainder() {
                    bad[0] += v * T::Acc::from_f64(0.0);
                    lanes[0] = if v.abs() > lanes[0] { v.abs() } else { lanes[0] };
                }
                for c in chunks {
                    for i in 0..16 {
                        let v = c[i];
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
    })?;
    // f64::max drops NaN, so look for it.
    Ok(if parts.iter().any(|m| m.is_nan()) { f64::NAN } else { parts.into_iter().fold(0.0, f64::max) })
}

/// `Σ (x / scale)²` in `f64`.
pub(crate) fn scaled_square_sum<T: Compute>(x: &In<'_>, scale: f64) -> Result<f64> {
    let inverse = 1.0 / scale;
    let parts = of_pieces::<T>(x, &|x| {
        simd::dispatch(
            #[inline(always)]
            || {
                simd::sum_by(
                    x,
                    #[inline(always)]
                    |acc: f64, v: T::Acc| {
                        let v = v.to_f64() * inverse;
                        acc + v * v
                    },
                )
            },
        )
    })?;
    Ok(simd::sum(&parts))
}
