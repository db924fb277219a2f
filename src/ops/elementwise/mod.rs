//! Elementwise ops of one operand: one block each, in the files beside this one.
//!
//! A block says the function twice, once fast ([`Unary::f`], over the kernels' number types) and once plainly
//! ([`Unary::define`], over any scalar), and its derivative twice, as a kernel ([`Unary::df`]) and as a composition
//! ([`Unary::derivative`], for higher orders). Everything else (kernels, tape, layouts, dtypes, checks) is shared here.

mod powers;
mod scalar;

pub use powers::*;
pub use scalar::*;

use super::second_order::differentiate;
use crate::backend::cpu::{self, Compute, Real, map};
use crate::dtype::with_float;
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, expect};
use crate::tensor::Tensor;
use crate::testing::{Dual, Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::fmt::Debug;

/// Which tensor the derivative of a unary op is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saves {
    /// The operand `x`.
    Input,
    /// The result `f(x)`: the operand's memory is then free.
    Output,
    /// Neither: the derivative is constant.
    Nothing,
}

/// A differentiable function of one number, applied to every element.
pub trait Unary: Clone + Debug + Send + Sync + 'static {
    /// Name of the op.
    const NAME: &'static str;
    /// Name of its derivative kernel: `<name>_vjp`.
    const VJP_NAME: &'static str;
    /// The mathematics in words.
    const MATH: Math;
    /// What the derivative is written in.
    const SAVES: Saves;
    /// The function, for kernels. Mark it `#[inline(always)]`.
    fn f<T: Real>(&self, x: T) -> T;
    /// Its derivative in terms of the saved value. Mark it `#[inline(always)]`.
    fn df<T: Real>(&self, saved: T) -> T;
    /// The function, plainly.
    fn define<S: Scalar>(&self, x: S) -> S;
    /// Its derivative in terms of the saved value, plainly. With [`Saves::Input`] this is [`slope_of_input`].
    fn slope<S: Scalar>(&self, saved: S) -> S;
    /// Its derivative in terms of the saved value, as tensor ops (for second and higher derivatives).
    fn derivative(&self, saved: &Tensor) -> Result<Tensor>;
    /// Inputs to check; the shared samples (sizes, zeros, layouts) come on top. `x` is the single input.
    fn samples(g: &mut Gen) -> Vec<Sample<Self>>;
    /// An argument check (parameters out of range), run by the shape rule.
    fn validate(&self) -> Result<()>;
}

/// A [`Unary`] as an op.
#[derive(Clone, Debug)]
pub struct Map<U>(pub U);

/// The derivative kernel of a [`Unary`]: `(saved, ȳ) ↦ ȳ·f′`. An op of its own, so that it can be differentiated again.
#[derive(Clone, Debug)]
pub struct MapVjp<U>(pub U);

impl<U: Unary> Describe for Map<U> {
    const NAME: &'static str = U::NAME;
    const MATH: Math = U::MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].map(|v| self.0.define(v))]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        U::samples(g).into_iter().map(|s| s.map(Map)).collect()
    }
}

impl<U: Unary> Op for Map<U> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.0.validate()?;
        expect::same_float(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        with_float!(x[0].dtype(), T => map::unary(&x[0], y[0].slice::<T>(), #[inline(always)] |v: T| T::store(self.0.f(v.load()))))
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        match U::SAVES {
            Saves::Input => Saved::of([Some(x[0])]),
            Saves::Output => Saved::of([Some(&y[0])]),
            // The value is irrelevant, but the kernel wants an operand of the shape.
            Saves::Nothing => Saved::none(),
        }
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        if U::SAVES == Saves::Nothing && self.0.df(0f64) == 1.0 {
            return Ok(smallvec![Some(g.clone())]);
        }
        let s = if U::SAVES == Saves::Nothing { g.detach() } else { saved.get(0)?.clone() };
        Ok(smallvec![Some(apply1(MapVjp(self.0.clone()), &[&s, g])?)])
    }
}

impl<U: Unary> Describe for MapVjp<U> {
    const NAME: &'static str = U::VJP_NAME;
    const MATH: Math = Math {
        forward: "x̄ = ȳ · f′, with f′ in terms of the saved value",
        vjp: "of ȳ: the same kernel; of the saved value: ȳ · f″ through the composition of f′",
        kinks: "as the op it belongs to",
        cost: "reads two operands, writes one",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let data = x[0].data.iter().zip(&x[1].data).map(|(&s, &g)| self.0.slope(s) * g).collect();
        vec![Nd::new(&x[0].shape, data)]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        U::samples(g)
            .into_iter()
            .filter(|s| s.purpose == Purpose::Check)
            .map(|s| {
                let x = s.inputs[0].clone();
                let saved = if U::SAVES == Saves::Output {
                    Input::values(x.shape(), x.to_vec().into_iter().map(|v| s.op.define(v)).collect::<Vec<f64>>())
                } else {
                    x
                };
                let bar = g.normal(saved.shape());
                let mut out = s.map(MapVjp);
                out.inputs = vec![saved, bar];
                out
            })
            .collect()
    }
}

/// The slope of `define` at `x`, exactly: what [`Unary::slope`] is for every op that saves its input.
pub fn slope_of_input<U: Unary, S: Scalar>(u: &U, x: S) -> S {
    u.define(Dual::new(x, S::one())).d
}

impl<U: Unary> Op for MapVjp<U> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = y[0].shape();
        with_float!(x[0].dtype(), T => map::binary(&x[0], &x[1], shape, y[0].slice::<T>(), #[inline(always)] |s: T, g: T| T::store(self.0.df(s.load()) * g.load())))
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([Some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let z = y_bar.only()?;
        let s = saved.get(0)?;
        let g_bar = if want[1] { Some(apply1(self.clone(), &[s, z])?) } else { None };
        let s_bar = if want[0] {
            let seed = z.mul(saved.get(1)?)?;
            let u = self.0.clone();
            differentiate(std::slice::from_ref(s), &[true], &[seed], move |x| Ok(Outputs::from_iter([u.derivative(&x[0])?])))?.swap_remove(0)
        } else {
            None
        };
        Ok(smallvec![s_bar, g_bar])
    }
}
