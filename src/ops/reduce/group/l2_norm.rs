//! Euclidean norm.

use super::{Curve, Group, Reduce, group_samples, reduction_method, row};
use crate::backend::cpu::moments::SquareSum;
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::group as kernels;
use crate::error::Result;
use crate::op::{Math, apply1};
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

/// `√Σ x²` of each group; see [`Tensor::norm`].
#[derive(Clone, Debug)]
pub struct Norm;

impl Group for Norm {
    const NAME: &'static str = "norm";
    const VJP_NAME: &'static str = "norm_vjp";
    const MATH: Math = Math {
        forward: "y = √Σ x² over the given axes; 0 over an empty group",
        vjp: "x̄ = ȳ · x / y",
        kinks: "gradient 0 at the zero vector",
        cost: "reads x, writes y; saves x",
        references: "scaling: Blue, A Portable Fortran Program to Find the Euclidean Norm of a Vector, 1978; torch.linalg.vector_norm",
    };

    fn define<S: Scalar>(&self, x: &[S]) -> S {
        let scale = x.iter().fold(0.0, |m: f64, v| Scalar::max(m, v.re().abs()));
        if scale == 0.0 || !scale.is_finite() {
            return S::lit(scale);
        }
        let squares: Vec<S> = x.iter().map(|&v| (v / S::lit(scale)) * (v / S::lit(scale))).collect();
        S::sum(&squares).sqrt() * S::lit(scale)
    }
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::reduce(
            x,
            axes,
            y,
            T::store(T::Acc::ZERO),
            &SquareSum,
            #[inline(always)]
            |p| T::Acc::from_f64(p.norm()),
        )
    }
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::spread(
            x,
            g,
            axes,
            y,
            &SquareSum,
            #[inline(always)]
            |x, p, g| {
                let norm = p.norm();
                // In f64, where neither the norm nor its reciprocal leaves the range of an f32.
                if norm == 0.0 { T::Acc::ZERO } else { g * T::Acc::from_f64(x.to_f64() / norm) }
            },
        )
    }
    fn cuda(&self, _: usize) -> cuda::GroupKernels {
        cuda::GroupKernels::new(kernels::norm_reduce, kernels::norm_merge, kernels::norm_vjp, 0.0)
    }
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>> {
        // u = x/‖x‖: ∂(g·Σ z·u)/∂x = g/‖x‖ · (z − u·Σ z·u), and 0 at the zero vector.
        let u = at.slope()?;
        // The divisor is made harmless before and the quotient after, or 0/0 would come back in the third derivative.
        let n = at.x.norm_keepdim(at.axes().clone())?;
        let zero = n.eq_scalar(0.0)?;
        let inverse = at.g.div(&n.masked_fill(&zero, 1.0)?)?.masked_fill(&zero, 0.0)?;
        let across = at.z.sub(&u.mul(&at.total(&at.z.mul(&u)?)?)?)?;
        Ok(Some(across.mul(&inverse)?))
    }
    fn validate(&self, _: usize) -> Result<()> {
        Ok(())
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
        let mut out = group_samples(g, &Norm, |g, s| g.uniform(s, 0.3, 2.0));
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let (op, x) = row(&Norm, &[0.0; 5]);
        out.push(Sample::check(op, x).at_kink().note("the zero vector has gradient 0, not NaN [D7]"));
        for values in [&[3.0, -4.0][..], &[-2.0]] {
            let (op, x) = row(&Norm, values);
            out.push(Sample::check(op, x));
        }
        for values in [&[3e30, -4e30][..], &[3e-30, 4e-30, 0.0], &[3e300, 4e300], &[3e-300, 4e-300], &[6e4, 6e4]] {
            let (op, x) = row(&Norm, values);
            out.push(Sample::value(op, x).note("squares that overflow or vanish"));
        }
        for values in [&[inf, 1.0][..], &[nan, 1.0], &[-inf, -inf]] {
            let (op, x) = row(&Norm, values);
            out.push(Sample::value(op, x).note("∞ and NaN"));
        }
        let columns = Reduce { of: Norm, axes: 0.into(), keep: false };
        out.push(
            Sample::value(columns.clone(), [Input::values([2, 3], [3e200, 0.0, 3e-200, 4e200, 0.0, -4e-200])]).note("scaling in columns"),
        );
        out.push(Sample::check(columns, [g.normal([0, 2])]).note("empty groups"));
        out
    }
}

reduction_method!(
    /// Euclidean norm over axes.
    ///
    /// # Gradient
    /// `ȳ·x/‖x‖`, and 0 for the zero vector; saves the operand.
    ///
    /// # Numerics
    /// Squares are summed in f64 (scaled when they would overflow even there), so no representable norm is lost.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; dtype error for integers.
    #[doc(alias("vector_norm", "linalg_norm"))]
    norm, norm_keepdim => Norm
);
