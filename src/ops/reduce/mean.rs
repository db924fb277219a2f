//! Mean over axes.

use super::sum::{reduce_define, reduction_samples, spread};
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::sum as kernels;
use crate::backend::cuda::reduce::Lines;
use crate::dtype::with_float;
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::{Axes, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `Σ x / n` over axes; see [`Tensor::mean`].
#[derive(Clone, Debug)]
pub struct Mean {
    /// Axes to average over.
    pub axes: Axes,
    /// Keep them with extent 1.
    pub keep: bool,
    /// Shape of the operand, for the derivative.
    pub of: Shape,
}

fn count(shape: &Shape, axes: &Axes) -> Result<f64> {
    Ok(axes.resolve(shape.rank())?.iter().map(|&i| shape[i]).product::<usize>() as f64)
}

impl Describe for Mean {
    const NAME: &'static str = "mean";
    const MATH: Math = Math {
        forward: "y = Σ x / n over the given axes; NaN over an empty axis",
        vjp: "x̄ = ȳ / n repeated along the axes (a view)",
        kinks: "linear",
        cost: "reads x, writes y; saves nothing",
        references: "as sum",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![reduce_define(&x[0], &self.axes, self.keep, |group| S::sum(group) / S::lit(group.len() as f64))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = reduction_samples(g, |axes, keep, of| Mean { axes, keep, of: of.clone() });
        out.push(Sample::value(Mean { axes: (-1).into(), keep: false, of: [2, 0].into() }, [g.normal([2, 0])]).note("empty groups: NaN"));
        out
    }
}

impl Op for Mean {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let axes = self.axes.resolve(x[0].shape.rank())?;
        Ok(smallvec![Spec { shape: x[0].shape.reduced(&axes, self.keep), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        let n = count(x[0].shape(), &self.axes)?;
        with_float!(x[0].dtype(), T => {
            let n = <T as Compute>::Acc::from_f64(n);
            reduce::sum(&x[0], &axes, y[0].slice::<T>(), #[inline(always)] |v| v / n)
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        Lines::new(&x[0], &axes)?.reduce(y[0].context(), (kernels::reduce, kernels::merge), &mut y[0], count(x[0].shape(), &self.axes)?)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        // Divided while it is small, then repeated as a view.
        // Nothing is divided by 0 where there is nothing to repeat it over: 0/0 would come back in the second derivative.
        let g = y_bar.only()?.div_scalar(count(&self.of, &self.axes)?.max(1.0))?;
        Ok(smallvec![Some(spread(&g, &self.axes, &self.of)?)])
    }
}

impl Tensor {
    /// Mean over axes, which disappear.
    ///
    /// # Gradient
    /// `ȳ/n` repeated along the axes; saves nothing.
    ///
    /// # Numerics
    /// As [`Tensor::sum`], and one division; the total never leaves f32 for half types. NaN over an empty axis.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; dtype error for integers.
    #[track_caller]
    pub fn mean(&self, axes: impl Into<Axes>) -> Result<Tensor> {
        apply1(Mean { axes: axes.into(), keep: false, of: self.shape().clone() }, &[self])
    }

    /// [`Tensor::mean`] that keeps the axes with extent 1.
    ///
    /// # Errors
    /// As [`Tensor::mean`].
    #[track_caller]
    pub fn mean_keepdim(&self, axes: impl Into<Axes>) -> Result<Tensor> {
        apply1(Mean { axes: axes.into(), keep: true, of: self.shape().clone() }, &[self])
    }
}
