//! Comparisons: masks of 0 and 1 in `u8`, never tracked.

use crate::backend::cpu::{self, Compute, Real, map};
use crate::backend::cuda::{self, grid, kernels::compare as kernels};
use crate::dtype::{DType, F64, I64, U8, U32};
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1_as, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, broadcast_extents};
use half::{bf16, f16};
use smallvec::{SmallVec, smallvec};

/// Which comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `a = b`
    Equal,
    /// `a ≠ b`
    NotEqual,
    /// `a < b`
    Less,
    /// `a ≤ b`
    AtMost,
    /// `a > b`
    Greater,
    /// `a ≥ b`
    AtLeast,
    /// `a = b`, or `a` is NaN: where an extremum `b` of `a` was taken.
    Taken,
}

use Relation::{AtLeast, AtMost, Equal, Greater, Less, NotEqual, Taken};

const ALL: [Relation; 7] = [Equal, NotEqual, Less, AtMost, Greater, AtLeast, Taken];

impl Relation {
    #[allow(clippy::eq_op, reason = "the definition of NaN")]
    fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Equal => a == b,
            NotEqual => a != b,
            Less => a < b,
            AtMost => a <= b,
            Greater => a > b,
            AtLeast => a >= b,
            Taken => a == b || a.is_nan(),
        }
    }
}

/// Runs `$run!(…)` with `$holds` bound to the comparison as a closure: one loop per relation, none inside.
macro_rules! by_relation {
    ($relation:expr, $holds:ident => $run:expr) => {
        match $relation {
            Equal => {
                let $holds = |a, b| a == b;
                $run
            }
            NotEqual => {
                let $holds = |a, b| a != b;
                $run
            }
            Less => {
                let $holds = |a, b| a < b;
                $run
            }
            AtMost => {
                let $holds = |a, b| a <= b;
                $run
            }
            Greater => {
                let $holds = |a, b| a > b;
                $run
            }
            AtLeast => {
                let $holds = |a, b| a >= b;
                $run
            }
            Taken => {
                #[allow(clippy::eq_op, reason = "the definition of NaN")]
                let $holds = |a, b| (a == b) | (a != a);
                $run
            }
        }
    };
}

/// A comparison of two tensors; see [`Tensor::eq`] and its siblings.
#[derive(Clone, Debug)]
pub struct Compare(pub Relation);

impl Describe for Compare {
    const NAME: &'static str = "compare";
    const MATH: Math = Math {
        forward: "y = 1 where the relation holds between a and b, else 0 (u8)",
        vjp: "none: the result is a mask and never tracked",
        kinks: "NaN compares false, except for ne",
        cost: "reads a and b, writes one byte per element; saves nothing",
        references: "IEEE 754 §5.11",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = broadcast_extents(x);
        vec![Nd::from_fn(shape, |i| truth(self.0.holds(x[0].broadcast_at(i).re(), x[1].broadcast_at(i).re())))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let special =
            || [Input::values([7], [0.0, nan, inf, -inf, 1.0, nan, 2.0]), Input::values([7], [-0.0, nan, inf, inf, nan, 1.0, 2.0])];
        let (m, n) = (g.extent(), g.extent());
        let mut out = Vec::new();
        for r in ALL {
            out.push(Sample::value(Compare(r), special()).note("NaN, signed zeros, infinities"));
            for dtype in [I64, U32, U8] {
                out.push(Sample::value(Compare(r), [g.below(dtype, [3, 5], 3), g.below(dtype, [5], 3)]).note("integers"));
            }
            out.push(Sample::value(Compare(r), [g.normal([m, 1]), g.normal([1, n])]));
        }
        out.push(Sample::value(Compare(Less), [g.normal([0, 3]), g.normal([3])]));
        out.push(Sample::reject(Compare(Equal), [g.normal([2, 3]), g.normal([2])], ErrorKind::Shape));
        out.push(Sample::reject(Compare(Equal), [g.normal([2]), g.normal([2]).of_dtype(F64)], ErrorKind::Dtype));
        out.push(Sample::bench(Compare(Greater), [g.normal([4 << 20]), g.normal([4 << 20])]));
        out
    }
}

fn truth<S: Scalar>(holds: bool) -> S {
    if holds { S::one() } else { S::zero() }
}

impl Op for Compare {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_dtype(x)?;
        Ok(smallvec![Spec { shape: x[0].shape.broadcast(&x[1].shape)?, dtype: U8 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        // The others are these with exchanged operands, or the opposite.
        let (relation, [a, b], opposite) = match self.0 {
            Greater => (Less, [&x[1], &x[0]], 0),
            AtLeast => (AtMost, [&x[1], &x[0]], 0),
            NotEqual => (Equal, [&x[0], &x[1]], 1),
            r => (r, [&x[0], &x[1]], 0),
        };
        macro_rules! compare {
            (|$a:ident, $b:ident: $t:ty| $holds:expr) => {
                map::binary(
                    a,
                    b,
                    y[0].shape(),
                    y[0].slice::<u8>(),
                    #[inline(always)]
                    move |$a: $t, $b: $t| u8::from($holds) ^ opposite,
                )
            };
        }
        macro_rules! whole {
            ($t:ty) => {
                match relation {
                    Less => compare!(|a, b: $t| a < b),
                    AtMost => compare!(|a, b: $t| a <= b),
                    _ => compare!(|a, b: $t| a == b),
                }
            };
        }
        macro_rules! float {
            ($t:ty) => {
                match relation {
                    Less => compare!(|a, b: $t| a.load() < b.load()),
                    AtMost => compare!(|a, b: $t| a.load() <= b.load()),
                    Taken => compare!(|a, b: $t| (a.load() == b.load()) | a.load().is_nan()),
                    _ => compare!(|a, b: $t| a.load() == b.load()),
                }
            };
        }
        match x[0].dtype() {
            DType::F64 => float!(f64),
            DType::F32 => float!(f32),
            DType::BF16 => float!(bf16),
            DType::F16 => float!(f16),
            DType::I64 => whole!(i64),
            DType::U32 => whole!(u32),
            DType::U8 => whole!(u8),
        }
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (a, va) = x[0].expanded(y[0].shape())?;
        let (b, vb) = x[1].expanded(y[0].shape())?;
        let grid = grid(on, n, x[0].dtype().size());
        kernels::compare(on, grid, &y[0].dst(), &a, va, &b, vb, self.0 as i32, n as i64)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None, None])
    }
}

/// A comparison with a number; see [`Tensor::eq_scalar`] and its siblings.
#[derive(Clone, Debug)]
pub struct CompareScalar(pub Relation, pub f64);

impl Describe for CompareScalar {
    const NAME: &'static str = "compare_scalar";
    const MATH: Math = Math {
        forward: "y = 1 where the relation holds between x and c, else 0 (u8)",
        vjp: "none: the result is a mask and never tracked",
        kinks: "NaN compares false, except for ne",
        cost: "reads x, writes one byte per element; saves nothing",
        references: "IEEE 754 §5.11",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].map(|v| truth(self.0.holds(v.re(), self.1)))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let mut out = Vec::new();
        for r in ALL {
            out.push(Sample::value(CompareScalar(r, 0.0), [Input::values([7], [0.0, -0.0, nan, inf, -inf, 1.0, -1.0])]));
            out.push(Sample::value(CompareScalar(r, 1.5), [g.below(I64, [3, 3], 4)]).note("integers against a fraction"));
            out.push(Sample::value(CompareScalar(r, -1.0), [g.below(U32, [3, 3], 4)]).note("unsigned against a negative number"));
            out.push(Sample::value(CompareScalar(r, 2.0), [g.below(U8, [7], 4)]));
            out.push(Sample::value(CompareScalar(r, nan), [g.normal([3])]));
        }
        out.push(Sample::value(CompareScalar(Greater, 0.25), [g.normal([0])]));
        out.push(Sample::bench(CompareScalar(Greater, 0.25), [g.normal([4 << 20])]));
        out
    }
}

impl Op for CompareScalar {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        Ok(smallvec![Spec { shape: x[0].shape.clone(), dtype: U8 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let c = self.1;
        macro_rules! float {
            ($t:ty) => {{
                let c = <$t as Compute>::Acc::from_f64(c);
                by_relation!(self.0, holds => map::unary(&x[0], y[0].slice::<u8>(), #[inline(always)] move |a: $t| u8::from(holds(a.load(), c))))
            }};
        }
        macro_rules! whole {
            ($t:ty) => {{
                let exact = c as $t;
                // The cast truncates and saturates; 2⁶³ itself saturates although it converts back equal.
                if exact as f64 == c && exact != <$t>::MAX {
                    by_relation!(self.0, holds => map::unary(&x[0], y[0].slice::<u8>(), #[inline(always)] move |a: $t| u8::from(holds(a, exact))))
                } else {
                    // No value of the type equals c, and rounding to f64 does not cross c.
                    by_relation!(self.0, holds => map::unary(&x[0], y[0].slice::<u8>(), #[inline(always)] move |a: $t| u8::from(holds(a as f64, c))))
                }
            }};
        }
        match x[0].dtype() {
            DType::F64 => float!(f64),
            DType::F32 => float!(f32),
            DType::BF16 => float!(bf16),
            DType::F16 => float!(f16),
            DType::I64 => whole!(i64),
            DType::U32 => whole!(u32),
            DType::U8 => whole!(u8),
        }
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (a, view) = x[0].view()?;
        let grid = grid(on, n, x[0].dtype().size());
        kernels::scalar(on, grid, &y[0].dst(), &a, view, self.1, self.0 as i32, n as i64)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None])
    }
}

macro_rules! methods {
    ($($symbol:literal, $name:ident, $name_scalar:ident, $relation:ident;)*) => {
        impl Tensor {
            $(
                #[doc = concat!("Mask (`u8`) of the elements where `a ", $symbol, " b`, broadcast against each other; any dtype.")]
                ///
                /// # Gradient
                /// None: a mask is never tracked.
                ///
                /// # Numerics
                /// NaN compares false, except for `ne`.
                ///
                /// # Errors
                /// Shape error when the shapes do not broadcast; dtype error when the dtypes differ.
                #[track_caller]
                pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
                    apply1_as(stringify!($name), Compare($relation), &[self, other])
                }

                #[doc = concat!("Mask (`u8`) of the elements where `x ", $symbol, " c`; any dtype.")]
                ///
                /// # Gradient
                /// None: a mask is never tracked.
                ///
                /// # Numerics
                /// The number is rounded to the type that kernels compute in (f64 for f64, f32 for the other floats);
                /// integers are compared exactly. NaN compares false, except for `ne`.
                ///
                /// # Errors
                /// Out of memory.
                #[track_caller]
                pub fn $name_scalar(&self, c: f64) -> Result<Tensor> {
                    apply1_as(stringify!($name_scalar), CompareScalar($relation, c), &[self])
                }
            )*
        }
    };
}

methods! {
    "=", eq, eq_scalar, Equal;
    "≠", ne, ne_scalar, NotEqual;
    "<", lt, lt_scalar, Less;
    "≤", le, le_scalar, AtMost;
    ">", gt, gt_scalar, Greater;
    "≥", ge, ge_scalar, AtLeast;
}
