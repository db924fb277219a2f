//! An axis whose elements become others, each a weighted sum of neighbours.

use super::define;
use super::samples::SMALLEST;
use crate::backend::resample::{InterpolateMode, Resampling};
use crate::backend::{cpu, cuda};
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// One step of [`Tensor::interpolate`], or with `BACK` the transpose, which is its derivative.
#[derive(Clone, Debug)]
pub struct Resample<const BACK: bool> {
    /// Which axis.
    pub axis: usize,
    /// What becomes of it.
    pub of: Resampling,
}

impl Resampling {
    /// The extent of the axis that an op takes, and that of its result.
    fn extents(&self, back: bool) -> (usize, usize) {
        if back { (self.to, self.from) } else { (self.from, self.to) }
    }

    /// Whether every output is the element at its place.
    pub(super) fn is_identity(&self) -> bool {
        let exact = self.factor.is_none_or(|f| f == 1.0) || self.antialias;
        self.from == self.to && (exact || matches!(self.mode, InterpolateMode::Linear | InterpolateMode::Area))
    }

    /// Argument error for options that do not go together, and extents that do not fit the factor.
    pub(super) fn check(&self) -> Result<()> {
        let Resampling { mode, from, to, factor, align_corners, antialias } = *self;
        let lines = matches!(mode, InterpolateMode::Linear | InterpolateMode::Cubic);
        if (align_corners || antialias) && !lines {
            let option = if align_corners { "align_corners" } else { "antialias" };
            bail!(argument, "{option} is for InterpolateMode::Linear and Cubic, found {mode:?}");
        }
        if from == 0 || to == 0 {
            bail!(shape, "an axis of {from} elements cannot become one of {to}: both must have at least one");
        }
        if let Some(f) = factor.filter(|&f| !f.is_finite() || f <= 0.0 || (from as f64 * f).floor() as usize != to) {
            bail!(argument, "factor {f} does not take {from} elements to {to}");
        }
        // What positions and weights are computed in holds no larger numbers exactly.
        if from.max(to) as u64 > 1 << 48 || from.saturating_mul(to) as u64 > 1 << 62 {
            bail!(argument, "an axis of {from} elements cannot become one of {to}: too many");
        }
        Ok(())
    }
}

impl<const BACK: bool> Describe for Resample<BACK> {
    const NAME: &'static str = if BACK { "resample_vjp" } else { "resample" };
    const MATH: Math = Math {
        forward: if BACK {
            "x̄[…, j, …] = Σᵢ w[i, j] · ȳ[…, i, …] with the weights of resample"
        } else {
            "y[…, i, …] = Σⱼ w[i, j] · x[…, j, …] along one axis, where w follows from extents and mode: 1 at the nearest, a hat or Keys's cubic \
             around position (i + ½)·n/m − ½ (wider by n/m against aliases), equal parts of what an output touches"
        },
        vjp: if BACK { "ȳ = resample of the cotangent" } else { "x̄ = resample_vjp(ȳ)" },
        kinks: "linear; a weight of 0 takes no part, whatever stands there",
        cost: "a multiply-add for each weight; saves nothing",
        references: "Keys, Cubic convolution interpolation for digital image processing, 1981; torch.nn.functional.interpolate",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let rows: Vec<Vec<(usize, S)>> = (0..self.of.to).map(|i| define::made_of(&self.of, i)).collect();
        let extent = if BACK { self.of.from } else { self.of.to };
        vec![x[0].map_lines(self.axis, extent, |line| {
            let mut terms: Vec<Vec<S>> = vec![Vec::new(); extent];
            for (i, row) in rows.iter().enumerate() {
                for &(j, w) in row {
                    let (to, from) = if BACK { (j, i) } else { (i, j) };
                    terms[to].push(define::weighted(w, line[from]));
                }
            }
            terms.iter().map(|t| S::sum(t)).collect()
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        use InterpolateMode::*;
        let plain = |mode, from, to| Resampling { mode, from, to, factor: None, align_corners: false, antialias: false };
        let mut all = Vec::new();
        for mode in [Nearest, NearestExact, Linear, Cubic, Area] {
            for (from, to) in [(4, 7), (7, 3), (3, 3), (1, 3), (3, 1), (2, 5), (26, 22)] {
                all.push((plain(mode, from, to), ""));
            }
            all.push((Resampling { factor: Some(2.6), ..plain(mode, 5, 13) }, "positions by the factor, whose quotients are not exact"));
            all.push((Resampling { factor: Some(1.3), ..plain(mode, 3, 3) }, "a factor that adds no element"));
            all.push((Resampling { factor: Some(0.7), ..plain(mode, 9, 6) }, "fewer, by a factor"));
        }
        for mode in [Linear, Cubic] {
            for (from, to) in [(4, 7), (7, 3), (3, 3), (1, 3), (3, 1), (2, 9)] {
                all.push((Resampling { align_corners: true, ..plain(mode, from, to) }, "the first and the last stay"));
                all.push((Resampling { antialias: true, ..plain(mode, from, to) }, "against aliases"));
            }
            all.push((Resampling { antialias: true, ..plain(mode, 17, 3) }, "many in one"));
            all.push((Resampling { antialias: true, align_corners: true, ..plain(mode, 8, 3) }, "both"));
            all.push((Resampling { antialias: true, factor: Some(0.4), ..plain(mode, 8, 3) }, "against aliases, by a factor"));
        }
        // Sizes do not depend on the limit: other values in all of them find nothing new.
        let whole = g.limit() <= SMALLEST;
        let mut out = Vec::new();
        for (k, (of, note)) in all.into_iter().enumerate().filter(|(k, _)| whole || k % 8 == 2) {
            let n = of.extents(BACK).0;
            // Elements in a row, rows, and both around them.
            let (axis, shape) = [(2, vec![2, 2, n]), (1, vec![2, n, 3]), (0, vec![n])][k % 3].clone();
            out.push(Sample::check(Resample { axis, of }, [g.normal(shape)]).note(note));
        }
        let of = |of, axis| Resample { axis, of };
        let start = plain(Linear, 4, 8).extents(BACK).0;
        let special = [f64::INFINITY, 1.0, f64::NAN, 2.0, f64::NEG_INFINITY, 3.0, 1.0, 0.5];
        out.push(Sample::value(of(plain(Linear, 4, 8), 0), [Input::values([start], &special[..start])]).note("not finite"));
        out.push(Sample::value(of(plain(Linear, 4, 4), 0), [Input::values([4], &special[..4])]).note("a weight of 0 takes no part"));
        out.push(Sample::check(of(plain(Cubic, 4, 8), 1), [g.normal([0, start, 2])]).note("no lines"));
        out.push(Sample::check(of(plain(Cubic, 4, 8), 0), [g.normal([start, 0])]).note("nothing beside the axis"));
        let (many, few) = (plain(Linear, 60, 130).extents(BACK).0, Resampling { antialias: true, ..plain(Cubic, 130, 60) });
        out.push(Sample::value(of(plain(Linear, 60, 130), 1), [g.normal([5, many, 70])]).note("several tasks"));
        out.push(Sample::value(of(few.clone(), 2), [g.normal([7, 40, few.extents(BACK).0])]).note("several tasks, along the last axis"));
        let one = Resampling { antialias: true, ..plain(Linear, 3000, 2) };
        out.push(Sample::value(of(one.clone(), 0), [g.normal([one.extents(BACK).0])]).note("thousands of weights"));

        let mut refuse = |r: Resampling, x: &[usize], axis, kind| out.push(Sample::reject(of(r, axis), [g.normal(x)], kind));
        refuse(plain(Linear, 4, 8), &[2, start + 1], 1, ErrorKind::Shape);
        refuse(plain(Linear, 4, 8), &[2, start], 2, ErrorKind::Shape);
        refuse(plain(Linear, 0, 8), &[2, if BACK { 8 } else { 0 }], 1, ErrorKind::Shape);
        refuse(plain(Linear, 4, 0), &[2, if BACK { 0 } else { 4 }], 1, ErrorKind::Shape);
        refuse(Resampling { align_corners: true, ..plain(Area, 4, 8) }, &[start], 0, ErrorKind::Argument);
        refuse(Resampling { antialias: true, ..plain(Nearest, 4, 8) }, &[start], 0, ErrorKind::Argument);
        refuse(Resampling { factor: Some(f64::NAN), ..plain(Linear, 4, 8) }, &[start], 0, ErrorKind::Argument);
        refuse(Resampling { factor: Some(3.0), ..plain(Linear, 4, 8) }, &[start], 0, ErrorKind::Argument);
        out.push(Sample::reject(of(plain(Linear, 4, 8), 0), [g.below(crate::I64, [start], 3)], ErrorKind::Dtype));
        let large = |axis: usize| Resample { axis, of: plain(Linear, 112, 224) };
        let n = large(2).of.extents(BACK).0;
        out.push(Sample::bench(large(2), [g.normal([8, 64, n, 112])]));
        out.push(Sample::bench(large(3), [g.normal([8, 64, 112, n])]));
        out
    }
}

impl<const BACK: bool> Op for Resample<BACK> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let (from, to) = self.of.extents(BACK);
        let mut shape = x[0].shape.clone();
        if shape.get(self.axis) != Some(&from) {
            bail!(shape, "x {shape}: expected {from} elements along axis {}", self.axis);
        }
        self.of.check()?;
        shape = shape.iter().enumerate().map(|(a, &n)| if a == self.axis { to } else { n }).collect();
        Ok(smallvec![Spec { shape, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        with_float!(x[0].dtype(), T => cpu::conv::resample::<T>(&self.of, BACK, self.axis, &x[0], y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        cuda::conv::resample(&self.of, BACK, self.axis, &x[0], &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let (axis, of, g) = (self.axis, self.of.clone(), y_bar.only()?);
        let x_bar = if BACK { apply1(Resample::<false> { axis, of }, &[g])? } else { apply1(Resample::<true> { axis, of }, &[g])? };
        Ok(smallvec![Some(x_bar)])
    }
}
