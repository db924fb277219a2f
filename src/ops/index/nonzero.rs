//! The places of elements that are not zero: how many there are depends on values, so this is no op of the registry.

use crate::dtype::{Element, with_dtype};
use crate::error::Result;
use crate::memory;
use crate::tape::stops;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::panic::Location;

impl Tensor {
    /// Where elements are not zero, in row-major order: `i64 [count, axes]`, one row of coordinates each. NaN is not zero.
    ///
    /// On a device this waits for the values, since the shape of the result depends on them; a captured step refuses it.
    ///
    /// # Shapes
    /// `let [rows, columns] = mask.nonzero()?.unpack(1)?;` gives the coordinates along each axis of a matrix as lists for
    /// [`Tensor::index_select`]. Of a scalar there are no coordinates: `[1, 0]` or `[0, 0]`.
    ///
    /// # Gradient
    /// None: indices are never tracked.
    ///
    /// # Errors
    /// Out of memory.
    ///
    /// ```
    /// # use cotangent::tensor;
    /// let chosen = tensor![[2, 0], [1, 2]; I64]?; // two experts for each of two tokens
    /// let [tokens, places] = chosen.eq_scalar(2.0)?.nonzero()?.unpack(1)?;
    /// assert_eq!((tokens.to_vec::<i64>()?, places.to_vec::<i64>()?), (vec![0, 1], vec![0, 1]));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("argwhere", "where", "flatnonzero"))]
    #[track_caller]
    pub fn nonzero(&self) -> Result<Tensor> {
        let at = Location::caller();
        stops("nonzero", at, &[self], None);
        places(&self.untracked()).map_err(|e| e.rename_op("nonzero").called_at(at))
    }
}

fn places(x: &Tensor) -> Result<Tensor> {
    let shape = x.shape();
    let flat = with_dtype!(x.dtype(), T => {
        let all = x.to_vec::<T>()?;
        memory::try_collect(all.iter().enumerate().filter(|(_, v)| Element::to_f64(**v) != 0.0).map(|(i, _)| i))?
    });
    // Elements from one position of each axis to the next.
    let steps: SmallVec<[usize; 6]> = (0..shape.rank()).map(|a| shape[a + 1..].iter().product()).collect();
    let mut out = memory::room(flat.len().saturating_mul(steps.len()))?;
    for i in &flat {
        out.extend(steps.iter().zip(shape.iter()).map(|(step, n)| (i / step % n) as i64));
    }
    Tensor::from_vec(out, [flat.len(), steps.len()])?.to_device(x.device())
}

#[cfg(test)]
mod tests {
    use crate::{BF16, F32, F64, I64, Result, Tensor, grad};

    /// Every place is named once, in row-major order, whatever layout and dtype: by the values found there.
    #[test]
    fn places_are_those_of_a_loop() -> Result<()> {
        let x = Tensor::arange(0.0, 60.0, 1.0, F64)?.reshape([3, 4, 5])?;
        let x = x.sin()?.mul_scalar(3.0)?.round()?; // about a tenth is zero
        for x in [x.clone(), x.cast(BF16)?, x.cast(I64)?, x.permute([2, 0, 1])?, x.slice_step(1, .., 2)?, x.select(0, 1)?] {
            let found = x.nonzero()?;
            let (all, dims) = (x.to_f64_vec()?, x.shape().to_vec());
            let mut want = Vec::new();
            for (i, _) in all.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                let mut rest = i;
                let mut at: Vec<i64> = Vec::new();
                for d in dims.iter().rev() {
                    at.insert(0, (rest % d) as i64);
                    rest /= d;
                }
                want.extend(at);
            }
            assert!(want.len() < all.len() * dims.len() && !want.is_empty());
            assert_eq!(found.shape(), &[want.len() / dims.len(), dims.len()]);
            assert_eq!(found.to_vec::<i64>()?, want);
        }
        Ok(())
    }

    #[test]
    fn ends_and_special_values() -> Result<()> {
        assert_eq!(Tensor::scalar(2f32)?.nonzero()?.shape(), &[1, 0]);
        assert_eq!(Tensor::scalar(0f32)?.nonzero()?.shape(), &[0, 0]);
        assert_eq!(Tensor::zeros([0, 3], F32)?.nonzero()?.shape(), &[0, 2]);
        let x = Tensor::from_slice(&[f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY], [4])?;
        assert_eq!(x.nonzero()?.to_vec::<i64>()?, [0, 2, 3]);
        Ok(())
    }

    /// What is computed from places alone has no gradient, and the error says where it ended.
    #[test]
    fn a_lost_gradient_names_it() -> Result<()> {
        let x = Tensor::from_slice(&[1f64, 0.0], [2])?;
        let e = grad(&x, |x| x.nonzero()?.cast(F64)?.sum(..)).unwrap_err();
        assert!(e.is_disconnected() && e.to_string().contains("nonzero"), "{e}");
        Ok(())
    }
}
