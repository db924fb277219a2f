//! A device in use: its driver, its memory, and the table of open devices.

use super::buffer::{Buffer, DeviceMemory, Pool, release};
use super::driver::{Driver, Properties};
use super::gemm::Gemm;
use super::launch::{Grid, Kernel};
use crate::backend::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};

static OPEN: LazyLock<Mutex<HashMap<Device, &'static Context>>> = LazyLock::new(Mutex::default);

/// One open device. It lives as long as the process: tensors may outlive every other owner.
pub(crate) struct Context {
    device: Device,
    driver: Box<dyn Driver>,
    pool: Pool,
    launches: AtomicUsize,
    blocking: AtomicBool,
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
            Device::Cuda(ordinal) => Box::new(super::real::Real::open(ordinal)?),
            #[cfg(feature = "emulator")]
            Device::CudaEmulated => Box::new(super::emulated::Emulated::new()),
            #[cfg(not(feature = "emulator"))]
            Device::CudaEmulated => {
                return Err(Error::device_unavailable(
                    "cuda-emulated needs the crate's feature `emulator` (it compiles the kernels with a C++ compiler)",
                ));
            }
            Device::Cpu => return Err(Error::device_unavailable("cpu is no CUDA device")),
        };
        let context: &'static Context = Box::leak(Box::new(Context {
            device,
            driver,
            pool: Pool::default(),
            launches: AtomicUsize::new(0),
            blocking: AtomicBool::new(std::env::var_os("COTANGENT_CUDA_BLOCKING").is_some_and(|v| v == "1")),
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

    pub(super) fn pool(&self) -> &Pool {
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

    pub(crate) fn memory(&self) -> DeviceMemory {
        self.pool.stats()
    }

    /// How many kernels and products were queued so far.
    pub(crate) fn launches(&self) -> usize {
        self.launches.load(Relaxed)
    }

    pub(crate) fn release(&self) -> Result<()> {
        release(self)
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    /// Memory for `len` elements, unwritten.
    pub(crate) fn alloc(&'static self, dtype: DType, len: usize) -> Result<Buffer> {
        Buffer::alloc(self, dtype, len)
    }

    /// Queues a kernel; with `COTANGENT_CUDA_BLOCKING=1` also waits for it, so that its error names the op at hand.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(super) unsafe fn launch(&self, kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void]) -> Result<()> {
        self.launches.fetch_add(1, Relaxed);
        // SAFETY: passed on.
        unsafe { self.driver.launch(kernel, grid, params)? };
        self.after(kernel.name)
    }

    pub(super) fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.launches.fetch_add(1, Relaxed);
        // SAFETY: `gemm::matmul` is the only caller; it takes the addresses from operands and sizes from their layouts.
        unsafe { self.driver.gemm(gemm)? };
        self.after("gemm")
    }

    fn after(&self, what: &str) -> Result<()> {
        if self.blocking.load(Relaxed) {
            self.driver.synchronize().map_err(|e| Error::new(e.kind(), format!("{what}: {e}")))?;
        }
        Ok(())
    }
}
