//! Elementwise launches: one thread per 16 bytes of output, striding over the rest.

use crate::backend::cuda::abi::{Grid, Params, View};
use crate::backend::cuda::device::{Context, Dst, Src};
use crate::backend::cuda::launch::{In, Out, grid};
use crate::error::Result;

/// A generated launcher of a function of one operand.
type UnaryKernel = fn(&Context, Grid, &Dst<'_>, &Src<'_>, View, i64, Params) -> Result<()>;
/// A generated launcher of a derivative: saved value, cotangent.
type PullKernel = BinaryKernel;
/// A generated launcher of a function of two operands.
type BinaryKernel = fn(&Context, Grid, &Dst<'_>, &Src<'_>, View, &Src<'_>, View, i64, Params) -> Result<()>;

/// What the CUDA backend runs for an elementwise op of one operand.
#[derive(Clone, Copy, Debug)]
pub struct UnaryKernels {
    forward: UnaryKernel,
    pull: PullKernel,
    params: Params,
}

/// What the CUDA backend runs for an elementwise op of two operands.
#[derive(Clone, Copy, Debug)]
pub struct BinaryKernels {
    forward: BinaryKernel,
    params: Params,
}

impl UnaryKernels {
    /// Of the function and its derivative, with the numbers the op is made with.
    pub(crate) fn new<const N: usize>(forward: UnaryKernel, pull: PullKernel, values: [f64; N]) -> Self {
        UnaryKernels { forward, pull, params: params(values) }
    }

    /// `y ← f(x)`.
    pub(crate) fn forward(self, x: &In<'_>, y: &mut Out<'_>) -> Result<()> {
        let (on, n) = (y.context(), y.numel());
        if n == 0 {
            return Ok(());
        }
        let (src, view) = x.view()?;
        (self.forward)(on, grid(on, n, y.dtype().size()), &y.dst(), &src, view, n as i64, self.params)
    }

    /// `y ← ȳ · f′(saved)`.
    pub(crate) fn pull(self, saved: &In<'_>, bar: &In<'_>, y: &mut Out<'_>) -> Result<()> {
        BinaryKernels { forward: self.pull, params: self.params }.forward(saved, bar, y)
    }
}

impl BinaryKernels {
    /// Of the function, with the numbers the op is made with.
    pub(crate) fn new<const N: usize>(forward: BinaryKernel, values: [f64; N]) -> Self {
        BinaryKernels { forward, params: params(values) }
    }

    /// `y ← f(a, b)` with both operands broadcast to the shape of `y`.
    pub(crate) fn forward(self, a: &In<'_>, b: &In<'_>, y: &mut Out<'_>) -> Result<()> {
        let (on, n) = (y.context(), y.numel());
        if n == 0 {
            return Ok(());
        }
        let (a, va) = a.expanded(y.shape())?;
        let (b, vb) = b.expanded(y.shape())?;
        (self.forward)(on, grid(on, n, y.dtype().size()), &y.dst(), &a, va, &b, vb, n as i64, self.params)
    }
}

/// A generated launcher of a gated activation: gate, up.
type GatedKernel = fn(&Context, Grid, &Dst<'_>, &Src<'_>, View, &Src<'_>, View, i64) -> Result<()>;
/// A generated launcher of its derivative: the two cotangents as far as they are wanted; gate, up, ȳ.
type GatedPull = fn(&Context, Grid, Option<&Dst<'_>>, Option<&Dst<'_>>, &Src<'_>, View, &Src<'_>, View, &Src<'_>, View, i64) -> Result<()>;

/// What the CUDA backend runs for a gated activation.
#[derive(Clone, Copy, Debug)]
pub struct GatedKernels {
    pub(crate) forward: GatedKernel,
    pub(crate) vjp: GatedPull,
}

impl GatedKernels {
    /// `y ← f(gate)·up`.
    pub(crate) fn forward(self, gate: &In<'_>, up: &In<'_>, y: &mut Out<'_>) -> Result<()> {
        let (on, n) = (y.context(), y.numel());
        if n == 0 {
            return Ok(());
        }
        let ((a, va), (b, vb)) = (gate.view()?, up.view()?);
        (self.forward)(on, grid(on, n, y.dtype().size()), &y.dst(), &a, va, &b, vb, n as i64)
    }

    /// The cotangents of gate and up that are wanted, from gate, up and ȳ.
    pub(crate) fn vjp(self, x: [&In<'_>; 3], [da, db]: [Option<&mut Out<'_>>; 2]) -> Result<()> {
        let (on, n) = (x[0].context(), x[0].numel());
        if n == 0 || (da.is_none() && db.is_none()) {
            return Ok(());
        }
        let ((a, va), (b, vb), (g, vg)) = (x[0].view()?, x[1].view()?, x[2].view()?);
        let (da, db) = (da.map(|d| d.dst()), db.map(|d| d.dst()));
        let grid = grid(on, n, x[0].dtype().size());
        (self.vjp)(on, grid, da.as_ref(), db.as_ref(), &a, va, &b, vb, &g, vg, n as i64)
    }
}

/// Parameters of a kernel, in its own order; the rest is 0.
fn params<const N: usize>(values: [f64; N]) -> Params {
    let mut p = Params::default();
    p.p[..N].copy_from_slice(&values);
    p
}
