//! Matrix products of strided, broadcast operands: which of the GEMM entry points they need.

use super::gemm::{Batch, GemmFloat, Mat, batched, batched_half, gemm, gemm_half};
use super::map::Compute;
use super::view::In;
use crate::error::Result;
use crate::layout::{Layout, collapse};
use half::{bf16, f16};

/// A value type that matrices are made of; half types are multiplied and accumulated in f32 and rounded once.
pub(crate) trait Multiply: Compute<Acc: GemmFloat> {
    /// C ← A·B + beta C.
    fn product(a: Mat<'_, Self>, b: Mat<'_, Self>, beta: Self::Acc, c: &mut [Self], rs: usize);
    /// Cᵢ ← Aᵢ·Bᵢ + beta Cᵢ.
    fn products(a: Batch<'_, Self>, b: Batch<'_, Self>, beta: Self::Acc, c: &mut [Self], offsets: &[usize], rs: usize);
}

macro_rules! multiply {
    ($($t:ty: $one:ident, $many:ident;)*) => {$(
        impl Multiply for $t {
            fn product(a: Mat<'_, Self>, b: Mat<'_, Self>, beta: Self::Acc, c: &mut [Self], rs: usize) {
                $one(1.0, a, b, beta, c, rs);
            }
            fn products(a: Batch<'_, Self>, b: Batch<'_, Self>, beta: Self::Acc, c: &mut [Self], offsets: &[usize], rs: usize) {
                $many(1.0, a, b, beta, c, offsets, rs);
            }
        }
    )*};
}

multiply! {
    f64: gemm, batched;
    f32: gemm, batched;
    bf16: gemm_half, batched_half;
    f16: gemm_half, batched_half;
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
            T::product(Mat::new(xa, m, k, step, sa[r + 1]), Mat::new(xb, k, n, sb[r], sb[r + 1]), beta, y, n);
            return Ok(());
        }
    }
    let offsets = |s: &[usize]| -> Result<Vec<usize>> {
        Ok(Layout::from_parts(batch.clone(), s[..r].iter().copied().collect(), 0)?.indices().collect())
    };
    let (oa, ob) = (offsets(sa)?, offsets(sb)?);
    let oc: Vec<usize> = (0..oa.len()).map(|i| i * m * n).collect();
    let a = Batch { data: xa, offsets: &oa, rows: m, cols: k, row_stride: sa[r], col_stride: sa[r + 1] };
    let b = Batch { data: xb, offsets: &ob, rows: k, cols: n, row_stride: sb[r], col_stride: sb[r + 1] };
    T::products(a, b, beta, y, &oc, n);
    Ok(())
}
