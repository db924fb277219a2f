//! Exponentials, logarithms, roots and powers.

use super::{Map, Saves, Unary, slope_of_input};
use crate::backend::cpu::Real;
use crate::error::Result;
use crate::op::{Math, apply1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

/// `eˣ`; see [`Tensor::exp`].
#[derive(Clone, Debug)]
pub struct Exp;

impl Unary for Exp {
    const NAME: &'static str = "exp";
    const VJP_NAME: &'static str = "exp_vjp";
    const MATH: Math = Math {
        forward: "y = eˣ",
        vjp: "x̄ = ȳ · y",
        kinks: "smooth; overflows to +∞, underflows to 0",
        cost: "reads x, writes y; saves y",
        references: "IEEE 754-2019 §9.2; C. exp",
    };
    const SAVES: Saves = Saves::Output;

    #[inline(always)]
    fn f<T: Real>(&self, x: T) -> T {
        x.exp()
    }
    #[inline(always)]
    fn df<T: Real>(&self, y: T) -> T {
        y
    }
    fn define<S: Scalar>(&self, x: S) -> S {
        x.exp()
    }
    fn slope<S: Scalar>(&self, y: S) -> S {
        y
    }
    fn derivative(&self, y: &Tensor) -> Result<Tensor> {
        Ok(y.clone())
    }
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        vec![
            Sample::check(Exp, [g.normal(shape)]),
            Sample::check(Exp, [Input::values([4], [-20.0, -1e-9, 0.0, 10.0])]),
            Sample::value(Exp, [Input::values([5], [f64::NEG_INFINITY, -1e4, 1e4, f64::INFINITY, f64::NAN])]).note("limits"),
            Sample::bench(Exp, [g.normal([4 << 20])]),
        ]
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

/// `x²`; see [`Tensor::square`].
#[derive(Clone, Debug)]
pub struct Square;

impl Unary for Square {
    const NAME: &'static str = "square";
    const VJP_NAME: &'static str = "square_vjp";
    const MATH: Math = Math {
        forward: "y = x²",
        vjp: "x̄ = ȳ · 2x",
        kinks: "smooth",
        cost: "reads x, writes y; saves x",
        references: "elementary",
    };
    const SAVES: Saves = Saves::Input;

    #[inline(always)]
    fn f<T: Real>(&self, x: T) -> T {
        x * x
    }
    #[inline(always)]
    fn df<T: Real>(&self, x: T) -> T {
        x + x
    }
    fn define<S: Scalar>(&self, x: S) -> S {
        x * x
    }
    fn slope<S: Scalar>(&self, x: S) -> S {
        slope_of_input(self, x)
    }
    fn derivative(&self, x: &Tensor) -> Result<Tensor> {
        x.add(x)
    }
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        vec![
            Sample::check(Square, [g.normal(shape)]),
            Sample::check(Square, [Input::values([3], [0.0, -1e3, 1e-6])]).note("zero"),
            Sample::bench(Square, [g.normal([4 << 20])]),
        ]
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

impl Tensor {
    /// `eˣ` of every element.
    ///
    /// # Gradient
    /// `ȳ·eˣ`; saves the result.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn exp(&self) -> Result<Tensor> {
        apply1(Map(Exp), &[self])
    }

    /// `x²` of every element.
    ///
    /// # Gradient
    /// `ȳ·2x`; saves the operand.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn square(&self) -> Result<Tensor> {
        apply1(Map(Square), &[self])
    }
}
