//! How models are loaded.

use crate::backend::Device;
use crate::dtype::DType;
use std::fmt;

/// How to load; the default is the file's own dtype (`f32` of quantised files) on the CPU.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Of all weights; without it, that of the file's matrices.
    pub dtype: Option<DType>,
    /// Matrices of Llama's family that a GGUF file has in Q8_0 or Q4_0 stay so: a quarter or an eighth of the memory of `f32`. They are frozen.
    pub packed: bool,
    /// Where the weights go, tensor by tensor.
    pub device: Device,
    /// Called after each tensor with how many are loaded, and of how many.
    pub progress: Option<&'a mut dyn FnMut(usize, usize)>,
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions").field("dtype", &self.dtype).field("device", &self.device).finish_non_exhaustive()
    }
}

impl LoadOptions<'_> {
    /// Weights as this dtype.
    pub fn dtype(dtype: DType) -> Self {
        LoadOptions { dtype: Some(dtype), ..LoadOptions::default() }
    }
}
