//! Images of other sizes.

use super::define;
use super::resample::Resample;
use super::samples::SMALLEST;
use crate::backend::resample::{InterpolateMode, Resampling};
use crate::dtype::DType;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, apply1, compose1};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// What the spatial axes become: extents, or factors of the extents that there are. Numbers and lists of them convert.
///
/// ```
/// use cotangent::ops::InterpolateSize;
/// let same: [InterpolateSize; 2] = [[28, 28].into(), 28.into()];
/// assert_ne!(same[0], same[1]); // one number is for every axis
/// assert_eq!(InterpolateSize::from(2.0), InterpolateSize::ScaleFactor(vec![2.0].into()));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum InterpolateSize {
    /// Extents, one for each spatial axis, or one for all of them.
    Size(Shape),
    /// Factors, one for each spatial axis, or one for all of them; an extent becomes `⌊extent · factor⌋`.
    ScaleFactor(SmallVec<[f64; 3]>),
}

impl From<usize> for InterpolateSize {
    fn from(n: usize) -> Self {
        InterpolateSize::Size([n].into())
    }
}

impl<const D: usize> From<[usize; D]> for InterpolateSize {
    fn from(n: [usize; D]) -> Self {
        InterpolateSize::Size(n.into())
    }
}

impl From<f64> for InterpolateSize {
    fn from(f: f64) -> Self {
        InterpolateSize::ScaleFactor(smallvec![f])
    }
}

impl<const D: usize> From<[f64; D]> for InterpolateSize {
    fn from(f: [f64; D]) -> Self {
        InterpolateSize::ScaleFactor(SmallVec::from_slice(&f))
    }
}

/// Options of [`Tensor::interpolate`]; the default is PyTorch's: the nearest element.
///
/// ```
/// use cotangent::ops::{InterpolateMode, InterpolateOptions};
/// let smooth = InterpolateOptions { mode: InterpolateMode::Linear, antialias: true, ..InterpolateOptions::default() };
/// assert!(!smooth.align_corners);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterpolateOptions {
    /// How values between elements are found.
    pub mode: InterpolateMode,
    /// Whether the first and the last elements stay at the ends of the result, and not the borders of the image: for linear and cubic.
    pub align_corners: bool,
    /// Whether, where the result is smaller, each of its elements sees as many more of the image's: for linear and cubic.
    pub antialias: bool,
    /// Whether positions follow from the extents that a factor gave, not from the factor itself: they differ where an extent was rounded.
    pub recompute_scale_factor: bool,
}

/// Spatial axes resampled one after the other; see [`Tensor::interpolate`].
#[derive(Clone, Debug)]
pub struct Interpolate {
    /// To what.
    pub to: InterpolateSize,
    /// How.
    pub options: InterpolateOptions,
}

/// An item for each axis: one for all of them, or one each.
fn each<T: Copy>(items: &[T], what: &str, x: &Shape) -> Result<SmallVec<[T; 3]>> {
    let spatial = x.rank().saturating_sub(2);
    match items {
        [one] => Ok(SmallVec::from_elem(*one, spatial)),
        _ if items.len() == spatial => Ok(SmallVec::from_slice(items)),
        _ => {
            let hint = if items.len() == spatial + 1 { "; unsqueeze(0) adds the batch axis" } else { "" };
            bail!(argument, "{} {what}s for the {spatial} spatial axes of x {x}: expected one for each, or one for all{hint}", items.len())
        }
    }
}

impl Interpolate {
    /// What becomes of each spatial axis.
    fn axes(&self, x: &Shape) -> Result<SmallVec<[Resampling; 3]>> {
        if x.rank() < 3 {
            bail!(shape, "x {x}: expected [batch, channels, ..] with at least one spatial axis; unsqueeze(0) adds an axis");
        }
        let o = &self.options;
        let axis = |from, to, factor| {
            let factor = if o.recompute_scale_factor || o.align_corners || o.mode == InterpolateMode::Area { None } else { factor };
            Resampling { mode: o.mode, from, to, factor, align_corners: o.align_corners, antialias: o.antialias }
        };
        let made: SmallVec<[Resampling; 3]> = match &self.to {
            InterpolateSize::Size(to) => {
                let to = each(to, "extent", x)?;
                if o.recompute_scale_factor {
                    bail!(argument, "recompute_scale_factor is for factors, found the size {to:?}");
                }
                x[2..].iter().zip(to).map(|(&n, m)| axis(n, m, None)).collect()
            }
            InterpolateSize::ScaleFactor(by) => {
                let by = each(by, "factor", x)?;
                if by.iter().any(|&f| !f.is_finite() || f <= 0.0) {
                    bail!(argument, "factors {by:?} must be positive and finite");
                }
                x[2..].iter().zip(by).map(|(&n, f)| axis(n, (n as f64 * f).floor() as usize, Some(f))).collect()
            }
        };
        if let Some(a) = made.iter().position(|r| r.from == 0 || r.to == 0) {
            let (from, to) = (made[a].from, made[a].to);
            bail!(shape, "axis {} of x {x} has {from} elements and would have {to}: both must be at least 1", a + 2);
        }
        made.iter().try_for_each(Resampling::check)?;
        Ok(made)
    }
}

impl Describe for Interpolate {
    const NAME: &'static str = "interpolate";
    const MATH: Math = Math {
        forward: "y[n, c, p] = Σ Πₐ wₐ[pₐ, qₐ] · x[n, c, q] over positions q, with the weights of resample along each spatial axis a",
        vjp: "x̄[q] = Σ Πₐ wₐ[pₐ, qₐ] · ȳ[p]: the transposes, axis by axis",
        kinks: "linear; a weight of 0 takes no part, whatever stands there",
        cost: "a composition: resample along each axis that changes, first where most is left out; saves nothing",
        references: "torch.nn.functional.interpolate",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (o, spatial) = (&self.options, x[0].shape.rank() - 2);
        let mut rows = Vec::new();
        for a in 0..spatial {
            let from = x[0].shape[2 + a];
            // One number is for all axes.
            let (to, factor) = match &self.to {
                InterpolateSize::Size(to) => (to[if to.rank() == 1 { 0 } else { a }], None),
                InterpolateSize::ScaleFactor(by) => {
                    let f = by[if by.len() == 1 { 0 } else { a }];
                    ((from as f64 * f) as usize, (!o.recompute_scale_factor).then_some(f))
                }
            };
            let r = Resampling { mode: o.mode, from, to, factor, align_corners: o.align_corners, antialias: o.antialias };
            rows.push((0..to).map(|i| define::made_of::<S>(&r, i)).collect::<Vec<_>>());
        }
        let shape = [&x[0].shape[..2], &rows.iter().map(Vec::len).collect::<Vec<_>>()].concat();
        vec![Nd::from_fn(shape, |i| {
            let mut seen = vec![(i[..2].to_vec(), S::one())];
            for (a, rows) in rows.iter().enumerate() {
                let part =
                    |(at, w): &(Vec<usize>, S)| rows[i[2 + a]].iter().map(|&(j, v)| ([&at[..], &[j]].concat(), *w * v)).collect::<Vec<_>>();
                seen = seen.iter().flat_map(part).collect();
            }
            let terms: Vec<S> = seen.iter().map(|(at, w)| define::weighted(*w, x[0].at(at))).collect();
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        use InterpolateMode::*;
        let plain = InterpolateOptions::default();
        let of = |to: InterpolateSize, options| Interpolate { to, options };
        let mut out = Vec::new();
        // Sizes do not depend on the limit: other values in all of them find nothing new.
        let modes = [Linear, Cubic, Nearest, NearestExact, Area];
        let modes = if g.limit() <= SMALLEST { &modes[..] } else { &modes[..1] };
        for &mode in modes {
            let options = InterpolateOptions { mode, ..plain };
            out.push(Sample::check(of([7].into(), options), [g.normal([2, 1, 4])]).note("one axis"));
            out.push(Sample::check(of([3, 7].into(), options), [g.normal([1, 2, 5, 4])]).note("fewer and more: unequal factors [E11]"));
            out.push(Sample::check(of([1, 4, 2].into(), options), [g.normal([1, 1, 2, 2, 3])]).note("three axes"));
            out.push(
                Sample::check(of([1.5, 0.75].into(), options), [g.normal([1, 1, 3, 5])]).note("factors that are no whole numbers [E11]"),
            );
            let recomputed = InterpolateOptions { recompute_scale_factor: true, ..options };
            out.push(Sample::check(of(1.5.into(), recomputed), [g.normal([1, 1, 3, 5])]).note("positions by the extents"));
        }
        for mode in [Linear, Cubic] {
            let aligned = InterpolateOptions { mode, align_corners: true, ..plain };
            let wide = InterpolateOptions { mode, antialias: true, ..plain };
            out.push(Sample::check(of([3, 7].into(), aligned), [g.normal([1, 2, 5, 4])]));
            out.push(Sample::check(of(2.0.into(), aligned), [g.normal([1, 2, 3, 1])]));
            out.push(Sample::check(of([3, 6].into(), wide), [g.normal([1, 1, 8, 4])]));
            out.push(Sample::check(of([0.4, 1.5].into(), wide), [g.normal([1, 1, 8, 3])]));
        }
        let linear = InterpolateOptions { mode: Linear, ..plain };
        out.push(Sample::check(of([3, 4].into(), linear), [g.normal([1, 2, 3, 4])]).note("nothing changes"));
        out.push(Sample::check(of(2.into(), linear), [g.normal([0, 2, 3, 4])]).note("no images"));
        let special = Input::values([1, 1, 2, 3], [f64::INFINITY, 1.0, 2.0, f64::NAN, 3.0, 0.5]);
        out.push(Sample::value(of(2.0.into(), linear), [special]).note("not finite at borders"));

        let mut refuse = |to: InterpolateSize, options, x: &[usize], kind| out.push(Sample::reject(of(to, options), [g.normal(x)], kind));
        refuse([3, 3].into(), plain, &[2, 5], ErrorKind::Shape);
        refuse([3, 3].into(), plain, &[2, 5, 5], ErrorKind::Argument);
        refuse([3, 0].into(), plain, &[1, 2, 5, 5], ErrorKind::Shape);
        refuse([3, 3].into(), plain, &[1, 2, 0, 5], ErrorKind::Shape);
        refuse(0.1.into(), plain, &[1, 2, 5, 5], ErrorKind::Shape);
        refuse((-1.0).into(), plain, &[1, 2, 5, 5], ErrorKind::Argument);
        refuse(f64::INFINITY.into(), plain, &[1, 2, 5, 5], ErrorKind::Argument);
        refuse(2.0.into(), InterpolateOptions { align_corners: true, ..plain }, &[1, 2, 5, 5], ErrorKind::Argument);
        refuse(2.0.into(), InterpolateOptions { antialias: true, mode: Area, ..plain }, &[1, 2, 5, 5], ErrorKind::Argument);
        refuse([3, 3].into(), InterpolateOptions { recompute_scale_factor: true, ..plain }, &[1, 2, 5, 5], ErrorKind::Argument);
        out.push(Sample::reject(of(2.0.into(), plain), [g.below(crate::U8, [1, 1, 3], 3)], ErrorKind::Dtype));
        out.push(Sample::bench(of([224, 224].into(), linear), [g.normal([8, 3, 128, 160])]));
        let small = InterpolateOptions { antialias: true, ..linear };
        out.push(Sample::bench(of([64, 64].into(), small), [g.normal([8, 3, 256, 256])]));
        out
    }
}

impl Composite for Interpolate {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let x = x[0];
        if !x.dtype().is_float() {
            bail!(dtype, "expected floats, found {} {}: cast it, and round what comes back", x.dtype(), x.shape());
        }
        let axes = self.axes(x.shape())?;
        // Before tables of each axis' length are made.
        let result: Shape = x.shape().iter().take(2).copied().chain(axes.iter().map(|a| a.to)).collect();
        crate::memory::ensure(result.checked_numel()?.saturating_mul(x.dtype().size()))?;
        let mut order: SmallVec<[usize; 3]> = (0..axes.len()).filter(|&a| !axes[a].is_identity()).collect();
        let growth = |a: usize| axes[a].to as f64 / axes[a].from as f64;
        order.sort_by(|&a, &b| growth(a).total_cmp(&growth(b)));
        // Of half types nothing is rounded between the axes.
        let widen = order.len() > 1 && x.dtype().is_half();
        let mut y = if widen { x.cast(DType::F32)? } else { x.clone() };
        for a in order {
            y = apply1(Resample::<false> { axis: 2 + a, of: axes[a].clone() }, &[&y])?;
        }
        Ok(smallvec![y.cast(x.dtype())?])
    }
}

impl Tensor {
    /// Resamples the spatial axes of `[batch, channels, ..]` to other extents: enlarges or shrinks images.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::{InterpolateMode, InterpolateOptions}};
    /// let x = Tensor::from_slice(&[1f32, 2., 3., 4.], [1, 1, 2, 2])?;
    /// let twice = x.interpolate(2.0, &InterpolateOptions::default())?;
    /// assert_eq!(twice.to_vec::<f32>()?, [1., 1., 2., 2., 1., 1., 2., 2., 3., 3., 4., 4., 3., 3., 4., 4.]);
    /// let smooth = InterpolateOptions { mode: InterpolateMode::Linear, ..InterpolateOptions::default() };
    /// assert_eq!(x.interpolate([1, 4], &smooth)?.to_vec::<f32>()?, [2., 2.25, 2.75, 3.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Shapes
    /// `x` has one or more spatial axes. `to` are extents (`[224, 224]`), or factors (`2.0`, `[2.0, 1.5]`), by which extents become
    /// `⌊extent · factor⌋`; one number is for all axes. A position of the result is the middle of its part of the image: `(i + ½)·n/m − ½`;
    /// by a factor `n/m` is its reciprocal, and with `align_corners` positions are `i·(n − 1)/(m − 1)`.
    ///
    /// # Gradient
    /// `ȳ` goes back to what each position was made of, by the same weights; saves nothing.
    ///
    /// # Numerics
    /// PyTorch's modes, also over three axes where PyTorch has two. Weights are computed in f64 and rounded once; half types are rounded
    /// once, at the end. The nearest element is found exactly, as PyTorch does in float64 (but for two axes to the same or twice the extents
    /// by a factor, where it leaves the factor out); in float32 it rounds positions, and may take a
    /// neighbour (from 26 elements to 22). An element of weight 0 takes no part, also an infinite one: PyTorch gives NaN there.
    ///
    /// # Errors
    /// Shape error without a spatial axis, or for an axis that has or would have no elements; argument error for another number of extents
    /// or factors, a factor that is not positive, and options that do not go together; dtype error for integers.
    #[doc(alias("upsample", "resize"))]
    #[track_caller]
    pub fn interpolate(&self, to: impl Into<InterpolateSize>, options: &InterpolateOptions) -> Result<Tensor> {
        compose1(Interpolate { to: to.into(), options: *options }, &[self])
    }
}
