//! S-shaped functions and their integrals: tanh, sigmoid, softplus, erf, the normal distribution.

use super::{Domain, Map, at, scaled};
use crate::backend::cpu::Real;
use crate::error::Result;
use crate::op::apply1;
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;
/// Arguments at which naive forms overflow or cancel. Values and first derivatives are checked there; second derivatives
/// are compositions, which keep absolute but not relative accuracy in the tails.
const TAILS: [f64; 14] = [3.875, -4.0, -5.5, 6.0, 8.0, -8.0, 17.0, -17.0, 20.0, -20.0, 50.0, -50.0, 88.0, -88.0];
const LIMITS: [f64; 7] = [INF, -INF, NAN, 1e4, -1e4, 1e19, -1e19];
/// 1/√(2π), which std has only behind an unstable feature.
pub(super) const FRAC_1_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

/// `s = sigmoid(x)` and its derivative `s·(1 − s)` from one exponential, without cancellation.
#[inline(always)]
pub(super) fn sigmoid_and_slope<T: Real>(x: T) -> (T, T) {
    let e = (-x.abs()).exp();
    let q = T::ONE / (T::ONE + e);
    let p = e * q;
    (if x < T::ZERO { p } else { q }, p * q)
}

unary! {
    /// Hyperbolic tangent; see [`Tensor::tanh`].
    // 1 − y² from a saved y would be wrong by several percent at 2 in bf16, whose rounding of y is all that is left of 1 − |y|.
    Tanh, "tanh", saves Input;
    math: "y = tanh x", "x̄ = ȳ · (1 − y²) = ȳ · 4σ(2x) σ(−2x)", "smooth; ±1 at ±∞", "C. tanh";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x.tanh();
    pull(self, x, g) => g * (sigmoid_and_slope(x + x).1 * T::from_f64(4.0));
    define(self, x) => x.tanh();
    cuda(self) => tanh_fwd, tanh_vjp, [];
    derivative(self, x) => {
        let z = x.add(x)?;
        scaled(&z.sigmoid()?.mul(&z.neg()?.sigmoid()?)?, 4.0)
    };
    samples => vec![
        Sample::check(Tanh, at(&[1e-3, -1e-3, 0.625, -0.625])).note("both sides of the kernel's seam"),
        // The dual numbers' own slope is written in |x|, whose third derivative at 0 they cannot see.
        Sample::check(Tanh, at(&[0.0, -0.0])).first_order(),
        Sample::value(Tanh, at(&TAILS)).note("tails [D3]"),
        Sample::value(Tanh, at(&LIMITS)).note("limits"),
    ];
}

unary! {
    /// Logistic function; see [`Tensor::sigmoid`].
    // Not the result: see tanh.
    Sigmoid, "sigmoid", saves Input;
    math: "y = σ(x) = 1 / (1 + e⁻ˣ)", "x̄ = ȳ · σ(x) σ(−x)", "smooth; 0 and 1 at ∓∞", "computed from e^−|x|, so that no side overflows";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x.sigmoid();
    pull(self, x, g) => g * sigmoid_and_slope(x).1;
    define(self, x) => x.sigmoid();
    cuda(self) => sigmoid_fwd, sigmoid_vjp, [];
    derivative(self, x) => x.sigmoid()?.mul(&x.neg()?.sigmoid()?);
    samples => vec![
        Sample::check(Sigmoid, at(&[0.0, -0.0, 1e-3, -1e-3, -17.0, -20.0])),
        Sample::value(Sigmoid, at(&TAILS)).note("tails [D3]"),
        Sample::value(Sigmoid, at(&LIMITS)).note("limits"),
    ];
}

unary! {
    /// `ln(1 + eˣ)`; see [`Tensor::softplus`].
    Softplus, "softplus", saves Input;
    math: "y = ln(1 + eˣ)", "x̄ = ȳ / (1 + e⁻ˣ)", "smooth; x for large x, eˣ for very negative x", "max(x, 0) + log1p(e^−|x|)";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x.softplus();
    pull(self, x, g) => g * x.sigmoid();
    define(self, x) => if x.re() > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() };
    cuda(self) => softplus_fwd, softplus_vjp, [];
    derivative(self, x) => x.sigmoid();
    samples => vec![
        Sample::check(Softplus, at(&[0.0, -0.0, 1e-3, -1e-3])),
        Sample::value(Softplus, at(&TAILS)).note("tails [D3]"),
        Sample::value(Softplus, at(&LIMITS)).note("limits"),
    ];
}

unary! {
    /// Error function; see [`Tensor::erf`].
    Erf, "erf", saves Input;
    math: "y = 2/√π ∫₀ˣ e^(−t²) dt", "x̄ = ȳ · 2/√π · e^(−x²)", "smooth; ±1 at ±∞", "C. erf";
    domain: Domain::Uniform(-3.0, 3.0);
    f(self, x) => x.erf();
    pull(self, x, g) => g * ((-(x * x)).exp() * T::from_f64(FRAC_2_SQRT_PI));
    define(self, x) => x.erf();
    cuda(self) => erf_fwd, erf_vjp, [];
    derivative(self, x) => scaled(&x.square()?.neg()?.exp()?, FRAC_2_SQRT_PI);
    samples => vec![
        Sample::check(Erf, at(&[0.0, -0.0, 1e-3, 0.90625, -0.9375])).note("the kernel's seams"),
        Sample::value(Erf, at(&TAILS)).note("tails"),
        Sample::value(Erf, at(&LIMITS)).note("limits"),
    ];
}

unary! {
    /// Normal distribution function; see [`Tensor::normal_cdf`].
    NormalCdf, "normal_cdf", saves Input;
    math: "y = Φ(x) = ½ erfc(−x/√2)", "x̄ = ȳ · φ(x), φ(x) = e^(−x²/2)/√2π", "smooth; 0 and 1 at ∓∞", "Abramowitz & Stegun 26.2";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x.normal_cdf();
    pull(self, x, g) => g * x.normal_pdf();
    define(self, x) => S::lit(0.5) * (x * S::lit(-FRAC_1_SQRT_2)).erfc();
    cuda(self) => normal_cdf_fwd, normal_cdf_vjp, [];
    derivative(self, x) => scaled(&scaled(&x.square()?, -0.5)?.exp()?, FRAC_1_SQRT_2PI);
    samples => vec![
        Sample::check(NormalCdf, at(&[0.0, -0.0, 1e-3, 0.96875, -1.03125])).note("the kernel's seams"),
        Sample::value(NormalCdf, at(&TAILS)).note("tails"),
        Sample::value(NormalCdf, at(&LIMITS)).note("limits"),
    ];
}

impl Tensor {
    /// Hyperbolic tangent of every element.
    ///
    /// # Gradient
    /// `ȳ·(1 − y²)`, computed from the operand, which is saved: it keeps its relative accuracy in both tails, where the
    /// rounded result has lost it (in bf16 from |x| = 2 on).
    ///
    /// # Numerics
    /// Full relative accuracy near 0; ±1 at ±∞.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn tanh(&self) -> Result<Tensor> {
        apply1(Map(Tanh), &[self])
    }

    /// Logistic function `1/(1 + e⁻ˣ)` of every element.
    ///
    /// # Gradient
    /// `ȳ·σ(x)·σ(−x)`, computed from the operand, which is saved: it keeps its relative accuracy in both tails, where the
    /// rounded result has lost it (in bf16, `1 − y` is wrong by 14 % at x = 4).
    ///
    /// # Numerics
    /// Never overflows; the left tail keeps its relative accuracy down to the subnormals.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[doc(alias("expit", "logistic"))]
    #[track_caller]
    pub fn sigmoid(&self) -> Result<Tensor> {
        apply1(Map(Sigmoid), &[self])
    }

    /// `ln(1 + eˣ)` of every element: a smooth maximum of x and 0.
    ///
    /// # Gradient
    /// `ȳ·sigmoid(x)`; saves the operand.
    ///
    /// # Numerics
    /// `max(x, 0) + ln(1 + e^−|x|)`: neither side overflows, and no threshold switches to another formula.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn softplus(&self) -> Result<Tensor> {
        apply1(Map(Softplus), &[self])
    }

    /// Error function of every element.
    ///
    /// # Gradient
    /// `ȳ·2/√π·e^(−x²)`; saves the operand.
    ///
    /// # Numerics
    /// `1 + erf(x)` cancels for negative x: use [`Tensor::normal_cdf`] where that is what you mean.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn erf(&self) -> Result<Tensor> {
        apply1(Map(Erf), &[self])
    }

    /// Standard normal distribution function Φ of every element (`torch.special.ndtr`).
    ///
    /// # Gradient
    /// `ȳ·φ(x)`, the normal density; saves the operand.
    ///
    /// # Numerics
    /// Full relative accuracy in the left tail.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[doc(alias("ndtr", "Phi"))]
    #[track_caller]
    pub fn normal_cdf(&self) -> Result<Tensor> {
        apply1(Map(NormalCdf), &[self])
    }
}
