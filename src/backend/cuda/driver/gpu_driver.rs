//! A GPU through the CUDA driver library. Nothing is linked: the libraries are opened when a device is.

use super::blaslt::Blas;
use super::launch_limits::{OptIns, UNASKED};
use super::{Driver, Mark, Properties, RESTART, Recording, is_present, load};
use crate::backend::cuda::abi::{Gemm, Grid, Kernel, MODULES};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// An open GPU: one context, one stream that is not the default one (which could not be captured).
pub(crate) struct GpuDriver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    properties: Properties,
    /// One lock each: threads compile different modules side by side.
    modules: Vec<Mutex<Option<Loaded>>>,
    functions: Mutex<HashMap<&'static str, Function>>,
    opt_ins: Mutex<OptIns>,
    blas: Mutex<Option<Blas>>,
}

struct Loaded(sys::CUmodule);

// SAFETY: module handles may be used from any thread; the context is bound before each use.
unsafe impl Send for Loaded {}
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: function handles may be used from any thread; the context is bound before each use.
unsafe impl Send for Function {}

/// What the driver reports, as our error.
fn driver_error(e: DriverError) -> Error {
    let text = e.error_string().ok().map_or_else(|| format!("{:?}", e.0), |s| s.to_string_lossy().into_owned());
    let name = e.error_name().ok().map_or_else(String::new, |s| format!(" ({})", s.to_string_lossy()));
    if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        Error::out_of_memory(format!("CUDA: {text}{name}"))
    } else if ends_the_context(e.0) {
        Error::device_unavailable(format!("CUDA: {text}{name}; {RESTART}"))
    } else {
        Error::device_unavailable(format!("CUDA: {text}{name}"))
    }
}

/// Faults after which every call on the context gives the same error.
fn ends_the_context(e: sys::CUresult) -> bool {
    use sys::CUresult as E;
    matches!(
        e,
        E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
    )
}

impl GpuDriver {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// Device error that says what is missing.
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        // SAFETY: only asks the loader whether the library can be opened.
        if !is_present("cuda", || unsafe { sys::is_culib_present() }) {
            return Err(Error::device_unavailable(format!(
                "cuda:{ordinal}: the NVIDIA driver library (libcuda.so.1, nvcuda.dll) was not found: install the NVIDIA driver, or compute on cpu"
            )));
        }
        let unusable = |e: DriverError| {
            let e = driver_error(e);
            Error::device_unavailable(format!("cuda:{ordinal} cannot be used: {e}"))
        };
        let count = result::init().and_then(|()| result::device::get_count()).map_err(unusable)?;
        if ordinal as i64 >= i64::from(count) {
            return Err(Error::device_unavailable(format!("cuda:{ordinal} does not exist: the driver sees {count} device(s)")));
        }
        let context = CudaContext::new(ordinal as usize).map_err(unusable)?;
        // SAFETY: nothing was allocated yet. Work is ordered by the one stream; per-buffer events would only slow it down
        // and break graph capture.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(unusable)?;
        let attribute = |a| context.attribute(a).map_err(unusable);
        let (major, minor) = context.compute_capability().map_err(unusable)?;
        if major < 8 {
            return Err(Error::device_unavailable(format!(
                "cuda:{ordinal} is of compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer"
            )));
        }
        let mut driver = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().map_err(unusable)?;
        let properties = Properties {
            name: context.name().map_err(unusable)?,
            capability: (major as u32, minor as u32),
            multiprocessors: attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            memory: context.total_mem().map_err(unusable)?,
            driver: driver as u32,
        };
        let modules = MODULES.iter().map(|_| Mutex::default()).collect();
        Ok(GpuDriver {
            context,
            stream,
            properties,
            modules,
            functions: Mutex::default(),
            opt_ins: Mutex::default(),
            blas: Mutex::default(),
        })
    }

    /// Makes the context current on this thread; a no-op when it is.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver_error)
    }

    /// The machine code of a kernel file, loaded on first use.
    fn module(&self, index: usize) -> Result<sys::CUmodule> {
        let mut loaded = self.modules[index].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(m) = &*loaded {
            return Ok(m.0);
        }
        let module = &MODULES[index];
        let load = |code: &[u8]| {
            // SAFETY: the image is a complete cubin or fatbin, or PTX that ends with NUL: built with the crate, or checked by its checksum.
            unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(driver_error)
        };
        // A fatbin may lack this architecture, or be newer than the driver: compiling here is the way out of both.
        let handle = match module.fatbin.map(load) {
            Some(Ok(handle)) => handle,
            Some(Err(e)) if e.is_out_of_memory() => return Err(e.about(format!("kernel module {}", module.stem))),
            _ => load::find(module, self.properties.capability, self.properties.driver, load)?,
        };
        *loaded = Some(Loaded(handle));
        Ok(handle)
    }

    /// Runs `f` with the library of products, opened on first use.
    fn with_blas<R>(&self, f: impl FnOnce(&mut Blas) -> Result<R>) -> Result<R> {
        self.bind()?;
        let mut blas = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *blas {
            Some(blas) => f(blas),
            none => f(none.insert(Blas::open(self)?)),
        }
    }

    fn function(&self, kernel: &'static Kernel, shared: u32) -> Result<sys::CUfunction> {
        let functions = || self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = functions().get(kernel.name).map(|f| f.0);
        let handle = match known {
            Some(handle) => handle,
            None => {
                // Compiling may take seconds: callers that need another kernel do not wait for that.
                let module = self.module(kernel.module)?;
                let name = CString::new(kernel.name).map_err(|e| Error::device_unavailable(format!("kernel name: {e}")))?;
                // SAFETY: modules are never unloaded.
                let handle = unsafe { result::module::get_function(module, name) }.map_err(driver_error)?;
                functions().insert(kernel.name, Function(handle));
                handle
            }
        };
        if shared > UNASKED {
            let mut opt_ins = self.opt_ins.lock().unwrap_or_else(PoisonError::into_inner);
            opt_ins.ask(kernel.name, shared, |bytes| {
                let opt_in = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the handle is valid.
                unsafe { result::function::set_function_attribute(handle, opt_in, bytes as i32) }.map_err(driver_error)
            })?;
        }
        Ok(handle)
    }
}

// SAFETY: `alloc` is the driver's, which hands out disjoint blocks aligned to 256 bytes.
unsafe impl Driver for GpuDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: a plain allocation; the pool above frees it.
        unsafe { result::malloc_sync(bytes) }.map_err(driver_error)
    }

    unsafe fn free(&self, addr: u64, _: usize) {
        if self.bind().is_ok() {
            // SAFETY: by contract the address came from `alloc` and is unused. An error here means that the context is
            // gone, and its memory with it.
            let _ = unsafe { result::free_sync(addr) };
        }
    }

    unsafe fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the range; the wait keeps `src` alive until the copy is done.
        unsafe { result::memcpy_htod_async(dst, src, self.stream.cu_stream()) }.map_err(driver_error)?;
        self.synchronize()
    }

    unsafe fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the range; the wait keeps `dst` alive until the copy is done.
        unsafe { result::memcpy_dtoh_async(dst, src, self.stream.cu_stream()) }.map_err(driver_error)?;
        self.synchronize()
    }

    unsafe fn fill(&self, dst: u64, bytes: usize, byte: u8) -> Result<()> {
        self.bind()?;
        // SAFETY: passed on.
        unsafe { result::memset_d8_async(dst, byte, bytes, self.stream.cu_stream()) }.map_err(driver_error)
    }

    unsafe fn put(&self, dst: u64, bytes: usize, bits: u64) -> Result<()> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: passed on.
        unsafe {
            match bytes {
                1 => result::memset_d8_async(dst, bits as u8, 1, stream),
                2 => sys::cuMemsetD16Async(dst, bits as u16, 1, stream).result(),
                4 => sys::cuMemsetD32Async(dst, bits as u32, 1, stream).result(),
                // No fill is 8 bytes wide.
                _ => sys::cuMemsetD32Async(dst, bits as u32, 1, stream)
                    .result()
                    .and_then(|()| sys::cuMemsetD32Async(dst + 4, (bits >> 32) as u32, 1, stream).result()),
            }
        }
        .map_err(driver_error)
    }

    unsafe fn launch(&self, kernel: &'static Kernel, grid: Grid, params: &mut [*mut c_void], _: &[usize]) -> Result<()> {
        self.bind()?;
        let f = self.function(kernel, grid.shared)?;
        let [x, y, z] = grid.blocks;
        // SAFETY: passed on.
        unsafe { result::launch_kernel(f, (x, y, z), (grid.threads, 1, 1), grid.shared, self.stream.cu_stream(), params) }
            .map_err(|e| driver_error(e).about(format!("kernel {}", kernel.name)))
    }

    fn adds_bias(&self, gemm: &Gemm) -> Result<bool> {
        // The library has no such epilogue for f64. For others it may find no algorithm with it, for shapes that nobody lists.
        if gemm.dtype == DType::F64 {
            return Ok(false);
        }
        self.with_blas(|blas| blas.takes(gemm))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        // SAFETY: passed on.
        self.with_blas(|blas| unsafe { blas.run(gemm, self.stream.cu_stream()) })
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.stream.synchronize().map_err(driver_error)
    }

    fn mark(&self) -> Result<Mark> {
        self.bind()?;
        let event = Event::new()?;
        event.record(&self.stream)?;
        Ok(Box::new(event))
    }

    fn between(&self, start: &Mark, end: &Mark) -> Result<f64> {
        self.bind()?;
        match (start.downcast_ref::<Event>(), end.downcast_ref::<Event>()) {
            (Some(start), Some(end)) => end.since(start),
            _ => Err(Error::device_unavailable("marks of another device")),
        }
    }

    fn begin_capture(&self) -> Result<()> {
        self.bind()?;
        // Relaxed: memory that the step needs beyond the pool is allocated while it is captured, which the other modes
        // forbid. Work of other threads cannot slip in: they wait above this trait.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive, and not the default one.
        unsafe { sys::cuStreamBeginCapture_v2(self.stream.cu_stream(), mode) }.result().map_err(driver_error)
    }

    fn end_capture(&self, room: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        self.bind()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is alive, and the pointer is to a local.
        unsafe { sys::cuStreamEndCapture(self.stream.cu_stream(), &raw mut graph) }.result().map_err(driver_error)?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was just made, and is destroyed below.
        let mut instantiate = || unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) }.result().map_err(driver_error);
        let made = match instantiate() {
            Err(e) if e.is_out_of_memory() => room().and_then(|()| instantiate()),
            made => made,
        };
        // SAFETY: destroyed once, and not used again.
        let _ = unsafe { sys::cuGraphDestroy(graph) }.result();
        made?;
        Ok(Box::new(Exec { exec, context: Arc::clone(&self.context), stream: Arc::clone(&self.stream) }))
    }
}

/// A point in the stream, with the time at which the device passed it.
struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuEventCreate(&raw mut event, 0) }.result().map_err(driver_error)?;
        Ok(Event(event))
    }

    fn record(&self, stream: &CudaStream) -> Result<()> {
        // SAFETY: both handles are alive.
        unsafe { sys::cuEventRecord(self.0, stream.cu_stream()) }.result().map_err(driver_error)
    }

    /// Waits for it. Seconds after the other one.
    fn since(&self, start: &Event) -> Result<f64> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let mut ms = 0f32;
        // SAFETY: the events are alive and were recorded. The function is looked up by its oldest name, which every driver has: the
        // bindings' own is missing before CUDA 12.8.
        unsafe {
            sys::cuEventSynchronize(self.0).result().map_err(driver_error)?;
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0");
            let elapsed = elapsed.map_err(|e| Error::device_unavailable(format!("CUDA: no event times: {e}")))?;
            elapsed(&raw mut ms, start.0, self.0).result().map_err(driver_error)?;
        }
        Ok(f64::from(ms) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used again; the driver waits for events in flight.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) }.result();
    }
}

/// A CUDA graph, ready to be launched.
struct Exec {
    exec: sys::CUgraphExec,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

// SAFETY: graph handles may be used from any thread, one at a time: launches go through the `&mut` of their owner.
unsafe impl Send for Exec {}
// SAFETY: as above.
unsafe impl Sync for Exec {}

impl Recording for Exec {
    unsafe fn replay(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver_error)?;
        // SAFETY: the handle is alive; the caller vouches for the memory.
        unsafe { sys::cuGraphLaunch(self.exec, self.stream.cu_stream()) }.result().map_err(driver_error)
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // Not waited for, which would break a capture that is going on: a graph in flight is freed when it is done.
            // SAFETY: the handle is alive and not used again.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) }.result();
        }
    }
}
