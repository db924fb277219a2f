//! One scalar in place of all others, so that a definition is compiled once for all checks.

use super::scalar::{Ball, Dual, Scalar};
use crate::testing::Nd;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number of one of the kinds that checks run definitions on: which of them is seen at run time. The suite has hundreds of
/// definitions; compiled for each kind, with its arithmetic in line, they were most of the time it takes to build a test program.
///
/// Gives the same bits as the kind itself. A constant ([`Scalar::lit`]) is of any kind until it meets a number that is not.
///
/// ```
/// use cotangent::testing::{AnyScalar, Ball, Dual, Scalar};
/// fn square<S: Scalar>(x: S) -> S {
///     x * x
/// }
/// let x = Dual::new(Ball::lit(3.0), Ball::lit(1.0));
/// let y = Dual::<Ball>::from(square(AnyScalar::from(x)));
/// assert_eq!((y.v.v, y.d.v), (9.0, 6.0));
/// ```
///
/// # Panics
/// Where numbers of two kinds meet, or one is taken as of another kind: no definition does that.
#[derive(Clone, Copy, Debug)]
pub enum AnyScalar {
    /// A constant, with the bound on what computing it may round.
    Const(Ball),
    /// A value and its error bound.
    Ball(Ball),
    /// First derivatives, with error bounds.
    First(Dual<Ball>),
    /// Second derivatives.
    Second(Dual<Dual<f64>>),
    /// Second derivatives, with error bounds.
    SecondBall(Dual<Dual<Ball>>),
}

use AnyScalar::{Const, First, Second, SecondBall};

/// Conversions: from a kind, and back to it.
macro_rules! kind {
    ($Kind:ty, $Variant:ident, |$c:ident| $constant:expr) => {
        impl From<$Kind> for AnyScalar {
            fn from(x: $Kind) -> Self {
                AnyScalar::$Variant(x)
            }
        }
        impl From<AnyScalar> for $Kind {
            #[track_caller]
            fn from(x: AnyScalar) -> Self {
                match x {
                    AnyScalar::$Variant(x) => x,
                    Const($c) => $constant,
                    other => panic!("{other:?} among numbers of another kind"),
                }
            }
        }
    };
}

kind!(Ball, Ball, |c| c);
kind!(Dual<Ball>, First, |c| constant(c));
kind!(Dual<Dual<f64>>, Second, |c| constant(constant(c.v)));
kind!(Dual<Dual<Ball>>, SecondBall, |c| constant(constant(c)));

fn constant<T: Scalar>(v: T) -> Dual<T> {
    Dual { v, d: T::zero() }
}

/// Runs a function of slices of any kind's arrays on those of one kind.
pub(crate) fn through<S: Scalar + Into<AnyScalar> + From<AnyScalar>>(
    x: &[Nd<S>],
    define: &dyn Fn(&[Nd<AnyScalar>]) -> Vec<Nd<AnyScalar>>,
) -> Vec<Nd<S>> {
    let x: Vec<_> = x.iter().map(Nd::convert).collect();
    define(&x).iter().map(Nd::convert).collect()
}

impl AnyScalar {
    /// Constants before all others.
    fn kind(self) -> u8 {
        match self {
            Const(_) => 0,
            AnyScalar::Ball(_) => 1,
            First(_) => 2,
            Second(_) => 3,
            SecondBall(_) => 4,
        }
    }
}

// Out of line: what a definition repeats is calls.
macro_rules! two_operands {
    ($($Trait:ident $method:ident),*) => {$(
        impl $Trait for AnyScalar {
            type Output = Self;
            #[inline(never)]
            fn $method(self, o: Self) -> Self {
                match self.kind().max(o.kind()) {
                    0 => Const(Ball::from(self).$method(Ball::from(o))),
                    1 => Ball::from(self).$method(Ball::from(o)).into(),
                    2 => Dual::<Ball>::from(self).$method(o.into()).into(),
                    3 => Dual::<Dual<f64>>::from(self).$method(o.into()).into(),
                    _ => Dual::<Dual<Ball>>::from(self).$method(o.into()).into(),
                }
            }
        }
    )*};
}

two_operands!(Add add, Sub sub, Mul mul, Div div);

macro_rules! on_kind {
    ($x:expr, $v:ident => $y:expr) => {
        match $x {
            Const($v) => Const($y),
            AnyScalar::Ball($v) => AnyScalar::Ball($y),
            First($v) => First($y),
            Second($v) => Second($y),
            SecondBall($v) => SecondBall($y),
        }
    };
}

macro_rules! one_operand {
    ($($method:ident),*) => {$(
        #[inline(never)]
        fn $method(self) -> Self {
            on_kind!(self, x => x.$method())
        }
    )*};
}

impl Neg for AnyScalar {
    type Output = Self;
    #[inline(never)]
    fn neg(self) -> Self {
        on_kind!(self, x => -x)
    }
}

impl Scalar for AnyScalar {
    one_operand!(exp, expm1, ln, ln_1p, sqrt, sin, cos, tanh, erf, erfc, stored, abs, sigmoid);

    fn lit(x: f64) -> Self {
        Const(Ball::lit(x))
    }
    fn re(self) -> f64 {
        match self {
            Const(x) | AnyScalar::Ball(x) => x.v,
            First(x) => x.re(),
            Second(x) => x.re(),
            SecondBall(x) => x.re(),
        }
    }
    #[inline(never)]
    fn powf(self, p: f64) -> Self {
        on_kind!(self, x => x.powf(p))
    }
    /// Asks for each element once: what `f` does is not compiled again for every kind.
    fn sum_by<X>(x: &[X], f: &impl Fn(&X) -> Self) -> Self {
        let mut terms = Vec::with_capacity(x.len());
        for t in x {
            terms.push(f(t));
        }
        sum(&terms)
    }
}

fn sum(x: &[AnyScalar]) -> AnyScalar {
    match x.iter().map(|t| t.kind()).max().unwrap_or(0) {
        0 => Const(Ball::sum_by(x, &|&t| t.into())),
        1 => Ball::sum_by(x, &|&t| t.into()).into(),
        2 => Dual::<Ball>::sum_by(x, &|&t| t.into()).into(),
        3 => Dual::<Dual<f64>>::sum_by(x, &|&t| t.into()).into(),
        _ => Dual::<Dual<Ball>>::sum_by(x, &|&t| t.into()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation, constants among them.
    fn f<S: Scalar>(x: &[S]) -> S {
        let third = S::one() / S::lit(3.0).sqrt();
        let terms: Vec<S> = x.iter().flat_map(|&x| [x.exp(), S::lit(0.5), x.tanh().stored(), x.expm1() * third]).collect();
        let a = S::sum(&terms) - x[0].sigmoid() / x[1].abs();
        let b = S::sum_by(x, &|x| x.erf() * x.sin() + x.cos().max(third).min(x.erfc()));
        a * b + (x[1].ln() - x[0].ln_1p()) * -x[2].powf(1.5) + S::sum(&[]) + S::sum(&[third, third])
    }

    fn same<S: Scalar + Into<AnyScalar> + From<AnyScalar>>(x: [S; 3]) {
        let any = x.map(Into::into);
        assert_eq!(format!("{:?}", S::from(f::<AnyScalar>(&any))), format!("{:?}", f(&x)));
    }

    #[test]
    fn the_bits_are_those_of_the_kind() {
        let ball = |v| Ball { v, e: 0.25, h: 0.0 };
        let x = [0.7, 1.9, 0.3];
        same(x.map(ball));
        same(x.map(|v| Dual::new(ball(v), ball(1.0 - v))));
        same(x.map(|v| Dual::new(Dual::new(v, 0.5), Dual::new(v * v, 0.0))));
        same(x.map(|v| Dual::new(Dual::new(ball(v), ball(0.5)), Dual::new(ball(v * v), ball(0.0)))));
        let constants = x.map(AnyScalar::lit);
        assert_eq!(format!("{:?}", f(&constants)), format!("Const({:?})", f(&x.map(Ball::lit))));
    }

    #[test]
    #[should_panic(expected = "another kind")]
    fn kinds_do_not_meet() {
        let (a, b) = (AnyScalar::from(Ball::lit(1.0)), AnyScalar::from(Dual::new(Ball::lit(1.0), Ball::lit(0.0))));
        let _ = a + b;
    }
}
