//! Convolutions, pooling and resampling: the launches of kernels/conv.

use crate::backend::conv::Conv;
use crate::backend::cuda::abi::{Grid, Sliding};
use crate::backend::cuda::device::{Dst, Src};
use crate::backend::cuda::launch::kernels::{conv as kernels, pool, resample as resampling, unfold as columns};
use crate::backend::cuda::launch::{Dense, In, Out, THREADS};
use crate::backend::resample::Resampling;
use crate::dtype::{DType, I64};
use crate::error::Result;

/// Rows and columns of a tile of results, and terms of a step: as in kernels/conv/conv.cu.
const SIDE: usize = 64;
const DEEP: usize = 16;
/// Thread blocks that a sum over positions is cut for: some for each multiprocessor of a large GPU.
const BLOCKS: usize = 512;
/// Fewest positions of a part of such a sum, and most parts.
const PART: usize = 256;
const PARTS: usize = 64;

/// `y ← bias + x ∗ w`.
pub(crate) fn forward(c: &Conv, x: &In<'_>, w: &In<'_>, bias: Option<&In<'_>>, y: &mut Out<'_>) -> Result<()> {
    let on = y.context();
    if y.numel() == 0 {
        return Ok(());
    }
    let (x, w, bias) = (x.contiguous()?, w.contiguous()?, bias.map(In::contiguous).transpose()?);
    let tiles = c.groups * c.outputs.div_ceil(SIDE) * (c.images * c.output()).div_ceil(SIDE);
    let bias = bias.as_ref().map(Dense::src);
    kernels::forward(on, Grid::rows(tiles, THREADS, on.grid_cap()), &y.dst(), &x.src(), &w.src(), bias.as_ref(), c.into())
}

/// `x ← bias +` the transpose of `forward`, of `y`.
pub(crate) fn input(c: &Conv, y: &In<'_>, w: &In<'_>, bias: Option<&In<'_>>, x: &mut Out<'_>) -> Result<()> {
    let on = x.context();
    if x.numel() == 0 {
        return Ok(());
    }
    let (y, w, bias) = (y.contiguous()?, w.contiguous()?, bias.map(In::contiguous).transpose()?);
    let tiles = c.groups * c.inputs.div_ceil(SIDE) * (c.images * c.input()).div_ceil(SIDE);
    let bias = bias.as_ref().map(Dense::src);
    kernels::input(on, Grid::rows(tiles, THREADS, on.grid_cap()), &x.dst(), &y.src(), &w.src(), bias.as_ref(), c.into())
}

/// `w ← Σ y · x` over images and positions.
pub(crate) fn weight(c: &Conv, x: &In<'_>, y: &In<'_>, w: &mut Out<'_>) -> Result<()> {
    let (on, n) = (w.context(), w.numel());
    if n == 0 {
        return Ok(());
    }
    let all = c.images * c.output();
    if all == 0 {
        return w.zero(on);
    }
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let tiles = c.groups * c.outputs.div_ceil(SIDE) * c.depth().div_ceil(SIDE);
    let parts = BLOCKS.div_ceil(tiles).min(all.div_ceil(PART)).min(PARTS);
    let each = all.div_ceil(parts).next_multiple_of(DEEP);
    let parts = all.div_ceil(each);
    let acc = if w.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut sums = on.alloc(acc, parts * n)?;
    let grid = Grid::rows(parts * tiles, THREADS, on.grid_cap());
    kernels::weight(on, grid, &Dst::new(&mut sums), &x.src(), &y.src(), Sliding::from(c), parts as i64, each as i64)?;
    kernels::join(on, Grid::over(n, THREADS, on.grid_cap()), &w.dst(), &Src::new(&sums, 0), parts as i64, n as i64)
}

/// The largest element of each window, and where in its plane; planes are images.
pub(crate) fn max(c: &Conv, x: &In<'_>, y: &mut Out<'_>, at: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let x = x.contiguous()?;
    pool::max(on, Grid::over(n, THREADS, on.grid_cap()), &y.dst(), &at.dst(), &x.src(), c.into(), n as i64)
}

/// Windows of planes as columns; planes are images.
pub(crate) fn unfold(c: &Conv, x: &In<'_>, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let x = x.contiguous()?;
    columns::forward(on, Grid::over(n, THREADS, on.grid_cap()), &y.dst(), &x.src(), c.into(), n as i64)
}

/// The sums of columns back into planes.
pub(crate) fn fold(c: &Conv, y: &In<'_>, x: &mut Out<'_>) -> Result<()> {
    let (on, n) = (x.context(), x.numel());
    if n == 0 {
        return Ok(());
    }
    let y = y.contiguous()?;
    columns::back(on, Grid::over(n, THREADS, on.grid_cap()), &x.dst(), &y.src(), c.into(), n as i64)
}

/// An axis of `x` resampled, or with `back` the transpose of that. Positions and weights are computed on the device, so that a captured step
/// needs nothing from the host.
pub(crate) fn resample(r: &Resampling, back: bool, axis: usize, x: &In<'_>, y: &mut Out<'_>) -> Result<()> {
    let (on, n) = (y.context(), y.numel());
    if n == 0 {
        return Ok(());
    }
    let (_, _, inner) = x.shape().split_at(axis);
    let x = x.contiguous()?;
    let acc = if y.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let width = r.width();
    let mut at = on.alloc(I64, r.to.saturating_mul(2))?;
    let mut weights = on.alloc(acc, r.to.saturating_mul(width))?;
    let [from, to, width, inner, n] = [r.from, r.to, width, inner, n].map(|v| v as i64);
    let (step, near, reach) = (r.step(), i32::from(r.factor.is_some()), r.reach());
    let rows = Grid::over(r.to, THREADS, on.grid_cap());
    let (rule, align) = (r.rule() as i32, i32::from(r.align_corners));
    resampling::table(on, rows, &Dst::new(&mut weights), &Dst::new(&mut at), from, to, width, rule, near, align, step, reach)?;
    let (at, weights) = (Src::new(&at, 0), Src::new(&weights, 0));
    let grid = Grid::over(y.numel(), THREADS, on.grid_cap());
    let launch = if back { resampling::back } else { resampling::forward };
    launch(on, grid, &y.dst(), &x.src(), &at, &weights, from, to, width, inner, n)
}
