//! Products with matrices in blocks, and their elements: the launches of kernels/linalg/quant_linear.cu.

use crate::backend::cpu::quant::{BLOCK, Blocks};
use crate::backend::cuda::abi::Grid;
use crate::backend::cuda::device::{Context, Dst, Src};
use crate::backend::cuda::launch::kernels::quant_linear as kernels;
use crate::backend::cuda::launch::{In, Out, THREADS};
use crate::error::Result;

/// Rows of `x` up to which a warp computes an output of eight of them; beyond, tiles of outputs share what they read.
const FEW: usize = 32;
/// Rows and outputs of a tile, without and with tensor cores: as in kernels/linalg/quant_linear.cu.
const SIDE: usize = 64;
const TALL: usize = 64;
const BROAD: usize = 128;

/// `y [.., n] ← x [.., k] · Wᵀ` for `w [n, bytes]` in blocks along its rows.
pub(crate) fn product(kind: Blocks, x: &In<'_>, w: &In<'_>, y: &mut Out<'_>) -> Result<()> {
    type Launch = fn(&Context, Grid, &Dst<'_>, &Src<'_>, &Src<'_>, i64, i64, i64) -> Result<()>;
    let on = y.context();
    if y.numel() == 0 {
        return Ok(());
    }
    if x.numel() == 0 {
        return y.zero(on);
    }
    let (k, n) = (x.shape()[x.shape().rank() - 1], w.shape()[0]);
    let rows = x.numel() / k;
    let wide = kind == Blocks::Q8_0;
    let half = x.dtype().is_half();
    let (x, w) = (x.aligned(16)?, w.aligned(2)?);
    let (launch, grid): (Launch, Grid) = if rows <= FEW {
        let one = if wide { kernels::one_q8 } else { kernels::one_q4 };
        let few = if wide { kernels::few_q8 } else { kernels::few_q4 };
        (if rows == 1 { one } else { few }, Grid::over(n * rows.div_ceil(8) * 32, THREADS, on.grid_cap()))
    } else if half {
        let tiles = rows.div_ceil(TALL) * n.div_ceil(BROAD);
        (if wide { kernels::mma_q8 } else { kernels::mma_q4 }, Grid::rows(tiles, THREADS, on.grid_cap()))
    } else {
        let tiles = rows.div_ceil(SIDE) * n.div_ceil(SIDE);
        (if wide { kernels::many_q8 } else { kernels::many_q4 }, Grid::rows(tiles, THREADS, on.grid_cap()))
    };
    launch(on, grid, &y.dst(), &x.src(), &w.src(), rows as i64, n as i64, (k / BLOCK) as i64)
}

/// `y [.., k]`: the elements of `w [.., bytes]`, rounded to the type of `y`.
pub(crate) fn expand(kind: Blocks, w: &In<'_>, y: &mut Out<'_>) -> Result<()> {
    let (on, blocks) = (y.context(), y.numel() / BLOCK);
    if blocks == 0 {
        return Ok(());
    }
    let w = w.aligned(2)?;
    let launch = if kind == Blocks::Q8_0 { kernels::expand_q8 } else { kernels::expand_q4 };
    launch(on, Grid::over(4 * blocks, THREADS, on.grid_cap()), &y.dst(), &w.src(), blocks as i64)
}
