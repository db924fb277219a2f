//! Tensors that belong to a model and are never trained.

use super::{Leaf, Module, Visitor, like};
use crate::error::Result;
use crate::tensor::{Short, Tensor};
use std::ops::Deref;
use std::panic::Location;

/// A tensor of a model that is saved, loaded, moved and cast with it, and never trained: running statistics, masks, tables.
///
/// No gradient is taken with respect to it, no optimizer moves it, it counts as no parameter, and [`freeze`](crate::Module::freeze)
/// and [`thaw`](crate::Module::thaw) leave it alone. Reads like a tensor. A function that a gradient is taken of cannot write into a
/// model: it returns new statistics beside the loss, and they are [`set`](Buffer::set) afterwards.
///
/// ```
/// use cotangent::{Buffer, F32, GradOptions, Module, Param, Tensor, module, value_and_grad_with_aux};
/// #[derive(Clone)]
/// struct Centre { scale: Param, mean: Buffer }
/// module!(Centre { scale, mean });
///
/// let mut m = Centre { scale: Tensor::ones([2], F32)?.into(), mean: Buffer::new(Tensor::zeros([2], F32)?) };
/// let x = Tensor::from_slice(&[1f32, 2., 3., 4.], [2, 2])?;
/// let (_, batch, grads) = value_and_grad_with_aux(&m, GradOptions::default(), |m| {
///     let batch = x.mean(0)?;
///     Ok((x.sub(&m.mean)?.mul(&m.scale)?.sum(..)?, batch))
/// })?;
/// m.mean.set(&m.mean.mul_scalar(0.9)?.add(&batch.mul_scalar(0.1)?)?)?;
/// assert_eq!(m.mean.to_vec::<f32>()?, [0.2, 0.3]);
/// assert_eq!(grads.named().len(), 1);
/// assert_eq!(m.names(), ["scale", "mean"]); // in files, too
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone)]
pub struct Buffer(Tensor);

impl Buffer {
    /// A buffer with this value, without its history.
    pub fn new(value: Tensor) -> Self {
        Buffer(value.detach())
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.0
    }

    /// Gives it another value of its shape, in its dtype and on its device, without the value's history. Assign a new [`Buffer`]
    /// where the shape changes.
    ///
    /// # Errors
    /// Shape error for another shape; dtype error for integers in the place of floats, or the other way round; device error; out of memory.
    /// Nothing is changed then.
    #[track_caller]
    pub fn set(&mut self, value: &Tensor) -> Result<()> {
        let at = Location::caller();
        self.0 = like(&self.0, &value.detach()).map_err(|e| e.rename_op("buffer").called_at(at))?;
        Ok(())
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:?})", Short(&self.0))
    }
}

impl AsRef<Tensor> for Buffer {
    fn as_ref(&self) -> &Tensor {
        &self.0
    }
}

impl From<Tensor> for Buffer {
    fn from(value: Tensor) -> Self {
        Buffer::new(value)
    }
}

impl Deref for Buffer {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        &self.0
    }
}

impl Module for Buffer {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.leaf(Leaf { tensor: &mut self.0, frozen: None, low_rank: None, buffer: true });
    }
}
