//! Whether any or all elements of a mask are set.

use super::sum::reduce_define;
use crate::backend::cpu::{self, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::any_all as kernels;
use crate::backend::cuda::reduce::Lines;
use crate::dtype::U8;
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1_as, expect};
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Disjunction or conjunction over axes; see [`Tensor::any`], [`Tensor::all`].
#[derive(Clone, Debug)]
pub struct AnyAll {
    /// All elements (else any of them).
    pub all: bool,
    /// Axes to reduce over.
    pub axes: Axes,
    /// Keep them with extent 1.
    pub keep: bool,
}

impl Describe for AnyAll {
    const NAME: &'static str = "any_all";
    const MATH: Math = Math {
        forward: "y = 1 when any (or all) of x over the given axes is not 0, else 0 (u8); over an empty group 0 (or 1)",
        vjp: "none: masks are never tracked",
        kinks: "discrete",
        cost: "reads one byte per element",
        references: "torch.any, torch.all",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let test = |group: &[S]| if self.all { group.iter().all(|v| v.re() != 0.0) } else { group.iter().any(|v| v.re() != 0.0) };
        vec![reduce_define(&x[0], &self.axes, self.keep, |group| if test(group) { S::one() } else { S::zero() })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for all in [false, true] {
            for (axes, keep) in
                [(Axes::from(..), false), ((-1).into(), true), (0.into(), false), ([0, 2].into(), true), ([1, 2].into(), false)]
            {
                out.push(Sample::value(AnyAll { all, axes, keep }, [g.below(U8, [3, 4, 2], 3)]));
            }
            for shape in [[2, 0], [0, 2]] {
                out.push(Sample::value(AnyAll { all, axes: 1.into(), keep: false }, [g.below(U8, shape, 2)]).note("empty groups"));
            }
            out.push(
                Sample::value(AnyAll { all, axes: 1.into(), keep: false }, [g.below(U8, [3, 40_000], 50_000)])
                    .note("values beyond 1 count as true"),
            );
            out.push(Sample::value(AnyAll { all, axes: 0.into(), keep: false }, [g.below(U8, [300, 270], 250)]));
            out.push(Sample::reject(AnyAll { all, axes: 0.into(), keep: false }, [g.normal([3])], ErrorKind::Dtype));
            out.push(Sample::reject(AnyAll { all, axes: 1.into(), keep: false }, [g.below(U8, [3], 2)], ErrorKind::Shape));
        }
        out.push(Sample::bench(AnyAll { all: true, axes: (-1).into(), keep: false }, [g.below(U8, [4096, 1024], 2)]));
        out
    }
}

impl Op for AnyAll {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::masks(x)?;
        let axes = self.axes.resolve(x[0].shape.rank())?;
        Ok(smallvec![Spec { shape: x[0].shape.reduced(&axes, self.keep), dtype: U8 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        let out = y[0].slice::<u8>();
        let truth = |v: u8| u8::from(v != 0);
        if self.all {
            reduce::reduce(&x[0], &axes, out, 1, &reduce::Fold { init: u8::MAX, f: |a: u8, b: u8| a.min(b) }, truth)
        } else {
            reduce::reduce(&x[0], &axes, out, 0, &reduce::Fold { init: 0, f: |a: u8, b: u8| a.max(b) }, truth)
        }
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axes = self.axes.resolve(x[0].shape().rank())?;
        let all = if self.all { 1.0 } else { 0.0 };
        Lines::new(&x[0], &axes)?.reduce(y[0].context(), (kernels::reduce, kernels::merge), &mut y[0], all)
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None])
    }
}

macro_rules! methods {
    ($($doc:literal, $empty:literal, $name:ident, $keep:ident, $all:literal;)*) => {
        impl Tensor {
            $(
                #[doc = $doc]
                ///
                /// # Gradient
                /// None: a mask is never tracked.
                ///
                /// # Numerics
                #[doc = $empty]
                ///
                /// # Errors
                /// Dtype error unless the tensor is `u8`; shape error when an axis does not exist.
                #[track_caller]
                pub fn $name(&self, axes: impl Into<Axes>) -> Result<Tensor> {
                    apply1_as(stringify!($name), AnyAll { all: $all, axes: axes.into(), keep: false }, &[self])
                }

                #[doc = concat!("[`Tensor::", stringify!($name), "`] that keeps the axes with extent 1.")]
                ///
                /// # Errors
                #[doc = concat!("As [`Tensor::", stringify!($name), "`].")]
                #[track_caller]
                pub fn $keep(&self, axes: impl Into<Axes>) -> Result<Tensor> {
                    apply1_as(stringify!($name), AnyAll { all: $all, axes: axes.into(), keep: true }, &[self])
                }
            )*
        }
    };
}

methods! {
    "1 where any element of a `u8` mask over axes is not 0.", "0 over an empty axis.", any, any_keepdim, false;
    "1 where every element of a `u8` mask over axes is not 0.", "1 over an empty axis.", all, all_keepdim, true;
}
