//! Storage and launches: the only part of the crate that knows devices, and the only one with `unsafe`. Layer L1.
//!
//! It knows no gradient and no op. `Storage` is the interface: an op passes its operands to the kernel of the device that
//! holds them.

pub(crate) mod attention;
pub(crate) mod conv;
pub mod cpu;
pub mod cuda;
mod device;
pub(crate) mod freed;
pub(crate) mod resample;

pub use device::Device;

use crate::dtype::DType;
use crate::error::Result;

impl Device {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// Device error that says what is missing: the driver, the GPU, or a capability of it.
    pub fn cuda(ordinal: u32) -> Result<Self> {
        cuda::Context::of(Device::Cuda(ordinal))?;
        Ok(Device::Cuda(ordinal))
    }

    /// The CUDA backend's emulated device, for tests.
    ///
    /// # Errors
    /// Device error when the crate was built without its feature `emulator`.
    pub fn cuda_emulated() -> Result<Self> {
        cuda::Context::of(Device::CudaEmulated)?;
        Ok(Device::CudaEmulated)
    }

    /// The first GPU when it can be used, else the CPU; why not is an event of `tracing` (level info), and the error of
    /// [`Device::cuda`].
    pub fn best() -> Self {
        Self::cuda(0).unwrap_or_else(|e| {
            tracing::info!("computing on the CPU: {e}");
            Device::Cpu
        })
    }
}

/// Memory of one device.
#[derive(Debug)]
pub(crate) enum Storage {
    Cpu(cpu::Buffer),
    Cuda(cuda::Buffer),
}

impl Storage {
    /// Memory for `len` elements. Its content is unspecified (stale or zero; NaN when poisoning is on).
    pub(crate) fn alloc(device: Device, dtype: DType, len: usize) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Storage::Cpu(cpu::Buffer::alloc(dtype, len)?)),
            _ => Ok(Storage::Cuda(cuda::Context::of(device)?.alloc(dtype, len)?)),
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(b) => b.context().device(),
        }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Storage::Cpu(b) => b.len(),
            Storage::Cuda(b) => b.len(),
        }
    }
}
