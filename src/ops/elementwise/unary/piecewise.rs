//! Piecewise linear functions: sign changes, rounding, clamping. Their second derivative is zero wherever it exists.

use super::{Domain, Map, at, constant_slope};
use crate::backend::cpu::Real;
use crate::error::{ErrorKind, Result, bail};
use crate::op::apply1;
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;

unary! {
    /// `−x`; see [`Tensor::neg`].
    Neg, "neg", saves Nothing;
    slope(self, _s) => -S::one();
    math: "y = −x", "x̄ = −ȳ", "linear", "IEEE 754";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => -x;
    pull(self, _s, g) => -g;
    define(self, x) => -x;
    cuda(self) => neg_fwd, neg_vjp, [];
    derivative(self, s) => constant_slope(self, s);
    samples => vec![
        Sample::check(Neg, at(&[0.0, -0.0, 1.0, -2.0])),
        Sample::value(Neg, at(&[INF, -INF, NAN, 1e30, -1e-30])),
    ];
}

unary! {
    /// `|x|`; see [`Tensor::abs`].
    Abs, "abs", saves Input;
    math: "y = |x|", "x̄ = ȳ · sign x", "slope 0 at 0", "IEEE 754; torch.abs";
    domain: Domain::OffKinks;
    f(self, x) => x.abs();
    pull(self, x, g) => if x > T::ZERO { g } else if x < T::ZERO { -g } else { T::ZERO };
    define(self, x) => x.abs();
    cuda(self) => abs_fwd, abs_vjp, [];
    derivative(self, x) => x.sign();
    samples => vec![
        Sample::check(Abs, at(&[0.0, -0.0])).at_kink().note("slope 0 at 0 [D7]"),
        Sample::value(Abs, at(&[INF, -INF, NAN, 1e30, -1e-30])),
    ];
}

unary! {
    /// −1, 0 or 1; see [`Tensor::sign`].
    Sign, "sign", saves Nothing;
    slope(self, _s) => S::zero();
    math: "y = −1, 0 or 1 as x < 0, x = 0 or x > 0", "x̄ = 0", "slope 0 at the jump too; NaN stays NaN", "numpy.sign";
    domain: Domain::OffKinks;
    f(self, x) => if x > T::ZERO { T::ONE } else if x < T::ZERO { -T::ONE } else { x };
    pull(self, _s, _g) => T::ZERO;
    define(self, x) => S::lit(if x.re() > 0.0 { 1.0 } else if x.re() < 0.0 { -1.0 } else { x.re() });
    cuda(self) => sign_fwd, sign_vjp, [];
    derivative(self, s) => s.zeros_like();
    samples => vec![
        Sample::check(Sign, at(&[0.0, -0.0])).at_kink(),
        Sample::value(Sign, at(&[INF, -INF, NAN, 1e-30, -1e-30])),
    ];
}

unary! {
    /// Largest whole number not above x; see [`Tensor::floor`].
    Floor, "floor", saves Nothing;
    slope(self, _s) => S::zero();
    math: "y = ⌊x⌋", "x̄ = 0", "slope 0 at the jumps too", "IEEE 754 roundToIntegralTowardNegative";
    domain: Domain::OffKinks;
    f(self, x) => x.floor();
    pull(self, _s, _g) => T::ZERO;
    define(self, x) => S::lit(x.re().floor());
    cuda(self) => floor_fwd, floor_vjp, [];
    derivative(self, s) => s.zeros_like();
    samples => vec![
        Sample::check(Floor, at(&[0.0, -0.0, 1.0, -2.0])).at_kink(),
        Sample::value(Floor, at(&[INF, -INF, NAN, 1e30, -1e-30, 1e-30])),
    ];
}

unary! {
    /// Smallest whole number not below x; see [`Tensor::ceil`].
    Ceil, "ceil", saves Nothing;
    slope(self, _s) => S::zero();
    math: "y = ⌈x⌉", "x̄ = 0", "slope 0 at the jumps too", "IEEE 754 roundToIntegralTowardPositive";
    domain: Domain::OffKinks;
    f(self, x) => x.ceil();
    pull(self, _s, _g) => T::ZERO;
    define(self, x) => S::lit(x.re().ceil());
    cuda(self) => ceil_fwd, ceil_vjp, [];
    derivative(self, s) => s.zeros_like();
    samples => vec![
        Sample::check(Ceil, at(&[0.0, -0.0, 1.0, -2.0])).at_kink(),
        Sample::value(Ceil, at(&[INF, -INF, NAN, 1e30, -1e-30, 1e-30])),
    ];
}

unary! {
    /// Nearest whole number, ties to even; see [`Tensor::round`].
    Round, "round", saves Nothing;
    slope(self, _s) => S::zero();
    math: "y = nearest whole number, ties to even", "x̄ = 0", "slope 0 at the jumps too", "IEEE 754 roundToIntegralTiesToEven";
    domain: Domain::OffKinks;
    f(self, x) => x.round_ties_even();
    pull(self, _s, _g) => T::ZERO;
    define(self, x) => S::lit(x.re().round_ties_even());
    cuda(self) => round_fwd, round_vjp, [];
    derivative(self, s) => s.zeros_like();
    samples => vec![
        Sample::check(Round, at(&[0.5, -0.5, 1.5, -1.5, 2.5, -2.5])).at_kink().note("ties to even"),
        Sample::value(Round, at(&[INF, -INF, NAN, 1e30, -1e-30, 0.49999997])),
    ];
}

unary! {
    /// Nearest multiple of a power of ten, ties to even; see [`Tensor::round_decimals`].
    RoundDecimals {
        /// Digits after the point; negative ones count before it.
        decimals: i32,
    }, "round_decimals", saves Nothing;
    slope(self, _s) => S::zero();
    math: "y = nearest multiple of 10⁻ᵈ, ties to even, computed as round(x 10ᵈ) / 10ᵈ", "x̄ = 0", "slope 0 at the jumps too; x itself where the steps between leave the range", "torch.round with decimals; numpy.around";
    domain: Domain::OffKinks;
    f(self, x) => {
        let p = T::from_f64(self.scale());
        let y = if self.decimals >= 0 { (x * p).round_ties_even() / p } else { (x / p).round_ties_even() * p };
        // Not for NaN and infinities, whatever they come from.
        if y.is_finite() { y } else { x }
    };
    pull(self, _s, _g) => T::ZERO;
    define(self, x) => {
        let p: f64 = std::iter::repeat_n(10.0, self.decimals.unsigned_abs() as usize).product();
        let v = x.re();
        let whole = if self.decimals > 0 { v * p } else { v / p };
        if !whole.is_finite() {
            S::lit(v)
        } else if self.decimals > 0 {
            S::lit(whole.round_ties_even()) / S::lit(p)
        } else {
            S::lit(whole.round_ties_even()) * S::lit(p)
        }
    };
    cuda(self) => round_decimals_fwd, round_decimals_vjp, [self.scale(), f64::from(self.decimals.signum())];
    derivative(self, s) => s.zeros_like();
    samples => {
        let mut out = vec![Sample::check(RoundDecimals { decimals: 1 }, at(&[0.25, -0.25, 0.75, 1.25, 0.125])).at_kink().note("ties to even")];
        for decimals in [0, 1, 2, 3, 5, -1, -2, 38, -38] {
            out.push(Sample::value(RoundDecimals { decimals }, at(&[INF, -INF, NAN, 0.0, -0.0, 1e30, -1e-30, 12345.0, 15.0, -25.0, 0.375])));
        }
        out.push(Sample::check(RoundDecimals { decimals: -1 }, at(&[5.0, 15.0, -25.0, 14.0, 16.0])).at_kink().note("ties to even before the point"));
        for decimals in [39, -39, i32::MIN] {
            out.push(Sample::reject(RoundDecimals { decimals }, at(&[1.0]), ErrorKind::Argument));
        }
        out
    };
    validate(self) => {
        if self.decimals.unsigned_abs() > 38 {
            bail!(argument, "decimals must be between -38 and 38, the range of an f32; found {}", self.decimals);
        }
        Ok(())
    };
}

impl RoundDecimals {
    /// 10 to the number of digits, without its sign.
    #[inline(always)]
    fn scale(&self) -> f64 {
        10f64.powi(self.decimals.saturating_abs())
    }
}

unary! {
    /// x limited to an interval; see [`Tensor::clamp`].
    Clamp {
        /// Lower end.
        min: Option<f64>,
        /// Upper end.
        max: Option<f64>,
    }, "clamp", saves Input;
    math: "y = min(max(x, lo), hi)", "x̄ = ȳ where lo < x < hi, else 0", "slope 0 at both ends and at NaN, which stays NaN", "torch.clamp";
    domain: Domain::OffKinks;
    f(self, x) => {
        // An absent end is NaN: no comparison holds, and the loop has no branch.
        let (lo, hi) = (T::from_f64(self.min.unwrap_or(NAN)), T::from_f64(self.max.unwrap_or(NAN)));
        let y = if x < lo { lo } else { x };
        if y > hi { hi } else { y }
    };
    pull(self, x, g) => {
        let (lo, hi) = (T::from_f64(self.min.unwrap_or(NAN)), T::from_f64(self.max.unwrap_or(NAN)));
        if (x <= lo) | (x >= hi) | x.is_nan() { T::ZERO } else { g }
    };
    define(self, x) => match (self.min, self.max) {
        _ if x.re().is_nan() => S::lit(NAN),
        (Some(lo), _) if x.re() <= lo => S::lit(lo),
        (_, Some(hi)) if x.re() >= hi => S::lit(hi),
        _ => x,
    };
    cuda(self) => clamp_fwd, clamp_vjp, [self.min.unwrap_or(NAN), self.max.unwrap_or(NAN)];
    derivative(self, x) => constant_slope(self, x);
    samples => {
        let ends = [(Some(-1.0), Some(1.5)), (Some(0.25), None), (None, Some(-0.5)), (None, None), (Some(1.0), Some(1.0)), (Some(-INF), Some(INF))];
        let mut out: Vec<_> = ends.map(|(min, max)| Sample::check(Clamp { min, max }, at(&[-2.0625, -0.6875, 0.0625, 0.8125, 1.4375, 1.5625]))).into();
        out.extend(ends.map(|(min, max)| {
            Sample::check(Clamp { min, max }, at(&[-1.0, -0.5, 0.25, 1.0, 1.5])).at_kink().note("slope 0 at the ends")
        }));
        out.extend(ends.map(|(min, max)| Sample::value(Clamp { min, max }, at(&[INF, -INF, NAN, 1e30, -1e30]))));
        for (lo, hi) in [(1.0, 0.0), (NAN, 1.0), (0.0, NAN)] {
            out.push(Sample::reject(Clamp { min: Some(lo), max: Some(hi) }, at(&[1.0]), ErrorKind::Argument));
        }
        out
    };
    validate(self) => {
        let (lo, hi) = (self.min.unwrap_or(-INF), self.max.unwrap_or(INF));
        // Written so that NaN fails.
        if !(lo <= hi) {
            let hint = if lo > hi { "; are they exchanged? (PyTorch gives max everywhere)" } else { "" };
            bail!(argument, "the interval is empty: min {lo}, max {hi}{hint}");
        }
        Ok(())
    };
}

impl Tensor {
    /// `−x` of every element.
    ///
    /// # Gradient
    /// `−ȳ`; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[doc(alias = "negative")]
    #[track_caller]
    pub fn neg(&self) -> Result<Tensor> {
        apply1(Map(Neg), &[self])
    }

    /// Absolute value of every element.
    ///
    /// # Gradient
    /// `ȳ·sign x`, 0 at 0; saves the operand.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[doc(alias = "absolute")]
    #[track_caller]
    pub fn abs(&self) -> Result<Tensor> {
        apply1(Map(Abs), &[self])
    }

    /// −1, 0 or 1 for negative, zero and positive elements; NaN stays NaN.
    ///
    /// # Gradient
    /// Zero everywhere; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn sign(&self) -> Result<Tensor> {
        apply1(Map(Sign), &[self])
    }

    /// Largest whole number not above each element.
    ///
    /// # Gradient
    /// Zero everywhere; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn floor(&self) -> Result<Tensor> {
        apply1(Map(Floor), &[self])
    }

    /// Smallest whole number not below each element.
    ///
    /// # Gradient
    /// Zero everywhere; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn ceil(&self) -> Result<Tensor> {
        apply1(Map(Ceil), &[self])
    }

    /// Nearest whole number to each element, ties to even: 0.5 → 0, 1.5 → 2, 2.5 → 2. To other digits: [`Tensor::round_decimals`].
    ///
    /// # Gradient
    /// Zero everywhere; saves nothing.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn round(&self) -> Result<Tensor> {
        apply1(Map(Round), &[self])
    }

    /// Each element rounded to so many digits after the point (before it, for a negative number), ties to even:
    /// `x.round_decimals(2)` makes 3.14 of 3.14159, `x.round_decimals(-2)` makes 1200 of 1234.
    ///
    /// ```
    /// # use cotangent::tensor;
    /// let x = tensor![3.14159, -0.125, 1250.0; F64]?;
    /// assert_eq!(x.round_decimals(2)?.to_vec::<f64>()?, [3.14, -0.12, 1250.0]);
    /// assert_eq!(x.round_decimals(-2)?.to_vec::<f64>()?, [0.0, 0.0, 1200.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Zero everywhere; saves nothing.
    ///
    /// # Numerics
    /// `round(x·10ᵈ)/10ᵈ` in f64 for f64 and in f32 for the other types, as PyTorch. The product is rounded: what lies within a
    /// rounding of a tie counts as one (0.35 in f64 is below 7/20, and becomes 0.4). Where it leaves the range, x has no such digits and
    /// stays as it is (PyTorch: ∞).
    ///
    /// # Errors
    /// Argument error for more than 38 digits on either side; dtype error for integers.
    #[doc(alias = "around")]
    #[track_caller]
    pub fn round_decimals(&self, decimals: i32) -> Result<Tensor> {
        apply1(Map(RoundDecimals { decimals }), &[self])
    }

    /// Limits every element to an interval; an end of `None` is open: `x.clamp(0.0, None)`.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[-2f32, 0.0, 0.5, 1.0, 3.0], [5])?)?;
    /// let y = x.clamp(0.0, 1.0)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 0.0, 0.5, 1.0, 1.0]);
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&x)?.to_vec::<f32>()?, [0.0, 0.0, 1.0, 0.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ` between the ends, 0 outside, at the ends themselves and at NaN (as PyTorch since 2.15); saves the operand.
    ///
    /// # Numerics
    /// NaN stays NaN. The ends are rounded to f32 for f32 and the half types.
    ///
    /// # Errors
    /// Dtype error for integers; argument error when `min > max` or an end is NaN.
    #[doc(alias("clip", "clamp_min", "clamp_max"))]
    #[track_caller]
    pub fn clamp(&self, min: impl Into<Option<f64>>, max: impl Into<Option<f64>>) -> Result<Tensor> {
        // Not generic, so compiled here and not by every user.
        #[track_caller]
        #[inline(never)]
        fn run(x: &Tensor, min: Option<f64>, max: Option<f64>) -> Result<Tensor> {
            apply1(Map(Clamp { min, max }), &[x])
        }
        run(self, min.into(), max.into())
    }
}
