//! Largest and smallest element over axes.

use super::{Curve, Group, Reduce, group_samples, reduction_method, row};
use crate::backend::cpu::moments::Ties;
use crate::backend::cpu::{self, Compute, Real, reduce};
use crate::backend::cuda;
use crate::backend::cuda::kernels::group as kernels;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Math, apply1};
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Sample, Scalar};

macro_rules! extremum {
    ($(#[$doc:meta])* $op:ident, $name:literal, $vjp_name:literal, $forward:literal, $largest:literal, $pick:ident, $worst:ident, [$reduce:ident, $merge:ident, $vjp:ident]) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $op;

        impl Group for $op {
            const NAME: &'static str = $name;
            const VJP_NAME: &'static str = $vjp_name;
            const MATH: Math = Math {
                forward: $forward,
                vjp: "ȳ to the chosen element of each group",
                kinks: "ties share ȳ equally; NaN wins, and NaNs share ȳ; an empty group is an error",
                cost: "reads x, writes y; saves x",
                references: "torch.amax, torch.amin",
            };

            fn define<S: Scalar>(&self, x: &[S]) -> S {
                let best = x.iter().copied().reduce(|a, b| S::lit(a.re()).$pick(S::lit(b.re()))).unwrap_or(S::zero()).re();
                let tied: Vec<S> = x.iter().copied().filter(|v| v.re() == best || (v.re().is_nan() && best.is_nan())).collect();
                if let [only] = tied[..] { only } else { S::sum(&tied) / S::lit(tied.len() as f64) }
            }
            fn forward<T: Compute>(&self, x: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
                let fold = reduce::Fold { init: T::Acc::$worst, f: |a: T::Acc, b: T::Acc| if $largest { a.max_nan(b) } else { a.min_nan(b) } };
                reduce::reduce(x, axes, y, T::store(T::Acc::$worst), &fold, #[inline(always)] |v| v)
            }
            fn backward<T: Compute>(&self, x: &cpu::In<'_>, g: &cpu::In<'_>, axes: &[usize], y: &mut [T]) -> Result<()> {
                let ties = Ties { largest: $largest };
                reduce::spread(x, g, axes, y, &ties, #[inline(always)] |x, t, g| {
                    let share = g / T::Acc::from_f64(t.count);
                    if (x.to_f64() == t.value) | (x.is_nan() & t.value.is_nan()) { share } else { T::Acc::ZERO }
                })
            }
            fn cuda(&self, _: usize) -> cuda::GroupKernels {
                cuda::GroupKernels::new(kernels::$reduce, kernels::$merge, kernels::$vjp, 0.0)
            }
            fn curve(&self, _: &Curve<'_, Self>) -> Result<Option<Tensor>> {
                Ok(None)
            }
            fn validate(&self, n: usize) -> Result<()> {
                if n == 0 {
                    bail!(shape, "an empty group has no extremum: reduce over axes that are not empty");
                }
                Ok(())
            }
            #[inline]
            fn samples(g: &mut Gen) -> Vec<Sample<Reduce<Self>>> {
                let mut out = group_samples(g, &$op, |g, s| g.distinct(s));
                let (inf, nan) = (f64::INFINITY, f64::NAN);
                for values in [&[2.0, 5.0, -5.0, 5.0, -5.0, 5.0][..], &[0.0, -0.0], &[1.0; 67]] {
                    let (op, x) = row(&$op, values);
                    out.push(Sample::check(op, x).at_kink().note("ties share equally"));
                }
                for values in [&[1.0, nan, 3.0][..], &[-inf, -inf], &[inf, 1.0, inf], &[-inf, 2.0]] {
                    let (op, x) = row(&$op, values);
                    out.push(Sample::value(op, x).note("NaN propagates; infinities [D6]"));
                }
                let op = Reduce { of: $op, axes: 0.into(), keep: false };
                out.push(Sample::check(op.clone(), [Input::values([3, 2], [1.0, 4.0, 1.0, 2.0, 0.5, 4.0])]).at_kink().note("ties in columns"));
                out.push(Sample::reject(op, [g.normal([0, 3])], ErrorKind::Shape).note("empty group"));
                out
            }
        }
    };
}

extremum!(
    /// Largest element of each group; see [`Tensor::max`].
    Max, "max", "max_vjp", "y = max x over the given axes", true, max, NEG_INFINITY, [max_reduce, max_merge, max_vjp]
);
extremum!(
    /// Smallest element of each group; see [`Tensor::min`].
    Min, "min", "min_vjp", "y = min x over the given axes", false, min, INFINITY, [min_reduce, min_merge, min_vjp]
);

reduction_method!(
    /// Largest element over axes.
    ///
    /// # Gradient
    /// `ȳ` to the largest element; elements that tie share it equally ([`Tensor::max_with_index`] gives it to the first
    /// one only). Saves the operand; ties are counted in f32 or wider, so any number of them shares correctly.
    ///
    /// # Numerics
    /// NaN wins.
    ///
    /// # Errors
    /// Shape error when an axis does not exist or a group is empty; dtype error for integers.
    #[doc(alias("amax"))]
    max, max_keepdim => Max
);
reduction_method!(
    /// Smallest element over axes.
    ///
    /// # Gradient
    /// As [`Tensor::max`].
    ///
    /// # Numerics
    /// NaN wins.
    ///
    /// # Errors
    /// As [`Tensor::max`].
    #[doc(alias("amin"))]
    min, min_keepdim => Min
);

#[cfg(test)]
mod tests {
    use crate::tape::Tape;
    use crate::tensor::Tensor;
    use half::f16;

    // A count in f16 would overflow at 65 504, one in bf16 stick at 256 [D1].
    #[test]
    fn seventy_thousand_ties_share_one() {
        let tape = Tape::new();
        let x = tape.watch(&Tensor::from_slice(&vec![f16::ONE; 70_000], [70_000]).unwrap()).unwrap();
        let y = x.max(..).unwrap();
        let seed = Tensor::scalar(f16::from_f32(7.0)).unwrap();
        let g = tape.backward_from(&[(&y, seed)]).unwrap().get(&x).unwrap().to_f64_vec().unwrap();
        assert!(g.iter().all(|&v| (v - 1e-4).abs() < 1e-7), "{} {}", g[0], g[69_999]);
    }
}
