//! Triangular parts of matrices.

use crate::backend::cpu::{self, map};
use crate::backend::cuda;
use crate::dtype::{Element, with_dtype};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::ops::Range;

/// The columns at or right of diagonal `k`, as a range of a row of `n`.
fn right_of(row: usize, k: isize, n: usize) -> Range<usize> {
    let first = isize::try_from(row).unwrap_or(isize::MAX).saturating_add(k).max(0);
    (first as usize).min(n)..n
}

/// The columns at or left of diagonal `k`.
fn left_of(row: usize, k: isize, n: usize) -> Range<usize> {
    let end = isize::try_from(row).unwrap_or(isize::MAX).saturating_add(k).saturating_add(1).max(0);
    0..(end as usize).min(n)
}

fn infer(x: &Spec) -> Result<SmallVec<[Spec; 2]>> {
    if x.shape.rank() < 2 {
        bail!(shape, "expected a matrix or a batch of matrices, found shape {}", x.shape);
    }
    Ok(smallvec![x.clone()])
}

fn kernel(x: &cpu::In<'_>, y: &mut cpu::Out<'_>, keep: impl Fn(usize, usize) -> Range<usize> + Sync) -> Result<()> {
    let shape = y.shape();
    let (m, n) = (shape[shape.rank() - 2], shape[shape.rank() - 1]);
    with_dtype!(x.dtype(), T => {
        let x = x.contiguous::<T>()?;
        let x = &*x;
        map::rows(y.slice::<T>(), n, |row, out| {
            let Range { start, end } = keep(row % m, n);
            let zero = <T as Element>::from_f64(0.0);
            out[..start].fill(zero);
            out[start..end].copy_from_slice(&x[row * n + start..row * n + end]);
            out[end..].fill(zero);
        });
    });
    Ok(())
}

fn define<S: Scalar>(x: &Nd<S>, keep: impl Fn(isize) -> bool) -> Vec<Nd<S>> {
    let r = x.shape.rank();
    vec![Nd::from_fn(&x.shape, |i| if keep(i[r - 1] as isize - i[r - 2] as isize) { x.at(i) } else { S::zero() })]
}

fn samples<T>(g: &mut Gen, of: impl Fn(isize) -> T) -> Vec<Sample<T>> {
    let (a, b) = (g.extent(), g.extent());
    let mut out: Vec<_> = [0, 1, -1, 2, -3, 100, -100].iter().map(|&k| Sample::check(of(k), [g.normal([a, b])])).collect();
    out.push(Sample::check(of(0), [g.normal([4, 4])]).note("fixture tril"));
    out.push(Sample::check(of(1), [g.normal([3, 5])]).note("fixture triu_off"));
    out.push(Sample::check(of(-1), [g.normal([2, 2, 4, 3])]).note("batched"));
    out.push(Sample::check(of(isize::MAX), [g.normal([2, 3])]));
    out.push(Sample::check(of(isize::MIN), [g.normal([2, 3])]));
    out.push(Sample::check(of(0), [g.normal([0, 3])]).note("no rows"));
    out.push(Sample::check(of(0), [g.normal([3, 0])]).note("no columns"));
    let inf = crate::testing::Input::values([2, 2], [1.0, f64::INFINITY, f64::NAN, 2.0]);
    out.push(Sample::value(of(0), [inf]).note("what is dropped becomes 0 even when it is not finite"));
    out.push(Sample::value(of(3), [g.normal([3, 100, 130])]).note("more than one parallel piece"));
    out.push(Sample::reject(of(0), [g.normal([3])], ErrorKind::Shape));
    out.push(Sample::bench(of(0), [g.normal([8, 1024, 1024])]));
    out
}

macro_rules! triangle {
    ($(#[$doc:meta])* $T:ident, $name:literal, $range:ident, $keep:expr, $band:expr, $forward:literal, $reference:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $T {
            /// Diagonal: 0 is the main one, positive ones lie above it.
            pub k: isize,
        }

        impl Describe for $T {
            const NAME: &'static str = $name;
            const MATH: Math = Math {
                forward: $forward,
                vjp: "x̄ = the same part of ȳ",
                kinks: "linear; what is dropped is 0 even where x is not finite",
                cost: "reads x, writes y; saves nothing",
                references: $reference,
            };

            fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
                let keep: fn(isize, isize) -> bool = $keep;
                define(&x[0], |d| keep(d, self.k))
            }

            #[inline]
            fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
                samples(g, |k| $T { k })
            }
        }

        impl Op for $T {
            const AUX: usize = 0;

            fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
                infer(&x[0])
            }

            fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
                kernel(&x[0], &mut y[0], |row, n| $range(row, self.k, n))
            }

            fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
                let (low, high) = $band(self.k as i64);
                cuda::shape::band(&x[0], low, high, &mut y[0])
            }

            fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
                Saved::none()
            }

            fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
                Ok(smallvec![Some(apply1(self.clone(), &[y_bar.only()?])?)])
            }
        }
    };
}

triangle!(
    /// The upper triangle; see [`Tensor::triu`].
    Triu, "triu", right_of, |d, k| d >= k, |k| (k, i64::MAX),
    "y[i, j] = x[i, j] if j − i ≥ k, else 0", "torch.triu; numpy.triu"
);
triangle!(
    /// The lower triangle; see [`Tensor::tril`].
    Tril, "tril", left_of, |d, k| d <= k, |k| (i64::MIN, k),
    "y[i, j] = x[i, j] if j − i ≤ k, else 0", "torch.tril; numpy.tril"
);

impl Tensor {
    /// The upper triangle of the last two axes: elements from diagonal `k` on (0: the main one, 1: above it), zeros below.
    ///
    /// # Gradient
    /// The same part of `ȳ`; saves nothing.
    ///
    /// # Errors
    /// Shape error when there are fewer than two axes.
    #[track_caller]
    pub fn triu(&self, k: isize) -> Result<Tensor> {
        apply1(Triu { k }, &[self])
    }

    /// The lower triangle of the last two axes: elements up to diagonal `k`, zeros above.
    ///
    /// # Gradient
    /// The same part of `ȳ`; saves nothing.
    ///
    /// # Errors
    /// Shape error when there are fewer than two axes.
    #[track_caller]
    pub fn tril(&self, k: isize) -> Result<Tensor> {
        apply1(Tril { k }, &[self])
    }
}
