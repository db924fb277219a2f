//! Tensors from nothing: constants, ranges, random values. They have no history, so they are no ops of the contract.

use crate::array::Array;
use crate::backend::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

impl Tensor {
    /// One value everywhere. Stored once, so it costs no memory until it is written to.
    ///
    /// # Errors
    /// Out of memory when the shape overflows.
    #[track_caller]
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType, device: Device) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        Array::full(value, dtype, shape.into(), device).map(Tensor::from_array).map_err(|e| e.in_op("full", at))
    }

    /// Zeros of the same shape, dtype and device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn zeros_like(&self) -> Result<Tensor> {
        Self::full(self.shape(), 0.0, self.dtype(), self.device())
    }

    /// Ones of the same shape, dtype and device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn ones_like(&self) -> Result<Tensor> {
        Self::full(self.shape(), 1.0, self.dtype(), self.device())
    }
}
