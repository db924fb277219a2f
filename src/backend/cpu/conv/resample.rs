//! Resampling of an axis: each output a weighted sum of neighbours, or the transpose of that.

use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::backend::resample::Resampling;
use crate::dtype::Element;
use crate::error::Result;
use crate::memory;

/// Multiply-adds that are worth a task.
const TASK: usize = 1 << 15;

/// What each output is made of: places and weights, those of output `i` up to `ends[i]`. Weights of 0 are left out.
struct Rows<A> {
    ends: Vec<usize>,
    at: Vec<usize>,
    by: Vec<A>,
}

impl<A: Real> Rows<A> {
    fn new(r: &Resampling) -> Result<Self> {
        let most = r.to.saturating_mul(r.width());
        let (mut ends, mut at, mut by) = (memory::room(r.to)?, memory::room(most)?, memory::room(most)?);
        let mut weights = Vec::new();
        for i in 0..r.to {
            let first = r.row(i, &mut weights)?;
            for (k, &w) in weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
                at.push(first + k);
                by.push(A::from_f64(w));
            }
            ends.push(at.len());
        }
        Ok(Rows { ends, at, by })
    }

    fn of(&self, i: usize) -> (&[usize], &[A]) {
        let span = if i == 0 { 0 } else { self.ends[i - 1] }..self.ends[i];
        (&self.at[span.clone()], &self.by[span])
    }

    /// The outputs that each of `n` elements is a part of, in order.
    fn transposed(&self, n: usize) -> Result<Self> {
        let mut ends = memory::vec_of(0, n)?;
        for &j in &self.at {
            ends[j] += 1;
        }
        let mut all = 0;
        for e in &mut ends {
            // Where its part begins: each that is put moves it, to its end at last.
            (*e, all) = (all, all + *e);
        }
        let (mut at, mut by) = (memory::vec_of(0, all)?, memory::vec_of(A::ZERO, all)?);
        for i in 0..self.ends.len() {
            let (places, weights) = self.of(i);
            for (&j, &w) in places.iter().zip(weights) {
                (at[ends[j]], by[ends[j]]) = (i, w);
                ends[j] += 1;
            }
        }
        Ok(Rows { ends, at, by })
    }
}

/// `y` of an axis of `x`, or with `back` the transpose.
pub(crate) fn resample<T: Compute>(r: &Resampling, back: bool, axis: usize, x: &In<'_>, y: &mut [T]) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let (_, n, inner) = x.shape().split_at(axis);
    let rows = Rows::<T::Acc>::new(r)?;
    let rows = if back { rows.transposed(r.from)? } else { rows };
    let x = x.contiguous::<T>()?;
    let m = rows.ends.len();
    let lines = (TASK / (inner * rows.at.len().div_ceil(m)).max(1)).max(1);
    y.par_chunks_mut(lines * inner).enumerate().try_for_each(|(task, y)| {
        let mut sums = Buffer::alloc(T::Acc::DTYPE, inner)?;
        let sums = sums.slice_mut::<T::Acc>();
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(inner).enumerate() {
                    let line = task * lines + i;
                    let plane = &x[line / m * n * inner..][..n * inner];
                    let (at, by) = rows.of(line % m);
                    if inner == 1 {
                        let sum = at.iter().zip(by).fold(T::Acc::ZERO, |sum, (&j, &w)| w.mul_add(plane[j].load(), sum));
                        y[0] = T::store(sum);
                        continue;
                    }
                    sums.fill(T::Acc::ZERO);
                    for (&j, &w) in at.iter().zip(by) {
                        for (sum, x) in sums.iter_mut().zip(&plane[j * inner..][..inner]) {
                            *sum = w.mul_add(x.load(), *sum);
                        }
                    }
                    for (y, &sum) in y.iter_mut().zip(&*sums) {
                        *y = T::store(sum);
                    }
                }
            },
        );
        Ok(())
    })
}
