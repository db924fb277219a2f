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

mod decode;
mod panel;
mod plan;

pub(crate) use plan::Attention;

use crate::backend::cpu::math::Real;
use crate::backend::cpu::matmul::Multiply;
use crate::backend::cpu::matmul::gemm::{Mat, gemm_here};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::memory;
use panel::{Heads, add_bad, store};
use plan::{Block, Plan, Scratch, keys_of, ld, run_all, scratch_len};
use std::ops::Range;

/// Rows of a mask whose cotangent one task owns.
const MASK_ROWS: usize = 64;

/// Cuts the front off a slice.
pub(super) fn take<'s, T>(rest: &mut &'s mut [T], n: usize) -> &'s mut [T] {
    let (head, tail) = std::mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}

fn rows_of(run: &[Block]) -> usize {
    run.iter().map(|b| b.rows.len()).sum()
}

fn most_rows(run: &[Block]) -> usize {
    run.iter().map(|b| b.rows.len()).max().unwrap_or(0)
}

/// Some keys of a block, counted from the first key of its run.
fn from(first: usize, keys: &Range<usize>) -> Range<usize> {
    keys.start - first..keys.end - first
}

/// `y = softmax(cap(scale q kᵀ) + mask) v`.
pub(crate) fn forward<T: Multiply>(x: &Attention<'_>, y: &mut [T]) -> Result<()> {
    let p = Plan::<T>::new(x)?;
    let dv = p.v.cols;
    if y.is_empty() {
        return Ok(());
    }
    if decode::suits(&p) {
        return decode::forward(&p, y);
    }
    let blocks = p.blocks()?;
    let (runs, serial) = (p.runs(&blocks)?, p.serial(&blocks));
    let mut rest = y;
    let all = (0..p.units).flat_map(|u| runs.iter().map(move |r| (u, *r)));
    let tasks = memory::try_collect(all.map(|(u, r)| (u, r, take(&mut rest, rows_of(r) * dv))))?;
    run_all(serial, tasks, |(unit, run, mut y)| {
        let zero = T::Acc::ZERO;
        let all = keys_of(run);
        let (k, v) = (p.k.panel(unit, all.clone())?, p.v.panel(unit, all.clone())?);
        let mut s = Scratch::<T::Acc>::new(&p, run, false)?;
        let mut o = Buffer::alloc(<T::Acc as Element>::DTYPE, most_rows(run) * dv)?;
        for b in run {
            let (m, keys) = (b.rows.len(), from(all.start, &b.keys));
            let q = p.q.panel(unit * p.group, b.rows.clone())?;
            p.weights(unit, b, &q, k.part(keys.clone()), &mut s)?;
            let o = &mut o.slice_mut::<T::Acc>()[..m * dv];
            let ld = ld(keys.len());
            let w = s.dropped.as_ref().unwrap_or(&s.p).slice::<T::Acc>();
            gemm_here(T::Acc::ONE, Mat::new(w, m, keys.len(), ld, 1), v.clean(keys.clone()), zero, o, dv)?;
            add_bad(T::Acc::ONE, w, ld, m, false, &v, keys, o);
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
    let blocks = p.blocks()?;
    let (runs, serial) = (p.runs(&blocks)?, p.serial(&blocks));
    let (mut q_rest, want_q) = bars.q.map_or((&mut [][..], false), |s| (s, true));
    let (want_k, want_v) = (bars.k.is_some(), bars.v.is_some());
    let acc = <T::Acc as Element>::DTYPE;
    let all = (0..p.units).flat_map(|u| runs.iter().map(move |r| (u, *r)));
    let tasks = memory::try_collect(all.map(|(u, r)| (u, r, take(&mut q_rest, if want_q { rows_of(r) * d } else { 0 }))))?;
    let sums = run_all(serial, tasks, |(unit, run, mut q_bar)| {
        let (zero, one) = (T::Acc::ZERO, T::Acc::ONE);
        let all = keys_of(run);
        let (k, v) = (p.k.panel(unit, all.clone())?, p.v.panel(unit, all.clone())?);
        let mut s = Scratch::<T::Acc>::new(&p, run, true)?;
        let mut dp = Buffer::alloc(acc, scratch_len(run))?;
        let mut out = Buffer::alloc(acc, most_rows(run) * d)?;
        let mut k_bar = Buffer::alloc(acc, if want_k { all.len() * d } else { 0 })?;
        let mut v_bar = Buffer::alloc(acc, if want_v { all.len() * dv } else { 0 })?;
        let (k_sum, v_sum) = (k_bar.slice_mut::<T::Acc>(), v_bar.slice_mut::<T::Acc>());
        k_sum.fill(zero);
        v_sum.fill(zero);
        for b in run {
            let (m, keys) = (b.rows.len(), from(all.start, &b.keys));
            let (n, ld) = (keys.len(), ld(keys.len()));
            let q = p.q.panel(unit * p.group, b.rows.clone())?;
            let g = g.panel(unit * p.group, b.rows.clone())?;
            p.weights(unit, b, &q, k.part(keys.clone()), &mut s)?;
            if want_v {
                let w = s.dropped.as_ref().unwrap_or(&s.p).slice::<T::Acc>();
                let sum = &mut v_sum[keys.start * dv..];
                gemm_here(one, Mat::new(w, m, n, ld, 1).transposed(), g.clean(0..m), one, sum, dv)?;
                add_bad(one, w, ld, n, true, &g, 0..m, sum);
            }
            if !want_q && !want_k {
                continue;
            }
            let ds = dp.slice_mut::<T::Acc>();
            gemm_here(one, g.part(0..m), v.part(keys.clone()).transposed(), zero, ds, ld)?;
            p.score_cotangents(b, &s, ds);
            if want_k {
                let sum = &mut k_sum[keys.start * d..];
                gemm_here(p.scale, Mat::new(ds, m, n, ld, 1).transposed(), q.clean(0..m), one, sum, d)?;
                add_bad(p.scale, ds, ld, n, true, &q, 0..m, sum);
            }
            if want_q {
                let out = &mut out.slice_mut::<T::Acc>()[..m * d];
                gemm_here(p.scale, Mat::new(ds, m, n, ld, 1), k.clean(keys.clone()), zero, out, d)?;
                add_bad(p.scale, ds, ld, m, false, &k, keys, out);
                store(out, take(&mut q_bar, m * d));
            }
        }
        Ok(((all.clone(), k_bar), (all, v_bar)))
    })?;
    let (mut k_sums, mut v_sums): (Vec<Sum>, Vec<Sum>) = (memory::room(sums.len())?, memory::room(sums.len())?);
    for (k, v) in sums {
        k_sums.push(k);
        v_sums.push(v);
    }
    for (bar, sums, width) in [(bars.k, k_sums, d), (bars.v, v_sums, dv)] {
        if let Some(bar) = bar
            && tk * width > 0
        {
            combine::<T>(serial, bar, tk, width, &sums, runs.len())?;
        }
    }
    Ok(())
}

/// What a task has summed, for some of the keys.
type Sum = (Range<usize>, Buffer);

/// Adds the sums of each unit's tasks in order and rounds them.
fn combine<T: Multiply>(serial: bool, bar: &mut [T], tk: usize, width: usize, sums: &[Sum], parts: usize) -> Result<()> {
    let tasks = memory::try_collect(bar.chunks_mut(tk * width).zip(sums.chunks(parts)))?;
    run_all(serial, tasks, |(bar, sums)| {
        if let [(keys, only)] = sums
            && keys.len() == tk
        {
            store(only.slice::<T::Acc>(), bar);
            return Ok(());
        }
        let mut total = Buffer::alloc(<T::Acc as Element>::DTYPE, tk * width)?;
        let total = total.slice_mut::<T::Acc>();
        total.fill(T::Acc::ZERO);
        for (keys, sum) in sums {
            for (t, &x) in total[keys.start * width..keys.end * width].iter_mut().zip(sum.slice::<T::Acc>()) {
                *t += x;
            }
        }
        store(total, bar);
        Ok(())
    })?;
    Ok(())
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
    let slices = memory::try_collect(Layout::contiguous(&lead).expand(&heads)?.indices())?;
    let per_row = rows > 1 && rows == p.tq;
    let size = if per_row { MASK_ROWS } else { rows };
    let slabs = bar.chunks_mut(rows * cols).enumerate();
    let tasks = memory::try_collect(
        slabs.flat_map(|(slice, m)| m.chunks_mut(size * cols).enumerate().map(move |(i, out)| (slice, i * size, out))),
    )?;
    run_all(p.serial(&p.blocks()?), tasks, |(slice, first, out)| {
        let zero = T::Acc::ZERO;
        let count = out.len() / cols;
        let mut sum = memory::vec_of(zero, out.len())?;
        let queries = if per_row { first..first + count } else { 0..p.tq };
        let mut blocks = Vec::new();
        p.blocks_of(0, queries, &mut blocks)?;
        // The mask is added after the cap: its slope plays no part.
        let mut s = Scratch::<T::Acc>::new(&p, &blocks, false)?;
        let mut dp = Buffer::alloc(<T::Acc as Element>::DTYPE, scratch_len(&blocks))?;
        for head in (0..slices.len()).filter(|&h| slices[h] == slice) {
            let (unit, base) = (head / p.group, (head % p.group) * p.tq);
            for of_first in &blocks {
                let b = Block { rows: base + of_first.rows.start..base + of_first.rows.end, keys: of_first.keys.clone() };
                let (k, v) = (p.k.panel(unit, b.keys.clone())?, p.v.panel(unit, b.keys.clone())?);
                let (q, g) = (p.q.panel(unit * p.group, b.rows.clone())?, g.panel(unit * p.group, b.rows.clone())?);
                let (m, n) = (b.rows.len(), b.keys.len());
                p.weights(unit, &b, &q, k.part(0..n), &mut s)?;
                let (ds, ld) = (dp.slice_mut::<T::Acc>(), ld(n));
                gemm_here(T::Acc::ONE, g.part(0..m), v.part(0..n).transposed(), zero, ds, ld)?;
                p.score_cotangents(&b, &s, ds);
                for (i, ds) in of_first.rows.clone().zip(ds.chunks(ld).take(m)) {
                    let to = if per_row { i - first } else { 0 };
                    let sum = &mut sum[to * cols..(to + 1) * cols];
                    if cols == p.tk {
                        sum[b.keys.clone()].iter_mut().zip(ds).for_each(|(s, &x)| *s += x);
                    } else {
                        sum[0] += simd::sum(&ds[..n]);
                    }
                }
            }
        }
        store(&sum, out);
        Ok(())
    })?;
    Ok(())
}
