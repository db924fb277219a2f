//! Copies that rearrange whole axes: flip, roll, pad, and the derivative of slicing.
//!
//! An output axis is a short list of runs, each of which reads consecutive positions of the operand's axis or lies
//! outside of it. Axes that nothing happens to are merged, so that most of the work is long block copies.

use super::par::*;
use super::view::{In, SERIAL};
use crate::dtype::Element;
use crate::error::Result;
use crate::memory;

/// Elements per parallel piece.
const PIECE: usize = 8 * 1024;

/// Marks positions of an outer axis that lie outside the operand.
const OUTSIDE: usize = usize::MAX;

/// A part of an output axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// So many positions outside the operand.
    Fill(usize),
    /// Positions that read `from`, `from + 1`, ….
    Forward { from: usize, len: usize },
    /// Positions that read `from`, `from − 1`, ….
    Backward { from: usize, len: usize },
    /// Of `len` positions the first, and each `every`-th after it, read `from`, `from + 1`, …; the others lie outside.
    Spread { from: usize, len: usize, every: usize },
}

impl Run {
    fn len(self) -> usize {
        match self {
            Run::Fill(len) | Run::Forward { len, .. } | Run::Backward { len, .. } | Run::Spread { len, .. } => len,
        }
    }

    /// The same run after each position was replaced by a block of `n`; `None` where the blocks would not be in order.
    fn scaled(self, n: usize) -> Option<Self> {
        match self {
            Run::Fill(len) => Some(Run::Fill(len * n)),
            Run::Forward { from, len } => Some(Run::Forward { from: from * n, len: len * n }),
            _ => None,
        }
    }

    /// Cut into runs of at most `n` positions.
    fn cut(self, n: usize) -> impl Iterator<Item = Run> {
        let n = match self {
            Run::Spread { every, .. } => n.next_multiple_of(every),
            _ => n,
        };
        (0..self.len()).step_by(n).map(move |at| {
            let len = n.min(self.len() - at);
            match self {
                Run::Fill(_) => Run::Fill(len),
                Run::Forward { from, .. } => Run::Forward { from: from + at, len },
                Run::Backward { from, .. } => Run::Backward { from: from - at, len },
                Run::Spread { from, every, .. } => Run::Spread { from: from + at / every, len, every },
            }
        })
    }
}

/// One output axis: where its positions read.
#[derive(Clone, Debug)]
pub(crate) struct AxisMap {
    runs: Vec<Run>,
    extent: usize,
    stride: usize,
    /// Reads the whole operand axis in order.
    same: bool,
}

impl AxisMap {
    fn new(runs: &[Run], operand: usize, stride: usize) -> Self {
        let runs: Vec<Run> = runs.iter().copied().filter(|r| r.len() > 0).collect();
        let extent = runs.iter().map(|r| r.len()).sum();
        let same = runs == [Run::Forward { from: 0, len: operand }];
        AxisMap { runs, extent, stride, same }
    }

    /// This axis and the next as one, when a single stride walks both.
    fn merged(&self, next: &AxisMap) -> Option<AxisMap> {
        if !next.same || self.stride != next.extent * next.stride {
            return None;
        }
        let n = next.extent;
        let runs: Option<Vec<Run>> = self.runs.iter().map(|r| r.scaled(n)).collect();
        Some(AxisMap { runs: runs?, extent: self.extent * n, stride: next.stride, same: self.same })
    }

    /// Storage step of every position.
    fn table(&self) -> Result<Vec<usize>> {
        let mut out = memory::room(self.extent)?;
        for &run in &self.runs {
            match run {
                Run::Fill(len) => out.extend(std::iter::repeat_n(OUTSIDE, len)),
                Run::Forward { from, len } => out.extend((0..len).map(|k| (from + k) * self.stride)),
                Run::Backward { from, len } => out.extend((0..len).map(|k| (from - k) * self.stride)),
                Run::Spread { from, len, every } => {
                    out.extend((0..len).map(|k| if k % every == 0 { (from + k / every) * self.stride } else { OUTSIDE }));
                }
            }
        }
        Ok(out)
    }
}

/// Writes `y`, whose axes read the operand's by `runs` (one list per axis); what lies outside becomes `fill`.
pub(crate) fn remap<T: Element>(x: &In<'_>, runs: &[Vec<Run>], fill: T, y: &mut [T]) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let (shape, strides) = (x.shape(), x.layout().strides());
    let mut axes: Vec<AxisMap> = Vec::new();
    for (i, r) in runs.iter().enumerate() {
        let axis = AxisMap::new(r, shape[i], strides[i]);
        if axis.same && axis.extent == 1 {
            continue;
        }
        match axes.last().and_then(|last| last.merged(&axis)) {
            Some(both) => {
                axes.pop();
                axes.push(both);
            }
            None => axes.push(axis),
        }
    }
    let inner = axes.pop().unwrap_or_else(|| AxisMap::new(&[Run::Forward { from: 0, len: 1 }], 1, 1));
    let src = x.storage::<T>();
    let offset = x.layout().offset();
    let tables = memory::try_collect_ok(axes.iter().map(AxisMap::table))?;
    let base = |mut row: usize| {
        let mut at = Some(offset);
        for t in tables.iter().rev() {
            let step = t[row % t.len()];
            row /= t.len();
            at = if step == OUTSIDE { None } else { at.map(|a| a + step) };
        }
        at
    };
    if inner.extent >= 2 * PIECE && y.len() >= SERIAL {
        // Long rows: their pieces in parallel.
        let pieces = memory::try_collect(inner.runs.iter().flat_map(|r| r.cut(PIECE)))?;
        for (row, mut rest) in y.chunks_mut(inner.extent).enumerate() {
            let at = base(row);
            let mut parts = memory::room(pieces.len())?;
            for &run in &pieces {
                let (part, tail) = std::mem::take(&mut rest).split_at_mut(run.len());
                parts.push((run, part));
                rest = tail;
            }
            parts.into_par_iter().for_each(|(run, part)| write(run, at, inner.stride, src, fill, part));
        }
        return Ok(());
    }
    let rows = (PIECE / inner.extent).max(1);
    let task = |(t, out): (usize, &mut [T])| {
        for (r, out) in out.chunks_mut(inner.extent).enumerate() {
            let at = base(t * rows + r);
            let mut start = 0;
            for &run in &inner.runs {
                write(run, at, inner.stride, src, fill, &mut out[start..start + run.len()]);
                start += run.len();
            }
        }
    };
    if y.len() < SERIAL {
        y.chunks_mut(rows * inner.extent).enumerate().for_each(task);
    } else {
        y.par_chunks_mut(rows * inner.extent).enumerate().for_each(task);
    }
    Ok(())
}

/// One run; `at` is the storage index of the row's position 0, or `None` when the row lies outside.
fn write<T: Element>(run: Run, at: Option<usize>, stride: usize, src: &[T], fill: T, out: &mut [T]) {
    let Some(at) = at else {
        out.fill(fill);
        return;
    };
    match run {
        Run::Fill(_) => out.fill(fill),
        Run::Forward { from, len } if stride == 1 => out.copy_from_slice(&src[at + from..at + from + len]),
        Run::Forward { from, .. } => {
            for (k, o) in out.iter_mut().enumerate() {
                *o = src[at + (from + k) * stride];
            }
        }
        Run::Backward { from, len } if stride == 1 => {
            let low = at + from + 1 - len;
            for (o, &v) in out.iter_mut().zip(src[low..low + len].iter().rev()) {
                *o = v;
            }
        }
        Run::Backward { from, .. } => {
            for (k, o) in out.iter_mut().enumerate() {
                *o = src[at + (from - k) * stride];
            }
        }
        Run::Spread { from, every, .. } => {
            for (k, o) in out.chunks_mut(every).enumerate() {
                o[0] = src[at + (from + k) * stride];
                o[1..].fill(fill);
            }
        }
    }
}
