//! Learning-rate schedules: what they are, warm-ups and what follows them.

use super::state::State;
use crate::error::{Error, Result, bail};
use std::f64::consts::PI;
use std::panic::Location;

/// The learning rate at a step (counted from 0): a number, a closure, or one of the schedules here.
///
/// ```
/// use cotangent::optim::{Schedule, WarmupCosine};
/// let warm = WarmupCosine { peak: 1e-3, floor: 1e-4, warmup: 10, end: 100 };
/// let twice = move |step: usize| if step < 100 { warm.at(step) } else { 0.5 * warm.at(step - 100) };
/// assert_eq!([1e-3.at(7), twice.at(10), twice.at(110)], [1e-3, 1e-3, 5e-4]);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a learning-rate schedule",
    note = "a schedule is a number, a closure `|step: usize| -> f64`, a schedule of `cotangent::optim`, or what implements `Schedule`"
)]
pub trait Schedule {
    /// The rate to use for this step.
    fn at(&self, step: usize) -> f64;

    /// Refuses numbers that make no schedule; the trainer asks before its first step.
    ///
    /// # Errors
    /// Argument error that names the number.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Tells it what an evaluation gave. Most schedules are functions of the step and do nothing with it.
    ///
    /// # Errors
    /// What the schedule says about the metric.
    fn observe(&mut self, _metric: f64) -> Result<()> {
        Ok(())
    }

    /// Whether it depends on [`Schedule::observe`].
    fn observes(&self) -> bool {
        false
    }

    /// What it remembers, under names that begin with `schedule.`; nothing for a function of the step.
    fn state(&self) -> State {
        State::default()
    }

    /// Continues from what [`Schedule::state`] gave.
    ///
    /// # Errors
    /// Argument error for a state that is not this schedule's.
    fn load_state(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }

    /// What says, beside the state, how a run of so many steps was scheduled: its rates, at 1000 steps at most. Snapshots keep it,
    /// so that a run does not continue by another schedule unnoticed.
    fn fingerprint(&self, steps: usize) -> String {
        let every = steps.div_ceil(1000).max(1);
        let bits = (0..steps).step_by(every).map(|i| self.at(i).to_bits());
        // FNV-1a over the rates' bits.
        let hash = bits.flat_map(u64::to_le_bytes).fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        format!("{hash:016x}")
    }
}

impl<F: Fn(usize) -> f64> Schedule for F {
    fn at(&self, step: usize) -> f64 {
        self(step)
    }
}

/// Linear warm-up, then half a cosine down to a floor: nanoGPT's schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WarmupCosine {
    /// Highest rate.
    pub peak: f64,
    /// Final rate.
    pub floor: f64,
    /// Steps of warm-up; the first step already moves, with `peak / (warmup + 1)`.
    pub warmup: usize,
    /// Step at which the floor is reached.
    pub end: usize,
}

impl WarmupCosine {
    /// Refuses what is no warm-up and decay; call it where the numbers come from a user.
    ///
    /// ```
    /// use cotangent::optim::WarmupCosine;
    /// assert!(WarmupCosine { peak: 1e-3, floor: 1e-2, warmup: 10, end: 100 }.check().is_err()); // would rise
    /// ```
    ///
    /// # Errors
    /// As [`Warmup::check`].
    #[track_caller]
    pub fn check(&self) -> Result<()> {
        let at = Location::caller();
        self.refuse().map_err(|e: Error| e.in_op("schedule", at))
    }

    fn refuse(&self) -> Result<()> {
        let Self { peak, floor, warmup, end } = *self;
        Warmup { peak, warmup, decay: Decay::Cosine { end, floor } }.refuse()
    }
}

impl Schedule for WarmupCosine {
    fn check(&self) -> Result<()> {
        self.refuse()
    }

    fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step as f64 + 1.0) / (self.warmup as f64 + 1.0);
        }
        if step >= self.end || self.end <= self.warmup {
            return self.floor;
        }
        let t = (step - self.warmup) as f64 / (self.end - self.warmup) as f64;
        self.floor + 0.5 * (1.0 + (PI * t).cos()) * (self.peak - self.floor)
    }
}

/// Linear warm-up to a peak, then a decay: `WarmupCosine` and its relatives.
///
/// ```
/// use cotangent::optim::{Decay, Schedule, Warmup};
/// let wsd = Warmup { peak: 1e-3, warmup: 100, decay: Decay::Wsd { from: 800, end: 1000, floor: 0.0 } };
/// assert_eq!([wsd.at(100), wsd.at(799), wsd.at(900), wsd.at(1000)], [1e-3, 1e-3, 5e-4, 0.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// Highest rate.
    pub peak: f64,
    /// Steps of warm-up; the first step already moves, with `peak / (warmup + 1)`. 0: none.
    pub warmup: usize,
    /// What follows.
    pub decay: Decay,
}

/// How a rate falls after its warm-up, which ends at step `w`. Ends before the warm-up's mean the floor at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Half a cosine, reaching the floor at step `end`.
    Cosine {
        /// Step at which the floor is reached.
        end: usize,
        /// Final rate.
        floor: f64,
    },
    /// A straight line, reaching the floor at step `end`.
    Linear {
        /// Step at which the floor is reached.
        end: usize,
        /// Final rate.
        floor: f64,
    },
    /// `√((w + 1)/(step + 1))`, without an end (Vaswani et al. 2017).
    InverseSqrt,
    /// Warm-up, stable, decay: the peak until step `from`, then a straight line to the floor at step `end` (Hu et al. 2024).
    Wsd {
        /// Last step at the peak.
        from: usize,
        /// Step at which the floor is reached.
        end: usize,
        /// Final rate.
        floor: f64,
    },
}

impl Warmup {
    /// Refuses what is no warm-up and decay; call it where the numbers come from a user.
    ///
    /// # Errors
    /// Argument error for rates that are negative or not finite, a floor above the peak, a warm-up that ends after the decay
    /// does, or a decay that ends before it begins.
    #[track_caller]
    pub fn check(&self) -> Result<()> {
        let at = Location::caller();
        self.refuse().map_err(|e: Error| e.in_op("schedule", at))
    }

    fn refuse(&self) -> Result<()> {
        let Warmup { peak, warmup, decay } = *self;
        let (from, end, floor) = match decay {
            Decay::Constant | Decay::InverseSqrt => (warmup, warmup, 0.0),
            Decay::Cosine { end, floor } | Decay::Linear { end, floor } => (warmup, end, floor),
            Decay::Wsd { from, end, floor } => (from, end, floor),
        };
        if !peak.is_finite() || !floor.is_finite() || floor < 0.0 || floor > peak {
            bail!(argument, "rates must be finite, and 0 <= floor <= peak; found floor {floor}, peak {peak}");
        }
        if warmup > end || from > end {
            bail!(argument, "the decay ends at step {end}, before the warm-up ({warmup}) or its own begin ({from})");
        }
        Ok(())
    }
}

impl Schedule for Warmup {
    fn check(&self) -> Result<()> {
        self.refuse()
    }

    fn at(&self, step: usize) -> f64 {
        let Warmup { peak, warmup, decay } = *self;
        if let Decay::Cosine { end, floor } = decay {
            return WarmupCosine { peak, floor, warmup, end }.at(step);
        }
        if step < warmup {
            return peak * (step as f64 + 1.0) / (warmup as f64 + 1.0);
        }
        let line = |from: usize, end: usize, floor: f64| {
            if step >= end {
                return floor;
            }
            if step <= from {
                return peak;
            }
            peak - (peak - floor) * (step - from) as f64 / (end - from) as f64
        };
        match decay {
            Decay::Constant | Decay::Cosine { .. } => peak,
            Decay::Linear { end, floor } => line(warmup, end, floor),
            Decay::InverseSqrt => peak * ((warmup as f64 + 1.0) / (step as f64 + 1.0)).sqrt(),
            Decay::Wsd { from, end, floor } => line(from.max(warmup), end, floor),
        }
    }
}

impl Schedule for f64 {
    fn at(&self, _: usize) -> f64 {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_decays_and_stays() {
        let s = WarmupCosine { peak: 1.0, floor: 0.1, warmup: 4, end: 14 };
        assert_eq!([s.at(0), s.at(3), s.at(4)], [0.2, 0.8, 1.0]);
        assert!((s.at(9) - 0.55).abs() < 1e-12);
        assert_eq!([s.at(14), s.at(1000)], [0.1, 0.1]);
        assert_eq!(WarmupCosine { warmup: 0, end: 0, ..s }.at(0), 0.1);
    }

    #[test]
    fn every_decay_starts_at_the_peak_and_ends_at_its_floor() {
        let (end, floor) = (14, 0.1);
        let decays = [
            (Decay::Constant, 1.0, 1.0),
            (Decay::Cosine { end, floor }, 0.55, 0.1),
            (Decay::Linear { end, floor }, 0.55, 0.1),
            (Decay::InverseSqrt, 0.5f64.sqrt(), 0.5),
            (Decay::Wsd { from: 8, end, floor }, 0.85, 0.1),
        ];
        for (decay, at_9, at_19) in decays {
            for warmup in [0, 4] {
                let s = Warmup { peak: 1.0, warmup, decay };
                assert!((s.at(warmup) - 1.0).abs() < 1e-12, "{decay:?}");
                let steps: Vec<f64> = (warmup..40).map(|i| s.at(i)).collect();
                assert!(steps.windows(2).all(|w| w[1] <= w[0]), "{decay:?} rises: {steps:?}");
            }
            let s = Warmup { peak: 1.0, warmup: 4, decay };
            assert_eq!([s.at(0), s.at(3)], [0.2, 0.8]);
            assert!((s.at(9) - at_9).abs() < 1e-12 && (s.at(19) - at_19).abs() < 1e-12, "{decay:?}: {} {}", s.at(9), s.at(19));
        }
        assert_eq!(Warmup { peak: 1.0, warmup: 0, decay: Decay::Wsd { from: 9, end: 5, floor } }.at(3), 1.0);
        // Ends before the warm-up's.
        for decay in [Decay::Linear { end: 2, floor }, Decay::Cosine { end: 2, floor }, Decay::Wsd { from: 1, end: 2, floor }] {
            assert_eq!(Warmup { peak: 1.0, warmup: 4, decay }.at(5), 0.1);
        }
    }
}
