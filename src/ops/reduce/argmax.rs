//! The index of the largest or smallest element along an axis.

use crate::backend::cpu::{self, order};
use crate::backend::cuda;
use crate::dtype::{I64, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, apply_as, apply1, apply1_as, expect};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Index of the extremum along an axis; see [`Tensor::argmax`], [`Tensor::argmin`].
#[derive(Clone, Debug)]
pub struct Arg {
    /// Of the largest element (else the smallest).
    pub largest: bool,
    /// The axis.
    pub axis: Axis,
    /// Keep it with extent 1.
    pub keep: bool,
}

/// The extremum along an axis and its index; see [`Tensor::max_with_index`], [`Tensor::min_with_index`].
#[derive(Clone, Debug)]
pub struct WithIndex {
    /// The largest element (else the smallest).
    pub largest: bool,
    /// The axis.
    pub axis: Axis,
    /// Keep it with extent 1.
    pub keep: bool,
    /// Shape of the operand, for the derivative.
    pub of: Shape,
}

/// Resolves the axis; an empty one has no extremum.
fn line(x: &Shape, axis: Axis) -> Result<usize> {
    let axis = axis.resolve(x.rank())?;
    if x[axis] == 0 {
        bail!(shape, "axis {axis} of {x} is empty: it has no extremum");
    }
    Ok(axis)
}

/// Position of the first extremum; NaN wins.
fn position<S: Scalar>(line: &[S], largest: bool) -> usize {
    let mut best = 0;
    for (i, v) in line.iter().enumerate() {
        let (v, b) = (v.re(), line[best].re());
        if !b.is_nan() && (v.is_nan() || if largest { v > b } else { v < b }) {
            best = i;
        }
    }
    best
}

/// Lines with ties, NaN, infinities, every axis, and lengths around the kernels' blocks.
fn samples_of<O: Clone>(g: &mut Gen, op: impl Fn(bool, i32, bool, &[usize]) -> O, check: bool) -> Vec<Sample<O>> {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let mut out = Vec::new();
    let shape = g.shape(3);
    for largest in [true, false] {
        for (axis, keep) in [(0, false), (1, true), (2, false), (-1, true), (-3, false)] {
            let (op, x) = (op(largest, axis, keep, &shape), [g.distinct(&shape)]);
            out.push(if check { Sample::check(op, x) } else { Sample::value(op, x) });
        }
        for n in [1, 15, 16, 17, 33, 100] {
            out.push(Sample::value(op(largest, -1, false, &[2, n]), [g.distinct([2, n])]));
        }
        for values in [&[1.0, 3.0, 3.0, -2.0, -2.0][..], &[1.0, nan, 5.0, nan], &[inf, inf], &[-inf, -inf, -inf], &[0.0, -0.0]] {
            out.push(
                Sample::value(op(largest, 0, false, &[values.len()]), [Input::values([values.len()], values)])
                    .note("the first of equals; NaN wins"),
            );
        }
        let tied: Vec<f64> = (0..90).map(|i| if i % 7 == 3 { 2.0 } else { 1.0 }).collect();
        out.push(Sample::value(op(largest, 0, false, &[90]), [Input::values([90], tied.clone())]).note("ties in different lanes"));
        out.push(Sample::value(op(largest, 0, false, &[30, 3]), [Input::values([30, 3], tied)]).note("ties in columns"));
        out.push(
            Sample::value(op(largest, 0, true, &[3, 2]), [Input::values([3, 2], [1.0, nan, nan, 2.0, 5.0, nan])]).note("NaN in columns"),
        );
        out.push(Sample::value(op(largest, 0, false, &[70, 300]), [g.normal([70, 300])]));
        out.push(Sample::value(op(largest, 1, false, &[0, 3]), [g.normal([0, 3])]));
        out.push(Sample::reject(op(largest, 0, false, &[0, 3]), [g.normal([0, 3])], ErrorKind::Shape).note("empty axis"));
        out.push(Sample::reject(op(largest, 2, false, &[2, 3]), [g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"));
    }
    for axis in [0, -1] {
        out.push(Sample::bench(op(true, axis, false, &[4096, 1024]), [g.normal([4096, 1024])]));
    }
    out
}

impl Describe for Arg {
    const NAME: &'static str = "argmax";
    const MATH: Math = Math {
        forward: "y = index of the largest (smallest) element along the axis (i64)",
        vjp: "none: indices are never tracked",
        kinks: "the first of equals; the first NaN, when there is one",
        cost: "reads x, writes y",
        references: "torch.argmax, torch.argmin",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let y = x[0].map_lines(axis, 1, |line| vec![S::lit(position(line, self.largest) as f64)]);
        vec![y.reshape(x[0].extents_without(&[axis], self.keep))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples_of(g, |largest, axis, keep, _| Arg { largest, axis: axis.into(), keep }, false)
    }
}

impl Op for Arg {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        let axis = line(&x[0].shape, self.axis)?;
        Ok(smallvec![Spec { shape: x[0].shape.reduced(&[axis], self.keep), dtype: I64 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = line(x[0].shape(), self.axis)?;
        with_float!(x[0].dtype(), T => order::arg::<T>(&x[0], axis, self.largest, y[0].slice::<i64>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = line(x[0].shape(), self.axis)?;
        cuda::reduce::arg(&x[0], axis, self.largest, None, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None])
    }
}

impl Describe for WithIndex {
    const NAME: &'static str = "max_with_index";
    const MATH: Math = Math {
        forward: "y = the largest (smallest) element along the axis, and its index (i64)",
        vjp: "ȳ at the chosen index, exactly 0 elsewhere",
        kinks: "of equals the first one is chosen and takes all of ȳ; the first NaN wins",
        cost: "reads x, writes y and the index; saves the index",
        references: "torch.max(dim)",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let shape = x[0].extents_without(&[axis], self.keep);
        let y = x[0].map_lines(axis, 1, |line| vec![line[position(line, self.largest)]]);
        let i = x[0].map_lines(axis, 1, |line| vec![S::lit(position(line, self.largest) as f64)]);
        vec![y.reshape(&shape[..]), i.reshape(&shape[..])]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples_of(g, |largest, axis, keep, of| WithIndex { largest, axis: axis.into(), keep, of: of.into() }, true)
    }
}

impl Op for WithIndex {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let axis = line(&x[0].shape, self.axis)?;
        let shape = x[0].shape.reduced(&[axis], self.keep);
        Ok(smallvec![Spec { shape: shape.clone(), dtype }, Spec { shape, dtype: I64 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = line(x[0].shape(), self.axis)?;
        let (_, n, inner) = x[0].shape().split_at(axis);
        let [values, indices] = y else { bail!(internal, "two outputs expected") };
        with_float!(x[0].dtype(), T => {
            let data = x[0].contiguous::<T>()?;
            order::arg::<T>(&x[0], axis, self.largest, indices.slice::<i64>())?;
            for (k, (v, &i)) in values.slice::<T>().iter_mut().zip(&*indices.slice::<i64>()).enumerate() {
                *v = data[(k / inner * n + i as usize) * inner + k % inner];
            }
        });
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = line(x[0].shape(), self.axis)?;
        let [values, indices] = y else { bail!(internal, "two outputs expected") };
        cuda::reduce::arg(&x[0], axis, self.largest, Some(values), indices)
    }

    fn save(&self, _: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(&y[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let axis = self.axis.resolve(self.of.rank())?;
        let kept = self.of.reduced(&[axis], true);
        let (g, index) = (y_bar.only()?.reshape(&kept)?, saved.get(0)?.reshape(&kept)?);
        Ok(smallvec![Some(place(&self.of, axis, &index, &g)?)])
    }
}

/// `g` at the given places along an axis, 0 elsewhere.
pub(crate) fn place(of: &Shape, axis: usize, index: &Tensor, g: &Tensor) -> Result<Tensor> {
    Tensor::full_on(of, 0.0, g.dtype(), g.device())?.scatter_add(axis, index, g)
}

/// Both outputs of an op that has two.
pub(crate) fn two(y: crate::op::Outputs) -> Result<(Tensor, Tensor)> {
    match <[Tensor; 2]>::try_from(y.into_vec()) {
        Ok([values, indices]) => Ok((values, indices)),
        Err(_) => bail!(internal, "two outputs expected"),
    }
}

impl Tensor {
    /// Index (`i64`) of the largest element along an axis, which disappears.
    ///
    /// # Gradient
    /// None: indices are never tracked.
    ///
    /// # Numerics
    /// The first of equal elements; NaN counts as largest.
    ///
    /// # Errors
    /// Shape error when the axis does not exist or is empty; dtype error for integers.
    #[track_caller]
    pub fn argmax(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1(Arg { largest: true, axis: axis.into(), keep: false }, &[self])
    }

    /// [`Tensor::argmax`] that keeps the axis with extent 1.
    ///
    /// # Errors
    /// As [`Tensor::argmax`].
    #[track_caller]
    pub fn argmax_keepdim(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1(Arg { largest: true, axis: axis.into(), keep: true }, &[self])
    }

    /// Index (`i64`) of the smallest element along an axis, which disappears.
    ///
    /// # Gradient
    /// None: indices are never tracked.
    ///
    /// # Numerics
    /// The first of equal elements; the first NaN, when there is one.
    ///
    /// # Errors
    /// As [`Tensor::argmax`].
    #[track_caller]
    pub fn argmin(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1_as("argmin", Arg { largest: false, axis: axis.into(), keep: false }, &[self])
    }

    /// [`Tensor::argmin`] that keeps the axis with extent 1.
    ///
    /// # Errors
    /// As [`Tensor::argmax`].
    #[track_caller]
    pub fn argmin_keepdim(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1_as("argmin", Arg { largest: false, axis: axis.into(), keep: true }, &[self])
    }

    /// The largest element along an axis, which disappears, and its index (`i64`).
    ///
    /// # Gradient
    /// All of `ȳ` to the chosen index (ties are not shared, unlike [`Tensor::max`]); saves the index.
    ///
    /// # Numerics
    /// The first of equal elements; NaN wins.
    ///
    /// # Errors
    /// As [`Tensor::argmax`].
    #[track_caller]
    pub fn max_with_index(&self, axis: impl Into<Axis>) -> Result<(Tensor, Tensor)> {
        two(apply(WithIndex { largest: true, axis: axis.into(), keep: false, of: self.shape().clone() }, &[self])?)
    }

    /// The smallest element along an axis, which disappears, and its index (`i64`).
    ///
    /// # Gradient
    /// As [`Tensor::max_with_index`].
    ///
    /// # Errors
    /// As [`Tensor::argmax`].
    #[track_caller]
    pub fn min_with_index(&self, axis: impl Into<Axis>) -> Result<(Tensor, Tensor)> {
        two(apply_as("min_with_index", WithIndex { largest: false, axis: axis.into(), keep: false, of: self.shape().clone() }, &[self])?)
    }
}
