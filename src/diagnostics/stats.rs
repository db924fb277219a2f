//! Statistics of one tensor: what every report here is made of.

use crate::backend::cuda::optim::{self, Survey};
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
    pub fn of(x: &Tensor) -> Result<Self> {
        let v = x.to_f64_vec()?;
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

/// The L2 norm of a tensor, where it lies.
pub(super) fn norm(x: &Tensor) -> Result<f64> {
    if x.device().is_cuda() {
        return optim::norm(&[x.array.cuda()?]);
    }
    Ok(norm_of(&x.to_f64_vec()?))
}

/// The L2 norm of values.
pub(super) fn norm_of(v: &[f64]) -> f64 {
    let largest = max_abs(v);
    // Scaled before squaring: nothing overflows or vanishes.
    if largest == 0.0 || !largest.is_finite() { largest } else { largest * v.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt() }
}

/// The largest magnitude; NaN when one element is.
pub(super) fn max_abs(v: &[f64]) -> f64 {
    v.iter().fold(0f64, |m, x| if m.is_nan() || x.is_nan() { f64::NAN } else { m.max(x.abs()) })
}

/// The value that a share `q` of the values does not exceed; NaN counts as the largest. Zero without values.
pub(super) fn quantile(values: impl IntoIterator<Item = f64>, q: f64) -> f64 {
    let mut v: Vec<f64> = values.into_iter().collect();
    v.sort_by(f64::total_cmp);
    if v.is_empty() { 0.0 } else { v[((v.len() - 1) as f64 * q).round() as usize] }
}

/// Mean, deviation, largest magnitude, zeros and what is not finite, where the tensor lies.
pub(super) fn survey(x: &Tensor) -> Result<Survey> {
    if x.device().is_cuda() {
        return optim::survey(&x.array.cuda()?);
    }
    let v = x.to_f64_vec()?;
    let n = v.len().max(1) as f64;
    let mean = v.iter().sum::<f64>() / n;
    Ok(Survey {
        mean,
        std: (v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt(),
        max: max_abs(&v),
        zeros: v.iter().filter(|x| **x == 0.0).count() as f64,
        not_finite: v.iter().filter(|x| !x.is_finite()).count() as f64,
    })
}
