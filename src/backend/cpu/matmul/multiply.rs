//! What a value type says of its products: which kernels multiply it.

use super::blocks::{self, Blocks};
use super::gemm::{Batch, GemmFloat, Half, Mat, batched, batched_half, gemm, gemm_half};
use super::gemm_bf16;
use crate::backend::cpu::math::Compute;
use crate::backend::cpu::run::simd::{self, dot_vectors};
use crate::error::Result;
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
    f64: by_gemm, batched, dot_f64, blocks::dot_f64;
    f32: by_gemm, batched, dot_vectors, blocks::dot_f32;
    bf16: by_bf16, batched_half, dot_vectors, blocks::dot_f32;
    f16: by_f32, batched_half, dot_vectors, blocks::dot_f32;
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
