//! The CUDA backend without a GPU: memory is the host's, kernels are the same source compiled by the host's compiler and
//! run thread by thread, products are the CPU backend's. For tests: it is slow, and it finds what a GPU would hide
//! (reads out of bounds, missing barriers, memory that nothing wrote).

use super::{Driver, Properties, Recording};
use crate::backend::cpu::gemm::{Half, Mat, gemm, gemm_half};
use crate::backend::cuda::abi::{Gemm, Grid, Kernel, Matrices, SYMBOLS};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn cuemu_alloc(bytes: usize) -> *mut c_void;
    fn cuemu_free(ptr: *mut c_void, bytes: usize);
    fn cuemu_last_error() -> *const c_char;
}

static ORDER: AtomicU32 = AtomicU32::new(0);

/// In which order the emulator starts the threads of a block and completes their asynchronous copies: 0 forwards and as
/// late as allowed, 1 backwards and at once, anything else a random order from that seed. A correct kernel gives the
/// same result under all of them.
pub fn set_emulated_order(order: u32) {
    ORDER.store(order, Relaxed);
}

/// A device of its own size: pages are taken as they are written, and a host that runs out of them ends the process.
const MEMORY: usize = 4 << 30;

/// Host memory that pretends to be a device.
#[derive(Debug)]
pub(crate) struct Emulated {
    properties: Properties,
    /// Bytes in blocks.
    used: AtomicUsize,
    /// What was enqueued since a capture began.
    noted: Mutex<Option<Vec<Work>>>,
}

/// One piece of work in the stream.
#[derive(Clone, Debug)]
enum Work {
    Fill { dst: u64, bytes: usize, byte: u8 },
    Put { dst: u64, bytes: usize, bits: u64 },
    Kernel { kernel: &'static Kernel, grid: Grid, arguments: Vec<Argument> },
    Gemm(Gemm),
}

/// A parameter's bytes, in words so that any type is aligned.
type Argument = Vec<u64>;

impl Work {
    /// Does it.
    ///
    /// # Safety
    /// As the functions of [`Driver`] that enqueue it.
    unsafe fn run(&self) -> Result<()> {
        // SAFETY: the caller vouches for the ranges.
        unsafe {
            match self {
                &Work::Fill { dst, bytes, byte } => std::ptr::write_bytes(dst as *mut u8, byte, bytes),
                &Work::Put { dst, bytes, bits } => std::ptr::copy_nonoverlapping(bits.to_le_bytes().as_ptr(), dst as *mut u8, bytes),
                Work::Kernel { kernel, grid, arguments } => {
                    let mut params: Vec<*mut c_void> = arguments.iter().map(|a| a.as_ptr().cast_mut().cast()).collect();
                    return run_kernel(kernel, *grid, &mut params);
                }
                Work::Gemm(g) => return multiply(g),
            }
        }
        Ok(())
    }
}

/// A captured step.
#[derive(Debug)]
struct Noted(Vec<Work>);

impl Recording for Noted {
    unsafe fn replay(&self) -> Result<()> {
        // SAFETY: the caller vouches for the memory.
        self.0.iter().try_for_each(|work| unsafe { work.run() })
    }
}

/// # Safety
/// As [`Driver::launch`].
unsafe fn run_kernel(kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void]) -> Result<()> {
    let [x, y, z] = grid.blocks;
    let shape = [x, y, z, grid.threads, 1, 1];
    LAUNCHED.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel.name);
    // SAFETY: passed on.
    let code = unsafe { (kernel.emulated)(shape.as_ptr(), grid.shared as usize, ORDER.load(Relaxed), params.as_mut_ptr()) };
    if code == 0 { Ok(()) } else { Err(last_error("kernel")) }
}

/// Kernels that have run.
static LAUNCHED: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Kernels (by symbol) that have not run on an emulated device in this process: what the tests have not tried.
#[doc(hidden)]
pub fn idle_kernels() -> Vec<&'static str> {
    let launched = LAUNCHED.lock().unwrap_or_else(PoisonError::into_inner);
    SYMBOLS.iter().copied().filter(|s| !launched.contains(s)).collect()
}

/// # Safety
/// As [`Driver::gemm`].
unsafe fn multiply(g: &Gemm) -> Result<()> {
    // SAFETY: passed on.
    unsafe {
        match g.dtype {
            DType::F64 => run::<f64>(g, gemm),
            DType::F32 => run::<f32>(g, gemm),
            DType::BF16 => run_half::<bf16>(g),
            DType::F16 => run_half::<f16>(g),
            d => Err(Error::dtype(format!("no matrix product of {d}"))),
        }
    }
}

impl Emulated {
    pub(crate) fn new() -> Self {
        let properties = Properties { name: "emulated device".into(), capability: (9, 0), multiprocessors: 4, memory: MEMORY, driver: 0 };
        Emulated { properties, used: AtomicUsize::new(0), noted: Mutex::default() }
    }

    fn noted(&self) -> MutexGuard<'_, Option<Vec<Work>>> {
        // A list is never left half changed.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work, or captures it.
    ///
    /// # Safety
    /// As the functions of [`Driver`] that enqueue it.
    unsafe fn queue(&self, work: Work) -> Result<()> {
        if let Some(list) = &mut *self.noted() {
            list.push(work);
            return Ok(());
        }
        // SAFETY: passed on.
        unsafe { work.run() }
    }
}

fn last_error(what: &str) -> Error {
    // SAFETY: the emulator returns a NUL-terminated text that lives until this thread's next launch.
    let text = unsafe { CStr::from_ptr(cuemu_last_error()) }.to_string_lossy();
    Error::device_unavailable(format!("{what}: {text}"))
}

// SAFETY: `cuemu_alloc` maps fresh pages for every block, whose end is aligned to 16 bytes against a guard page.
unsafe impl Driver for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let fits = |used: usize| used.checked_add(bytes).filter(|&n| n <= MEMORY);
        if let Err(used) = self.used.fetch_update(Relaxed, Relaxed, fits) {
            return Err(Error::out_of_memory(format!(
                "the emulated device has {MEMORY} bytes, of which {used} are taken; {bytes} do not fit"
            )));
        }
        // SAFETY: a plain allocation.
        let p = unsafe { cuemu_alloc(bytes) };
        if p.is_null() {
            self.used.fetch_sub(bytes, Relaxed);
            return Err(Error::out_of_memory(format!("the emulated device cannot map {bytes} bytes")));
        }
        Ok(p as u64)
    }

    unsafe fn free(&self, addr: u64, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
        // SAFETY: by contract the block came from `alloc` with this size.
        unsafe { cuemu_free(addr as *mut c_void, bytes) };
    }

    unsafe fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst as *mut u8, src.len()) };
        Ok(())
    }

    unsafe fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    unsafe fn fill(&self, dst: u64, bytes: usize, byte: u8) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.queue(Work::Fill { dst, bytes, byte }) }
    }

    unsafe fn put(&self, dst: u64, bytes: usize, bits: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.queue(Work::Put { dst, bytes, bits }) }
    }

    unsafe fn launch(&self, kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void], sizes: &[usize]) -> Result<()> {
        if self.noted().is_none() {
            // SAFETY: passed on.
            return unsafe { run_kernel(kernel, grid, params) };
        }
        let copy = |(&p, &size): (&*mut c_void, &usize)| {
            let mut words = vec![0u64; size.div_ceil(8)]; // the size of one argument of a kernel
            // SAFETY: by contract the pointer is to a value of this size.
            unsafe { std::ptr::copy_nonoverlapping(p.cast::<u8>().cast_const(), words.as_mut_ptr().cast(), size) };
            words
        };
        let arguments = params.iter().zip(sizes).map(copy).collect();
        // SAFETY: passed on.
        unsafe { self.queue(Work::Kernel { kernel, grid, arguments }) }
    }

    unsafe fn gemm(&self, g: &Gemm) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.queue(Work::Gemm(*g)) }
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn begin_capture(&self) -> Result<()> {
        *self.noted() = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Recording>> {
        match self.noted().take() {
            Some(list) => Ok(Box::new(Noted(list))),
            None => Err(Error::device_unavailable("nothing is being captured")),
        }
    }
}

/// The elements of one matrix.
///
/// # Safety
/// As [`Driver::gemm`].
unsafe fn matrix<'a, T: Element>(m: &Matrices, batch: usize, rows: usize, cols: usize) -> Mat<'a, T> {
    let len = (rows - 1) * m.row_stride + (cols - 1) * m.col_stride + 1;
    // SAFETY: the caller vouches for the operand.
    let data = unsafe { std::slice::from_raw_parts((m.addr as *const T).add(batch * m.batch_stride), len) };
    Mat::new(data, rows, cols, m.row_stride, m.col_stride)
}

/// # Safety
/// As [`Driver::gemm`].
unsafe fn run<T: Element + std::ops::AddAssign>(
    g: &Gemm,
    product: impl Fn(T, Mat<T>, Mat<T>, T, &mut [T], usize) -> Result<()>,
) -> Result<()> {
    for i in 0..g.batch {
        // SAFETY: the caller vouches for the operands; each result is written once.
        let (a, b, c) = unsafe {
            let c = std::slice::from_raw_parts_mut((g.c as *mut T).add(i * g.m * g.n), g.m * g.n);
            (matrix::<T>(&g.a, i, g.m, g.k), matrix::<T>(&g.b, i, g.k, g.n), c)
        };
        product(T::from_f64(1.0), a, b, T::from_f64(f64::from(u8::from(g.accumulate))), c, g.n)?;
        if let Some(bias) = g.bias {
            // SAFETY: the caller vouches for the operand.
            let bias = unsafe { std::slice::from_raw_parts(bias as *const T, g.n) };
            for row in c.chunks_mut(g.n) {
                for (c, &b) in row.iter_mut().zip(bias) {
                    *c += b;
                }
            }
        }
    }
    Ok(())
}

/// Half types: product and bias in f32, rounded once.
///
/// # Safety
/// As [`Driver::gemm`].
unsafe fn run_half<T: Half + Element>(g: &Gemm) -> Result<()> {
    for i in 0..g.batch {
        // SAFETY: the caller vouches for the operands; each result is written once.
        let (a, b, c) = unsafe {
            let c = std::slice::from_raw_parts_mut((g.c as *mut T).add(i * g.m * g.n), g.m * g.n);
            (matrix::<T>(&g.a, i, g.m, g.k), matrix::<T>(&g.b, i, g.k, g.n), c)
        };
        if let Some(bias) = g.bias {
            // C holds the bias before the product, which adds to it in f32.
            // SAFETY: the caller vouches for the operand.
            let bias = unsafe { std::slice::from_raw_parts(bias as *const T, g.n) };
            c.chunks_mut(g.n).for_each(|row| row.copy_from_slice(bias));
        }
        gemm_half(1.0, a, b, if g.accumulate || g.bias.is_some() { 1.0 } else { 0.0 }, c, g.n)?;
    }
    Ok(())
}
