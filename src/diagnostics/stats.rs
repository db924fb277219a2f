//! Statistics of one tensor: what every report here is made of.

use crate::backend::cpu::simd;
use crate::backend::cuda::optim::{self, Survey};
use crate::dtype::{Element, with_dtype};
use crate::error::Result;
use crate::tensor::Tensor;
use std::fmt;

/// What a tensor's elements look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Element type and shape, as in `f32[4, 3]`.
    pub what: String,
    /// Number of elements.
    pub count: usize,
    /// Mean of the finite elements.
    pub mean: f64,
    /// Standard deviation of the finite elements.
    pub std: f64,
    /// Smallest finite element.
    pub min: f64,
    /// Largest finite element.
    pub max: f64,
    /// Number of NaN.
    pub nan: usize,
    /// Number of infinities.
    pub infinite: usize,
    /// Position of the first element that is not finite.
    pub first_bad: Option<Vec<usize>>,
}

impl Stats {
    /// Reads the tensor.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn of(x: &Tensor) -> Result<Self> {
        let at = std::panic::Location::caller();
        let v = x.to_f64_vec().map_err(|e| e.in_op("stats", at).called_at(at))?;
        let finite = || v.iter().copied().filter(|x| x.is_finite());
        let n = finite().count().max(1) as f64;
        let mean = finite().sum::<f64>() / n;
        let nan = v.iter().filter(|x| x.is_nan()).count();
        Ok(Stats {
            what: format!("{}{}", x.dtype(), x.shape()),
            count: v.len(),
            mean,
            std: (finite().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt(),
            min: finite().fold(f64::INFINITY, f64::min),
            max: finite().fold(f64::NEG_INFINITY, f64::max),
            nan,
            infinite: v.iter().filter(|x| x.is_infinite()).count(),
            first_bad: v.iter().position(|x| !x.is_finite()).map(|i| position(i, x.shape().dims())),
        })
    }

    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        self.nan + self.infinite == 0
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if !self.is_finite() {
            write!(f, ": {} NaN and {} infinite of {}", self.nan, self.infinite, self.count)?;
            if let Some(at) = &self.first_bad {
                write!(f, ", first at {at:?}")?;
            }
        }
        if self.count > self.nan + self.infinite {
            let which = if self.is_finite() { "" } else { "; the others" };
            write!(f, "{which} in [{:.3e}, {:.3e}], mean {:.3e}, std {:.3e}", self.min, self.max, self.mean, self.std)?;
        }
        Ok(())
    }
}

/// Indices of element `i` in row-major order.
pub(super) fn position(mut i: usize, extents: &[usize]) -> Vec<usize> {
    let mut out = vec![0; extents.len()];
    for (at, &n) in out.iter_mut().zip(extents).rev() {
        (*at, i) = (i % n.max(1), i / n.max(1));
    }
    out
}

/// Elements that a pass over a CPU tensor takes at a time: as doubles they stay in the first-level cache.
const PIECE: usize = 2048;

/// Gives the elements of a CPU tensor to `f`, a piece at a time, in row-major order.
fn pieces(x: &Tensor, mut f: impl FnMut(&[f64])) -> Result<()> {
    with_dtype!(x.dtype(), T => {
        let mut piece = [0f64; PIECE];
        for part in x.array.cpu()?.contiguous::<T>()?.chunks(PIECE) {
            let piece = &mut piece[..part.len()];
            simd::dispatch(#[inline(always)] || piece.iter_mut().zip(part).for_each(|(d, &v)| *d = v.to_f64()));
            f(piece);
        }
    });
    Ok(())
}

/// The L2 norm of a tensor, computed on its device.
pub(super) fn norm(x: &Tensor) -> Result<f64> {
    if x.device().is_cuda() {
        return optim::norm(&[x.array.cuda()?]);
    }
    let mut total = 0f64;
    pieces(x, |piece| total = total.hypot(norm_of(piece)))?;
    Ok(total)
}

/// The L2 norm of values.
pub(super) fn norm_of(v: &[f64]) -> f64 {
    // Plain where squares neither overflow nor vanish, as they cannot for values of the shorter types.
    let square: f64 = simd::dispatch(
        #[inline(always)]
        || simd::sum_by(v, |a, x| a + x * x),
    );
    if (1e-200..1e200).contains(&square) {
        return square.sqrt();
    }
    let largest = max_abs(v);
    if largest == 0.0 || !largest.is_finite() { largest } else { largest * v.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt() }
}

/// The largest magnitude; NaN when one element is.
pub(super) fn max_abs(v: &[f64]) -> f64 {
    v.iter().fold(0f64, |m, x| if m.is_nan() || x.is_nan() { f64::NAN } else { m.max(x.abs()) })
}

/// The value that a share `q` of the values does not exceed; NaN counts as the largest. Zero without values.
///
/// A search in the order of all numbers, which counts the values once for each bit: a sorted list would need memory that may not be there.
pub(super) fn quantile(values: impl IntoIterator<Item = f64, IntoIter: Clone>, q: f64) -> f64 {
    // Numbers whose order is that of `f64::total_cmp`.
    const SIGN: u64 = 1 << 63;
    let place = |v: f64| if v.to_bits() < SIGN { v.to_bits() | SIGN } else { !v.to_bits() };
    let places = values.into_iter().map(place);
    let n = places.clone().count();
    let (Some(mut low), Some(mut high)) = (places.clone().min(), places.clone().max()) else { return 0.0 };
    let before = ((n - 1) as f64 * q).round() as usize;
    while low < high {
        let middle = low + (high - low) / 2;
        if places.clone().filter(|p| *p <= middle).count() > before { high = middle } else { low = middle + 1 }
    }
    f64::from_bits(if low < SIGN { !low } else { low ^ SIGN })
}

/// Mean, deviation, largest magnitude, zeros and what is not finite, and beside them the norm; computed on the tensor's device.
pub(super) fn survey(x: &Tensor) -> Result<(Survey, f64)> {
    if x.device().is_cuda() {
        return Ok((optim::survey(&x.array.cuda()?)?, norm(x)?));
    }
    let mut all = Survey { mean: 0.0, std: 0.0, max: 0.0, zeros: 0.0, not_finite: 0.0 };
    // Deviations of the pieces are joined around their means: a sum of squares alone would cancel.
    let (mut count, mut deviation, mut total) = (0f64, 0f64, 0f64);
    pieces(x, |piece| {
        let n = piece.len() as f64;
        let (mean, squares, zeros, not_finite) = simd::dispatch(
            #[inline(always)]
            || {
                let mean = simd::sum(piece) / n;
                let squares: f64 = simd::sum_by(piece, |a, x| a + (x - mean) * (x - mean));
                let zeros: f64 = simd::sum_by(piece, |a, x: f64| a + f64::from(u8::from(x == 0.0)));
                let not_finite: f64 = simd::sum_by(piece, |a, x: f64| a + f64::from(u8::from(!x.is_finite())));
                (mean, squares, zeros, not_finite)
            },
        );
        let (apart, both) = (mean - all.mean, count + n);
        deviation += squares + apart * apart * count * n / both;
        all.mean += apart * n / both;
        count = both;
        let largest = max_abs(piece);
        all.max = if all.max.is_nan() || largest.is_nan() { f64::NAN } else { all.max.max(largest) };
        all.zeros += zeros;
        all.not_finite += not_finite;
        total = total.hypot(norm_of(piece));
    })?;
    all.std = (deviation / count.max(1.0)).sqrt();
    Ok((all, total))
}

#[cfg(test)]
mod tests {
    use super::{norm, survey};
    use crate::{BF16, F32, F64, Key, Tensor};

    /// Against the textbook on all elements at once, at lengths around a piece, and for a view.
    #[test]
    fn pieces_join_to_the_whole() -> crate::Result<()> {
        for (n, dtype) in [(0, F32), (1, F64), (2047, BF16), (2048, F32), (2049, F32), (70_001, F64)] {
            let x = Tensor::randn([n], F64, Key::new(n as u64))?.add_scalar(1e3)?.cast(dtype)?;
            let x = Tensor::concat(&[&x, &Tensor::zeros([3], dtype)?], 0)?.flip([0])?;
            let v = x.to_f64_vec()?;
            let count = v.len() as f64;
            let mean = v.iter().sum::<f64>() / count;
            let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
            let whole = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let (s, norm) = survey(&x)?;
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1e-300);
            assert!(close(s.mean, mean) && close(s.std, std) && close(norm, whole), "{n}: {s:?} {norm}; {mean} {std} {whole}");
            assert_eq!((s.max, s.zeros, s.not_finite), (v.iter().fold(0.0, |m, x| x.max(m)), 3.0, 0.0));
        }
        Ok(())
    }

    #[test]
    fn neither_overflows_nor_hides_what_is_not_finite() -> crate::Result<()> {
        let x = Tensor::full([5000], 1e300, F64)?;
        assert!((norm(&x)? / (1e300 * 5000f64.sqrt()) - 1.0).abs() < 1e-12);
        assert!((norm(&Tensor::full([5000], 1e-300, F64)?)? / (1e-300 * 5000f64.sqrt()) - 1.0).abs() < 1e-12);
        let mut v = vec![1f32; 5000];
        (v[10], v[4000]) = (f32::INFINITY, f32::NAN);
        let (s, norm) = survey(&Tensor::from_slice(&v, [5000])?)?;
        assert!(s.not_finite == 2.0 && s.max.is_nan() && !norm.is_finite());
        Ok(())
    }
}
