//! The numbers that definitions run on: plain values, exact derivatives, and error bounds.
//!
//! One text of a definition, generic over [`Scalar`], serves four purposes: `f64` gives the reference value,
//! [`Dual`] the exact directional derivative, `Dual<Dual<f64>>` second derivatives, and [`Ball`] a bound on the rounding
//! error that a straightforward evaluation in lower precision may make, which is where tolerances come from.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number that definitions compute with. Comparisons and branches look at [`Scalar::re`].
pub trait Scalar:
    Copy
    + Debug
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A constant.
    fn lit(x: f64) -> Self;
    /// The plain value.
    fn re(self) -> f64;
    /// `f(x)` from the value `f` and derivative `df`, both in this scalar's own component type; see the methods below.
    fn exp(self) -> Self;
    /// `eˣ − 1`.
    fn expm1(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// `ln(1 + x)`.
    fn ln_1p(self) -> Self;
    /// Square root; its derivative at 0 is infinite.
    fn sqrt(self) -> Self;
    /// Sine.
    fn sin(self) -> Self;
    /// Cosine.
    fn cos(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Complementary error function, accurate where `1 − erf` cancels.
    fn erfc(self) -> Self;
    /// `self` to a constant power.
    fn powf(self, p: f64) -> Self;

    /// A number that kernels may round to the operands' type before they go on: the weights of attention in half types, where
    /// tensor cores multiply nothing wider. Changes the error bound alone.
    fn stored(self) -> Self {
        self
    }
    /// 0.
    fn zero() -> Self {
        Self::lit(0.0)
    }
    /// 1.
    fn one() -> Self {
        Self::lit(1.0)
    }
    /// Absolute value; derivative 0 at 0.
    fn abs(self) -> Self {
        if self.re() > 0.0 {
            self
        } else if self.re() < 0.0 {
            -self
        } else {
            self * Self::zero()
        }
    }
    /// Larger operand; NaN wins, and at a tie each side gets half of the derivative.
    fn max(self, o: Self) -> Self {
        pick(self, o, self.re() > o.re())
    }
    /// Smaller operand; NaN wins, and at a tie each side gets half of the derivative.
    fn min(self, o: Self) -> Self {
        pick(self, o, self.re() < o.re())
    }
    /// Logistic function `1 / (1 + e⁻ˣ)` without overflow.
    fn sigmoid(self) -> Self {
        if self.re() >= 0.0 {
            Self::one() / (Self::one() + (-self).exp())
        } else {
            let e = self.exp();
            e / (Self::one() + e)
        }
    }
    /// Pairwise sum: its error bound grows with log n.
    fn sum(x: &[Self]) -> Self {
        Self::sum_by(x, &|t| *t)
    }
    /// Pairwise sum of what `f` makes of the elements, each of which it may be asked for more than once.
    fn sum_by<X>(x: &[X], f: &impl Fn(&X) -> Self) -> Self {
        match x {
            [] => Self::zero(),
            [a] => f(a),
            _ => {
                let (l, r) = x.split_at(x.len() / 2);
                Self::sum_by(l, f) + Self::sum_by(r, f)
            }
        }
    }
}

fn pick<S: Scalar>(a: S, b: S, first: bool) -> S {
    let (x, y) = (a.re(), b.re());
    if x.is_nan() {
        a
    } else if y.is_nan() {
        b
    } else if x == y {
        // Not (a + b) / 2 for infinities, whose value is already right.
        if x.is_infinite() { a } else { (a + b) * S::lit(0.5) }
    } else if first {
        a
    } else {
        b
    }
}

impl Scalar for f64 {
    fn lit(x: f64) -> Self {
        x
    }
    fn re(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn expm1(self) -> Self {
        f64::exp_m1(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn ln_1p(self) -> Self {
        f64::ln_1p(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn sin(self) -> Self {
        f64::sin(self)
    }
    fn cos(self) -> Self {
        f64::cos(self)
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn erfc(self) -> Self {
        libm::erfc(self)
    }
    fn powf(self, p: f64) -> Self {
        f64::powf(self, p)
    }
}

/// `v + d·ε` with `ε² = 0`: a value and its exact directional derivative. Nest it for higher orders.
#[derive(Clone, Copy, Debug)]
pub struct Dual<T> {
    /// Value.
    pub v: T,
    /// Derivative.
    pub d: T,
}

impl<T: Scalar> Dual<T> {
    /// A value with a derivative.
    pub fn new(v: T, d: T) -> Self {
        Dual { v, d }
    }

    fn chain(self, f: T, df: T) -> Self {
        Dual { v: f, d: times(self.d, df) }
    }
}

/// `d·f` for a tangent `d`: nothing flows where nothing comes in, even through an infinite slope.
fn times<T: Scalar>(d: T, f: T) -> T {
    if d.re() == 0.0 && !f.re().is_finite() { T::zero() } else { d * f }
}

impl<T: Scalar> Add for Dual<T> {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Dual { v: self.v + o.v, d: self.d + o.d }
    }
}
impl<T: Scalar> Sub for Dual<T> {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Dual { v: self.v - o.v, d: self.d - o.d }
    }
}
impl<T: Scalar> Mul for Dual<T> {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        Dual { v: self.v * o.v, d: times(self.d, o.v) + times(o.d, self.v) }
    }
}
impl<T: Scalar> Div for Dual<T> {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        let q = self.v / o.v;
        Dual { v: q, d: times(self.d, T::one() / o.v) - times(o.d, q / o.v) }
    }
}
impl<T: Scalar> Neg for Dual<T> {
    type Output = Self;
    fn neg(self) -> Self {
        Dual { v: -self.v, d: -self.d }
    }
}

impl<T: Scalar> Scalar for Dual<T> {
    fn sum_by<X>(x: &[X], f: &impl Fn(&X) -> Self) -> Self {
        Dual { v: T::sum_by(x, &|t| f(t).v), d: T::sum_by(x, &|t| f(t).d) }
    }
    fn lit(x: f64) -> Self {
        Dual { v: T::lit(x), d: T::zero() }
    }
    fn re(self) -> f64 {
        self.v.re()
    }
    fn exp(self) -> Self {
        let e = self.v.exp();
        self.chain(e, e)
    }
    fn expm1(self) -> Self {
        self.chain(self.v.expm1(), self.v.exp())
    }
    fn ln(self) -> Self {
        self.chain(self.v.ln(), T::one() / self.v)
    }
    fn ln_1p(self) -> Self {
        self.chain(self.v.ln_1p(), T::one() / (T::one() + self.v))
    }
    fn sqrt(self) -> Self {
        let r = self.v.sqrt();
        self.chain(r, T::lit(0.5) / r)
    }
    fn sin(self) -> Self {
        self.chain(self.v.sin(), self.v.cos())
    }
    fn cos(self) -> Self {
        self.chain(self.v.cos(), -self.v.sin())
    }
    fn tanh(self) -> Self {
        let t = self.v.tanh();
        // 1 − t² cancels for large |x|; 1/cosh² does not.
        // By sign, not by `abs`: the slope must itself be differentiable at 0.
        let e = if self.v.re() > 0.0 { -self.v } else { self.v }.exp();
        let sech = (e + e) / (T::one() + e * e);
        self.chain(t, sech * sech)
    }
    fn erf(self) -> Self {
        self.chain(self.v.erf(), gauss(self.v))
    }
    fn erfc(self) -> Self {
        self.chain(self.v.erfc(), -gauss(self.v))
    }
    fn powf(self, p: f64) -> Self {
        let slope = if p == 0.0 { T::zero() } else { T::lit(p) * self.v.powf(p - 1.0) };
        self.chain(self.v.powf(p), slope)
    }
}

/// `2/√π · e^(−x²)`, the derivative of erf.
fn gauss<T: Scalar>(x: T) -> T {
    T::lit(std::f64::consts::FRAC_2_SQRT_PI) * (-(x * x)).exp()
}

/// A value and a bound on the error of evaluating it in a precision with unit roundoff `u`: after any chain of
/// operations, `|computed − v| ≤ u·e` to first order (running error analysis: Higham, *Accuracy and Stability of
/// Numerical Algorithms*, 2nd ed., §3.3). Elementary functions count two roundings. What [`Scalar::stored`] may round is counted
/// apart, in units of the operands' type.
#[derive(Clone, Copy, Debug)]
pub struct Ball {
    /// Value.
    pub v: f64,
    /// Error bound in units of the precision's unit roundoff.
    pub e: f64,
    /// The part of the bound in units of the roundoff of the type that operands are stored in.
    pub h: f64,
}

impl Ball {
    fn function(self, v: f64, slope: f64) -> Self {
        Ball { v, e: scaled(slope.abs(), self.e) + 2.0 * v.abs(), h: scaled(slope.abs(), self.h) }
    }
}

/// `a·e` where an infinite factor of nothing is nothing.
fn scaled(a: f64, e: f64) -> f64 {
    if e == 0.0 || a == 0.0 { 0.0 } else { a * e }
}

impl Add for Ball {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        let v = self.v + o.v;
        // Adding an exact zero rounds nothing.
        let own = if self.v == 0.0 || o.v == 0.0 { 0.0 } else { v.abs() };
        Ball { v, e: self.e + o.e + own, h: self.h + o.h }
    }
}
impl Sub for Ball {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        self + -o
    }
}
impl Mul for Ball {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        let v = self.v * o.v;
        let linear = |a: f64, b: f64| scaled(self.v.abs(), b) + scaled(o.v.abs(), a);
        // The product of both errors matters where a factor cancelled to 0. In units of u it carries another u; that of
        // f32 serves all, since in f64 the term is then merely generous.
        let second = 2f64.powi(-24) * self.e * o.e;
        Ball { v, e: linear(self.e, o.e) + second + v.abs(), h: linear(self.h, o.h) }
    }
}
impl Div for Ball {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        let v = self.v / o.v;
        let linear = |a: f64, b: f64| scaled(1.0 / o.v.abs(), a) + scaled((v / o.v).abs(), b);
        Ball { v, e: linear(self.e, o.e) + v.abs(), h: linear(self.h, o.h) }
    }
}
impl Neg for Ball {
    type Output = Self;
    fn neg(self) -> Self {
        Ball { v: -self.v, ..self }
    }
}

impl Scalar for Ball {
    /// A bound for every pairwise order: each term takes part in log₂ n additions, whatever it is added to.
    fn sum_by<X>(x: &[X], f: &impl Fn(&X) -> Self) -> Self {
        /// Sums of values, errors, sizes and narrow errors, and how many terms are not 0.
        fn parts<X>(x: &[X], f: &impl Fn(&X) -> Ball) -> ([f64; 4], usize) {
            match x {
                [] => ([0.0; 4], 0),
                [a] => {
                    let t = f(a);
                    ([t.v, t.e, t.v.abs(), t.h], usize::from(t.v != 0.0))
                }
                _ => {
                    let (l, r) = x.split_at(x.len() / 2);
                    let ((a, n), (b, m)) = (parts(l, f), parts(r, f));
                    ([a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]], n + m)
                }
            }
        }
        let ([v, e, size, h], terms) = parts(x, f);
        let depth = f64::from(terms.max(1).next_power_of_two().trailing_zeros());
        Ball { v, e: e + scaled(depth, size), h }
    }
    fn lit(x: f64) -> Self {
        Ball { v: x, e: 0.0, h: 0.0 }
    }
    fn stored(self) -> Self {
        Ball { h: self.h + self.v.abs(), ..self }
    }
    fn re(self) -> f64 {
        self.v
    }
    fn exp(self) -> Self {
        let f = self.v.exp();
        self.function(f, f)
    }
    fn expm1(self) -> Self {
        self.function(self.v.exp_m1(), self.v.exp())
    }
    fn ln(self) -> Self {
        self.function(self.v.ln(), 1.0 / self.v)
    }
    fn ln_1p(self) -> Self {
        self.function(self.v.ln_1p(), 1.0 / (1.0 + self.v))
    }
    fn sqrt(self) -> Self {
        let f = self.v.sqrt();
        self.function(f, 0.5 / f)
    }
    fn sin(self) -> Self {
        self.function(self.v.sin(), self.v.cos())
    }
    fn cos(self) -> Self {
        self.function(self.v.cos(), self.v.sin())
    }
    fn tanh(self) -> Self {
        let c = self.v.cosh();
        self.function(self.v.tanh(), 1.0 / (c * c))
    }
    fn erf(self) -> Self {
        self.function(libm::erf(self.v), gauss(self.v))
    }
    fn erfc(self) -> Self {
        self.function(libm::erfc(self.v), gauss(self.v))
    }
    fn powf(self, p: f64) -> Self {
        self.function(self.v.powf(p), if p == 0.0 { 0.0 } else { p * self.v.powf(p - 1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f<S: Scalar>(x: S) -> S {
        (x * x).exp().tanh() + x.sigmoid() * x.ln_1p() - x.sqrt() / (S::one() + x.powf(2.5)) + x.erf() * x.sin()
    }

    #[test]
    fn duals_differentiate() {
        let x = 0.7;
        let first = |x: f64| f(Dual::new(x, 1.0)).d;
        let second = f(Dual::new(Dual::new(x, 1.0), Dual::new(1.0, 0.0))).d.d;
        let h = 1e-4;
        assert!((first(x) - (f(x + h) - f(x - h)) / (2.0 * h)).abs() < 1e-7);
        assert!((second - (first(x + h) - first(x - h)) / (2.0 * h)).abs() < 1e-6);
    }

    #[test]
    fn ties_share_and_nan_wins() {
        let m = Dual::new(2.0, 1.0).max(Dual::new(2.0, 3.0));
        assert_eq!((m.v, m.d), (2.0, 2.0));
        assert!(1f64.max(f64::NAN) == 1.0 && Scalar::max(1f64, f64::NAN).is_nan() && Scalar::min(f64::NAN, 1.0).is_nan());
    }

    #[test]
    fn balls_bound_what_f32_does() {
        // f evaluated in f32 stays within the bound, and the bound is not absurd.
        for i in 1..200 {
            let x = i as f32 / 100.0;
            let y = {
                let s = 1.0 / (1.0 + (-x).exp());
                (x * x).exp().tanh() + s * x.ln_1p() - x.sqrt() / (1.0 + x.powf(2.5)) + libm::erff(x) * x.sin()
            };
            let b = f(Ball::lit(f64::from(x)));
            let u = f64::powi(2.0, -24);
            assert!((f64::from(y) - b.v).abs() <= u * b.e, "{x}: {y} vs {b:?}");
            assert!(b.e < 100.0);
        }
    }
}
