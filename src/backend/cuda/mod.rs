//! The CUDA backend: one queue per device, recycled memory, kernels found at run time, cuBLASLt.
//!
//! Always compiled in and never linked: on a machine without driver or GPU, opening a device is an `Err`. The same code
//! runs on two drivers: a GPU (`real`) and, with the feature `emulator`, the host (`emulated`).

pub(crate) mod attention;
mod blaslt;
mod buffer;
mod check;
mod context;
pub(crate) mod copy;
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
pub(crate) mod gemm;
pub(crate) mod index;
pub(crate) mod kernels;
pub(crate) mod launch;
pub(crate) mod lines;
pub(crate) mod load;
pub(crate) mod loss;
pub(crate) mod map;
pub(crate) mod norm;
mod operand;
pub(crate) mod optim;
mod real;
pub(crate) mod remap;
pub(crate) mod rope;
pub(crate) mod sort;

pub use buffer::DeviceMemory;
pub use check::{CompiledModule, compile_kernels, has_compiler};
pub use driver::Properties;
#[cfg(feature = "emulator")]
pub use emulated::set_emulated_order;
pub use lines::GroupKernels;
pub use map::{BinaryKernels, UnaryKernels};
pub use operand::{In, Out};

pub(crate) use buffer::Buffer;
pub(crate) use context::Context;
pub(crate) use operand::Dense;

use super::Device;
use crate::error::Result;

/// What the device says about itself.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn properties(device: Device) -> Result<Properties> {
    Ok(Context::of(device)?.properties().clone())
}

/// Memory held on the device at this moment.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn memory_stats(device: Device) -> Result<DeviceMemory> {
    Ok(Context::of(device)?.memory())
}

/// How many kernels and matrix products were queued on the device so far.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn launches(device: Device) -> Result<usize> {
    Ok(Context::of(device)?.launches())
}

/// Gives all memory that waits for reuse back to the device.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn release_cached_memory(device: Device) -> Result<()> {
    Context::of(device)?.release()
}

/// Waits until everything queued on the device is done; errors of kernels surface here.
///
/// # Errors
/// Device error when it is no CUDA device, cannot be opened, or a kernel failed.
pub fn synchronize(device: Device) -> Result<()> {
    Context::of(device)?.synchronize()
}

/// The error of an op that computes on the CPU only.
pub fn no_kernel(op: &'static str) -> crate::Error {
    crate::Error::device_unavailable(format!("{op} has no CUDA kernel: move its operands to the CPU with to_device()"))
}
