//! Roots and powers.

use super::{Domain, Map, at, finite, scaled};
use crate::backend::cpu::Real;
use crate::error::{ErrorKind, Result, bail};
use crate::op::apply1;
use crate::tensor::Tensor;
use crate::testing::{Sample, Scalar};

const INF: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;

unary! {
    /// `√x`; see [`Tensor::sqrt`].
    Sqrt, "sqrt", saves Output;
    slope(self, y) => S::lit(0.5) / y;
    math: "y = √x", "x̄ = ȳ / 2y", "slope +∞ at 0; NaN below", "IEEE 754-2019 §5.4.1";
    domain: Domain::Uniform(0.1, 4.0);
    f(self, x) => x.sqrt();
    pull(self, y, g) => g * T::HALF / y;
    define(self, x) => x.sqrt();
    cuda(self) => sqrt_fwd, sqrt_vjp, [];
    derivative(self, y) => scaled(&y.recip()?, 0.5);
    samples => vec![
        Sample::check(Sqrt, at(&[1.0, 4.0, 1e-3, 3e4])),
        Sample::value(Sqrt, at(&[0.0, -0.0, -1.0, 1e-30, 1e30, INF, -INF, NAN])).note("the slope at 0 is infinite"),
    ];
}

unary! {
    /// `1/√x`; see [`Tensor::rsqrt`].
    Rsqrt, "rsqrt", saves Output;
    slope(self, y) => S::lit(-0.5) * y * y * y;
    math: "y = 1/√x", "x̄ = −ȳ · y³ / 2", "+∞ at 0, with slope −∞; NaN below", "CUDA rsqrt";
    domain: Domain::Uniform(0.1, 4.0);
    f(self, x) => T::ONE / x.sqrt();
    pull(self, y, g) => (g * -T::HALF) * y * y * y;
    define(self, x) => S::one() / x.sqrt();
    cuda(self) => rsqrt_fwd, rsqrt_vjp, [];
    derivative(self, y) => scaled(&y.square()?.mul(y)?, -0.5);
    samples => vec![
        Sample::check(Rsqrt, at(&[1.0, 4.0, 1e-2, 3e4])),
        Sample::value(Rsqrt, at(&[0.0, -1.0, 1e-30, 1e30, INF, NAN])).note("limits"),
    ];
}

unary! {
    /// `1/x`; see [`Tensor::recip`].
    Recip, "recip", saves Output;
    slope(self, y) => -(y * y);
    math: "y = 1/x", "x̄ = −ȳ · y²", "±∞ at ±0, with slope −∞", "IEEE 754";
    domain: Domain::Uniform(0.1, 4.0);
    f(self, x) => T::ONE / x;
    pull(self, y, g) => -(g * y) * y;
    define(self, x) => S::one() / x;
    cuda(self) => recip_fwd, recip_vjp, [];
    derivative(self, y) => y.square()?.neg();
    samples => vec![
        Sample::check(Recip, at(&[1.0, -4.0, -1e-2, 3e4])),
        Sample::value(Recip, at(&[0.0, -0.0, 1e-30, -1e30, INF, -INF, NAN])).note("limits"),
    ];
}

unary! {
    /// `x²`; see [`Tensor::square`].
    Square, "square", saves Input;
    math: "y = x²", "x̄ = ȳ · 2x", "smooth", "elementary";
    domain: Domain::Uniform(-4.0, 4.0);
    f(self, x) => x * x;
    pull(self, x, g) => {
        // 2 (g x), not g (2 x): the double may overflow where the product does not.
        let half = g * x;
        half + half
    };
    define(self, x) => x * x;
    cuda(self) => square_fwd, square_vjp, [];
    derivative(self, x) => x.add(x);
    samples => vec![
        Sample::check(Square, at(&[0.0, -1e2, 1e-2])).note("zero [D7]"),
        Sample::value(Square, at(&[1e30, -1e30, 1e-30, INF, -INF, NAN])).note("overflow, underflow"),
    ];
}

unary! {
    /// `xⁿ` for a whole n; see [`Tensor::powi`].
    Powi {
        /// The exponent.
        n: i32,
    }, "powi", saves Input;
    math: "y = xⁿ, x⁰ = 1", "x̄ = ȳ · n xⁿ⁻¹, and 0 for n = 0", "for n < 0: ±∞ at 0", "IEEE 754-2019 §9.2 pown";
    domain: Domain::Uniform(0.25, 2.0);
    f(self, x) => T::from_f64(x.powi_small(self.n));
    // In f64 whatever the dtype: a power may overflow where a small cotangent brings the product back.
    pull(self, x, g) => {
        let slope = g.to_f64() * f64::from(self.n) * x.powi_small(self.n.saturating_sub(1));
        if self.n == 0 { T::ZERO } else { T::from_f64(slope) }
    };
    rare(self, x, g) => self.n.unsigned_abs() > T::SMALL_POWER, f x.powi(self.n),
        pull T::from_f64(g.to_f64() * f64::from(self.n) * x.powf_wide(f64::from(self.n.saturating_sub(1))));
    define(self, x) => {
        // Repeated multiplication by squaring: bits of the exponent from the lowest.
        let base = if self.n < 0 { S::one() / x } else { x };
        let (mut product, mut square, mut bits) = (None, base, self.n.unsigned_abs());
        while bits > 0 {
            if bits & 1 == 1 {
                product = Some(product.map_or(square, |p| p * square));
            }
            bits >>= 1;
            if bits > 0 {
                square = square * square;
            }
        }
        product.unwrap_or(S::one())
    };
    cuda(self) => powi_fwd, powi_vjp, [f64::from(self.n)];
    derivative(self, x) => match self.n {
        0 => x.zeros_like(),
        1 => x.ones_like(),
        n => scaled(&x.powi(n.saturating_sub(1))?, f64::from(n)),
    };
    samples => {
        let x = &[-2.0, -0.5, 0.75, 1.0, 1.5, -1.0][..];
        let mut out: Vec<_> = [3, 0, 1, 2, 4, 5, 7, 17, 20, -1, -2, -3, -4].map(|n| Sample::check(Powi { n }, at(x))).into();
        out.extend([0, 1, 2, 3, 6].map(|n| Sample::check(Powi { n }, at(&[0.0, -0.0])).note("base 0 [D2]")));
        out.extend([-3, -2, -1, 0, 1, 2, 3, 100, -100, 101].map(|n| {
            Sample::value(Powi { n }, at(&[0.0, 1e-20, -1e20, 1.0009765625, INF, -INF, NAN])).note("limits; NaN⁰ = 1 [D2]")
        }));
        out.push(Sample::reject(Powi { n: i32::MIN }, at(&[1.0]), ErrorKind::Argument));
        out
    };
    validate(self) => {
        if self.n == i32::MIN {
            bail!(argument, "the exponent {} has no derivative within i32: use powf", self.n);
        }
        Ok(())
    };
}

unary! {
    /// `xᵖ` for a constant p; see [`Tensor::powf`].
    Powf {
        /// The exponent.
        p: f64,
    }, "powf", saves Input;
    math:
        "y = xᵖ, x⁰ = 1", "x̄ = ȳ · p xᵖ⁻¹, and 0 for p = 0",
        "at 0: slope +∞ for 0 < p < 1; NaN for x < 0 unless p is whole", "IEEE 754-2019 §9.2 pow";
    domain: Domain::Uniform(0.25, 4.0);
    // In f64 whatever the dtype: an exponent rounded to f32 would cost |p ln x| ulps.
    f(self, x) => T::from_f64(x.powf_wide(self.p));
    pull(self, x, g) => if self.p == 0.0 { T::ZERO } else { T::from_f64(g.to_f64() * self.p * x.powf_wide(self.p - 1.0)) };
    define(self, x) => x.powf(self.p);
    cuda(self) => powf_fwd, powf_vjp, [self.p];
    derivative(self, x) => if self.p == 0.0 { x.zeros_like() } else { scaled(&x.powf(self.p - 1.0)?, self.p) };
    samples => {
        let mut out: Vec<_> = [1.0 / 3.0, 0.0, 0.5, 1.0, 2.5, -0.5, -1.0, 2.0, 7.25].map(|p| Sample::check(Powf { p }, at(&[0.25, 1.0, 1.5, 3.0]))).into();
        out.extend([0.0, 1.0, 2.0, 3.0, -2.0, -3.0].map(|p| Sample::check(Powf { p }, at(&[-0.25, -1.5])).note("a whole exponent takes negative bases")));
        out.extend([0.0, 1.0, 2.0].map(|p| Sample::check(Powf { p }, at(&[0.0])).note("base 0 [D2]")));
        out.extend([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -0.5, -1.0, -2.0, 1.0 / 3.0].map(|p| {
            Sample::value(Powf { p }, at(&[0.0, 1e-30, 1e30, -1.5, INF, NAN])).note("limits, outside the domain [D2]")
        }));
        out.push(Sample::reject(Powf { p: NAN }, at(&[1.0]), ErrorKind::Argument));
        out.push(Sample::reject(Powf { p: INF }, at(&[1.0]), ErrorKind::Argument));
        out
    };
    validate(self) => finite("the exponent", self.p);
}

impl Tensor {
    /// Square root of every element.
    ///
    /// # Gradient
    /// `ȳ/2√x`, infinite at 0; saves the result.
    ///
    /// # Numerics
    /// Correctly rounded; NaN below 0. A zero cotangent at 0 gives `0·∞ = NaN`: add an ε under the root.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn sqrt(&self) -> Result<Tensor> {
        apply1(Map(Sqrt), &[self])
    }

    /// `1/√x` of every element.
    ///
    /// # Gradient
    /// `−ȳ·y³/2`, −∞ at 0; saves the result.
    ///
    /// # Numerics
    /// Two roundings; +∞ at 0, NaN below.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[track_caller]
    pub fn rsqrt(&self) -> Result<Tensor> {
        apply1(Map(Rsqrt), &[self])
    }

    /// `1/x` of every element.
    ///
    /// # Gradient
    /// `−ȳ·y²`; saves the result.
    ///
    /// # Numerics
    /// Correctly rounded; ±∞ at ±0, where the slope is −∞.
    ///
    /// # Errors
    /// Dtype error for integers.
    #[doc(alias = "reciprocal")]
    #[track_caller]
    pub fn recip(&self) -> Result<Tensor> {
        apply1(Map(Recip), &[self])
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

    /// Every element to a whole power.
    ///
    /// # Gradient
    /// `ȳ·n·xⁿ⁻¹`, exactly 0 for n = 0; saves the operand. At 0 the slope is 0 for n > 1, 1 for n = 1 and infinite for
    /// n < 0.
    ///
    /// # Numerics
    /// `x⁰ = 1`, even for NaN. f32 and the half types multiply in f64 and round once.
    ///
    /// # Errors
    /// Dtype error for integers; argument error for `i32::MIN`.
    #[track_caller]
    pub fn powi(&self, n: i32) -> Result<Tensor> {
        apply1(Map(Powi { n }), &[self])
    }

    /// Every element to a constant power.
    ///
    /// # Gradient
    /// `ȳ·p·xᵖ⁻¹`, exactly 0 for p = 0; saves the operand. At 0 the slope is infinite for p < 1 (other than 0).
    ///
    /// # Numerics
    /// Computed in f64 for every dtype. NaN for negative bases unless p is whole; `x⁰ = 1`, even for NaN.
    /// [`Tensor::powi`], [`Tensor::sqrt`] and [`Tensor::rsqrt`] are several times faster.
    ///
    /// # Errors
    /// Dtype error for integers; argument error for an exponent that is not finite.
    #[track_caller]
    pub fn powf(&self, p: f64) -> Result<Tensor> {
        apply1(Map(Powf { p }), &[self])
    }
}
