//! How often gradients are clipped, and what they were before.

use super::stats::quantile;
use crate::optim::Clipped;
use std::collections::VecDeque;
use std::fmt;

/// The share of steps whose gradients were clipped, over a window of steps.
///
/// Clipping is a guard against rare steps. When it acts on all of them, the threshold is too low, or a gradient is wrong. With
/// SGD the threshold then decides the step; Adam divides by the gradient's own size, so there it only evens out the steps.
///
/// ```
/// use cotangent::{diagnostics::ClipTracker, optim::Clipped};
/// let mut clips = ClipTracker::new(50);
/// for _ in 0..50 {
///     clips.push(&Clipped { norm: 37.0, finite: true, clipped: true });
/// }
/// assert_eq!(clips.rate(), 1.0);
/// assert!(clips.warning().unwrap().contains("100 %"));
/// ```
#[derive(Clone, Debug)]
pub struct ClipTracker {
    window: usize,
    recent: VecDeque<Clipped>,
    steps: usize,
    clipped: usize,
    skipped: usize,
}

impl ClipTracker {
    /// From this share of clipped steps on there is a [`ClipTracker::warning`].
    pub const WARN: f64 = 0.9;
    /// No warning before this many steps: at the start of training gradients are large by right.
    pub const PATIENCE: usize = 20;

    /// Tracks the last `window` steps (at least one).
    pub fn new(window: usize) -> Self {
        ClipTracker { window: window.max(1), recent: VecDeque::new(), steps: 0, clipped: 0, skipped: 0 }
    }

    /// Adds what [`Grads::clip_global_norm`](crate::Grads::clip_global_norm) found.
    pub fn push(&mut self, found: &Clipped) {
        self.steps += 1;
        self.clipped += usize::from(found.clipped);
        self.skipped += usize::from(!found.finite);
        self.recent.push_back(*found);
        if self.recent.len() > self.window {
            self.recent.pop_front();
        }
    }

    /// Share of clipped steps in the window; zero before the first step.
    pub fn rate(&self) -> f64 {
        self.recent.iter().filter(|c| c.clipped).count() as f64 / self.recent.len().max(1) as f64
    }

    /// Share of clipped steps since the beginning.
    pub fn total_rate(&self) -> f64 {
        self.clipped as f64 / self.steps.max(1) as f64
    }

    /// Steps seen.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Steps whose gradient was not finite.
    pub fn non_finite(&self) -> usize {
        self.skipped
    }

    /// The norm before clipping that a share `q` of the window's steps did not exceed.
    pub fn norm_quantile(&self, q: f64) -> f64 {
        quantile(self.recent.iter().map(|c| c.norm), q.clamp(0.0, 1.0))
    }

    /// What is wrong, when nearly every step of the window was clipped.
    pub fn warning(&self) -> Option<String> {
        if self.recent.len() < Self::PATIENCE.min(self.window) || self.rate() < Self::WARN {
            return None;
        }
        Some(format!(
            "{:.0} % of the last {} steps were clipped (norms before clipping: median {:.3e}, largest {:.3e}): with SGD the threshold now decides \
             the step (Adam only loses the differences between steps); if the loss falls and these norms do not, suspect the loss's gradient: gradcheck \
             it, and look at HealthReport; if all is well, raise the threshold above the median",
            100.0 * self.rate(),
            self.recent.len(),
            self.norm_quantile(0.5),
            self.norm_quantile(1.0)
        ))
    }
}

impl fmt::Display for ClipTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "clipped {:.0} % of the last {} steps ({:.0} % of all {}); norm before clipping: median {:.3e}, largest {:.3e}; not finite: {}",
            100.0 * self.rate(),
            self.recent.len(),
            100.0 * self.total_rate(),
            self.steps,
            self.norm_quantile(0.5),
            self.norm_quantile(1.0),
            self.skipped
        )?;
        if let Some(w) = self.warning() {
            write!(f, "\nWARNING: {w}")?;
        }
        Ok(())
    }
}
