//! Sorting along an axis, and the first few in order.

use super::argmax::{place, two};
use crate::backend::cpu::{self, order};
use crate::backend::cuda;
use crate::dtype::{I64, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, expect};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Sorted lines and where each element came from; with `TOP` only the first `k`. See [`Tensor::sort`], [`Tensor::topk`].
#[derive(Clone, Debug)]
pub struct Sort<const TOP: bool> {
    /// The axis.
    pub axis: Axis,
    /// Largest first.
    pub descending: bool,
    /// How many to keep of each line; ignored without `TOP`.
    pub k: usize,
    /// Shape of the operand, for the derivative.
    pub of: Shape,
}

impl<const TOP: bool> Sort<TOP> {
    fn kept(&self, n: usize) -> usize {
        if TOP { self.k } else { n }
    }
}

impl<const TOP: bool> Describe for Sort<TOP> {
    const NAME: &'static str = if TOP { "topk" } else { "sort" };
    const MATH: Math = Math {
        forward: "y = the elements along the axis in order (topk: the first k of them), and their indices (i64)",
        vjp: "ȳ back at the indices, exactly 0 at elements that were not kept",
        kinks: "equal elements keep their order; NaN is larger than every number",
        cost: "reads x, O(n log n) comparisons per line (topk: O(n + k log k)); saves the indices",
        references: "torch.sort(stable=True), torch.topk",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let k = if TOP { self.k } else { x[0].shape[axis] };
        let order = |line: &[S]| -> Vec<usize> {
            // Insertion sort: moves an element only past larger ones, so it is stable.
            let greater = |a: f64, b: f64| (a.is_nan() && !b.is_nan()) || a > b;
            let mut out: Vec<usize> = Vec::new();
            for i in 0..line.len() {
                let before = |j: &usize| {
                    let (a, b) = (line[*j].re(), line[i].re());
                    if self.descending { greater(b, a) } else { greater(a, b) }
                };
                let at = out.iter().position(before).unwrap_or(out.len());
                out.insert(at, i);
            }
            out.truncate(k);
            out
        };
        let values = x[0].map_lines(axis, k, |line| order(line).into_iter().map(|i| line[i]).collect());
        let indices = x[0].map_lines(axis, k, |line| order(line).into_iter().map(|i| S::lit(i as f64)).collect());
        vec![values, indices]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let op = |axis: i32, descending: bool, k: usize, of: &[usize]| Sort { axis: axis.into(), descending, k, of: of.into() };
        let mut out = Vec::new();
        for descending in [false, true] {
            for (axis, k) in [(0, 3), (1, 3), (2, 2), (-1, 1)] {
                out.push(Sample::check(op(axis, descending, k, &[3, 4, 2]), [g.distinct([3, 4, 2])]));
            }
            out.push(Sample::check(op(0, descending, 1, &[1]), [g.normal([1])]));
            out.push(Sample::check(op(-1, descending, 3, &[2, 21]), [g.distinct([2, 21])]));
            out.push(Sample::check(op(0, descending, 0, &[0, 3]), [g.normal([0, 3])]).note("empty lines"));
            out.push(Sample::check(op(1, descending, 2, &[0, 3]), [g.normal([0, 3])]).note("no lines"));
            let values = [2.0, nan, -1.0, inf, 2.0, -inf, 0.0, -0.0, nan, 2.0];
            out.push(Sample::value(op(0, descending, 6, &[10]), [Input::values([10], values)]).note("stable; NaN is largest; −0 equals 0"));
            out.push(Sample::value(op(-1, descending, 100, &[3, 700]), [g.normal([3, 700])]).note("many ties in half types"));
            out.push(Sample::value(op(0, descending, 5, &[130, 40]), [g.normal([130, 40])]).note("columns"));
            out.push(Sample::reject(op(2, descending, 1, &[2, 3]), [g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"));
            if TOP {
                out.push(Sample::check(op(-1, descending, 0, &[2, 3]), [g.normal([2, 3])]).note("k = 0"));
                out.push(Sample::reject(op(-1, descending, 4, &[2, 3]), [g.normal([2, 3])], ErrorKind::Argument).note("k beyond the line"));
            }
        }
        out.push(Sample::bench(op(-1, true, 50, &[256, 4096]), [g.normal([256, 4096])]));
        out
    }
}

impl<const TOP: bool> Op for Sort<TOP> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let axis = self.axis.resolve(x[0].shape.rank())?;
        let n = x[0].shape[axis];
        if TOP && self.k > n {
            bail!(argument, "k = {} exceeds the extent {n} of axis {axis} of {}", self.k, x[0].shape);
        }
        let shape = x[0].shape.with_dim(axis, self.kept(n));
        Ok(smallvec![Spec { shape: shape.clone(), dtype }, Spec { shape, dtype: I64 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let k = self.kept(x[0].shape()[axis]);
        let [values, indices] = y else { bail!(internal, "two outputs expected") };
        with_float!(x[0].dtype(), T => order::sort::<T>(&x[0], axis, k, self.descending, values.slice::<T>(), indices.slice::<i64>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let k = self.kept(x[0].shape()[axis]);
        let [values, indices] = y else { bail!(internal, "two outputs expected") };
        cuda::reduce::sort::sort(&x[0], axis, k, self.descending, values, indices)
    }

    fn save(&self, _: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(&y[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let axis = self.axis.resolve(self.of.rank())?;
        Ok(smallvec![Some(place(&self.of, axis, saved.get(0)?, y_bar.only()?)?)])
    }
}

// What is not generic is compiled here, and not by every user.
#[track_caller]
#[inline(never)]
fn sort(x: &Tensor, axis: Axis, descending: bool) -> Result<(Tensor, Tensor)> {
    let sorted = apply(Sort::<false> { axis, descending, k: 0, of: x.shape().clone() }, &[x]);
    two(if descending { sorted.map_err(|e| e.rename_op("sort_descending")) } else { sorted }?)
}

#[track_caller]
#[inline(never)]
fn topk(x: &Tensor, k: usize, axis: Axis, descending: bool) -> Result<(Tensor, Tensor)> {
    let found = apply(Sort::<true> { axis, descending, k, of: x.shape().clone() }, &[x]);
    two(if descending { found } else { found.map_err(|e| e.rename_op("bottomk")) }?)
}

impl Tensor {
    /// The elements along an axis from the smallest to the largest, and the indices (`i64`) they came from.
    ///
    /// # Gradient
    /// `ȳ` goes back to where each element came from; saves the indices.
    ///
    /// # Numerics
    /// Stable: equal elements keep their order. NaN is larger than every number.
    ///
    /// # Errors
    /// Shape error when the axis does not exist; dtype error for integers.
    #[doc(alias = "argsort")]
    #[track_caller]
    pub fn sort(&self, axis: impl Into<Axis>) -> Result<(Tensor, Tensor)> {
        sort(self, axis.into(), false)
    }

    /// [`Tensor::sort`] from the largest to the smallest. Equal elements keep their order here too.
    ///
    /// # Gradient
    /// As there.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn sort_descending(&self, axis: impl Into<Axis>) -> Result<(Tensor, Tensor)> {
        sort(self, axis.into(), true)
    }

    /// The `k` largest elements along an axis, the largest first, and the indices (`i64`) they came from.
    ///
    /// # Gradient
    /// `ȳ` goes back to where each element came from, the others get exactly 0; saves the indices.
    ///
    /// # Numerics
    /// Of equal elements the first ones are taken. NaN is larger than every number.
    ///
    /// # Errors
    /// Shape error when the axis does not exist; argument error when `k` exceeds its extent; dtype error for integers.
    #[doc(alias = "top_k")]
    #[track_caller]
    pub fn topk(&self, k: usize, axis: impl Into<Axis>) -> Result<(Tensor, Tensor)> {
        topk(self, k, axis.into(), true)
    }

    /// [`Tensor::topk`] of the `k` smallest elements, the smallest first. Of equal elements the first ones are taken.
    ///
    /// # Gradient
    /// As there.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn bottomk(&self, k: usize, axis: impl Into<Axis>) -> Result<(Tensor, Tensor)> {
        topk(self, k, axis.into(), false)
    }
}
