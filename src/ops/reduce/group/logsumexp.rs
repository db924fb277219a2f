//! Logarithm of a sum of exponentials.

use super::{Curve, Group, Reduce, group_samples, reduction_method, row};
use crate::backend::cpu::moments::LogSum;
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::group as kernels;
use crate::error::Result;
use crate::op::{Math, apply1};
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Sample, Scalar};

/// `ln Σ eˣ` of each group; see [`Tensor::logsumexp`].
#[derive(Clone, Debug)]
pub struct LogSumExp;

impl Group for LogSumExp {
    const NAME: &'static str = "logsumexp";
    const VJP_NAME: &'static str = "logsumexp_vjp";
    const MATH: Math = Math {
        forward: "y = m + ln Σ exp(x − m), m = max x, over the given axes",
        vjp: "x̄ = ȳ · exp(x − m) / Σ exp(x − m)",
        kinks: "smooth; a group that is −∞ everywhere (or empty) gives −∞ and gradient 0; +∞ gives +∞, with gradient NaN there and 0 beside it",
        cost: "reads x, writes y; saves x",
        references: "Blanchard, Higham & Higham, Accurately computing the log-sum-exp and softmax functions, 2021",
    };

    fn define<S: Scalar>(&self, x: &[S]) -> S {
        let m = x.iter().fold(f64::NEG_INFINITY, |m, v| Scalar::max(m, v.re()));
        if !m.is_finite() {
            return S::lit(m);
        }
        let terms: Vec<S> = x.iter().map(|&v| (v - S::lit(m)).exp()).collect();
        S::lit(m) + S::sum(&terms).ln()
    }
    fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::reduce(
            x,
            axes,
            y,
            T::store(T::Acc::NEG_INFINITY),
            &LogSum,
            #[inline(always)]
            |p| p.value(),
        )
    }
    fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
        reduce::spread(
            x,
            g,
            axes,
            y,
            &LogSum,
            #[inline(always)]
            |x, p, g| {
                let share = (x - p.max).exp() * (g / p.sum);
                // Nothing flows in a group of −∞: the limit of −∞ − −∞ must not become NaN. That of ∞ − ∞ is NaN, as the formula
                // says: a unit that diverged must not look like one at rest.
                if p.max.is_finite() {
                    share
                } else if p.max.is_nan() | (p.max == T::Acc::INFINITY) & (x == p.max) {
                    T::Acc::NAN
                } else {
                    T::Acc::ZERO
                }
            },
        )
    }
    fn cuda(&self, _: usize) -> cuda::GroupKernels {
        cuda::GroupKernels::new(kernels::logsumexp_reduce, kernels::logsumexp_merge, kernels::logsumexp_vjp, 0.0)
    }
    fn curve(&self, at: &Curve<'_, Self>) -> Result<Option<Tensor>> {
        // p = softmax: ∂(g·Σ z·p)/∂x = g·p·(z − Σ z·p).
        let p = at.slope()?;
        let centred = at.z.sub(&at.total(&at.z.mul(&p)?)?)?;
        Ok(Some(p.mul(&centred)?.mul(at.g)?))
    }
    fn validate(&self, _: usize) -> Result<()> {
        Ok(())
    }
    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
        let mut out = group_samples(g, &LogSumExp, |g, s| g.normal(s));
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for values in [&[-inf; 3][..], &[-inf, 1.0, -inf, 0.5], &[-inf, -inf, 3.0]] {
            let (op, x) = row(&LogSumExp, values);
            out.push(Sample::check(op, x).at_kink().note("−∞ everywhere or masked in front: gradient 0 there, never NaN [C13]"));
        }
        for values in [&[1000.0, 1001.0, 900.0][..], &[-1000.0, -1001.0], &[3e4, 3e4, 1.0]] {
            let (op, x) = row(&LogSumExp, values);
            out.push(Sample::check(op, x).first_order().note("no overflow, no underflow"));
        }
        for values in [&[inf, 1.0][..], &[nan, 1.0], &[inf, nan], &[inf, -inf]] {
            let (op, x) = row(&LogSumExp, values);
            out.push(Sample::value(op, x).note("∞ and NaN"));
        }
        let op = Reduce { of: LogSumExp, axes: (-1).into(), keep: false };
        out.push(Sample::check(op, [g.normal([2, 0])]).note("empty groups give −∞"));
        out.push(
            Sample::value(Reduce { of: LogSumExp, axes: 0.into(), keep: true }, [g.normal_with([300, 3], 30.0, 0.0)])
                .note("groups of rows with different maxima"),
        );
        out
    }
}

reduction_method!(
    /// `ln Σ eˣ` over axes, without overflow.
    ///
    /// # Gradient
    /// `ȳ·softmax(x)`; saves the operand. A group that is −∞ everywhere gives −∞ and gradient 0 (NaN in PyTorch), so that
    /// fully masked rows do no harm. At an element of +∞ it is NaN, as the formula and PyTorch have it, and 0 beside it.
    ///
    /// # Numerics
    /// The maximum is subtracted first. NaN propagates.
    ///
    /// # Errors
    /// Shape error when an axis does not exist; dtype error for integers.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[1000f64, 1000.0], [2])?)?;
    /// let y = x.logsumexp(-1)?;
    /// assert_eq!(y.item()?, 1000.0 + 2f64.ln());
    /// assert_eq!(tape.backward(&y)?.get(&x)?.to_vec::<f64>()?, [0.5, 0.5]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("log_sum_exp"))]
    logsumexp, logsumexp_keepdim => LogSumExp
);
