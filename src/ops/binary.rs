//! Elementwise ops of two operands, broadcast against each other.
//!
//! A block says the function for kernels and as a definition, and its two partial derivatives in tensor ops; the sweep
//! sums a cotangent over the axes that broadcasting repeated.

use crate::backend::cpu::{self, Compute, Real, map};
use crate::dtype::with_float;
use crate::error::Result;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::fmt::Debug;

/// A function of two numbers, applied to every pair of broadcast elements.
pub trait Binary: Clone + Debug + Send + Sync + 'static {
    /// Name of the op.
    const NAME: &'static str;
    /// The mathematics in words.
    const MATH: Math;
    /// The function, for kernels. Mark it `#[inline(always)]`.
    fn f<T: Real>(&self, a: T, b: T) -> T;
    /// The function, plainly.
    fn define<S: Scalar>(&self, a: S, b: S) -> S;
    /// What the wanted derivatives need.
    fn save(&self, a: &Tensor, b: &Tensor, y: &Tensor, want: [bool; 2]) -> Saved;
    /// Cotangents of `a` and `b`, in the output's shape.
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]>;
    /// Inputs to check.
    fn samples(g: &mut Gen) -> Vec<Sample<Self>>;
}

/// A [`Binary`] as an op.
#[derive(Clone, Debug)]
pub struct Zip<B>(pub B);

impl<B: Binary> Describe for Zip<B> {
    const NAME: &'static str = B::NAME;
    const MATH: Math = B::MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let Ok(shape) = x[0].shape.broadcast(&x[1].shape) else { return Vec::new() };
        vec![Nd::from_fn(shape, |i| self.0.define(x[0].broadcast_at(i), x[1].broadcast_at(i)))]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        B::samples(g).into_iter().map(|s| s.map(Zip)).collect()
    }
}

impl<B: Binary> Op for Zip<B> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        Ok(smallvec![Spec { shape: x[0].shape.broadcast(&x[1].shape)?, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let shape = y[0].shape();
        with_float!(x[0].dtype(), T => map::binary(&x[0], &x[1], shape, y[0].slice::<T>(), #[inline(always)] |a: T, b: T| T::store(self.0.f(a.load(), b.load()))))
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved {
        self.0.save(x[0], x[1], &y[0], [want[0], want[1]])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let [a, b] = self.0.vjp(saved, y_bar.only()?, [want[0], want[1]])?;
        Ok(smallvec![a, b])
    }
}

/// `a + b`; see [`Tensor::add`].
#[derive(Clone, Debug)]
pub struct Add;

impl Binary for Add {
    const NAME: &'static str = "add";
    const MATH: Math = Math {
        forward: "y = a + b",
        vjp: "ā = ȳ, b̄ = ȳ, each summed over its broadcast axes",
        kinks: "smooth",
        cost: "reads a and b, writes y; saves nothing",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        a + b
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        a + b
    }
    fn save(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: [bool; 2]) -> Saved {
        Saved::none()
    }
    fn vjp(&self, _: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok(want.map(|w| w.then(|| g.clone())))
    }
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        broadcast_samples(g, Add)
    }
}

/// `a · b`; see [`Tensor::mul`].
#[derive(Clone, Debug)]
pub struct Mul;

impl Binary for Mul {
    const NAME: &'static str = "mul";
    const MATH: Math = Math {
        forward: "y = a · b",
        vjp: "ā = ȳ · b, b̄ = ȳ · a, each summed over its broadcast axes",
        kinks: "smooth",
        cost: "reads a and b, writes y; saves the operand whose partner is wanted",
        references: "IEEE 754",
    };
    #[inline(always)]
    fn f<T: Real>(&self, a: T, b: T) -> T {
        a * b
    }
    fn define<S: Scalar>(&self, a: S, b: S) -> S {
        a * b
    }
    fn save(&self, a: &Tensor, b: &Tensor, _: &Tensor, want: [bool; 2]) -> Saved {
        Saved::of([want[1].then_some(a), want[0].then_some(b)])
    }
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([
            if want[0] { Some(g.mul(saved.get(1)?)?) } else { None },
            if want[1] { Some(g.mul(saved.get(0)?)?) } else { None },
        ])
    }
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        broadcast_samples(g, Mul)
    }
}

/// Every broadcasting pattern, empty operands, large operands for the benches.
pub(crate) fn broadcast_samples<B: Clone>(g: &mut Gen, op: B) -> Vec<Sample<B>> {
    let (m, n) = (g.extent(), g.extent());
    let shapes: [(&[usize], &[usize]); 9] = [
        (&[m, n], &[m, n]),
        (&[m, 1], &[1, n]),
        (&[m, n], &[n]),
        (&[], &[m, n]),
        (&[m, n], &[]),
        (&[5, 1, 3], &[1, 4, 1]),
        (&[2, 1, 3, 1], &[4, 1, 2]),
        (&[0, 3], &[1, 3]),
        (&[1], &[1, 1]),
    ];
    let mut out: Vec<Sample<B>> =
        shapes.iter().map(|(a, b)| Sample::check(op.clone(), [g.normal(*a), g.normal(*b)]).note("D9: broadcasting on both sides")).collect();
    out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([4, 3])], crate::error::ErrorKind::Shape));
    out.push(Sample::bench(op.clone(), [g.normal([4096, 1024]), g.normal([4096, 1024])]));
    out.push(Sample::bench(op, [g.normal([4096, 1024]), g.normal([1024])]));
    out
}

impl Tensor {
    /// Sum of two tensors, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ` to both operands, summed over broadcast axes; saves nothing.
    ///
    /// # Errors
    /// Shape error when the shapes do not broadcast; dtype error unless both are the same float type.
    #[track_caller]
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Add), &[self, other])
    }

    /// Product of two tensors, broadcast against each other.
    ///
    /// # Gradient
    /// `ȳ·b` and `ȳ·a`, summed over broadcast axes; saves the operands that are needed.
    ///
    /// # Errors
    /// As [`Tensor::add`].
    #[track_caller]
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        apply1(Zip(Mul), &[self, other])
    }
}
