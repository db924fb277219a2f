//! Parts of an axis: views, no element moves. Their derivative writes into zeros, which does.

use crate::backend::cpu::remap::{Run, remap};
use crate::backend::cuda::shape::AxisMap;
use crate::backend::{cpu, cuda};
use crate::dtype::{Element, with_dtype};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::layout::Layout;
use crate::op::{
    Composite, Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, Stretch, View, apply_view, apply_view_as, apply1,
    compose1,
};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar, axis_index};
use smallvec::{SmallVec, smallvec};
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

/// A stretch of an axis: `..`, `1..`, `..4`, `1..4`, `1..=3`; negative bounds count from the end (`-3..`, `..-1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First position; from the start when `None`.
    pub start: Option<isize>,
    /// Position after the last; to the end when `None`.
    pub end: Option<isize>,
}

impl Span {
    /// First position and number of positions on an axis of the given extent.
    ///
    /// # Errors
    /// Index error when a bound lies outside the axis, or the start after the end.
    pub fn resolve(self, extent: usize) -> Result<(usize, usize)> {
        let n = isize::try_from(extent).unwrap_or(isize::MAX);
        let bound = |b: isize| {
            let at = if b < 0 { b + n } else { b };
            if at < 0 || at > n {
                bail!(index, "bound {b} of range {self} is outside an axis of extent {extent}");
            }
            Ok(at as usize)
        };
        let start = self.start.map_or(Ok(0), bound)?;
        let end = self.end.map_or(Ok(extent), bound)?;
        if start > end {
            bail!(index, "range {self} starts at {start}, after its end {end}, on an axis of extent {extent}");
        }
        Ok((start, end - start))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(a) = self.start {
            write!(f, "{a}")?;
        }
        f.write_str("..")?;
        self.end.map_or(Ok(()), |b| write!(f, "{b}"))
    }
}

impl From<RangeFull> for Span {
    fn from(_: RangeFull) -> Self {
        Span { start: None, end: None }
    }
}

/// The end after an inclusive last position: `-1` is the axis' end.
fn after(last: isize) -> Option<isize> {
    if last == -1 { None } else { Some(last.saturating_add(1)) }
}

macro_rules! spans {
    ($($t:ty),*) => {$(
        impl From<Range<$t>> for Span {
            fn from(r: Range<$t>) -> Self {
                Span { start: Some(Axis::from(r.start).0), end: Some(Axis::from(r.end).0) }
            }
        }
        impl From<RangeInclusive<$t>> for Span {
            fn from(r: RangeInclusive<$t>) -> Self {
                Span { start: Some(Axis::from(*r.start()).0), end: after(Axis::from(*r.end()).0) }
            }
        }
        impl From<RangeFrom<$t>> for Span {
            fn from(r: RangeFrom<$t>) -> Self {
                Span { start: Some(Axis::from(r.start).0), end: None }
            }
        }
        impl From<RangeTo<$t>> for Span {
            fn from(r: RangeTo<$t>) -> Self {
                Span { start: None, end: Some(Axis::from(r.end).0) }
            }
        }
        impl From<RangeToInclusive<$t>> for Span {
            fn from(r: RangeToInclusive<$t>) -> Self {
                Span { start: None, end: after(Axis::from(r.end).0) }
            }
        }
    )*};
}
spans!(i32, isize, usize);

/// Every `step`-th element of a stretch of an axis; see [`Tensor::slice`] and [`Tensor::slice_step`].
#[derive(Clone, Debug)]
pub struct Slice {
    /// The axis.
    pub axis: Axis,
    /// The stretch.
    pub span: Span,
    /// Distance between elements, at least 1.
    pub step: usize,
}

impl Slice {
    /// Axis, first position, number of elements.
    fn resolve(&self, shape: &Shape) -> Result<(usize, usize, usize)> {
        let axis = self.axis.resolve(shape.rank())?;
        if self.step == 0 {
            bail!(argument, "the step must be at least 1");
        }
        let of = |e: Error| e.about(format!("axis {axis} of {shape}"));
        let (start, len) = self.span.resolve(shape[axis]).map_err(of)?;
        Ok((axis, start, len.div_ceil(self.step)))
    }
}

/// The positions of an axis that a slice takes, by the textbook: a bound below 0 counts from the end.
fn define_places(slice: &Slice, extent: usize) -> Vec<usize> {
    let at = |bound: Option<isize>, open: usize| match bound {
        None => open,
        Some(b) if b < 0 => extent - b.unsigned_abs(),
        Some(b) => b as usize,
    };
    (at(slice.span.start, 0)..at(slice.span.end, extent)).step_by(slice.step).collect()
}

impl Describe for Slice {
    const NAME: &'static str = "slice";
    const MATH: Math = Math {
        forward: "y[…, k, …] = x[…, start + k·step, …]",
        vjp: "x̄ = 0 except x̄[…, start + k·step, …] = ȳ[…, k, …]",
        kinks: "linear",
        cost: "none: a view; the derivative writes x̄ once",
        references: "numpy basic indexing",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let places = define_places(self, x[0].shape[axis]);
        vec![Nd::from_fn(x[0].extents_with(axis, places.len()), |i| {
            let mut at = i.to_vec();
            at[axis] = places[i[axis]];
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (a, b, n) = (g.extent(), g.extent(), g.int(4, 7));
        let of = |axis: i32, span: Span, step: usize| Slice { axis: axis.into(), span, step };
        let mut out = Vec::new();
        let spans: [Span; 9] = [
            (..).into(),
            (1..).into(),
            (..3).into(),
            (1..3).into(),
            (-2..).into(),
            (..-1).into(),
            (1..=2).into(),
            (..=-1).into(),
            (2..2).into(),
        ];
        for span in spans {
            for step in [1, 2, 3] {
                out.push(Sample::check(of(1, span, step), [g.normal([a, n, 2])]));
            }
        }
        out.push(Sample::check(of(0, (1..).into(), 2), [g.normal([n, b])]));
        out.push(Sample::check(of(-1, (..2).into(), 1), [g.normal([b, n])]));
        out.push(Sample::check(of(0, (1..8).into(), 3), [g.normal([9])]).note("fixture step_slice"));
        out.push(Sample::check(of(0, (..).into(), usize::MAX), [g.normal([3])]).note("one element whatever the step"));
        out.push(Sample::check(of(0, (..).into(), 2), [g.normal([0, 2])]).note("no elements"));
        out.push(Sample::check(of(0, (3..).into(), 1), [g.normal([3, 2])]).note("nothing left at the end"));
        out.push(Sample::value(of(1, (3..).into(), 1), [g.normal([70, 300])]).note("more than one parallel piece"));
        out.push(Sample::reject(of(0, (1..4).into(), 1), [g.normal([3, 2])], ErrorKind::Index));
        out.push(Sample::reject(of(0, (-4..).into(), 1), [g.normal([3, 2])], ErrorKind::Index));
        out.push(Sample::reject(of(0, Span { start: Some(2), end: Some(1) }, 1), [g.normal([3, 2])], ErrorKind::Index));
        out.push(Sample::reject(of(0, (..).into(), 0), [g.normal([3, 2])], ErrorKind::Argument));
        out.push(Sample::reject(of(2, (..).into(), 1), [g.normal([3, 2])], ErrorKind::Shape).note("axis out of range"));
        out
    }
}

impl View for Slice {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        let (axis, start, len) = self.resolve(x.shape())?;
        x.slice(axis, start, len, self.step)
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        apply1(SliceVjp { slice: self.clone(), of: x.shape.clone() }, &[y_bar])
    }

    fn stretch(&self, x: &Shape) -> Option<Stretch> {
        let (axis, start, len) = self.resolve(x).ok()?;
        Some(Stretch { axis, start, len, step: self.step })
    }
}

/// The derivative of [`Slice`]: writes ȳ into zeros.
#[derive(Clone, Debug)]
pub struct SliceVjp {
    /// The slice.
    pub slice: Slice,
    /// Shape of what was sliced.
    pub of: Shape,
}

impl Describe for SliceVjp {
    const NAME: &'static str = "slice_vjp";
    const MATH: Math = Math {
        forward: "x̄ = 0 except x̄[…, start + k·step, …] = ȳ[…, k, …]",
        vjp: "the slice",
        kinks: "linear",
        cost: "reads ȳ, writes x̄",
        references: "transpose of a selection matrix",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = axis_index(self.slice.axis, self.of.rank());
        // For every position of the axis, which element of the slice it was.
        let mut taken = vec![None; self.of[axis]];
        for (k, place) in define_places(&self.slice, self.of[axis]).into_iter().enumerate() {
            taken[place] = Some(k);
        }
        vec![Nd::from_fn(&self.of, |i| {
            let Some(k) = taken[i[axis]] else { return S::zero() };
            let mut at = i.to_vec();
            at[axis] = k;
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of =
            |of: &[usize], axis: i32, span: Span, step: usize| SliceVjp { slice: Slice { axis: axis.into(), span, step }, of: of.into() };
        vec![
            Sample::check(of(&[3, 5], 1, (1..4).into(), 1), [g.normal([3, 3])]),
            Sample::check(of(&[5, 3], 0, (1..).into(), 2), [g.normal([2, 3])]),
            Sample::check(of(&[2, 7, 2], 1, (..).into(), 3), [g.normal([2, 3, 2])]),
            Sample::check(of(&[3, 2], 0, (3..).into(), 1), [g.normal([0, 2])]).note("nothing to write: all zero"),
            Sample::check(of(&[0, 2], 0, (..).into(), 1), [g.normal([0, 2])]),
            Sample::value(of(&[40_000], 0, (5..).into(), 2), [g.normal([19_998])]).note("one long row in parallel pieces"),
            Sample::value(of(&[300, 70], 0, (17..).into(), 3), [g.normal([95, 70])]),
            Sample::reject(of(&[3, 5], 1, (1..4).into(), 1), [g.normal([3, 4])], ErrorKind::Shape),
            Sample::bench(of(&[4096, 2304], 1, (768..1536).into(), 1), [g.normal([4096, 768])]),
        ]
    }
}

impl Op for SliceVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let (axis, _, len) = self.slice.resolve(&self.of)?;
        let want = self.of.with_dim(axis, len);
        if x[0].shape != want {
            bail!(shape, "the cotangent has shape {}, the slice {want}", x[0].shape);
        }
        Ok(smallvec![Spec { shape: self.of.clone(), dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (axis, start, len) = self.slice.resolve(&self.of)?;
        let mut runs = identity(&self.of);
        let used = len.checked_sub(1).map_or(0, |n| n * self.slice.step + 1);
        let read = if len <= 1 || self.slice.step == 1 {
            Run::Forward { from: 0, len }
        } else {
            Run::Spread { from: 0, len: used, every: self.slice.step }
        };
        runs[axis] = vec![Run::Fill(start), read, Run::Fill(self.of[axis] - start - used)];
        with_dtype!(x[0].dtype(), T => remap(&x[0], &runs, <T as Element>::from_f64(0.0), y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (axis, start, len) = self.slice.resolve(&self.of)?;
        let mut axes: SmallVec<[AxisMap; 8]> = self.of.iter().map(|&d| AxisMap::whole(d)).collect();
        axes[axis] = AxisMap { extent: self.of[axis], shift: -(start as i64), step: self.slice.step, ..AxisMap::whole(len) };
        cuda::shape::remap(&x[0], &axes, 0.0, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply_view(self.slice.clone(), y_bar.only()?)?)])
    }
}

/// Every axis read whole, in order.
pub(crate) fn identity(shape: &Shape) -> Vec<Vec<Run>> {
    shape.iter().map(|&len| vec![Run::Forward { from: 0, len }]).collect()
}

/// One position of an axis, which disappears; see [`Tensor::select`].
#[derive(Clone, Debug)]
pub struct Select {
    /// The axis.
    pub axis: Axis,
    /// The position; negative ones count from the end.
    pub index: isize,
}

impl Describe for Select {
    const NAME: &'static str = "select";
    const MATH: Math = Math {
        forward: "y[…, …] = x[…, index, …]",
        vjp: "x̄ = 0 except x̄[…, index, …] = ȳ",
        kinks: "linear",
        cost: "none: a view; the derivative writes x̄ once",
        references: "torch.select",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let axis = x[0].axis_at(self.axis);
        let index = if self.index < 0 { self.index + shape[axis] as isize } else { self.index } as usize;
        vec![Nd::from_fn(x[0].extents_without(&[axis], false), |i| {
            let mut at = i.to_vec();
            at.insert(axis, index);
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |axis: i32, index: isize| Select { axis: axis.into(), index };
        let mut out = Vec::new();
        for axis in [0, 1, 2, -1] {
            for index in [0, -1] {
                out.push(Sample::check(of(axis, index), [g.normal(&shape)]));
            }
        }
        out.push(Sample::check(of(0, -2), [g.normal([4, 3])]).note("fixture index_neg"));
        out.push(Sample::check(of(0, 1), [g.normal([3])]).note("to a scalar"));
        out.push(Sample::check(of(0, 1), [g.normal([3, 0])]).note("no elements"));
        out.push(Sample::reject(of(0, 3), [g.normal([3, 2])], ErrorKind::Index));
        out.push(Sample::reject(of(0, -4), [g.normal([3, 2])], ErrorKind::Index));
        out.push(Sample::reject(of(1, 0), [g.normal([3, 0])], ErrorKind::Index));
        out.push(Sample::reject(of(2, 0), [g.normal([3, 2])], ErrorKind::Shape));
        out
    }
}

impl Composite for Select {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let axis = x[0].shape().axis(self.axis)?;
        let extent = x[0].shape()[axis];
        let n = isize::try_from(extent).unwrap_or(isize::MAX);
        if self.index < -n || self.index >= n {
            bail!(index, "index {} is outside axis {axis} of {} (valid: -{extent}..{extent})", self.index, x[0].shape());
        }
        let at = if self.index < 0 { self.index + n } else { self.index } as usize;
        Ok(smallvec![x[0].slice(axis, at..at + 1)?.squeeze(axis)?])
    }
}

impl Tensor {
    /// A stretch of one axis: `x.slice(1, 2..)`, `x.slice(0, ..-1)`, `x.slice(-1, 1..=3)`. A view; no element moves.
    ///
    /// Bounds must lie within the axis (they are not clamped); negative ones count from its end.
    ///
    /// # Gradient
    /// `ȳ` within zeros; saves nothing.
    ///
    /// # Errors
    /// Index error when a bound lies outside the axis; shape error when the axis does not exist.
    ///
    /// ```
    /// # use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[1f32, 2., 3., 4.], [4])?)?;
    /// let y = x.slice(0, 1..3)?;
    /// assert_eq!(y.to_vec::<f32>()?, [2., 3.]);
    /// let grads = tape.backward(&y.square()?.sum(..)?)?;
    /// assert_eq!(grads.get(&x)?.to_vec::<f32>()?, [0., 4., 6., 0.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("getitem", "dynamic_slice"))]
    #[track_caller]
    pub fn slice(&self, axis: impl Into<Axis>, span: impl Into<Span>) -> Result<Tensor> {
        apply_view(Slice { axis: axis.into(), span: span.into(), step: 1 }, self)
    }

    /// Every `step`-th element of a stretch of one axis: `x.slice_step(0, .., 2)`. A view; no element moves.
    ///
    /// # Gradient
    /// `ȳ` spread into zeros; saves nothing.
    ///
    /// # Errors
    /// As [`Tensor::slice`]; argument error for step 0. A reversed axis is a copy: [`Tensor::flip`].
    #[track_caller]
    pub fn slice_step(&self, axis: impl Into<Axis>, span: impl Into<Span>, step: usize) -> Result<Tensor> {
        apply_view_as("slice_step", Slice { axis: axis.into(), span: span.into(), step }, self)
    }

    /// `len` elements of one axis from `start`; see [`Tensor::slice`].
    ///
    /// # Gradient
    /// `ȳ` within zeros; saves nothing.
    ///
    /// # Errors
    /// Index error when they do not lie within the axis; shape error when the axis does not exist.
    #[track_caller]
    pub fn narrow(&self, axis: impl Into<Axis>, start: usize, len: usize) -> Result<Tensor> {
        // A sum that overflows is out of range too.
        let span = start..start.saturating_add(len);
        apply_view_as("narrow", Slice { axis: axis.into(), span: span.into(), step: 1 }, self)
    }

    /// One position of an axis, which disappears; negative positions count from the end. Any integer type will do. A view; no element
    /// moves.
    ///
    /// # Gradient
    /// `ȳ` at that position within zeros; saves nothing.
    ///
    /// # Errors
    /// Index error when the position lies outside the axis; shape error when the axis does not exist.
    #[track_caller]
    pub fn select(&self, axis: impl Into<Axis>, index: impl TryInto<isize>) -> Result<Tensor> {
        // A number beyond any axis stays one.
        compose1(Select { axis: axis.into(), index: index.try_into().unwrap_or(isize::MAX) }, &[self])
    }
}
