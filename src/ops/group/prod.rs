//! Product over axes.

use super::{Curve, Group, Reduce, group_samples, reduction_method, row};
use crate::backend::cpu::moments::Factors;
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::group as kernels;
use crate::error::Result;
use crate::op::{Math, Outputs, apply1};
use crate::ops::differentiate;
use crate::shape::{Axes, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};
use std::marker::PhantomData;

/// `Π x` of each group; see [`Tensor::prod`].
#[derive(Clone, Debug)]
pub struct Prod;

impl Group for Prod {
    const NAME: &'static str = "prod";
    const VJP_NAME: &'static str = "prod_vjp";
    const MATH: Math = Math {
        forward: "y = Π x over the given axes; 1 over an empty group",
        vjp: "x̄ᵢ = ȳ · Π of the others",
        kinks: "smooth; with one zero only its own gradient is not 0, with two all are 0",
        cost: "reads x, writes y; saves x; the second derivative takes memory for the square of a group",
        references: "torch.prod",
    };

    fn define<S: Scalar>(&self, x: &[S]) -> S {
        x.iter().fold(S::one(), |p, &v| p * v)
    }
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::reduce(x, axes, y, T::store(T::Acc::ONE), &Factors::<T>(PhantomData), |p| {
            // Times 0, not 0: ∞ · 0 is NaN.
            T::store(T::Acc::from_f64(if p.zeros > 0.0 { p.product * 0.0 } else { p.product }))
        })
    }
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::spread(
            x,
            g,
            axes,
            y,
            &Factors::<T>(PhantomData),
            #[inline(always)]
            |x, p, g| {
                let v = x.to_f64();
                // In f64: dividing one factor out again costs no accuracy that an f32 could show.
                let others = if v == 0.0 { p.product } else { p.product / v };
                let own = if v == 0.0 { 1.0 } else { 0.0 };
                g * T::Acc::from_f64(if p.zeros > own { 0.0 } else { others })
            },
        )
    }
    fn cuda(&self, _: usize) -> cuda::GroupKernels {
        cuda::GroupKernels::new(kernels::prod_reduce, kernels::prod_merge, kernels::prod_vjp, 0.0)
    }
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>> {
        // The first derivative as a composition: for every element the product of a copy of its group with a 1 in its place.
        let axes = at.axes().resolve(at.x.rank())?;
        let shape = at.x.shape();
        let n: usize = axes.iter().map(|&i| shape[i]).product();
        let (g, mask) = (at.g.clone(), own_place(shape, &axes, n)?.to_device(at.x.device())?);
        let inputs = [at.x.clone(), g];
        let all: Shape = std::iter::once(n).chain(shape.iter().copied()).collect();
        let shifted: Vec<usize> = axes.iter().map(|i| i + 1).collect();
        let composition = |v: &[Tensor]| {
            let one = v[0].ones_like()?;
            let others = mask.where_select(&one, &v[0].expand(&all)?)?.prod_keep(&shifted[..])?;
            let zero = Tensor::full_on((), 0.0, v[0].dtype(), v[0].device())?;
            let placed = mask.where_select(&others, &zero)?.sum(0)?;
            Ok(Outputs::from_iter([placed.mul(&v[1])?]))
        };
        Ok(differentiate(&inputs, &[true, false], std::slice::from_ref(at.z), composition)?.swap_remove(0))
    }
    fn validate(&self, _: usize) -> Result<()> {
        Ok(())
    }
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
        // Factors whose logarithm is 0 on average: a product of thousands of them stays within the range of an f32.
        let mut out = group_samples(g, &Prod, |g, s| g.uniform(s, 0.7, 1.333));
        for values in [&[2.0, 0.0, 3.0, -1.0][..], &[0.0, 2.0, 0.0], &[0.0], &[-2.0, 3.0], &[0.0, 0.0, 0.0]] {
            let (op, x) = row(&Prod, values);
            out.push(Sample::check(op, x).note("D2: zero, one or several zeros in a group"));
        }
        let columns = Reduce { of: Prod, axes: 0.into(), keep: false };
        out.push(
            Sample::check(columns.clone(), [Input::values([3, 3], [1.0, 0.0, 0.0, 2.0, 5.0, 0.0, 3.0, 6.0, 7.0])]).note("D2 in columns"),
        );
        out.push(Sample::check(columns, [g.normal([0, 2])]).note("empty groups give 1"));
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for values in [&[inf, 2.0][..], &[inf, 0.0], &[nan, 0.0], &[-inf, -2.0], &[1e30, 1e30, 1e-30, 1e-30]] {
            let (op, x) = row(&Prod, values);
            out.push(Sample::value(op, x).note("∞, NaN, and factors that meet outside the range of an f32"));
        }
        out
    }
}

/// 1 where the `k`-th element of a group meets copy `k` of it: shape `[n, …]` with the kept axes at extent 1.
fn own_place(shape: &Shape, axes: &[usize], n: usize) -> Result<Tensor> {
    let mut mask = vec![0u8; n * n];
    for k in 0..n {
        mask[k * n + k] = 1;
    }
    let extents: Shape = std::iter::once(n).chain((0..shape.rank()).map(|i| if axes.contains(&i) { shape[i] } else { 1 })).collect();
    Tensor::from_slice(&mask, extents)
}

reduction_method!(
    /// Product over axes; 1 over an empty one.
    ///
    /// # Gradient
    /// `ȳ` times the product of the other elements, also when some are zero: with one zero in a group only that element has a
    /// gradient, with two none has. Saves the operand. The second derivative takes memory for the square of a group's size.
    ///
    /// # Numerics
    /// The product is taken in f64 and rounded once. Next to an infinite factor the gradient is NaN.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; dtype error for integers.
    prod, prod_keep => Prod
);
