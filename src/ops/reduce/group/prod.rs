//! Product over axes.

use super::{Curve, Group, Reduce, group_samples, reduction_method, row};
use crate::backend::cpu::moments::Factors;
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::group as kernels;
use crate::dtype::F64;
use crate::error::Result;
use crate::op::{Math, Outputs, apply1};
use crate::ops::differentiate_vjp;
use crate::shape::{Axes, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

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
        cost: "reads x, writes y; saves x; the second derivative multiplies by pairs in f64, in memory for a few copies of x",
        references: "torch.prod",
    };

    fn define<S: Scalar>(&self, x: &[S]) -> S {
        x.iter().fold(S::one(), |p, &v| p * v)
    }
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::reduce(
            x,
            axes,
            y,
            T::store(T::Acc::ONE),
            &Factors,
            #[inline(always)]
            |p| T::Acc::from_f64(p.value()),
        )
    }
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::spread(
            x,
            g,
            axes,
            y,
            &Factors,
            #[inline(always)]
            |x, p, g| g * T::Acc::from_f64(p.without(x.to_f64())),
        )
    }
    fn cuda(&self, _: usize) -> cuda::GroupKernels {
        cuda::GroupKernels::new(kernels::prod_reduce, kernels::prod_merge, kernels::prod_vjp, 0.0)
    }
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>> {
        if at.x.numel() == 0 {
            return Ok(Some(at.x.zeros_like()?));
        }
        let axes = at.axes().resolve(at.x.rank())?;
        let (x, g, z) = (at.x.clone(), at.g.clone(), Some(at.z.clone()));
        let mut found = differentiate_vjp(&[x], &[g], &[z], &[true, false], move |x| Ok(Outputs::from_iter([by_pairs(&x[0], &axes)?])))?;
        Ok(found.swap_remove(0))
    }
    fn validate(&self, _: usize) -> Result<()> {
        Ok(())
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
        // Factors whose logarithm is 0 on average: a product of thousands of them stays within the range of an f32.
        let mut out = group_samples(g, &Prod, |g, s| g.uniform(s, 0.7, 1.333));
        for values in [&[2.0, 0.0, 3.0, -1.0][..], &[0.0, 2.0, 0.0], &[0.0], &[-2.0, 3.0], &[0.0, 0.0, 0.0]] {
            let (op, x) = row(&Prod, values);
            out.push(Sample::check(op, x).note("zero, one or several zeros in a group [D2]"));
        }
        let columns = Reduce { of: Prod, axes: 0.into(), keep: false };
        out.push(
            Sample::check(columns.clone(), [Input::values([3, 3], [1.0, 0.0, 0.0, 2.0, 5.0, 0.0, 3.0, 6.0, 7.0])])
                .note("zeros in columns [D2]"),
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

/// The product over the axes (kept with extent 1) by halves, level by level: its derivatives are exact whatever factor is 0, and all
/// levels together have no more than twice the elements of x.
fn by_pairs(x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    let dtype = x.dtype();
    let order: Vec<usize> = (0..x.rank()).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect();
    let kept: Shape = x.shape().reduced(axes, true);
    let groups = kept.numel();
    let mut n = x.numel() / groups.max(1);
    let mut x = x.cast(F64)?.permute(&order[..])?.reshape([groups, n])?;
    while n > 1 {
        if n % 2 == 1 {
            (x, n) = (x.pad(&[(0, 0), (0, 1)], 1.0)?, n + 1);
        }
        let halves = x.chunk(2, 1)?;
        (x, n) = (halves[0].mul(&halves[1])?, n / 2);
    }
    x.reshape(kept)?.cast(dtype)
}

reduction_method!(
    /// Product over axes; 1 over an empty one.
    ///
    /// # Gradient
    /// `ȳ` times the product of the other elements, also when some are zero: with one zero in a group only that element has a
    /// gradient, with two none has. Saves the operand. Where others are infinite or NaN, so is their product.
    ///
    /// # Numerics
    /// The product is taken in f64 and rounded once, in the gradient too. The second derivative multiplies by pairs, also in f64.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; dtype error for integers.
    prod, prod_keepdim => Prod
);
