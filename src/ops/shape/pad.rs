//! A constant border.

use super::slice::{Slice, Span};
use crate::backend::cpu::remap::{Run, remap};
use crate::backend::cuda::shape::AxisMap;
use crate::backend::{cpu, cuda};
use crate::dtype::{Element, with_dtype};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply_view, apply1, apply1_as};
use crate::ops::create::held;
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// A border of a constant around a tensor; see [`Tensor::pad`].
#[derive(Clone, Debug)]
pub struct Pad {
    /// Positions before and after, for every axis.
    pub by: SmallVec<[(usize, usize); 4]>,
    /// What they hold.
    pub value: f64,
}

impl Pad {
    fn shape(&self, x: &Shape) -> Result<Shape> {
        if self.by.len() != x.rank() {
            bail!(shape, "{} pairs of widths were given for the {} axes of {x}", self.by.len(), x.rank());
        }
        let extent = |(&d, &(a, b)): (&usize, &(usize, usize))| d.checked_add(a)?.checked_add(b);
        match x.iter().zip(&self.by).map(extent).collect::<Option<Shape>>() {
            Some(shape) => Ok(shape),
            None => bail!(out_of_memory, "{x} padded by {:?} has more elements than memory can address", self.by),
        }
    }
}

impl Describe for Pad {
    const NAME: &'static str = "pad";
    const MATH: Math = Math {
        forward: "y = x with `value` before and after it along every axis",
        vjp: "x̄ = the inner part of ȳ (a view)",
        kinks: "affine",
        cost: "reads x, writes y; saves nothing",
        references: "numpy.pad, mode constant",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape: Vec<usize> = x[0].shape.iter().zip(&self.by).map(|(d, (before, after))| before + d + after).collect();
        vec![Nd::from_fn(shape, |i| {
            let inside = i.iter().zip(&self.by).zip(x[0].shape.iter()).all(|((&i, &(a, _)), &d)| i >= a && i - a < d);
            if !inside {
                return S::lit(self.value);
            }
            let at: Vec<usize> = i.iter().zip(&self.by).map(|(&i, &(a, _))| i - a).collect();
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        let of = |by: &[(usize, usize)], value: f64| Pad { by: by.into(), value };
        vec![
            Sample::check(of(&[(1, 2), (0, 3)], -1.5), [g.normal(&shape)]),
            Sample::check(of(&[(0, 0), (0, 0)], 1.0), [g.normal(&shape)]).note("nothing added"),
            Sample::check(of(&[(2, 0), (0, 0)], 0.0), [g.normal(&shape)]),
            Sample::check(of(&[(0, 0), (1, 1), (0, 0)], 0.25), [g.normal([2, 3, 4])]),
            Sample::check(of(&[(1, 1), (0, 0), (2, 0)], 0.25), [g.normal([2, 3, 2])]),
            Sample::check(of(&[], 3.0), [g.normal(())]).note("scalar"),
            Sample::check(of(&[(1, 2), (0, 0)], 2.0), [g.normal([0, 3])]).note("only border"),
            Sample::value(of(&[(0, 0), (1, 0)], f64::NEG_INFINITY), [g.normal([2, 3])]),
            Sample::value(of(&[(3, 40_000)], 1.0), [g.normal([40_000])]).note("long row in parallel pieces"),
            Sample::value(of(&[(1, 1), (0, 0), (1, 1)], 0.0), [g.normal([60, 9, 65])]),
            Sample::reject(of(&[(1, 1)], -1.0), [g.below(crate::U32, [2], 3)], ErrorKind::Argument).note("a cast would saturate"),
            Sample::reject(of(&[(1, 1)], 0.0), [g.normal([2, 3])], ErrorKind::Shape),
            Sample::reject(of(&[(1, usize::MAX)], 0.0), [g.normal([2])], ErrorKind::OutOfMemory),
            Sample::bench(of(&[(0, 0), (1, 1), (1, 1)], 0.0), [g.normal([64, 128, 128])]),
        ]
    }
}

impl Op for Pad {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        held(self.value, x[0].dtype)?;
        Ok(smallvec![Spec { shape: self.shape(&x[0].shape)?, dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let runs: Vec<Vec<Run>> = x[0]
            .shape()
            .iter()
            .zip(&self.by)
            .map(|(&len, &(a, b))| vec![Run::Fill(a), Run::Forward { from: 0, len }, Run::Fill(b)])
            .collect();
        with_dtype!(x[0].dtype(), T => remap(&x[0], &runs, <T as Element>::from_f64(self.value), y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = |(&len, &(before, after)): (&usize, &(usize, usize))| AxisMap {
            extent: before + len + after,
            shift: -(before as i64),
            ..AxisMap::whole(len)
        };
        let axes: SmallVec<[AxisMap; 8]> = x[0].shape().iter().zip(&self.by).map(axis).collect();
        cuda::shape::remap(&x[0], &axes, self.value, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let mut g = y_bar.only()?.clone();
        for (axis, &(before, after)) in self.by.iter().enumerate() {
            if (before, after) != (0, 0) {
                let span = Span::from(before..g.shape()[axis] - after);
                g = apply_view(Slice { axis: axis.into(), span, step: 1 }, &g)?;
            }
        }
        Ok(smallvec![Some(g)])
    }
}

impl Tensor {
    /// Surrounds the tensor with a constant: one pair `(before, after)` for every axis, outermost first.
    ///
    /// # Gradient
    /// The inner part of `ȳ`, as a view; saves nothing. The constant has no gradient.
    ///
    /// # Errors
    /// Shape error when the number of pairs is not the rank; argument error when an integer dtype does not hold the value.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_slice(&[1f32, 2.], [1, 2])?;
    /// assert_eq!(x.pad(&[(1, 0), (0, 1)], 9.0)?.to_vec::<f32>()?, [9., 9., 9., 1., 2., 9.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias = "constant_pad")]
    #[track_caller]
    pub fn pad(&self, by: &[(usize, usize)], value: f64) -> Result<Tensor> {
        apply1(Pad { by: by.into(), value }, &[self])
    }

    /// [`Tensor::pad`] along one axis.
    ///
    /// # Gradient
    /// As [`Tensor::pad`].
    ///
    /// # Errors
    /// Shape error when the axis does not exist.
    #[track_caller]
    pub fn pad_axis(&self, axis: impl Into<Axis>, before: usize, after: usize, value: f64) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        let axis = self.shape().axis(axis).map_err(|e| e.in_op("pad_axis", at))?;
        let mut by: SmallVec<[(usize, usize); 4]> = smallvec![(0, 0); self.rank()];
        by[axis] = (before, after);
        apply1_as("pad_axis", Pad { by, value }, &[self])
    }
}
