//! Tensors that belong to a model and are never trained.

use super::{Leaf, Module, Visitor, like, try_walk};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::tensor::{Short, Tensor};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

/// A tensor of a model that is saved, loaded, moved and cast with it, and never trained: running statistics, masks, tables.
///
/// No gradient is taken with respect to it, no optimizer moves it, it counts as no parameter, and [`freeze`](crate::Module::freeze)
/// and [`thaw`](crate::Module::thaw) leave it alone. Reads like a tensor. A function that a gradient is taken of cannot write into a
/// model: it notes new statistics in [`BufferUpdates`], or returns them beside the loss, and they are [`set`](Buffer::set) afterwards.
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
pub struct Buffer {
    value: Tensor,
    /// By this a buffer is found again in the model, of which a function has a copy, perhaps in another dtype.
    id: u64,
}

impl Buffer {
    /// A buffer with this value, without its history.
    pub fn new(value: Tensor) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Buffer { value: value.detach(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
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
        self.value = like(&self.value, &value.detach()).map_err(|e| e.rename_op("buffer").called_at(at))?;
        Ok(())
    }
}

/// What a function found out about the buffers of a model, to be written into the model afterwards.
///
/// A function that a gradient is taken of has a copy of the model: it notes here what buffers should become, and
/// [`apply`](BufferUpdates::apply) finds the same buffers in the model itself, wherever they are in it and in whichever dtype the function
/// ran. [`nn::Pass`](crate::nn::Pass) carries one through layers.
///
/// ```
/// use cotangent::{Buffer, BufferUpdates, F32, Module, Param, Tensor, module, value_and_grad};
/// #[derive(Clone)]
/// struct Centre { scale: Param, mean: Buffer }
/// module!(Centre { scale, mean });
///
/// let mut m = Centre { scale: Tensor::ones([2], F32)?.into(), mean: Buffer::new(Tensor::zeros([2], F32)?) };
/// let x = Tensor::from_slice(&[1f32, 2., 3., 4.], [2, 2])?;
/// let mut updates = BufferUpdates::new();
/// let (_, grads) = value_and_grad(&m, |m| {
///     updates.move_towards(&m.mean, &x.mean(0)?, 0.1)?;
///     x.sub(&m.mean)?.mul(&m.scale)?.sum(..)
/// })?;
/// updates.apply(&mut m)?;
/// assert_eq!(m.mean.to_vec::<f32>()?, [0.2, 0.3]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct BufferUpdates {
    /// In the order in which they are to be made.
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    id: u64,
    value: Tensor,
    /// How much of the way from the old value to the new one.
    weight: f64,
}

impl BufferUpdates {
    /// No updates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that a buffer is to have this value. It is taken without its history.
    ///
    /// # Errors
    /// Shape error for another shape than the buffer's; out of memory.
    #[track_caller]
    pub fn set(&mut self, buffer: &Buffer, value: &Tensor) -> Result<()> {
        self.move_towards(buffer, value, 1.0)
    }

    /// Notes that a buffer is to become `(1 − weight) · old + weight · value`: a running mean. The arithmetic is done by
    /// [`apply`](BufferUpdates::apply), in the dtype of the model's buffer.
    ///
    /// # Errors
    /// Shape error for another shape than the buffer's; argument error for a weight outside 0 to 1; out of memory.
    #[track_caller]
    pub fn move_towards(&mut self, buffer: &Buffer, value: &Tensor, weight: f64) -> Result<()> {
        let at = Location::caller();
        let mut note = || {
            if value.shape() != buffer.shape() {
                bail!(shape, "the new value has shape {}, the buffer {}", value.shape(), buffer.shape());
            }
            if !(0.0..=1.0).contains(&weight) {
                bail!(argument, "a new value counts from 0 to 1, not {weight}");
            }
            memory::push(&mut self.changes, Change { id: buffer.id, value: value.detach(), weight })
        };
        note().map_err(|e: Error| e.rename_op("buffer_updates").called_at(at))
    }

    /// Notes another's updates after its own.
    ///
    /// # Errors
    /// Out of memory.
    pub fn append(&mut self, other: BufferUpdates) -> Result<()> {
        other.changes.into_iter().try_for_each(|c| memory::push(&mut self.changes, c))
    }

    /// Number of updates noted.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Makes all updates, in their order, in the model whose copy noted them, or in a clone of it.
    ///
    /// # Errors
    /// Argument error when the model does not have a noted buffer, or has it in two places (layers that were cloned): which of them is
    /// meant cannot be known. Out of memory; device error. Nothing is changed then.
    #[track_caller]
    pub fn apply<M: Module + ?Sized>(&self, model: &mut M) -> Result<()> {
        let at = Location::caller();
        let mut run = || {
            let mut found: BTreeMap<u64, (String, Tensor)> = BTreeMap::new();
            try_walk(model, |name, leaf| {
                let Some(id) = leaf.buffer.filter(|id| self.changes.iter().any(|c| c.id == *id)) else { return Ok(()) };
                if let Some((first, _)) = found.insert(id, (name.to_owned(), leaf.tensor.clone())) {
                    bail!(
                        argument,
                        "`{first}` and `{name}` are one buffer, of a layer that was cloned: which of them is to be updated cannot be \
                         known; make each layer by itself"
                    );
                }
                Ok(())
            })?;
            for Change { id, value, weight } in &self.changes {
                let Some((_, old)) = found.get_mut(id) else {
                    bail!(argument, "a buffer of shape {} is not in this model: the updates are another model's", value.shape());
                };
                let value = value.to_device(old.device())?.cast(old.dtype())?;
                *old = if *weight == 1.0 { value } else { old.mul_scalar(1.0 - weight)?.add(&value.mul_scalar(*weight)?)? };
            }
            super::walk(model, |_, leaf| {
                if let Some((_, new)) = leaf.buffer.and_then(|id| found.get(&id)) {
                    *leaf.tensor = new.clone();
                }
            });
            Ok(())
        };
        run().map_err(|e: Error| e.rename_op("buffer_updates").called_at(at))
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:?})", Short(&self.value))
    }
}

impl AsRef<Tensor> for Buffer {
    fn as_ref(&self) -> &Tensor {
        &self.value
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
        &self.value
    }
}

impl Module for Buffer {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.leaf(Leaf { tensor: &mut self.value, frozen: None, low_rank: None, buffer: Some(self.id) });
    }
}
