//! Matrix products. This file: those of strided, broadcast operands, and which of the entry points they need. `gemm` is the product of
//! two matrices (`gemm_bf16` on processors that multiply bf16), `matvec` that of few rows; `multiply` is what a value type says of
//! its products; `blocks` is how a quantised matrix is stored, `quant` the product with one.

mod blocks;
pub(crate) mod gemm;
mod gemm_bf16;
mod matvec;
mod multiply;
pub(crate) mod quant;

pub(crate) use multiply::Multiply;

use crate::backend::cpu::run::view::In;
use crate::error::Result;
use crate::layout::{Layout, collapse};
use crate::memory;
use gemm::{Batch, Mat};

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
