//! Products with matrices whose elements are stored in blocks of 32 with one scale: the matrix is never expanded as a whole.

use super::Multiply;
use super::gemm::{Mat, gemm};
use crate::backend::cpu::math::Real;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd::dispatch_with;
use crate::dtype::Element;
use crate::error::Result;

pub use super::blocks::Blocks;
pub(crate) use super::blocks::{BLOCK, expand};

/// Rows of `x` from which on rows of the matrix are expanded, a panel at a time, for the matrix product; below, blocks are read as they are.
const FEW: usize = 8;
/// Rows of the matrix that are expanded at a time.
const PANEL: usize = 128;
/// Multiply-adds that are worth a task.
const TASK: usize = 1 << 16;

/// `y [rows, n] ← x [rows, k] · Wᵀ` for `W [n, k]` in blocks along its rows. Products are accumulated in `T::Acc`, and rounded once.
///
/// The split into tasks follows the sizes alone, and each sum has one order, so the bits do not depend on the number of threads.
pub(crate) fn product<T: Multiply>(kind: Blocks, x: &[T], w: &[u8], k: usize, y: &mut [T]) -> Result<()> {
    let row_bytes = k / BLOCK * kind.bytes();
    if y.is_empty() {
        return Ok(());
    }
    if k == 0 {
        y.iter_mut().for_each(|y| *y = T::store(<T::Acc as Real>::from_f64(0.0)));
        return Ok(());
    }
    let (n, rows) = (w.len() / row_bytes, x.len() / k);
    let mut wide = Buffer::alloc(T::Acc::DTYPE, x.len())?;
    wide.slice_mut::<T::Acc>().iter_mut().zip(x).for_each(|(a, x)| *a = x.load());
    let wide = wide.slice::<T::Acc>();
    if rows < FEW {
        for (x, y) in wide.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
            let least = (TASK / k).max(1);
            y.par_chunks_mut(least)
                .zip(w.par_chunks(least * row_bytes))
                .for_each(|(y, w)| dispatch_with(Task { kind, x, w, row_bytes, y }));
        }
        return Ok(());
    }
    let mut panel = Buffer::alloc(T::Acc::DTYPE, PANEL.min(n) * k)?;
    let mut out = Buffer::alloc(T::Acc::DTYPE, rows * PANEL.min(n))?;
    for first in (0..n).step_by(PANEL) {
        let size = PANEL.min(n - first);
        let panel = &mut panel.slice_mut::<T::Acc>()[..size * k];
        expand(kind, &w[first * row_bytes..(first + size) * row_bytes], panel);
        let out = &mut out.slice_mut::<T::Acc>()[..rows * size];
        let zero = <T::Acc as Real>::from_f64(0.0);
        gemm(<T::Acc as Real>::from_f64(1.0), Mat::new(wide, rows, k, k, 1), Mat::new(panel, k, size, 1, k), zero, out, size)?;
        for (y, out) in y.chunks_exact_mut(n).zip(out.chunks_exact(size)) {
            y[first..first + size].iter_mut().zip(out).for_each(|(y, o)| *y = T::store(*o));
        }
    }
    Ok(())
}

/// Some rows of the matrix with one of `x`.
struct Task<'a, T: Multiply> {
    kind: Blocks,
    x: &'a [T::Acc],
    w: &'a [u8],
    row_bytes: usize,
    y: &'a mut [T],
}

impl<T: Multiply> pulp::WithSimd for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        for (y, w) in self.y.iter_mut().zip(self.w.chunks_exact(self.row_bytes)) {
            *y = T::store(T::dot_blocks(simd, self.kind, w, self.x));
        }
    }
}
