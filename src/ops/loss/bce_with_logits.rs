//! Binary cross-entropy of logits.

use super::mse_loss::alike;
use super::reduction::Reduction;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Binary cross-entropy; see [`Tensor::bce_with_logits`]. Inputs: logits, targets, then the positive weight if there is one.
#[derive(Clone, Debug)]
pub struct BceWithLogits {
    /// What becomes of the losses.
    pub reduction: Reduction,
    /// Whether a weight of the positive part is given.
    pub weighted: bool,
}

impl Describe for BceWithLogits {
    const NAME: &'static str = "bce_with_logits";
    const MATH: Math = Math {
        forward: "p t softplus(−x) + (1 − t) softplus(x), then mean, sum or none; p = 1 without a weight",
        vjp: "x̄ = ((1 − t) σ(x) − p t σ(−x)) l̄, t̄ = (p softplus(−x) − softplus(x)) l̄, p̄ = t softplus(−x) l̄",
        kinks: "smooth; neither tail cancels or overflows; the mean of no elements is 0",
        cost: "a composition of two softplus and their products",
        references: "torch.nn.functional.binary_cross_entropy_with_logits",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let softplus = |x: S| x.max(S::zero()) + (-x.abs()).exp().ln_1p();
        let losses = Nd::from_fn(&x[0].shape, |i| {
            let (v, t) = (x[0].at(i), x[1].at(i));
            let positive = t * softplus(-v);
            let positive = if self.weighted { positive * x[2].broadcast_at(i) } else { positive };
            positive + (S::one() - t) * softplus(v)
        });
        let n = losses.data.len() as f64;
        vec![self.reduction.define(losses, n)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            for weighted in [false, true] {
                let op = BceWithLogits { reduction, weighted };
                let inputs = |g: &mut Gen, x: Input, t: Input| {
                    let p = g.uniform([x.shape()[x.shape().rank() - 1]], 0.5, 3.0);
                    [x, t, p].into_iter().take(if weighted { 3 } else { 2 }).collect::<Vec<_>>()
                };
                let (x, t) = (g.normal_with([3, 4], 2.0, 0.0), g.uniform([3, 4], 0.0, 1.0));
                out.push(Sample::check(op.clone(), inputs(g, x, t)).note("every option; soft targets"));
                let x = Input::values([2, 4], [-100.0, 100.0, -30.0, 30.0, 100.0, -100.0, 20.0, -20.0]);
                let t = Input::values([2, 4], [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
                out.push(Sample::check(op.clone(), inputs(g, x, t)).note("extreme logits, with and without a weight [C11]"));
                let (x, t) = (g.normal([0, 2]), g.normal([0, 2]));
                out.push(Sample::check(op, inputs(g, x, t)).note("no elements"));
            }
        }
        let op = BceWithLogits { reduction: Reduction::Mean, weighted: false };
        out.push(
            Sample::reject(op.clone(), [g.normal([3, 1]), g.normal([3])], ErrorKind::Shape)
                .note("shapes that would broadcast to a wrong loss"),
        );
        out.push(Sample::reject(
            BceWithLogits { weighted: true, ..op.clone() },
            [g.normal([3]), g.normal([3]), g.normal([2])],
            ErrorKind::Shape,
        ));
        out.push(Sample::bench(op, [g.normal([1024, 1024]), g.uniform([1024, 1024], 0.0, 1.0)]));
        out
    }
}

impl Composite for BceWithLogits {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        alike(x[0], x[1])?;
        let mut weight = x[1].clone();
        if self.weighted {
            // The result keeps the logits' shape: a weight may repeat, never widen.
            let Ok(each) = x[2].expand(x[0].shape()) else {
                let (w, x) = (x[2].shape(), x[0].shape());
                bail!(
                    shape,
                    "pos_weight {w} does not repeat to the logits {x}: one weight for each class, the logits' last axis, or one for all"
                );
            };
            weight = weight.mul(&each)?;
        }
        let positive = weight.mul(&x[0].neg()?.softplus()?)?;
        let negative = x[1].rsub_scalar(1.0)?.mul(&x[0].softplus()?)?;
        Ok(smallvec![self.reduction.reduce(&positive.add(&negative)?)?])
    }
}

/// What [`Tensor::bce_with_logits_with`] may be told.
#[derive(Clone, Debug, Default)]
pub struct BceWithLogitsOptions {
    /// Multiplies the positive part; broadcasts to the logits (one per class, for instance).
    pub pos_weight: Option<Tensor>,
    /// How the losses become one number.
    pub reduction: Reduction,
}

impl Tensor {
    /// Mean binary cross-entropy of these logits with targets between 0 and 1 of the same shape.
    ///
    /// # Gradient
    /// `((1 − t) σ(x) − p t σ(−x)) l̄` for the logits; targets and weight have theirs too.
    ///
    /// # Numerics
    /// Both terms are softplus of the logit, so large logits neither overflow nor cancel.
    ///
    /// # Errors
    /// Shape error unless logits and targets have one shape, to which the weight broadcasts; dtype error unless all are the
    /// same float type.
    #[doc(alias = "binary_cross_entropy_with_logits")]
    #[track_caller]
    pub fn bce_with_logits(&self, targets: &Tensor) -> Result<Tensor> {
        self.bce_with_logits_with(targets, &BceWithLogitsOptions::default())
    }

    /// [`Tensor::bce_with_logits`] with a weight of the positive part or another reduction.
    ///
    /// # Gradient
    /// As there, times the cotangent of each loss where they are not reduced; of the weight too, where it is tracked.
    ///
    /// # Errors
    /// As there; shape error when the weight does not broadcast to the logits.
    #[track_caller]
    pub fn bce_with_logits_with(&self, targets: &Tensor, options: &BceWithLogitsOptions) -> Result<Tensor> {
        let (pos_weight, reduction) = (options.pos_weight.as_ref(), options.reduction);
        let x: SmallVec<[&Tensor; 3]> = [Some(self), Some(targets), pos_weight].into_iter().flatten().collect();
        compose1(BceWithLogits { reduction, weighted: pos_weight.is_some() }, &x)
    }
}
