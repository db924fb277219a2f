//! Layer norm and RMS norm: one family, told apart by whether the mean is subtracted.

use super::differentiate_vjp;
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Contiguous, Real, rows, simd};
use crate::backend::cuda::{self, norm};
use crate::dtype::{DType, Element, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply, apply1, expect};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Rows per partial sum of the weight and bias derivatives; fixed, so that the grouping never depends on threads.
const GROUP: usize = 64;

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

/// The derivative kernel of [`Norm`]. Inputs: x, the weight if there is one, ȳ, and the saved statistics if `stats`.
/// Outputs: those of x̄, w̄, b̄ that `want` names.
#[derive(Clone, Debug)]
pub struct NormVjp<const CENTRED: bool> {
    /// The op it belongs to.
    pub of: Norm<CENTRED>,
    /// Whether mean and 1/σ of every row are given; otherwise they are computed again, to the same bits.
    pub stats: bool,
    /// Which cotangents to compute: x, weight, bias.
    pub want: [bool; 3],
}

impl<const CENTRED: bool> Norm<CENTRED> {
    fn check(&self, x: &[Spec]) -> Result<DType> {
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

    fn split(&self, shape: &Shape) -> (usize, usize) {
        let at = shape.rank() - self.axes;
        (shape[..at].iter().product(), shape[at..].iter().product())
    }

    fn parameter_fits(&self, what: &str, p: &Spec, x: &Spec) -> Result<()> {
        let want = &x.shape[x.shape.rank() - self.axes..];
        if &p.shape[..] != want {
            bail!(shape, "{what} must have the shape of the normalised axes: {what} {}, expected {:?} of x {}", p.shape, want, x.shape);
        }
        Ok(())
    }

    fn stats_spec(&self, x: &Spec) -> Spec {
        Spec::new([self.split(&x.shape).0, 2], if x.dtype == DType::F64 { DType::F64 } else { DType::F32 })
    }

    /// Centred values and 1/σ of one row, by the textbook.
    fn define_row<S: Scalar>(&self, x: &[S]) -> (Vec<S>, S) {
        let n = S::lit(x.len() as f64);
        let mean = if CENTRED { S::sum(x) / n } else { S::zero() };
        let centred: Vec<S> = x.iter().map(|&v| if CENTRED { v - mean } else { v }).collect();
        let squares: Vec<S> = centred.iter().map(|&v| v * v).collect();
        let rstd = S::one() / (S::sum(&squares) / n + S::lit(self.eps)).sqrt();
        (centred, rstd)
    }

    /// The same in tensor ops, for higher derivatives. `rest`: weight, then bias, as the op has them. Half types go through
    /// f32 as in the kernels: 1/σ³ overflows f16 where 1/σ is still small.
    fn composed(&self, x: &Tensor, rest: &[Tensor]) -> Result<Tensor> {
        if x.dtype().is_half() {
            let rest: Vec<Tensor> = rest.iter().map(|p| p.cast(DType::F32)).collect::<Result<_>>()?;
            return self.composed(&x.cast(DType::F32)?, &rest)?.cast(x.dtype());
        }
        let axes: Vec<Axis> = (1..=self.axes as isize).map(|i| Axis(-i)).collect();
        let constant = |v: f64| Tensor::full_on((), v, x.dtype(), x.device());
        let over_n = 1.0 / self.split(x.shape()).1.max(1) as f64;
        let centred = if CENTRED { x.add(&x.sum_keep(&axes[..])?.mul(&constant(-over_n)?)?)? } else { x.clone() };
        let var = centred.square()?.sum_keep(&axes[..])?.mul(&constant(over_n)?)?;
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
        let (_, n) = self.split(&x[0].shape);
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

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        super::norm_samples::samples(g)
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
            let [y, stats] = y else { bail!(argument, "a norm has two outputs") };
            let (y, stats) = (y.slice::<T>(), stats.slice::<A>());
            if n == 0 {
                stats.fill(A::ZERO);
                return Ok(());
            }
            let w = if self.weight { Some(widened::<T>(&x[1])?) } else { None };
            let b = if self.bias { Some(widened::<T>(&x[x.len() - 1])?) } else { None };
            let (w, b) = (w.as_ref().map(|w| w.slice::<A>()), b.as_ref().map(|b| b.slice::<A>()));
            let x = x[0].contiguous::<T>()?;
            let eps = <A as Real>::from_f64(self.eps);
            let rows = rows::rows_per_task(n);
            let task = |((x, y), stats): ((&[T], &mut [T]), &mut [A])| -> Result<()> {
                let mut scratch = Buffer::alloc(A::DTYPE, n)?;
                let scratch = scratch.slice_mut::<A>();
                simd::dispatch(#[inline(always)] || {
                    for ((x, y), s) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(stats.chunks_exact_mut(2)) {
                        rows::load(x, scratch);
                        let (mean, rstd) = row_stats::<A, CENTRED>(scratch, eps);
                        [s[0], s[1]] = [mean, rstd];
                        norm_row(scratch, y, mean, rstd, w, b);
                    }
                });
                Ok(())
            };
            if x.len() < cpu::SERIAL {
                x.chunks(rows * n).zip(y.chunks_mut(rows * n)).zip(stats.chunks_mut(rows * 2)).try_for_each(task)
            } else {
                x.par_chunks(rows * n).zip(y.par_chunks_mut(rows * n)).zip(stats.par_chunks_mut(rows * 2)).try_for_each(task)
            }
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, stats] = y else { bail!(argument, "a norm has two outputs") };
        let (w, b) = (self.weight.then(|| &x[1]), self.bias.then(|| &x[x.len() - 1]));
        norm::forward(self.split(x[0].shape()), CENTRED, self.eps, &x[0], w, b, y, stats)
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
        let bars = apply(NormVjp { of: self.clone(), stats: true, want: wanted }, &inputs)?;
        let mut bars = bars.into_iter();
        let has = [true, self.weight, self.bias];
        Ok((0..3).filter(|&i| has[i]).map(|i| if wanted[i] { bars.next() } else { None }).collect())
    }
}

/// A parameter in the accumulator's type.
fn widened<T: Compute>(x: &cpu::In<'_>) -> Result<Buffer> {
    let x = x.contiguous::<T>()?;
    let mut out = Buffer::alloc(T::Acc::DTYPE, x.len())?;
    rows::load(&x, out.slice_mut::<T::Acc>());
    Ok(out)
}

/// Mean (0 when not centred) and 1/σ of a row.
#[inline(always)]
fn row_stats<A: Real, const CENTRED: bool>(x: &[A], eps: A) -> (A, A) {
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

#[inline(always)]
fn norm_row<T: Compute>(x: &[T::Acc], y: &mut [T], mean: T::Acc, rstd: T::Acc, w: Option<&[T::Acc]>, b: Option<&[T::Acc]>) {
    let it = y.iter_mut().zip(x);
    match (w, b) {
        (None, None) => it.for_each(
            #[inline(always)]
            |(y, &x)| *y = T::store((x - mean) * rstd),
        ),
        (Some(w), None) => it.zip(w).for_each(
            #[inline(always)]
            |((y, &x), &w)| *y = T::store((x - mean) * rstd * w),
        ),
        (None, Some(b)) => it.zip(b).for_each(
            #[inline(always)]
            |((y, &x), &b)| *y = T::store((x - mean).mul_add(rstd, b)),
        ),
        (Some(w), Some(b)) => it.zip(w.iter().zip(b)).for_each(
            #[inline(always)]
            |((y, &x), (&w, &b))| *y = T::store(((x - mean) * rstd).mul_add(w, b)),
        ),
    }
}

impl<const CENTRED: bool> NormVjp<CENTRED> {
    /// Position of ȳ among the inputs.
    fn g(&self) -> usize {
        1 + usize::from(self.of.weight)
    }
}

impl<const CENTRED: bool> Describe for NormVjp<CENTRED> {
    const NAME: &'static str = if CENTRED { "layer_norm_vjp" } else { "rms_norm_vjp" };
    const MATH: Math = Math {
        forward: "x̄ = r(h − [mean h] − x̂·mean(h x̂)), w̄ = Σ ȳ x̂, b̄ = Σ ȳ over rows; the bracket only when centred",
        vjp: "through the composition",
        kinks: "as the op it belongs to",
        cost: "one pass over x and ȳ; partial sums of 64 rows, added pairwise",
        references: "chain rule; pairwise summation: Higham, Accuracy and Stability of Numerical Algorithms, §4.2",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (rows, n) = self.of.split(&x[0].shape);
        let (w, g) = (self.of.weight.then(|| &x[1]), &x[self.g()]);
        let count = S::lit(n as f64);
        let (mut dx, mut gx) = (Vec::new(), Vec::new());
        for (row, g) in x[0].data.chunks(n.max(1)).zip(g.data.chunks(n.max(1))) {
            let (centred, rstd) = self.of.define_row(row);
            let xhat: Vec<S> = centred.into_iter().map(|v| v * rstd).collect();
            let h: Vec<S> = g.iter().enumerate().map(|(j, &g)| w.map_or(g, |w| g * w.data[j])).collect();
            let hx: Vec<S> = h.iter().zip(&xhat).map(|(&h, &x)| h * x).collect();
            let (c1, c2) = (S::sum(&h) / count, S::sum(&hx) / count);
            for j in 0..n {
                let inner = if CENTRED { h[j] - c1 } else { h[j] };
                dx.push(rstd * (inner - xhat[j] * c2));
            }
            gx.extend(g.iter().zip(&xhat).map(|(&g, &x)| g * x));
        }
        let tail = &x[0].shape[x[0].shape.rank() - self.of.axes..];
        let columns = |v: &[S]| Nd::new(tail, (0..n).map(|j| S::sum(&(0..rows).map(|i| v[i * n + j]).collect::<Vec<_>>())).collect());
        let all = [Nd::new(&x[0].shape, dx), columns(&gx), columns(&g.data)];
        all.into_iter().zip(self.want).filter(|(_, w)| *w).map(|(y, _)| y).collect()
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for s in Norm::<CENTRED>::samples(g).into_iter().filter(|s| matches!(s.purpose, Purpose::Check | Purpose::Value)) {
            let of = s.op.clone();
            let want = [true, of.weight, of.bias];
            let mut inputs: Vec<Input> = s.inputs[..1 + usize::from(of.weight)].to_vec();
            inputs.push(g.normal(inputs[0].shape()));
            let mut s = s.map(|of| NormVjp { of, stats: false, want });
            s.inputs = inputs;
            out.push(s);
        }
        let of = Norm::<CENTRED> { axes: 1, eps: 1e-3, weight: true, bias: CENTRED };
        for want in [
            [true, false, false],
            [false, true, false],
            [false, false, true],
            [true, true, false],
            [false, true, true],
            [true, false, true],
        ] {
            if want[2] && !CENTRED {
                continue;
            }
            let op = NormVjp { of: of.clone(), stats: false, want };
            out.push(
                Sample::check(op, [g.normal([3, 5]), g.normal([5]), g.normal([3, 5])]).note("B17, C16: every subset of wanted gradients"),
            );
        }
        let op = NormVjp { of, stats: false, want: [true, true, CENTRED] };
        out.push(
            Sample::check(op.clone(), [g.normal([3, 5]), g.normal([5]), Input::values([3, 5], [0.0; 15])]).note("A24: zero cotangent"),
        );
        out.push(
            Sample::value(op.clone(), [g.normal([16_384, 3]), g.normal([3]), g.normal([16_384, 3])]).note("B11: 16 384 rows summed in f32"),
        );
        out.push(Sample::reject(op, [g.normal([3, 5]), g.normal([5]), g.normal([3, 4])], ErrorKind::Shape));
        out
    }
}

impl<const CENTRED: bool> Op for NormVjp<CENTRED> {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let floats = self.g() + 1;
        let dtype = self.of.check(&x[..floats])?;
        if self.of.weight {
            self.of.parameter_fits("weight", &x[1], &x[0])?;
        }
        let (g, shape) = (&x[self.g()], &x[0].shape);
        if &g.shape != shape {
            bail!(shape, "the cotangent must have the shape of x: {} and {shape}", g.shape);
        }
        let tail = Spec::new(&shape[shape.rank() - self.of.axes..], dtype);
        Ok([x[0].clone(), tail.clone(), tail].into_iter().zip(self.want).filter(|(_, w)| *w).map(|(s, _)| s).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (_, n) = self.of.split(x[0].shape());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let mut y = y.iter_mut();
            let [dx, dw, db] = self.want.map(|w| if w { y.next().map(|y| y.slice::<T>()) } else { None });
            let w = if self.of.weight { Some(widened::<T>(&x[1])?) } else { None };
            let stats: Option<Contiguous<'_, A>> = if self.stats { Some(x[self.g() + 1].contiguous()?) } else { None };
            let (g, x) = (x[self.g()].contiguous::<T>()?, x[0].contiguous::<T>()?);
            let rows = Rows { x: &x, w: w.as_ref().map(|w| w.slice::<A>()), g: &g, stats: stats.as_deref(), eps: <A as Real>::from_f64(self.of.eps), n };
            rows.pull_back::<CENTRED>(dx, dw, db)
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let mut y = y.iter_mut();
        let outputs = self.want.map(|w| if w { y.next() } else { None });
        let (w, stats) = (self.of.weight.then(|| &x[1]), self.stats.then(|| &x[self.g() + 1]));
        norm::backward(self.of.split(x[0].shape()), CENTRED, self.of.eps, &x[0], w, &x[self.g()], stats, outputs)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list((0..=self.g()).map(|i| Some(x[i].clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = saved.get(self.g())?.clone();
        let mut inputs: Vec<Tensor> = vec![saved.get(0)?.clone()];
        let mut outputs = 0..;
        let mut bar = |wanted: bool| if wanted { outputs.next().and_then(|k| y_bar.get(k)).cloned() } else { None };
        let mut bars = vec![bar(self.want[0])];
        let mut wanted = vec![want[0]];
        if self.of.weight {
            inputs.push(saved.get(1)?.clone());
            bars.push(bar(self.want[1]));
            wanted.push(want[1]);
        }
        if self.of.bias {
            // Its value does not matter: the bias enters linearly.
            let x = inputs[0].shape();
            inputs.push(Tensor::full_on(&x[x.rank() - self.of.axes..], 0.0, g.dtype(), g.device())?);
            bars.push(bar(self.want[2]));
            wanted.push(false);
        }
        wanted.push(want[self.g()]);
        let of = self.of.clone();
        let mut found = differentiate_vjp(&inputs, &[g], &bars, &wanted, move |x| Ok(Outputs::from_iter([of.composed(&x[0], &x[1..])?])))?;
        if self.of.bias {
            found.remove(self.g());
        }
        found.extend(self.stats.then_some(None));
        Ok(found)
    }
}

/// Adds one partial sum to the next larger one, and starts it anew.
#[inline(always)]
fn flush<A: Real>(from: &mut [A], to: &mut [A]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t += *f;
        *f = A::ZERO;
    }
}

/// The operands of the derivative kernel.
struct Rows<'a, T: Compute> {
    x: &'a [T],
    w: Option<&'a [T::Acc]>,
    g: &'a [T],
    stats: Option<&'a [T::Acc]>,
    eps: T::Acc,
    n: usize,
}

impl<T: Compute> Rows<'_, T> {
    fn pull_back<const CENTRED: bool>(&self, dx: Option<&mut [T]>, dw: Option<&mut [T]>, db: Option<&mut [T]>) -> Result<()> {
        let (zero, n) = (T::Acc::ZERO, self.n);
        if self.x.is_empty() {
            // No rows, or rows without elements: the sums are empty.
            for d in [dw, db].into_iter().flatten() {
                d.fill(T::store(zero));
            }
            return Ok(());
        }
        let groups = self.x.len().div_ceil(GROUP * n);
        let width = n * (usize::from(dw.is_some()) + usize::from(db.is_some()));
        let mut parts = Buffer::alloc(T::Acc::DTYPE, groups * width)?;
        let parts = parts.slice_mut::<T::Acc>();
        let mut tasks: Vec<(Option<&mut [T]>, &mut [T::Acc])> = Vec::with_capacity(groups);
        let mut dx_groups = dx.map(|dx| dx.chunks_mut(GROUP * n));
        let mut rest = &mut *parts;
        for _ in 0..groups {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(width);
            rest = tail;
            tasks.push((dx_groups.as_mut().and_then(Iterator::next), part));
        }
        let (has_dw, has_db) = (dw.is_some(), db.is_some());
        let run = |(i, (dx, part)): (usize, (Option<&mut [T]>, &mut [T::Acc]))| self.group::<CENTRED>(i, dx, part, has_dw, has_db);
        if self.x.len() < cpu::SERIAL {
            tasks.into_iter().enumerate().try_for_each(run)?;
        } else {
            tasks.into_par_iter().enumerate().with_min_len((rows::rows_per_task(n) / GROUP).max(1)).try_for_each(run)?;
        }
        // Neighbours are added pairwise: the error grows with the logarithm of the number of groups.
        let mut step = 1;
        while step < groups && width > 0 {
            for pair in parts.chunks_mut(2 * step * width) {
                if pair.len() > step * width {
                    let (a, b) = pair.split_at_mut(step * width);
                    a[..width].iter_mut().zip(&b[..width]).for_each(|(a, &b)| *a += b);
                }
            }
            step *= 2;
        }
        let mut sums = parts[..width.min(parts.len())].chunks(n);
        for d in [dw, db].into_iter().flatten() {
            let sum = sums.next().unwrap_or_default();
            d.iter_mut().zip(sum).for_each(|(d, &s)| *d = T::store(s));
        }
        Ok(())
    }

    /// One group of rows: their x̄, and their share of w̄ and b̄ in `part`.
    fn group<const CENTRED: bool>(
        &self,
        i: usize,
        mut dx: Option<&mut [T]>,
        part: &mut [T::Acc],
        has_dw: bool,
        has_db: bool,
    ) -> Result<()> {
        let n = self.n;
        let first = i * GROUP;
        let last = (first + GROUP).min(self.x.len() / n);
        let width = part.len();
        let mut scratch = Buffer::alloc(T::Acc::DTYPE, 2 * (n + width))?;
        let (xhat, rest) = scratch.slice_mut::<T::Acc>().split_at_mut(n);
        let (h, rest) = rest.split_at_mut(n);
        // Sums of 4 and of 16 rows on the way to the sum of the group: at most 9 additions in a chain instead of 63.
        rest.fill(T::Acc::ZERO);
        let (four, sixteen) = rest.split_at_mut(width);
        part.fill(T::Acc::ZERO);
        let count = <T::Acc as Real>::from_f64(n as f64);
        simd::dispatch(
            #[inline(always)]
            || {
                for r in first..last {
                    let (x, g) = (&self.x[r * n..(r + 1) * n], &self.g[r * n..(r + 1) * n]);
                    rows::load(x, xhat);
                    let (mean, rstd) = match self.stats {
                        Some(s) => (s[2 * r], s[2 * r + 1]),
                        None => row_stats::<T::Acc, CENTRED>(xhat, self.eps),
                    };
                    for v in xhat.iter_mut() {
                        *v = (*v - mean) * rstd;
                    }
                    let (dw, db) = four.split_at_mut(if has_dw { n } else { 0 });
                    if has_dw {
                        for ((d, &x), &g) in dw.iter_mut().zip(xhat.iter()).zip(g) {
                            *d = x.mul_add(g.load(), *d);
                        }
                    }
                    if has_db {
                        for (d, &g) in db.iter_mut().zip(g) {
                            *d += g.load();
                        }
                    }
                    let done = r + 1 - first;
                    if done.is_multiple_of(4) || r + 1 == last {
                        flush(four, sixteen);
                    }
                    if done.is_multiple_of(16) || r + 1 == last {
                        flush(sixteen, part);
                    }
                    if let Some(dx) = &mut dx {
                        rows::load(g, h);
                        if let Some(w) = self.w {
                            for (h, &w) in h.iter_mut().zip(w) {
                                *h *= w;
                            }
                        }
                        let c1 = if CENTRED { simd::sum(h) / count } else { T::Acc::ZERO };
                        let c2 = simd::dot(h, xhat) / count;
                        let at = (r - first) * n;
                        for ((d, &h), &x) in dx[at..at + n].iter_mut().zip(h.iter()).zip(xhat.iter()) {
                            *d = T::store(rstd * (-x).mul_add(c2, h - c1));
                        }
                    }
                }
            },
        );
        Ok(())
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
    /// stands under the root. Half types are computed in f32 and rounded once.
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
    /// `eps` stands under the root, so zero rows give zeros and finite gradients. Half types are computed in f32.
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
