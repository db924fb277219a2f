//! The layouts under which operands are given: each op must read all of them.

use crate::array::Array;
use crate::backend::{Storage, cpu::Buffer};
use crate::dtype::{DType, Element, with_dtype};
use crate::error::Result;
use crate::layout::{Layout, contiguous_strides};
use crate::shape::{Dims, Shape};
use crate::tensor::Tensor;

/// A place that 32 bits do not hold, whether they count elements or, signed, anything.
const BEYOND_32_BITS: usize = (1 << 31) + 7;

/// How a tensor is laid out in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arrangement {
    /// Row-major from the storage's start.
    Contiguous,
    /// Axes stored in another order (a single axis: every second element).
    Transposed,
    /// A slice inside a larger storage whose other elements are NaN (integers: the largest value).
    Offset,
    /// One axis repeated with stride 0.
    Expanded,
    /// Row-major, but one element past an aligned address.
    Misaligned,
    /// One axis' neighbours so far apart that 32 bits do not hold an element's offset (known bug C9). Host memory only: its pages
    /// cost nothing until they are written.
    Far,
}

impl Arrangement {
    /// Every arrangement that costs little.
    pub const ALL: [Arrangement; 5] =
        [Arrangement::Contiguous, Arrangement::Transposed, Arrangement::Offset, Arrangement::Expanded, Arrangement::Misaligned];

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            Arrangement::Contiguous => "contiguous",
            Arrangement::Transposed => "transposed",
            Arrangement::Offset => "offset",
            Arrangement::Expanded => "expanded",
            Arrangement::Misaligned => "misaligned",
            Arrangement::Far => "far",
        }
    }

    /// Whether the arranged tensor has the given values ([`Arrangement::Expanded`] repeats some of them).
    #[cfg(test)]
    const fn keeps_values(self) -> bool {
        !matches!(self, Arrangement::Expanded)
    }
}

/// A tensor of these values (rounded to the dtype) under an arrangement, or `None` when the shape has no such layout.
/// `turn` varies the choice of axes.
pub(super) fn arrange(values: &[f64], shape: &Shape, dtype: DType, how: Arrangement, turn: usize) -> Result<Option<Tensor>> {
    let (rank, n) = (shape.rank(), shape.numel());
    let mut strides = contiguous_strides(shape);
    let (mut offset, mut len) = (0, n);
    match how {
        Arrangement::Contiguous => {}
        _ if n == 0 => return Ok(None),
        // Gigabytes of address space, which a small machine may refuse.
        Arrangement::Far if dtype.size() > 2 => return Ok(None),
        Arrangement::Misaligned => {
            offset = 1;
            len = n + 1;
        }
        Arrangement::Transposed if rank == 0 => return Ok(None),
        Arrangement::Transposed if rank == 1 => {
            strides[0] = 2;
            len = 2 * n;
        }
        Arrangement::Transposed => {
            let mut order: Vec<usize> = (0..rank).collect();
            if turn.is_multiple_of(2) {
                order.reverse()
            } else {
                order.swap(rank - 1, rank - 2)
            }
            let mut step = 1;
            for &axis in order.iter().rev() {
                strides[axis] = step;
                step *= shape[axis];
            }
        }
        Arrangement::Offset => {
            let before = |i: usize| if i + 1 == rank { 2 } else { 1 };
            let padded: Dims = shape.iter().enumerate().map(|(i, d)| d + before(i) + 2).collect();
            strides = contiguous_strides(&padded);
            offset = (0..rank).map(|i| before(i) * strides[i]).sum();
            len = padded.iter().product();
            if rank == 0 {
                (offset, len) = (2, 4);
            }
        }
        Arrangement::Expanded | Arrangement::Far => {
            let axes: Vec<usize> = (0..rank).filter(|&i| shape[i] > 1).collect();
            if axes.is_empty() {
                return Ok(None);
            }
            let axis = axes[turn % axes.len()];
            let (plane, last) = (n / shape[axis], shape[axis] - 1);
            strides = contiguous_strides(&shape.with_dim(axis, 1));
            strides[axis] = if how == Arrangement::Far { BEYOND_32_BITS.div_ceil(last).max(plane) } else { 0 };
            len = strides[axis] * last + plane;
        }
    }
    let layout = Layout::from_parts(shape.clone(), strides, offset)?;
    with_dtype!(dtype, T => {
        let gap = if dtype.is_float() { <T as Element>::from_f64(f64::NAN) } else { <T as Element>::from_f64(dtype.max_value()) };
        let far = how == Arrangement::Far;
        let mut buffer = if far { Buffer::sparse(dtype, len)? } else { Buffer::alloc_untouched(dtype, len)? };
        let storage = buffer.slice_mut::<T>();
        // What is between the rows of a far layout stays untouched.
        if !far {
            storage.fill(gap);
        }
        // Backwards, so that the first of several values at one place stays.
        for (at, &v) in layout.indices().collect::<Vec<_>>().into_iter().zip(values).rev() {
            storage[at] = <T as Element>::from_f64(v);
        }
        let whole = Array::from_storage(Storage::Cpu(buffer), dtype, Shape::from([len]));
        Ok(Some(Tensor::from_array(whole.with_layout(layout)?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::memory_stats;

    #[test]
    fn arranged_tensors_read_back() -> Result<()> {
        for shape in [vec![], vec![1], vec![5], vec![2, 3], vec![3, 1, 4], vec![2, 2, 3, 2]] {
            let shape = Shape::from(shape);
            let values: Vec<f64> = (0..shape.numel()).map(|i| i as f64).collect();
            for how in Arrangement::ALL.into_iter().chain([Arrangement::Far]) {
                for turn in 0..3 {
                    let Some(t) = arrange(&values, &shape, DType::BF16, how, turn)? else { continue };
                    assert_eq!(t.shape(), &shape);
                    let got = t.to_f64_vec()?;
                    assert!(got.iter().all(|v| v.is_finite()), "{how:?} of {shape} shows a neighbour");
                    assert_eq!(got == values, how.keeps_values(), "{how:?} of {shape}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn far_tensors_leave_nothing_behind() -> Result<()> {
        let shape = Shape::from([3, 4]);
        for _ in 0..3 {
            let t = arrange(&[1.0; 12], &shape, DType::BF16, Arrangement::Far, 0)?.expect("two axes");
            assert_eq!(t.to_f64_vec()?, [1.0; 12]);
        }
        // Other tests run beside this one, but none of them needs gigabytes.
        let s = memory_stats();
        assert!(s.peak < 1 << 30 && s.cached < 1 << 30, "{s:?}");
        Ok(())
    }
}
