//! PyTorch's schedules, by step, and one that follows a metric.

use super::memory::count;
use super::schedule::Schedule;
use super::state::State;
use crate::error::{Result, bail};
use std::f64::consts::PI;

/// Refuses rates that no optimizer takes, and factors that are none.
fn refuse(positive: &[(&str, f64)], counts: &[(&str, usize)]) -> Result<()> {
    if let Some((name, v)) = positive.iter().find(|(_, v)| !v.is_finite() || *v < 0.0) {
        bail!(argument, "{name} must be finite and not negative, found {v}");
    }
    if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
        bail!(argument, "{name} must be at least 1 step");
    }
    Ok(())
}

/// A whole power; the exponent of a huge step is as good as infinite.
fn power(base: f64, n: usize) -> f64 {
    i32::try_from(n).map_or_else(|_| base.powf(n as f64), |n| base.powi(n))
}

/// Half a cosine from `from` to `to`, at a fraction of the way.
fn half_cosine(from: f64, to: f64, at: f64) -> f64 {
    to + (from - to) / 2.0 * (1.0 + (PI * at).cos())
}

/// Multiplies the rate by `gamma` after every `step_size` steps: PyTorch's `StepLR`.
///
/// ```
/// use cotangent::optim::{Schedule, StepLr};
/// let s = StepLr { lr: 0.1, step_size: 30, gamma: 0.5 };
/// assert_eq!([s.at(29), s.at(30), s.at(60)], [0.1, 0.05, 0.025]);
/// ```
#[doc(alias = "StepLR")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLr {
    /// First rate.
    pub lr: f64,
    /// Steps with one rate.
    pub step_size: usize,
    /// Factor from one to the next.
    pub gamma: f64,
}

impl Schedule for StepLr {
    fn at(&self, step: usize) -> f64 {
        self.lr * power(self.gamma, step / self.step_size.max(1))
    }

    fn check(&self) -> Result<()> {
        refuse(&[("lr", self.lr), ("gamma", self.gamma)], &[("step_size", self.step_size)])
    }
}

/// Multiplies the rate by `gamma` at each milestone: PyTorch's `MultiStepLR`.
///
/// ```
/// use cotangent::optim::{MultiStepLr, Schedule};
/// let s = MultiStepLr { lr: 1.0, milestones: vec![30, 80], gamma: 0.5 };
/// assert_eq!([s.at(29), s.at(30), s.at(80)], [1.0, 0.5, 0.25]);
/// ```
#[doc(alias = "MultiStepLR")]
#[derive(Clone, Debug, PartialEq)]
pub struct MultiStepLr {
    /// First rate.
    pub lr: f64,
    /// Steps from which on another factor counts; one that occurs twice counts twice.
    pub milestones: Vec<usize>,
    /// The factor.
    pub gamma: f64,
}

impl Schedule for MultiStepLr {
    fn at(&self, step: usize) -> f64 {
        self.lr * power(self.gamma, self.milestones.iter().filter(|m| **m <= step).count())
    }

    fn check(&self) -> Result<()> {
        refuse(&[("lr", self.lr), ("gamma", self.gamma)], &[])
    }
}

/// Multiplies the rate by `gamma` after every step: PyTorch's `ExponentialLR`.
#[doc(alias = "ExponentialLR")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExponentialLr {
    /// First rate.
    pub lr: f64,
    /// Factor from step to step.
    pub gamma: f64,
}

impl Schedule for ExponentialLr {
    fn at(&self, step: usize) -> f64 {
        self.lr * power(self.gamma, step)
    }

    fn check(&self) -> Result<()> {
        refuse(&[("lr", self.lr), ("gamma", self.gamma)], &[])
    }
}

/// `lr · (1 − step/end)^power`, and 0 from step `end` on: PyTorch's `PolynomialLR`.
#[doc(alias = "PolynomialLR")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolynomialLr {
    /// First rate.
    pub lr: f64,
    /// Step at which the rate is 0 (`total_iters`).
    pub end: usize,
    /// The exponent: 1 is a straight line.
    pub power: f64,
}

impl Schedule for PolynomialLr {
    fn at(&self, step: usize) -> f64 {
        if step >= self.end { 0.0 } else { self.lr * (1.0 - step as f64 / self.end as f64).powf(self.power) }
    }

    fn check(&self) -> Result<()> {
        refuse(&[("lr", self.lr), ("power", self.power)], &[("end", self.end)])
    }
}

/// Half a cosine from `lr` down to `floor`, again and again, each time `multiply` times as long (Loshchilov & Hutter 2017):
/// PyTorch's `CosineAnnealingWarmRestarts`.
///
/// ```
/// use cotangent::optim::{CosineAnnealingWarmRestarts, Schedule};
/// let s = CosineAnnealingWarmRestarts { lr: 0.1, period: 10, multiply: 2, floor: 0.0 };
/// assert_eq!([s.at(0), s.at(10), s.at(30)], [0.1; 3]); // starts again at 10 and 30
/// assert!((s.at(20) - 0.05).abs() < 1e-12); // half the way
/// ```
#[doc(alias = "SGDR")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineAnnealingWarmRestarts {
    /// Rate at each start.
    pub lr: f64,
    /// Steps of the first fall (`T_0`).
    pub period: usize,
    /// Each fall takes this many times the steps of the one before (`T_mult`); 1: all are equal.
    pub multiply: usize,
    /// Rate that a fall goes to, and would reach with the step of the next start (`eta_min`).
    pub floor: f64,
}

impl Schedule for CosineAnnealingWarmRestarts {
    fn at(&self, step: usize) -> f64 {
        let (mut within, mut period) = (step, self.period.max(1));
        if self.multiply <= 1 {
            within %= period;
        } else {
            while within >= period {
                within -= period;
                period = period.saturating_mul(self.multiply);
            }
        }
        half_cosine(self.lr, self.floor, within as f64 / period as f64)
    }

    fn check(&self) -> Result<()> {
        refuse(&[("lr", self.lr), ("floor", self.floor)], &[("period", self.period), ("multiply", self.multiply)])
    }
}

/// Up to a highest rate and down again, far below the first (Smith & Topin 2018): PyTorch's `OneCycleLR`, without its cycle of
/// the momentum.
///
/// ```
/// use cotangent::optim::{OneCycleLr, Schedule};
/// let s = OneCycleLr { pct_start: 0.25, ..OneCycleLr::new(0.1, 100) };
/// assert_eq!(s.at(24), 0.1);
/// assert!(s.at(0) < 0.005 && s.at(99) < 1e-6);
/// ```
#[doc(alias = "OneCycleLR")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneCycleLr {
    /// Highest rate.
    pub max_lr: f64,
    /// Steps of the whole; those after it keep the last rate.
    pub total_steps: usize,
    /// Share of the steps on which the rate rises; 0.3.
    pub pct_start: f64,
    /// Straight lines instead of half cosines; false.
    pub linear: bool,
    /// The first rate is `max_lr / div_factor`; 25.
    pub div_factor: f64,
    /// The last rate is the first one divided by this; 1e4.
    pub final_div_factor: f64,
    /// Fall to the first rate as fast as it rose, and to the last one only then; false.
    pub three_phase: bool,
}

impl OneCycleLr {
    /// With PyTorch's other numbers.
    pub fn new(max_lr: f64, total_steps: usize) -> Self {
        OneCycleLr { max_lr, total_steps, pct_start: 0.3, linear: false, div_factor: 25.0, final_div_factor: 1e4, three_phase: false }
    }
}

impl Schedule for OneCycleLr {
    fn at(&self, step: usize) -> f64 {
        let first = self.max_lr / self.div_factor;
        let last = first / self.final_div_factor;
        let (total, end) = (self.total_steps as f64, self.total_steps.saturating_sub(1) as f64);
        let up = self.pct_start * total - 1.0;
        // (last step of the phase, where it comes from, where it goes to)
        let three = [(up, first, self.max_lr), (2.0 * self.pct_start * total - 2.0, self.max_lr, first), (end, first, last)];
        let two = [(up, first, self.max_lr), (end, self.max_lr, last)];
        let phases: &[(f64, f64, f64)] = if self.three_phase { &three } else { &two };
        let (step, mut start) = ((step as f64).min(end), 0.0);
        for (until, from, to) in phases {
            if step <= *until {
                let at = if until > &start { (step - start) / (until - start) } else { 1.0 };
                return if self.linear { from + (to - from) * at } else { half_cosine(*from, *to, at) };
            }
            start = *until;
        }
        last
    }

    fn check(&self) -> Result<()> {
        let Self { max_lr, total_steps, pct_start, div_factor, final_div_factor, three_phase, .. } = *self;
        refuse(&[("max_lr", max_lr)], &[("total_steps", total_steps)])?;
        let most = if three_phase { 0.5 } else { 1.0 };
        if !(0.0..=most).contains(&pct_start) {
            bail!(argument, "pct_start must be between 0 and {most}, found {pct_start}");
        }
        for (name, v) in [("div_factor", div_factor), ("final_div_factor", final_div_factor)] {
            if !v.is_finite() || v <= 0.0 {
                bail!(argument, "{name} must be positive and finite, found {v}");
            }
        }
        Ok(())
    }
}

/// Multiplies the rate by `factor` when a metric has stopped improving: PyTorch's `ReduceLROnPlateau`.
///
/// It needs the results of evaluations, by [`Schedule::observe`]; the trainer does so after each evaluation that
/// `evaluate_every` asks for, and keeps its state in snapshots. Where a metric is negative, `threshold` is a share of its size
/// (PyTorch takes an unchanged negative loss for a better one).
///
/// ```
/// use cotangent::optim::{ReduceLrOnPlateau, Schedule};
/// let mut s = ReduceLrOnPlateau { factor: 0.5, patience: 1, ..ReduceLrOnPlateau::new(0.1) };
/// for loss in [1.0, 0.8, 0.8, 0.8] {
///     s.observe(loss)?;
/// }
/// assert_eq!(s.at(4), 0.05);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[doc(alias = "ReduceLROnPlateau")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReduceLrOnPlateau {
    /// First rate.
    pub lr: f64,
    /// Whether a larger metric is a better one (`mode='max'`); false.
    pub higher_is_better: bool,
    /// What the rate is multiplied by; 0.1.
    pub factor: f64,
    /// Evaluations in a row without improvement that change nothing; 10. One more reduces the rate.
    pub patience: usize,
    /// What counts as an improvement, as a share of the best metric; 1e-4.
    pub threshold: f64,
    /// Take the threshold as a difference (`threshold_mode='abs'`); false.
    pub absolute: bool,
    /// Evaluations after a reduction that are not counted; 0.
    pub cooldown: usize,
    /// Lowest rate; 0.
    pub min_lr: f64,
    /// Reductions by less than this are left out; 1e-8.
    pub eps: f64,
    /// What it has seen; start with the default.
    pub seen: Plateau,
}

/// What a [`ReduceLrOnPlateau`] remembers; starts empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plateau {
    /// The rate, once it was reduced.
    lr: Option<f64>,
    best: Option<f64>,
    bad: u64,
    cooling: u64,
}

impl ReduceLrOnPlateau {
    /// With PyTorch's other numbers.
    pub fn new(lr: f64) -> Self {
        ReduceLrOnPlateau {
            lr,
            higher_is_better: false,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            absolute: false,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
            seen: Plateau::default(),
        }
    }

    fn is_better(&self, metric: f64) -> bool {
        let Some(best) = self.seen.best else { return !metric.is_nan() };
        let apart = if self.absolute { self.threshold } else { self.threshold * best.abs() };
        if self.higher_is_better { metric > best + apart } else { metric < best - apart }
    }
}

impl Schedule for ReduceLrOnPlateau {
    fn at(&self, _: usize) -> f64 {
        self.seen.lr.unwrap_or(self.lr)
    }

    fn check(&self) -> Result<()> {
        let Self { lr, factor, threshold, min_lr, eps, .. } = *self;
        refuse(&[("lr", lr), ("threshold", threshold), ("min_lr", min_lr), ("eps", eps)], &[])?;
        if !(0.0..1.0).contains(&factor) {
            bail!(argument, "factor must be in [0, 1), found {factor}");
        }
        Ok(())
    }

    fn observe(&mut self, metric: f64) -> Result<()> {
        self.check()?;
        if self.is_better(metric) {
            (self.seen.best, self.seen.bad) = (Some(metric), 0);
        } else {
            self.seen.bad += 1;
        }
        if self.seen.cooling > 0 {
            self.seen.cooling -= 1;
            self.seen.bad = 0;
        }
        if self.seen.bad > self.patience as u64 {
            let old = self.at(0);
            let new = (old * self.factor).max(self.min_lr);
            if old - new > self.eps {
                self.seen.lr = Some(new);
            }
            (self.seen.cooling, self.seen.bad) = (self.cooldown as u64, 0);
        }
        Ok(())
    }

    fn observes(&self) -> bool {
        true
    }

    #[allow(clippy::cast_precision_loss)] // reason: counts stay far below 2⁵³
    fn state(&self) -> State {
        let Plateau { lr, best, bad, cooling } = self.seen;
        let mut s = State::default();
        let numbers = [("bad", Some(bad as f64)), ("cooling", Some(cooling as f64)), ("lr", lr), ("best", best)];
        s.numbers.extend(numbers.into_iter().filter_map(|(n, v)| Some((format!("schedule.{n}"), v?))));
        s
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let of = |n: &str| state.numbers.get(&format!("schedule.{n}")).copied();
        let (lr, best) = (of("lr"), of("best"));
        if let Some(lr) = lr.filter(|lr| !lr.is_finite() || *lr < 0.0) {
            bail!(argument, "`schedule.lr` must be finite and not negative, found {lr}");
        }
        let (bad, cooling) = (count(&state.numbers, "schedule.bad")?, count(&state.numbers, "schedule.cooling")?);
        self.seen = Plateau { lr, best, bad, cooling };
        Ok(())
    }

    /// Its numbers: its rates depend on more than the step.
    fn fingerprint(&self, _: usize) -> String {
        let Self { lr, higher_is_better, factor, patience, threshold, absolute, cooldown, min_lr, eps, seen: _ } = self;
        format!("plateau {lr:?} {higher_is_better} {factor:?} {patience} {threshold:?} {absolute} {cooldown} {min_lr:?} {eps:?}")
    }
}
