//! Mean squared error.

use super::reduction::Reduction;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::smallvec;

/// Squared error; see [`Tensor::mse_loss`].
#[derive(Clone, Debug)]
pub struct MseLoss {
    /// What becomes of the squares.
    pub reduction: Reduction,
}

impl Describe for MseLoss {
    const NAME: &'static str = "mse_loss";
    const MATH: Math = Math {
        forward: "(x − t)², then mean, sum or none",
        vjp: "x̄ = 2 (x − t) l̄ = −t̄, where l̄ is ȳ, divided by the number of elements for the mean",
        kinks: "smooth; the mean of no elements is 0",
        cost: "a composition: difference, square, sum; saves the difference",
        references: "torch.nn.functional.mse_loss",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let squares = x[0].data.iter().zip(&x[1].data).map(|(&x, &t)| (x - t) * (x - t)).collect();
        vec![self.reduction.define(Nd::new(&x[0].shape, squares), x[0].data.len() as f64)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let op = MseLoss { reduction };
            let shape = g.shape(2);
            out.push(Sample::check(op.clone(), [g.normal(&shape), g.normal(&shape)]).note("reductions of every layout [C15]"));
            out.push(Sample::check(op.clone(), [g.normal(()), g.normal(())]).note("scalars"));
            out.push(Sample::check(op, [g.normal([0, 3]), g.normal([0, 3])]).note("no elements"));
        }
        let op = MseLoss { reduction: Reduction::Mean };
        out.push(
            Sample::reject(op.clone(), [g.normal([3, 1]), g.normal([3])], ErrorKind::Shape)
                .note("shapes that would broadcast to a wrong loss"),
        );
        out.push(Sample::bench(op, [g.normal([1024, 1024]), g.normal([1024, 1024])]));
        out
    }
}

impl Composite for MseLoss {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        alike(x[0], x[1])?;
        Ok(smallvec![self.reduction.reduce(&x[0].sub(x[1])?.square()?)?])
    }
}

/// Predictions and targets that broadcast against each other are nearly always a mistake, and targets of classes another loss's.
pub(crate) fn alike(x: &Tensor, t: &Tensor) -> Result<()> {
    if x.dtype() != t.dtype() {
        let (x, t) = (x.dtype(), t.dtype());
        bail!(dtype, "predictions are {x} and targets {t}: targets.cast({x:?})?");
    }
    if x.shape() != t.shape() {
        bail!(shape, "predictions and targets must have one shape: {} and {}", x.shape(), t.shape());
    }
    Ok(())
}

impl Tensor {
    /// Mean squared error against targets of the same shape.
    ///
    /// # Gradient
    /// `2 (x − t) l̄` and its negative for the targets; saves the difference.
    ///
    /// # Errors
    /// Shape error unless the shapes are equal (no broadcasting); dtype error unless both are the same float type.
    #[track_caller]
    pub fn mse_loss(&self, targets: &Tensor) -> Result<Tensor> {
        self.mse_loss_with(targets, Reduction::Mean)
    }

    /// [`Tensor::mse_loss`] reduced by the sum, or not at all.
    ///
    /// # Gradient
    /// As there, times the cotangent of each loss where they are not reduced.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn mse_loss_with(&self, targets: &Tensor, reduction: Reduction) -> Result<Tensor> {
        compose1(MseLoss { reduction }, &[self, targets])
    }
}
