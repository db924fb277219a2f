//! Gradient health: statistics per parameter, and a verdict.

use crate::backend::cuda::optim::{self, Survey};
use crate::error::Result;
use crate::functional::Grads;
use crate::module::{Module, ModuleExt};
use crate::tensor::Tensor;
use std::fmt;

/// What a parameter's gradient looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing conspicuous.
    Healthy,
    /// The gradient is tiny beside the parameter: norm ratio below [`HealthReport::VANISHING`].
    Vanishing,
    /// The gradient is huge beside the parameter: norm ratio above [`HealthReport::EXPLODING`].
    Exploding,
    /// At least [`HealthReport::DEAD`] of the elements are exactly zero.
    Dead,
    /// An element is NaN or infinite.
    NonFinite,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Healthy => "healthy",
            Verdict::Vanishing => "VANISHING",
            Verdict::Exploding => "EXPLODING",
            Verdict::Dead => "DEAD",
            Verdict::NonFinite => "NON-FINITE",
        })
    }
}

/// Statistics of one parameter's gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Parameter name.
    pub name: String,
    /// Number of elements.
    pub count: usize,
    /// L2 norm.
    pub norm: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Largest absolute value.
    pub max: f64,
    /// Share of elements that are exactly zero.
    pub zeros: f64,
    /// Gradient norm over parameter norm; infinite for a parameter of zeros.
    pub ratio: f64,
    /// The judgement.
    pub verdict: Verdict,
}

/// Health of every parameter of a model; prints as a table.
///
/// ```
/// use cotangent::{diagnostics::{HealthReport, Verdict}, value_and_grad, Tensor};
/// let x = Tensor::from_slice(&[-1f32, -2.0, -3.0], [3])?;
/// let (_, g) = value_and_grad(&x, |x| x.relu()?.sum(..))?;
/// let report = HealthReport::new(&x, &g)?;
/// assert_eq!(report.rows[0].verdict, Verdict::Dead); // all inputs are on the flat side
/// println!("{report}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HealthReport {
    /// One row per trainable parameter, in the model's order.
    pub rows: Vec<Health>,
}

impl HealthReport {
    /// Below this ratio of gradient norm to parameter norm a gradient counts as vanishing.
    pub const VANISHING: f64 = 1e-7;
    /// Above this ratio it counts as exploding.
    pub const EXPLODING: f64 = 1e3;
    /// From this share of exact zeros on it counts as dead.
    pub const DEAD: f64 = 0.99;

    /// Statistics of all gradients of a model.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new<M: Module + Clone>(model: &M, grads: &Grads<M>) -> Result<Self> {
        let params = model.trainable();
        let mut rows = Vec::new();
        for ((name, g), (_, p)) in grads.named().into_iter().zip(params) {
            let (Survey { mean, std, max, zeros, not_finite }, norm) = (survey(&g)?, norm(&g)?);
            let zeros = zeros / g.numel().max(1) as f64;
            let ratio = norm / self::norm(&p)?;
            let verdict = if not_finite > 0.0 {
                Verdict::NonFinite
            } else if zeros >= Self::DEAD && g.numel() > 0 {
                Verdict::Dead
            } else if ratio < Self::VANISHING {
                Verdict::Vanishing
            } else if ratio > Self::EXPLODING && ratio.is_finite() {
                Verdict::Exploding
            } else {
                Verdict::Healthy
            };
            rows.push(Health { name, count: g.numel(), norm, mean, std, max, zeros, ratio, verdict });
        }
        Ok(HealthReport { rows })
    }

    /// Whether no parameter is conspicuous.
    pub fn is_healthy(&self) -> bool {
        self.rows.iter().all(|r| r.verdict == Verdict::Healthy)
    }
}

/// The L2 norm of a tensor, where it lies.
fn norm(x: &Tensor) -> Result<f64> {
    if x.device().is_cuda() {
        return optim::norm(&[x.array.cuda()?]);
    }
    let v = x.to_f64_vec()?;
    let largest = v.iter().fold(0f64, |m, x| if x.is_nan() || x.abs() > m { x.abs() } else { m });
    // Scaled before squaring: nothing overflows or vanishes.
    Ok(if largest == 0.0 || !largest.is_finite() { largest } else { largest * v.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt() })
}

/// Mean, deviation, largest magnitude, zeros and what is not finite, where the tensor lies.
fn survey(x: &Tensor) -> Result<Survey> {
    if x.device().is_cuda() {
        return optim::survey(&x.array.cuda()?);
    }
    let v = x.to_f64_vec()?;
    let n = v.len().max(1) as f64;
    let mean = v.iter().sum::<f64>() / n;
    Ok(Survey {
        mean,
        std: (v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt(),
        max: v.iter().fold(0f64, |m, x| if x.is_nan() || x.abs() > m { x.abs() } else { m }),
        zeros: v.iter().filter(|x| **x == 0.0).count() as f64,
        not_finite: v.iter().filter(|x| !x.is_finite()).count() as f64,
    })
}

impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max("parameter".len());
        writeln!(
            f,
            "{:<width$} {:>9} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10}  verdict",
            "parameter", "elements", "norm", "mean", "std", "max", "zeros", "grad/param"
        )?;
        for r in &self.rows {
            writeln!(
                f,
                "{:<width$} {:>9} {:>10.3e} {:>10.2e} {:>10.3e} {:>10.3e} {:>6.1}% {:>10.2e}  {}",
                r.name,
                r.count,
                r.norm,
                r.mean,
                r.std,
                r.max,
                100.0 * r.zeros,
                r.ratio,
                r.verdict
            )?;
        }
        Ok(())
    }
}
