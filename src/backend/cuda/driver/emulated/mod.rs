//! The CUDA backend without a GPU: memory is the host's, kernels are the same source compiled by the host's compiler and
//! run thread by thread, products are the CPU backend's. For tests: it is slow, and it finds what a GPU would hide
//! (reads out of bounds, missing barriers, memory that nothing wrote). It refuses what a GPU refuses: products against cuBLASLt's
//! rules (`rules`), launches beyond a GPU's limits (`launch_limits`), copies, waits and frees inside of a capture, everything after a
//! fault, and allocations that a test chooses.

mod product;
#[cfg(test)]
mod tests;

use super::launch_limits::{OptIns, UNASKED, refusals};
use super::plan::{Addresses, Plan};
use super::{Driver, Mark, Properties, RESTART, Recording, rules};
use crate::backend::cuda::abi::{Gemm, Grid, Kernel, MODULES, Plus, SYMBOLS};
use crate::dtype::DType;
use crate::error::{Error, Result};
use product::multiply;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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

/// What was allocated since the counter was set, and which allocations are refused: the first, and how many.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static REFUSED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static NO_EPILOGUE: AtomicBool = AtomicBool::new(false);

/// From now on emulated devices refuse the `first`-th allocation of their driver and the `count - 1` after it, as a GPU that is full
/// does; 0 refuses none. A GPU's driver allocates not only memory that is asked for: also for a module that is loaded, for the first
/// matrix product, and for a graph.
#[doc(hidden)]
pub fn refuse_emulated_allocations(first: u64, count: u64) {
    ALLOCATIONS.store(0, Relaxed);
    REFUSED[0].store(first, Relaxed);
    REFUSED[1].store(count, Relaxed);
}

/// Allocations of emulated devices' drivers since the last call of [`refuse_emulated_allocations`].
#[doc(hidden)]
pub fn emulated_allocations() -> u64 {
    ALLOCATIONS.load(Relaxed)
}

/// Whether emulated devices have no epilogue that adds a bias, as cuBLASLt for some shapes.
#[doc(hidden)]
pub fn refuse_emulated_epilogues(refuse: bool) {
    NO_EPILOGUE.store(refuse, Relaxed);
}

/// One allocation of the driver.
fn take(what: impl std::fmt::Display) -> Result<()> {
    let n = ALLOCATIONS.fetch_add(1, Relaxed) + 1;
    let [first, count] = [0, 1].map(|i| REFUSED[i].load(Relaxed));
    if first > 0 && n >= first && n - first < count {
        return Err(Error::out_of_memory(format!("the emulated device refuses allocation {n}, {what}")));
    }
    Ok(())
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
    noted: Mutex<Noted>,
    fault: Fault,
    /// Modules that are loaded.
    loaded: Mutex<BTreeSet<usize>>,
    /// Whether the library of products is open.
    blas: AtomicBool,
    opt_ins: Mutex<OptIns>,
    /// Dynamic shared memory that functions may have.
    shared: Mutex<HashMap<&'static str, u32>>,
}

/// The state of a capture.
#[derive(Debug, Default)]
enum Noted {
    #[default]
    Nothing,
    Steps(Vec<Work>),
    /// Something was called that no capture allows.
    Broken(&'static str),
}

/// What went wrong in a kernel: from then on every call on the device is the same error.
#[derive(Clone, Debug, Default)]
struct Fault(Arc<Mutex<Option<String>>>);

impl Fault {
    fn check(&self) -> Result<()> {
        match &*lock(&self.0) {
            Some(why) => Err(Error::device_unavailable(format!("{why}; {RESTART}"))),
            None => Ok(()),
        }
    }

    /// Runs work, and keeps a fault of it.
    ///
    /// # Safety
    /// As [`Work::run`].
    unsafe fn run(&self, work: &Work) -> Result<()> {
        self.check()?;
        // SAFETY: passed on.
        match unsafe { work.run() } {
            Ok(()) => Ok(()),
            Err(Stop::Refused(e)) => Err(e),
            Err(Stop::Fault(why)) => {
                *lock(&self.0) = Some(why);
                self.check()
            }
        }
    }
}

fn lock<T>(x: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half changed.
    x.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why work did not run to its end.
enum Stop {
    /// It was not begun; the device goes on.
    Refused(Error),
    /// A kernel failed.
    Fault(String),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Refused(e)
    }
}

/// One piece of work in the stream.
#[derive(Clone, Debug)]
enum Work {
    Fill { dst: u64, bytes: usize, byte: u8 },
    Put { dst: u64, bytes: usize, bits: u64 },
    Kernel { kernel: &'static Kernel, grid: Grid, arguments: Vec<Argument> },
    Gemm(Plan, Addresses),
}

/// A parameter's bytes, in words so that any type is aligned.
type Argument = Vec<u64>;

impl Work {
    /// Does it.
    ///
    /// # Safety
    /// As the functions of [`Driver`] that enqueue it.
    unsafe fn run(&self) -> std::result::Result<(), Stop> {
        // SAFETY: the caller vouches for the ranges.
        unsafe {
            match self {
                &Work::Fill { dst, bytes, byte } => std::ptr::write_bytes(dst as *mut u8, byte, bytes),
                &Work::Put { dst, bytes, bits } => std::ptr::copy_nonoverlapping(bits.to_le_bytes().as_ptr(), dst as *mut u8, bytes),
                Work::Kernel { kernel, grid, arguments } => {
                    let mut params: Vec<*mut c_void> = arguments.iter().map(|a| a.as_ptr().cast_mut().cast()).collect();
                    return run_kernel(kernel, *grid, &mut params);
                }
                Work::Gemm(plan, at) => multiply(plan, at)?,
            }
        }
        Ok(())
    }
}

/// A captured step.
#[derive(Debug)]
struct Graph(Vec<Work>, Fault);

impl Recording for Graph {
    unsafe fn replay(&self) -> Result<()> {
        // SAFETY: the caller vouches for the memory.
        self.0.iter().try_for_each(|work| unsafe { self.1.run(work) })
    }
}

/// # Safety
/// As [`Driver::launch`].
unsafe fn run_kernel(kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void]) -> std::result::Result<(), Stop> {
    let [x, y, z] = grid.blocks;
    let shape = [x, y, z, grid.threads, 1, 1];
    lock(&LAUNCHED).insert(kernel.name);
    // SAFETY: passed on.
    let code = unsafe { (kernel.emulated)(shape.as_ptr(), grid.shared as usize, ORDER.load(Relaxed), params.as_mut_ptr()) };
    match code {
        0 => Ok(()),
        1 => Err(Stop::Refused(Error::device_unavailable(last_error("kernel")))),
        _ => Err(Stop::Fault(last_error("kernel"))),
    }
}

/// Kernels that have run.
static LAUNCHED: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Kernels (by symbol) that have not run on an emulated device in this process: what the tests have not tried.
#[doc(hidden)]
pub fn idle_kernels() -> Vec<&'static str> {
    let launched = lock(&LAUNCHED);
    SYMBOLS.iter().copied().filter(|s| !launched.contains(s)).collect()
}

impl Emulated {
    pub(crate) fn new() -> Self {
        let properties = Properties { name: "emulated device".into(), capability: (9, 0), multiprocessors: 4, memory: MEMORY, driver: 0 };
        Emulated {
            properties,
            used: AtomicUsize::new(0),
            noted: Mutex::default(),
            fault: Fault::default(),
            loaded: Mutex::default(),
            blas: AtomicBool::new(false),
            opt_ins: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    /// Ends a capture that is going on with an error: it does not allow this.
    fn not_in_a_capture(&self, what: &'static str) -> Result<()> {
        self.fault.check()?;
        let mut noted = lock(&self.noted);
        if matches!(*noted, Noted::Nothing) {
            return Ok(());
        }
        *noted = Noted::Broken(what);
        Err(broken(what))
    }

    /// Does the work, or captures it.
    ///
    /// # Safety
    /// As the functions of [`Driver`] that enqueue it.
    unsafe fn queue(&self, work: Work) -> Result<()> {
        self.fault.check()?;
        match &mut *lock(&self.noted) {
            Noted::Steps(list) => {
                list.push(work);
                return Ok(());
            }
            Noted::Broken(what) => return Err(broken(what)),
            Noted::Nothing => {}
        }
        // SAFETY: passed on.
        unsafe { self.fault.run(&work) }
    }

    /// Loads the module of a kernel and gets the function ready, as the first launch does.
    fn prepare(&self, kernel: &'static Kernel, grid: Grid, sizes: &[usize]) -> Result<()> {
        if !lock(&self.loaded).contains(&kernel.module) {
            take(format_args!("kernel module {}", MODULES[kernel.module].stem))?;
            lock(&self.loaded).insert(kernel.module);
        }
        if grid.shared > UNASKED {
            lock(&self.opt_ins).ask(kernel.name, grid.shared, |bytes| {
                lock(&self.shared).insert(kernel.name, bytes);
                Ok(())
            })?;
        }
        let asked = lock(&self.shared).get(kernel.name).copied().unwrap_or(UNASKED);
        match refusals::launch(kernel, grid, sizes, asked) {
            Some(why) => Err(Error::device_unavailable(format!("kernel {}: {why}", kernel.name))),
            None => Ok(()),
        }
    }
}

fn broken(what: &str) -> Error {
    Error::device_unavailable(format!("{what} inside of a capture, which is lost"))
}

fn last_error(what: &str) -> String {
    // SAFETY: the emulator returns a NUL-terminated text that lives until this thread's next launch.
    let text = unsafe { CStr::from_ptr(cuemu_last_error()) }.to_string_lossy();
    format!("{what}: {text}")
}

// SAFETY: `cuemu_alloc` maps fresh pages for every block, whose end is aligned to 16 bytes against a guard page.
unsafe impl Driver for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.fault.check()?;
        take(format_args!("{bytes} bytes"))?;
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
        // Nobody to tell: the end of the capture will.
        let _ = self.not_in_a_capture("memory is freed");
        self.used.fetch_sub(bytes, Relaxed);
        // SAFETY: by contract the block came from `alloc` with this size.
        unsafe { cuemu_free(addr as *mut c_void, bytes) };
    }

    unsafe fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        self.not_in_a_capture("a copy from pageable memory of the host")?;
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst as *mut u8, src.len()) };
        Ok(())
    }

    unsafe fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        self.not_in_a_capture("a copy to pageable memory of the host")?;
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
        self.fault.check()?;
        self.prepare(kernel, grid, sizes)?;
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

    fn adds_bias(&self, g: &Gemm) -> Result<bool> {
        self.fault.check()?;
        Ok(g.dtype != DType::F64 && !NO_EPILOGUE.load(Relaxed))
    }

    unsafe fn gemm(&self, g: &Gemm) -> Result<()> {
        self.fault.check()?;
        if matches!(g.plus, Plus::Bias(_)) && !self.adds_bias(g)? {
            return Err(Error::device_unavailable("cuBLASLt: no algorithm adds the bias of this product"));
        }
        if !self.blas.load(Relaxed) {
            take("the workspace of products")?;
            self.blas.store(true, Relaxed);
        }
        let (plan, at) = Plan::new(g);
        if let Some(why) = rules::broken(&plan, &at) {
            return Err(Error::device_unavailable(format!("cuBLASLt: {why}")));
        }
        // SAFETY: passed on.
        unsafe { self.queue(Work::Gemm(plan, at)) }
    }

    fn synchronize(&self) -> Result<()> {
        self.not_in_a_capture("the device is waited for")
    }

    fn mark(&self) -> Result<Mark> {
        self.not_in_a_capture("a time is taken")?;
        Ok(Box::new(Instant::now()))
    }

    fn between(&self, start: &Mark, end: &Mark) -> Result<f64> {
        self.fault.check()?;
        match (start.downcast_ref::<Instant>(), end.downcast_ref::<Instant>()) {
            (Some(&start), Some(end)) => Ok(end.duration_since(start).as_secs_f64()),
            _ => Err(Error::device_unavailable("marks of another device")),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        self.not_in_a_capture("another capture begins")?;
        *lock(&self.noted) = Noted::Steps(Vec::new());
        Ok(())
    }

    fn end_capture(&self, room: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        let list = match std::mem::take(&mut *lock(&self.noted)) {
            Noted::Steps(list) => list,
            Noted::Broken(what) => return Err(broken(what)),
            Noted::Nothing => return Err(Error::device_unavailable("nothing is being captured")),
        };
        self.fault.check()?;
        match take("a graph") {
            Err(e) if e.is_out_of_memory() => room().and_then(|()| take("a graph"))?,
            taken => taken?,
        }
        Ok(Box::new(Graph(list, self.fault.clone())))
    }
}
