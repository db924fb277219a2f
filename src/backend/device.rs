//! Where tensors live, by name.

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
