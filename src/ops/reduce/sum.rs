//! Sum over axes.

use crate::backend::cpu::{self, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::sum as kernels;
use crate::backend::cuda::reduce::Lines;
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `Σ x` over axes; see [`Tensor::sum`].
#[derive(Clone, Debug)]
pub struct Sum {
    /// Axes to sum over.
    pub axes: Axes,
    /// Keep them with extent 1.
    pub keep: bool,
    /// Shape of the operand, for the derivative.
    pub of: crate::Shape,
}

impl Describe for Sum {
    const NAME: &'static str = "sum";
    const MATH: Math = Math {
        forward: "y = Σ x over the given axes; 0 over an empty axis",
        vjp: "x̄ = ȳ repeated along the axes (a view)",
        kinks: "linear",
        cost: "reads x, writes y; saves nothing",
        references: "blocked pairwise summation: Higham, Accuracy and Stability of Numerical Algorithms, §4.2",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![reduce_define(&x[0], &self.axes, self.keep, S::sum)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        reduction_samples(g, |axes, keep, of| Sum { axes, keep, of: of.clone() })
    }
}

/// The definition of any reduction: `f` on the elements of each group, in row-major order.
pub(crate) fn reduce_define<S: Scalar>(x: &Nd<S>, axes: &Axes, keep: bool, f: impl Fn(&[S]) -> S) -> Nd<S> {
    let axes = x.axes_at(axes);
    let kept: Vec<usize> = (0..x.shape.rank()).filter(|a| !axes.contains(a)).collect();
    let mut groups: Vec<Vec<S>> = vec![Vec::new(); kept.iter().map(|&a| x.shape[a]).product()];
    let mut elements = x.data.iter();
    let _ = Nd::from_fn(&x.shape, |i| {
        let group = kept.iter().fold(0, |at, &a| at * x.shape[a] + i[a]);
        groups[group].extend(elements.next());
        S::zero()
    });
    Nd::new(x.extents_without(&axes, keep), groups.iter().map(|g| f(g)).collect())
}

/// Every kind of axis set on a rank-3 operand, empty axes, scalars, long rows and long columns.
pub(crate) fn reduction_samples<R: Clone>(g: &mut Gen, op: impl Fn(Axes, bool, &crate::Shape) -> R) -> Vec<Sample<R>> {
    reduction_samples_of(g, |g, s| g.normal(s), op)
}

/// [`reduction_samples`] on operands from a given distribution.
pub(crate) fn reduction_samples_of<R: Clone>(
    g: &mut Gen,
    input: impl Fn(&mut Gen, &crate::Shape) -> Input,
    op: impl Fn(Axes, bool, &crate::Shape) -> R,
) -> Vec<Sample<R>> {
    let input = |g: &mut Gen, shape: &[usize]| input(g, &shape.into());
    let shape = g.shape(3);
    let mut out = Vec::new();
    let sets: [Axes; 8] = [(..).into(), (-1).into(), 0.into(), 1.into(), [0, 1].into(), [1, 2].into(), [0, 2].into(), [2, 0, 1].into()];
    for axes in sets {
        for keep in [false, true] {
            out.push(Sample::check(op(axes.clone(), keep, &shape), [input(g, &shape)]));
        }
    }
    let none = Axes::from(&[] as &[i32]);
    out.push(Sample::check(op(none, false, &shape), [input(g, &shape)]).note("no axis: nothing is reduced"));
    out.push(Sample::check(op((..).into(), false, &().into()), [input(g, &[])]).note("scalar"));
    out.push(Sample::check(op((-1).into(), false, &[0, 3].into()), [input(g, &[0, 3])]).note("no rows [B16]"));
    out.push(Sample::check(op(0.into(), false, &[1, 70].into()), [input(g, &[1, 70])]));
    out.push(Sample::check(op(0.into(), false, &[131, 5].into()), [input(g, &[131, 5])]).note("more rows than one group"));
    out.push(Sample::value(op((-1).into(), false, &[2, 40_000].into()), [input(g, &[2, 40_000])]).note("row longer than a parallel piece"));
    out.push(
        Sample::value(op(0.into(), false, &[300, 270].into()), [input(g, &[300, 270])])
            .note("columns wider than a strip, in several parallel pieces"),
    );
    out.push(Sample::value(op(1.into(), false, &[40, 30, 20].into()), [input(g, &[40, 30, 20])]).note("many blocks of columns"));
    out.push(Sample::value(op(0.into(), true, &[40_001, 3].into()), [input(g, &[40_001, 3])]).note("narrow and long columns"));
    out.push(Sample::reject(op(3.into(), false, &[2, 3].into()), [g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"));
    out.push(Sample::reject(op([1, -1].into(), false, &[2, 3].into()), [g.normal([2, 3])], ErrorKind::Shape));
    out.push(Sample::bench(op((-1).into(), false, &[4096, 1024].into()), [g.normal([4096, 1024])]));
    out.push(Sample::bench(op(0.into(), false, &[4096, 1024].into()), [g.normal([4096, 1024])]));
    out
}

impl Op for Sum {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let axes = self.axes.resolve(x[0].shape.rank())?;
        Ok(smallvec![Spec { shape: x[0].shape.reduced(&axes, self.keep), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        with_float!(x[0].dtype(), T => reduce::sum(&x[0], &axes, y[0].slice::<T>(), #[inline(always)] |v| v))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        Lines::new(&x[0], &axes)?.reduce(y[0].context(), (kernels::reduce, kernels::merge), &mut y[0], 1.0)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(spread(y_bar.only()?, &self.axes, &self.of)?)])
    }
}

/// The cotangent of a reduction, repeated along the reduced axes of `shape`.
pub(crate) fn spread(g: &Tensor, axes: &Axes, shape: &crate::Shape) -> Result<Tensor> {
    let axes = axes.resolve(shape.rank())?;
    g.reshape(shape.reduced(&axes, true))?.expand(shape)
}

impl Tensor {
    /// Sum over axes, which disappear: `x.sum(..)`, `x.sum(-1)`, `x.sum([0, 2])`.
    ///
    /// # Gradient
    /// `ȳ` repeated along the axes; saves nothing.
    ///
    /// # Numerics
    /// Half types accumulate in f32. Blocked pairwise summation in an order fixed by the shape.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; dtype error for integers.
    #[track_caller]
    pub fn sum(&self, axes: impl Into<Axes>) -> Result<Tensor> {
        apply1(Sum { axes: axes.into(), keep: false, of: self.shape().clone() }, &[self])
    }

    /// [`Tensor::sum`] that keeps the axes with extent 1.
    ///
    /// # Errors
    /// As [`Tensor::sum`].
    #[track_caller]
    pub fn sum_keepdim(&self, axes: impl Into<Axes>) -> Result<Tensor> {
        apply1(Sum { axes: axes.into(), keep: true, of: self.shape().clone() }, &[self])
    }
}
