//! Attention: operands as stacks of matrices, and the launches of kernels/attention/sdpa.cu.

mod flash;
pub(crate) mod rope;

use crate::backend::attention::{Options, check_offsets, seen};
use crate::backend::cuda::abi::{Grid, Heads, Scores, View};
use crate::backend::cuda::device::{Buffer, Context, Dst, Src, capture};
use crate::backend::cuda::launch::kernels::{sdpa as kernels, sdpa_decode, sdpa_packed};
use crate::backend::cuda::launch::{In, Out, THREADS as EACH};
use crate::dtype::{DType, I64};
use crate::error::{Result, bail};
use crate::layout::Layout;
use crate::rng::bernoulli_threshold;
use crate::shape::Shape;

/// Rows and columns of a tile, and threads of a block: those of kernels/attention/sdpa.cu.
pub(super) const TILE: usize = 32;
const THREADS: u32 = 64;

/// Query rows that share a key head up to which they are answered by kernels/attention/sdpa_decode.cu, its widest head, its most keys of
/// a run, its rows and threads of a block; and how many blocks keep a large GPU busy.
const FEW: usize = 32;
const WIDEST: usize = 256;
const KEYS: usize = 256;
const ROWS: usize = 8;
const DECODERS: u32 = 128;
const BUSY: usize = 512;

/// Operands and options.
pub(crate) struct Attention<'a> {
    pub(super) q: (Src<'a>, Heads),
    pub(super) k: (Src<'a>, Heads),
    pub(super) v: (Src<'a>, Heads),
    pub(super) allowed: Option<Src<'a>>,
    pub(super) added: Option<Src<'a>>,
    mask: Heads,
    pub(super) scores: Scores,
    /// What `scores.spans` points to.
    _spans: Option<Buffer>,
    /// Leading axes of the queries.
    lead: Shape,
    pub(super) dtype: DType,
    pub(super) on: &'static Context,
}

impl<'a> Attention<'a> {
    /// In shapes that fit; the offsets are those of packed sequences.
    pub(crate) fn new(
        [q, k, v]: [&In<'a>; 3],
        mask: Option<&In<'a>>,
        offsets: Option<(&In<'a>, &In<'a>)>,
        options: &Options,
    ) -> Result<Self> {
        let operand = |x: &In<'a>| -> Result<(Src<'a>, Heads)> { Ok((x.at(x.layout()), Heads::new(x.layout())?)) };
        let (qs, ks, vs) = (q.shape(), k.shape(), v.shape());
        let (r, on, dtype) = (qs.rank(), q.context(), q.dtype());
        let (q, k, v) = (operand(q)?, operand(k)?, operand(v)?);
        let (mut allowed, mut added, mut heads) = (None, None, q.1);
        if let Some(m) = mask {
            let layout = m.layout().expand(&qs.with_dim(r - 1, ks[r - 2]))?;
            heads = Heads::new(&layout)?;
            let at = Some(m.at(&layout));
            *(if m.dtype() == DType::U8 { &mut allowed } else { &mut added }) = at;
        }
        let dropout = options.dropout;
        let (seed, stream) = dropout.map_or((0, 0), |(key, _)| key.parts());
        let live = dropout.map(|(key, _)| capture::key_words(key)).transpose()?.flatten();
        let keep = dropout.map_or(1.0, |(_, keep)| keep);
        // Far beyond any place, and far from overflow.
        let reach = |n: usize| i64::try_from(n).unwrap_or(i64::MAX).min(i64::MAX / 4);
        let (left, right) = options.band.map_or((reach(usize::MAX), reach(usize::MAX)), |(l, r)| (reach(l), reach(r)));
        let spans = match offsets {
            Some((of_q, of_k)) => Some(spans(on, of_q, of_k, qs[r - 2], ks[r - 2], left, right)?),
            None => None,
        };
        let scores = Scores {
            heads: qs[..r - 2].iter().product::<usize>() as i64,
            group: qs[r - 3].checked_div(ks[r - 3]).unwrap_or(1) as i64,
            tq: qs[r - 2] as i64,
            tk: ks[r - 2] as i64,
            d: qs[r - 1] as i64,
            dv: vs[r - 1] as i64,
            scale: options.scale,
            softcap: options.softcap.unwrap_or(0.0),
            inverse_keep: if keep > 0.0 { 1.0 / keep } else { 0.0 },
            seed,
            stream,
            live: live.unwrap_or(0),
            threshold: bernoulli_threshold(keep),
            left,
            right,
            spans: spans.as_ref().map_or(0, |b| Src::new(b, 0).addr()),
            banded: i32::from(options.band.is_some()),
            dropout: i32::from(dropout.is_some()),
        };
        Ok(Attention { q, k, v, allowed, added, mask: heads, scores, _spans: spans, lead: qs[..r - 2].into(), dtype, on })
    }

    /// One block for each tile of `rows` and of `cols`, of each of `count` matrices.
    fn grid(&self, count: usize, rows: usize, cols: usize) -> Grid {
        let items = count.saturating_mul(rows.div_ceil(TILE)).saturating_mul(cols.div_ceil(TILE));
        Grid::rows(items, THREADS, self.on.grid_cap())
    }

    fn extents(&self) -> [usize; 5] {
        let s = self.scores;
        [s.heads, s.tq, s.tk, s.d, s.dv].map(|n| n as usize)
    }

    /// `y = softmax(scale q kᵀ + mask) v`.
    pub(crate) fn forward(&self, y: &mut Out<'_>) -> Result<()> {
        if y.numel() == 0 {
            return Ok(());
        }
        let [heads, tq, _, _, dv] = self.extents();
        let (allowed, added) = (self.allowed.as_ref(), self.added.as_ref());
        let (q, k, v) = (&self.q, &self.k, &self.v);
        if self.is_decoding() {
            return self.decode(y);
        }
        let y = y.dst();
        // The tensor cores' kernel leaves rows that are not finite to the plain one.
        let notes = self.flash(None).map(|p| self.flash_forward(&p, &y)).transpose()?;
        let notes = notes.as_ref().map(|n| Src::new(n, 0));
        kernels::forward(
            self.on,
            self.grid(heads, tq, dv),
            &y,
            &q.0,
            q.1,
            &k.0,
            k.1,
            &v.0,
            v.1,
            allowed,
            added,
            self.mask,
            self.scores,
            notes.as_ref(),
        )
    }

    /// Whether few queries meet many keys: reading these is all the work, and one block a head would leave the device idle.
    fn is_decoding(&self) -> bool {
        let ([_, tq, tk, d, _], s) = (self.extents(), &self.scores);
        s.group as usize * tq <= FEW && tk >= 2 * TILE && d <= WIDEST && s.dropout == 0 && s.spans == 0
    }

    /// Runs of keys side by side, then their results together.
    fn decode(&self, y: &mut Out<'_>) -> Result<()> {
        let (on, s) = (self.on, self.scores);
        let [heads, tq, tk, _, dv] = self.extents();
        // What no query sees is not read.
        let band = (s.banded != 0).then_some((s.left as usize, s.right as usize));
        let (first, end) = (seen(band, 0, tq, tk).start, seen(band, tq - 1, tq, tk).end);
        if first >= end {
            return y.zero(on);
        }
        let rows = s.group as usize * tq;
        let side_by_side = heads / s.group as usize * rows.div_ceil(ROWS);
        // Long runs leave less to put together, short ones keep more blocks busy: by the sizes alone.
        let keys = ((end - first) * side_by_side / BUSY).next_multiple_of(TILE).clamp(TILE, KEYS);
        let runs = (end - first).div_ceil(keys);
        let acc = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut stats = on.alloc(acc, 2 * heads * tq * runs)?;
        let mut sums = on.alloc(acc, heads * tq * runs * dv)?;
        let (allowed, added) = (self.allowed.as_ref(), self.added.as_ref());
        let (q, k, v) = (&self.q, &self.k, &self.v);
        let grid = Grid::rows(side_by_side * runs, DECODERS, on.grid_cap());
        let (to, of) = (Dst::new(&mut stats), Dst::new(&mut sums));
        let [first, end, keys] = [first, end, keys].map(|n| n as i64);
        sdpa_decode::part(on, grid, &to, &of, &q.0, q.1, &k.0, k.1, &v.0, v.1, allowed, added, self.mask, s, first, end, keys)?;
        let grid = Grid::over(y.numel(), EACH, on.grid_cap());
        let [rows, runs, dv] = [heads * tq, runs, dv].map(|n| n as i64);
        sdpa_decode::combine(on, grid, &y.dst(), &Src::new(&stats, 0), &Src::new(&sums, 0), rows, runs, dv)
    }

    /// The wanted cotangents of q, k, v and an additive mask, given that of y.
    pub(crate) fn backward(&self, g: &In<'_>, bars: [Option<&mut Out<'_>>; 4]) -> Result<()> {
        let on = self.on;
        let [heads, tq, tk, d, dv] = self.extents();
        // No query head shares a key head then.
        if heads == 0 {
            return bars.into_iter().flatten().try_for_each(|b| b.zero(on));
        }
        // Nothing is written where there is nothing.
        let [q_bar, k_bar, v_bar, mask_bar] = bars.map(|b| b.filter(|b| b.numel() > 0));
        let (q, k, v, g) = (&self.q, &self.k, &self.v, (g.at(g.layout()), Heads::new(g.layout())?));
        let (allowed, added) = (self.allowed.as_ref(), self.added.as_ref());
        let acc = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut stats = on.alloc(acc, 3 * heads * tq)?;
        // The tensor cores' kernels leave rows that are not finite to the plain ones.
        let flash = match self.flash(Some(&g)) {
            Some(p) => Some((p, self.flash_stats(&p, &g.0, &Dst::new(&mut stats))?)),
            None => None,
        };
        if heads * tq > 0 && (q_bar.is_some() || flash.is_none()) {
            let q_bar = q_bar.map(Out::dst);
            let notes = match (&flash, &q_bar) {
                (Some((p, folded)), Some(dq)) => Some(self.flash_rows(p, &g.0, folded, dq)?),
                _ => None,
            };
            let (grid, to, notes) = (self.grid(heads, tq, 1), Dst::new(&mut stats), notes.as_ref().map(|n| Src::new(n, 0)));
            kernels::rows(
                on,
                grid,
                q_bar.as_ref(),
                &to,
                &q.0,
                q.1,
                &k.0,
                k.1,
                &v.0,
                v.1,
                &g.0,
                g.1,
                allowed,
                added,
                self.mask,
                self.scores,
                notes.as_ref(),
            )?;
        }
        let stats = Src::new(&stats, 0);
        if k_bar.is_some() || v_bar.is_some() {
            let widest = (if k_bar.is_some() { d } else { 0 }).max(if v_bar.is_some() { dv } else { 0 });
            let grid = self.grid(heads / self.scores.group.max(1) as usize, tk, widest);
            let (k_bar, v_bar) = (k_bar.map(Out::dst), v_bar.map(Out::dst));
            let (dk, dv) = (k_bar.as_ref(), v_bar.as_ref());
            let notes = match &flash {
                Some((p, folded)) => Some(self.flash_columns(p, &g.0, folded, dk, dv)?),
                None => None,
            };
            let (notes, mask, scores) = (notes.as_ref().map(|n| Src::new(n, 0)), self.mask, self.scores);
            kernels::columns(
                on,
                grid,
                dk,
                dv,
                &stats,
                &q.0,
                q.1,
                &k.0,
                k.1,
                &v.0,
                v.1,
                &g.0,
                g.1,
                allowed,
                added,
                mask,
                scores,
                notes.as_ref(),
            )?;
        }
        if let Some(bar) = mask_bar {
            let (shape, rank) = (bar.shape(), self.lead.rank() + 2);
            let at = |axis: usize| if axis + shape.rank() < rank { 1 } else { shape[axis + shape.rank() - rank] };
            let (rows, cols) = (at(rank - 2), at(rank - 1));
            let lead: Shape = (0..rank - 2).map(at).collect();
            let slices = lead.numel();
            let slice = View::new(&Layout::contiguous(lead).expand(&self.lead)?)?;
            let (grid, n) = (self.grid(slices, rows, cols), [slices, rows, cols].map(|n| n as i64));
            let (y, mask, scores) = (bar.dst(), self.mask, self.scores);
            kernels::mask(
                on, grid, &y, n[0], n[1], n[2], slice, &stats, &q.0, q.1, &k.0, k.1, &v.0, v.1, &g.0, g.1, allowed, added, mask, scores,
            )?;
        }
        Ok(())
    }
}

/// The pairs {first key, end} of every query of packed sequences, whose offsets are checked. Waits for the device, except in
/// a captured step, whose replay checks them.
fn spans(on: &'static Context, of_q: &In<'_>, of_k: &In<'_>, tq: usize, tk: usize, left: i64, right: i64) -> Result<Buffer> {
    let (q, k) = (of_q.contiguous_as(I64)?, of_k.contiguous_as(I64)?);
    let words = of_q.numel();
    let judge = move |found: &[i64]| {
        check_offsets("queries", &found[..words], tq)?;
        check_offsets("keys", &found[words..], tk).map(drop)
    };
    let mut to = on.alloc(I64, 2 * tq)?;
    let [n, tq, tk] = [words - 1, tq, tk].map(|n| n as i64);
    let launch = |to: &Dst<'_>, found: &Dst<'_>| {
        let grid = Grid::over((tq as usize).max(words), EACH, on.grid_cap());
        sdpa_packed::spans(on, grid, to, found, &q.src(), &k.src(), n, tq, tk, left, right)
    };
    if on.is_capturing() {
        let Some(found) = capture::check(2 * words, judge)? else { bail!(capture, "the capture has ended") };
        launch(&Dst::new(&mut to), &found)?;
    } else {
        let mut found = on.alloc(I64, 2 * words)?;
        launch(&Dst::new(&mut to), &Dst::new(&mut found))?;
        judge(&found.download::<i64>()?)?;
    }
    Ok(to)
}
