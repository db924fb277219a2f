//! Sine and cosine.

use super::{Domain, Map, at};
use crate::backend::cpu::Real;
use crate::error::Result;
use crate::op::apply1;
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};

unary! {
    /// `sin x`; see [`Tensor::sin`].
    Sin, "sin", saves Input;
    math: "y = sin x", "x̄ = ȳ · cos x", "smooth; NaN at ±∞", "Payne & Hanek 1983, Radian reduction for trigonometric functions";
    domain: Domain::Uniform(-7.0, 7.0);
    f(self, x) => x.sin_near();
    pull(self, x, g) => g * x.cos_near();
    rare(self, x, g) => !x.is_near_angle(), f x.sin(), pull g * x.cos();
    define(self, x) => x.sin();
    cuda(self) => sin_fwd, sin_vjp, [];
    derivative(self, x) => x.cos();
    samples => vec![
        Sample::check(Sin, at(&[0.0, -0.0, 1e-3, 0.75, 1.5703125, -3.140625, 22.0, -355.0])).note("around multiples of π/2"),
        Sample::value(Sin, at(&[1.0, 1e5, -1e10, 65_535.0, -65_536.0, 1e30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN])).note("large angles"),
    ];
}

unary! {
    /// `cos x`; see [`Tensor::cos`].
    Cos, "cos", saves Input;
    math: "y = cos x", "x̄ = −ȳ · sin x", "smooth; NaN at ±∞", "Payne & Hanek 1983, Radian reduction for trigonometric functions";
    domain: Domain::Uniform(-7.0, 7.0);
    f(self, x) => x.cos_near();
    pull(self, x, g) => -(g * x.sin_near());
    rare(self, x, g) => !x.is_near_angle(), f x.cos(), pull -(g * x.sin());
    define(self, x) => x.cos();
    cuda(self) => cos_fwd, cos_vjp, [];
    derivative(self, x) => x.sin()?.neg();
    samples => vec![
        Sample::check(Cos, at(&[0.0, -0.0, 1e-3, 0.75, 1.5703125, -3.140625, 22.0, -355.0])).note("around multiples of π/2"),
        Sample::value(Cos, at(&[1.0, 1e5, -1e10, 65_535.0, -65_536.0, 1e30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN])).note("large angles"),
    ];
}

impl Tensor {
    /// Sine of every element, in radians.
    ///
    /// # Gradient
    /// `ȳ·cos x`; saves the operand.
    ///
    /// # Numerics
    /// Accurate for every finite angle (the reduction by π/2 carries enough digits); NaN at ±∞.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn sin(&self) -> Result<Tensor> {
        apply1(Map(Sin), &[self])
    }

    /// Cosine of every element, in radians.
    ///
    /// # Gradient
    /// `−ȳ·sin x`; saves the operand.
    ///
    /// # Numerics
    /// As [`Tensor::sin`].
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn cos(&self) -> Result<Tensor> {
        apply1(Map(Cos), &[self])
    }
}
