//! Larger and smaller of two tensors, element by element.

use super::{Binary, Zip, broadcast_samples_of, kernels, zip_block};
use crate::backend::cpu::{self, Compute, Real, map};
use crate::backend::cuda;
use crate::dtype::with_float;
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, broadcast_extents};
use smallvec::{SmallVec, smallvec};

macro_rules! extremum {
    ($(#[$doc:meta])* $op:ident, $name:literal, $forward:literal, $f:ident, $define:ident, $largest:literal, $kernel:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $op;

        impl Binary for $op {
            const NAME: &'static str = $name;
            const MATH: Math = Math {
                forward: $forward,
                vjp: "ȳ to the operand that was chosen, summed over broadcast axes",
                kinks: "a tie gives half of ȳ to each side; NaN in either operand is the result and takes ȳ",
                cost: "reads a and b, writes y; saves a and b",
                references: "torch.maximum, torch.minimum",
            };
            #[inline(always)]
            fn f<T: Real>(&self, a: T, b: T) -> T {
                a.$f(b)
            }
            fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]) {
                zip_block(a, b, y, #[inline(always)] |a, b| $op.f(a, b));
            }
            fn define<S: Scalar>(&self, a: S, b: S) -> S {
                a.$define(b)
            }
            fn cuda(&self) -> super::BinaryKernels {
                super::BinaryKernels::new(super::kernels::$kernel, [])
            }
            fn save(&self, a: &Tensor, b: &Tensor, _: &Tensor, _: [bool; 2]) -> Saved {
                Saved::of([Some(a), Some(b)])
            }
            fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
                let side = |first| apply1(ExtremumVjp { largest: $largest, first }, &[saved.get(0)?, saved.get(1)?, g]);
                Ok([if want[0] { Some(side(true)?) } else { None }, if want[1] { Some(side(false)?) } else { None }])
            }
            #[inline]
            fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
                let mut out = broadcast_samples_of(g, $op, |g, s| g.distinct(s), shifted);
                let ties = [Input::values([5], [1.0, -2.0, 0.0, 3.0, -0.0]), Input::values([5], [1.0, -2.0, -0.0, 4.0, 0.0])];
                out.push(Sample::check($op, ties).at_kink().note("ties share equally"));
                let (inf, nan) = (f64::INFINITY, f64::NAN);
                let odd = [Input::values([6], [nan, 1.0, nan, inf, -inf, inf]), Input::values([6], [1.0, nan, nan, inf, 0.0, -inf])];
                out.push(Sample::value($op, odd).note("NaN propagates [D6]"));
                out
            }
        }
    };
}

extremum!(
    /// `max(a, b)`; see [`Tensor::maximum`].
    Maximum, "maximum", "y = max(a, b)", max_nan, max, true, maximum
);
extremum!(
    /// `min(a, b)`; see [`Tensor::minimum`].
    Minimum, "minimum", "y = min(a, b)", min_nan, min, false, minimum
);

/// Distinct values that never meet those of [`Gen::distinct`].
fn shifted(g: &mut Gen, shape: &[usize]) -> Input {
    Input::values(shape, g.distinct(shape).to_vec().into_iter().map(|v| v + 0.0625).collect::<Vec<_>>())
}

/// The cotangent of one operand of [`Maximum`] or [`Minimum`]: `(a, b, ȳ) ↦ ȳ·{1, ½, 0}`.
#[derive(Clone, Debug)]
pub struct ExtremumVjp {
    /// Of the maximum, not the minimum.
    pub largest: bool,
    /// Of the first operand, not the second.
    pub first: bool,
}

impl Describe for ExtremumVjp {
    const NAME: &'static str = "extremum_vjp";
    const MATH: Math = Math {
        forward: "x̄ = ȳ where this operand was chosen, ȳ/2 at a tie, 0 elsewhere",
        vjp: "of ȳ: the same selection; of a and b: zero",
        kinks: "piecewise constant in a and b",
        cost: "reads three operands, writes one",
        references: "torch.maximum",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = broadcast_extents(x);
        vec![Nd::from_fn(shape, |i| {
            let (a, b, g) = (x[0].broadcast_at(i).re(), x[1].broadcast_at(i).re(), x[2].broadcast_at(i));
            let first = a.is_nan() || (!b.is_nan() && if self.largest { a > b } else { a < b });
            if a == b {
                g * S::lit(0.5)
            } else if first == self.first {
                g
            } else {
                S::zero()
            }
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for largest in [false, true] {
            for first in [false, true] {
                let op = ExtremumVjp { largest, first };
                out.push(Sample::check(op.clone(), [g.distinct([4, 1]), shifted(g, &[3]), g.normal([4, 3])]));
                let ties = [Input::values([3], [1.0, 2.0, 0.0]), Input::values([3], [1.0, -2.0, 0.5]), g.normal([3])];
                out.push(Sample::check(op.clone(), ties).at_kink().note("ties share equally"));
                let nan = f64::NAN;
                out.push(Sample::value(op, [Input::values([3], [nan, 1.0, nan]), Input::values([3], [1.0, nan, nan]), g.normal([3])]));
            }
        }
        let op = ExtremumVjp { largest: true, first: true };
        out.push(Sample::bench(op, [g.normal([4 << 20]), g.normal([4 << 20]), g.normal([4 << 20])]));
        out
    }
}

impl Op for ExtremumVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        Ok(smallvec![Spec { shape: x[0].shape.broadcast(&x[1].shape)?.broadcast(&x[2].shape)?, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        // The minimum chooses as the maximum of the negatives, the second operand as the first of the swapped pair; only
        // which of two NaNs takes the cotangent depends on the order.
        let sign = if self.largest { 1.0 } else { -1.0 };
        let (own, other) = if self.first { (&x[0], &x[1]) } else { (&x[1], &x[0]) };
        let first = self.first;
        let shape = y[0].shape();
        with_float!(x[0].dtype(), T => map::ternary(own, other, &x[2], shape, y[0].slice::<T>(), #[inline(always)] move |own: T, other: T, g: T| {
            type Acc = <T as Compute>::Acc;
            let (own, other, g) = (own.load(), other.load(), g.load());
            let s = Acc::from_f64(sign);
            let chosen = (own * s > other * s) | (own.is_nan() & (first | !other.is_nan()));
            // No product with a weight: an infinite cotangent must not become NaN on the side that was not chosen.
            let half = g * Acc::HALF;
            T::store(if chosen { g } else if own == other { half } else { Acc::ZERO })
        }))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (own, other) = if self.first { (&x[0], &x[1]) } else { (&x[1], &x[0]) };
        let (own, vo) = own.expanded(y[0].shape())?;
        let (other, vt) = other.expanded(y[0].shape())?;
        let (bar, vg) = x[2].expanded(y[0].shape())?;
        let grid = cuda::grid(on, n, y[0].dtype().size());
        let sign = if self.largest { 1.0 } else { -1.0 };
        kernels::extremum_vjp(on, grid, &y[0].dst(), &own, vo, &other, vt, &bar, vg, n as i64, sign, i32::from(self.first))
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g_bar = if want[2] { Some(apply1(self.clone(), &[saved.get(0)?, saved.get(1)?, y_bar.only()?])?) } else { None };
        Ok(smallvec![None, None, g_bar])
    }
}

impl Tensor {
    /// Larger of two tensors, element by element, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ` to the operand that was chosen; half to each at a tie. Saves both operands.
    ///
    /// # Numerics
    /// NaN in either operand is the result.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    #[track_caller]
    pub fn maximum(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Maximum), &[self, other])
    }

    /// Smaller of two tensors, element by element, broadcast against each other.
    ///
    /// # Gradient
    /// As [`Tensor::maximum`].
    ///
    /// # Numerics
    /// NaN in either operand is the result.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    #[track_caller]
    pub fn minimum(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Minimum), &[self, other])
    }
}
