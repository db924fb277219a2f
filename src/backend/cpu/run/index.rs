//! Rows picked by index, and sums back into them. Indices are checked before anything is read through them; sums run in
//! an order that the indices alone decide, whatever the number of threads.

use super::map::rows;
use super::par::*;
use super::simd;
use super::view::{Contiguous, In, SERIAL};
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::dtype::{DType, Element, I64, U8, U32};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::shape::Dims;
use std::marker::PhantomData;

/// Columns that one accumulator block holds: it stays in the first-level cache.
const COLUMNS: usize = 256;

/// Rows that are added one after the other before their sum enters the pairwise tree.
const GROUP: usize = 64;

/// Destination rows per parallel piece are chosen so that a piece has about this many elements.
const PIECE: usize = 64 * 1024;

/// The indices in row-major order, each found to be in `0..limit`.
pub(crate) fn indices<'a>(x: &In<'a>, limit: usize) -> Result<Contiguous<'a, i64>> {
    let out = match x.dtype() {
        I64 => x.contiguous::<i64>()?,
        U32 => widen::<u32>(x, i64::from)?,
        U8 => widen::<u8>(x, i64::from)?,
        d => bail!(dtype, "expected integer indices (i64, u32 or u8), found {d}"),
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    if let Some(at) = out.iter().position(|&i| i < 0 || i >= limit) {
        let mut rest = at;
        let mut position = Dims::from_elem(0, x.shape().rank());
        for (p, &d) in position.iter_mut().zip(x.shape().iter()).rev() {
            *p = rest % d;
            rest /= d;
        }
        return Err(Error::index(format!("index {} at position {position:?} is outside 0..{limit}", out[at])));
    }
    Ok(out)
}

fn widen<'a, T: Element>(x: &In<'_>, f: impl Fn(T) -> i64) -> Result<Contiguous<'a, i64>> {
    let from = x.contiguous::<T>()?;
    let mut buffer = Buffer::alloc(DType::I64, from.len())?;
    for (to, &v) in buffer.slice_mut::<i64>().iter_mut().zip(&*from) {
        *to = f(v);
    }
    Ok(Contiguous::Owned(buffer, PhantomData))
}

/// `y[o, k, :] = x[o, ids[k], :]` with `x` in the shape `[outer, extent, inner]`; rows of `skip` become zero.
pub(crate) fn select_rows<T: Element>(x: &[T], ids: &[i64], extent: usize, inner: usize, skip: Option<i64>, y: &mut [T]) {
    if y.is_empty() {
        return;
    }
    let n = ids.len();
    rows(y, inner, |row, out| {
        let id = ids[row % n];
        if skip == Some(id) {
            out.fill(T::from_f64(0.0));
            return;
        }
        let from = (row / n * extent + id as usize) * inner;
        out.copy_from_slice(&x[from..from + inner]);
    });
}

/// `y[o, v, :] = Σ g[o, k, :]` over the `k` with `ids[k] = v`, in the order of `k`; the row of `skip`, and rows that no
/// index names, are zero. `y` is `[outer, extent, inner]`, `g` is `[outer, ids, inner]`.
pub(crate) fn add_rows<T: Compute>(g: &[T], ids: &[i64], extent: usize, inner: usize, skip: Option<i64>, y: &mut [T]) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    // Counting sort: `order[start[v]..start[v + 1]]` are the positions that name row v, ascending.
    let mut start = memory::vec_of(0usize, extent + 1)?;
    for &id in ids {
        start[id as usize + 1] += 1;
    }
    for v in 0..extent {
        start[v + 1] += start[v];
    }
    let mut next = memory::copied(&start)?;
    let mut order = memory::vec_of(0usize, ids.len())?;
    for (k, &id) in ids.iter().enumerate() {
        let slot = &mut next[id as usize];
        order[*slot] = k;
        *slot += 1;
    }
    let zero = T::store(T::Acc::ZERO);
    let one_row = |row: usize, out: &mut [T]| {
        let v = row % extent;
        let named = &order[start[v]..start[v + 1]];
        if named.is_empty() || skip == Some(v as i64) {
            out.fill(zero);
            return;
        }
        let base = row / extent * ids.len();
        let columns = |(c, out): (usize, &mut [T])| segment(g, base, inner, named, c * COLUMNS, out);
        if named.len() * inner >= PIECE {
            // One index for all: its columns in parallel.
            out.par_chunks_mut(COLUMNS).enumerate().for_each(columns);
        } else {
            out.chunks_mut(COLUMNS).enumerate().for_each(columns);
        }
    };
    let per_task = (PIECE / inner).max(1);
    let task = |(t, out): (usize, &mut [T])| {
        for (r, out) in out.chunks_mut(inner).enumerate() {
            one_row(t * per_task + r, out);
        }
    };
    if y.len() + g.len() < SERIAL {
        y.chunks_mut(per_task * inner).enumerate().for_each(task);
    } else {
        y.par_chunks_mut(per_task * inner).enumerate().for_each(task);
    }
    Ok(())
}

/// `out = Σ g[base + k, first..first + out.len()]` over `k` in `named`.
fn segment<T: Compute>(g: &[T], base: usize, inner: usize, named: &[usize], first: usize, out: &mut [T]) {
    let row = |k: usize| {
        let at = (base + k) * inner + first;
        &g[at..at + out.len()]
    };
    if let &[k] = named {
        out.copy_from_slice(row(k));
        return;
    }
    let mut acc = [T::Acc::ZERO; COLUMNS];
    let acc = &mut acc[..out.len()];
    tree(named, acc, &row);
    for (o, &a) in out.iter_mut().zip(acc.iter()) {
        *o = T::store(a);
    }
}

/// Adds the rows of `named` to `acc`: groups in sequence, groups of groups pairwise, so that the error grows with the
/// logarithm of their number. Its depth is that logarithm.
fn tree<'a, T: Compute>(named: &[usize], acc: &mut [T::Acc], row: &impl Fn(usize) -> &'a [T]) {
    if named.len() <= GROUP {
        simd::dispatch(
            #[inline(always)]
            || {
                for &k in named {
                    for (a, &v) in acc.iter_mut().zip(row(k)) {
                        *a += v.load();
                    }
                }
            },
        );
        return;
    }
    let half = (named.len() / 2).next_multiple_of(GROUP);
    tree(&named[..half], acc, row);
    let mut right = [T::Acc::ZERO; COLUMNS];
    let right = &mut right[..acc.len()];
    tree(&named[half..], right, row);
    for (a, &b) in acc.iter_mut().zip(right.iter()) {
        *a += b;
    }
}

/// Where the elements of an index tensor of shape `[outer…, n, inner…]` read in an operand whose other extents may be
/// larger: for each outer position and each inner position the operand's own.
pub(crate) struct Lines {
    pub(crate) outer: Vec<usize>,
    pub(crate) inner: Vec<usize>,
}

impl Lines {
    pub(crate) fn new(index: &[usize], operand: &[usize], axis: usize) -> Result<Self> {
        Ok(Lines { outer: positions(&index[..axis], &operand[..axis])?, inner: positions(&index[axis + 1..], &operand[axis + 1..])? })
    }
}

/// Row-major positions in `large` of the elements of its corner `small`.
fn positions(small: &[usize], large: &[usize]) -> Result<Vec<usize>> {
    let mut out = memory::vec_of(0, 1)?;
    for (&s, &l) in small.iter().zip(large) {
        let mut next = memory::room(out.len().saturating_mul(s))?;
        next.extend(out.iter().flat_map(|&p| (0..s).map(move |i| p * l + i)));
        out = next;
    }
    Ok(out)
}

/// `y[o, k, i] = x[o, ids[o, k, i], i]`.
pub(crate) fn gather<T: Element>(x: &[T], extent: usize, width: usize, ids: &[i64], n: usize, lines: &Lines, y: &mut [T]) {
    if y.is_empty() {
        return;
    }
    let inner = lines.inner.len();
    // Whole outer positions at a time, unless they are long enough to be split themselves.
    let lines_per_row = if n * inner < SERIAL { n } else { 1 };
    let per_outer = n / lines_per_row.max(1);
    rows(y, lines_per_row * inner, |row, out| {
        let base = lines.outer[row / per_outer] * extent * width;
        let ids = &ids[row * out.len()..(row + 1) * out.len()];
        for (out, ids) in out.chunks_mut(inner).zip(ids.chunks(inner)) {
            for ((o, &id), &i) in out.iter_mut().zip(ids).zip(&lines.inner) {
                *o = x[base + id as usize * width + i];
            }
        }
    });
}

/// How a term joins the value at its index.
#[derive(Clone, Copy)]
pub(crate) enum Join {
    /// Their sum.
    Add,
    /// Their product.
    Times,
    /// The larger; NaN wins.
    Max,
    /// The smaller; NaN wins.
    Min,
}

impl Join {
    #[inline(always)]
    fn of<A: Real>(self, a: A, b: A) -> A {
        match self {
            Join::Add => a + b,
            Join::Times => a * b,
            Join::Max => a.max_nan(b),
            Join::Min => a.min_nan(b),
        }
    }
}

/// `y[o, ids[o, k, i], i] = join(y[o, ids[o, k, i], i], s[o, k, i])` in the order of `k`; half types are joined in f32, and sums of
/// f32 in f64 where there is a term for every fourth of them or more.
#[allow(clippy::too_many_arguments, reason = "three extents of both operands")]
pub(crate) fn scatter<T: Compute>(
    s: &[T],
    extent: usize,
    width: usize,
    ids: &[i64],
    n: usize,
    lines: &Lines,
    y: &mut [T],
    join: Join,
) -> Result<()> {
    let slab = extent * width;
    let inner = lines.inner.len();
    if slab == 0 || s.is_empty() {
        return Ok(());
    }
    // Which of the index' outer positions lands in a slab, if any.
    let mut source = memory::vec_of(None, y.len() / slab)?;
    for (o, &at) in lines.outer.iter().enumerate() {
        source[at] = Some(o);
    }
    // A single large slab is cut into ranges of rows; each task then looks at every index and takes its own.
    let parts = if source.len() >= 8 || s.len() < SERIAL { 1 } else { 8 };
    let rows = extent.div_ceil(parts);
    let small = y.len() + s.len() < SERIAL;
    let tasks = y
        .chunks_mut(slab)
        .zip(source)
        .filter_map(|(y, k)| Some((k?, y)))
        .flat_map(|(k, y)| y.chunks_mut(rows * width).enumerate().map(move |(p, y)| (k, p * rows, y)));
    let run = |(k, first, y): (usize, usize, &mut [T])| -> Result<()> {
        let here = first..first + y.len() / width;
        let block = k * n * inner..(k + 1) * n * inner;
        let terms = ids[block.clone()].chunks(inner).zip(s[block].chunks(inner)).flat_map(|(ids, s)| ids.iter().zip(s).zip(&lines.inner));
        let terms =
            terms.filter(|((id, _), _)| here.contains(&(**id as usize))).map(|((&id, &s), &i)| ((id as usize - first) * width + i, s));
        if T::DTYPE == DType::F32 && matches!(join, Join::Add) && 4 * n * inner >= y.len() {
            // Many terms for each sum: in f64. Where they are few, they would be lost among the passes over the sums.
            let mut acc: Vec<f64> = memory::try_collect(y.iter().map(|&v| Element::to_f64(v)))?;
            terms.for_each(|(at, s)| acc[at] += Element::to_f64(s));
            y.iter_mut().zip(&acc).for_each(|(y, &a)| *y = <T as Element>::from_f64(a));
            return Ok(());
        }
        if !T::DTYPE.is_half() {
            // Computed in its own type: in place.
            terms.for_each(|(at, s)| y[at] = T::store(join.of(y[at].load(), s.load())));
            return Ok(());
        }
        let mut acc: Vec<T::Acc> = memory::try_collect(y.iter().map(|v| v.load()))?;
        terms.for_each(|(at, s)| acc[at] = join.of(acc[at], s.load()));
        for (y, &a) in y.iter_mut().zip(&acc) {
            *y = T::store(a);
        }
        Ok(())
    };
    let mut tasks = tasks;
    if small { tasks.try_for_each(run) } else { memory::try_collect(tasks)?.into_par_iter().try_for_each(run) }
}
