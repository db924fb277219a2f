//! Variance and standard deviation.

use super::{Curve, Group, Reduce, group_samples, reduction_method, row};
use crate::backend::cpu::moments::Moments;
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::group as kernels;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Math, apply1};
use crate::ops::Number;
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

/// Variance of each group; see [`Tensor::var`].
#[derive(Clone, Debug)]
pub struct Var {
    /// Subtracted from the count: 0 for the population's variance, 1 for the unbiased estimate, or any other number.
    pub correction: f64,
}

/// Standard deviation of each group; see [`Tensor::std`].
#[derive(Clone, Debug)]
pub struct Std {
    /// As in [`Var`].
    pub correction: f64,
}

/// `n − correction`, never negative: with too few elements both sums are divided by zero, as in PyTorch.
fn degrees(n: f64, correction: f64) -> f64 {
    (n - correction).max(0.0)
}

fn check(correction: f64) -> Result<()> {
    if !correction.is_finite() {
        bail!(argument, "the correction must be finite, found {correction}");
    }
    Ok(())
}

fn define_variance<S: Scalar>(x: &[S], correction: f64) -> S {
    let n = x.len() as f64;
    let mean = S::sum(x) / S::lit(n);
    let squares: Vec<S> = x.iter().map(|&v| (v - mean) * (v - mean)).collect();
    S::sum(&squares) / S::lit(if n > correction { n - correction } else { 0.0 })
}

impl Group for Var {
    const NAME: &'static str = "var";
    const VJP_NAME: &'static str = "var_vjp";
    const MATH: Math = Math {
        forward: "y = Σ (x − mean)² / (n − correction) over the given axes",
        vjp: "x̄ = ȳ · 2 (x − mean) / (n − correction)",
        kinks: "smooth; division by 0 when n ≤ correction: ∞, NaN for a constant group",
        cost: "reads x, writes y; saves x",
        references: "Chan, Golub & LeVeque, Algorithms for Computing the Sample Variance, 1983; torch.var",
    };

    fn define<S: Scalar>(&self, x: &[S]) -> S {
        define_variance(x, self.correction)
    }
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        let correction = self.correction;
        reduce::reduce(
            x,
            axes,
            y,
            T::store(T::Acc::NAN),
            &Moments,
            #[inline(always)]
            |p| T::Acc::from_f64(p.squares / degrees(p.n, correction)),
        )
    }
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        let correction = self.correction;
        reduce::spread(
            x,
            g,
            axes,
            y,
            &Moments,
            #[inline(always)]
            |x, p, g| g * T::Acc::from_f64((x.to_f64() - p.mean) * (2.0 / degrees(p.n, correction))),
        )
    }
    fn cuda(&self, n: usize) -> cuda::GroupKernels {
        cuda::GroupKernels::new(kernels::var_reduce, kernels::var_merge, kernels::var_vjp, degrees(n as f64, self.correction))
    }
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>> {
        let n = at.x.numel() as f64 / at.g.numel().max(1) as f64;
        let zg = at.z.mul(at.g)?;
        Ok(Some(zg.sub(&at.mean(&zg)?)?.mul_scalar(2.0 / degrees(n, self.correction))?))
    }
    fn validate(&self, _: usize) -> Result<()> {
        check(self.correction)
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
        let mut out = group_samples(g, &Var { correction: 0.0 }, |g, s| g.normal(s));
        let last = |correction| Reduce { of: Var { correction }, axes: (-1).into(), keep: false };
        for n in [2, 3, 67] {
            out.push(Sample::check(last(1.0), [g.normal([2, n])]).note("few elements reveal the correction"));
        }
        let inner = Reduce { of: Var { correction: 1.0 }, axes: [0, 2].into(), keep: true };
        out.push(Sample::check(inner, [g.normal([3, 2, 4])]));
        out.push(Sample::check(last(0.0), [Input::values([2, 3], [5.0, 5.0, 5.0, 0.0, 0.0, 0.0])]).note("constant rows [B15]"));
        out.push(Sample::check(last(0.0), [g.normal([3, 1])]).note("one element: variance 0"));
        out.push(Sample::value(last(1.0), [g.normal([3, 1])]).note("n = correction, one element: 0 / 0 is NaN"));
        for correction in [4.0, 5.0] {
            out.push(
                Sample::value(last(correction), [Input::values([2, 4], [0.0, 1.0, 2.0, 4.0, 3.0, 3.0, 3.0, 3.0])])
                    .note("n ≤ correction: ∞, NaN"),
            );
        }
        for correction in [0.5, 1.5, -1.0] {
            out.push(Sample::check(last(correction), [g.normal([2, 4])]).note("a correction that is no count"));
        }
        out.push(Sample::value(last(1.5), [Input::values([2, 1], [3.0, -1.0])]).note("n below a fractional correction: 0 / 0"));
        out.push(Sample::reject(last(f64::NAN), [g.normal([2, 4])], ErrorKind::Argument));
        out.push(Sample::reject(last(f64::INFINITY), [g.normal([2, 4])], ErrorKind::Argument));
        out.push(Sample::value(last(0.0), [g.normal([2, 0])]).note("empty groups: NaN"));
        for offset in [1e2, 1e4, 1e6] {
            out.push(Sample::value(last(0.0), [g.normal_with([2, 500], 1.0, offset)]).note("mean far larger than the deviation [B5]"));
        }
        let columns = Reduce { of: Var { correction: 1.0 }, axes: 0.into(), keep: false };
        out.push(
            Sample::value(columns, [g.normal_with([500, 3], 1.0, 1e3)])
                .note("mean far larger than the deviation, in columns, several groups of rows [B5]"),
        );
        out
    }
}

impl Group for Std {
    const NAME: &'static str = "std";
    const VJP_NAME: &'static str = "std_vjp";
    const MATH: Math = Math {
        forward: "y = √(Σ (x − mean)² / (n − correction)) over the given axes",
        vjp: "x̄ = ȳ · (x − mean) / ((n − correction) · y)",
        kinks: "gradient 0 where y = 0 (constant groups); when n ≤ correction y is ∞, NaN for a constant group",
        cost: "reads x, writes y; saves x",
        references: "torch.std",
    };

    fn define<S: Scalar>(&self, x: &[S]) -> S {
        define_variance(x, self.correction).sqrt()
    }
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        let correction = self.correction;
        reduce::reduce(
            x,
            axes,
            y,
            T::store(T::Acc::NAN),
            &Moments,
            #[inline(always)]
            |p| T::Acc::from_f64((p.squares / degrees(p.n, correction)).sqrt()),
        )
    }
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        let correction = self.correction;
        reduce::spread(
            x,
            g,
            axes,
            y,
            &Moments,
            #[inline(always)]
            |x, p, g| {
                // In f64, where neither the deviation nor its reciprocal leaves the range of an f32.
                let n = degrees(p.n, correction);
                let slope = (x.to_f64() - p.mean) / (n * (p.squares / n).sqrt());
                if p.squares == 0.0 && n > 0.0 { T::Acc::ZERO } else { g * T::Acc::from_f64(slope) }
            },
        )
    }
    fn cuda(&self, n: usize) -> cuda::GroupKernels {
        cuda::GroupKernels::new(kernels::std_reduce, kernels::std_merge, kernels::std_vjp, degrees(n as f64, self.correction))
    }
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>> {
        // s = (x − mean)/(N·y): ∂(g·Σ z·s)/∂x = g/(N·y)·(z − mean z) − g·Σ(z·s)/y · s, and 0 where y = 0.
        let n = degrees(at.x.numel() as f64 / at.g.numel().max(1) as f64, self.correction);
        let s = at.slope()?;
        let y = at.x.std_keepdim(at.axes().clone(), self.correction)?;
        let zero = y.eq_scalar(0.0)?;
        let inverse = at.g.div(&y.masked_fill(&zero, 1.0)?)?.masked_fill(&zero, 0.0)?;
        let first = at.z.sub(&at.mean(at.z)?)?.mul(&inverse.div_scalar(n)?)?;
        let second = s.mul(&inverse.mul(&at.total(&at.z.mul(&s)?)?)?)?;
        Ok(Some(first.sub(&second)?))
    }
    fn validate(&self, _: usize) -> Result<()> {
        check(self.correction)
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
        let last = |correction| Reduce { of: Std { correction }, axes: (-1).into(), keep: false };
        let mut out = Vec::new();
        for axes in [Axes::from(..), (-1).into(), 0.into(), 1.into(), [0, 2].into()] {
            for (correction, keep) in [(0.0, false), (1.0, true)] {
                out.push(Sample::check(Reduce { of: Std { correction }, axes: axes.clone(), keep }, [g.distinct([3, 2, 4])]));
            }
        }
        for correction in [0.5, 1.5, -1.0] {
            out.push(Sample::check(last(correction), [g.normal([2, 4])]).note("a correction that is no count"));
        }
        out.push(Sample::reject(last(f64::NAN), [g.normal([2, 4])], ErrorKind::Argument));
        let (op, x) = row(&Std { correction: 0.0 }, &[5.0, 5.0, 5.0]);
        out.push(Sample::check(op, x).at_kink().note("a constant group has gradient 0, not NaN [B15]"));
        out.push(Sample::value(last(1.0), [g.normal([3, 1])]).note("n = correction, one element: 0 / 0 is NaN"));
        out.push(Sample::value(last(0.0), [g.normal([2, 0])]).note("empty groups: NaN"));
        out.push(Sample::value(last(0.0), [g.normal_with([2, 500], 1.0, 1e3)]).note("mean far larger than the deviation [B5]"));
        out.push(Sample::bench(last(1.0), [g.normal([4096, 1024])]));
        out
    }
}

reduction_method!(
    /// Variance over axes; `correction` is 0 for the population's variance and 1 for the unbiased estimate, or any other number,
    /// fractional ones too (1.5 makes the standard deviation of a normal sample nearly unbiased).
    ///
    /// # Gradient
    /// `ȳ·2(x − mean)/(n − correction)`; saves the operand.
    ///
    /// # Numerics
    /// Two passes (mean, then squared deviations), never `E[x²] − E[x]²`: exact to rounding however large the mean.
    /// Squares that leave the range of an f32 are summed in f64, so no representable result of f32 or half types is lost. A
    /// group with no more elements than the correction divides by zero, as in PyTorch: ∞, or NaN when it is constant (one
    /// element is) or empty.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; argument error for a correction that is not finite; dtype error for integers.
    #[doc(alias("variance"))]
    var, var_keepdim, correction: impl Number as f64 = correction.to_f64() => Var { correction }
);
reduction_method!(
    /// Standard deviation over axes; `correction` as in [`Tensor::var`].
    ///
    /// # Gradient
    /// `ȳ·(x − mean)/((n − correction)·y)`; 0 for a constant group, where the standard deviation has no derivative. Saves
    /// the operand.
    ///
    /// # Numerics
    /// As [`Tensor::var`].
    ///
    /// # Errors
    /// As [`Tensor::var`].
    #[doc(alias("standard_deviation"))]
    std, std_keepdim, correction: impl Number as f64 = correction.to_f64() => Std { correction }
);

#[cfg(test)]
mod tests {
    use crate::{F64, Tensor, grad};

    /// As torch.var: the divisor stops at zero.
    #[test]
    fn too_few_elements_divide_by_zero() -> crate::Result<()> {
        let x = Tensor::arange(0.0, 6.0, 1.0, F64)?;
        for correction in [6, 7] {
            assert_eq!(x.var(.., correction)?.item()?, f64::INFINITY);
            assert_eq!(x.std(.., correction)?.item()?, f64::INFINITY);
            assert!(Tensor::ones([6], F64)?.var(.., correction)?.item()?.is_nan());
        }
        assert!(Tensor::ones([1], F64)?.var(.., 1)?.item()?.is_nan());
        assert!(Tensor::ones([0], F64)?.var(.., 0)?.item()?.is_nan());
        assert!(grad(&x, |x| x.var(.., 6))?.to_vec::<f64>()?.iter().all(|g| g.is_infinite()));
        assert_eq!(x.var(.., 5)?.item()?, 17.5);
        assert_eq!(x.var(.., 0.5)?.item()?, 17.5 / 5.5);
        assert_eq!(x.var(.., 5.5)?.item()?, 35.0);
        Ok(())
    }
}
