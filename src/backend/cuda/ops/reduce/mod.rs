//! Launches of kernels that see whole groups: reductions over axes, and rows along one axis. How work is cut depends on
//! shapes alone, so results repeat on every device.

pub(crate) mod sort;

use crate::backend::cuda::abi::Grid;
use crate::backend::cuda::device::{Buffer, Context, Dst, Src};
use crate::backend::cuda::launch::kernels::argmax;
use crate::backend::cuda::launch::{Dense, In, Out, copy, grid};
use crate::dtype::{DType, U8};
use crate::error::Result;
use crate::layout::Layout;
use crate::shape::Dims;
use smallvec::SmallVec;

/// Threads per block of all kernels here.
pub(crate) const THREADS: u32 = 256;

/// Bytes that kernels/common/lines.cuh may use for a part.
const PART: usize = 32;

/// Blocks that keep every device busy.
const MANY_BLOCKS: usize = 512;

/// An operand as reductions read it: `[outer, reduced, inner]` without gaps, and how the work is spread.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    data: Dense<'a>,
    dtype: DType,
    /// The axes' order in `data`, and its layout, when they had to move.
    moved: Option<(Dims, Layout)>,
    outer: usize,
    reduced: usize,
    inner: usize,
    pieces: usize,
    lanes: usize,
    blocks: usize,
}

/// A generated launcher of a reduction: into the result, or into parts.
pub(crate) type ReduceKernel = fn(&Context, Grid, Option<&Dst<'_>>, Option<&Dst<'_>>, &Src<'_>, i64, i64, i64, i64, i32, f64) -> Result<()>;
/// A generated launcher that joins the parts of groups: into the result, or into one part per group.
pub(crate) type MergeKernel = fn(&Context, Grid, Option<&Dst<'_>>, Option<&Dst<'_>>, &Src<'_>, &Src<'_>, i64, i64, f64) -> Result<()>;
/// A generated launcher of a derivative: `x̄` from x, ȳ per group, and a part per group.
pub(crate) type SpreadKernel = fn(&Context, Grid, &Dst<'_>, &Src<'_>, &Src<'_>, &Src<'_>, i64, i64, i64, f64) -> Result<()>;

impl<'a> Lines<'a> {
    /// For a reduction over `axes` (sorted). Gathers the operand when it has gaps, or when kept axes lie between reduced ones.
    pub(crate) fn new(x: &In<'a>, axes: &[usize]) -> Result<Self> {
        let (layout, rank) = (x.layout(), x.layout().rank());
        let size = |r: std::ops::Range<usize>| r.map(|i| layout.shape()[i]).product::<usize>();
        let adjacent = axes.windows(2).all(|w| w[1] == w[0] + 1);
        let (data, moved, outer, reduced, inner);
        if let (Some(&first), Some(&last), true) = (axes.first(), axes.last(), adjacent) {
            (data, moved) = (x.contiguous()?, None);
            (outer, reduced, inner) = (size(0..first), size(first..last + 1), size(last + 1..rank));
        } else {
            let order: Dims = (0..rank).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect();
            let to = layout.permute(&order)?;
            let kept = rank - axes.len();
            outer = to.shape()[..kept].iter().product();
            reduced = to.shape()[kept..].iter().product();
            inner = 1;
            data = gathered(x, &to)?;
            moved = Some((order, to));
        }
        let mut l = Lines { data, dtype: x.dtype(), moved, outer, reduced, inner, pieces: 1, lanes: 1, blocks: 1 };
        l.spread_out();
        Ok(l)
    }

    /// Chooses threads per row, or columns side by side, and cuts groups that are too few to fill a device.
    fn spread_out(&mut self) {
        let (outer, reduced, size) = (self.outer, self.reduced, self.dtype.size());
        let threads = THREADS as usize;
        let cut = |blocks: usize, shortest: usize| reduced.div_ceil(shortest).min(MANY_BLOCKS / blocks.max(1)).max(1);
        if self.inner == 1 {
            let long = reduced > 2048 || (reduced > 256 && outer < 1024);
            let wanted = reduced.div_ceil((32 / size).clamp(1, 16)).max(1).next_power_of_two();
            self.lanes = if long { threads } else { wanted.min(32) };
            if long {
                self.pieces = cut(outer, 16_384);
            }
            self.blocks = (outer * self.pieces).div_ceil(threads / self.lanes);
        } else {
            let per_thread = if size == 8 { 2 } else { 4 };
            let columns = if self.inner.is_multiple_of(per_thread) { self.inner / per_thread } else { self.inner };
            let rows = (reduced / 8).clamp(1, 8);
            // The largest power of two that leaves this many rows.
            self.lanes = columns.next_power_of_two().min(1 << (threads / rows).ilog2());
            let tiles = columns.div_ceil(self.lanes);
            self.pieces = cut(outer * tiles, (threads / self.lanes) * 64);
            self.blocks = outer * tiles * self.pieces;
        }
    }

    /// Number of groups.
    fn groups(&self) -> usize {
        self.outer * self.inner
    }

    fn grid(&self, on: &Context) -> Grid {
        Grid::rows(self.blocks, THREADS, on.grid_cap())
    }

    /// Runs a reduction whose kernel takes either output: the result, or parts when groups are cut.
    pub(crate) fn run(
        &self,
        on: &'static Context,
        direct: impl FnOnce(Grid, &Src<'_>, [i64; 4], i32) -> Result<()>,
        cut: impl FnOnce(Grid, &Src<'_>, [i64; 4], i32, &Dst<'_>) -> Result<()>,
        merge: impl FnOnce(Grid, &Src<'_>, [i64; 2]) -> Result<()>,
    ) -> Result<()> {
        if self.groups() == 0 {
            return Ok(());
        }
        let shape = [self.outer, self.reduced, self.inner, self.pieces].map(|v| v as i64);
        let grid = self.grid(on);
        if self.pieces == 1 {
            return direct(grid, &self.data.src(), shape, self.lanes as i32);
        }
        let mut parts = on.alloc(U8, self.groups() * self.pieces * PART)?;
        cut(grid, &self.data.src(), shape, self.lanes as i32, &Dst::new(&mut parts))?;
        merge(self.merge_grid(on), &Src::new(&parts, 0), [self.groups() as i64, self.pieces as i64])
    }

    /// A warp per group.
    fn merge_grid(&self, on: &Context) -> Grid {
        Grid::over(self.groups() * 32, THREADS, on.grid_cap())
    }

    /// `y ← finish(all of each group)`, or one part per group.
    fn reduce_to(
        &self,
        on: &'static Context,
        kernels: (ReduceKernel, MergeKernel),
        y: Option<&Dst<'_>>,
        to: Option<&Dst<'_>>,
        p: f64,
    ) -> Result<()> {
        let (reduce, join) = kernels;
        self.run(
            on,
            |grid, x, [o, r, i, k], lanes| reduce(on, grid, y, to, x, o, r, i, k, lanes, p),
            |grid, x, [o, r, i, k], lanes, parts| reduce(on, grid, None, Some(parts), x, o, r, i, k, lanes, p),
            |grid, parts, [groups, pieces]| join(on, grid, y, to, parts, &self.data.src(), groups, pieces, p),
        )
    }

    /// `y ← finish(all of each group)`.
    pub(crate) fn reduce(&self, on: &'static Context, kernels: (ReduceKernel, MergeKernel), y: &mut Out<'_>, p: f64) -> Result<()> {
        self.reduce_to(on, kernels, Some(&y.dst()), None, p)
    }

    /// `y = f(x, all of its group, g)` for every element, in the shape of the operand; `g` has one element per group.
    pub(crate) fn spread(
        &self,
        on: &'static Context,
        kernels: (ReduceKernel, MergeKernel),
        pull: SpreadKernel,
        g: &In<'_>,
        y: &mut Out<'_>,
        p: f64,
    ) -> Result<()> {
        let n = y.numel();
        if n == 0 {
            return Ok(());
        }
        let g = g.contiguous()?;
        let mut parts = on.alloc(U8, self.groups() * PART)?;
        self.reduce_to(on, kernels, None, Some(&Dst::new(&mut parts)), p)?;
        let parts = Src::new(&parts, 0);
        let grid = grid(on, n, self.dtype.size());
        let (reduced, inner) = (self.reduced as i64, self.inner as i64);
        let Some((order, layout)) = &self.moved else {
            return pull(on, grid, &y.dst(), &self.data.src(), &g.src(), &parts, n as i64, reduced, inner, p);
        };
        let mut rows = on.alloc(self.dtype, n)?;
        pull(on, grid, &Dst::new(&mut rows), &self.data.src(), &g.src(), &parts, n as i64, reduced, inner, p)?;
        scattered(on, &rows, layout, order, y)
    }
}

/// The operand in row-major order of another layout over its storage.
pub(super) fn gathered<'a>(x: &In<'a>, layout: &Layout) -> Result<Dense<'a>> {
    if layout.is_contiguous() {
        return Ok(Dense::Borrowed(x.at(layout)));
    }
    let mut copy = x.context().alloc(x.dtype(), layout.numel())?;
    copy::gather(x.context(), x.start(), layout, Dst::new(&mut copy))?;
    Ok(Dense::Owned(copy))
}

/// `y` from rows in the axes' order `order`, of which `layout` has the shape.
pub(super) fn scattered(on: &'static Context, rows: &Buffer, layout: &Layout, order: &[usize], y: &mut Out<'_>) -> Result<()> {
    let mut back = Dims::from_elem(0, order.len());
    for (to, &from) in order.iter().enumerate() {
        back[from] = to;
    }
    let from = Layout::contiguous(layout.shape()).permute(&back)?;
    copy::gather(on, Src::new(rows, 0), &from, y.dst())
}

/// What the CUDA backend runs for a reduction whose derivative needs the whole group again.
#[derive(Clone, Copy, Debug)]
pub struct GroupKernels {
    reduce: (ReduceKernel, MergeKernel),
    pull: SpreadKernel,
    p: f64,
}

impl GroupKernels {
    /// Of the function and its derivative, with the number that both are made with.
    pub(crate) fn new(reduce: ReduceKernel, merge: MergeKernel, pull: SpreadKernel, p: f64) -> Self {
        GroupKernels { reduce: (reduce, merge), pull, p }
    }

    /// `y ← f(group)` for every group over `axes`.
    pub(crate) fn forward(self, x: &In<'_>, axes: &[usize], y: &mut Out<'_>) -> Result<()> {
        Lines::new(x, axes)?.reduce(y.context(), self.reduce, y, self.p)
    }

    /// `y ← ȳ · ∂f/∂x` for every element; `g` has one element per group.
    pub(crate) fn backward(self, x: &In<'_>, g: &In<'_>, axes: &[usize], y: &mut Out<'_>) -> Result<()> {
        Lines::new(x, axes)?.spread(y.context(), self.reduce, self.pull, g, y, self.p)
    }
}

/// Position of the extremum of each line along `axis`, and the extremum if asked for.
pub(crate) fn arg(x: &In<'_>, axis: usize, largest: bool, values: Option<&mut Out<'_>>, indices: &mut Out<'_>) -> Result<()> {
    let on = x.context();
    let (values, indices) = (values.map(|v| v.dst()), indices.dst());
    let (values, largest) = (values.as_ref(), i32::from(largest));
    let lines = Lines::new(x, &[axis])?;
    lines.run(
        on,
        |grid, x, [o, r, i, k], lanes| argmax::reduce(on, grid, values, Some(&indices), None, x, o, r, i, k, lanes, largest),
        |grid, x, [o, r, i, k], lanes, parts| argmax::reduce(on, grid, None, None, Some(parts), x, o, r, i, k, lanes, largest),
        |grid, parts, [groups, pieces]| argmax::merge(on, grid, values, &indices, parts, &lines.data.src(), groups, pieces, largest),
    )
}

/// Numbers that a thread holds of rows: `HELD` of kernels/common/rows.cuh.
fn held(dtype: DType) -> usize {
    if dtype == DType::F64 { 8 } else { 16 }
}

/// Largest team, and block.
const LARGEST: usize = 512;

/// Threads that share a row of `n` elements when `arrays` rows are held at once: some lanes of a warp, or a block.
pub(crate) fn team(rows: usize, n: usize, dtype: DType, arrays: usize) -> usize {
    let each_a_pack = n.div_ceil(16 / dtype.size()).max(1).next_power_of_two();
    if n > 256 && rows < MANY_BLOCKS {
        return each_a_pack.clamp(64, LARGEST);
    }
    if holds(32, n, dtype, arrays) {
        return each_a_pack.min(32);
    }
    let mut team = 64;
    while team < LARGEST && !holds(team, n, dtype, arrays) {
        team *= 2;
    }
    team
}

/// Whether a team holds rows of `n` elements, `arrays` at once.
pub(crate) fn holds(team: usize, n: usize, dtype: DType, arrays: usize) -> bool {
    n * arrays <= team * held(dtype)
}

/// Threads per block of teams.
pub(crate) fn team_block(team: usize) -> usize {
    if team > 32 { team } else { THREADS as usize }
}

/// A grid of teams for `rows` rows.
pub(crate) fn teams_grid(on: &Context, rows: usize, team: usize) -> Grid {
    let block = team_block(team);
    Grid::rows(rows.div_ceil(block / team), block as u32, on.grid_cap())
}

/// Calls `launch(device, inputs, output, rows, n)` on the lines along `axis` of operands of one shape, laid out as rows of n
/// elements; lines along another axis than the last are gathered before and put back after. Not called when there is no element.
pub(crate) fn map_lines<const N: usize>(
    axis: usize,
    x: [&In<'_>; N],
    y: &mut Out<'_>,
    launch: impl FnOnce(&'static Context, [&Src<'_>; N], &Dst<'_>, usize, usize) -> Result<()>,
) -> Result<()> {
    let (on, count) = (y.context(), y.numel());
    if count == 0 {
        return Ok(());
    }
    let (rank, n) = (x[0].shape().rank(), x[0].shape()[axis]);
    let order: Dims = (0..rank).filter(|&i| i != axis).chain([axis]).collect();
    let last = x[0].shape()[axis + 1..].iter().all(|&d| d == 1);
    let mut data: SmallVec<[Dense<'_>; 2]> = SmallVec::new();
    for x in x {
        data.push(if last { x.contiguous()? } else { gathered(x, &x.layout().permute(&order)?)? });
    }
    let sources: SmallVec<[Src<'_>; 2]> = data.iter().map(Dense::src).collect();
    let sources = std::array::from_fn(|i| &sources[i]);
    if last {
        return launch(on, sources, &y.dst(), count / n, n);
    }
    let mut rows = on.alloc(y.dtype(), count)?;
    launch(on, sources, &Dst::new(&mut rows), count / n, n)?;
    scattered(on, &rows, &x[0].layout().permute(&order)?, &order, y)
}
