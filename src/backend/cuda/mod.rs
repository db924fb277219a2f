//! The CUDA backend: one stream per device, recycled memory, kernels found at run time, cuBLASLt.
//!
//! Always compiled in and never linked: on a machine without driver or GPU, opening a device is an `Err`. The same code
//! runs on two drivers: a GPU and, with the feature `emulator`, the host.
//!
//! Five folders, each using only those before it: `abi` (what host and kernels agree on), `driver` (the trait of a device, and what
//! implements it), `device` (a device and its stream), `launch` (typed operands and generated launchers), `ops` (what an op's `cuda` calls).

mod abi;
mod device;
mod driver;
mod launch;
mod ops;

pub use device::{DeviceMemory, OpMemory};
pub use driver::{CompiledModule, Properties, compile_kernels, compile_one_for, has_compiler};
#[cfg(feature = "emulator")]
pub use driver::{emulated_allocations, idle_kernels, refuse_emulated_allocations, refuse_emulated_epilogues, set_emulated_order};
pub use launch::{In, Out};
pub use ops::elementwise::{BinaryKernels, GatedKernels, UnaryKernels};
pub use ops::reduce::GroupKernels;

pub(crate) use abi::bits;
pub(crate) use device::{Buffer, Context, Dst, Running, Src, capture};
pub(crate) use launch::{Dense, copy, grid, kernels};
pub(crate) use ops::{attention, conv, index, linalg, loss, norm, optim, reduce, shape};

use super::Device;
use crate::error::Result;
use std::collections::BTreeMap;
use std::panic::Location;

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

/// Sets [`DeviceMemory::peak`] to what is held now, so that the peaks of two phases can be compared. How much freed memory is kept
/// follows the peak.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn reset_peak_memory_stats(device: Device) -> Result<()> {
    Context::of(device)?.pool().reset_peak();
    Ok(())
}

/// Starts, or ends, the record of what each op takes of the device's memory; what was recorded before is forgotten. For finding
/// out where memory goes: it costs a look into a table for each block.
///
/// ```
/// # use cotangent::{Device, Result, Tensor, backend::cuda};
/// # fn main() -> Result<()> {
/// # let Ok(device) = Device::cuda_emulated() else { return Ok(()) };
/// cuda::record_memory_by_op(device, true)?;
/// let x = Tensor::from_slice(&[1f32; 100], [100])?.to_device(device)?.exp()?;
/// assert_eq!(cuda::memory_by_op(device)?["exp"].blocks, 1);
/// # drop(x);
/// # cuda::record_memory_by_op(device, false)
/// # }
/// ```
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn record_memory_by_op(device: Device, on: bool) -> Result<()> {
    Context::of(device)?.pool().record(on);
    Ok(())
}

/// What each op took since [`record_memory_by_op`] was called, by name; empty when it was not.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn memory_by_op(device: Device) -> Result<BTreeMap<&'static str, OpMemory>> {
    Ok(Context::of(device)?.pool().by_op())
}

/// Whether every launch is waited for, so that an error of a kernel carries the op that launched it and the caller's line:
/// what `COTANGENT_CUDA_BLOCKING=1` turns on from the start.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn set_blocking(device: Device, on: bool) -> Result<()> {
    Context::of(device)?.set_blocking(on);
    Ok(())
}

/// Seconds that the device takes for the work that `f` enqueues, by its own clock (CUDA events); waits for it. The emulated device
/// gives the time of the host.
///
/// # Errors
/// What `f` returns; device error when it is no CUDA device, cannot be opened, or a kernel failed.
#[track_caller]
pub fn time(device: Device, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let at = Location::caller();
    Context::of(device)?.time(&mut f).map_err(|e| e.in_op("time", at))
}

/// How many kernels and matrix products this thread has enqueued so far, on any device.
pub fn launches() -> usize {
    device::launches()
}

/// How many groups of 16 rows of attention the tensor cores have left to the plain kernels since the device was opened, because a
/// result was not finite: infinities in the operands, or numbers that overflow f16. Such rows are right, but take tens of times as
/// long. Waits for the device.
///
/// # Errors
/// Device error when it is no CUDA device, cannot be opened, or a kernel failed; capture error inside a captured step.
#[track_caller]
pub fn rows_left_out(device: Device) -> Result<u64> {
    let at = Location::caller();
    Context::of(device)?.count_left_out().map_err(|e| e.in_op("rows_left_out", at))
}

/// Gives all memory that waits for reuse back to the device.
///
/// # Errors
/// Device error when it is no CUDA device or cannot be opened.
pub fn release_cached_memory(device: Device) -> Result<()> {
    Context::of(device)?.release()
}

/// Waits until everything enqueued on the device is done; errors of kernels surface here.
///
/// # Errors
/// Device error when it is no CUDA device, cannot be opened, or a kernel failed; capture error inside a captured step.
#[track_caller]
pub fn synchronize(device: Device) -> Result<()> {
    let at = Location::caller();
    Context::of(device)?.synchronize().map_err(|e| e.in_op("synchronize", at))
}

/// The error of an op that computes on the CPU only.
pub fn no_kernel(op: &'static str) -> crate::Error {
    crate::Error::device_unavailable(format!("{op} has no CUDA kernel: move its operands to the CPU with to_device()"))
}
