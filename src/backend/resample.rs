//! What both backends are told of resampling: which elements of an axis each output is made of, and with which weights.

use crate::error::Result;

/// How [`Tensor::interpolate`](crate::Tensor::interpolate) finds values between the elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterpolateMode {
    /// The element at or before the position: PyTorch's `nearest`.
    #[default]
    Nearest,
    /// The element whose centre is nearest: PyTorch's `nearest-exact`, and that of Pillow and scikit-image.
    NearestExact,
    /// On straight lines between the centres of neighbours: PyTorch's `linear`, `bilinear`, `trilinear`, by the number of axes.
    Linear,
    /// On cubics through four neighbours (Keys 1981): PyTorch's `bicubic`.
    Cubic,
    /// The mean of what an output touches: PyTorch's `area`.
    Area,
}

/// An axis whose elements become others, each a weighted sum of neighbours.
#[derive(Clone, Debug, PartialEq)]
pub struct Resampling {
    /// Between the elements.
    pub mode: InterpolateMode,
    /// How many elements there are.
    pub from: usize,
    /// How many there will be.
    pub to: usize,
    /// By how much positions are apart; `None` is `to / from`.
    pub factor: Option<f64>,
    /// Whether the first and the last elements stay where they are, and not the ends of the axis.
    pub align_corners: bool,
    /// Whether, for fewer outputs, each sees as many more elements.
    pub antialias: bool,
}

/// What a row of weights is computed from; its number is that of kernels/conv/resample.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Same = 0,
    Nearest = 1,
    NearestExact = 2,
    Linear = 3,
    Cubic = 4,
    Area = 5,
    WideLinear = 6,
    WideCubic = 7,
}

/// A position so near below an element is the element's: `i · (1 / factor)` is not exact.
const NEAR: f64 = 1.0 / (1u64 << 40) as f64;

/// Keys's cubic at a distance of at most 2.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

impl Resampling {
    pub(crate) fn rule(&self) -> Rule {
        match self.mode {
            InterpolateMode::Nearest => Rule::Nearest,
            InterpolateMode::NearestExact => Rule::NearestExact,
            InterpolateMode::Area => Rule::Area,
            InterpolateMode::Cubic if !self.antialias => Rule::Cubic,
            // As PyTorch, whatever the factor.
            _ if self.from == self.to => Rule::Same,
            InterpolateMode::Linear if !self.antialias => Rule::Linear,
            InterpolateMode::Linear => Rule::WideLinear,
            InterpolateMode::Cubic => Rule::WideCubic,
        }
    }

    /// Positions of the input between neighbours of the output.
    pub(crate) fn step(&self) -> f64 {
        match (self.align_corners, self.factor) {
            (true, _) if self.to > 1 => (self.from - 1) as f64 / (self.to - 1) as f64,
            (true, _) => 0.0,
            (false, Some(f)) => 1.0 / f,
            (false, None) => self.from as f64 / self.to as f64,
        }
    }

    /// How far around a position an output sees.
    pub(crate) fn reach(&self) -> f64 {
        let own = if self.mode == InterpolateMode::Cubic { 2.0 } else { 1.0 };
        own * self.step().max(1.0)
    }

    /// Elements that an output is made of, at most.
    pub(crate) fn width(&self) -> usize {
        let most = match self.rule() {
            Rule::Same | Rule::Nearest | Rule::NearestExact => 1,
            Rule::Linear => 2,
            Rule::Cubic => 4,
            Rule::Area => self.from.div_ceil(self.to).saturating_add(1),
            Rule::WideLinear | Rule::WideCubic => (2.0 * self.reach()).ceil() as usize + 1,
        };
        most.min(self.from)
    }

    /// The element that is nearest to an output.
    fn nearest(&self, i: usize, exact: bool) -> usize {
        let half = if exact { 0.5 } else { 0.0 };
        let at = match self.factor {
            Some(f) => {
                let p = (i as f64 + half) * (1.0 / f);
                let near = p.round();
                if (near - p).abs() <= p * NEAR { near as usize } else { p as usize }
            }
            None if exact => ((2 * i as u128 + 1) * self.from as u128 / (2 * self.to as u128)) as usize,
            None => (i as u128 * self.from as u128 / self.to as u128) as usize,
        };
        at.min(self.from - 1)
    }

    /// The weights of output `i`: those of consecutive elements, the first of which is the result. Leaves at most [`Resampling::width`].
    pub(crate) fn row(&self, i: usize, weights: &mut Vec<f64>) -> Result<usize> {
        let (n, last) = (self.from, self.from - 1);
        weights.clear();
        let same = |weights: &mut Vec<f64>, w: f64, n: usize| crate::memory::extend(weights, std::iter::repeat_n(w, n));
        Ok(match self.rule() {
            rule @ (Rule::Same | Rule::Nearest | Rule::NearestExact) => {
                same(weights, 1.0, 1)?;
                if rule == Rule::Same { i } else { self.nearest(i, rule == Rule::NearestExact) }
            }
            Rule::Area => {
                let first = (i as u128 * n as u128 / self.to as u128) as usize;
                let end = ((i as u128 + 1) * n as u128).div_ceil(self.to as u128) as usize;
                same(weights, 1.0 / (end - first) as f64, end - first)?;
                first
            }
            rule @ (Rule::Linear | Rule::Cubic) => {
                let p = if self.align_corners { i as f64 * self.step() } else { (i as f64 + 0.5) * self.step() - 0.5 };
                let p = if rule == Rule::Linear { p.max(0.0) } else { p };
                let below = p.floor().min(last as f64);
                let t = (p - below).clamp(0.0, 1.0);
                let (before, taps) = if rule == Rule::Linear { (0, 2) } else { (1, 4) };
                let place = |k: isize| (below as isize + k - before).clamp(0, last as isize) as usize;
                let first = place(0);
                same(weights, 0.0, place(taps - 1) - first + 1)?;
                for k in 0..taps {
                    let x = (k - before) as f64 - t;
                    // What lies outside is the element at the border.
                    weights[place(k) - first] += if rule == Rule::Linear { 1.0 - x.abs() } else { cubic(x, -0.75) };
                }
                first
            }
            rule @ (Rule::WideLinear | Rule::WideCubic) => {
                let (centre, reach, by) = ((i as f64 + 0.5) * self.step(), self.reach(), 1.0 / self.step().max(1.0));
                let first = (centre - reach + 0.5).max(0.0) as usize;
                let end = ((centre + reach + 0.5) as usize).min(n);
                let mut sum = 0.0;
                for j in first..end {
                    let x = (j as f64 - centre + 0.5) * by;
                    let w = if rule == Rule::WideLinear { (1.0 - x.abs()).max(0.0) } else { cubic(x, -0.5) };
                    crate::memory::push(weights, w)?;
                    sum += w;
                }
                weights.iter_mut().for_each(|w| *w /= sum);
                first
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels search for the outputs that see an element: both ends of what an output sees must never go back.
    #[test]
    fn rows_move_forward_and_fit() {
        use InterpolateMode::*;
        let mut rows = 0;
        for (mode, align_corners, antialias) in [
            (Nearest, false, false),
            (NearestExact, false, false),
            (Area, false, false),
            (Linear, false, false),
            (Linear, true, false),
            (Linear, false, true),
            (Linear, true, true),
            (Cubic, false, false),
            (Cubic, true, false),
            (Cubic, false, true),
            (Cubic, true, true),
        ] {
            for from in 1..24 {
                for (to, factor) in
                    (1..40).map(|to| (to, None)).chain([0.3, 0.7, 1.3, 2.6].map(|f| (((from as f64 * f) as usize).max(1), Some(f))))
                {
                    let r = Resampling { mode, from, to, factor, align_corners, antialias };
                    let (mut before, mut w) = ((0, 0), Vec::new());
                    for i in 0..to {
                        let first = r.row(i, &mut w).unwrap();
                        let now = (first, first + w.len());
                        assert!(w.len() <= r.width() && !w.is_empty() && now.1 <= from, "{r:?} {i}: {now:?}");
                        assert!(before.0 <= now.0 && before.1 <= now.1, "{r:?} {i}: {before:?} {now:?}");
                        assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{r:?} {i}: {w:?}");
                        before = now;
                        rows += 1;
                    }
                }
            }
        }
        assert!(rows > 100_000, "{rows}");
    }
}
