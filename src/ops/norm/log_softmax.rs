//! Logarithm of the softmax along an axis.

use super::softmax::{exp_row, largest, line_samples, softmax_line};
use crate::backend::cpu::math::Number;
use crate::backend::cpu::{self, rows, simd};
use crate::backend::cuda;
use crate::backend::cuda::kernels::softmax as kernels;
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, expect};
use crate::ops::differentiate;
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Logarithm of the softmax along an axis; see [`Tensor::log_softmax`].
#[derive(Clone, Debug)]
pub struct LogSoftmax {
    /// The axis whose lines become log-probabilities.
    pub axis: Axis,
}

/// The derivative kernel of [`LogSoftmax`]: `(x, ȳ) ↦ ȳ − softmax(x)·Σ ȳ`.
#[derive(Clone, Debug)]
pub struct LogSoftmaxVjp {
    /// The axis of the softmax.
    pub axis: Axis,
}

impl Describe for LogSoftmax {
    const NAME: &'static str = "log_softmax";
    const MATH: Math = Math {
        forward: "yⱼ = (xⱼ − m) − ln Σₖ exp(xₖ − m) with m = max x along the axis",
        vjp: "x̄ = ȳ − softmax(x) · Σ ȳ",
        kinks: "smooth; −∞ gives −∞, a line of −∞ only gives zeros with zero gradient, +∞ or NaN make the line NaN",
        cost: "reads x, writes y; the derivative reads x and ȳ, writes x̄; saves x",
        references: "Blanchard, Higham, Higham, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 2021",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        vec![x[0].map_lines(axis, x[0].shape[axis], log_softmax_line)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        line_samples(g, |axis| LogSoftmax { axis })
    }
}

/// The textbook log-softmax of one line.
pub(crate) fn log_softmax_line<S: Scalar>(x: &[S]) -> Vec<S> {
    let m = largest(x);
    if m == f64::NEG_INFINITY {
        return vec![S::zero(); x.len()];
    }
    let shifted: Vec<S> = x.iter().map(|&v| v - S::lit(m)).collect();
    let e: Vec<S> = shifted.iter().map(|v| v.exp()).collect();
    let log = S::sum(&e).ln();
    shifted.into_iter().map(|v| v - log).collect()
}

impl Op for LogSoftmax {
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
            kernels::log_fwd(on, cuda::reduce::teams_grid(on, rows, team), y, x, rows as i64, n as i64, team as i32)
        })
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        // The result would do, but its rounding to a half type costs the derivative |y| times that rounding.
        Saved::of([Some(x[0])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(LogSoftmaxVjp { axis: self.axis }, &[saved.get(0)?, y_bar.only()?])?)])
    }
}

/// One row.
struct Row;

impl rows::Line<1> for Row {
    #[inline(always)]
    fn line<A: Number>([x]: [&[A]; 1], y: &mut [A], e: &mut [A]) {
        let Some((m, sum)) = exp_row(x, e) else {
            y.fill(A::ZERO);
            return;
        };
        let log = sum.ln();
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - m) - log;
        }
    }
}

/// One row of the derivative.
struct VjpRow;

impl rows::Line<2> for VjpRow {
    #[inline(always)]
    fn line<A: Number>([x, g]: [&[A]; 2], y: &mut [A], e: &mut [A]) {
        let Some((_, sum)) = exp_row(x, e) else {
            y.fill(A::ZERO);
            return;
        };
        let scale = simd::sum(g) / sum;
        for ((y, &g), &e) in y.iter_mut().zip(g).zip(e.iter()) {
            *y = (-e).mul_add(scale, g);
        }
    }
}

impl Describe for LogSoftmaxVjp {
    const NAME: &'static str = "log_softmax_vjp";
    const MATH: Math = Math {
        forward: "x̄ = ȳ − softmax(x) · Σ ȳ along the axis",
        vjp: "through the composition ȳ·Σp − p·Σȳ",
        kinks: "smooth; a line of −∞ only gives zeros",
        cost: "reads x and ȳ, writes x̄",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        let n = x[0].shape[axis];
        let p = x[0].map_lines(axis, n, softmax_line);
        let sums = x[1].map_lines(axis, n, |line| vec![S::sum(line); n]);
        let masked = x[0].map_lines(axis, n, |line| vec![S::lit(if largest(line) == f64::NEG_INFINITY { 0.0 } else { 1.0 }); n]);
        let data = (0..p.data.len()).map(|i| masked.data[i] * (x[1].data[i] - p.data[i] * sums.data[i])).collect();
        vec![Nd::new(&x[0].shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out: Vec<Sample<Self>> = LogSoftmax::samples(g)
            .into_iter()
            .filter(|s| s.purpose == Purpose::Check)
            .map(|s| {
                let bar = g.normal(s.inputs[0].shape());
                let mut out = s.map(|s| LogSoftmaxVjp { axis: s.axis });
                out.inputs.push(bar);
                out
            })
            .collect();
        let x = g.normal([2, 6]);
        out.push(
            Sample::check(LogSoftmaxVjp { axis: Axis(-1) }, [x.clone(), Input::values([2, 6], vec![0.0; 12])]).note("zero cotangent [A24]"),
        );
        out.push(Sample::reject(LogSoftmaxVjp { axis: Axis(-1) }, [x, g.normal([2, 5])], crate::ErrorKind::Shape));
        out
    }
}

impl Op for LogSoftmaxVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_shapes(x)?;
        self.axis.resolve(x[0].shape.rank())?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        rows::map_lines::<VjpRow, 2>(axis, [&x[0], &x[1]], &mut y[0], 1)
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        cuda::reduce::map_lines(axis, [&x[0], &x[1]], &mut y[0], |on, [x, g], y, rows, n| {
            let team = cuda::reduce::team(rows, n, x.dtype(), 2);
            kernels::log_vjp(on, cuda::reduce::teams_grid(on, rows, team), y, x, g, rows as i64, n as i64, team as i32)
        })
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (x, g) = (saved.get(0)?.clone(), saved.get(1)?.clone());
        let (axis, z) = (self.axis, y_bar.only()?.clone());
        differentiate(&[x, g], want, &[z], move |x| Ok(Outputs::from_iter([composed(&x[0], &x[1], axis)?])))
    }
}

/// `ȳ·Σp − p·Σȳ` with `p = softmax(x)`: `Σp` is 1, and 0 on a fully masked line. A constant, so it is detached: its derivative is 0,
/// and a computed one would be a rounding error that cotangents multiply.
fn composed(x: &Tensor, g: &Tensor, axis: Axis) -> Result<Tensor> {
    let p = x.softmax(axis)?;
    let total = g.sum_keepdim(axis)?;
    let minus = Tensor::full_on((), -1.0, total.dtype(), total.device())?;
    g.mul(&p.detach().sum_keepdim(axis)?)?.add(&p.mul(&total.mul(&minus)?)?)
}

impl Tensor {
    /// Logarithm of the softmax along an axis, without the underflow of taking them one after the other.
    ///
    /// # Gradient
    /// `ȳ − softmax(x)·Σ ȳ` by one fused kernel; saves the operand.
    ///
    /// # Numerics
    /// The largest element is subtracted first, so nothing overflows, and a common offset costs no accuracy. −∞ (masked) gives
    /// −∞; a line of −∞ only gives zeros with zero gradient, where PyTorch gives NaN. Half types are computed in f32.
    ///
    /// # Errors
    /// Shape error when the axis does not exist; dtype error for integers.
    #[track_caller]
    pub fn log_softmax(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply1(LogSoftmax { axis: axis.into() }, &[self])
    }
}
