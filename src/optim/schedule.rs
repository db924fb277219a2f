//! Learning-rate schedules: pure functions of the step.

use std::f64::consts::PI;

/// The learning rate at a step (counted from 0).
pub trait Schedule {
    /// The rate to use for this step.
    fn at(&self, step: usize) -> f64;
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

impl Schedule for WarmupCosine {
    fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        if step >= self.end || self.end <= self.warmup {
            return self.floor;
        }
        let t = (step - self.warmup) as f64 / (self.end - self.warmup) as f64;
        self.floor + 0.5 * (1.0 + (PI * t).cos()) * (self.peak - self.floor)
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
}
