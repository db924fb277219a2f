//! Gradient accumulation: the mean over parts of unequal weight.

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::functional::Grads;
use crate::module::Module;

/// Adds up losses and gradients of micro-batches, so that the result is that of the whole batch.
///
/// Each part is a **mean** over some number of counted targets, and that number is its weight: the mean of the parts'
/// means is another loss when they differ. Gradients of half precision are added in `f32`, which optimizers accept.
///
/// ```
/// use cotangent::{optim::Accumulator, value_and_grad, Tensor};
/// let w = Tensor::scalar(2f64)?;
/// let data = [1f64, 2.0, 6.0];
/// let mean = |part: &[f64]| {
///     let x = Tensor::from_slice(part, [part.len()])?;
///     value_and_grad(&w, |w| x.mul(w)?.mean(..))
/// };
/// let mut sum = Accumulator::new();
/// for part in [&data[..1], &data[1..]] {
///     let (loss, grads) = mean(part)?;
///     sum.add(loss.item()?, grads, part.len() as f64)?;
/// }
/// let (loss, grads) = sum.finish()?;
/// assert_eq!((loss, grads.item()?), (6.0, 3.0)); // as of the three at once
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Accumulator<M: Module + Clone> {
    grads: Option<Grads<M>>,
    loss: f64,
    weight: f64,
}

impl<M: Module + Clone> Default for Accumulator<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Module + Clone> Accumulator<M> {
    /// An empty sum.
    pub fn new() -> Self {
        Accumulator { grads: None, loss: 0.0, weight: 0.0 }
    }

    /// Sum of the weights so far.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Adds a part's mean loss and its gradients with the number of targets that they are a mean of.
    ///
    /// A part of weight zero (all its targets are ignored, so that its mean is NaN) adds nothing.
    ///
    /// # Errors
    /// Argument error unless the weight is finite and not negative; shape error for gradients of another model.
    #[track_caller]
    pub fn add(&mut self, loss: f64, mut grads: Grads<M>, weight: f64) -> Result<()> {
        let at = std::panic::Location::caller();
        let mut run = || {
            if !weight.is_finite() || weight < 0.0 {
                bail!(argument, "a weight must be finite and not negative, found {weight}");
            }
            if weight == 0.0 {
                return Ok(());
            }
            grads.change(|_, g| {
                if g.dtype().is_half() {
                    *g = g.cast(DType::F32)?;
                }
                if weight != 1.0 {
                    *g = g.mul_scalar(weight)?;
                }
                Ok(())
            })?;
            match &mut self.grads {
                Some(sum) => sum.accumulate(&grads)?,
                None => self.grads = Some(grads.clone()),
            }
            self.loss += weight * loss;
            self.weight += weight;
            Ok(())
        };
        run().map_err(|e: Error| e.in_op("accumulator", at))
    }

    /// The loss and gradients of all parts together; the accumulator is empty afterwards.
    ///
    /// # Errors
    /// Argument error when nothing was added.
    #[track_caller]
    pub fn finish(&mut self) -> Result<(f64, Grads<M>)> {
        let at = std::panic::Location::caller();
        let Self { grads, loss, weight } = std::mem::take(self);
        let Some(mut grads) = grads else {
            return Err(Error::argument("nothing was added, or only parts of weight zero").in_op("accumulator", at));
        };
        grads.change(|_, g| {
            *g = g.div_scalar(weight)?;
            Ok(())
        })?;
        Ok((loss / weight, grads))
    }
}
