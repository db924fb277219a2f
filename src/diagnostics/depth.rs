//! A quantity against depth (or time): how fast gradients shrink or grow on their way back.

use super::verdict::Verdict;
use crate::error::Result;
use crate::memory;
use std::fmt;
use std::panic::Location;

/// Norms from the input side to the output side; prints as a chart.
///
/// ```
/// use cotangent::diagnostics::{DepthProfile, Verdict};
/// let p = DepthProfile::new((0..10).map(|i| (format!("h.{i}"), 10f64.powi(i - 10))))?;
/// assert_eq!(p.verdict(), Verdict::Vanishing);
/// assert!((p.decades() - 9.0).abs() < 1e-9);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DepthProfile {
    /// Label and norm, from the input to the output.
    pub points: Vec<(String, f64)>,
}

impl DepthProfile {
    /// More decades than this between the ends are vanishing (input side smaller) or exploding (input side larger).
    pub const DECADES: f64 = 3.0;

    /// A profile from labels and norms, from the input to the output.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn new(points: impl IntoIterator<Item = (String, f64)>) -> Result<Self> {
        let at = Location::caller();
        Ok(DepthProfile { points: memory::try_collect(points).map_err(|e| e.in_op("depth_profile", at))? })
    }

    /// By how many powers of ten the norm falls from the output to the input, on a straight line through the logarithms;
    /// negative when it grows. Norms of zero count as the smallest number. Zero for fewer than two points.
    pub fn decades(&self) -> f64 {
        let n = self.points.len() as f64;
        if self.points.len() < 2 {
            return 0.0;
        }
        let logs = || self.points.iter().map(|(_, v)| v.max(f64::MIN_POSITIVE).log10());
        let (mean_x, mean_y) = ((n - 1.0) / 2.0, logs().sum::<f64>() / n);
        let (mut cov, mut var) = (0.0, 0.0);
        for (i, y) in logs().enumerate() {
            let x = i as f64 - mean_x;
            cov += x * (y - mean_y);
            var += x * x;
        }
        cov / var * (n - 1.0)
    }

    /// Vanishing or exploding beyond [`DepthProfile::DECADES`].
    pub fn verdict(&self) -> Verdict {
        let decades = self.decades();
        if self.points.iter().any(|(_, v)| !v.is_finite()) {
            Verdict::NonFinite
        } else if decades > Self::DECADES {
            Verdict::Vanishing
        } else if decades < -Self::DECADES {
            Verdict::Exploding
        } else {
            Verdict::Healthy
        }
    }
}

impl fmt::Display for DepthProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BAR: f64 = 40.0;
        let log = |v: f64| if v > 0.0 && v.is_finite() { Some(v.log10()) } else { None };
        let logs = || self.points.iter().filter_map(|(_, v)| log(*v));
        let (low, high) = (logs().fold(f64::INFINITY, f64::min), logs().fold(f64::NEG_INFINITY, f64::max));
        let width = self.points.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
        writeln!(f, "{:.1} decades from output to input: {}", self.decades(), self.verdict())?;
        for (name, v) in &self.points {
            let length = log(*v).map_or(0.0, |l| 1.0 + (BAR - 1.0) * (l - low) / (high - low).max(1e-9));
            writeln!(f, "{name:<width$} {v:>10.3e} {}", "█".repeat(length as usize))?;
        }
        Ok(())
    }
}
