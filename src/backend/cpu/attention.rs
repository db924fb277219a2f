//! Attention: fused softmax(q kᵀ) v and its derivative, with memory linear in the sequence length.
//!
//! Mapping: a *unit* is one key/value head with the query heads that read it. Its query rows are cut into blocks; the
//! scores of a block against all keys it can see lie in a scratch of at most a quarter MiB, so the softmax sees whole
//! rows, needs no running rescale, and its statistics are recomputed in the derivative instead of being saved. A *task* is a run of
//! blocks of one unit: it owns their rows of y and q̄, and sums k̄ and v̄ by itself; where a unit is shared by several
//! tasks their sums are added in order. All borders follow from the shapes, never from the number of threads.
//!
//! A key whose weight is exactly zero (masked, or underflowed) contributes nothing, even when it holds NaN or infinity:
//! rows that are not finite are taken out of the products over keys (or over queries) and added by hand where the weight is not 0.

use super::Buffer;
use super::gemm::{Mat, gemm_here};
use super::map::Compute;
use super::math::Real;
use super::matmul::Multiply;
use super::par::*;
use super::simd;
use super::view::In;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::rng::Key;
use std::ops::Range;

/// Query rows of a block, unless long rows of scores allow fewer.
const BLOCK: usize = 64;
/// Scores of a block: with their cotangents they stay in a core's second-level cache.
const SCORES: usize = 64 * 1024;
/// Tasks to aim at where there are fewer units.
const TASKS: usize = 16;
/// Multiply-adds below which everything stays on the calling thread.
const SERIAL_WORK: usize = 1 << 18;

/// Operands and options; `mask` has the layout of the scores, `[.., heads, queries, keys]`.
pub(crate) struct Attention<'a> {
    pub(crate) q: In<'a>,
    pub(crate) k: In<'a>,
    pub(crate) v: In<'a>,
    pub(crate) mask: Option<(In<'a>, Layout)>,
    pub(crate) scale: f64,
    pub(crate) causal: bool,
    /// Key and probability of keeping.
    pub(crate) dropout: Option<(Key, f64)>,
}

/// A stack of matrices, one for each head.
struct Heads<'a, T> {
    data: &'a [T],
    offsets: Vec<usize>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Rows in the precision that is computed in, borrowed where they already are.
struct Panel<'a, A: Compute<Acc = A>> {
    borrowed: Option<(&'a [A], usize)>,
    owned: Option<Buffer>,
    rows: usize,
    cols: usize,
    /// Rows that hold NaN or infinity, and a copy with zeros in their place.
    bad: Vec<usize>,
    clean: Option<Vec<A>>,
}

impl<'a, A: Real + Compute<Acc = A>> Panel<'a, A> {
    #[inline(always)]
    fn parts(&self) -> (&[A], usize) {
        match (&self.owned, self.borrowed) {
            (Some(b), _) => (b.slice(), self.cols),
            (None, Some((data, stride))) => (data, stride),
            (None, None) => (&[], self.cols),
        }
    }

    /// The first `rows` rows.
    fn top(&self, rows: usize) -> Mat<'_, A> {
        let (data, stride) = self.parts();
        Mat::new(data, rows, self.cols, stride, 1)
    }

    /// The first `rows` rows, with zeros for rows that are not finite.
    fn clean(&self, rows: usize) -> Mat<'_, A> {
        match &self.clean {
            Some(c) => Mat::new(c, rows, self.cols, self.cols, 1),
            None => self.top(rows),
        }
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &[A] {
        let (data, stride) = self.parts();
        &data[i * stride..i * stride + self.cols]
    }

    fn inspect(mut self) -> Self {
        // x − x is 0 for finite x and NaN otherwise. All rows at once: nearly always nothing is found.
        let finite = |rows: Range<usize>| {
            simd::dispatch(
                #[inline(always)]
                || {
                    let mut total = A::ZERO;
                    for i in rows {
                        total += simd::sum_by(
                            self.row(i),
                            #[inline(always)]
                            #[allow(clippy::eq_op)] // reason: x − x is 0, or NaN where x is not finite
                            |a: A, x: A| a + (x - x),
                        );
                    }
                    total == A::ZERO
                },
            )
        };
        let bad: Vec<usize> = if finite(0..self.rows) { Vec::new() } else { (0..self.rows).filter(|&i| !finite(i..i + 1)).collect() };
        if !bad.is_empty() {
            let mut copy: Vec<A> = (0..self.rows).flat_map(|i| self.row(i).iter().copied()).collect();
            for &i in &bad {
                copy[i * self.cols..(i + 1) * self.cols].fill(A::ZERO);
            }
            self.clean = Some(copy);
            self.bad = bad;
        }
        self
    }
}

impl<'a, T: Multiply> Heads<'a, T>
where
    T::Acc: Compute<Acc = T::Acc>,
{
    fn new(x: &In<'a>) -> Result<Self> {
        let l = x.layout();
        let r = l.rank() - 2;
        let (shape, strides) = (l.shape(), l.strides());
        let data = if l.numel() == 0 { &[] } else { x.storage::<T>() };
        let lead = Layout::from_parts(shape[..r].into(), strides[..r].iter().copied().collect(), l.offset())?;
        Ok(Heads {
            data,
            offsets: lead.indices().collect(),
            rows: shape[r],
            cols: shape[r + 1],
            row_stride: strides[r],
            col_stride: strides[r + 1],
        })
    }

    /// Rows of consecutive heads: row `r` is row `r % self.rows` of head `first + r / self.rows`.
    fn panel(&self, first: usize, rows: Range<usize>) -> Result<Panel<'a, T::Acc>> {
        let mut out = Panel { borrowed: None, owned: None, rows: rows.len(), cols: self.cols, bad: Vec::new(), clean: None };
        if rows.is_empty() || self.cols == 0 {
            return Ok(out);
        }
        let at = |r: usize| self.offsets[first + r / self.rows] + r % self.rows * self.row_stride;
        let one_head = rows.start / self.rows == (rows.end - 1) / self.rows;
        if one_head
            && self.col_stride == 1
            && let Some(data) = T::as_acc(self.data)
        {
            out.borrowed = Some((&data[at(rows.start)..], self.row_stride));
            return Ok(out.inspect());
        }
        let mut buffer = Buffer::alloc(<T::Acc as Element>::DTYPE, rows.len() * self.cols)?;
        for (r, row) in rows.zip(buffer.slice_mut::<T::Acc>().chunks_mut(self.cols)) {
            let from = &self.data[at(r)..];
            simd::dispatch(
                #[inline(always)]
                || {
                    if self.col_stride == 1 {
                        for (y, &x) in row.iter_mut().zip(from) {
                            *y = x.load();
                        }
                    } else {
                        for (j, y) in row.iter_mut().enumerate() {
                            *y = from[j * self.col_stride].load();
                        }
                    }
                },
            );
        }
        out.owned = Some(buffer);
        Ok(out.inspect())
    }
}

/// `y ← y + alpha w x` for the rows of `x` that the product left out; `transposed` reads `wᵀ`.
fn add_bad<A: Real + Compute<Acc = A>>(
    alpha: A,
    w: &[A],
    ld: usize,
    outputs: usize,
    transposed: bool,
    x: &Panel<'_, A>,
    limit: usize,
    y: &mut [A],
) {
    for &b in x.bad.iter().filter(|&&b| b < limit) {
        for (o, y) in y.chunks_mut(x.cols).take(outputs).enumerate() {
            let weight = if transposed { w[b * ld + o] } else { w[o * ld + b] };
            if weight != A::ZERO {
                for (y, &x) in y.iter_mut().zip(x.row(b)) {
                    *y += alpha * weight * x;
                }
            }
        }
    }
}

/// Adds a line of the mask to scores: an additive one, or −∞ where a boolean one is 0.
fn add_mask<T: Compute<Acc = A>, A: Real>(row: &mut [A], mask: &In<'_>, at: usize, step: usize) {
    fn each<A: Real, M: Element>(row: &mut [A], mask: &[M], at: usize, step: usize, f: impl Fn(A, M) -> A) {
        simd::dispatch(
            #[inline(always)]
            || {
                if step == 1 {
                    for (x, &m) in row.iter_mut().zip(&mask[at..]) {
                        *x = f(*x, m);
                    }
                } else {
                    for (j, x) in row.iter_mut().enumerate() {
                        *x = f(*x, mask[at + j * step]);
                    }
                }
            },
        );
    }
    if mask.dtype() == DType::U8 {
        each(
            row,
            mask.storage::<u8>(),
            at,
            step,
            #[inline(always)]
            |x, m: u8| if m == 0 { A::NEG_INFINITY } else { x },
        );
        return;
    }
    // A forbidden score stays forbidden, whatever the key holds.
    each(
        row,
        mask.storage::<T>(),
        at,
        step,
        #[inline(always)]
        |x, m: T| {
            let m = m.load();
            if m == A::NEG_INFINITY { m } else { x + m }
        },
    );
}

/// Geometry of a problem.
struct Plan<'a, T: Multiply> {
    of: &'a Attention<'a>,
    q: Heads<'a, T>,
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    /// Where the mask of each query head starts, and its strides over queries and keys.
    mask: Option<(Vec<usize>, usize, usize)>,
    units: usize,
    /// Query heads of a unit.
    group: usize,
    tq: usize,
    tk: usize,
    scale: T::Acc,
}

/// Scratch of one task.
struct Scratch<A> {
    p: Buffer,
    /// Weights after dropout, only with dropout.
    dropped: Option<Buffer>,
    keep: Vec<u8>,
    _acc: std::marker::PhantomData<A>,
}

impl<A: Element> Scratch<A> {
    fn new(len: usize, dropout: bool) -> Result<Self> {
        let dropped = if dropout { Some(Buffer::alloc(A::DTYPE, len)?) } else { None };
        Ok(Scratch {
            p: Buffer::alloc(A::DTYPE, len)?,
            dropped,
            keep: if dropout { vec![0; len] } else { Vec::new() },
            _acc: std::marker::PhantomData,
        })
    }
}

/// A run of query rows of one unit, and how many keys the last of them sees.
#[derive(Clone)]
struct Block {
    rows: Range<usize>,
    keys: usize,
}

impl<'a, T: Multiply> Plan<'a, T> {
    fn new(of: &'a Attention<'a>) -> Result<Self> {
        let (q, k, v) = (Heads::new(&of.q)?, Heads::new(&of.k)?, Heads::new(&of.v)?);
        let mask = match &of.mask {
            Some((_, l)) => {
                let r = l.rank() - 2;
                let lead = Layout::from_parts(l.shape()[..r].into(), l.strides()[..r].iter().copied().collect(), l.offset())?;
                Some((lead.indices().collect(), l.strides()[r], l.strides()[r + 1]))
            }
            None => None,
        };
        let units = k.offsets.len();
        let group = q.offsets.len().checked_div(units).unwrap_or(0);
        let (tq, tk) = (q.rows, k.rows);
        Ok(Plan { of, q, k, v, mask, units, group, tq, tk, scale: <T::Acc as Real>::from_f64(of.scale) })
    }

    /// Keys that query `i` may see when nothing else masks them: all, or those up to its own place counted from the end.
    fn visible(&self, i: usize) -> usize {
        if self.of.causal { (i + 1 + self.tk).saturating_sub(self.tq).min(self.tk) } else { self.tk }
    }

    /// Distance between rows of scores: not a power of two, which would crowd one set of the cache.
    fn ld(&self, keys: usize) -> usize {
        keys.next_multiple_of(16) + 16
    }

    fn block_rows(&self) -> usize {
        (SCORES / self.tk.max(1)).clamp(16, BLOCK) / 16 * 16
    }

    fn scratch_len(&self) -> usize {
        self.block_rows() * self.ld(self.tk)
    }

    /// The blocks of a unit: within heads, or several short heads at once.
    fn blocks(&self) -> Vec<Block> {
        let size = self.block_rows();
        let make = |rows: Range<usize>| {
            let last = if rows.start / self.tq == (rows.end - 1) / self.tq { (rows.end - 1) % self.tq } else { self.tq - 1 };
            Block { keys: self.visible(last), rows }
        };
        if self.tq == 0 {
            Vec::new()
        } else if self.tq >= size {
            (0..self.group)
                .flat_map(|g| (0..self.tq).step_by(size).map(move |i| (g, i)))
                .map(|(g, i)| make(g * self.tq + i..g * self.tq + (i + size).min(self.tq)))
                .collect()
        } else {
            let step = size / self.tq * self.tq;
            let all = self.group * self.tq;
            (0..all).step_by(step).map(|r| make(r..(r + step).min(all))).collect()
        }
    }

    /// Runs of blocks, one a task: the number follows from the shapes.
    fn runs<'b>(&self, blocks: &'b [Block]) -> Vec<&'b [Block]> {
        let parts = TASKS.div_ceil(self.units.max(1)).clamp(1, blocks.len().max(1));
        let work = self.units.saturating_mul(self.group * self.tq).saturating_mul(self.tk).saturating_mul(self.q.cols + self.v.cols);
        let parts = if work < 16 * SERIAL_WORK { 1 } else { parts };
        if blocks.is_empty() { vec![blocks] } else { blocks.chunks(blocks.len().div_ceil(parts)).collect() }
    }

    fn serial(&self) -> bool {
        self.units.saturating_mul(self.group * self.tq).saturating_mul(self.tk).saturating_mul(self.q.cols + self.v.cols) < SERIAL_WORK
    }

    /// The weights of a block, in `s.p`, and after dropout in `s.dropped`.
    fn weights(&self, unit: usize, b: &Block, q: &Panel<'_, T::Acc>, k: &Panel<'_, T::Acc>, s: &mut Scratch<T::Acc>) {
        let ld = self.ld(b.keys);
        let p = s.p.slice_mut::<T::Acc>();
        gemm_here(self.scale, q.top(b.rows.len()), k.top(b.keys).transposed(), T::Acc::ZERO, p, ld);
        for (r, row) in b.rows.clone().zip(p.chunks_mut(ld)) {
            let (head, i) = (unit * self.group + r / self.tq, r % self.tq);
            let n = self.visible(i);
            row[n..b.keys].fill(T::Acc::ZERO);
            let row = &mut row[..n];
            if let (Some((offsets, si, sj)), Some((mask, _))) = (&self.mask, &self.of.mask)
                && n > 0
            {
                add_mask::<T, _>(row, mask, offsets[head] + i * si, *sj);
            }
            simd::dispatch(
                #[inline(always)]
                || softmax_row(row),
            );
        }
        let (Some((key, keep)), Some(dropped)) = (self.of.dropout, &mut s.dropped) else { return };
        let inv = if keep > 0.0 { <T::Acc as Real>::from_f64(1.0 / keep) } else { T::Acc::ZERO };
        let rows = p.chunks(ld).zip(dropped.slice_mut::<T::Acc>().chunks_mut(ld)).zip(s.keep.chunks_mut(ld));
        for (r, ((p, d), bits)) in b.rows.clone().zip(rows) {
            // A score's number in [.., heads, queries, keys] decides, whatever the blocks are.
            let score = ((unit * self.group * self.tq + r) * self.tk) as u64;
            key.fill_bernoulli(score, keep, &mut bits[..b.keys]);
            for ((d, &p), &bit) in d.iter_mut().zip(p).zip(&bits[..b.keys]) {
                *d = if bit == 0 { T::Acc::ZERO } else { p * inv };
            }
        }
    }

    /// Turns the cotangents of a block's dropped weights, in `dp`, into those of its scores.
    fn score_cotangents(&self, b: &Block, s: &Scratch<T::Acc>, dp: &mut [T::Acc]) {
        let ld = self.ld(b.keys);
        let inv = match self.of.dropout {
            Some((_, keep)) if keep > 0.0 => <T::Acc as Real>::from_f64(1.0 / keep),
            _ => T::Acc::ZERO,
        };
        let p = s.p.slice::<T::Acc>();
        for (x, dp) in dp.chunks_mut(ld).take(b.rows.len()).enumerate() {
            let (p, dp) = (&p[x * ld..x * ld + b.keys], &mut dp[..b.keys]);
            if s.dropped.is_some() {
                for (d, &bit) in dp.iter_mut().zip(&s.keep[x * ld..]) {
                    *d = if bit == 0 { T::Acc::ZERO } else { *d * inv };
                }
            }
            simd::dispatch(
                #[inline(always)]
                || softmax_row_vjp(p, dp),
            );
        }
    }
}

/// Softmax in place; −∞ gives exactly 0, and so does a row of nothing else.
#[inline(always)]
fn softmax_row<A: Real>(x: &mut [A]) {
    let m = simd::max(x);
    if m == A::NEG_INFINITY {
        x.fill(A::ZERO);
        return;
    }
    for v in x.iter_mut() {
        let e = (*v - m).exp();
        *v = if *v == A::NEG_INFINITY { A::ZERO } else { e };
    }
    let inv = A::ONE / simd::sum(x);
    for v in x.iter_mut() {
        *v = if *v == A::ZERO { A::ZERO } else { *v * inv };
    }
}

/// `dp ← p (dp − Σ p dp)`, where a weight of 0 ignores what stands in `dp`.
#[inline(always)]
fn softmax_row_vjp<A: Real>(p: &[A], dp: &mut [A]) {
    let dot = simd::dot_by(
        p,
        dp,
        #[inline(always)]
        |a: A, p: A, d: A| if p == A::ZERO { a } else { p.mul_add(d, a) },
    );
    for (d, &p) in dp.iter_mut().zip(p) {
        *d = if p == A::ZERO { A::ZERO } else { p * (*d - dot) };
    }
}

/// Cuts the front off a slice.
fn take<'s, T>(rest: &mut &'s mut [T], n: usize) -> &'s mut [T] {
    let (head, tail) = std::mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}

fn store<T: Compute>(from: &[T::Acc], to: &mut [T]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (y, &x) in to.iter_mut().zip(from) {
                *y = T::store(x);
            }
        },
    );
}

fn rows_of(run: &[Block]) -> usize {
    run.iter().map(|b| b.rows.len()).sum()
}

/// Runs the tasks and keeps their results in order.
fn run_all<J: Send, R: Send>(serial: bool, tasks: Vec<J>, f: impl Fn(J) -> Result<R> + Send + Sync) -> Result<Vec<R>> {
    if serial { tasks.into_iter().map(f).collect() } else { tasks.into_par_iter().map(f).collect().into_iter().collect() }
}

/// `y = softmax(scale q kᵀ + mask) v`.
pub(crate) fn forward<T: Multiply>(x: &Attention<'_>, y: &mut [T]) -> Result<()> {
    let p = Plan::<T>::new(x)?;
    let dv = p.v.cols;
    if y.is_empty() {
        return Ok(());
    }
    let blocks = p.blocks();
    let runs = p.runs(&blocks);
    let mut rest = y;
    let tasks: Vec<_> =
        (0..p.units).flat_map(|u| runs.iter().map(move |r| (u, *r))).map(|(u, r)| (u, r, take(&mut rest, rows_of(r) * dv))).collect();
    run_all(p.serial(), tasks, |(unit, run, mut y)| {
        let zero = T::Acc::ZERO;
        let keys = run.iter().map(|b| b.keys).max().unwrap_or(0);
        let (k, v) = (p.k.panel(unit, 0..keys)?, p.v.panel(unit, 0..keys)?);
        let mut s = Scratch::<T::Acc>::new(p.scratch_len(), x.dropout.is_some())?;
        let mut o = Buffer::alloc(<T::Acc as Element>::DTYPE, p.block_rows() * dv)?;
        for b in run {
            let m = b.rows.len();
            let q = p.q.panel(unit * p.group, b.rows.clone())?;
            p.weights(unit, b, &q, &k, &mut s);
            let o = &mut o.slice_mut::<T::Acc>()[..m * dv];
            let ld = p.ld(b.keys);
            let w = s.dropped.as_ref().unwrap_or(&s.p).slice::<T::Acc>();
            gemm_here(T::Acc::ONE, Mat::new(w, m, b.keys, ld, 1), v.clean(b.keys), zero, o, dv);
            add_bad(T::Acc::ONE, w, ld, m, false, &v, b.keys, o);
            store(o, take(&mut y, m * dv));
        }
        Ok(())
    })?;
    Ok(())
}

/// What [`backward`] writes: empty where it is not wanted.
pub(crate) struct Bars<'a, T> {
    pub(crate) q: Option<&'a mut [T]>,
    pub(crate) k: Option<&'a mut [T]>,
    pub(crate) v: Option<&'a mut [T]>,
}

/// The wanted cotangents of q, k and v, given that of y.
pub(crate) fn backward<T: Multiply>(x: &Attention<'_>, y_bar: &In<'_>, bars: Bars<'_, T>) -> Result<()> {
    let p = Plan::<T>::new(x)?;
    let g = Heads::<T>::new(y_bar)?;
    let (d, dv, tk) = (p.q.cols, p.v.cols, p.tk);
    let blocks = p.blocks();
    let runs = p.runs(&blocks);
    let (mut q_rest, want_q) = bars.q.map_or((&mut [][..], false), |s| (s, true));
    let (want_k, want_v) = (bars.k.is_some(), bars.v.is_some());
    let acc = <T::Acc as Element>::DTYPE;
    let tasks: Vec<_> = (0..p.units)
        .flat_map(|u| runs.iter().map(move |r| (u, *r)))
        .map(|(u, r)| (u, r, take(&mut q_rest, if want_q { rows_of(r) * d } else { 0 })))
        .collect();
    let sums = run_all(p.serial(), tasks, |(unit, run, mut q_bar)| {
        let (zero, one) = (T::Acc::ZERO, T::Acc::ONE);
        let keys = run.iter().map(|b| b.keys).max().unwrap_or(0);
        let (k, v) = (p.k.panel(unit, 0..keys)?, p.v.panel(unit, 0..keys)?);
        let mut s = Scratch::<T::Acc>::new(p.scratch_len(), x.dropout.is_some())?;
        let mut dp = Buffer::alloc(acc, p.scratch_len())?;
        let mut out = Buffer::alloc(acc, p.block_rows() * d)?;
        let mut k_bar = Buffer::alloc(acc, if want_k { tk * d } else { 0 })?;
        let mut v_bar = Buffer::alloc(acc, if want_v { tk * dv } else { 0 })?;
        let (k_sum, v_sum) = (k_bar.slice_mut::<T::Acc>(), v_bar.slice_mut::<T::Acc>());
        k_sum.fill(zero);
        v_sum.fill(zero);
        for b in run {
            let (m, ld) = (b.rows.len(), p.ld(b.keys));
            let q = p.q.panel(unit * p.group, b.rows.clone())?;
            let g = g.panel(unit * p.group, b.rows.clone())?;
            p.weights(unit, b, &q, &k, &mut s);
            if want_v {
                let w = s.dropped.as_ref().unwrap_or(&s.p).slice::<T::Acc>();
                gemm_here(one, Mat::new(w, m, b.keys, ld, 1).transposed(), g.clean(m), one, v_sum, dv);
                add_bad(one, w, ld, b.keys, true, &g, m, v_sum);
            }
            if !want_q && !want_k {
                continue;
            }
            let ds = dp.slice_mut::<T::Acc>();
            gemm_here(one, g.top(m), v.top(b.keys).transposed(), zero, ds, ld);
            p.score_cotangents(b, &s, ds);
            if want_k {
                gemm_here(p.scale, Mat::new(ds, m, b.keys, ld, 1).transposed(), q.clean(m), one, k_sum, d);
                add_bad(p.scale, ds, ld, b.keys, true, &q, m, k_sum);
            }
            if want_q {
                let out = &mut out.slice_mut::<T::Acc>()[..m * d];
                gemm_here(p.scale, Mat::new(ds, m, b.keys, ld, 1), k.clean(b.keys), zero, out, d);
                add_bad(p.scale, ds, ld, m, false, &k, b.keys, out);
                store(out, take(&mut q_bar, m * d));
            }
        }
        Ok((k_bar, v_bar))
    })?;
    let (k_sums, v_sums): (Vec<Buffer>, Vec<Buffer>) = sums.into_iter().unzip();
    for (bar, sums, len) in [(bars.k, k_sums, tk * d), (bars.v, v_sums, tk * dv)] {
        if let Some(bar) = bar
            && len > 0
        {
            combine::<T>(p.serial(), bar, len, sums, runs.len());
        }
    }
    Ok(())
}

/// Adds the sums of each unit's tasks in order and rounds them.
fn combine<T: Multiply>(serial: bool, bar: &mut [T], len: usize, mut sums: Vec<Buffer>, parts: usize) {
    let unit = |(bar, sums): (&mut [T], &mut [Buffer])| {
        let Some((first, others)) = sums.split_first_mut() else { return };
        let total = first.slice_mut::<T::Acc>();
        for other in others {
            for (t, &x) in total.iter_mut().zip(other.slice::<T::Acc>()) {
                *t += x;
            }
        }
        store(total, bar);
    };
    if serial {
        bar.chunks_mut(len).zip(sums.chunks_mut(parts)).for_each(unit);
    } else {
        bar.par_chunks_mut(len).zip(sums.par_chunks_mut(parts)).for_each(unit);
    }
}

/// The cotangent of an additive mask of the given shape, which broadcasts to the scores.
///
/// A pass of its own, since a mask is shared by heads and batches in any pattern: a task owns some rows of the mask and
/// goes through everything that reads them, in order.
pub(crate) fn backward_mask<T: Multiply>(x: &Attention<'_>, y_bar: &In<'_>, shape: &crate::Shape, bar: &mut [T]) -> Result<()> {
    let p = Plan::<T>::new(x)?;
    let g = Heads::<T>::new(y_bar)?;
    if bar.is_empty() {
        return Ok(());
    }
    let rank = x.q.shape().rank();
    let at = |axis: usize| if axis + shape.rank() < rank { 1 } else { shape[axis + shape.rank() - rank] };
    let (rows, cols) = (at(rank - 2), at(rank - 1));
    // Which matrix of the mask each query head reads.
    let lead: crate::Shape = (0..rank - 2).map(at).collect();
    let heads: crate::Shape = x.q.shape()[..rank - 2].into();
    let slices: Vec<usize> = Layout::contiguous(&lead).expand(&heads)?.indices().collect();
    let per_row = rows > 1 && rows == p.tq;
    let size = if per_row { p.block_rows() } else { rows };
    let tasks: Vec<_> = bar
        .chunks_mut(rows * cols)
        .enumerate()
        .flat_map(|(slice, m)| m.chunks_mut(size * cols).enumerate().map(move |(i, out)| (slice, i * size, out)))
        .collect();
    let step = p.block_rows().min(p.tq.max(1));
    run_all(p.serial(), tasks, |(slice, first, out)| {
        let zero = T::Acc::ZERO;
        let count = out.len() / cols;
        let mut sum = vec![zero; out.len()];
        let mut s = Scratch::<T::Acc>::new(p.scratch_len(), x.dropout.is_some())?;
        let mut dp = Buffer::alloc(<T::Acc as Element>::DTYPE, p.scratch_len())?;
        let queries = if per_row { first..first + count } else { 0..p.tq };
        for head in (0..slices.len()).filter(|&h| slices[h] == slice) {
            let unit = head / p.group;
            let base = (head % p.group) * p.tq;
            for i in queries.clone().step_by(step) {
                let end = (i + step).min(queries.end);
                let b = Block { rows: base + i..base + end, keys: p.visible(end - 1) };
                let (k, v) = (p.k.panel(unit, 0..b.keys)?, p.v.panel(unit, 0..b.keys)?);
                let (q, g) = (p.q.panel(unit * p.group, b.rows.clone())?, g.panel(unit * p.group, b.rows.clone())?);
                p.weights(unit, &b, &q, &k, &mut s);
                let (m, ld) = (end - i, p.ld(b.keys));
                let ds = dp.slice_mut::<T::Acc>();
                gemm_here(T::Acc::ONE, g.top(m), v.top(b.keys).transposed(), zero, ds, ld);
                p.score_cotangents(&b, &s, ds);
                for (r, ds) in ds.chunks(ld).take(m).enumerate() {
                    let to = if per_row { i + r - first } else { 0 };
                    let sum = &mut sum[to * cols..(to + 1) * cols];
                    if cols == p.tk {
                        sum.iter_mut().zip(&ds[..b.keys]).for_each(|(s, &x)| *s += x);
                    } else {
                        sum[0] += simd::sum(&ds[..b.keys]);
                    }
                }
            }
        }
        store(&sum, out);
        Ok(())
    })?;
    Ok(())
}

/// Scores whose numbers do not fit a counter of the generator.
pub(crate) fn check_scores(heads: usize, tq: usize, tk: usize) -> Result<()> {
    let n = heads.checked_mul(tq).and_then(|n| n.checked_mul(tk));
    n.map(drop).ok_or_else(|| Error::out_of_memory(format!("{heads} × {tq} × {tk} scores cannot be numbered")))
}
