//! What a launch is made of: a module of kernels, an entry point of it, and how it is spread over the device.

#[cfg(feature = "emulator")]
use std::ffi::c_void;

/// How a kernel is spread over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads per block, along x.
    pub threads: u32,
    /// Dynamic shared memory per block, in bytes.
    pub shared: u32,
}

impl Grid {
    /// Enough blocks of `threads` for one thread per item, at most `cap`: kernels stride over the rest.
    pub(crate) fn over(items: usize, threads: u32, cap: u32) -> Self {
        let blocks = items.div_ceil(threads as usize).clamp(1, cap as usize) as u32;
        Grid { blocks: [blocks, 1, 1], threads, shared: 0 }
    }

    /// One block per row, at most `cap`: kernels stride over the rest.
    pub(crate) fn rows(rows: usize, threads: u32, cap: u32) -> Self {
        Grid { blocks: [rows.clamp(1, cap as usize) as u32, 1, 1], threads, shared: 0 }
    }
}

/// One file of kernels: its self-contained source, and its binaries when a compiler was there at build time.
#[derive(Debug)]
pub(crate) struct Module {
    /// The name of its file, and its first type where kernels have several.
    pub stem: &'static str,
    /// The text that NVRTC compiles, in pieces: modules share headers, and most share their bodies with the same kernels of other types.
    pub source: &'static [&'static str],
    /// Whether it is written for the instructions of Hopper that no later architecture has.
    pub hopper: bool,
    /// Machine code of the architectures that the build named.
    pub fatbin: Option<&'static [u8]>,
}

/// Runs a kernel on the host; the parameters are those of `cuLaunchKernel`. Zero is success.
#[cfg(feature = "emulator")]
pub(crate) type EmulatedKernel = unsafe extern "C" fn(grid_block: *const u32, shared: usize, order: u32, params: *mut *mut c_void) -> i32;

/// An entry point.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Index of its module.
    pub module: usize,
    /// Its symbol.
    pub name: &'static str,
    /// Most threads of a block, where the source has LAUNCH_BOUNDS.
    #[cfg_attr(not(feature = "emulator"), expect(dead_code, reason = "a GPU knows it from the machine code"))]
    pub bounds: Option<u32>,
    /// The same kernel compiled for the host.
    #[cfg(feature = "emulator")]
    pub emulated: EmulatedKernel,
}
