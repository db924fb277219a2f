//! Convolutions and pooling: the launches of kernels/conv.

use crate::backend::conv::Conv;
use crate::backend::cuda::abi::{Grid, Sliding};
use crate::backend::cuda::device::{Dst, Src};
use crate::backend::cuda::launch::kernels::{conv as kernels, pool};
use crate::backend::cuda::launch::{Dense, In, Out, THREADS};
use crate::dtype::DType;
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
