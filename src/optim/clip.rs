//! Clipping of gradients by their global norm or by value.

use crate::array::Array;
use crate::backend::cpu::reduce::{max_abs, scaled_square_sum};
use crate::backend::{Device, cuda};
use crate::dtype::{DType, with_float};
use crate::error::{Result, bail};
use crate::functional::Grads;
use crate::module::Module;
use crate::tensor::Tensor;
use std::panic::Location;

/// What clipping found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clipped {
    /// Global L2 norm before clipping.
    pub norm: f64,
    /// Whether every gradient element is finite. When it is not, nothing was changed: skip the step.
    pub finite: bool,
    /// Whether the gradients were scaled down.
    pub clipped: bool,
}

impl<M: Module + Clone> Grads<M> {
    /// The L2 norm over all gradients; NaN or infinite when an element is.
    ///
    /// Squares are scaled by the largest element first, so they neither overflow nor underflow, and summed in `f64` in an
    /// order that the shapes decide.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn global_norm(&self) -> Result<f64> {
        let at = Location::caller();
        norm(&self.named()).map_err(|e| e.in_op("global_norm", at).called_at(at))
    }

    /// Whether every gradient element is finite. Costs a pass over the gradients, unless clipping has just looked.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn is_finite(&self) -> Result<bool> {
        let at = Location::caller();
        Ok(self.largest.is_some() || all_finite(&self.named()).map_err(|e| e.in_op("is_finite", at).called_at(at))?)
    }

    /// Scales all gradients so that their global norm is at most `max_norm`.
    ///
    /// A norm that is not finite changes nothing and is reported: scaling by it would turn finite gradients into zeros
    /// or NaN. The factor is a number: of gradients that are tracked themselves (second derivatives), it counts as a
    /// constant.
    ///
    /// # Errors
    /// Argument error unless `max_norm` is positive.
    ///
    /// ```
    /// use cotangent::{grad, Tensor};
    /// let mut g = grad(&Tensor::from_slice(&[3f32, 4.0], [2])?, |x| x.square()?.sum(..))?; // [6, 8]
    /// let c = g.clip_global_norm(5.0)?;
    /// assert_eq!((c.norm, c.clipped), (10.0, true));
    /// assert!((g.global_norm()? - 5.0).abs() < 1e-5);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn clip_global_norm(&mut self, max_norm: f64) -> Result<Clipped> {
        let at = Location::caller();
        self.clip(max_norm).map_err(|e| e.in_op("clip_global_norm", at))
    }

    fn clip(&mut self, max_norm: f64) -> Result<Clipped> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            bail!(argument, "the largest norm must be positive, found {max_norm}");
        }
        let norm = norm(&self.named())?;
        let finite = norm.is_finite();
        // PyTorch's formula, its 1e-6 included, so that runs can be compared step by step.
        let factor = max_norm / (norm + 1e-6);
        let clipped = finite && factor < 1.0;
        if clipped {
            self.scale(factor)?;
        }
        // No element is larger than the norm, nor than the limit after scaling, but for roundings.
        self.largest = finite.then_some(if clipped { 2.0 * max_norm } else { norm });
        Ok(Clipped { norm, finite, clipped })
    }

    /// [`clip_global_norm`](Grads::clip_global_norm) without waiting: the norm before clipping comes as a scalar `f64` tensor on
    /// the gradients' device. What a captured step uses; the gradients have the same bits.
    ///
    /// A norm that is not finite changes nothing. It is seen only when the tensor is read, after the optimizer's step.
    ///
    /// # Errors
    /// Argument error unless `max_norm` is positive; device error when the gradients are on different devices; tape error for
    /// tracked gradients.
    #[track_caller]
    pub fn clip_by_global_norm(&mut self, max_norm: f64) -> Result<Tensor> {
        let at = Location::caller();
        self.clip_there(max_norm).map_err(|e| e.in_op("clip_by_global_norm", at))
    }

    fn clip_there(&mut self, max_norm: f64) -> Result<Tensor> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            bail!(argument, "the largest norm must be positive, found {max_norm}");
        }
        let named = self.named();
        let device = named.first().map_or(Device::Cpu, |(_, g)| g.device());
        for (name, g) in &named {
            if g.device() != device {
                bail!(device, "the gradient of `{name}` is on {}, another on {device}", g.device());
            }
            if g.is_tracked() {
                bail!(tape, "the gradient of `{name}` is tracked: use clip_global_norm, which is recorded");
            }
        }
        if device == Device::Cpu {
            drop(named);
            return Tensor::scalar(self.clip_global_norm(max_norm)?.norm);
        }
        let on = cuda::Context::of(device)?;
        let there = named.iter().map(|(_, g)| g.array.cuda()).collect::<Result<Vec<_>>>()?;
        let found = Array::of_cuda(cuda::optim::norm_and_factor(on, &there, max_norm)?);
        let mut scaled = cuda::optim::scale(on, &there, &found.cuda()?)?.into_iter();
        drop(there);
        drop(named);
        self.change(|_, g| {
            let Some(y) = scaled.next() else { bail!(argument, "internal: a gradient was not scaled") };
            *g = Tensor::from_array(Array::of_cuda(y)).reshape(g.shape().clone())?;
            Ok(())
        })?;
        Tensor::from_array(found).select(0, 0)
    }

    /// Limits every gradient element to `[-limit, limit]`. NaN stays NaN.
    ///
    /// # Errors
    /// Argument error unless `limit` is positive.
    #[track_caller]
    pub fn clip_value(&mut self, limit: f64) -> Result<()> {
        let at = Location::caller();
        let mut run = || {
            if limit.is_nan() || limit <= 0.0 {
                bail!(argument, "the limit must be positive, found {limit}");
            }
            self.change(|_, g| {
                *g = g.clamp(Some(-limit), Some(limit))?;
                Ok(())
            })
        };
        run().map_err(|e| e.in_op("clip_value", at).called_at(at))
    }

    /// Multiplies every gradient by a number.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        let at = Location::caller();
        let scaled = self.change(|_, g| {
            *g = g.mul_scalar(factor)?;
            Ok(())
        });
        scaled.map_err(|e| e.in_op("scale", at).called_at(at))
    }
}

fn norm(named: &[(String, Tensor)]) -> Result<f64> {
    // Each device adds up its own gradients.
    let mut devices: Vec<Device> = Vec::new();
    for (_, g) in named {
        if !devices.contains(&g.device()) {
            devices.push(g.device());
        }
    }
    let mut total = 0f64;
    for d in devices {
        let norm = if d.is_cuda() {
            let there = named.iter().filter(|(_, g)| g.device() == d).map(|(_, g)| g.array.cuda()).collect::<Result<Vec<_>>>()?;
            cuda::optim::norm(&there)?
        } else {
            host_norm(named)?
        };
        total = if total == 0.0 { norm } else { total.hypot(norm) };
    }
    Ok(total)
}

/// Whether every element is finite.
pub(super) fn all_finite(named: &[(String, Tensor)]) -> Result<bool> {
    if named.iter().any(|(_, g)| g.device().is_cuda()) {
        return Ok(norm(named)?.is_finite());
    }
    for (_, g) in named {
        if !tensor_max_abs(g)?.is_finite() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether every element is finite and so is its square, in the type that an optimizer computes in: a second moment that is
/// infinite once stays so, and its parameter never moves again. `largest` is no smaller than any element, where that is known.
pub(super) fn finite_squares(named: &[(String, Tensor)], largest: Option<f64>) -> Result<bool> {
    let narrow = f64::from(f32::MAX).sqrt();
    if largest.is_some_and(|m| m < narrow) {
        return Ok(true);
    }
    if named.iter().any(|(_, g)| g.device().is_cuda()) {
        let norm = norm(named)?;
        if !norm.is_finite() || norm < narrow {
            return Ok(norm.is_finite());
        }
    }
    for (_, g) in named {
        let limit = if g.dtype() == DType::F64 { f64::MAX.sqrt() } else { narrow };
        // On a device only now that something is huge.
        let largest = tensor_max_abs(&g.detach().to_device(Device::Cpu)?)?;
        if largest.is_nan() || largest >= limit {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The norm over the gradients in host memory.
fn host_norm(named: &[(String, Tensor)]) -> Result<f64> {
    let named = || named.iter().filter(|(_, g)| g.device() == Device::Cpu);
    let mut largest = 0f64;
    for (_, g) in named() {
        let m = tensor_max_abs(g)?;
        if !m.is_finite() {
            return Ok(m);
        }
        largest = largest.max(m);
    }
    if largest == 0.0 {
        return Ok(0.0);
    }
    let mut sum = 0f64;
    for (_, g) in named() {
        sum += with_float!(g.dtype(), T => scaled_square_sum::<T>(&g.array.cpu()?, largest)?);
    }
    Ok(largest * sum.sqrt())
}

fn tensor_max_abs(g: &Tensor) -> Result<f64> {
    with_float!(g.dtype(), T => max_abs::<T>(&g.array.cpu()?))
}
