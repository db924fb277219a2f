//! Attention's operands: stacks of matrices, and rows of them in the precision that is computed in.

use crate::backend::cpu::math::{Compute, Real};
use crate::backend::cpu::matmul::Multiply;
use crate::backend::cpu::matmul::gemm::Mat;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::simd;
use crate::backend::cpu::run::view::In;
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::memory;
use std::ops::Range;

/// A stack of matrices, one for each head.
pub(super) struct Heads<'a, T> {
    pub(super) data: &'a [T],
    pub(super) offsets: Vec<usize>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// Rows in the precision that is computed in, borrowed where they already are.
pub(super) struct Panel<'a, A: Compute<Acc = A>> {
    borrowed: Option<(&'a [A], usize)>,
    owned: Option<Buffer>,
    rows: usize,
    cols: usize,
    /// Rows that hold NaN or infinity, and a copy with zeros in their place.
    bad: Vec<usize>,
    clean: Option<Vec<A>>,
}

impl<A: Real + Compute<Acc = A>> Panel<'_, A> {
    #[inline(always)]
    fn parts(&self) -> (&[A], usize) {
        match (&self.owned, self.borrowed) {
            (Some(b), _) => (b.slice(), self.cols),
            (None, Some((data, stride))) => (data, stride),
            (None, None) => (&[], self.cols),
        }
    }

    /// Some rows.
    pub(super) fn part(&self, rows: Range<usize>) -> Mat<'_, A> {
        let (data, stride) = self.parts();
        let at = if rows.is_empty() { 0 } else { rows.start * stride };
        Mat::new(data.get(at..).unwrap_or_default(), rows.len(), self.cols, stride, 1)
    }

    /// Some rows, with zeros for those that are not finite.
    pub(super) fn clean(&self, rows: Range<usize>) -> Mat<'_, A> {
        match &self.clean {
            Some(c) => Mat::new(&c[rows.start * self.cols..], rows.len(), self.cols, self.cols, 1),
            None => self.part(rows),
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &[A] {
        let (data, stride) = self.parts();
        &data[i * stride..i * stride + self.cols]
    }

    fn inspect(mut self) -> Result<Self> {
        // x − x is 0 for finite x and NaN otherwise. All rows at once: nearly always nothing is found.
        let finite = |rows: Range<usize>| {
            simd::dispatch(
                #[inline(always)]
                || {
                    let mut total = A::ZERO;
                    for i in rows.clone() {
                        total += simd::sum_by(
                            self.row(i),
                            #[inline(always)]
                            #[allow(clippy::eq_op)] // reason: x − x is 0, or NaN where x is not finite
                            |a: A, x: A| a + (x - x),
                        );
                    }
                    total == A::ZERO
                },
            )
        };
        let bad: Vec<usize> =
            if finite(0..self.rows) { Vec::new() } else { memory::try_collect((0..self.rows).filter(|&i| !finite(i..i + 1)))? };
        if !bad.is_empty() {
            let mut copy: Vec<A> = memory::room(self.rows * self.cols)?;
            (0..self.rows).for_each(|i| copy.extend_from_slice(self.row(i)));
            for &i in &bad {
                copy[i * self.cols..(i + 1) * self.cols].fill(A::ZERO);
            }
            self.clean = Some(copy);
            self.bad = bad;
        }
        Ok(self)
    }
}

impl<'a, T: Multiply> Heads<'a, T>
where
    T::Acc: Compute<Acc = T::Acc>,
{
    pub(super) fn new(x: &In<'a>) -> Result<Self> {
        let l = x.layout();
        let r = l.rank() - 2;
        let (shape, strides) = (l.shape(), l.strides());
        let data = if l.numel() == 0 { &[] } else { x.storage::<T>() };
        let lead = Layout::from_parts(shape[..r].into(), strides[..r].iter().copied().collect(), l.offset())?;
        Ok(Heads {
            data,
            offsets: memory::try_collect(lead.indices())?,
            rows: shape[r],
            cols: shape[r + 1],
            row_stride: strides[r],
            col_stride: strides[r + 1],
        })
    }

    /// Rows of consecutive heads: row `r` is row `r % self.rows` of head `first + r / self.rows`.
    pub(super) fn panel(&self, first: usize, rows: Range<usize>) -> Result<Panel<'a, T::Acc>> {
        let mut out = Panel { borrowed: None, owned: None, rows: rows.len(), cols: self.cols, bad: Vec::new(), clean: None };
        if rows.is_empty() || self.cols == 0 {
            return Ok(out);
        }
        let at = |r: usize| self.offsets[first + r / self.rows] + r % self.rows * self.row_stride;
        let one_head = rows.start / self.rows == (rows.end - 1) / self.rows;
        if one_head
            && self.col_stride == 1
            && let Some(data) = T::as_acc(self.data)
        {
            out.borrowed = Some((&data[at(rows.start)..], self.row_stride));
            return out.inspect();
        }
        let mut buffer = Buffer::alloc(<T::Acc as Element>::DTYPE, rows.len() * self.cols)?;
        for (r, row) in rows.zip(buffer.slice_mut::<T::Acc>().chunks_mut(self.cols)) {
            let from = &self.data[at(r)..];
            simd::dispatch(
                #[inline(always)]
                || {
                    if self.col_stride == 1 {
                        for (y, &x) in row.iter_mut().zip(from) {
                            *y = x.load();
                        }
                    } else {
                        for (j, y) in row.iter_mut().enumerate() {
                            *y = from[j * self.col_stride].load();
                        }
                    }
                },
            );
        }
        out.owned = Some(buffer);
        out.inspect()
    }
}

/// `y ← y + alpha w x` for those of the given rows of `x` that the product left out; `transposed` reads `wᵀ`. The first of
/// the rows meets the first weight.
pub(super) fn add_bad<A: Real + Compute<Acc = A>>(
    alpha: A,
    w: &[A],
    ld: usize,
    outputs: usize,
    transposed: bool,
    x: &Panel<'_, A>,
    rows: Range<usize>,
    y: &mut [A],
) {
    for &bad in x.bad.iter().filter(|b| rows.contains(b)) {
        let b = bad - rows.start;
        for (o, y) in y.chunks_mut(x.cols).take(outputs).enumerate() {
            let weight = if transposed { w[b * ld + o] } else { w[o * ld + b] };
            if weight != A::ZERO {
                for (y, &x) in y.iter_mut().zip(x.row(bad)) {
                    *y += alpha * weight * x;
                }
            }
        }
    }
}

/// Rounds to what is stored.
pub(super) fn store<T: Compute>(from: &[T::Acc], to: &mut [T]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (y, &x) in to.iter_mut().zip(from) {
                *y = T::store(x);
            }
        },
    );
}
