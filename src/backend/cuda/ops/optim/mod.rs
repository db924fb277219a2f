//! Optimizer steps in place, and statistics of gradients.

mod tensors;

use crate::backend::cpu::optim::AdamStep;
use crate::backend::cuda::abi::{Grid, Tensors};
use crate::backend::cuda::device::{Buffer, Context, Dst, Src, capture};
use crate::backend::cuda::launch::kernels::{adamw, moments, muon, sgd};
use crate::backend::cuda::launch::{Dense, In, THREADS};
use crate::dtype::DType;
use crate::error::{Result, bail};
use std::cell::Cell;
use tensors::{Tables, address, pieces};

/// Steps of Adam on many parameters in one launch: see [`Tables`]. All share decay rates and ε.
#[derive(Default)]
pub(crate) struct Adams {
    tables: Tables,
    shared: Option<[f64; 3]>,
}

/// The address of an operand that lies in row-major order.
fn dense(x: &In<'_>) -> Result<u64> {
    match x.contiguous()? {
        Dense::Borrowed(s) => Ok(s.addr()),
        // A copy made here would be gone before the launch.
        Dense::Owned(_) => bail!(argument, "internal: a gradient must be in row-major order"),
    }
}

/// What launches a table with these decay rates and ε.
fn adam([b1, b2, eps]: [f64; 3]) -> impl Fn(&'static Context, Grid, &Dst<'_>, Tensors, Option<u64>) -> Result<()> {
    move |on, grid, first, table, live| {
        let live = live.map(|at| Src::at(at, DType::F64));
        adamw::step(on, grid, first, table, b1, b2, eps, live.as_ref())
    }
}

impl Adams {
    /// A parameter `p` with its gradient `g` and moments `m`, `v` (and the largest `v` so far). In a captured step `rate`, `root` and
    /// `shrink` are read from the three numbers at the address `live`. All memory must stay until [`Adams::finish`].
    pub(crate) fn push(
        &mut self,
        p: &mut Buffer,
        g: &In<'_>,
        m: &mut Buffer,
        v: &mut Buffer,
        largest: Option<&mut Buffer>,
        s: AdamStep,
        live: Option<u64>,
    ) -> Result<()> {
        let shared = [s.b1, s.b2, s.eps];
        if self.shared.is_some_and(|old| old != shared) {
            self.finish()?;
        }
        self.shared = Some(shared);
        let (on, dtype, n) = (p.context(), p.dtype(), p.len());
        let arrays = [address(p), dense(g)?, address(m), address(v), largest.map_or(0, address)];
        self.tables.push(on, dtype, n, arrays, [s.shrink, s.rate, s.root], live, &adam(shared))
    }

    /// Enqueues the steps.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.shared.map_or(Ok(()), |shared| self.tables.finish(&adam(shared)))
    }
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

/// Steps of gradient descent on many parameters in one launch. All share momentum and Nesterov's form.
#[derive(Default)]
pub(crate) struct Descents {
    tables: Tables,
    shared: Option<(f64, bool)>,
}

fn descend((momentum, nesterov): (f64, bool)) -> impl Fn(&'static Context, Grid, &Dst<'_>, Tensors, Option<u64>) -> Result<()> {
    move |on, grid, first, table, _| sgd::step(on, grid, first, table, momentum, i32::from(nesterov))
}

impl Descents {
    /// A parameter with its gradient and, with momentum, its velocity. All memory must stay until [`Descents::finish`].
    pub(crate) fn push(&mut self, p: &mut Buffer, g: &In<'_>, velocity: Option<&mut Buffer>, s: Descent) -> Result<()> {
        capture::refuse_fixed(p.context(), "the rate of gradient descent is a parameter of its kernel and")?;
        let shared = (s.momentum, s.nesterov);
        if self.shared.is_some_and(|old| old != shared) {
            self.finish()?;
        }
        self.shared = Some(shared);
        let arrays = [address(p), dense(g)?, velocity.map_or(0, address), 0, 0];
        let numbers = [s.lr, s.decay, f64::from(u8::from(s.first))];
        self.tables.push(p.context(), p.dtype(), p.len(), arrays, numbers, None, &descend(shared))
    }

    /// Enqueues the steps.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.shared.map_or(Ok(()), |shared| self.tables.finish(&descend(shared)))
    }
}

/// What all matrices of a step of Muon share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Momentum {
    pub mu: f64,
    pub nesterov: bool,
}

/// `b ← b + (1 − μ)(g − b)` of many matrices in one launch, and what is made orthogonal: `ahead`. Operands are `(b, g, ahead)`.
pub(crate) fn muon_before<'a>(x: impl IntoIterator<Item = (&'a mut Buffer, In<'a>, &'a mut Buffer)>, m: Momentum) -> Result<()> {
    let launch = |on: &'static Context, grid: Grid, first: &Dst<'_>, table: Tensors, _: Option<u64>| {
        muon::before(on, grid, first, table, 1.0 - m.mu, m.mu, i32::from(m.nesterov))
    };
    let mut tables = Tables::default();
    for (b, g, ahead) in x {
        let arrays = [address(b), dense(&g)?, address(ahead), 0, 0];
        tables.push(b.context(), b.dtype(), b.len(), arrays, [0.0; 3], None, &launch)?;
    }
    tables.finish(&launch)
}

/// `p ← p·shrink − rate·o` of many matrices in one launch. Operands are `(p, o, shrink, rate)`.
pub(crate) fn muon_after<'a>(x: impl IntoIterator<Item = (&'a mut Buffer, In<'a>, f64, f64)>) -> Result<()> {
    let launch = |on: &'static Context, grid: Grid, first: &Dst<'_>, table: Tensors, _: Option<u64>| muon::after(on, grid, first, table);
    let mut tables = Tables::default();
    for (p, o, shrink, rate) in x {
        capture::refuse_fixed(p.context(), "the rate of Muon is a parameter of its kernel and")?;
        let arrays = [address(p), dense(&o)?, 0, 0, 0];
        tables.push(p.context(), p.dtype(), p.len(), arrays, [shrink, rate, 0.0], None, &launch)?;
    }
    tables.finish(&launch)
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
    let count: usize = x.iter().map(|t| pieces(t.numel())).sum();
    let mut partial = on.alloc(DType::F64, 3 * count)?;
    let mut total = on.alloc(DType::F64, 3)?;
    // Copies of what is not in row-major order stay until all is enqueued.
    let rows = x.iter().map(In::contiguous).collect::<Result<Vec<_>>>()?;
    {
        let (partial, next) = (Dst::new(&mut partial), Cell::new(0));
        let launch = |on: &'static Context, grid: Grid, first: &Dst<'_>, table: Tensors, _: Option<u64>| {
            let at = next.replace(next.get() + i64::from(grid.blocks[0]));
            moments::squares(on, grid, &partial, &Src::at(first.addr(), first.dtype()), table, at)
        };
        let mut tables = Tables::default();
        for (t, row) in x.iter().zip(&rows) {
            tables.push(on, t.dtype(), t.numel(), [row.src().addr(), 0, 0, 0, 0], [0.0; 3], None, &launch)?;
        }
        tables.finish(&launch)?;
    }
    moments::total(on, one_block(count), &Dst::new(&mut total), &Src::new(&partial, 0), count as i64, 3, -1)?;
    let mut found = on.alloc(DType::F64, 2)?;
    moments::norm(on, one_block(1), &Dst::new(&mut found), &Src::new(&total, 0), most)?;
    Ok(found)
}

/// `x · by[1]` of every tensor, in row-major order, with what [`norm_and_factor`] found.
pub(crate) fn scale(on: &'static Context, x: &[In<'_>], by: &In<'_>) -> Result<Vec<Buffer>> {
    let rows = x.iter().map(In::contiguous).collect::<Result<Vec<_>>>()?;
    let mut y = x.iter().map(|t| on.alloc(t.dtype(), t.numel())).collect::<Result<Vec<_>>>()?;
    let by = by.start().offset(1);
    let launch =
        |on: &'static Context, grid: Grid, first: &Dst<'_>, table: Tensors, _: Option<u64>| moments::scale(on, grid, first, table, &by);
    let mut tables = Tables::default();
    for (row, y) in rows.iter().zip(&mut y) {
        tables.push(on, y.dtype(), y.len(), [address(y), row.src().addr(), 0, 0, 0], [0.0; 3], None, &launch)?;
    }
    tables.finish(&launch)?;
    Ok(y)
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
