//! Exponentials and logarithms.

use super::{Domain, Map, at};
use crate::backend::cpu::Real;
use crate::error::Result;
use crate::op::apply1;
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;

unary! {
    /// `eˣ`; see [`Tensor::exp`].
    Exp, "exp", saves Output;
    slope(self, y) => y;
    math: "y = eˣ", "x̄ = ȳ · y", "smooth; overflows to +∞, underflows to 0", "IEEE 754-2019 §9.2; C. exp";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x.exp();
    pull(self, y, g) => g * y;
    define(self, x) => x.exp();
    cuda(self) => exp_fwd, exp_vjp, [];
    derivative(self, y) => Ok(y.clone());
    samples => vec![
        Sample::check(Exp, at(&[-20.0, -1e-9, 0.0, 10.0])),
        Sample::value(Exp, at(&[-INF, -1e4, -100.0, -88.0, 88.0, 1e4, INF, NAN])).note("limits, subnormal results"),
    ];
}

unary! {
    /// `eˣ − 1`; see [`Tensor::expm1`].
    Expm1, "expm1", saves Input;
    math: "y = eˣ − 1", "x̄ = ȳ · eˣ", "smooth; −1 at −∞, where the derivative keeps its relative accuracy", "C. expm1";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x.expm1();
    pull(self, x, g) => g * x.exp();
    define(self, x) => x.expm1();
    cuda(self) => expm1_fwd, expm1_vjp, [];
    derivative(self, x) => x.exp();
    samples => vec![
        Sample::check(Expm1, at(&[0.0, 1e-6, -1e-6, 17.0, -17.0, 20.0, -20.0, -50.0])).note("tails, cancellation near 0 [D3]"),
        Sample::value(Expm1, at(&[-INF, -88.0, -1e4, 1e-30, -1e-30, 50.0, 88.0, 1e4, INF, NAN])).note("limits [D3]"),
    ];
}

unary! {
    /// `ln x`; see [`Tensor::log`].
    Log, "log", saves Input;
    math: "y = ln x", "x̄ = ȳ / x", "−∞ at 0, with slope ±∞; NaN below", "IEEE 754-2019 §9.2; C. log";
    domain: Domain::Uniform(0.1, 4.0);
    f(self, x) => x.ln();
    pull(self, x, g) => g / x;
    define(self, x) => x.ln();
    cuda(self) => log_fwd, log_vjp, [];
    derivative(self, x) => x.recip();
    samples => vec![
        Sample::check(Log, at(&[1.0, 0.9990234375, 1.0009765625, 6e-3, 3e4])).note("around the zero of the logarithm"),
        Sample::value(Log, at(&[0.0, -1.0, 1e-30, 1e-40, 1e30, INF, -INF, NAN])).note("limits, subnormals, outside the domain"),
    ];
}

unary! {
    /// `ln(1 + x)`; see [`Tensor::log1p`].
    Log1p, "log1p", saves Input;
    math: "y = ln(1 + x)", "x̄ = ȳ / (1 + x)", "−∞ at −1, with slope ±∞; NaN below", "C. log1p";
    domain: Domain::Uniform(-0.8, 4.0);
    f(self, x) => x.ln_1p();
    pull(self, x, g) => g / (x + T::ONE);
    define(self, x) => x.ln_1p();
    cuda(self) => log1p_fwd, log1p_vjp, [];
    derivative(self, x) => super::shifted(x, 1.0)?.recip();
    samples => vec![
        Sample::check(Log1p, at(&[0.0, 1e-6, -1e-6, 1e-3, -0.984375, 3e4])).note("cancellation near 0"),
        Sample::value(Log1p, at(&[-1.0, -2.0, 1e-30, -1e-30, 1e30, INF, -INF, NAN])).note("limits, outside the domain"),
    ];
}

impl Tensor {
    /// `eˣ` of every element.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[0f64, 1.0], [2])?)?;
    /// let y = x.exp()?.sum(..)?;
    /// assert_eq!(tape.backward(&y)?.get(&x)?.to_vec::<f64>()?, [1.0, 1f64.exp()]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ·eˣ`; saves the result.
    ///
    /// # Numerics
    /// Overflows to +∞ and underflows gradually to 0, as in C.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn exp(&self) -> Result<Tensor> {
        apply1(Map(Exp), &[self])
    }

    /// `eˣ − 1` of every element, without the cancellation near 0.
    ///
    /// # Gradient
    /// `ȳ·eˣ`; saves the operand: from the result, `y + 1` would have lost all digits in the left tail.
    ///
    /// # Numerics
    /// Full relative accuracy near 0; −1 at −∞.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn expm1(&self) -> Result<Tensor> {
        apply1(Map(Expm1), &[self])
    }

    /// Natural logarithm of every element.
    ///
    /// # Gradient
    /// `ȳ/x`, infinite at 0; saves the operand.
    ///
    /// # Numerics
    /// −∞ at 0, NaN below. An unwanted branch guarded by `where` still computes `0·∞ = NaN` here: replace its operand
    /// before the logarithm, not its result after.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn log(&self) -> Result<Tensor> {
        apply1(Map(Log), &[self])
    }

    /// `ln(1 + x)` of every element, without the cancellation near 0.
    ///
    /// # Gradient
    /// `ȳ/(1 + x)`, infinite at −1; saves the operand.
    ///
    /// # Numerics
    /// Full relative accuracy near 0; −∞ at −1, NaN below.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn log1p(&self) -> Result<Tensor> {
        apply1(Map(Log1p), &[self])
    }
}
