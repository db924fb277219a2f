//! Sum, difference, product, quotient.

use super::{Binary, Zip, broadcast_samples, broadcast_samples_of, zip_block};
use crate::backend::cpu::{Compute, Real};
use crate::error::Result;
use crate::op::{Math, Saved, apply1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;

/// `a + b`; see [`Tensor::add`].
#[derive(Clone, Debug)]
pub struct Add;

impl Binary for Add {
    const NAME: &'static str = "add";
    const MATH: Math = Math {
        forward: "y = a + b",
        vjp: "ā = ȳ, b̄ = ȳ, each summed over its broadcast axes",
        kinks: "smooth",
        cost: "reads a and b, writes y; saves nothing",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        a + b
    }
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
        zip_block(
            a,
            b,
            y,
            #[inline(always)]
            |a, b| Add.f(a, b),
        );
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        a + b
    }
    fn cuda(&self) -> super::BinaryKernels {
        super::BinaryKernels::new(super::kernels::add, [])
    }
    fn save(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: [bool; 2]) -> Saved {
        Saved::none()
    }
    fn vjp(&self, _: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok(want.map(|w| w.then(|| g.clone())))
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        broadcast_samples(g, Add)
    }
}

/// `a · b`; see [`Tensor::mul`].
#[derive(Clone, Debug)]
pub struct Mul;

impl Binary for Mul {
    const NAME: &'static str = "mul";
    const MATH: Math = Math {
        forward: "y = a · b",
        vjp: "ā = ȳ · b, b̄ = ȳ · a, each summed over its broadcast axes",
        kinks: "smooth",
        cost: "reads a and b, writes y; saves the operand whose partner is wanted",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        a * b
    }
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
        zip_block(
            a,
            b,
            y,
            #[inline(always)]
            |a, b| Mul.f(a, b),
        );
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        a * b
    }
    fn cuda(&self) -> super::BinaryKernels {
        super::BinaryKernels::new(super::kernels::mul, [])
    }
    fn save(&self, a: &Tensor, b: &Tensor, _: &Tensor, want: [bool; 2]) -> Saved {
        Saved::of([want[1].then_some(a), want[0].then_some(b)])
    }
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([if want[0] { Some(g.mul(saved.get(1)?)?) } else { None }, if want[1] { Some(g.mul(saved.get(0)?)?) } else { None }])
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        broadcast_samples(g, Mul)
    }
}

/// `a − b`; see [`Tensor::sub`].
#[derive(Clone, Debug)]
pub struct Sub;

impl Binary for Sub {
    const NAME: &'static str = "sub";
    const MATH: Math = Math {
        forward: "y = a − b",
        vjp: "ā = ȳ, b̄ = −ȳ, each summed over its broadcast axes",
        kinks: "smooth",
        cost: "reads a and b, writes y; saves nothing",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        a - b
    }
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
        zip_block(
            a,
            b,
            y,
            #[inline(always)]
            |a, b| Sub.f(a, b),
        );
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        a - b
    }
    fn cuda(&self) -> super::BinaryKernels {
        super::BinaryKernels::new(super::kernels::sub, [])
    }
    fn save(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: [bool; 2]) -> Saved {
        Saved::none()
    }
    fn vjp(&self, _: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([want[0].then(|| g.clone()), if want[1] { Some(g.neg()?) } else { None }])
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = broadcast_samples(g, Sub);
        out.push(
            Sample::value(Sub, [Input::values([4], [INF, -INF, INF, NAN]), Input::values([4], [INF, INF, 1.0, 0.0])]).note("∞ − ∞ is NaN"),
        );
        out
    }
}

/// `a / b`; see [`Tensor::div`].
#[derive(Clone, Debug)]
pub struct Div;

impl Binary for Div {
    const NAME: &'static str = "div";
    const MATH: Math = Math {
        forward: "y = a / b",
        vjp: "ā = ȳ / b, b̄ = −ā · y, each summed over its broadcast axes",
        kinks: "b = 0: y = ±∞ (NaN for 0/0) and gradients as IEEE arithmetic gives them",
        cost: "reads a and b, writes y; saves b, and y when b̄ is wanted",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        a / b
    }
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
        zip_block(
            a,
            b,
            y,
            #[inline(always)]
            |a, b| Div.f(a, b),
        );
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        a / b
    }
    fn cuda(&self) -> super::BinaryKernels {
        super::BinaryKernels::new(super::kernels::div, [])
    }
    fn save(&self, _: &Tensor, b: &Tensor, y: &Tensor, want: [bool; 2]) -> Saved {
        Saved::of([Some(b), want[1].then_some(y)])
    }
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let a_bar = g.div(saved.get(0)?)?;
        let b_bar = if want[1] { Some(apply1(Zip(NegMul), &[&a_bar, saved.get(1)?])?) } else { None };
        Ok([want[0].then_some(a_bar), b_bar])
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = broadcast_samples_of(g, Div, |g, s| g.normal(s), |g, s| g.uniform(s, -2.5, -0.5));
        out.push(
            Sample::check(Div, [Input::values([3], [0.0, -0.0, 2.0]), Input::values([3], [3.0, 0.5, -4.0])]).note("zero numerator [D7]"),
        );
        let (a, b) = ([1.0, -1.0, 0.0, INF, INF, 1.0, NAN], [0.0, 0.0, 0.0, INF, 2.0, INF, 1.0]);
        out.push(Sample::value(Div, [Input::values([7], a), Input::values([7], b)]).note("x/0, 0/0, ∞/∞, x/∞"));
        out
    }
}

/// `−a·b`: the second factor of [`Div`]'s derivative.
#[derive(Clone, Debug)]
pub struct NegMul;

impl Binary for NegMul {
    const NAME: &'static str = "neg_mul";
    const MATH: Math = Math {
        forward: "y = −a · b",
        vjp: "ā = −ȳ · b, b̄ = −ȳ · a",
        kinks: "smooth",
        cost: "reads a and b, writes y; saves the operand whose partner is wanted",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        -(a * b)
    }
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
        zip_block(
            a,
            b,
            y,
            #[inline(always)]
            |a, b| NegMul.f(a, b),
        );
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        -(a * b)
    }
    fn cuda(&self) -> super::BinaryKernels {
        super::BinaryKernels::new(super::kernels::neg_mul, [])
    }
    fn save(&self, a: &Tensor, b: &Tensor, _: &Tensor, want: [bool; 2]) -> Saved {
        Saved::of([want[1].then_some(a), want[0].then_some(b)])
    }
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([
            if want[0] { Some(apply1(Zip(NegMul), &[g, saved.get(1)?])?) } else { None },
            if want[1] { Some(apply1(Zip(NegMul), &[g, saved.get(0)?])?) } else { None },
        ])
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        broadcast_samples(g, NegMul)
    }
}

impl Tensor {
    /// Sum of two tensors, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ` to both operands, summed over broadcast axes; saves nothing.
    ///
    /// # Errors
    /// Shape error when the shapes do not broadcast; dtype error unless both are the same float type.
    #[track_caller]
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Add), &[self, other])
    }

    /// Product of two tensors, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ·b` and `ȳ·a`, summed over broadcast axes; saves the operands that are needed.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    #[doc(alias = "multiply")]
    #[track_caller]
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Mul), &[self, other])
    }

    /// Difference of two tensors, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ` and `−ȳ`, summed over broadcast axes; saves nothing.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    #[doc(alias = "subtract")]
    #[track_caller]
    pub fn sub(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Sub), &[self, other])
    }

    /// Quotient of two tensors, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ/b` and `−ȳ·y/b`, summed over broadcast axes; saves the divisor, and the result when the divisor is tracked.
    ///
    /// # Numerics
    /// Division by zero follows IEEE 754 (±∞, NaN for 0/0), and so do the gradients there.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let (a, b) = (Tensor::from_slice(&[6f64], [1])?, Tensor::from_slice(&[2f64], [1])?);
    /// let tape = Tape::new();
    /// let (a, b) = (tape.watch(&a)?, tape.watch(&b)?);
    /// let g = tape.backward(&a.div(&b)?)?;
    /// assert_eq!((g.get(&a)?.item()?, g.get(&b)?.item()?), (0.5, -1.5));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("divide", "true_divide"))]
    #[track_caller]
    pub fn div(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Div), &[self, other])
    }
}
