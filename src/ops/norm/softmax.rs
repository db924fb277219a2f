//! Softmax along an axis.

use crate::backend::cpu::math::Number;
use crate::backend::cpu::{self, Compute, Real, rows, simd};
use crate::backend::cuda;
use crate::backend::cuda::kernels::softmax as kernels;
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, expect};
use crate::ops::{differentiate, widened};
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Softmax along an axis; see [`Tensor::softmax`].
#[derive(Clone, Debug)]
pub struct Softmax {
    /// The axis whose lines become distributions.
    pub axis: Axis,
}

/// The derivative kernel of [`Softmax`]: `(y, ȳ) ↦ y·(ȳ − Σ y ȳ)`.
#[derive(Clone, Debug)]
pub struct SoftmaxVjp {
    /// The axis of the softmax.
    pub axis: Axis,
}

impl Describe for Softmax {
    const NAME: &'static str = "softmax";
    const MATH: Math = Math {
        forward: "yⱼ = exp(xⱼ − m) / Σₖ exp(xₖ − m) with m = max x along the axis",
        vjp: "x̄ = y · (ȳ − Σ y ȳ)",
        kinks: "smooth; −∞ gives 0, a line of −∞ only gives zeros with zero gradient, +∞ or NaN make the line NaN",
        cost: "reads x, writes y; the derivative reads y and ȳ, writes x̄; saves y",
        references: "Blanchard, Higham, Higham, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 2021",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        vec![x[0].map_lines(axis, x[0].shape[axis], softmax_line)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        line_samples(g, |axis| Softmax { axis })
    }
}

/// The textbook softmax of one line. Any shift gives the same value; the largest element avoids overflow.
pub(crate) fn softmax_line<S: Scalar>(x: &[S]) -> Vec<S> {
    let m = largest(x);
    if m == f64::NEG_INFINITY {
        return vec![S::zero(); x.len()];
    }
    let e: Vec<S> = x.iter().map(|&v| (v - S::lit(m)).exp()).collect();
    let sum = S::sum(&e);
    e.into_iter().map(|v| v / sum).collect()
}

/// The largest value; NaN when there is one, −∞ when there is none.
pub(crate) fn largest<S: Scalar>(x: &[S]) -> f64 {
    x.iter().map(|v| v.re()).fold(f64::NEG_INFINITY, |m, v| if v > m || v.is_nan() { v } else { m })
}

/// Every axis, line lengths around the vector widths, masked, constant, huge and special values.
pub(crate) fn line_samples<O: Clone>(g: &mut Gen, op: impl Fn(Axis) -> O) -> Vec<Sample<O>> {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let last = || op(Axis(-1));
    let mut out = Vec::new();
    for axis in [0, 1, 2, -1, -2, -3] {
        let shape = g.shape(3);
        let shape = if shape.numel() > 200 { [5, 6, 7].into() } else { shape };
        out.push(Sample::check(op(Axis(axis)), [g.normal_with(shape, 2.0, 0.0)]).note("negative axes, lines of every stride [C14, C15]"));
    }
    for n in [1, 2, 3, 31, 32, 33, 65] {
        out.push(Sample::check(last(), [g.normal_with([2, n], 3.0, 0.0)]).note("line lengths around the vector width [B6]"));
    }
    out.extend([
        Sample::check(op(Axis(0)), [g.normal([4])]).note("rank 1"),
        Sample::check(last(), [Input::values([2, 3], vec![0.0; 6])]).note("zeros; ties share [D7]"),
        Sample::check(last(), [g.normal_with([2, 5], 1.0, 1e4)]).note("shift invariance at a common offset"),
        Sample::check(last(), [g.normal_with([3, 7], 1.0, -100.0)]).note("|logit| > 90 [C4, A11]"),
        Sample::value(last(), [g.normal_with([3, 7], 100.0, 0.0)]).note("|logit| > 90, saturated [C4]"),
        Sample::check(last(), [Input::values([2, 3], [1e30, -1e30, 0.0, 500.0, 499.0, -500.0])])
            .note("huge logits: nothing overflows")
            .first_order(),
        Sample::check(last(), [Input::values([4, 3], [-inf, 1.0, 2.0, 0.5, -inf, -inf, -inf, -inf, -inf, 0.1, 0.2, 0.3])])
            .note("masked entries, a fully masked line, and a line beside it [C13, A13]")
            .at_kink(),
        Sample::check(op(Axis(0)), [Input::values([2, 2], [-inf, 0.5, -inf, 1.5])])
            .note("a fully masked line along another axis [C13]")
            .at_kink(),
        Sample::value(last(), [Input::values([3, 3], [nan, 1.0, 2.0, inf, 1.0, 2.0, 0.1, 0.2, 0.3])])
            .note("NaN and +∞ spoil their own line only [D6]"),
        Sample::check(last(), [g.normal([0, 3])]).note("no lines [B16]"),
        Sample::check(last(), [g.normal([3, 0])]).note("lines without elements [B16]"),
        Sample::check(op(Axis(1)), [g.normal([2, 3, 0])]).note("nothing beside the axis [B16]"),
        Sample::value(last(), [g.normal_with([2, 70_001], 3.0, 0.0)]).note("a line longer than one sum block"),
        Sample::value(last(), [g.normal([5000, 7])]).note("many short lines, no multiple of a task [B8]"),
        Sample::value(op(Axis(0)), [g.normal([300, 131])]).note("gathered lines, more than one task"),
        Sample::reject(op(Axis(2)), [g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"),
        Sample::reject(op(Axis(-1)), [g.normal(())], ErrorKind::Shape).note("a scalar has no axis"),
        Sample::reject(last(), [Input::ints(crate::I64, [2], &[1, 2])], ErrorKind::Dtype),
        Sample::bench(last(), [g.normal([4096, 1024])]),
        Sample::bench(op(Axis(0)), [g.normal([1024, 4096])]),
    ]);
    out
}

impl Op for Softmax {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        self.axis.resolve(x[0].shape.rank())?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        rows::map_lines::<Row, 1>(axis, [&x[0]], &mut y[0], 1)
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        cuda::reduce::map_lines(axis, [&x[0]], &mut y[0], |on, [x], y, rows, n| {
            let team = cuda::reduce::team(rows, n, x.dtype(), 1);
            kernels::fwd(on, cuda::reduce::teams_grid(on, rows, team), y, x, rows as i64, n as i64, team as i32)
        })
    }

    fn save(&self, _: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(&y[0])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(SoftmaxVjp { axis: self.axis }, &[saved.get(0)?, y_bar.only()?])?)])
    }
}

/// `e = exp(x − m)` with the maximum `m`; returns `m` and the sum of `e`, or `None` for a row of −∞ only.
#[inline(always)]
pub(crate) fn exp_row<T: Compute>(x: &[T], e: &mut [T::Acc]) -> Option<(T::Acc, T::Acc)> {
    let m = rows::max(x);
    if m == T::Acc::NEG_INFINITY {
        return None;
    }
    for (e, &x) in e.iter_mut().zip(x) {
        *e = (x.load() - m).exp();
    }
    Some((m, simd::sum(e)))
}

/// One row.
struct Row;

impl rows::Line<1> for Row {
    #[inline(always)]
    fn line<A: Number>([x]: [&[A]; 1], y: &mut [A], e: &mut [A]) {
        let Some((_, sum)) = exp_row(x, e) else {
            y.fill(A::ZERO);
            return;
        };
        let inv = sum.recip();
        for (y, &e) in y.iter_mut().zip(e.iter()) {
            *y = e * inv;
        }
    }
}

/// One row of the derivative.
struct VjpRow;

impl rows::Line<2> for VjpRow {
    #[inline(always)]
    fn line<A: Number>([p, g]: [&[A]; 2], out: &mut [A], _: &mut [A]) {
        let s = simd::dot(p, g);
        for ((out, &p), &g) in out.iter_mut().zip(p).zip(g) {
            *out = p * (g - s);
        }
    }
}

impl Describe for SoftmaxVjp {
    const NAME: &'static str = "softmax_vjp";
    const MATH: Math = Math {
        forward: "x̄ = y · (ȳ − Σ y ȳ) along the axis",
        vjp: "of ȳ: the same kernel (it is symmetric); of y: through the composition",
        kinks: "smooth; zeros where y is zero",
        cost: "reads y and ȳ, writes x̄",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let products = Nd::new(&x[0].shape, x[0].data.iter().zip(&x[1].data).map(|(&y, &g)| y * g).collect());
        let sums = products.map_lines(axis, x[0].shape[axis], |line| vec![S::sum(line); line.len()]);
        let data = x[0].data.iter().zip(&x[1].data).zip(&sums.data).map(|((&y, &g), &s)| y * (g - s)).collect();
        vec![Nd::new(&x[0].shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out: Vec<Sample<Self>> = Softmax::samples(g)
            .into_iter()
            .filter(|s| s.purpose == Purpose::Check)
            .map(|s| {
                let x = Nd::new(s.inputs[0].shape(), s.inputs[0].to_vec());
                let y = s.op.define(&[x]).swap_remove(0);
                let bar = g.normal(&y.shape);
                let axis = s.op.axis;
                let mut out = s.map(|_| SoftmaxVjp { axis });
                out.inputs = vec![Input::values(y.shape, y.data), bar];
                out
            })
            .collect();
        let y = g.uniform([2, 6], 0.0, 1.0);
        out.push(
            Sample::check(SoftmaxVjp { axis: Axis(-1) }, [y.clone(), Input::values([2, 6], vec![0.0; 12])]).note("zero cotangent [A24]"),
        );
        out.push(Sample::reject(SoftmaxVjp { axis: Axis(-1) }, [y, g.normal([2, 5])], ErrorKind::Shape));
        out
    }
}

impl Op for SoftmaxVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_shapes(x)?;
        self.axis.resolve(x[0].shape.rank())?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        rows::map_lines::<VjpRow, 2>(axis, [&x[0], &x[1]], &mut y[0], 0)
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        cuda::reduce::map_lines(axis, [&x[0], &x[1]], &mut y[0], |on, [x, g], y, rows, n| {
            let team = cuda::reduce::team(rows, n, x.dtype(), 2);
            kernels::vjp(on, cuda::reduce::teams_grid(on, rows, team), y, x, g, rows as i64, n as i64, team as i32)
        })
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([Some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (y, z) = (saved.get(0)?, y_bar.only()?);
        let g_bar = if want[1] { Some(apply1(self.clone(), &[y, z])?) } else { None };
        let y_bar = if want[0] {
            let g = widened(saved.get(1)?)?;
            let axis = self.axis;
            differentiate(std::slice::from_ref(y), &[true], std::slice::from_ref(z), move |y| {
                let p = y[0].mul(&g)?;
                let s = p.sum_keepdim(axis)?;
                let minus = Tensor::full_on((), -1.0, s.dtype(), s.device())?;
                Ok(Outputs::from_iter([p.add(&y[0].mul(&s.mul(&minus)?)?)?]))
            })?
            .swap_remove(0)
        } else {
            None
        };
        Ok(smallvec![y_bar, g_bar])
    }
}

impl Tensor {
    /// Softmax along an axis: positive numbers that sum to 1.
    ///
    /// ```
    /// use cotangent::{Tensor, grad};
    /// let x = Tensor::from_slice(&[1f64, 1.0, f64::NEG_INFINITY], [3])?;
    /// assert_eq!(x.softmax(-1)?.to_vec::<f64>()?, [0.5, 0.5, 0.0]);
    /// let g = grad(&x, |x| x.softmax(-1)?.square()?.sum(..))?;
    /// assert_eq!(g.to_vec::<f64>()?, [0.0, 0.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `y·(ȳ − Σ y ȳ)` by one fused kernel; saves the result.
    ///
    /// # Numerics
    /// The largest element is subtracted first, so nothing overflows. −∞ (masked) gives 0; a line of −∞ only gives zeros with
    /// zero gradient, where PyTorch gives NaN; +∞ and NaN make their line NaN. Half types are computed in f32, rounded once.
    ///
    /// # Errors
    /// Shape error when the axis does not exist; dtype error for integers.
    #[track_caller]
    pub fn softmax(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1(Softmax { axis: axis.into() }, &[self])
    }
}
