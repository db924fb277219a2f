//! What the generated launchers are made of: kernels, grids, typed device pointers, and the structs passed by value.

use super::buffer::Buffer;
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::layout::{Layout, collapse};
#[cfg(feature = "emulator")]
use std::ffi::c_void;
use std::marker::PhantomData;

/// Most axes a kernel can address. Axes that lie one behind the other are merged before, so real views stay below it.
pub(crate) const MAX_RANK: usize = 8;

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
    /// File name without extension.
    pub stem: &'static str,
    /// The text that NVRTC compiles: no includes.
    pub source: &'static str,
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
    /// The same kernel compiled for the host.
    #[cfg(feature = "emulator")]
    pub emulated: EmulatedKernel,
}

/// Device memory that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Src<'a> {
    addr: u64,
    dtype: DType,
    life: PhantomData<&'a Buffer>,
}

impl<'a> Src<'a> {
    /// From element `offset` of a buffer on.
    pub(crate) fn new(buffer: &'a Buffer, offset: usize) -> Self {
        Src { addr: buffer.addr() + (offset * buffer.dtype().size()) as u64, dtype: buffer.dtype(), life: PhantomData }
    }

    /// Memory that a captured step reserved for itself.
    pub(crate) fn at(addr: u64, dtype: DType) -> Self {
        Src { addr, dtype, life: PhantomData }
    }

    /// The same memory from a later element on.
    pub(crate) fn offset(self, elements: usize) -> Self {
        Src { addr: self.addr + (elements * self.dtype.size()) as u64, ..self }
    }

    /// The device address.
    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }

    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}

/// Device memory that a kernel writes.
#[derive(Debug)]
pub(crate) struct Dst<'a> {
    addr: u64,
    dtype: DType,
    life: PhantomData<&'a mut Buffer>,
}

impl<'a> Dst<'a> {
    /// A whole buffer.
    pub(crate) fn new(buffer: &'a mut Buffer) -> Self {
        Dst { addr: buffer.addr(), dtype: buffer.dtype(), life: PhantomData }
    }

    /// Memory that a captured step reserved for itself.
    pub(super) fn at(addr: u64, dtype: DType) -> Self {
        Dst { addr, dtype, life: PhantomData }
    }

    /// The same memory from a later element on.
    pub(crate) fn offset(&self, elements: usize) -> Dst<'_> {
        Dst { addr: self.addr + (elements * self.dtype.size()) as u64, dtype: self.dtype, life: PhantomData }
    }

    /// The device address.
    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }

    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}

/// How a kernel finds element `i` (in row-major order) of an operand: `struct View` of kernels/common.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Number of axes; 0 reads the one element every time.
    pub rank: i32,
    /// Extents, outermost first.
    pub shape: [i64; MAX_RANK],
    /// Elements to step per unit of each axis.
    pub stride: [i64; MAX_RANK],
}

impl View {
    /// The layout's axes without its offset, merged where they lie one behind the other.
    ///
    /// # Errors
    /// Shape error when more than [`MAX_RANK`] axes remain.
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        let (shape, strides) = collapse(layout.shape(), &[layout.strides()]);
        if shape.len() > MAX_RANK {
            bail!(
                shape,
                "a view with {} separate axes: kernels address at most {MAX_RANK}; call contiguous() on fewer axes first",
                shape.len()
            );
        }
        let mut v = View { rank: shape.len() as i32, shape: [1; MAX_RANK], stride: [0; MAX_RANK] };
        for (i, (&d, &s)) in shape.iter().zip(&strides[0]).enumerate() {
            v.shape[i] = d as i64;
            v.stride[i] = s as i64;
        }
        Ok(v)
    }
}

/// Parameters of an elementwise op, in the kernels' own order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Params {
    /// At most four numbers.
    pub p: [f64; 4],
}
