//! What the losses share: reductions, and class targets.

use crate::backend::cpu::{self, Compute, Real, simd};
use crate::dtype::{Element, with_dtype};
use crate::error::{Result, bail};
use crate::memory;
use crate::op::{Spec, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Nd, Scalar};

/// How the losses of a batch become the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean: the sum, divided by the number of elements, of targets that are not ignored, or by their weights' sum.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// No reduction: one loss per element or target.
    None,
}

impl Reduction {
    /// Shape of the result for losses of the given shape.
    pub(crate) fn shape(self, of: &Shape) -> Shape {
        if self == Reduction::None { of.clone() } else { Shape::scalar() }
    }

    /// Writes the result. A mean of nothing is 0.
    pub(crate) fn store<T: Compute>(self, losses: &[T::Acc], weight: f64, y: &mut [T]) {
        if self == Reduction::None {
            y.iter_mut().zip(losses).for_each(|(y, &l)| *y = T::store(l));
            return;
        }
        let sum = simd::dispatch(
            #[inline(always)]
            || simd::sum(losses),
        );
        let sum = match self {
            Reduction::Mean if weight == 0.0 => T::Acc::ZERO,
            Reduction::Mean => sum / <T::Acc as Real>::from_f64(weight),
            _ => sum,
        };
        y[0] = T::store(sum);
    }

    /// The same, by the textbook.
    pub(crate) fn define<S: Scalar>(self, losses: Nd<S>, weight: f64) -> Nd<S> {
        match self {
            Reduction::None => losses,
            Reduction::Sum => Nd::scalar(S::sum(&losses.data)),
            Reduction::Mean if weight == 0.0 => Nd::scalar(S::zero()),
            Reduction::Mean => Nd::scalar(S::sum(&losses.data) / S::lit(weight)),
        }
    }

    /// What a loss counts in the result, by the textbook.
    pub(crate) fn define_scale(self, weight: f64) -> f64 {
        match self {
            Reduction::None | Reduction::Sum => 1.0,
            Reduction::Mean => {
                if weight == 0.0 {
                    0.0
                } else {
                    1.0 / weight
                }
            }
        }
    }

    /// The same in tensor ops; a mean divides by the number of elements.
    pub(crate) fn reduce(self, losses: &Tensor) -> Result<Tensor> {
        match self {
            Reduction::None => Ok(losses.clone()),
            Reduction::Sum => losses.sum(..),
            Reduction::Mean => losses.sum(..)?.mul_scalar(1.0 / losses.numel().max(1) as f64),
        }
    }

    /// What the cotangent of each loss is multiplied with.
    pub(crate) fn scale(self, weight: f64) -> f64 {
        match self {
            Reduction::Mean if weight == 0.0 => 0.0,
            Reduction::Mean => 1.0 / weight,
            _ => 1.0,
        }
    }
}

/// Class targets, read from an integer operand. `None`: ignored.
pub(crate) struct Classes {
    pub(crate) of: Vec<Option<usize>>,
}

impl Classes {
    /// Reads and checks the targets of a kernel.
    pub(crate) fn read(x: &cpu::In<'_>, classes: usize, ignore: Option<i64>) -> Result<Self> {
        let mut of = memory::room(x.shape().checked_numel()?)?;
        with_dtype!(x.dtype(), T => {
            for (at, &t) in x.contiguous::<T>()?.iter().enumerate() {
                // Exact for every index that can be in range, and for the usual ignored values.
                let t = Element::to_f64(t);
                of.push(if ignore.is_some_and(|i| i as f64 == t) {
                    None
                } else if t >= 0.0 && t < classes as f64 {
                    Some(t as usize)
                } else {
                    bail!(index, "target {t} at position {at} is outside 0..{classes}: classes count from 0; ignore_index leaves targets of one number out")
                });
            }
        });
        Ok(Classes { of })
    }

    /// What a mean divides by: the number of targets that count, or the sum of their weights.
    pub(crate) fn total(&self, weights: Option<impl Fn(usize) -> f64>) -> Result<f64> {
        let counted = self.of.iter().flatten();
        Ok(match weights {
            None => counted.count() as f64,
            Some(w) => f64::sum(&memory::try_collect(counted.map(|&t| w(t)))?),
        })
    }
}

/// Checks `[.., classes]` scores, integer targets of the leading shape, and weights `[classes]`.
pub(crate) fn check_classes(x: &Spec, targets: &Spec, weights: Option<&Spec>) -> Result<()> {
    expect::same_float(std::slice::from_ref(x))?;
    if targets.dtype.is_float() && targets.shape == x.shape {
        bail!(
            dtype,
            "targets are class indices {:?}, found {} {}: of one-hot rows: targets.argmax(-1)?, of probabilities: cross_entropy of the logits",
            &x.shape[..x.shape.rank().saturating_sub(1)],
            targets.dtype,
            targets.shape
        );
    }
    expect::index(targets)?;
    let Some((classes, lead)) = x.shape.split_last() else { bail!(shape, "scores need an axis of classes, found a scalar") };
    if &targets.shape[..] != lead {
        let hint = if targets.shape == x.shape {
            "; integer targets are class indices, not one-hot rows: targets.argmax(-1)?"
        } else if x.shape.rank() > 2 && targets.shape[..] == [&x.shape[..1], &x.shape[2..]].concat() {
            "; classes are the last axis here: scores.transpose(1, -1)?, where PyTorch has them on axis 1"
        } else if let Some((1, rest)) = targets.shape.split_last()
            && rest == lead
        {
            "; the last axis of the targets has one element: targets.squeeze(-1)?"
        } else {
            ""
        };
        let (x, targets) = (&x.shape, &targets.shape);
        bail!(shape, "there must be one target per row of scores: scores {x}, targets {targets} (expected {lead:?}){hint}");
    }
    if let Some(w) = weights {
        expect::same_dtype(&[x.clone(), w.clone()])?;
        if w.shape[..] != [*classes] {
            bail!(shape, "there must be one weight per class: weights {}, scores {} ({classes} classes)", w.shape, x.shape);
        }
    }
    Ok(())
}

/// Class targets by the textbook: `None` for those that do not count.
pub(crate) fn define_targets<S: Scalar>(x: &Nd<S>, ignore: Option<i64>) -> Vec<Option<usize>> {
    x.data.iter().map(|t| t.re() as i64).map(|t| (t >= 0 && ignore != Some(t)).then_some(t as usize)).collect()
}

/// What a mean divides by, by the textbook: how many targets count, or the sum of their weights.
pub(crate) fn define_weight<S: Scalar>(targets: &[Option<usize>], weights: Option<&Nd<S>>) -> f64 {
    targets.iter().flatten().map(|&t| weights.map_or(1.0, |w| w.data[t].re())).fold(0.0, |sum, w| sum + w)
}
