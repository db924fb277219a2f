//! Storage and launches: the only part of the crate that knows devices, and the only one with `unsafe`. Layer L1.
//!
//! It knows no gradient and no op. `Storage` is the seam: an op hands its operands to the kernel of the device that
//! holds them.

pub mod cpu;

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
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.pad("cpu"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = crate::Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cpu" => Ok(Device::Cpu),
            _ => Err(crate::Error::device_unavailable(format!("unknown device `{s}`: this version of the crate computes on `cpu`"))),
        }
    }
}

/// Memory of one device.
#[derive(Debug)]
pub(crate) enum Storage {
    Cpu(cpu::Buffer),
}

impl Storage {
    /// Memory for `len` elements. Its content is unspecified (stale or zero; NaN when poisoning is on).
    pub(crate) fn alloc(device: Device, dtype: DType, len: usize) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Storage::Cpu(cpu::Buffer::alloc(dtype, len)?)),
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
        }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Storage::Cpu(b) => b.len(),
        }
    }
}
