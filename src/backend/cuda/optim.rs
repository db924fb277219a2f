//! Optimizer steps in place, and statistics of gradients.

use super::buffer::Buffer;
use super::capture;
use super::context::Context;
use super::kernels::{adamw, moments, sgd};
use super::launch::{Dst, Grid, Src};
use super::map::{THREADS, grid};
use super::operand::In;
use crate::backend::cpu::optim::AdamStep;
use crate::dtype::DType;
use crate::error::{Result, bail};

/// One step of Adam on a parameter `p` and its moments `m`, `v` (and the largest `v` so far) from the gradient `g`. In a
/// captured step `rate`, `root` and `shrink` are read from the three numbers at the address `live`.
pub(crate) fn adam(
    p: &mut Buffer,
    g: &In<'_>,
    m: &mut Buffer,
    v: &mut Buffer,
    largest: Option<&mut Buffer>,
    s: AdamStep,
    live: Option<u64>,
) -> Result<()> {
    let (on, n) = (p.context(), p.len());
    if n == 0 {
        return Ok(());
    }
    let g = g.contiguous()?;
    let grid = grid(on, n, p.dtype().size());
    let largest = largest.map(Dst::new);
    let live = live.map(|at| Src::at(at, DType::F64));
    let (p, m, v) = (Dst::new(p), Dst::new(m), Dst::new(v));
    adamw::step(on, grid, &p, &g.src(), &m, &v, largest.as_ref(), n as i64, s.shrink, s.rate, s.root, s.b1, s.b2, s.eps, live.as_ref())
}

/// The numbers of one step of gradient descent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descent {
    pub lr: f64,
    pub momentum: f64,
    pub decay: f64,
    pub nesterov: bool,
    /// The momentum holds nothing yet.
    pub first: bool,
}

/// One step of gradient descent on a parameter and, with momentum, its velocity.
pub(crate) fn descend(p: &mut Buffer, g: &In<'_>, velocity: Option<&mut Buffer>, s: Descent) -> Result<()> {
    let (on, n) = (p.context(), p.len());
    if n == 0 {
        return Ok(());
    }
    let g = g.contiguous()?;
    capture::refuse_fixed(on, "the rate of gradient descent is a parameter of its kernel and")?;
    let grid = grid(on, n, p.dtype().size());
    let (p, velocity) = (Dst::new(p), velocity.map(Dst::new));
    let (nesterov, first) = (i32::from(s.nesterov), i32::from(s.first));
    sgd::step(on, grid, &p, &g.src(), velocity.as_ref(), n as i64, s.lr, s.momentum, s.decay, nesterov, first)
}

/// Blocks over one tensor: enough to fill a device, few enough to add up by one block. The size alone decides.
fn blocks(n: usize) -> Grid {
    Grid::over(n.div_ceil(8), THREADS, 512)
}

fn one_block(items: usize) -> Grid {
    Grid { blocks: [1, 1, 1], threads: items.next_multiple_of(32).clamp(32, 1024) as u32, shared: 0 }
}

/// The L2 norm over all elements of tensors on one device; NaN or infinite when an element is. Waits for the result once.
pub(crate) fn norm(x: &[In<'_>]) -> Result<f64> {
    let Some(first) = x.first() else { return Ok(0.0) };
    let found = norm_and_factor(first.context(), x, 1.0)?;
    let [norm, _] = found.download::<f64>()?[..] else { bail!(argument, "two numbers were asked for") };
    Ok(norm)
}

/// The L2 norm, and the factor that brings it down to `most`, on the device.
pub(crate) fn norm_and_factor(on: &'static Context, x: &[In<'_>], most: f64) -> Result<Buffer> {
    let grids: Vec<Grid> = x.iter().map(|t| if t.numel() == 0 { one_block(0) } else { blocks(t.numel()) }).collect();
    let count: usize = grids.iter().map(|g| g.blocks[0] as usize).sum();
    let mut partial = on.alloc(DType::F64, 3 * count)?;
    let mut total = on.alloc(DType::F64, 3)?;
    let mut at = 0;
    for (t, grid) in x.iter().zip(grids) {
        let dense = t.contiguous()?;
        moments::squares(on, grid, &Dst::new(&mut partial), &dense.src(), t.numel() as i64, at)?;
        at += i64::from(grid.blocks[0]);
    }
    moments::total(on, one_block(count), &Dst::new(&mut total), &Src::new(&partial, 0), count as i64, 3, -1)?;
    let mut found = on.alloc(DType::F64, 2)?;
    moments::norm(on, one_block(1), &Dst::new(&mut found), &Src::new(&total, 0), most)?;
    Ok(found)
}

/// `y = x · by[1]` with what [`norm_and_factor`] found.
pub(crate) fn scale(x: &In<'_>, by: &In<'_>, y: &mut Buffer) -> Result<()> {
    let (on, n) = (x.context(), x.numel());
    if n == 0 {
        return Ok(());
    }
    let (src, view) = x.view()?;
    let grid = grid(on, n, y.dtype().size());
    moments::scale(on, grid, &Dst::new(y), &src, view, &by.start().offset(1), n as i64)
}

/// What [`survey`] finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survey {
    pub mean: f64,
    pub std: f64,
    pub max: f64,
    /// Elements that are exactly zero, or not finite.
    pub zeros: f64,
    pub not_finite: f64,
}

/// Statistics of one tensor, all elements in `f64`.
pub(crate) fn survey(x: &In<'_>) -> Result<Survey> {
    let (on, n) = (x.context(), x.numel());
    if n == 0 {
        return Ok(Survey { mean: 0.0, std: 0.0, max: 0.0, zeros: 0.0, not_finite: 0.0 });
    }
    let dense = x.contiguous()?;
    let grid = blocks(n);
    let count = grid.blocks[0] as usize;
    let (mut partial, mut total, mut spread) = (on.alloc(DType::F64, 4 * count)?, on.alloc(DType::F64, 4)?, on.alloc(DType::F64, 1)?);
    moments::survey(on, grid, &Dst::new(&mut partial), &dense.src(), n as i64, 0)?;
    moments::total(on, one_block(count), &Dst::new(&mut total), &Src::new(&partial, 0), count as i64, 4, 1)?;
    moments::spread(on, grid, &Dst::new(&mut partial), &dense.src(), &Src::new(&total, 0), n as i64)?;
    moments::total(on, one_block(count), &Dst::new(&mut spread), &Src::new(&partial, 0), count as i64, 1, -1)?;
    let [sum, max, zeros, not_finite] = total.download::<f64>()?[..] else { bail!(argument, "four numbers were asked for") };
    let n = n as f64;
    let std = spread.download::<f64>()?.iter().map(|s| (s / n).sqrt()).sum();
    Ok(Survey { mean: sum / n, std, max, zeros, not_finite })
}
