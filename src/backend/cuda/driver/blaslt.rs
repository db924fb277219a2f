//! Matrix products by cuBLASLt, with one algorithm per plan, chosen once.

use super::plan::{Columns, Plan, SCHEMES};
use super::{Driver, RESTART};
use crate::backend::cuda::abi::Gemm;
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result as lt, sys};
use std::collections::HashMap;
use std::ffi::c_void;

/// Plans that are kept. Training has some hundreds; sizes that differ from step to step must not fill memory.
const PLANS: usize = 4096;

/// The library on one device.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// `None` where the library has no algorithm.
    plans: HashMap<Plan, Option<Ready>>,
}

// SAFETY: the handle may be used from any thread, one at a time; it is behind a mutex.
unsafe impl Send for Blas {}

/// A plan as the library's objects.
struct Ready {
    product: Descriptor,
    a: Layout,
    b: Layout,
    c: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    scratch: usize,
}

/// Destroyed with their owner, also where making the rest of a plan fails.
struct Descriptor(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used again; a product in flight has copied what it needs.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn failed(what: &'static str) -> impl Fn(CublasError) -> Error {
    move |e| match e.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Error::out_of_memory(format!("cuBLASLt: {what}: {:?}", e.0)),
        sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => Error::device_unavailable(format!("cuBLASLt: {what}: {:?}; {RESTART}", e.0)),
        _ => Error::device_unavailable(format!("cuBLASLt: {what}: {:?}", e.0)),
    }
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType_t> {
    Ok(match dtype {
        DType::F64 => sys::cudaDataType_t::CUDA_R_64F,
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        d => return Err(Error::dtype(format!("no matrix product of {d}"))),
    })
}

impl Blas {
    pub(super) fn open(on: &dyn Driver) -> Result<Self> {
        // SAFETY: only asks the loader whether the library can be opened.
        if !super::is_present("cublasLt", || unsafe { sys::is_culib_present() }) {
            return Err(Error::device_unavailable(
                "matrix products need libcublasLt, which was not found: install the CUDA toolkit (12.0 or newer), or `pip install nvidia-cublas` \
                 (nvidia-cublas-cu12 for a driver of CUDA 12) and put its lib folder on LD_LIBRARY_PATH",
            ));
        }
        let workspace = on.alloc(super::plan::WORKSPACE)?;
        let handle = lt::create_handle().map_err(failed("open")).inspect_err(|_| {
            // SAFETY: the block was just allocated, and nothing has used it.
            unsafe { on.free(workspace, super::plan::WORKSPACE) }
        })?;
        Ok(Blas { handle, workspace, plans: HashMap::new() })
    }

    /// Whether the library has an algorithm for a product.
    pub(super) fn takes(&mut self, g: &Gemm) -> Result<bool> {
        let (plan, at) = Plan::new(g);
        Ok(self.ready(&plan, at.bias)?.is_some())
    }

    fn ready(&mut self, plan: &Plan, bias: Option<u64>) -> Result<Option<&Ready>> {
        if !self.plans.contains_key(plan) {
            // SAFETY: the handle is open.
            let made = unsafe { self.make(plan, bias)? };
            if self.plans.len() >= PLANS {
                self.plans.clear();
            }
            self.plans.insert(*plan, made);
        }
        Ok(self.plans[plan].as_ref())
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// As [`Driver::gemm`].
    pub(super) unsafe fn run(&mut self, g: &Gemm, stream: cudarc::driver::sys::CUstream) -> Result<()> {
        let (plan, at) = Plan::new(g);
        let (handle, workspace) = (self.handle, self.workspace);
        let Some(ready) = self.ready(&plan, at.bias)? else {
            return Err(Error::device_unavailable(format!("cuBLASLt has no algorithm for this product: {plan:?}")));
        };
        if let Some(bias) = at.bias {
            // SAFETY: the descriptor lives as long as the plan.
            unsafe { set(ready.product.0, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)? };
        }
        // The scale type is f64 for f64 and f32 for the rest.
        let (one, beta) = (1f32, f32::from(u8::from(plan.accumulate)));
        let (one64, beta64) = (1f64, f64::from(beta));
        let (one, beta): (*const c_void, *const c_void) = if g.dtype == DType::F64 {
            ((&raw const one64).cast(), (&raw const beta64).cast())
        } else {
            ((&raw const one).cast(), (&raw const beta).cast())
        };
        // SAFETY: the caller vouches for the operands, and the plan was made for exactly these sizes.
        unsafe {
            lt::matmul(
                handle,
                ready.product.0,
                one,
                beta,
                at.a as *const c_void,
                ready.a.0,
                at.b as *const c_void,
                ready.b.0,
                at.c as *const c_void,
                ready.c.0,
                at.c as *mut c_void,
                ready.c.0,
                &raw const ready.algorithm,
                workspace as *mut c_void,
                ready.scratch,
                stream.cast(),
            )
        }
        .map_err(failed("product"))
    }

    /// Descriptors and the library's first choice of algorithm, among those that give the same bits every time.
    unsafe fn make(&self, plan: &Plan, bias: Option<u64>) -> Result<Option<Ready>> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        const _: () = assert!(SCHEMES == sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32);
        let data = data_type(plan.dtype)?;
        let (compute, scale) = if plan.dtype == DType::F64 {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, sys::cudaDataType_t::CUDA_R_64F)
        } else {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)
        };
        let product = Descriptor(lt::create_matmul_desc(compute, scale).map_err(failed("descriptor"))?);
        // SAFETY: the descriptors created here live as long as the plan.
        unsafe {
            set(product.0, D::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(plan.transposed[0]))?;
            set(product.0, D::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(plan.transposed[1]))?;
            if let Some(bias) = bias {
                set(product.0, D::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
                set(product.0, D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
                set(product.0, D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data)?;
            }
            let [a, b, c] = [&plan.a, &plan.b, &plan.c].map(|m| layout(data, m, plan.batch));
            let (a, b, c) = (a?, b?, c?);
            let preference = Preference(lt::create_matmul_pref().map_err(failed("preference"))?);
            let prefer = |what, value: *const c_void, size| {
                lt::set_matmul_pref_attribute(preference.0, what, value, size).map_err(failed("preference"))
            };
            prefer(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const plan.workspace).cast(), size_of::<usize>())?;
            prefer(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const plan.schemes).cast(), size_of::<u32>())?;
            for (what, bytes) in [
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, plan.alignment[0]),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, plan.alignment[1]),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plan.alignment[2]),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, plan.alignment[2]),
            ] {
                prefer(what, (&raw const bytes).cast(), size_of::<u32>())?;
            }
            match lt::get_matmul_algo_heuristic(self.handle, product.0, a.0, b.0, c.0, c.0, preference.0) {
                Ok(found) => Ok(Some(Ready { product, a, b, c, algorithm: found.algo, scratch: found.workspaceSize })),
                Err(e) if is_unsupported(&e) => Ok(None),
                Err(e) => Err(failed("choice of an algorithm")(e)),
            }
        }
    }
}

/// What the library answers when it has no algorithm for a problem.
fn is_unsupported(e: &CublasError) -> bool {
    matches!(e.0, sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE)
}

/// Sets an attribute of a product descriptor.
///
/// # Safety
/// The descriptor is alive and the attribute is of type `T`.
unsafe fn set<T>(product: sys::cublasLtMatmulDesc_t, what: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
    // SAFETY: passed on.
    unsafe { lt::set_matmul_desc_attribute(product, what, std::ptr::from_ref(value).cast(), size_of::<T>()) }.map_err(failed("descriptor"))
}

/// A layout of `count` matrices.
fn layout(data: sys::cudaDataType_t, m: &Columns, count: usize) -> Result<Layout> {
    use sys::cublasLtMatrixLayoutAttribute_t as L;
    let layout = Layout(lt::create_matrix_layout(data, m.rows as u64, m.cols as u64, m.ld as i64).map_err(failed("layout"))?);
    let (count, stride) = (count as i32, m.batch_stride as i64);
    let set = |what, value: *const c_void, size| {
        // SAFETY: the layout is alive, and the attributes below are of these types.
        unsafe { lt::set_matrix_layout_attribute(layout.0, what, value, size) }.map_err(failed("layout"))
    };
    set(L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), size_of::<i32>())?;
    set(L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, (&raw const stride).cast(), size_of::<i64>())?;
    Ok(layout)
}
