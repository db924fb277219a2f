//! Logic on `u8` masks: any value but 0 counts as true, results are 0 and 1.

use crate::backend::cpu::{self, map};
use crate::backend::cuda::{self, grid, kernels::compare as kernels};
use crate::dtype::{I64, U8};
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, apply1_as, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, broadcast_extents};
use smallvec::{SmallVec, smallvec};

/// Negation of a mask; see [`Tensor::logical_not`].
#[derive(Clone, Debug)]
pub struct LogicalNot;

impl Describe for LogicalNot {
    const NAME: &'static str = "logical_not";
    const MATH: Math = Math {
        forward: "y = 1 where x = 0, else 0 (u8)",
        vjp: "none: masks are never tracked",
        kinks: "discrete",
        cost: "reads and writes one byte per element",
        references: "torch.logical_not",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].map(|v| if v.re() == 0.0 { S::one() } else { S::zero() })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        vec![
            Sample::value(LogicalNot, [g.below(U8, [3, 4], 2)]),
            Sample::value(LogicalNot, [Input::ints(U8, [3], &[0, 1, 255])]).note("any value but 0 is true"),
            Sample::value(LogicalNot, [g.below(U8, [0], 2)]),
            Sample::reject(LogicalNot, [g.normal([2])], ErrorKind::Dtype),
            Sample::bench(LogicalNot, [g.below(U8, [4 << 20], 2)]),
        ]
    }
}

impl Op for LogicalNot {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::masks(x)?;
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        map::unary(
            &x[0],
            y[0].slice::<u8>(),
            #[inline(always)]
            |v: u8| u8::from(v == 0),
        )
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (x, view) = x[0].view()?;
        kernels::not(on, grid(on, n, 1), &y[0].dst(), &x, view, n as i64)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None])
    }
}

/// Conjunction or disjunction of masks; see [`Tensor::logical_and`], [`Tensor::logical_or`].
#[derive(Clone, Debug)]
pub struct Logical {
    /// `and` (else `or`).
    pub and: bool,
}

impl Describe for Logical {
    const NAME: &'static str = "logical";
    const MATH: Math = Math {
        forward: "y = 1 where both (and) or at least one (or) of a, b is not 0, else 0 (u8)",
        vjp: "none: masks are never tracked",
        kinks: "discrete",
        cost: "reads two bytes and writes one per element",
        references: "torch.logical_and, torch.logical_or",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = broadcast_extents(x);
        vec![Nd::from_fn(shape, |i| {
            let (a, b) = (x[0].broadcast_at(i).re() != 0.0, x[1].broadcast_at(i).re() != 0.0);
            if (self.and && a && b) || (!self.and && (a || b)) { S::one() } else { S::zero() }
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for and in [true, false] {
            out.push(Sample::value(Logical { and }, [Input::ints(U8, [4], &[0, 0, 7, 128]), Input::ints(U8, [4], &[0, 1, 0, 255])]));
            out.push(Sample::value(Logical { and }, [g.below(U8, [3, 1], 2), g.below(U8, [1, 4], 2)]));
            out.push(Sample::reject(Logical { and }, [g.below(U8, [3], 2), g.below(U8, [4], 2)], ErrorKind::Shape));
            out.push(Sample::reject(Logical { and }, [g.below(U8, [3], 2), g.below(I64, [3], 2)], ErrorKind::Dtype));
        }
        out.push(Sample::bench(Logical { and: true }, [g.below(U8, [4 << 20], 2), g.below(U8, [4 << 20], 2)]));
        out
    }
}

impl Op for Logical {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::masks(x)?;
        Ok(smallvec![Spec { shape: x[0].shape.broadcast(&x[1].shape)?, dtype: U8 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (shape, out) = (y[0].shape(), y[0].slice::<u8>());
        if self.and {
            map::binary(
                &x[0],
                &x[1],
                shape,
                out,
                #[inline(always)]
                |a: u8, b: u8| u8::from((a != 0) & (b != 0)),
            )
        } else {
            map::binary(
                &x[0],
                &x[1],
                shape,
                out,
                #[inline(always)]
                |a: u8, b: u8| u8::from((a | b) != 0),
            )
        }
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (on, n) = (y[0].context(), y[0].numel());
        if n == 0 {
            return Ok(());
        }
        let (a, va) = x[0].expanded(y[0].shape())?;
        let (b, vb) = x[1].expanded(y[0].shape())?;
        kernels::both(on, grid(on, n, 1), &y[0].dst(), &a, va, &b, vb, i32::from(self.and), n as i64)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None, None])
    }
}

impl Tensor {
    /// 1 where the mask is 0, else 0.
    ///
    /// # Gradient
    /// None: a mask is never tracked.
    ///
    /// # Errors
    /// Dtype error unless the tensor is `u8`.
    #[track_caller]
    pub fn logical_not(&self) -> Result<Tensor> {
        apply1(LogicalNot, &[self])
    }

    /// 1 where both masks are not 0, broadcast against each other.
    ///
    /// # Gradient
    /// None: a mask is never tracked.
    ///
    /// # Errors
    /// Dtype error unless both are `u8`; shape error when the shapes do not broadcast.
    #[track_caller]
    pub fn logical_and(&self, other: &Tensor) -> Result<Tensor> {
        apply1_as("logical_and", Logical { and: true }, &[self, other])
    }

    /// 1 where at least one mask is not 0, broadcast against each other.
    ///
    /// # Gradient
    /// None: a mask is never tracked.
    ///
    /// # Errors
    /// As [`Tensor::logical_and`].
    #[track_caller]
    pub fn logical_or(&self, other: &Tensor) -> Result<Tensor> {
        apply1_as("logical_or", Logical { and: false }, &[self, other])
    }
}
