//! Matrix products of strided, broadcast operands: which of the GEMM entry points they need.

use super::gemm::{Batch, GemmFloat, Half, Mat, batched, batched_half, gemm, gemm_half};
use super::gemm_bf16;
use super::map::Compute;
use super::matvec;
use super::quant::{self, Blocks};
use super::simd::{self, dot_vectors};
use super::view::In;
use crate::error::Result;
use crate::layout::{Layout, collapse};
use crate::memory;
use half::{bf16, f16};

/// A value type that matrices are made of; half types are multiplied and accumulated in f32 and rounded once.
pub(crate) trait Multiply: Compute<Acc: GemmFloat> {
    /// C ← A·B + beta C.
    fn product(a: Mat<'_, Self>, b: Mat<'_, Self>, beta: Self::Acc, c: &mut [Self], rs: usize) -> Result<()>;
    /// A dot product in [`simd::dot_by`]'s order, inside [`simd::dispatch_with`].
    fn dot<S: pulp::Simd>(simd: S, w: &[Self], x: &[Self::Acc]) -> Self::Acc;
    /// The same of a row in blocks.
    fn dot_blocks<S: pulp::Simd>(simd: S, kind: Blocks, w: &[u8], x: &[Self::Acc]) -> Self::Acc;
    /// Cᵢ ← Aᵢ·Bᵢ + beta Cᵢ.
    fn products(a: Batch<'_, Self>, b: Batch<'_, Self>, beta: Self::Acc, c: &mut [Self], offsets: &[usize], rs: usize) -> Result<()>;
}

macro_rules! multiply {
    ($($t:ty: $one:ident, $many:ident, $dot:ident, $blocks:path;)*) => {$(
        impl Multiply for $t {
            fn product(a: Mat<'_, Self>, b: Mat<'_, Self>, beta: Self::Acc, c: &mut [Self], rs: usize) -> Result<()> {
                $one(a, b, beta, c, rs)
            }
            #[inline(always)]
            fn dot<S: pulp::Simd>(simd: S, w: &[Self], x: &[Self::Acc]) -> Self::Acc {
                $dot(simd, w, x)
            }
            #[inline(always)]
            fn dot_blocks<S: pulp::Simd>(simd: S, kind: Blocks, w: &[u8], x: &[Self::Acc]) -> Self::Acc {
                $blocks(simd, kind, w, x)
            }
            fn products(a: Batch<'_, Self>, b: Batch<'_, Self>, beta: Self::Acc, c: &mut [Self], offsets: &[usize], rs: usize) -> Result<()> {
                $many(1.0, a, b, beta, c, offsets, rs)
            }
        }
    )*};
}

multiply! {
    f64: by_gemm, batched, dot_f64, quant::dot_f64;
    f32: by_gemm, batched, dot_vectors, quant::dot_f32;
    bf16: by_bf16, batched_half, dot_vectors, quant::dot_f32;
    f16: by_f32, batched_half, dot_vectors, quant::dot_f32;
}

#[inline(always)]
fn dot_f64<S>(_: S, w: &[f64], x: &[f64]) -> f64 {
    simd::dot(w, x)
}

fn by_gemm<T: GemmFloat>(a: Mat<'_, T>, b: Mat<'_, T>, beta: T, c: &mut [T], rs: usize) -> Result<()> {
    gemm(T::ONE, a, b, beta, c, rs)
}

fn by_f32<H: Half>(a: Mat<'_, H>, b: Mat<'_, H>, beta: f32, c: &mut [H], rs: usize) -> Result<()> {
    gemm_half(1.0, a, b, beta, c, rs)
}

fn by_bf16(a: Mat<'_, bf16>, b: Mat<'_, bf16>, beta: f32, c: &mut [bf16], rs: usize) -> Result<()> {
    if gemm_bf16::suits(&a, &b) { gemm_bf16::product(a, b, beta, c, rs) } else { by_f32(a, b, beta, c, rs) }
}

/// The storage from an operand's first element on; empty for an empty view, whose offset may be anywhere.
fn from_first<'a, T: Multiply>(x: &In<'a>, layout: &Layout) -> &'a [T] {
    x.storage::<T>().get(layout.offset()..).filter(|_| layout.numel() > 0).unwrap_or(&[])
}

/// `y ← a·b + beta·y` for `a` laid out as `[batch.., m, k]` and `b` as `[batch.., k, n]`, whose batch axes broadcast.
///
/// One product when `b` is a single matrix and the rows of `a` are evenly spaced over all batches; else one per batch.
pub(crate) fn matmul<T: Multiply>(a: (&In<'_>, &Layout), b: (&In<'_>, &Layout), beta: T::Acc, y: &mut [T]) -> Result<()> {
    let (ra, rb) = (a.1.rank() - 2, b.1.rank() - 2);
    let (m, k, n) = (a.1.shape()[ra], a.1.shape()[ra + 1], b.1.shape()[rb + 1]);
    if y.is_empty() {
        return Ok(());
    }
    let batch = crate::Shape::from(&a.1.shape()[..ra]).broadcast(&crate::Shape::from(&b.1.shape()[..rb]))?;
    let of = |rows: usize, cols: usize| batch.iter().copied().chain([rows, cols]).collect::<crate::Shape>();
    let (la, lb) = (a.1.expand(&of(m, k))?, b.1.expand(&of(k, n))?);
    let r = batch.rank();
    let (sa, sb) = (la.strides(), lb.strides());
    let (xa, xb) = (from_first::<T>(a.0, &la), from_first::<T>(b.0, &lb));
    if (0..r).all(|i| batch[i] == 1 || sb[i] == 0) {
        let (rows, strides) = collapse(&la.shape()[..=r], &[&sa[..=r]]);
        if rows.len() <= 1 {
            let m = rows.first().copied().unwrap_or(1);
            let step = strides[0].first().copied().unwrap_or(0);
            let (a, b) = (Mat::new(xa, m, k, step, sa[r + 1]), Mat::new(xb, k, n, sb[r], sb[r + 1]));
            if matvec::suits(&a, &b) {
                return matvec::product(a, b, beta, y, n);
            }
            return T::product(a, b, beta, y, n);
        }
    }
    let offsets = |s: &[usize]| -> Result<Vec<usize>> {
        memory::try_collect(Layout::from_parts(batch.clone(), s[..r].iter().copied().collect(), 0)?.indices())
    };
    let (oa, ob) = (offsets(sa)?, offsets(sb)?);
    let oc = memory::try_collect((0..oa.len()).map(|i| i * m * n))?;
    let a = Batch { data: xa, offsets: &oa, rows: m, cols: k, row_stride: sa[r], col_stride: sa[r + 1] };
    let b = Batch { data: xb, offsets: &ob, rows: k, cols: n, row_stride: sb[r], col_stride: sb[r + 1] };
    T::products(a, b, beta, y, &oc, n)
}
