//! Activations of neural networks: relu and its smooth relatives.

use super::sigmoids::{FRAC_1_SQRT_2PI, sigmoid_and_slope};
use super::{Domain, Map, at, constant_slope, finite, scaled, shifted};
use crate::backend::cpu::Real;
use crate::error::{ErrorKind, Result};
use crate::op::apply1;
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};
use std::f64::consts::FRAC_1_SQRT_2;

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;
/// Where tails overflow, cancel or multiply 0 by ∞ in naive forms. Values and first derivatives are checked there; second
/// derivatives are compositions, which keep absolute but not relative accuracy in the tails.
const TAILS: [f64; 19] =
    [-5.5, 6.0, -8.0, -17.0, 20.0, 10.5, -10.5, 13.0, -13.0, 19.875, -19.875, 41.0, -41.0, 88.0, -88.0, 1e4, -1e4, 1e19, -1e19];
const LIMITS: [f64; 5] = [INF, -INF, NAN, 1e30, -1e30];

/// x between −`bound` and `bound`; NaN stays.
#[inline(always)]
fn cap<T: Real>(x: T, bound: f64) -> T {
    let b = T::from_f64(bound);
    let x = if x > b { b } else { x };
    if x < -b { -b } else { x }
}

/// x from −`bound` upwards; NaN stays. Times a factor that underflows there, it gives 0 at −∞ instead of NaN.
#[inline(always)]
fn cap_below<T: Real>(x: T, bound: f64) -> T {
    let b = T::from_f64(-bound);
    if x < b { b } else { x }
}

/// `silu(x)` and its slope from one exponential.
#[inline(always)]
pub(crate) fn silu_and_slope<T: Real>(x: T) -> (T, T) {
    let (s, slope) = sigmoid_and_slope(x);
    (cap_below(x, 1000.0) * s, cap(x, 1000.0).mul_add(slope, s))
}

/// `gelu(x)` and its slope.
#[inline(always)]
pub(crate) fn gelu_and_slope<T: Real>(x: T) -> (T, T) {
    let below = x.normal_cdf();
    (cap_below(x, 60.0) * below, cap(x, 60.0).mul_add(x.normal_pdf(), below))
}

/// `gelu_tanh(x)` and its slope from one exponential.
#[inline(always)]
pub(crate) fn gelu_tanh_and_slope<T: Real>(x: T) -> (T, T) {
    let t = cap(x, 30.0);
    let t2 = t * t;
    let (s, slope) = sigmoid_and_slope(t * t2.mul_add(T::from_f64(GELU_C * GELU_A), T::from_f64(GELU_C)));
    let u2_slope = t2.mul_add(T::from_f64(3.0 * GELU_C * GELU_A), T::from_f64(GELU_C));
    (cap_below(x, 30.0) * s, (t * slope).mul_add(u2_slope, s))
}

unary! {
    /// `max(x, 0)`; see [`Tensor::relu`].
    Relu, "relu", saves Output;
    slope(self, y) => if y.re() <= 0.0 { S::zero() } else { S::one() };
    math: "y = max(x, 0)", "x̄ = ȳ where y > 0, else 0", "slope 0 at 0; NaN stays NaN", "torch.relu";
    domain: Domain::OffKinks;
    f(self, x) => if x <= T::ZERO { T::ZERO } else { x };
    pull(self, y, g) => if y <= T::ZERO { T::ZERO } else { g };
    define(self, x) => if x.re() <= 0.0 { S::zero() } else { x };
    cuda(self) => relu_fwd, relu_vjp, [];
    derivative(self, y) => constant_slope(self, y);
    samples => vec![
        Sample::check(Relu, at(&[0.0, -0.0])).at_kink().note("slope 0 at 0"),
        Sample::value(Relu, at(&LIMITS)),
    ];
}

unary! {
    /// `max(x, 0)²`; see [`Tensor::relu_squared`].
    ReluSquared, "relu_squared", saves Input;
    math: "y = max(x, 0)²", "x̄ = ȳ · 2x where x > 0, else 0", "slope 0 at 0, where the second derivative jumps from 0 to 2", "So et al. 2021, arXiv:2109.08668";
    domain: Domain::OffKinks;
    f(self, x) => if x <= T::ZERO { T::ZERO } else { x * x };
    pull(self, x, g) => {
        // 2 (g x), not g (2 x): the double may overflow where the product does not.
        let half = g * x;
        if x <= T::ZERO { T::ZERO } else { half + half }
    };
    define(self, x) => if x.re() <= 0.0 { S::zero() } else { x * x };
    cuda(self) => relu_squared_fwd, relu_squared_vjp, [];
    derivative(self, x) => {
        let y = x.relu()?;
        y.add(&y)
    };
    samples => vec![
        Sample::check(ReluSquared, at(&[0.0, -0.0])).at_kink().note("slope 0 at 0"),
        Sample::value(ReluSquared, at(&LIMITS)),
    ];
}

unary! {
    /// `x` above 0, a small multiple of it below; see [`Tensor::leaky_relu`].
    LeakyRelu {
        /// The slope below 0.
        slope: f64,
    }, "leaky_relu", saves Input;
    math: "y = x for x > 0, else slope · x", "x̄ = ȳ for x > 0, else slope · ȳ", "the lower slope at 0", "torch.nn.functional.leaky_relu";
    domain: Domain::OffKinks;
    f(self, x) => if x > T::ZERO { x } else { x * T::from_f64(self.slope) };
    pull(self, x, g) => if x > T::ZERO { g } else { g * T::from_f64(self.slope) };
    define(self, x) => if x.re() > 0.0 { x } else { x * S::lit(self.slope) };
    cuda(self) => leaky_relu_fwd, leaky_relu_vjp, [self.slope];
    derivative(self, x) => constant_slope(self, x);
    samples => {
        let mut out: Vec<_> = [0.01, 0.0, 0.2, 1.0, -0.5, 2.0].map(|slope| Sample::check(LeakyRelu { slope }, at(&[-2.5, -0.0625, 0.0625, 3.0]))).into();
        out.push(Sample::check(LeakyRelu { slope: 0.25 }, at(&[0.0, -0.0])).at_kink().note("the lower slope at 0"));
        out.push(Sample::value(LeakyRelu { slope: 0.01 }, at(&LIMITS)));
        out.push(Sample::reject(LeakyRelu { slope: NAN }, at(&[1.0]), ErrorKind::Argument));
        out
    };
    validate(self) => finite("the slope", self.slope);
}

unary! {
    /// `x` above 0, `α(eˣ − 1)` below; see [`Tensor::elu`].
    Elu {
        /// Minus the limit at −∞.
        alpha: f64,
    }, "elu", saves Input;
    math: "y = x for x > 0, else α (eˣ − 1)", "x̄ = ȳ for x > 0, else ȳ · α eˣ", "slope α at 0", "Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289";
    domain: Domain::OffKinks;
    f(self, x) => {
        let below = x.expm1() * T::from_f64(self.alpha);
        if x > T::ZERO { x } else { below }
    };
    pull(self, x, g) => {
        let below = g * (x.exp() * T::from_f64(self.alpha));
        if x > T::ZERO { g } else { below }
    };
    define(self, x) => if x.re() > 0.0 { x } else { x.expm1() * S::lit(self.alpha) };
    cuda(self) => elu_fwd, elu_vjp, [self.alpha];
    derivative(self, x) => {
        // α eˣ up to 0, of an operand that is 0 above, where eˣ could overflow.
        let above = x.gt_scalar(0.0)?;
        scaled(&x.masked_fill(&above, 0.0)?.exp()?, self.alpha)?.masked_fill(&above, 1.0)
    };
    samples => {
        let mut out: Vec<_> = [1.0, 0.5, 0.0, -1.5].map(|alpha| Sample::check(Elu { alpha }, at(&[-17.0, -2.5, -0.0625, -1e-1, 0.0625, 3.0]))).into();
        out.push(Sample::check(Elu { alpha: 0.25 }, at(&[0.0, -0.0])).at_kink().note("slope α at 0"));
        out.push(Sample::value(Elu { alpha: 1.0 }, at(&TAILS)));
        out.push(Sample::value(Elu { alpha: 2.0 }, at(&LIMITS)));
        out.push(Sample::reject(Elu { alpha: INF }, at(&[1.0]), ErrorKind::Argument));
        out
    };
    validate(self) => finite("alpha", self.alpha);
}

unary! {
    /// `x·sigmoid(x)`; see [`Tensor::silu`].
    Silu, "silu", saves Input;
    math: "y = x s, s = sigmoid(x)", "x̄ = ȳ · (s + x s (1 − s))", "smooth; 0 at −∞", "Elfwing, Uchibe & Doya 2018, arXiv:1702.03118";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => cap_below(x, 1000.0) * x.sigmoid();
    pull(self, x, g) => g * silu_and_slope(x).1;
    define(self, x) => if x.re() == -INF { S::zero() } else { x * x.sigmoid() };
    cuda(self) => silu_fwd, silu_vjp, [];
    derivative(self, x) => {
        let s = x.sigmoid()?;
        s.mul(&shifted(&x.mul(&x.neg()?.sigmoid()?)?, 1.0)?)
    };
    samples => vec![
        Sample::check(Silu, at(&[0.0, -0.0, 1e-3, -1.28125])).note("around the minimum"),
        Sample::value(Silu, at(&TAILS)).note("tails [D3, D4]"),
        Sample::value(Silu, at(&LIMITS)).note("silu(−∞) = 0"),
    ];
}

unary! {
    /// `x·Φ(x)`; see [`Tensor::gelu`].
    Gelu, "gelu", saves Input;
    math: "y = x Φ(x), Φ(x) = ½ erfc(−x/√2)", "x̄ = ȳ · (Φ(x) + x φ(x)), φ(x) = e^(−x²/2)/√2π", "smooth; 0 at −∞", "Hendrycks & Gimpel 2016, arXiv:1606.08415";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => cap_below(x, 60.0) * x.normal_cdf();
    pull(self, x, g) => g * gelu_and_slope(x).1;
    define(self, x) => if x.re() == -INF { S::zero() } else { x * (S::lit(0.5) * (x * S::lit(-FRAC_1_SQRT_2)).erfc()) };
    cuda(self) => gelu_fwd, gelu_vjp, [];
    derivative(self, x) => x.normal_cdf()?.add(&x.mul(&scaled(&scaled(&x.square()?, -0.5)?.exp()?, FRAC_1_SQRT_2PI)?)?);
    samples => vec![
        Sample::check(Gelu, at(&[0.0, -0.0, 1e-3, -0.75, 0.96875, -1.03125, -2.02])).note("the kernel's seams"),
        Sample::value(Gelu, at(&TAILS)).note("extremes [D4]"),
        Sample::value(Gelu, at(&LIMITS)).note("gelu(−∞) = 0 [D4]"),
    ];
}

/// √(2/π)·2: twice the factor of the inner polynomial, since `½(1 + tanh u) = sigmoid(2u)`.
const GELU_C: f64 = 2.0 * 0.797_884_560_802_865_4;
/// The cubic coefficient of the inner polynomial.
const GELU_A: f64 = 0.044_715;

unary! {
    /// The tanh form of gelu; see [`Tensor::gelu_tanh`].
    GeluTanh, "gelu_tanh", saves Input;
    math:
        "y = ½ x (1 + tanh u) = x s, s = sigmoid(2u), u = √(2/π) (x + 0.044715 x³)",
        "x̄ = ȳ · (s + x s (1 − s) 2u′)", "smooth; 0 at −∞", "Hendrycks & Gimpel 2016, arXiv:1606.08415";
    domain: Domain::Uniform(-4.0, 4.0);
    // Beyond 30, s is 0 or 1 to the last bit of an f64, and the cube stays finite.
    f(self, x) => {
        let t = cap(x, 30.0);
        let u2 = t * (t * t).mul_add(T::from_f64(GELU_C * GELU_A), T::from_f64(GELU_C));
        cap_below(x, 30.0) * u2.sigmoid()
    };
    pull(self, x, g) => g * gelu_tanh_and_slope(x).1;
    define(self, x) => {
        if x.re() > 40.0 {
            x
        } else if x.re() < -40.0 {
            S::zero()
        } else {
            let u2 = S::lit(GELU_C) * (x + S::lit(GELU_A) * (x * x * x));
            x * u2.sigmoid()
        }
    };
    cuda(self) => gelu_tanh_fwd, gelu_tanh_vjp, [];
    derivative(self, x) => {
        let x = &x.clamp(-30.0, 30.0)?;
        let x2 = x.square()?;
        let u2 = x.mul(&shifted(&scaled(&x2, GELU_C * GELU_A)?, GELU_C)?)?;
        let u2_slope = shifted(&scaled(&x2, 3.0 * GELU_C * GELU_A)?, GELU_C)?;
        let s = u2.sigmoid()?;
        s.mul(&shifted(&x.mul(&u2.neg()?.sigmoid()?)?.mul(&u2_slope)?, 1.0)?)
    };
    samples => vec![
        Sample::check(GeluTanh, at(&[0.0, -0.0, 1e-3, -0.75, 1.5, -2.02])),
        Sample::value(GeluTanh, at(&TAILS)).note("the inner tanh or its exponential overflowed, the cube overflowed in f16 [D4]"),
        Sample::value(GeluTanh, at(&LIMITS)).note("gelu(−∞) = 0 [D4]"),
    ];
}

impl Tensor {
    /// `max(x, 0)` of every element.
    ///
    /// # Gradient
    /// `ȳ` where the result is positive, else exactly 0 (also at 0); saves the result.
    ///
    /// # Numerics
    /// NaN stays NaN.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn relu(&self) -> Result<Tensor> {
        apply1(Map(Relu), &[self])
    }

    /// `max(x, 0)²` of every element, in one pass each way (Primer's activation).
    ///
    /// ```
    /// use cotangent::{Tensor, grad};
    /// let x = Tensor::from_slice(&[-1f64, 0.0, 3.0], [3])?;
    /// assert_eq!(x.relu_squared()?.to_vec::<f64>()?, [0.0, 0.0, 9.0]);
    /// assert_eq!(grad(&x, |x| x.relu_squared()?.sum(..))?.to_vec::<f64>()?, [0.0, 0.0, 6.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ·2x` where `x > 0`, else exactly 0; saves the operand, where `relu` and `square` would save two results.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn relu_squared(&self) -> Result<Tensor> {
        apply1(Map(ReluSquared), &[self])
    }

    /// `x` for positive elements, `slope·x` for the others.
    ///
    /// # Gradient
    /// `ȳ` above 0, `slope·ȳ` at and below 0; saves the operand.
    ///
    /// # Errors
    /// Dtype error for integers; argument error for a slope that is not finite.
    #[track_caller]
    pub fn leaky_relu(&self, slope: f64) -> Result<Tensor> {
        apply1(Map(LeakyRelu { slope }), &[self])
    }

    /// `x` for positive elements, `α·(eˣ − 1)` for the others.
    ///
    /// # Gradient
    /// `ȳ` above 0, `ȳ·α·eˣ` at and below 0; saves the operand.
    ///
    /// # Numerics
    /// Computed with `expm1`: full relative accuracy near 0.
    ///
    /// # Errors
    /// Dtype error for integers; argument error for an α that is not finite.
    #[track_caller]
    pub fn elu(&self, alpha: f64) -> Result<Tensor> {
        apply1(Map(Elu { alpha }), &[self])
    }

    /// `x·sigmoid(x)` of every element, also called swish.
    ///
    /// # Gradient
    /// `ȳ·(s + x·s·(1 − s))` with `s = sigmoid(x)`, fused in one pass; saves the operand.
    ///
    /// # Numerics
    /// Both tails keep their relative accuracy; 0 at −∞.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[doc(alias = "swish")]
    #[track_caller]
    pub fn silu(&self) -> Result<Tensor> {
        apply1(Map(Silu), &[self])
    }

    /// Gaussian error linear unit `x·Φ(x)`, in its exact form.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[f64::NEG_INFINITY, 0.0, 100.0], [3])?)?;
    /// let y = x.gelu()?;
    /// assert_eq!(y.to_vec::<f64>()?, [0.0, 0.0, 100.0]);
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&x)?.to_vec::<f64>()?, [0.0, 0.5, 1.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ·(Φ(x) + x·φ(x))`, fused in one pass; saves the operand.
    ///
    /// # Numerics
    /// Φ from the complementary error function: the left tail keeps its relative accuracy, where `½(1 + erf)` cancels.
    /// 0 at −∞. The derivative differs from that of [`Tensor::gelu_tanh`] by up to 9·10⁻⁴.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn gelu(&self) -> Result<Tensor> {
        apply1(Map(Gelu), &[self])
    }

    /// The tanh approximation of gelu, as GPT-2 uses it: `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    ///
    /// # Gradient
    /// The exact derivative of the approximation, fused in one pass; saves the operand.
    ///
    /// # Numerics
    /// Computed as `x·sigmoid(2u)`: nothing overflows (not even x³ in f16) and the left tail does not cancel. 0 at −∞.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn gelu_tanh(&self) -> Result<Tensor> {
        apply1(Map(GeluTanh), &[self])
    }
}
