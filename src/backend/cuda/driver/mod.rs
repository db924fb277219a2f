//! The trait below the CUDA backend: what a device must do for it. The driver library does it on a GPU (`gpu_driver`, with cuBLASLt
//! and the run-time compiler), the emulator on the host (`emulated`); all above this line is the same code.

mod blaslt;
mod check;
#[cfg(feature = "emulator")]
mod emulated;
mod gpu_driver;
mod launch_limits;
mod load;
mod plan;
#[cfg(feature = "emulator")]
mod rules;

pub use check::{CompiledModule, compile_kernels, compile_one_for, has_compiler};
#[cfg(feature = "emulator")]
pub(crate) use emulated::Emulated;
#[cfg(feature = "emulator")]
pub use emulated::{emulated_allocations, idle_kernels, refuse_emulated_allocations, refuse_emulated_epilogues, set_emulated_order};
pub(crate) use gpu_driver::GpuDriver;

use crate::backend::cuda::abi::{Gemm, Grid, Kernel};
use crate::error::Result;
use std::any::Any;
use std::ffi::c_void;

/// What follows the message of an error after which a device answers every call with an error: CUDA keeps it for the context, and
/// only the end of the process ends the context.
const RESTART: &str = "this process cannot use the device any more: restart it";

/// Whether a library of CUDA's can be opened. It stays open: the bindings' own check opens and closes it, and the first use would load
/// it again.
fn is_present(stem: &str, check: impl FnOnce() -> bool) -> bool {
    #[cfg(unix)]
    for ending in ["so", "so.13", "so.12", "so.1"] {
        let Ok(name) = std::ffi::CString::new(format!("lib{stem}.{ending}")) else { continue };
        // SAFETY: the initialisers of CUDA's libraries ask for nothing, and the name ends with NUL.
        if !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) }.is_null() {
            break;
        }
    }
    check()
}

/// A point in the work of a device.
pub(crate) type Mark = Box<dyn Any>;

/// What a device says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Marketing name.
    pub name: String,
    /// Compute capability: 9, 0 for Hopper.
    pub capability: (u32, u32),
    /// Streaming multiprocessors: kernels size their grids by it.
    pub multiprocessors: u32,
    /// Device memory in bytes.
    pub memory: usize,
    /// CUDA version of the driver: 13000 is 13.0.
    pub driver: u32,
}

/// One device and its stream of ordered work. Addresses are device addresses; sizes are bytes.
///
/// # Safety
/// Implementors are trusted by safe code: `alloc` must return memory of at least the size asked for, aligned to 16
/// bytes, that nothing else uses until `free`.
pub(crate) unsafe trait Driver: Send + Sync + std::panic::RefUnwindSafe {
    fn properties(&self) -> &Properties;
    /// Fresh memory. Out of memory is an `Err` that leaves the device usable.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Gives memory back once all enqueued work is done.
    ///
    /// # Safety
    /// `addr` came from `alloc` with this size and is not used again.
    unsafe fn free(&self, addr: u64, bytes: usize);
    /// Copies from the host; the slice may be reused on return.
    ///
    /// # Safety
    /// The range lies in one allocation that the caller may write.
    unsafe fn upload(&self, dst: u64, src: &[u8]) -> Result<()>;
    /// Waits for the stream, then copies to the host.
    ///
    /// # Safety
    /// The range lies in one allocation.
    unsafe fn download(&self, dst: &mut [u8], src: u64) -> Result<()>;
    /// Enqueues a fill with one byte.
    ///
    /// # Safety
    /// The range lies in one allocation that the caller may write.
    unsafe fn fill(&self, dst: u64, bytes: usize, byte: u8) -> Result<()>;
    /// Enqueues a write of one element of 1, 2, 4 or 8 bytes, whose value is known now.
    ///
    /// # Safety
    /// The element lies in one allocation that the caller may write.
    unsafe fn put(&self, dst: u64, bytes: usize, bits: u64) -> Result<()>;
    /// Enqueues a kernel, whose parameters are of these sizes.
    ///
    /// # Safety
    /// `params` point to values of the kernel's parameter types, and the pointers among them to memory of the extent
    /// the kernel touches.
    unsafe fn launch(&self, kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void], sizes: &[usize]) -> Result<()>;
    /// Whether the device adds the bias of this product itself. Else the caller does, before the product.
    fn adds_bias(&self, gemm: &Gemm) -> Result<bool>;
    /// Enqueues a matrix product.
    ///
    /// # Safety
    /// The operands lie in allocations, and the caller may write the result.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;
    /// Waits for the stream; an error of any kernel since the last wait surfaces here.
    fn synchronize(&self) -> Result<()>;
    /// Marks this point of the work. Not inside of a capture, where it would never be passed.
    fn mark(&self) -> Result<Mark>;
    /// Waits until the device has passed the second mark; seconds from the first to it, by the device's own clock.
    fn between(&self, start: &Mark, end: &Mark) -> Result<f64>;
    /// From now on work is captured instead of done, until [`Driver::end_capture`]. Copies from and to the host are not
    /// allowed meanwhile; one caller at a time.
    fn begin_capture(&self) -> Result<()>;
    /// Ends the capture: what was captured, ready to run. Where memory is missing for that, `room` is called and it is tried once
    /// more. An `Err` leaves the device usable, and what was captured is lost.
    fn end_capture(&self, room: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>>;
}

/// A sequence of work that a device has captured.
pub(crate) trait Recording: Send + Sync + std::panic::RefUnwindSafe {
    /// Enqueues all of it.
    ///
    /// # Safety
    /// All memory that the work refers to is still allocated, and the caller may write what it writes.
    unsafe fn replay(&self) -> Result<()>;
}
