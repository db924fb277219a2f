//! Tokens from logits.

use crate::error::{Result, bail};
use crate::memory;
use std::panic::Location;

/// How a token is drawn from logits.
///
/// | Field | Default |
/// |---|---|
/// | `temperature` | 1 |
/// | `top_k` | every token |
/// | `top_p` | 1: every token |
/// | `min_p` | 0: every token |
/// | `repetition_penalty` | 1: none |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f64,
    /// Only the so many most probable tokens.
    pub top_k: Option<usize>,
    /// Only the fewest most probable tokens whose probabilities reach this sum (Holtzman et al. 2020); 0 leaves the most probable alone.
    pub top_p: f64,
    /// Only tokens at least so probable, as a part of the most probable one's (Nguyen et al. 2024).
    pub min_p: f64,
    /// Divides the positive logits of tokens that occurred and multiplies the negative (Keskar et al. 2019); see [`Sampling::draw_after`].
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, ..Sampling::GREEDY }
    }
}

impl Sampling {
    /// Always the most probable token; of equals the first.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };

    /// Argument error that names the option which is out of range.
    ///
    /// # Errors
    /// That one.
    #[track_caller]
    pub fn check(&self) -> Result<()> {
        let at = Location::caller();
        self.checked().map_err(|e| e.in_op("sampling", at))
    }

    /// [`Sampling::check`] for callers that name themselves.
    pub(crate) fn checked(&self) -> Result<()> {
        if !(self.temperature >= 0.0) || self.top_k == Some(0) || !(0.0..=1.0).contains(&self.top_p) {
            bail!(
                argument,
                "temperature must not be negative, top-k at least 1 and top-p 0 to 1; found {}, {:?}, {}",
                self.temperature,
                self.top_k,
                self.top_p
            );
        }
        let penalty = self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite();
        if !(penalty && (0.0..=1.0).contains(&self.min_p)) {
            bail!(argument, "min-p must be 0 to 1 and the repetition penalty positive; found {}, {}", self.min_p, self.repetition_penalty);
        }
        Ok(())
    }

    /// [`Sampling::draw`] after the repetition penalty for tokens that occurred. Ids beyond the logits are passed over.
    ///
    /// ```
    /// use cotangent::train::Sampling;
    /// let strict = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
    /// assert_eq!(strict.draw_after(&[1.5, 2.0, -1.0], &[1], 0.5)?, 0); // 2 counts as 1
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Sampling::draw`].
    #[track_caller]
    pub fn draw_after(&self, logits: &[f64], occurred: &[u32], uniform: f64) -> Result<usize> {
        let at = Location::caller();
        self.after(logits, occurred, uniform).map_err(|e| e.in_op("draw_after", at))
    }

    pub(super) fn after(&self, logits: &[f64], occurred: &[u32], uniform: f64) -> Result<usize> {
        self.checked()?;
        if self.repetition_penalty == 1.0 {
            return self.pick(logits, uniform);
        }
        let mut penalised = memory::copied(logits)?;
        for &token in occurred {
            // From the original: a token that occurred twice is penalised once.
            if let (Some(l), Some(to)) = (logits.get(token as usize), penalised.get_mut(token as usize)) {
                *to = if *l > 0.0 { l / self.repetition_penalty } else { l * self.repetition_penalty };
            }
        }
        self.pick(&penalised, uniform)
    }

    /// The token that a uniform number in `[0, 1)` selects.
    ///
    /// ```
    /// use cotangent::train::Sampling;
    /// let logits = [0.0, 2.0, 1.0];
    /// assert_eq!(Sampling::GREEDY.draw(&logits, 0.99)?, 1);
    /// let two = Sampling { top_k: Some(2), ..Sampling::default() };
    /// assert_eq!((two.draw(&logits, 0.0)?, two.draw(&logits, 0.99)?), (1, 2));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Argument error for options out of range, for a number outside `[0, 1)`, for no logits, and for logits of which one is NaN or +∞ or all are −∞; for a repetition
    /// penalty, which needs the tokens that occurred: [`Sampling::draw_after`].
    #[track_caller]
    pub fn draw(&self, logits: &[f64], uniform: f64) -> Result<usize> {
        let at = Location::caller();
        let run = || {
            self.checked()?;
            if self.repetition_penalty != 1.0 {
                bail!(argument, "a repetition penalty of {} needs the tokens that occurred: `draw_after`", self.repetition_penalty);
            }
            self.pick(logits, uniform)
        };
        run().map_err(|e| e.in_op("draw", at))
    }

    fn pick(&self, logits: &[f64], uniform: f64) -> Result<usize> {
        if !(0.0..1.0).contains(&uniform) {
            bail!(argument, "a token is drawn by a uniform number in [0, 1), found {uniform}: `Key::uniform_f64` gives such");
        }
        // The first of equals, as in PyTorch.
        let best = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best });
        let Some(best) = best else { bail!(argument, "there are no logits") };
        let nan = logits.iter().filter(|l| l.is_nan()).count();
        if nan > 0 {
            bail!(
                argument,
                "{nan} of the {} logits are NaN: the model's weights, or what it computes from these tokens, is not finite; \
                 `diagnostics::review` lists such weights, `diagnostics::detect_anomaly` names the op where it begins",
                logits.len()
            );
        }
        if !logits[best].is_finite() {
            bail!(argument, "the logits have no finite largest one (it is {}, of {})", logits[best], logits.len());
        }
        if self.temperature == 0.0 {
            return Ok(best);
        }
        let mut weights: Vec<f64> = memory::try_collect(logits.iter().map(|l| ((l - logits[best]) / self.temperature).exp()))?;
        self.restrict(&mut weights)?;
        let mut left = uniform * weights.iter().sum::<f64>();
        for (i, w) in weights.iter().enumerate() {
            left -= w;
            if left < 0.0 {
                return Ok(i);
            }
        }
        Ok(best)
    }

    /// Sets the weights that top-k, top-p and min-p leave out to zero; the largest weight is 1. Ties at the border go to the smaller index.
    fn restrict(&self, weights: &mut [f64]) -> Result<()> {
        if self.top_k.is_some() || self.top_p < 1.0 {
            let by_weight = |&a: &usize, &b: &usize| weights[b].total_cmp(&weights[a]).then(a.cmp(&b));
            let mut order = memory::try_collect(0..weights.len())?;
            let mut keep = self.top_k.unwrap_or(usize::MAX).min(order.len());
            // Vocabularies are large: no need to sort what is left out anyway.
            if keep < order.len() {
                order.select_nth_unstable_by(keep, by_weight);
            }
            let (kept, left_out) = order.split_at_mut(keep);
            let mut dropped = memory::copied(left_out)?;
            if self.top_p < 1.0 {
                kept.sort_unstable_by(by_weight);
                let enough = self.top_p * kept.iter().map(|&i| weights[i]).sum::<f64>();
                let mut sum = 0.0;
                let reach = kept.iter().position(|&i| {
                    sum += weights[i];
                    sum >= enough
                });
                keep = reach.map_or(keep, |i| i + 1);
                memory::extend(&mut dropped, kept[keep..].iter().copied())?;
            }
            dropped.iter().for_each(|&i| weights[i] = 0.0);
        }
        if self.min_p > 0.0 {
            weights.iter_mut().filter(|w| **w < self.min_p).for_each(|w| *w = 0.0);
        }
        Ok(())
    }
}
