//! What a gradient looks like, in a word.

use std::fmt;

/// What a parameter's gradient looks like. Ordered: the worst is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing conspicuous.
    Healthy,
    /// Tiny beside the parameter, or beside the gradients of the other parameters: see [`Thresholds`](super::Thresholds).
    Vanishing,
    /// Huge beside the parameter: see [`Thresholds::exploding`](super::Thresholds::exploding).
    Exploding,
    /// (Nearly) all elements are exactly zero: see [`Thresholds::dead`](super::Thresholds::dead).
    Dead,
    /// The loss does not depend on the parameter (and that was allowed, else it is an error).
    Disconnected,
    /// An element is NaN or infinite.
    NonFinite,
}

impl Verdict {
    /// As tables print it: in capitals unless healthy.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Vanishing => "VANISHING",
            Verdict::Exploding => "EXPLODING",
            Verdict::Dead => "DEAD",
            Verdict::Disconnected => "DISCONNECTED",
            Verdict::NonFinite => "NON-FINITE",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}
