//! Attention on tensor cores: which problems kernels/attention/sdpa_mma.cu and kernels/attention/sdpa_mma_vjp.cu take, and their launches.

use super::{Attention, TILE};
use crate::backend::attention::fits_tensor_cores;
use crate::backend::cuda::abi::{Flash, Grid, Heads, Scores};
use crate::backend::cuda::device::{Buffer, Dst, Src};
use crate::backend::cuda::launch::kernels::{sdpa_mma as forward, sdpa_mma_vjp as vjp};
use crate::dtype::DType;
use crate::error::Result;

/// Queries or keys that a block owns, and rows of results that share a note: those of kernels/attention/sdpa_mma.cu.
const OWNED: usize = 128;
const NOTED: usize = 16;
/// Bytes before the first note, which begin with how many rows are noted: `NOTES` of kernels/common/notes.cuh.
const BEFORE_NOTES: usize = 16;
/// Rows of the tiles that the derivative's blocks go through.
const STAGED: usize = 32;
/// Elements in 16 bytes.
const PACK: i64 = 8;
/// More keys than there are, and far from overflow.
const FAR: i64 = i64::MAX / 4;

/// Whether rows can be copied 16 bytes at a time.
fn in_packs(x: &Src<'_>, heads: &Heads) -> bool {
    let steps = heads.lead.stride.iter().chain([&heads.row]).all(|s| s % PACK == 0);
    heads.col == 1 && steps && x.addr().is_multiple_of(16)
}

impl Attention<'_> {
    /// The problem for the tensor cores, if it is one for them. The choice looks at dtype, sizes, layouts and options: the bits of a
    /// result do not depend on anything else.
    pub(super) fn flash(&self, g: Option<&(Src<'_>, Heads)>) -> Option<Flash> {
        // Every field by name: what is added to them must be thought of here.
        let Scores {
            heads,
            group,
            tq,
            tk,
            d,
            dv,
            scale,
            softcap,
            left,
            right,
            spans,
            banded,
            dropout,
            inverse_keep: _,
            seed: _,
            stream: _,
            live: _,
            threshold: _,
        } = self.scores;
        let plain = self.allowed.is_none() && self.added.is_none() && dropout == 0 && softcap == 0.0 && spans == 0;
        let fits = heads > 0 && [d, dv].into_iter().all(|n| usize::try_from(n).is_ok_and(fits_tensor_cores));
        let packs = [&self.q, &self.k, &self.v].into_iter().chain(g).all(|(x, heads)| in_packs(x, heads));
        // The kernels look for the largest product as the largest score; a scale that is 0 or infinite in f32 has none.
        let scale2 = (scale * std::f64::consts::LOG2_E) as f32;
        let scaled = scale2.is_normal() && scale2 > 0.0;
        let (left, right) = if banded == 0 { (FAR, FAR) } else { (left, right) };
        (self.dtype.is_half() && plain && fits && packs && scaled).then(|| Flash {
            q: self.q.1,
            k: self.k.1,
            v: self.v.1,
            g: g.map_or(self.q.1, |g| g.1),
            heads,
            group,
            tq,
            tk,
            left,
            right,
            d: d as i32,
            dv: dv as i32,
            scale: scale as f32,
            scale2,
            left_out: self.on.left_out(),
        })
    }

    /// Writes `y`. Gives the notes: for every 16 rows, whether a result is not finite and must be computed by the plain kernel.
    pub(super) fn flash_forward(&self, p: &Flash, y: &Dst<'_>) -> Result<Buffer> {
        let run = match p.width() {
            32 => forward::forward_32,
            64 => forward::forward_64,
            96 => forward::forward_96,
            _ => forward::forward_128,
        };
        // Queries, and two stages of 64 keys and values.
        let grid = p.owners(p.heads, p.tq, (OWNED + 4 * 64) * p.width());
        let mut notes = self.notes(p.heads, p.tq)?;
        run(self.on, grid, y, &Dst::new(&mut notes), &self.q.0, &self.k.0, &self.v.0, *p)?;
        Ok(notes)
    }

    /// Writes what the derivative needs to know of every query, and gives the same as the other two kernels want it.
    pub(super) fn flash_stats(&self, p: &Flash, g: &Src<'_>, stats: &Dst<'_>) -> Result<Buffer> {
        let run = match p.width() {
            32 => vjp::stats_32,
            64 => vjp::stats_64,
            96 => vjp::stats_96,
            _ => vjp::stats_128,
        };
        let padded = (p.tq as usize).next_multiple_of(OWNED);
        let (all, key_heads) = (2 * p.heads as usize * padded, (p.heads / p.group) as usize);
        let mut folded = self.on.alloc(DType::F32, all + key_heads)?;
        // SAFETY: the bounds of the key heads lie behind the numbers of all queries, and nothing else refers to them.
        unsafe { self.on.fill(Dst::new(&mut folded).offset(all).addr(), key_heads * DType::F32.size(), 0)? };
        if p.heads * p.tq > 0 {
            run(self.on, p.query_owners(), stats, &Dst::new(&mut folded), &self.q.0, &self.k.0, &self.v.0, g, *p)?;
        }
        Ok(folded)
    }

    /// Writes the queries' cotangent, given that of `y` and what [`flash_stats`](Self::flash_stats) gave. Gives the notes.
    pub(super) fn flash_rows(&self, p: &Flash, g: &Src<'_>, folded: &Buffer, dq: &Dst<'_>) -> Result<Buffer> {
        let run = match p.width() {
            32 => vjp::rows_32,
            64 => vjp::rows_64,
            96 => vjp::rows_96,
            _ => vjp::rows_128,
        };
        let mut notes = self.notes(p.heads, p.tq)?;
        let (to, folded) = (Dst::new(&mut notes), Src::new(folded, 0));
        run(self.on, p.query_owners(), dq, &to, &folded, &self.q.0, &self.k.0, &self.v.0, g, *p)?;
        Ok(notes)
    }

    /// Writes the cotangents of keys and values, those that are wanted; else as [`flash_rows`](Self::flash_rows).
    pub(super) fn flash_columns(
        &self,
        p: &Flash,
        g: &Src<'_>,
        folded: &Buffer,
        dk: Option<&Dst<'_>>,
        dv: Option<&Dst<'_>>,
    ) -> Result<Buffer> {
        let run = match p.width() {
            32 => vjp::columns_32,
            64 => vjp::columns_64,
            96 => vjp::columns_96,
            _ => vjp::columns_128,
        };
        let key_heads = p.heads / p.group;
        // Keys and values, and two stages of queries, their cotangents, and two numbers of 4 bytes about each.
        let grid = p.owners(key_heads, p.tk, (2 * OWNED + 4 * STAGED) * p.width() + 8 * STAGED);
        let mut notes = self.notes(key_heads, p.tk)?;
        let (to, folded) = (Dst::new(&mut notes), Src::new(folded, 0));
        run(self.on, grid, dk, dv, &to, &folded, &self.q.0, &self.k.0, &self.v.0, g, *p)?;
        Ok(notes)
    }

    fn notes(&self, count: i64, rows: i64) -> Result<Buffer> {
        let mut notes = self.on.alloc(DType::U8, BEFORE_NOTES + count as usize * (rows as usize).div_ceil(NOTED))?;
        // SAFETY: the buffer has these bytes, and nothing else refers to it.
        unsafe { self.on.fill(Dst::new(&mut notes).addr(), BEFORE_NOTES, 0)? };
        Ok(notes)
    }
}

impl Flash {
    /// Columns of a tile.
    fn width(&self) -> usize {
        (self.d.max(self.dv) as usize).next_multiple_of(32)
    }

    /// A block for each owner of rows of `count` matrices, with shared memory for a number of half-precision numbers.
    fn owners(&self, count: i64, rows: i64, shared: usize) -> Grid {
        let blocks = (count as usize).saturating_mul((rows as usize).div_ceil(OWNED));
        let threads = if self.width() <= 64 { 128 } else { 256 };
        Grid { shared: 2 * shared as u32, ..Grid::rows(blocks, threads, i32::MAX as u32) }
    }

    /// Queries and their cotangents, and two stages of keys and values.
    fn query_owners(&self) -> Grid {
        self.owners(self.heads, self.tq, (2 * OWNED + 4 * STAGED) * self.width())
    }
}

/// The plain kernels find their tiles' notes.
const _: () = assert!(TILE.is_multiple_of(NOTED));
