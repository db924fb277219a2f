//! Elementwise ops of two operands, broadcast against each other.
//!
//! A block says the function for kernels and as a definition, and its two partial derivatives in tensor ops; the sweep
//! sums a cotangent over the axes that broadcasting repeated.

mod arith;
mod minmax;
mod pow;

pub use arith::*;
pub use minmax::*;
pub use pow::*;

use crate::backend::cpu::{self, Compute, Real, map, simd};
use crate::backend::cuda::kernels::binary as kernels;
use crate::backend::cuda::{self, BinaryKernels};
use crate::dtype::{F64, I64, with_float};
use crate::error::{ErrorKind, Result};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, broadcast_extents};
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
    /// `y = f(a, b)` over slices of one length: [`zip_block`] of the function, or of its special cases.
    fn block<T: Compute>(&self, a: &[T], b: &[T], y: &mut [T]);
    /// The function, plainly.
    fn define<S: Scalar>(&self, a: S, b: S) -> S;
    /// The kernel of kernels/elementwise/binary.cu, and its parameters.
    fn cuda(&self) -> BinaryKernels;
    /// What the wanted derivatives need.
    fn save(&self, a: &Tensor, b: &Tensor, y: &Tensor, want: [bool; 2]) -> Saved;
    /// Cotangents of `a` and `b`, in the output's shape.
    ///
    /// # Errors
    /// What the tensor ops refuse.
    fn vjp(&self, saved: &Saved, g: &Tensor, want: [bool; 2]) -> Result<[Option<Tensor>; 2]>;
    /// Inputs to check.
    fn samples(g: &mut Gen) -> Vec<Sample<Self>>;
}

/// The loop: all that is compiled per op and element type. `f` should own what it captures, so that no store can change it.
#[inline]
pub fn zip_block<T: Compute>(a: &[T], b: &[T], y: &mut [T], f: impl Fn(T::Acc, T::Acc) -> T::Acc + Copy) {
    simd::dispatch(
        #[inline(always)]
        || {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = T::store(f(a.load(), b.load()));
            }
        },
    );
}

/// A [`Binary`] as an op.
#[derive(Clone, Debug)]
pub struct Zip<B>(pub B);

impl<B: Binary> Describe for Zip<B> {
    const NAME: &'static str = B::NAME;
    const MATH: Math = B::MATH;

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = broadcast_extents(x);
        vec![Nd::from_fn(shape, |i| self.0.define(x[0].broadcast_at(i), x[1].broadcast_at(i)))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        Sample::map_all(B::samples(g), Zip)
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
        with_float!(x[0].dtype(), T => map::binary_blocks(&x[0], &x[1], shape, y[0].slice::<T>(), &|a: &[T], b: &[T], y: &mut [T]| self.0.block(a, b, y)))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.0.cuda().forward(&x[0], &x[1], &mut y[0])
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved {
        self.0.save(x[0], x[1], &y[0], [want[0], want[1]])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let [a, b] = self.0.vjp(saved, y_bar.only()?, [want[0], want[1]])?;
        Ok(smallvec![a, b])
    }
}

/// Every broadcasting pattern, empty operands, large operands for the benches.
#[inline]
pub(crate) fn broadcast_samples<B: Clone>(g: &mut Gen, op: B) -> Vec<Sample<B>> {
    broadcast_samples_of(g, op, |g, s| g.normal(s), |g, s| g.normal(s))
}

/// [`broadcast_samples`] with operands from given distributions.
pub(crate) fn broadcast_samples_of<B: Clone>(
    g: &mut Gen,
    op: B,
    lhs: impl Fn(&mut Gen, &[usize]) -> Input,
    rhs: impl Fn(&mut Gen, &[usize]) -> Input,
) -> Vec<Sample<B>> {
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
        shapes.iter().map(|(a, b)| Sample::check(op.clone(), [lhs(g, a), rhs(g, b)]).note("broadcasting on both sides [D9]")).collect();
    out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([4, 3])], ErrorKind::Shape));
    out.push(Sample::reject(op.clone(), [g.normal([2]), g.normal([2]).of_dtype(F64)], ErrorKind::Dtype));
    out.push(Sample::reject(op.clone(), [g.below(I64, [2], 3), g.below(I64, [2], 3)], ErrorKind::Dtype));
    out.push(Sample::bench(op.clone(), [g.uniform([4096, 1024], 0.5, 2.0), g.uniform([4096, 1024], 0.5, 2.0)]));
    out.push(Sample::bench(op, [g.uniform([4096, 1024], 0.5, 2.0), g.uniform([1024], 0.5, 2.0)]));
    out
}
