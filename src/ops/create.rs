//! Tensors from nothing: constants, ranges, random values. They have no history, so they are no ops of the contract.

use crate::array::Array;
use crate::backend::Device;
use crate::backend::cpu::map;
use crate::dtype::{DType, Element, with_dtype};
use crate::error::{Result, bail};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::panic::Location;

impl Tensor {
    /// One value everywhere, on the CPU. Stored once, so it costs no memory until it is written to.
    ///
    /// # Errors
    /// Out of memory when the shape overflows.
    #[track_caller]
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType) -> Result<Tensor> {
        Self::full_on(shape, value, dtype, Device::Cpu)
    }

    /// [`Tensor::full`] on a device.
    ///
    /// # Errors
    /// Out of memory when the shape overflows; device error when the device is not available.
    #[track_caller]
    pub fn full_on(shape: impl Into<Shape>, value: f64, dtype: DType, device: Device) -> Result<Tensor> {
        let at = Location::caller();
        Array::full(value, dtype, shape.into(), device).map(Tensor::from_array).map_err(|e| e.in_op("full", at))
    }

    /// Zeros: `Tensor::zeros([2, 3], F32)`. Stored once, whatever the shape.
    ///
    /// # Errors
    /// Out of memory when the shape overflows.
    #[track_caller]
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        Self::full_on(shape, 0.0, dtype, Device::Cpu)
    }

    /// Ones. Stored once, whatever the shape.
    ///
    /// # Errors
    /// Out of memory when the shape overflows.
    #[track_caller]
    pub fn ones(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        Self::full_on(shape, 1.0, dtype, Device::Cpu)
    }

    /// Zeros of the same shape, dtype and device.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn zeros_like(&self) -> Result<Tensor> {
        Self::full_on(self.shape(), 0.0, self.dtype(), self.device())
    }

    /// Ones of the same shape, dtype and device.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn ones_like(&self) -> Result<Tensor> {
        Self::full_on(self.shape(), 1.0, self.dtype(), self.device())
    }

    /// Host values in row-major order; see [`Tensor::from_slice`].
    ///
    /// # Errors
    /// Shape error when the number of values differs from the shape's element count; out of memory.
    #[track_caller]
    pub fn from_vec<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        Self::from_slice(&data, shape)
    }

    /// A matrix from its rows: `Tensor::from_rows(&[[1f32, 2.], [3., 4.]])`.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn from_rows<T: Element, const N: usize>(rows: &[[T; N]]) -> Result<Tensor> {
        Self::from_slice(rows.as_flattened(), [rows.len(), N])
    }

    /// `start, start + step, …` while before `end` (after it, for a negative step).
    ///
    /// Each element is `start + i·step`, computed in f64 and rounded once; there are `⌈(end − start) / step⌉` of them.
    ///
    /// # Errors
    /// Argument error when the step is zero or an argument is not finite; out of memory when there are too many elements.
    ///
    /// ```
    /// # use cotangent::{Tensor, I64};
    /// assert_eq!(Tensor::arange(0.0, 10.0, 3.0, I64)?.to_vec::<i64>()?, [0, 3, 6, 9]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn arange(start: f64, end: f64, step: f64, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        let make = || {
            if step == 0.0 || !(start.is_finite() && end.is_finite() && step.is_finite()) {
                bail!(argument, "start {start}, end {end} and step {step} must be finite, and the step not zero");
            }
            // The cast saturates, and so fails as a shape.
            let n = ((end - start) / step).ceil().max(0.0) as usize;
            build(n, dtype, |i| start + i as f64 * step)
        };
        make().map_err(|e: crate::Error| e.in_op("arange", at))
    }

    /// `n` evenly spaced values from `start` to `end`, both included.
    ///
    /// # Errors
    /// Argument error when an end is not finite; out of memory.
    #[track_caller]
    pub fn linspace(start: f64, end: f64, n: usize, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        let make = || {
            if !(start.is_finite() && end.is_finite()) {
                bail!(argument, "start {start} and end {end} must be finite");
            }
            let last = n.saturating_sub(1).max(1) as f64;
            // From the nearer end, so that both ends are exact and the values symmetric.
            build(n, dtype, |i| {
                let (a, b) = (i as f64 / last, (n as f64 - 1.0 - i as f64) / last);
                if a <= b { start + a * (end - start) } else { end - b * (end - start) }
            })
        };
        make().map_err(|e: crate::Error| e.in_op("linspace", at))
    }

    /// The identity matrix.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn eye(n: usize, dtype: DType) -> Result<Tensor> {
        let at = Location::caller();
        let make = || {
            let shape = Shape::from([n, n]);
            with_dtype!(dtype, T => Array::build(shape, Device::Cpu, |y: &mut [T]| {
                y.fill(<T as Element>::from_f64(0.0));
                for row in 0..n {
                    y[row * n + row] = <T as Element>::from_f64(1.0);
                }
            }))
        };
        make().map(Tensor::from_array).map_err(|e: crate::Error| e.in_op("eye", at))
    }
}

/// A vector of `f(0), f(1), …`.
fn build(n: usize, dtype: DType, f: impl Fn(usize) -> f64 + Sync) -> Result<Tensor> {
    let array = with_dtype!(dtype, T => Array::build(n.into(), Device::Cpu, |y: &mut [T]| {
        map::rows(y, 1, |i, y| y[0] = <T as Element>::from_f64(f(i)));
    })?);
    Ok(Tensor::from_array(array))
}

#[cfg(test)]
mod tests {
    use crate::{BF16, F16, F32, F64, I64, Tensor, U8};

    #[test]
    fn ranges_have_the_documented_ends() -> crate::Result<()> {
        assert_eq!(Tensor::arange(0.0, 5.0, 2.0, F32)?.to_vec::<f32>()?, [0.0, 2.0, 4.0]);
        assert_eq!(Tensor::arange(5.0, 0.0, -2.0, I64)?.to_vec::<i64>()?, [5, 3, 1]);
        assert_eq!(Tensor::arange(3.0, 3.0, 1.0, U8)?.numel(), 0);
        assert_eq!(Tensor::arange(3.0, 1.0, 1.0, U8)?.numel(), 0);
        assert!(Tensor::arange(0.0, 1.0, 0.0, F32).unwrap_err().is_argument());
        assert!(Tensor::arange(0.0, f64::INFINITY, 1.0, F32).unwrap_err().is_argument());
        assert!(Tensor::arange(0.0, 1e300, 1.0, F32).unwrap_err().is_out_of_memory());
        let x = Tensor::linspace(-1.0, 1.0, 7, F64)?.to_vec::<f64>()?;
        assert_eq!((x[0], x[3], x[6]), (-1.0, 0.0, 1.0));
        assert!((0..7).all(|i| x[i] == -x[6 - i]));
        assert_eq!(Tensor::linspace(2.0, 9.0, 1, BF16)?.to_f64_vec()?, [2.0]);
        assert_eq!(Tensor::linspace(2.0, 9.0, 0, F16)?.numel(), 0);
        Ok(())
    }

    #[test]
    fn constants() -> crate::Result<()> {
        assert_eq!(Tensor::eye(3, F16)?.to_f64_vec()?, [1., 0., 0., 0., 1., 0., 0., 0., 1.]);
        assert_eq!(Tensor::eye(0, F32)?.shape(), &[0, 0]);
        assert_eq!(Tensor::from_rows(&[[1u8, 2], [3, 4], [5, 6]])?.shape(), &[3, 2]);
        assert_eq!(Tensor::full([2], 2.5, F32)?.to_vec::<f32>()?, [2.5, 2.5]);
        assert!(Tensor::zeros([usize::MAX, 2], F32).unwrap_err().is_out_of_memory());
        Ok(())
    }
}
