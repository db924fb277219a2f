//! How attention is cut into tasks and blocks, which keys each block meets, and the weights of one block.

use super::panel::{Heads, Panel};
use crate::backend::attention::{Options, seen, seen_packed};
use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::matmul::Multiply;
use crate::backend::cpu::matmul::gemm::{Mat, gemm_here};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::layout::Layout;
use crate::memory;
use std::ops::Range;

/// Query rows of a block, unless long rows of scores allow fewer.
const BLOCK: usize = 64;
/// Scores of a block: with their cotangents they stay in a core's second-level cache.
const SCORES: usize = 64 * 1024;
/// Tasks to aim at where there are fewer units.
const TASKS: usize = 16;
/// Multiply-adds below which everything stays on the calling thread.
const SERIAL_WORK: usize = 1 << 18;

/// Adds a line of the mask to scores: an additive one, or −∞ where a boolean one is 0.
pub(super) fn add_mask<T: Compute<Acc = A>, A: Real>(row: &mut [A], mask: &In<'_>, at: usize, step: usize) {
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

/// Operands and options; `mask` has the layout of the scores, `[.., heads, queries, keys]`.
pub(crate) struct Attention<'a> {
    pub(crate) q: In<'a>,
    pub(crate) k: In<'a>,
    pub(crate) v: In<'a>,
    pub(crate) mask: Option<(In<'a>, Layout)>,
    /// Offsets of the queries and of the keys of packed sequences.
    pub(crate) offsets: Option<(Vec<usize>, Vec<usize>)>,
    pub(crate) options: Options,
}

/// Geometry of a problem.
pub(super) struct Plan<'a, T: Multiply> {
    pub(super) of: &'a Attention<'a>,
    pub(super) q: Heads<'a, T>,
    pub(super) k: Heads<'a, T>,
    pub(super) v: Heads<'a, T>,
    /// Where the mask of each query head starts, and its strides over queries and keys.
    mask: Option<(Vec<usize>, usize, usize)>,
    pub(super) units: usize,
    /// Query heads of a unit.
    pub(super) group: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) scale: T::Acc,
    /// The keys of every query of packed sequences.
    spans: Option<Vec<Range<usize>>>,
    /// Most rows of a block.
    size: usize,
}

/// Scratch of one task.
pub(super) struct Scratch<A> {
    pub(super) p: Buffer,
    /// Weights after dropout, only with dropout.
    pub(super) dropped: Option<Buffer>,
    keep: Vec<u8>,
    /// The slope of the soft cap, where a derivative goes through it.
    slopes: Option<Buffer>,
    _acc: std::marker::PhantomData<A>,
}

impl<A: Element> Scratch<A> {
    /// For the largest of the blocks.
    pub(super) fn new<T: Multiply<Acc = A>>(plan: &Plan<'_, T>, blocks: &[Block], slopes: bool) -> Result<Self> {
        let len = scratch_len(blocks);
        let options = &plan.of.options;
        let buffer = |wanted: bool| if wanted { Buffer::alloc(A::DTYPE, len).map(Some) } else { Ok(None) };
        Ok(Scratch {
            p: Buffer::alloc(A::DTYPE, len)?,
            dropped: buffer(options.dropout.is_some())?,
            keep: if options.dropout.is_some() { memory::vec_of(0, len)? } else { Vec::new() },
            slopes: buffer(slopes && options.softcap.is_some())?,
            _acc: std::marker::PhantomData,
        })
    }
}

/// Elements of the scores of the largest block.
pub(super) fn scratch_len(blocks: &[Block]) -> usize {
    blocks.iter().map(|b| b.rows.len() * ld(b.keys.len())).max().unwrap_or(0)
}

/// Distance between rows of scores: not a power of two, which would crowd one set of the cache.
pub(super) fn ld(keys: usize) -> usize {
    keys.next_multiple_of(16) + 16
}

/// Runs the tasks and keeps their results in order.
pub(super) fn run_all<J: Send, R: Send>(serial: bool, tasks: Vec<J>, f: impl Fn(J) -> Result<R> + Send + Sync) -> Result<Vec<R>> {
    if serial { memory::try_collect_ok(tasks.into_iter().map(f)) } else { memory::try_collect_ok(tasks.into_par_iter().map(f).collect()?) }
}

/// A run of query rows of one unit, and the keys among which are all that they see.
#[derive(Clone)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// The keys of some blocks.
pub(super) fn keys_of(blocks: &[Block]) -> Range<usize> {
    let first = blocks.iter().map(|b| b.keys.start).min().unwrap_or(0);
    first..blocks.iter().map(|b| b.keys.end).max().unwrap_or(0).max(first)
}

impl<'a, T: Multiply> Plan<'a, T> {
    pub(super) fn new(of: &'a Attention<'a>) -> Result<Self> {
        let (q, k, v) = (Heads::new(&of.q)?, Heads::new(&of.k)?, Heads::new(&of.v)?);
        let mask = match &of.mask {
            Some((_, l)) => {
                let r = l.rank() - 2;
                let lead = Layout::from_parts(l.shape()[..r].into(), l.strides()[..r].iter().copied().collect(), l.offset())?;
                Some((memory::try_collect(lead.indices())?, l.strides()[r], l.strides()[r + 1]))
            }
            None => None,
        };
        let units = k.offsets.len();
        let group = q.offsets.len().checked_div(units).unwrap_or(0);
        let (tq, tk, band) = (q.rows, k.rows, of.options.band);
        let spans = of.offsets.as_ref().map(|(q, k)| seen_packed(band, q, k)).transpose()?;
        let longest = of.offsets.as_ref().map_or(tk, |(_, k)| k.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0));
        let widest = band.map_or(tk, |(left, right)| left.saturating_add(right).saturating_add(BLOCK)).min(longest);
        let size = (SCORES / widest.max(1)).clamp(16, BLOCK) / 16 * 16;
        Ok(Plan { of, q, k, v, mask, units, group, tq, tk, scale: <T::Acc as Real>::from_f64(of.options.scale), spans, size })
    }

    /// Keys that query `i` may see when no mask hides them.
    pub(super) fn seen(&self, i: usize) -> Range<usize> {
        match &self.spans {
            Some(s) => s[i].clone(),
            None => seen(self.of.options.band, i, self.tq, self.tk),
        }
    }

    /// Adds the blocks of some consecutive queries of a head of the unit: none reaches over two packed sequences.
    pub(super) fn blocks_of(&self, head: usize, queries: Range<usize>, out: &mut Vec<Block>) -> Result<()> {
        let mut at = queries.start;
        let starts = self.of.offsets.as_ref().map_or(&[][..], |(q, _)| q);
        while at < queries.end {
            let next = starts.get(starts.partition_point(|&s| s <= at)).copied().unwrap_or(queries.end);
            let end = (at + self.size).min(queries.end).min(next);
            // Both ends of what a query sees only move forward.
            let keys = self.seen(at).start..self.seen(end - 1).end;
            memory::push(out, Block { rows: head * self.tq + at..head * self.tq + end, keys })?;
            at = end;
        }
        Ok(())
    }

    /// The blocks of a unit: within heads, or several short heads at once.
    pub(super) fn blocks(&self) -> Result<Vec<Block>> {
        let mut out = Vec::new();
        if self.tq >= self.size || self.spans.is_some() || self.tq == 0 {
            (0..self.group).try_for_each(|g| self.blocks_of(g, 0..self.tq, &mut out))?;
            return Ok(out);
        }
        let keys = self.seen(0).start..self.seen(self.tq - 1).end;
        let (step, all) = (self.size / self.tq * self.tq, self.group * self.tq);
        memory::extend(&mut out, (0..all).step_by(step).map(|r| Block { rows: r..(r + step).min(all), keys: keys.clone() }))?;
        Ok(out)
    }

    /// Multiply-adds of the scores and of what is summed by them.
    fn work(&self, blocks: &[Block]) -> usize {
        let scores: usize = blocks.iter().map(|b| b.rows.len() * b.keys.len()).sum();
        self.units.saturating_mul(scores).saturating_mul(self.q.cols + self.v.cols)
    }

    /// Runs of blocks, one a task: the number follows from the shapes.
    pub(super) fn runs<'b>(&self, blocks: &'b [Block]) -> Result<Vec<&'b [Block]>> {
        let parts = TASKS.div_ceil(self.units.max(1)).clamp(1, blocks.len().max(1));
        let parts = if self.work(blocks) < 16 * SERIAL_WORK { 1 } else { parts };
        if blocks.is_empty() { memory::vec_of(blocks, 1) } else { memory::try_collect(blocks.chunks(blocks.len().div_ceil(parts))) }
    }

    /// Whether everything stays on the calling thread.
    pub(super) fn serial(&self, blocks: &[Block]) -> bool {
        self.work(blocks) < SERIAL_WORK
    }

    /// Products that are scaled already to scores: capped, masked. They are those of row `r` of a unit with the keys from `first`
    /// on, all of which it sees.
    pub(super) fn finish_scores(&self, unit: usize, r: usize, first: usize, row: &mut [T::Acc]) {
        if let Some(c) = self.of.options.softcap {
            let (c, inverse) = (<T::Acc as Real>::from_f64(c), <T::Acc as Real>::from_f64(1.0 / c));
            simd::dispatch(
                #[inline(always)]
                || row.iter_mut().for_each(|s| *s = c * (*s * inverse).tanh()),
            );
        }
        if let (Some((offsets, si, sj)), Some((mask, _))) = (&self.mask, &self.of.mask)
            && !row.is_empty()
        {
            let (head, i) = (unit * self.group + r / self.tq, r % self.tq);
            add_mask::<T, _>(row, mask, offsets[head] + i * si + first * sj, *sj);
        }
    }

    /// The weights of a block, in `s.p`, and after dropout in `s.dropped`. The panel of keys is that of the block.
    pub(super) fn weights(&self, unit: usize, b: &Block, q: &Panel<'_, T::Acc>, k: Mat<'_, T::Acc>, s: &mut Scratch<T::Acc>) -> Result<()> {
        let (ld, count, first) = (ld(b.keys.len()), b.keys.len(), b.keys.start);
        let p = s.p.slice_mut::<T::Acc>();
        gemm_here(self.scale, q.part(0..b.rows.len()), k.transposed(), T::Acc::ZERO, p, ld)?;
        if let (Some(slopes), Some(c)) = (&mut s.slopes, self.of.options.softcap) {
            let inverse = <T::Acc as Real>::from_f64(1.0 / c);
            let n = b.rows.len() * ld;
            simd::dispatch(
                #[inline(always)]
                || {
                    for (slope, &x) in slopes.slice_mut::<T::Acc>()[..n].iter_mut().zip(&p[..n]) {
                        *slope = tanh_slope(x * inverse);
                    }
                },
            );
        }
        for (r, row) in b.rows.clone().zip(p.chunks_mut(ld)) {
            let seen = self.seen(r % self.tq);
            let (before, end) = (seen.start - first, seen.end - first);
            row[..before].fill(T::Acc::ZERO);
            row[end..count].fill(T::Acc::ZERO);
            let row = &mut row[before..end];
            self.finish_scores(unit, r, seen.start, row);
            simd::dispatch(
                #[inline(always)]
                || softmax_row(row),
            );
        }
        let (Some((key, keep)), Some(dropped)) = (self.of.options.dropout, &mut s.dropped) else { return Ok(()) };
        let inv = if keep > 0.0 { <T::Acc as Real>::from_f64(1.0 / keep) } else { T::Acc::ZERO };
        let rows = p.chunks(ld).zip(dropped.slice_mut::<T::Acc>().chunks_mut(ld)).zip(s.keep.chunks_mut(ld));
        for (r, ((p, d), bits)) in b.rows.clone().zip(rows) {
            // A score's number in [.., heads, queries, keys] decides, whatever the blocks are.
            let score = ((unit * self.group * self.tq + r) * self.tk + first) as u64;
            key.fill_bernoulli(score, keep, &mut bits[..count]);
            for ((d, &p), &bit) in d.iter_mut().zip(p).zip(&bits[..count]) {
                *d = if bit == 0 { T::Acc::ZERO } else { p * inv };
            }
        }
        Ok(())
    }

    /// Turns the cotangents of a block's dropped weights, in `dp`, into those of its scores, and through the cap when the
    /// scratch has its slopes.
    pub(super) fn score_cotangents(&self, b: &Block, s: &Scratch<T::Acc>, dp: &mut [T::Acc]) {
        let (ld, count) = (ld(b.keys.len()), b.keys.len());
        let inv = match self.of.options.dropout {
            Some((_, keep)) if keep > 0.0 => <T::Acc as Real>::from_f64(1.0 / keep),
            _ => T::Acc::ZERO,
        };
        let p = s.p.slice::<T::Acc>();
        let slopes = s.slopes.as_ref().map(|b| b.slice::<T::Acc>());
        for (x, dp) in dp.chunks_mut(ld).take(b.rows.len()).enumerate() {
            let at = x * ld..x * ld + count;
            let (p, dp, slopes) = (&p[at.clone()], &mut dp[..count], slopes.map(|s| &s[at.clone()]));
            if s.dropped.is_some() {
                for (d, &bit) in dp.iter_mut().zip(&s.keep[at]) {
                    *d = if bit == 0 { T::Acc::ZERO } else { *d * inv };
                }
            }
            simd::dispatch(
                #[inline(always)]
                || {
                    softmax_row_vjp(p, dp);
                    if let Some(slopes) = slopes {
                        for ((d, &p), &slope) in dp.iter_mut().zip(p).zip(slopes) {
                            *d = if p == T::Acc::ZERO { T::Acc::ZERO } else { *d * slope };
                        }
                    }
                },
            );
        }
    }
}

/// `1 / cosh²`, which `1 − tanh²` would lose in rounding far from 0.
#[inline(always)]
fn tanh_slope<A: Real>(x: A) -> A {
    let e = (-x.abs()).exp();
    let sech = (e + e) / (A::ONE + e * e);
    sech * sech
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

/// `dp ← p (dp − Σ p dp)`, where a weight of 0 ignores the value of `dp`.
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
