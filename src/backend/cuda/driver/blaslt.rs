//! Matrix products by cuBLASLt, with one plan (descriptors and algorithm) per problem, chosen once.

use super::Driver;
use crate::backend::cuda::abi::{Gemm, Matrices};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::cublaslt::{result as lt, sys};
use std::collections::HashMap;
use std::ffi::c_void;

/// What the fastest Hopper algorithms ask for.
const WORKSPACE: usize = 32 << 20;

/// The library on one device.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

// SAFETY: the handle may be used from any thread, one at a time; it is behind a mutex.
unsafe impl Send for Blas {}

/// What decides an algorithm: everything but the addresses, of which the alignment counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    dtype: DType,
    sizes: [usize; 4],
    a: [usize; 3],
    b: [usize; 3],
    accumulate: bool,
    bias: bool,
    alignment: [u32; 4],
}

struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    scratch: usize,
}

fn failed(what: &str) -> impl Fn(cudarc::cublaslt::result::CublasError) -> Error {
    let what = what.to_string();
    move |e| Error::device_unavailable(format!("cuBLASLt: {what}: {:?}", e.0))
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

fn alignment(addr: u64) -> u32 {
    addr.trailing_zeros().min(8)
}

impl Blas {
    pub(super) fn open(on: &dyn Driver) -> Result<Self> {
        // SAFETY: only asks the loader whether the library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::device_unavailable(
                "matrix products need libcublasLt, which was not found: install the CUDA toolkit (12.0 or newer), or `pip install nvidia-cublas` \
                 and put its lib folder on LD_LIBRARY_PATH",
            ));
        }
        let handle = lt::create_handle().map_err(failed("open"))?;
        Ok(Blas { handle, workspace: on.alloc(WORKSPACE)?, plans: HashMap::new() })
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// As [`Driver::gemm`].
    pub(super) unsafe fn run(&mut self, g: &Gemm, stream: cudarc::driver::sys::CUstream) -> Result<()> {
        let of = |m: &Matrices| [m.row_stride, m.col_stride, m.batch_stride];
        let key = Key {
            dtype: g.dtype,
            sizes: [g.batch, g.m, g.n, g.k],
            a: of(&g.a),
            b: of(&g.b),
            accumulate: g.accumulate,
            bias: g.bias.is_some(),
            alignment: [alignment(g.a.addr), alignment(g.b.addr), alignment(g.c), g.bias.map_or(8, alignment)],
        };
        if !self.plans.contains_key(&key) {
            // SAFETY: the handle is open.
            let plan = unsafe { self.plan(g)? };
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        if let Some(bias) = g.bias {
            // SAFETY: the descriptor lives as long as the plan.
            unsafe { set(plan.product, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)? };
        }
        // The scale type is f64 for f64 and f32 for the rest.
        let (one, beta) = (1f32, f32::from(u8::from(g.accumulate)));
        let (one64, beta64) = (1f64, f64::from(beta));
        let (one, beta): (*const c_void, *const c_void) = if g.dtype == DType::F64 {
            ((&raw const one64).cast(), (&raw const beta64).cast())
        } else {
            ((&raw const one).cast(), (&raw const beta).cast())
        };
        // SAFETY: the caller vouches for the operands; a row-major product is the column-major product of the operands
        // exchanged, and the plan was made for exactly these sizes.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                one,
                beta,
                g.b.addr as *const c_void,
                plan.b,
                g.a.addr as *const c_void,
                plan.a,
                g.c as *const c_void,
                plan.c,
                g.c as *mut c_void,
                plan.c,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                plan.scratch,
                stream.cast(),
            )
        }
        .map_err(failed("product"))
    }

    /// Descriptors and the library's first choice of algorithm, among those that give the same bits every time.
    unsafe fn plan(&self, g: &Gemm) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let data = data_type(g.dtype)?;
        let (compute, scale) = if g.dtype == DType::F64 {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, sys::cudaDataType_t::CUDA_R_64F)
        } else {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)
        };
        let product = lt::create_matmul_desc(compute, scale).map_err(failed("descriptor"))?;
        // SAFETY: the descriptors created here live as long as the plan, that is, the process.
        unsafe {
            // Row-major C = A·B is column-major Cᵀ = Bᵀ·Aᵀ: B comes first, and a row-major operand is "not transposed".
            let transposed = |m: &Matrices| i32::from(m.col_stride != 1);
            set(product, D::CUBLASLT_MATMUL_DESC_TRANSA, &transposed(&g.b))?;
            set(product, D::CUBLASLT_MATMUL_DESC_TRANSB, &transposed(&g.a))?;
            if let Some(bias) = g.bias {
                set(product, D::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
                set(product, D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
                set(product, D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data)?;
            }
            let matrix = |rows: usize, cols: usize, m: &Matrices| -> Result<sys::cublasLtMatrixLayout_t> {
                let ld = m.row_stride.max(m.col_stride) as i64;
                let (rows, cols) = if m.col_stride == 1 { (cols, rows) } else { (rows, cols) };
                let layout = lt::create_matrix_layout(data, rows as u64, cols as u64, ld).map_err(failed("layout"))?;
                batched(layout, g.batch, m.batch_stride)?;
                Ok(layout)
            };
            let a = matrix(g.m, g.k, &g.a)?;
            let b = matrix(g.k, g.n, &g.b)?;
            let c = lt::create_matrix_layout(data, g.n as u64, g.m as u64, g.n as i64).map_err(failed("layout"))?;
            batched(c, g.batch, g.m * g.n)?;
            let preference = lt::create_matmul_pref().map_err(failed("preference"))?;
            let room = WORKSPACE;
            let prefer = |what, value: *const c_void, size| {
                lt::set_matmul_pref_attribute(preference, what, value, size).map_err(failed("preference"))
            };
            prefer(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const room).cast(), size_of::<usize>())?;
            // Partial sums go through memory in a fixed order, or there are none: never in place.
            let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32
                | sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE as u32;
            prefer(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const schemes).cast(), size_of::<u32>())?;
            let align = |addr: u64| 1u32 << alignment(addr);
            for (what, addr) in [
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, g.b.addr),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, g.a.addr),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, g.c),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, g.c),
            ] {
                let bytes = align(addr);
                prefer(what, (&raw const bytes).cast(), size_of::<u32>())?;
            }
            let found = lt::get_matmul_algo_heuristic(self.handle, product, b, a, c, c, preference);
            let _ = lt::destroy_matmul_pref(preference);
            let found = found.map_err(failed("no algorithm for this product"))?;
            Ok(Plan { product, a, b, c, algorithm: found.algo, scratch: found.workspaceSize })
        }
    }
}

/// Sets an attribute of a product descriptor.
///
/// # Safety
/// The descriptor is alive and the attribute is of type `T`.
unsafe fn set<T>(product: sys::cublasLtMatmulDesc_t, what: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
    // SAFETY: passed on.
    unsafe { lt::set_matmul_desc_attribute(product, what, std::ptr::from_ref(value).cast(), size_of::<T>()) }.map_err(failed("descriptor"))
}

/// Makes a layout describe `count` matrices.
///
/// # Safety
/// The layout is alive.
unsafe fn batched(layout: sys::cublasLtMatrixLayout_t, count: usize, stride: usize) -> Result<()> {
    use sys::cublasLtMatrixLayoutAttribute_t as L;
    let (count, stride) = (count as i32, stride as i64);
    // SAFETY: the attributes are of these types.
    unsafe {
        lt::set_matrix_layout_attribute(layout, L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), size_of::<i32>())
            .map_err(failed("layout"))?;
        lt::set_matrix_layout_attribute(
            layout,
            L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
            (&raw const stride).cast(),
            size_of::<i64>(),
        )
        .map_err(failed("layout"))
    }
}
