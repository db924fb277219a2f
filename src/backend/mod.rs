//! Storage and launches: the only part of the crate that knows devices, and the only one with `unsafe`. Layer L1.
//!
//! It knows no gradient and no op. `Storage` is the seam: an op hands its operands to the kernel of the device that
//! holds them.

pub(crate) mod attention;
pub mod cpu;
pub mod cuda;
pub(crate) mod freed;

use crate::dtype::DType;
use crate::error::Result;
use std::fmt;

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The host's processor and memory; always there.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number; [`Device::cuda`] opens it and says what is missing if it cannot.
    Cuda(u32),
    /// The CUDA backend on the host, for tests: the same kernels, run thread by thread. Needs the feature `emulator`.
    CudaEmulated,
}

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

    /// Whether kernels of the CUDA backend run there.
    pub fn is_cuda(self) -> bool {
        matches!(self, Device::Cuda(_) | Device::CudaEmulated)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(n) => f.pad(&format!("cuda:{n}")),
            Device::CudaEmulated => f.pad("cuda-emulated"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = crate::Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "cuda-emulated" => Ok(Device::CudaEmulated),
            _ => match s.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(Device::Cuda(n)),
                None => Err(crate::Error::argument(format!("unknown device `{s}`: expected cpu, cuda, cuda:N or cuda-emulated"))),
            },
        }
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
