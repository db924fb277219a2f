//! Products of few rows with a matrix whose own rows lie in memory one after the other, as a dense layer's weight does when
//! a model writes token by token: reading the matrix once, as it is stored, is all there is to do.
//!
//! Each element is one dot product in `simd`'s fixed order, so neither threads nor instruction sets change its bits.

use super::Multiply;
use super::gemm::Mat;
use crate::backend::cpu::math::Real;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::dtype::Element;
use crate::error::Result;

/// Rows up to which reading the matrix costs more than the arithmetic; half types save the conversion of the matrix as well.
const FEW: usize = 4;
const FEW_HALF: usize = 8;
/// Multiply-adds that are worth a task.
const TASK: usize = 1 << 17;

/// Whether `a·b` is of this form.
pub(super) fn suits<T: Multiply>(a: &Mat<'_, T>, b: &Mat<'_, T>) -> bool {
    let few = if size_of::<T>() < size_of::<T::Acc>() { FEW_HALF } else { FEW };
    (1..=few).contains(&a.rows()) && b.rows() > 0 && b.cols() > 0 && b.transposed().has_rows()
}

/// C ← A·B + beta C, with rows of C `rs` apart; as in the other products, beta = 0 ignores what C held.
///
/// # Panics
/// When the sizes do not fit each other or C.
pub(super) fn product<T: Multiply>(a: Mat<'_, T>, b: Mat<'_, T>, beta: T::Acc, c: &mut [T], rs: usize) -> Result<()> {
    let (m, k, w) = (a.rows(), a.cols(), b.transposed());
    let n = w.rows();
    assert_eq!(k, w.cols(), "inner sizes of a matrix product differ");
    assert!(m == 1 || rs >= n, "rows of C overlap");
    let acc = <T::Acc as Element>::DTYPE;
    let (mut x, mut sums) = (Buffer::alloc(acc, m * k)?, Buffer::alloc(acc, m * n)?);
    let (x, sums) = (x.slice_mut::<T::Acc>(), sums.slice_mut::<T::Acc>());
    for (r, row) in x.chunks_exact_mut(k).enumerate() {
        row.iter_mut().enumerate().for_each(|(i, x)| *x = a.at(r, i).load());
    }
    let (x, some) = (&*x, (TASK / (m * k)).max(1));
    sums.par_chunks_mut(some * m).enumerate().for_each(|(task, sums)| simd::dispatch_with(Task { w, first: task * some, x, m, sums }));
    for (r, c) in c.chunks_mut(rs.max(1)).take(m).enumerate() {
        for (c, sums) in c[..n].iter_mut().zip(sums.chunks_exact(m)) {
            *c = T::store(if beta == T::Acc::ZERO { sums[r] } else { beta.mul_add(c.load(), sums[r]) });
        }
    }
    Ok(())
}

/// Some rows of the matrix with all of `x`.
struct Task<'a, T: Multiply> {
    w: Mat<'a, T>,
    first: usize,
    x: &'a [T::Acc],
    m: usize,
    sums: &'a mut [T::Acc],
}

impl<T: Multiply> pulp::WithSimd for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        for (j, sums) in self.sums.chunks_exact_mut(self.m).enumerate() {
            let row = self.w.row(self.first + j);
            for (sum, x) in sums.iter_mut().zip(self.x.chunks_exact(self.w.cols())) {
                *sum = T::dot(simd, row, x);
            }
        }
    }
}
