//! Running sum along an axis.

use crate::backend::cpu::{self, order};
use crate::backend::cuda;
use crate::backend::cuda::kernels::cumsum as kernels;
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `yₖ = Σ_{i ≤ k} xᵢ` along an axis, or `i ≥ k` in reverse; see [`Tensor::cumsum`].
#[derive(Clone, Debug)]
pub struct Cumsum {
    /// The axis.
    pub axis: Axis,
    /// From the far end.
    pub reverse: bool,
}

impl Describe for Cumsum {
    const NAME: &'static str = "cumsum";
    const MATH: Math = Math {
        forward: "yₖ = Σ x over the elements up to and with k along the axis (from k on, in reverse)",
        vjp: "x̄ = the running sum of ȳ from the other end",
        kinks: "linear",
        cost: "reads x (twice along long lines), writes y; saves nothing",
        references: "torch.cumsum",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let n = x[0].shape[axis];
        vec![x[0].map_lines(axis, n, |line| {
            let mut out = vec![S::zero(); n];
            let mut acc = S::zero();
            for k in 0..n {
                let k = if self.reverse { n - 1 - k } else { k };
                acc = acc + line[k];
                out[k] = acc;
            }
            out
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let mut out = Vec::new();
        for reverse in [false, true] {
            for axis in [0, 1, 2, -1, -3] {
                out.push(Sample::check(Cumsum { axis: axis.into(), reverse }, [g.normal(&shape)]));
            }
            let op = |axis: i32| Cumsum { axis: axis.into(), reverse };
            out.push(Sample::check(op(0), [g.normal([1])]));
            out.push(Sample::check(op(0), [g.normal([0, 3])]).note("nothing to sum [B16]"));
            out.push(Sample::check(op(1), [g.normal([3, 0])]).note("nothing to sum [B16]"));
            out.push(Sample::value(op(0), [g.normal_with([70_000], 1.0, 0.25)]).note("longer than several segments"));
            out.push(Sample::value(op(0), [g.normal_with([700, 130], 1.0, 0.25)]).note("columns longer than several segments"));
            out.push(Sample::value(op(1), [g.normal([30, 40, 20])]));
            out.push(Sample::reject(op(2), [g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"));
            out.push(Sample::reject(op(0), [g.normal([])], ErrorKind::Shape));
        }
        for axis in [0, -1] {
            out.push(Sample::bench(Cumsum { axis: axis.into(), reverse: false }, [g.normal([4096, 1024])]));
        }
        out
    }
}

impl Op for Cumsum {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        self.axis.resolve(x[0].shape.rank())?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        with_float!(x[0].dtype(), T => order::cumsum::<T>(&x[0], axis, self.reverse, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        cuda::reduce::map_lines(axis, [&x[0]], &mut y[0], |on, [x], y, rows, n| {
            let team = if n > 1024 { cuda::reduce::THREADS as usize } else { 32 };
            kernels::rows(on, cuda::reduce::teams_grid(on, rows, team), y, x, rows as i64, n as i64, team as i32, i32::from(self.reverse))
        })
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(Cumsum { axis: self.axis, reverse: !self.reverse }, &[y_bar.only()?])?)])
    }
}

impl Tensor {
    /// Running sum along an axis: element `k` becomes the sum of the elements up to and with `k`.
    ///
    /// # Gradient
    /// The running sum of `ȳ` from the other end; saves nothing.
    ///
    /// # Numerics
    /// Sums are f64 on the CPU, whatever the type, and each is rounded once. On a GPU they are f32 (f64 of f64), over tiles of some hundred
    /// elements.
    ///
    /// # Errors
    /// Shape error when the axis does not exist; dtype error for integers.
    #[track_caller]
    pub fn cumsum(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1(Cumsum { axis: axis.into(), reverse: false }, &[self])
    }
}
