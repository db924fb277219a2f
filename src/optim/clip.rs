//! Clipping of gradients by their global norm or by value.

use crate::backend::cpu::reduce::{max_abs, scaled_square_sum};
use crate::backend::{Device, cuda};
use crate::dtype::with_float;
use crate::error::{Result, bail};
use crate::functional::Grads;
use crate::module::Module;
use crate::tensor::Tensor;

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
    pub fn norm(&self) -> Result<f64> {
        let named = self.named();
        // Each device adds up its own gradients.
        let mut devices: Vec<Device> = Vec::new();
        for (_, g) in &named {
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
                Self::host_norm(&named)?
            };
            total = if total == 0.0 { norm } else { total.hypot(norm) };
        }
        Ok(total)
    }

    /// Whether every gradient element is finite. Costs a pass over the gradients, unless clipping has just looked.
    ///
    /// # Errors
    /// Out of memory.
    pub fn is_finite(&self) -> Result<bool> {
        if self.finite {
            return Ok(true);
        }
        let named = self.named();
        if named.iter().any(|(_, g)| g.device().is_cuda()) {
            return Ok(self.norm()?.is_finite());
        }
        for (_, g) in &named {
            if !tensor_max_abs(g)?.is_finite() {
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
    /// assert!((g.norm()? - 5.0).abs() < 1e-5);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn clip_global_norm(&mut self, max_norm: f64) -> Result<Clipped> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            bail!(argument, "clip_global_norm: the largest norm must be positive, found {max_norm}");
        }
        let norm = self.norm()?;
        let finite = norm.is_finite();
        // PyTorch's formula, its 1e-6 included, so that runs can be compared step by step.
        let factor = max_norm / (norm + 1e-6);
        let clipped = finite && factor < 1.0;
        if clipped {
            self.scale(factor)?;
        }
        self.finite = finite;
        Ok(Clipped { norm, finite, clipped })
    }

    /// Limits every gradient element to `[-limit, limit]`. NaN stays NaN.
    ///
    /// # Errors
    /// Argument error unless `limit` is positive.
    pub fn clip_value(&mut self, limit: f64) -> Result<()> {
        if limit.is_nan() || limit <= 0.0 {
            bail!(argument, "clip_value: the limit must be positive, found {limit}");
        }
        self.update(|_, g| {
            *g = g.clamp(Some(-limit), Some(limit))?;
            Ok(())
        })
    }

    /// Multiplies every gradient by a number.
    ///
    /// # Errors
    /// Out of memory.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        self.update(|_, g| {
            *g = g.mul_scalar(factor)?;
            Ok(())
        })
    }
}

fn tensor_max_abs(g: &Tensor) -> Result<f64> {
    with_float!(g.dtype(), T => max_abs::<T>(&g.array.cpu()?))
}
