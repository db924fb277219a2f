//! A device in use: its driver, its memory, and the table of open devices.

use super::pool::{DeviceMemory, Pool};
use super::step_memory;
use crate::backend::Device;
use crate::backend::cuda::abi::{Gemm, Grid, Kernel};
use crate::backend::cuda::driver::{Driver, GpuDriver, Properties, Recording};
use crate::error::{Error, Result};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    /// What this thread has enqueued: others use the device at the same time.
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

/// How many kernels and products this thread has enqueued so far.
pub(crate) fn launches() -> usize {
    LAUNCHES.get()
}

/// Bytes of a counter: what the smallest allocation is aligned to.
const COUNTER: usize = 16;

static OPEN: LazyLock<Mutex<HashMap<Device, &'static Context>>> = LazyLock::new(Mutex::default);

/// One open device. It lives as long as the process: tensors may outlive every other owner.
pub(crate) struct Context {
    device: Device,
    driver: Box<dyn Driver>,
    pool: Pool,
    blocking: AtomicBool,
    /// Work holds it shared, a capture alone.
    gate: RwLock<()>,
    /// Where kernels count what they leave to slower ones: a u64 that lives as long as the device.
    left_out: u64,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Context {
    /// The open device, opened now if it was not.
    ///
    /// # Errors
    /// Device error that says what is missing.
    pub(crate) fn of(device: Device) -> Result<&'static Context> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(c) = open.get(&device) {
            return Ok(c);
        }
        let driver: Box<dyn Driver> = match device {
            Device::Cuda(ordinal) => Box::new(GpuDriver::open(ordinal)?),
            #[cfg(feature = "emulator")]
            Device::CudaEmulated => Box::new(crate::backend::cuda::driver::Emulated::new()),
            #[cfg(not(feature = "emulator"))]
            Device::CudaEmulated => {
                return Err(Error::device_unavailable(
                    "cuda-emulated needs the crate's feature `emulator` (it compiles the kernels with a C++ compiler)",
                ));
            }
            Device::Cpu => return Err(Error::device("cpu is not a CUDA device")),
        };
        let left_out = driver.alloc(COUNTER)?;
        // SAFETY: the memory was just allocated, and nothing else refers to it.
        unsafe { driver.fill(left_out, COUNTER, 0)? };
        let context: &'static Context = Box::leak(Box::new(Context {
            device,
            driver,
            pool: Pool::default(),
            blocking: AtomicBool::new(std::env::var_os("COTANGENT_CUDA_BLOCKING").is_some_and(|v| v == "1")),
            gate: RwLock::new(()),
            left_out,
        }));
        open.insert(device, context);
        Ok(context)
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn is_emulated(&self) -> bool {
        self.device == Device::CudaEmulated
    }

    /// What the device says about itself.
    pub(crate) fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    /// Blocks beyond which a grid-strided kernel gains nothing: a few per multiprocessor.
    pub(crate) fn grid_cap(&self) -> u32 {
        self.properties().multiprocessors * 16
    }

    /// Address of the count of what kernels leave to slower ones.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// That count. Waits for the device.
    pub(crate) fn count_left_out(&self) -> Result<u64> {
        let mut bytes = [0; size_of::<u64>()];
        // SAFETY: the counter has this size.
        unsafe { self.download(&mut bytes, self.left_out)? };
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn memory(&self) -> DeviceMemory {
        self.pool.stats()
    }

    pub(crate) fn set_blocking(&self, on: bool) {
        self.blocking.store(on, Relaxed);
    }

    /// Whether this thread captures a step on the device.
    pub(crate) fn is_capturing(&self) -> bool {
        step_memory::is_capturing(self.device)
    }

    /// Gives all waiting blocks back to the device.
    pub(crate) fn release(&self) -> Result<()> {
        if self.is_capturing() {
            // It would have to wait for the device.
            return Ok(());
        }
        let blocks = self.pool.lock().free.take_all();
        self.free(blocks.collect())
    }

    /// Gives some blocks that waited back to the device.
    pub(super) fn free(&self, blocks: Vec<(usize, u64)>) -> Result<()> {
        // Waiting for the device would break a capture of another thread.
        let _turn = self.turn();
        self.free_now(blocks)
    }

    fn free_now(&self, blocks: Vec<(usize, u64)>) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.driver.synchronize() {
            let mut state = self.pool.lock();
            blocks.into_iter().for_each(|(bytes, addr)| state.free.put(bytes, addr));
            return Err(e);
        }
        for (bytes, addr) in blocks {
            // SAFETY: the block was in the free list, so nothing refers to it, and the stream is empty.
            unsafe { self.driver.free(addr, bytes) };
            self.pool.lock().stats.reserved -= bytes;
        }
        Ok(())
    }

    /// Runs `f`, for which the device may take memory of its own. Where there is none, blocks that wait for reuse are given back, and it
    /// is run once more.
    ///
    /// # Errors
    /// What `f` returns; out of memory with `what` was wanted and how much is held.
    pub(super) fn with_room<R>(&self, what: impl FnOnce() -> String, mut f: impl FnMut() -> Result<R>) -> Result<R> {
        match f() {
            Err(e) if e.is_out_of_memory() => {
                self.release()?;
                f().map_err(|e| if e.is_out_of_memory() { self.no_room(&what(), &e) } else { e })
            }
            done => done,
        }
    }

    fn no_room(&self, what: &str, e: &Error) -> Error {
        let (allocated, memory) = (self.pool.stats().allocated, self.properties().memory);
        Error::out_of_memory(format!("{what} on {}: {allocated} bytes are held by tensors, the device has {memory} ({e})", self.device))
    }

    /// Ends the capture of this thread, which has the device alone.
    pub(super) fn end_capture(&self) -> Result<Box<dyn Recording>> {
        let ended = self.driver.end_capture(&mut || {
            let blocks = self.pool.lock().free.take_all();
            self.free_now(blocks.collect())
        });
        ended.map_err(|e| if e.is_out_of_memory() { self.no_room("no memory for a graph", &e) } else { e })
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        step_memory::refuse(self.device, "waiting for the device")?;
        let _turn = self.turn();
        self.driver.synchronize()
    }

    /// Keeps other threads off the device: their work would be captured too.
    pub(super) fn alone(&'static self) -> RwLockWriteGuard<'static, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while another thread captures a step.
    pub(super) fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        if self.is_capturing() { None } else { Some(self.gate.read().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Enqueues a kernel; with `COTANGENT_CUDA_BLOCKING=1` also waits for it, so that its error names the op at hand.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(crate) unsafe fn launch(&self, kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void], sizes: &[usize]) -> Result<()> {
        LAUNCHES.set(LAUNCHES.get() + 1);
        let what = || format!("no memory to load kernel {}", kernel.name);
        self.with_room(what, || {
            let _turn = self.turn();
            // SAFETY: passed on.
            unsafe { self.driver.launch(kernel, grid, params, sizes)? };
            self.after(kernel.name)
        })
    }

    /// Whether the device adds the bias of a product itself.
    pub(crate) fn adds_bias(&self, gemm: &Gemm) -> Result<bool> {
        self.with_room(|| "no memory for matrix products".into(), || self.driver.adds_bias(gemm))
    }

    pub(crate) fn gemm(&self, gemm: &Gemm) -> Result<()> {
        LAUNCHES.set(LAUNCHES.get() + 1);
        let what = || "no memory for matrix products".into();
        self.with_room(what, || {
            let _turn = self.turn();
            // SAFETY: the caller, `linalg::product`, takes addresses from operands and sizes from their shapes.
            unsafe { self.driver.gemm(gemm)? };
            self.after("gemm")
        })
    }

    /// Enqueues a fill with one byte.
    ///
    /// # Safety
    /// As [`Driver::fill`].
    pub(crate) unsafe fn fill(&self, dst: u64, bytes: usize, byte: u8) -> Result<()> {
        let _turn = self.turn();
        // SAFETY: passed on.
        unsafe { self.driver.fill(dst, bytes, byte) }
    }

    /// Enqueues a write of one element.
    ///
    /// # Safety
    /// As [`Driver::put`].
    pub(super) unsafe fn put(&self, dst: u64, bytes: usize, bits: u64) -> Result<()> {
        let _turn = self.turn();
        // SAFETY: passed on.
        unsafe { self.driver.put(dst, bytes, bits) }
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// Capture error inside a captured step: every replay would copy what is there then.
    ///
    /// # Safety
    /// As [`Driver::upload`].
    pub(super) unsafe fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        step_memory::refuse(self.device, "values are copied from the host")?;
        let _turn = self.turn();
        // SAFETY: passed on.
        unsafe { self.driver.upload(dst, src) }
    }

    /// Waits for the stream, then copies to the host.
    ///
    /// # Errors
    /// Capture error inside a captured step.
    ///
    /// # Safety
    /// As [`Driver::download`].
    pub(super) unsafe fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        step_memory::refuse(self.device, "values are read back to the host")?;
        let _turn = self.turn();
        // SAFETY: passed on.
        unsafe { self.driver.download(dst, src) }
    }

    /// Enqueues a captured step.
    ///
    /// # Errors
    /// Capture error inside another captured step.
    ///
    /// # Safety
    /// As [`Recording::replay`].
    pub(super) unsafe fn replay(&self, step: &dyn Recording) -> Result<()> {
        step_memory::refuse(self.device, "another step is replayed")?;
        LAUNCHES.set(LAUNCHES.get() + 1);
        let what = || "no memory to launch a graph".into();
        self.with_room(what, || {
            let _turn = self.turn();
            // SAFETY: passed on. A launch that found no memory has done nothing.
            unsafe { step.replay()? };
            self.after("a captured step")
        })
    }

    /// Seconds that the device takes for what `work` enqueues.
    pub(crate) fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        step_memory::refuse(self.device, "time is measured")?;
        // The marks wait for their turn as other work does: in a capture of another thread they would be part of its step. In between
        // such a capture may come and go.
        let mark = || {
            let _turn = self.turn();
            self.driver.mark()
        };
        let start = mark()?;
        work()?;
        let end = mark()?;
        let _turn = self.turn();
        self.driver.between(&start, &end)
    }

    fn after(&self, what: &str) -> Result<()> {
        if self.blocking.load(Relaxed) && !self.is_capturing() {
            self.driver.synchronize().map_err(|e| e.about(what))?;
        }
        Ok(())
    }
}
