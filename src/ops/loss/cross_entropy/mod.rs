//! Cross-entropy of logits: with the index of a class as target (`classes`), or with a probability of every class (`soft`).

pub mod classes;
pub mod soft;

pub use classes::{CrossEntropyLoss, CrossEntropyOptions, CrossEntropyVjp};
pub(super) use classes::{RowSlopes, refuse_weights, row_stats, sum_weights};

use crate::error::Result;
use crate::op::{apply1, apply1_as};
use crate::tensor::Tensor;
use smallvec::SmallVec;
use soft::SoftCrossEntropy;

impl Tensor {
    /// Mean cross-entropy of these logits `[.., C]` with integer targets `[..]`, the classes; targets of −100 are ignored. Float targets
    /// `[.., C]` are the probabilities of every class (distillation, mixed labels): the mean is then over the rows.
    ///
    /// ```
    /// use cotangent::{Tensor, grad};
    /// let logits = Tensor::from_slice(&[0f64, 0.0, 0.0, 0.0], [2, 2])?;
    /// let targets = Tensor::from_slice(&[1i64, -100], [2])?;
    /// let loss = logits.cross_entropy(&targets)?;
    /// assert!((loss.item()? - 2f64.ln()).abs() < 1e-15);
    /// let g = grad(&logits, |x| x.cross_entropy(&targets))?;
    /// assert_eq!(g.to_vec::<f64>()?, [0.5, -0.5, 0.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `(softmax − q)·l̄` by one fused kernel; saves the logits, the targets, and two numbers per row (three for probabilities). Rows of
    /// ignored targets get exactly 0. Probabilities get theirs, too: `−log_softmax·l̄`.
    ///
    /// # Numerics
    /// Probabilities are never stored: at the target, `p − 1` is formed in f32 before the rounding to a half type, so confident
    /// predictions keep their gradient. If every target is ignored the mean is 0 with zero gradient, where PyTorch gives NaN.
    /// A row of −∞ only counts 0. Probabilities are taken as they are, whatever they sum to; where one is 0, a logit of −∞ counts
    /// nothing (PyTorch gives NaN).
    ///
    /// # Errors
    /// Index error for a target outside `0..C` (on a GPU the forward pass waits for this check, the backward pass does not);
    /// shape error unless there is one target per row, or one probability per logit; dtype error unless the logits are floats, and
    /// probabilities of their type.
    #[doc(alias = "softmax_cross_entropy")]
    #[track_caller]
    pub fn cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        self.cross_entropy_with(targets, &CrossEntropyOptions::default())
    }

    /// [`Tensor::cross_entropy`] with options.
    ///
    /// ```
    /// use cotangent::ops::{CrossEntropyOptions, Reduction};
    /// # use cotangent::Tensor;
    /// let logits = Tensor::from_slice(&[0f32, 1.0, 2.0, 0.5], [2, 2])?;
    /// let targets = Tensor::from_slice(&[1i64, 0], [2])?;
    /// let options = CrossEntropyOptions { label_smoothing: 0.1, reduction: Reduction::None, ..Default::default() };
    /// assert_eq!(logits.cross_entropy_with(&targets, &options)?.shape(), &[2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// As [`Tensor::cross_entropy`]; class weights are constants, and a sweep that wants their gradient is an error.
    ///
    /// # Errors
    /// As [`Tensor::cross_entropy`]; argument error for `label_smoothing` outside 0 to 1, a negative `z_loss`, or a class to ignore (an
    /// `ignore_index` that is not negative) beside probabilities; shape error unless there is one weight per class.
    #[track_caller]
    pub fn cross_entropy_with(&self, targets: &Tensor, options: &CrossEntropyOptions) -> Result<Tensor> {
        let (of, weights) = (options.op(), &options.weights);
        let x: SmallVec<[&Tensor; 3]> = [Some(self), Some(targets), weights.as_ref()].into_iter().flatten().collect();
        if targets.dtype().is_float() { apply1_as("cross_entropy", SoftCrossEntropy { of }, &x) } else { apply1(of, &x) }
    }
}
