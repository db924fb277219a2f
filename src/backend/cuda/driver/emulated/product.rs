//! Products by a plan, on the CPU backend's kernels.

use crate::backend::cpu::gemm::{Half, Mat, gemm, gemm_half};
use crate::backend::cuda::driver::plan::{Addresses, Columns, Plan};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use half::{bf16, f16};

/// Computes the products of a plan.
///
/// # Safety
/// As [`Driver::gemm`](super::Driver::gemm).
pub(super) unsafe fn multiply(plan: &Plan, at: &Addresses) -> Result<()> {
    // SAFETY: passed on.
    unsafe {
        match plan.dtype {
            DType::F64 => run::<f64>(plan, at, gemm),
            DType::F32 => run::<f32>(plan, at, gemm),
            DType::BF16 => run_half::<bf16>(plan, at),
            DType::F16 => run_half::<f16>(plan, at),
            d => Err(Error::dtype(format!("no matrix product of {d}"))),
        }
    }
}

/// The library's matrices are ours transposed: a row-major operand is one that the library does not transpose.
///
/// # Safety
/// As [`Driver::gemm`](super::Driver::gemm).
unsafe fn matrix<'a, T: Element>(addr: u64, x: Columns, transposed: bool, batch: usize) -> Mat<'a, T> {
    let (rows, cols, row_stride, col_stride) = if transposed { (x.rows, x.cols, 1, x.ld) } else { (x.cols, x.rows, x.ld, 1) };
    let len = (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
    // SAFETY: the caller vouches for the operand.
    let data = unsafe { std::slice::from_raw_parts((addr as *const T).add(batch * x.batch_stride), len) };
    Mat::new(data, rows, cols, row_stride, col_stride)
}

/// Calls `f` with our A, our B, the results and the bias of every product of the batch.
///
/// # Safety
/// As [`Driver::gemm`](super::Driver::gemm).
unsafe fn each<T: Element>(
    plan: &Plan,
    at: &Addresses,
    mut f: impl FnMut(Mat<'_, T>, Mat<'_, T>, &mut [T], Option<&[T]>) -> Result<()>,
) -> Result<()> {
    for i in 0..plan.batch {
        // SAFETY: the caller vouches for the operands; each result is written once.
        unsafe {
            let c = std::slice::from_raw_parts_mut((at.c as *mut T).add(i * plan.c.batch_stride), plan.c.rows * plan.c.cols);
            let bias = at.bias.map(|b| std::slice::from_raw_parts(b as *const T, plan.c.rows));
            f(matrix(at.b, plan.b, plan.transposed[1], i), matrix(at.a, plan.a, plan.transposed[0], i), c, bias)?;
        }
    }
    Ok(())
}

/// # Safety
/// As [`Driver::gemm`](super::Driver::gemm).
unsafe fn run<T: Element + std::ops::AddAssign>(
    plan: &Plan,
    at: &Addresses,
    product: impl Fn(T, Mat<T>, Mat<T>, T, &mut [T], usize) -> Result<()>,
) -> Result<()> {
    let n = plan.c.rows;
    let one = |a: Mat<'_, T>, b: Mat<'_, T>, c: &mut [T], bias: Option<&[T]>| {
        product(T::from_f64(1.0), a, b, T::from_f64(f64::from(u8::from(plan.accumulate))), c, n)?;
        for row in c.chunks_mut(n) {
            for (c, &b) in row.iter_mut().zip(bias.into_iter().flatten()) {
                *c += b;
            }
        }
        Ok(())
    };
    // SAFETY: passed on.
    unsafe { each(plan, at, one) }
}

/// Half types: product and bias in f32, rounded once.
///
/// # Safety
/// As [`Driver::gemm`](super::Driver::gemm).
unsafe fn run_half<T: Half + Element>(plan: &Plan, at: &Addresses) -> Result<()> {
    let n = plan.c.rows;
    let one = |a: Mat<'_, T>, b: Mat<'_, T>, c: &mut [T], bias: Option<&[T]>| {
        if let Some(bias) = bias {
            // C holds the bias before the product, which adds to it in f32.
            c.chunks_mut(n).for_each(|row| row.copy_from_slice(bias));
        }
        gemm_half(1.0, a, b, if plan.accumulate || bias.is_some() { 1.0 } else { 0.0 }, c, n)
    };
    // SAFETY: passed on.
    unsafe { each(plan, at, one) }
}
