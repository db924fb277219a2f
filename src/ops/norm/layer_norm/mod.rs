//! Layer norm and RMS norm: one family, told apart by whether the mean is subtracted.

mod samples;
mod vjp;

use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Number, Real, rows, simd};
use crate::backend::cuda::{self, norm};
use crate::dtype::{DType, Element, with_float};
use crate::error::{Result, bail};
use crate::memory;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, apply1, expect};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
pub use vjp::NormVjp;

/// Normalisation over the last axes. Inputs: x, then the weight if there is one, then the bias if there is one.
#[derive(Clone, Debug)]
pub struct Norm<const CENTRED: bool> {
    /// How many trailing axes are normalised together.
    pub axes: usize,
    /// Added to the variance (mean square) under the root.
    pub eps: f64,
    /// Whether a weight follows x.
    pub weight: bool,
    /// Whether a bias comes last.
    pub bias: bool,
}

/// Layer norm; see [`Tensor::layer_norm`].
pub type LayerNorm = Norm<true>;
/// RMS norm; see [`Tensor::rms_norm`].
pub type RmsNorm = Norm<false>;

impl<const CENTRED: bool> Norm<CENTRED> {
    pub(super) fn check(&self, x: &[Spec]) -> Result<DType> {
        let dtype = expect::same_float(x)?;
        let rank = x[0].shape.rank();
        if self.axes == 0 || self.axes > rank {
            bail!(shape, "cannot normalise over the last {} axes of shape {}", self.axes, x[0].shape);
        }
        if !(self.eps >= 0.0 && self.eps.is_finite()) {
            bail!(argument, "eps must be finite and not negative, found {}", self.eps);
        }
        Ok(dtype)
    }

    pub(super) fn split(&self, shape: &Shape) -> (usize, usize) {
        let at = shape.rank() - self.axes;
        (shape[..at].iter().product(), shape[at..].iter().product())
    }

    pub(super) fn parameter_fits(&self, what: &str, p: &Spec, x: &Spec) -> Result<()> {
        let want = &x.shape[x.shape.rank() - self.axes..];
        if &p.shape[..] != want {
            bail!(shape, "{what} must have the shape of the normalised axes: {what} {}, expected {:?} of x {}", p.shape, want, x.shape);
        }
        Ok(())
    }

    pub(super) fn stats_spec(&self, x: &Spec) -> Spec {
        Spec::new([self.split(&x.shape).0, 2], if x.dtype == DType::F64 { DType::F64 } else { DType::F32 })
    }

    /// Centred values and 1/σ of one row, by the textbook.
    pub(super) fn define_row<S: Scalar>(&self, x: &[S]) -> (Vec<S>, S) {
        let n = S::lit(x.len() as f64);
        let mean = if CENTRED { S::sum(x) / n } else { S::zero() };
        let centred: Vec<S> = x.iter().map(|&v| if CENTRED { v - mean } else { v }).collect();
        let squares: Vec<S> = centred.iter().map(|&v| v * v).collect();
        let rstd = S::one() / (S::sum(&squares) / n + S::lit(self.eps)).sqrt();
        (centred, rstd)
    }

    /// The same in tensor ops, for higher derivatives. `rest`: weight, then bias, as the op has them. Half types go through
    /// f32 as in the kernels: 1/σ³ overflows f16 where 1/σ is still small.
    pub(super) fn composed(&self, x: &Tensor, rest: &[Tensor]) -> Result<Tensor> {
        if x.dtype().is_half() {
            let rest: Vec<Tensor> = rest.iter().map(|p| p.cast(DType::F32)).collect::<Result<_>>()?;
            return self.composed(&x.cast(DType::F32)?, &rest)?.cast(x.dtype());
        }
        let axes: Vec<Axis> = (1..=self.axes as isize).map(|i| Axis(-i)).collect();
        let constant = |v: f64| Tensor::full_on((), v, x.dtype(), x.device());
        let over_n = 1.0 / self.split(x.shape()).1.max(1) as f64;
        let mut centred = x.clone();
        if CENTRED {
            centred = x.add(&x.sum_keepdim(&axes[..])?.mul(&constant(-over_n)?)?)?;
            // Once more, as in the kernel: the rounding of the mean, which 1/σ of a constant row would magnify. Mathematically it is 0, so
            // it has no derivative.
            let rest = centred.detach().sum_keepdim(&axes[..])?.mul(&constant(-over_n)?)?;
            centred = centred.add(&rest)?;
        }
        let var = centred.square()?.sum_keepdim(&axes[..])?.mul(&constant(over_n)?)?;
        let mut y = centred.mul(&var.add(&constant(self.eps)?)?.rsqrt()?)?;
        let mut rest = rest.iter();
        if self.weight
            && let Some(w) = rest.next()
        {
            y = y.mul(w)?;
        }
        if self.bias
            && let Some(b) = rest.next()
        {
            y = y.add(b)?;
        }
        Ok(y)
    }
}

impl<const CENTRED: bool> Describe for Norm<CENTRED> {
    const NAME: &'static str = if CENTRED { "layer_norm" } else { "rms_norm" };
    const MATH: Math = if CENTRED {
        Math {
            forward: "y = (x − μ)/√(σ² + ε) · w + b, with mean μ and biased variance σ² over the last axes",
            vjp: "x̄ = r(h − mean h − x̂·mean(h x̂)), w̄ = Σ ȳ x̂, b̄ = Σ ȳ over rows, with r = 1/√(σ² + ε), x̂ = (x − μ) r, h = ȳ w",
            kinks: "smooth for ε > 0: constant rows give y = b, and derivatives of size 1/√ε",
            cost: "reads x, writes y; the derivative reads x and ȳ, writes x̄; saves x, w, and two numbers per row",
            references: "Ba, Kiros, Hinton, Layer Normalization, arXiv:1607.06450; two-pass variance: Chan, Golub, LeVeque, 1983",
        }
    } else {
        Math {
            forward: "y = x/√(mean x² + ε) · w over the last axes",
            vjp: "x̄ = r(h − x̂·mean(h x̂)), w̄ = Σ ȳ x̂ over rows, with r = 1/√(mean x² + ε), x̂ = x r, h = ȳ w",
            kinks: "smooth for ε > 0: zero rows give 0, and derivatives of size 1/√ε",
            cost: "reads x, writes y; the derivative reads x and ȳ, writes x̄; saves x, w, and two numbers per row",
            references: "Zhang, Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467",
        }
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let n = x[0].shape[x[0].shape.rank() - self.axes..].iter().product::<usize>();
        let w = self.weight.then(|| &x[1]);
        let b = self.bias.then(|| &x[x.len() - 1]);
        let mut data = Vec::new();
        for row in x[0].data.chunks(n.max(1)) {
            let (centred, rstd) = self.define_row(row);
            for (j, v) in centred.into_iter().enumerate() {
                let y = v * rstd;
                let y = w.map_or(y, |w| y * w.data[j]);
                data.push(b.map_or(y, |b| y + b.data[j]));
            }
        }
        vec![Nd::new(&x[0].shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::samples(g)
    }
}

impl<const CENTRED: bool> Op for Norm<CENTRED> {
    /// Mean and 1/σ of every row.
    const AUX: usize = 1;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.check(x)?;
        let names = [(self.weight, "weight"), (self.bias, "bias")];
        for ((_, name), p) in names.iter().filter(|(has, _)| *has).zip(&x[1..]) {
            self.parameter_fits(name, p, &x[0])?;
        }
        Ok(smallvec![x[0].clone(), self.stats_spec(&x[0])])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (_, n) = self.split(x[0].shape());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let [y, stats] = y else { bail!(internal, "a norm has two outputs") };
            let (y, stats) = (y.slice::<T>(), stats.slice::<A>());
            let (w, b) = self.widened_parameters::<T>(&x[1..])?;
            let x = x[0].contiguous::<T>()?;
            self.rows::<T>(n, &x, None, y, stats, w.as_ref().map(|w| w.slice::<A>()), b.as_ref().map(|b| b.slice::<A>()))
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, stats] = y else { bail!(internal, "a norm has two outputs") };
        let (w, b) = (self.weight.then(|| &x[1]), self.bias.then(|| &x[x.len() - 1]));
        norm::forward(self.split(x[0].shape()), CENTRED, self.eps, &x[0], None, [w, b], y, stats)
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved {
        // The bias's derivative alone needs no value, but its kernel reads x for the shape of the rows.
        Saved::of([Some(x[0]), if self.weight && want[0] { Some(x[1]) } else { None }, y.get(1)])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let wanted = [want[0], self.weight && want[1], self.bias && want[want.len() - 1]];
        let ones;
        let mut inputs: SmallVec<[&Tensor; 4]> = smallvec![saved.get(0)?];
        if self.weight {
            // Not needed (and not saved) unless x̄ is wanted.
            inputs.push(match saved.maybe(1) {
                Some(w) => w,
                None => {
                    let x = saved.get(0)?.shape();
                    ones = Tensor::full_on(&x[x.rank() - self.axes..], 1.0, g.dtype(), g.device())?;
                    &ones
                }
            });
        }
        inputs.push(g);
        inputs.push(saved.get(2)?);
        let bars = apply(NormVjp { of: self.clone(), stats: true, added: false, want: wanted }, &inputs)?;
        let mut bars = bars.into_iter();
        let has = [true, self.weight, self.bias];
        Ok((0..3).filter(|&i| has[i]).map(|i| if wanted[i] { bars.next() } else { None }).collect())
    }
}

impl<const CENTRED: bool> Norm<CENTRED> {
    /// Weight and bias in the accumulator's type, as the op has them.
    pub(super) fn widened_parameters<T: Compute>(&self, p: &[cpu::In<'_>]) -> Result<(Option<Buffer>, Option<Buffer>)> {
        let w = if self.weight { Some(widened::<T>(&p[0])?) } else { None };
        let b = if self.bias { Some(widened::<T>(&p[p.len() - 1])?) } else { None };
        Ok((w, b))
    }

    /// All rows of `n` elements. `added` is a residual and the output for
    /// `x + residual`: the sum is rounded, and its rows are normalised.
    pub(super) fn rows<T: Compute>(
        &self,
        n: usize,
        x: &[T],
        added: Option<(&[T], &mut [T])>,
        y: &mut [T],
        stats: &mut [T::Acc],
        w: Option<&[T::Acc]>,
        b: Option<&[T::Acc]>,
    ) -> Result<()> {
        if n == 0 {
            stats.fill(T::Acc::ZERO);
            return Ok(());
        }
        let eps = <T::Acc as Real>::from_f64(self.eps);
        let rows = rows::rows_per_task(n);
        let (other, sum) = added.unzip();
        let mut sums = sum.map(|s| s.chunks_mut(rows * n));
        let pieces = y.chunks_mut(rows * n).zip(stats.chunks_mut(rows * 2));
        let tasks = memory::try_collect(pieces.map(|(y, s)| (y, s, sums.as_mut().and_then(Iterator::next))))?;
        let task = |(i, (y, stats, sum)): (usize, (&mut [T], &mut [T::Acc], Option<&mut [T]>))| -> Result<()> {
            let (at, len, room) = (i * rows * n, y.len(), rows::room::<T>(y.len()));
            let mut wide = Buffer::alloc(T::Acc::DTYPE, 2 * room)?;
            let (wide_x, wide_y) = wide.slice_mut::<T::Acc>().split_at_mut(room);
            let row = &x[at..at + len];
            let x = match (sum, other) {
                (Some(sum), Some(other)) => {
                    add(row, &other[at..at + len], sum);
                    rows::computed(&*sum, wide_x)
                }
                _ => rows::computed(row, wide_x),
            };
            rows::stored(y, wide_y, |y| norm_rows::<T::Acc, CENTRED>(n, x, y, stats, w, b, eps));
            Ok(())
        };
        if x.len() < cpu::SERIAL {
            tasks.into_iter().enumerate().try_for_each(task)
        } else {
            tasks.into_par_iter().enumerate().try_for_each(task)
        }
    }
}

/// A parameter in the accumulator's type.
pub(crate) fn widened<T: Compute>(x: &cpu::In<'_>) -> Result<Buffer> {
    let x = x.contiguous::<T>()?;
    let mut out = Buffer::alloc(T::Acc::DTYPE, x.len())?;
    rows::load(&x, out.slice_mut::<T::Acc>());
    Ok(out)
}

/// Mean (0 when not centred) and 1/σ of a row.
#[inline(always)]
pub(super) fn row_stats<A: Real, const CENTRED: bool>(x: &[A], eps: A) -> (A, A) {
    let n = A::from_f64(x.len() as f64);
    let mut mean = A::ZERO;
    if CENTRED {
        mean = simd::sum(x) / n;
        // A second look removes the rounding of the first: constant rows then have variance 0, whatever their offset.
        mean += simd::sum_by(
            x,
            #[inline(always)]
            |acc: A, v: A| acc + (v - mean),
        ) / n;
    }
    let squares = simd::sum_by(
        x,
        #[inline(always)]
        |acc: A, v: A| {
            let d = v - mean;
            d.mul_add(d, acc)
        },
    );
    (mean, A::ONE / (squares / n + eps).sqrt())
}

/// Sums, rounded to the elements' type.
fn add<T: Compute>(a: &[T], b: &[T], y: &mut [T]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (y, (&a, &b)) in y.iter_mut().zip(a.iter().zip(b)) {
                *y = T::store(a.load() + b.load());
            }
        },
    );
}

/// Some rows of `n` elements, normalised, and their statistics.
fn norm_rows<A: Number, const CENTRED: bool>(n: usize, x: &[A], y: &mut [A], stats: &mut [A], w: Option<&[A]>, b: Option<&[A]>, eps: A) {
    simd::dispatch(
        #[inline(always)]
        || {
            for ((x, y), s) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(stats.chunks_exact_mut(2)) {
                let (mean, rstd) = row_stats::<A, CENTRED>(x, eps);
                [s[0], s[1]] = [mean, rstd];
                norm_row(x, y, mean, rstd, w, b);
            }
        },
    );
}

#[inline(always)]
fn norm_row<A: Number>(x: &[A], y: &mut [A], mean: A, rstd: A, w: Option<&[A]>, b: Option<&[A]>) {
    let it = y.iter_mut().zip(x);
    match (w, b) {
        (None, None) => it.for_each(
            #[inline(always)]
            |(y, &x)| *y = (x - mean) * rstd,
        ),
        (Some(w), None) => it.zip(w).for_each(
            #[inline(always)]
            |((y, &x), &w)| *y = (x - mean) * rstd * w,
        ),
        (None, Some(b)) => it.zip(b).for_each(
            #[inline(always)]
            |((y, &x), &b)| *y = (x - mean).mul_add(rstd, b),
        ),
        (Some(w), Some(b)) => it.zip(w.iter().zip(b)).for_each(
            #[inline(always)]
            |((y, &x), (&w, &b))| *y = ((x - mean) * rstd).mul_add(w, b),
        ),
    }
}

impl Tensor {
    /// Layer norm over the last `normalized_axes` axes: mean 0 and variance 1, then a weight and a bias of their shape.
    ///
    /// ```
    /// use cotangent::{Tensor, grad};
    /// let x = Tensor::from_slice(&[1f64, 3.0], [1, 2])?;
    /// let y = x.layer_norm(1, None, None, 0.0)?;
    /// assert_eq!(y.to_vec::<f64>()?, [-1.0, 1.0]);
    /// // Adding a constant to a row changes nothing, so gradients sum to zero along it.
    /// let g = grad(&x, |x| x.layer_norm(1, None, None, 1e-5)?.exp()?.sum(..))?;
    /// assert!(g.sum(..)?.item()?.abs() < 1e-12);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// One fused kernel for x, weight and bias; saves x, the weight (when x is tracked) and two numbers per row. Weight and
    /// bias gradients are summed in a fixed order in f32 (f64 for f64).
    ///
    /// # Shapes
    /// x `[.., n₁ .. nₖ]`, weight and bias `[n₁ .. nₖ]` with `k = normalized_axes`.
    ///
    /// # Numerics
    /// Two-pass biased variance, so an offset far above the spread is harmless; a constant row gives the bias exactly. `eps`
    /// is under the root. Half types are computed in f32 and rounded once.
    ///
    /// # Errors
    /// Shape error when the axes or parameters do not fit; argument error for a negative or non-finite `eps`; dtype error
    /// unless all operands have the same float type.
    #[track_caller]
    pub fn layer_norm(&self, normalized_axes: usize, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let op = LayerNorm { axes: normalized_axes, eps, weight: weight.is_some(), bias: bias.is_some() };
        let x: SmallVec<[&Tensor; 3]> = [Some(self), weight, bias].into_iter().flatten().collect();
        apply1(op, &x)
    }

    /// RMS norm over the last axis: each row divided by the root of its mean square, then a weight.
    ///
    /// # Gradient
    /// One fused kernel for x and weight; saves x, the weight (when x is tracked) and two numbers per row.
    ///
    /// # Shapes
    /// x `[.., n]`, weight `[n]`.
    ///
    /// # Numerics
    /// `eps` is under the root, so zero rows give zeros and finite gradients. Half types are computed in f32.
    ///
    /// # Errors
    /// As [`Tensor::layer_norm`].
    #[track_caller]
    pub fn rms_norm(&self, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let op = RmsNorm { axes: 1, eps, weight: weight.is_some(), bias: false };
        let x: SmallVec<[&Tensor; 2]> = [Some(self), weight].into_iter().flatten().collect();
        apply1(op, &x)
    }
}
