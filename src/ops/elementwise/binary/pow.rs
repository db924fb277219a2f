//! Tensor to the power of a tensor.

use super::{Binary, Zip, broadcast_samples_of, zip_block};
use crate::backend::cpu::{Compute, Real};
use crate::dtype::F32;
use crate::error::{Result, bail};
use crate::op::{Math, Saved, apply1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

/// Highest order of derivative in the exponent.
const ORDERS: usize = 8;

/// `∂ⁿ⁺ᵏ aᵇ / ∂aⁿ ∂bᵏ`; with `n = k = 0` the power itself, see [`Tensor::pow`]. The family is closed under
/// differentiation, so one op serves every order.
#[derive(Clone, Debug)]
pub struct Pow {
    /// `n`: how often it is differentiated by the base.
    pub by_base: usize,
    /// `k`: how often by the exponent.
    pub by_exponent: usize,
}

/// The power itself.
const POWER: Pow = Pow { by_base: 0, by_exponent: 0 };

impl Binary for Pow {
    const NAME: &'static str = "pow";
    const MATH: Math = Math {
        forward: "y = aᵇ (or a partial derivative of it)",
        vjp: "ā = ȳ · b·aᵇ⁻¹, b̄ = ȳ · aᵇ·ln a, each summed over its broadcast axes",
        kinks: "0⁰ = 1; ā = 0 where b = 0; b̄ = 0 where a = 0 and b ≥ 0, −∞ · ȳ where b < 0; a < 0: NaN unless b is an integer, and b̄ is NaN",
        cost: "reads a and b, writes y, one pow per element; saves a and b",
        references: "IEEE 754-2019 §9.2.1; torch.pow",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        partial(self.by_base, self.by_exponent, a, b)
    }
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
        let (n, k) = (self.by_base, self.by_exponent);
        // The power and its first derivatives with the orders as constants: those loops vectorise.
        macro_rules! of_order {
            ($n:expr, $k:expr) => {
                zip_block(
                    a,
                    b,
                    y,
                    #[inline(always)]
                    move |a, b| partial($n, $k, a, b),
                )
            };
        }
        match (n, k) {
            (0, 0) => of_order!(0, 0),
            (1, 0) => of_order!(1, 0),
            (0, 1) => of_order!(0, 1),
            // Rare, and in f64: a factor b(b−1)… may leave the range of an f32 where the power brings the product back.
            _ => zip_block(
                a,
                b,
                y,
                #[inline(always)]
                move |a, b| Real::from_f64(partial(n, k, a.to_f64(), b.to_f64())),
            ),
        }
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        let (n, k) = (self.by_base, self.by_exponent);
        let rest = b - S::lit(n as f64);
        if k > 0 && a.re() == 0.0 && rest.re() >= 0.0 {
            return S::zero();
        }
        // Leibniz: Σⱼ C(k, j) · (b(b−1)…(b−n+1))⁽ʲ⁾ · lnᵏ⁻ʲ a, with the falling factorial as a polynomial in b.
        let mut poly = vec![1.0];
        for i in 0..n {
            let mut next = vec![0.0; poly.len() + 1];
            for (p, c) in poly.iter().enumerate() {
                next[p + 1] += c;
                next[p] -= c * i as f64;
            }
            poly = next;
        }
        let (mut factor, mut choose) = (S::zero(), 1.0);
        for j in 0..=k {
            let horner = poly.iter().rev().map(|&c| S::lit(c)).reduce(|acc, c| acc * b + c).unwrap_or(S::zero());
            let mut term = horner * S::lit(choose);
            for _ in j..k {
                term = term * a.ln();
            }
            factor = factor + term;
            choose = choose * (k - j) as f64 / (j + 1) as f64;
            poly = poly.iter().enumerate().skip(1).map(|(p, c)| c * p as f64).collect();
        }
        if n > 0 && k == 0 && factor.re() == 0.0 {
            return S::zero();
        }
        factor * power(a, rest)
    }
    fn cuda(&self) -> super::BinaryKernels {
        super::BinaryKernels::new(super::kernels::pow, [self.by_base as f64, self.by_exponent as f64])
    }
    fn save(&self, a: &Tensor, b: &Tensor, _: &Tensor, _: [bool; 2]) -> Saved {
        Saved::of([Some(a), Some(b)])
    }
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let (n, k) = (self.by_base, self.by_exponent);
        if want[1] && k + 1 >= ORDERS {
            bail!(argument, "derivatives in the exponent exist up to order {}", ORDERS - 1);
        }
        // Half types as f32: a partial derivative may leave the range of f16 where its product with the cotangent does not.
        let (dtype, wide) = (g.dtype(), if g.dtype().is_half() { F32 } else { g.dtype() });
        let times = |slope: Pow| {
            let [a, b] = [saved.get(0)?.cast(wide)?, saved.get(1)?.cast(wide)?];
            g.cast(wide)?.mul(&apply1(Zip(slope), &[&a, &b])?)?.cast(dtype)
        };
        Ok([
            if want[0] { Some(times(Pow { by_base: n + 1, by_exponent: k })?) } else { None },
            if want[1] { Some(times(Pow { by_base: n, by_exponent: k + 1 })?) } else { None },
        ])
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = broadcast_samples_of(g, POWER, |g, s| g.uniform(s, 0.4, 2.5), |g, s| g.normal(s));
        for (by_base, by_exponent) in [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (2, 1)] {
            out.push(
                Sample::check(Pow { by_base, by_exponent }, [g.uniform([3, 4], 0.4, 2.5), g.normal([4])])
                    .note("a derivative of pow is an op of its own"),
            );
        }
        let base = Input::values([6], [-2.0, -1.5, -0.5, -3.0, 2.0, 0.25]);
        let exponent = Input::values([6], [2.0, 3.0, -1.0, 0.0, 0.0, 1.0]);
        out.push(Sample::check(POWER, [base, exponent]).no_grad(&[1]).note("negative base, integer exponent; slope 0 at exponent 0"));
        let zeros = [Input::values([4], [0.0; 4]), Input::values([4], [1.0, 2.0, 3.0, 0.0])];
        out.push(Sample::check(POWER, zeros).at_kink().note("base 0, exponent ≥ 0: gradients 0 (1 for exponent 1), never NaN [D2]"));
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let base = [0.0, 0.0, -0.0, inf, inf, -8.0, 1.0, nan, 2.0, 0.5, nan];
        let exponent = [0.0, -1.0, -1.0, 0.0, -1.0, 0.5, nan, 0.0, inf, inf, 1.0];
        out.push(Sample::value(POWER, [Input::values([11], base), Input::values([11], exponent)]).note("IEEE 754-2019 table of pow"));
        let base = [0.0, 0.0, 0.0, 0.0, nan];
        let exponent = [0.0, 1.0, 2.5, -1.0, 0.0];
        let slope = Pow { by_base: 1, by_exponent: 0 };
        out.push(
            Sample::value(slope, [Input::values([5], base), Input::values([5], exponent)])
                .note("slope in the base at base 0; 0 at exponent 0 [D2]"),
        );
        let slope = Pow { by_base: 0, by_exponent: 1 };
        out.push(
            Sample::value(slope, [Input::values([6], [0.0; 6]), Input::values([6], [0.0, 1.0, 2.5, 0.5, -1.0, -2.5])])
                .note("slope in the exponent at base 0: 0, and −∞ for a negative exponent [D2]"),
        );
        out
    }
}

/// ∂ⁿ/∂aⁿ ∂ᵏ/∂bᵏ aᵇ.
#[inline(always)]
fn partial<T: Real>(n: usize, k: usize, a: T, b: T) -> T {
    if n == 0 && k == 0 {
        return a.powf(b);
    }
    // aᵇ⁻ⁿ · (d/db + ln a)ᵏ b(b−1)…(b−n+1): first the falling factorial and its derivatives, then the powers of ln a.
    let mut d = [T::ZERO; ORDERS];
    d[0] = T::ONE;
    for i in 0..n {
        let t = b - T::from_f64(i as f64);
        for j in (0..=k).rev() {
            d[j] = if j == 0 { d[j] * t } else { d[j] * t + T::from_f64(j as f64) * d[j - 1] };
        }
    }
    let log = if k == 0 { T::ZERO } else { a.ln() };
    let (mut factor, mut binomial) = (T::ZERO, 1.0);
    for (j, &dj) in d[..=k].iter().enumerate() {
        // Horner in ln a, from the highest power down. The first step has nothing to multiply: not 0 · ln 0.
        let term = T::from_f64(binomial) * dj;
        factor = if j == 0 { term } else { factor * log + term };
        binomial = binomial * (k - j) as f64 / (j + 1) as f64;
    }
    let rest = b - T::from_f64(n as f64);
    // A vanishing factor beats an infinite power, and at base 0 a positive power beats the logarithm.
    let zero = if k == 0 { factor == T::ZERO } else { a == T::ZERO && rest >= T::ZERO };
    if zero {
        return T::ZERO;
    }
    let power = a.powf(rest);
    // A power that vanishes beats a polynomial that overflows.
    let vanishes = (power == T::ZERO) & (a != T::ZERO) & a.is_finite() & b.is_finite();
    if vanishes { T::ZERO } else { factor * power }
}

/// `aᵇ` with derivatives in both operands where `a > 0`, and in `a` alone elsewhere.
fn power<S: Scalar>(a: S, b: S) -> S {
    if a.re() > 0.0 && a.re().is_finite() && b.re().is_finite() { (b * a.ln()).exp() } else { a.powf(b.re()) }
}

impl Tensor {
    /// Each element to the power of the other tensor's, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ·b·aᵇ⁻¹` and `ȳ·aᵇ·ln a`; saves both operands. The first is 0 where the exponent is 0, the second is 0 where the
    /// base is 0 and the exponent is not negative, as in PyTorch.
    ///
    /// # Numerics
    /// `0⁰ = 1`. A negative base needs an integer exponent, otherwise the result is NaN; the gradient in the exponent is
    /// then NaN in any case.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    #[doc(alias = "power")]
    #[track_caller]
    pub fn pow(&self, exponent: &Tensor) -> Result<Tensor> {
        apply1(Zip(POWER), &[self, exponent])
    }
}
