//! Cross-entropy of logits with class targets, fused: neither probabilities nor their logarithms are ever stored.

mod samples;

use crate::array::Array;
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Contiguous, Number, Real, rows, simd};
use crate::backend::{Storage, cuda};
use crate::dtype::{DType, Element, with_float};
use crate::error::{Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1};
use crate::ops::differentiate_vjp;
use crate::ops::loss::reduction::{Classes, Reduction, check_classes, define_targets, define_weight};
use crate::ops::norm::{log_softmax::log_softmax_line, softmax::largest, softmax::softmax_line};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Options of [`Tensor::cross_entropy_with`].
#[derive(Clone, Debug)]
pub struct CrossEntropyOptions {
    /// Targets of this value do not count: loss 0, gradient 0. By default −100, as in PyTorch.
    pub ignore_index: Option<i64>,
    /// Share of the target distribution that is spread evenly over all classes, 0 to 1.
    pub label_smoothing: f64,
    /// What becomes of the losses.
    pub reduction: Reduction,
    /// One weight per class. A constant: it gets no gradient.
    pub weights: Option<Tensor>,
    /// Times the square of `ln Σ exp logits`, added to every loss: keeps logits from drifting (PaLM; 1e-4 is usual). 0, the default,
    /// is off.
    pub z_loss: f64,
}

impl Default for CrossEntropyOptions {
    fn default() -> Self {
        CrossEntropyOptions { ignore_index: Some(-100), label_smoothing: 0.0, reduction: Reduction::Mean, weights: None, z_loss: 0.0 }
    }
}

impl CrossEntropyOptions {
    pub(in crate::ops::loss) fn op(&self) -> CrossEntropyLoss {
        let &CrossEntropyOptions { ignore_index, label_smoothing, reduction, ref weights, z_loss } = self;
        CrossEntropyLoss { ignore_index, label_smoothing, reduction, weighted: weights.is_some(), z_loss }
    }
}

/// Cross-entropy; see [`Tensor::cross_entropy`]. Inputs: logits, targets, then the class weights if there are any.
#[derive(Clone, Debug)]
pub struct CrossEntropyLoss {
    /// Targets of this value do not count.
    pub ignore_index: Option<i64>,
    /// Share of the target distribution that is spread evenly.
    pub label_smoothing: f64,
    /// What becomes of the losses.
    pub reduction: Reduction,
    /// Whether class weights are given.
    pub weighted: bool,
    /// Times the square of `ln Σ exp logits`, added to every loss.
    pub z_loss: f64,
}

/// The derivative kernel of [`CrossEntropyLoss`]. Inputs: logits, targets, the weights if there are any, ȳ, and the saved
/// maximum and sum of every row if `stats`.
#[derive(Clone, Debug)]
pub struct CrossEntropyVjp {
    /// The op it belongs to.
    pub of: CrossEntropyLoss,
    /// Whether every row's maximum and sum of exponentials are given; otherwise they are computed again, to the same bits.
    pub stats: bool,
}

/// The target distribution of one row: `on` at the target, plus `spread · w` at every class.
///
/// `total` is what the probabilities are multiplied with in the derivative: the distribution's sum, and the z-loss's share.
pub(in crate::ops::loss) struct TargetRow<A> {
    on: A,
    spread: A,
    total: A,
}

/// The derivative in one row: `exp(x − m)·slope − shift·w`, but `target` at the target.
pub(in crate::ops::loss) struct RowSlopes<A> {
    pub(in crate::ops::loss) slope: A,
    pub(in crate::ops::loss) shift: A,
    pub(in crate::ops::loss) target: A,
}

impl CrossEntropyLoss {
    pub(in crate::ops::loss) fn options(&self, classes: usize) -> cuda::loss::Options {
        let (each, mean) = (self.reduction == Reduction::None, self.reduction == Reduction::Mean);
        cuda::loss::Options { classes, smoothing: self.label_smoothing, z: self.z_loss, each, mean }
    }

    pub(in crate::ops::loss) fn check(&self, x: &[Spec]) -> Result<()> {
        self.check_options()?;
        check_classes(&x[0], &x[1], self.weighted.then(|| &x[2]))
    }

    pub(in crate::ops::loss) fn check_options(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            bail!(argument, "label_smoothing must be between 0 and 1, found {}", self.label_smoothing);
        }
        if !(self.z_loss >= 0.0 && self.z_loss.is_finite()) {
            bail!(argument, "z_loss must be finite and not negative, found {}", self.z_loss);
        }
        Ok(())
    }

    /// `q` of a row with target weight `w_y` and log-sum-exp `lse`, for `classes` classes of total weight `sum_w`.
    fn row<S: Copy + std::ops::Mul<Output = S> + std::ops::Add<Output = S>>(
        &self,
        lit: impl Fn(f64) -> S,
        w_y: S,
        sum_w: S,
        classes: usize,
        lse: S,
    ) -> TargetRow<S> {
        let on = lit(1.0 - self.label_smoothing) * w_y;
        let spread = lit(self.label_smoothing / classes as f64);
        let total = if self.label_smoothing == 0.0 { on } else { on + spread * sum_w };
        TargetRow { on, spread, total: if self.z_loss == 0.0 { total } else { total + lit(2.0 * self.z_loss) * w_y * lse } }
    }

    /// The target distributions of all rows as one constant tensor, with the mean's divisor taken in.
    fn distribution(&self, x: &Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let classes = x.shape()[x.rank() - 1];
        if x.device().is_cuda() {
            let w = weights.map(|w| w.array.cuda()).transpose()?;
            let w = cuda::loss::weights(w.as_ref())?;
            let w = w.as_ref().map(cuda::Dense::src);
            let targets = cuda::loss::Targets::read(&targets.array.cuda()?, classes, self.ignore_index, w.as_ref(), true)?;
            let q = cuda::loss::target_rows(&targets, w.as_ref(), self.options(classes), x.dtype())?;
            return Ok(Tensor::from_array(Array::from_storage(Storage::Cuda(q), x.dtype(), x.shape().clone())));
        }
        let targets = Classes::read(&targets.array.cpu()?, classes, self.ignore_index)?;
        let w = weights.map(Tensor::to_f64_vec).transpose()?;
        let scale = self.reduction.scale(targets.total(w.as_ref().map(|w| |t: usize| w[t]))?);
        with_float!(x.dtype(), T => {
            let fill = |q: &mut [T]| {
                q.fill(<T as Element>::from_f64(0.0));
                for (q, t) in q.chunks_mut(classes.max(1)).zip(&targets.of) {
                    let Some(t) = *t else { continue };
                    for (j, q) in q.iter_mut().enumerate() {
                        let (w, on) = (w.as_ref().map_or(1.0, |w| w[j]), if j == t { 1.0 - self.label_smoothing } else { 0.0 });
                        *q = <T as Element>::from_f64(-scale * w * (on + self.label_smoothing / classes as f64));
                    }
                }
            };
            Ok(Tensor::from_array(Array::build(x.shape().clone(), x.device(), fill)?))
        })
    }
}

impl Describe for CrossEntropyLoss {
    const NAME: &'static str = "cross_entropy";
    const MATH: Math = Math {
        forward: "lossᵢ = −Σⱼ qᵢⱼ log softmax(xᵢ)ⱼ with qᵢⱼ = (1−s) w_y [j = yᵢ] + (s/C) wⱼ, plus z w_y lse², lse = ln Σⱼ exp xᵢⱼ; 0 for ignored targets; then mean (Σ loss / Σ w_y), sum or none",
        vjp: "x̄ᵢⱼ = (softmax(xᵢ)ⱼ (Σₖ qᵢₖ + 2z w_y lse) − qᵢⱼ) · l̄ᵢ, where l̄ is ȳ, divided by Σ w_y for the mean; zeros for ignored targets",
        kinks: "smooth; a row of −∞ only counts 0; all targets ignored: the mean is 0 with zero gradient",
        cost: "one pass over the logits forward, one pass and one write backward; saves logits, targets, and two numbers per row",
        references: "torch.nn.functional.cross_entropy; Szegedy et al., arXiv:1512.00567 §7 (smoothing); Chowdhery et al., PaLM, arXiv:2204.02311 §5 (z-loss)",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let classes = x[0].shape[x[0].shape.rank() - 1];
        let targets = define_targets(&x[1], self.ignore_index);
        let w = self.weighted.then(|| &x[2]);
        let weight = |j: usize| w.map_or(S::one(), |w| w.data[j]);
        let losses = x[0].data.chunks(classes.max(1)).zip(&targets).map(|(row, t)| {
            let Some(t) = *t else { return S::zero() };
            let lp = log_softmax_line(row);
            let hard = -(lp[t] * weight(t));
            let z = if self.z_loss == 0.0 { S::zero() } else { define_lse(row) };
            let z = z * z * S::lit(self.z_loss) * weight(t);
            if self.label_smoothing == 0.0 {
                return hard + z;
            }
            let spread: Vec<S> = lp.iter().enumerate().map(|(j, &l)| l * weight(j)).collect();
            hard * S::lit(1.0 - self.label_smoothing) - S::sum(&spread) * S::lit(self.label_smoothing / classes as f64) + z
        });
        let mut losses: Vec<S> = losses.collect();
        losses.resize(targets.len(), S::zero());
        vec![self.reduction.define(Nd::new(&x[1].shape, losses), define_weight(&targets, w))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::samples(g)
    }
}

impl Op for CrossEntropyLoss {
    /// Largest logit and sum of the shifted exponentials of every row.
    const AUX: usize = 1;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.check(x)?;
        let stats = Spec::new([x[1].shape.checked_numel()?, 2], if x[0].dtype == DType::F64 { DType::F64 } else { DType::F32 });
        Ok(smallvec![Spec::new(self.reduction.shape(&x[1].shape), x[0].dtype), stats])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let classes = last(x[0].shape());
        let targets = Classes::read(&x[1], classes, self.ignore_index)?;
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let [y, stats] = y else { bail!(internal, "cross_entropy has two outputs") };
            let stats = stats.slice::<A>();
            let w = if self.weighted { Some(x[2].contiguous::<T>()?) } else { None };
            let w = w.as_deref();
            let divisor = targets.total(w.map(|w| |t: usize| Element::to_f64(w[t])))?;
            let mut losses = Buffer::alloc(A::DTYPE, targets.of.len())?;
            let losses = losses.slice_mut::<A>();
            if classes == 0 {
                // Every target is ignored here.
                stats.fill(A::ZERO);
                losses.fill(A::ZERO);
            } else {
                let x = x[0].contiguous::<T>()?;
                let rows = rows::rows_per_task(classes);
                let sum_w = sum_weights::<T>(w, classes);
                let mut wide = Buffer::alloc(A::DTYPE, rows::room::<T>(classes))?;
                let w = w.map(|w| rows::computed(w, wide.slice_mut::<A>()));
                let task = |(((x, t), stats), losses): (((&[T], &[Option<usize>]), &mut [A]), &mut [A])| -> Result<()> {
                    let mut wide = Buffer::alloc(A::DTYPE, rows::room::<T>(x.len()))?;
                    self.rows(rows::computed(x, wide.slice_mut::<A>()), t, w, sum_w, stats, losses);
                    Ok(())
                };
                let t = &targets.of[..];
                if x.len() < cpu::SERIAL {
                    x.chunks(rows * classes).zip(t.chunks(rows)).zip(stats.chunks_mut(2 * rows)).zip(losses.chunks_mut(rows)).try_for_each(task)?;
                } else {
                    x.par_chunks(rows * classes).zip(t.par_chunks(rows)).zip(stats.par_chunks_mut(2 * rows)).zip(losses.par_chunks_mut(rows)).try_for_each(task)?;
                }
            }
            self.reduction.store(losses, divisor, y.slice::<T>());
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, stats] = y else { bail!(internal, "cross_entropy has two outputs") };
        let o = self.options(last(x[0].shape()));
        let w = cuda::loss::weights(x.get(2))?;
        let w = w.as_ref().map(cuda::Dense::src);
        let targets = cuda::loss::Targets::read(&x[1], o.classes, self.ignore_index, w.as_ref(), true)?;
        cuda::loss::cross_entropy(&x[0], &targets, w.as_ref(), o, y, stats)
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1]), if self.weighted { Some(x[2]) } else { None }, y.get(1)])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.weighted && want[2])?;
        let mut inputs: SmallVec<[&Tensor; 5]> = smallvec![saved.get(0)?, saved.get(1)?];
        if self.weighted {
            inputs.push(saved.get(2)?);
        }
        inputs.push(y_bar.only()?);
        inputs.push(saved.get(3)?);
        let x_bar = apply1(CrossEntropyVjp { of: self.clone(), stats: true }, &inputs)?;
        let mut bars: InputCotangents = smallvec![Some(x_bar), None];
        bars.extend(self.weighted.then_some(None));
        Ok(bars)
    }
}

/// `ln Σ exp x` of a row by the textbook; 0 for a row of −∞ only, which counts nothing.
pub(in crate::ops::loss) fn define_lse<S: Scalar>(row: &[S]) -> S {
    let m = largest(row);
    if m == f64::NEG_INFINITY {
        return S::zero();
    }
    let e: Vec<S> = row.iter().map(|&v| (v - S::lit(m)).exp()).collect();
    S::lit(m) + S::sum(&e).ln()
}

/// Class weights are constants by contract: their gradient is refused, not dropped.
pub(crate) fn refuse_weights(wanted: bool) -> Result<()> {
    if wanted {
        bail!(argument, "class weights are constants and have no derivative: detach() them");
    }
    Ok(())
}

fn last(shape: &Shape) -> usize {
    shape.last().copied().unwrap_or(0)
}

pub(in crate::ops::loss) fn sum_weights<T: Compute>(w: Option<&[T]>, classes: usize) -> T::Acc {
    w.map_or(<T::Acc as Real>::from_f64(classes as f64), |w| {
        simd::dispatch(
            #[inline(always)]
            || {
                simd::sum_by(
                    w,
                    #[inline(always)]
                    |acc: T::Acc, w: T| acc + w.load(),
                )
            },
        )
    })
}

/// Largest element m and Σ exp(x − m).
#[inline(always)]
pub(in crate::ops::loss) fn row_stats<T: Compute>(x: &[T]) -> (T::Acc, T::Acc) {
    let m = rows::max(x);
    if m == T::Acc::NEG_INFINITY {
        return (m, T::Acc::ZERO);
    }
    (
        m,
        simd::sum_by(
            x,
            #[inline(always)]
            |acc: T::Acc, v: T| acc + (v.load() - m).exp(),
        ),
    )
}

impl CrossEntropyLoss {
    /// Largest logit, sum of exponentials and loss of some rows.
    fn rows<A: Number>(&self, x: &[A], targets: &[Option<usize>], w: Option<&[A]>, sum_w: A, stats: &mut [A], losses: &mut [A]) {
        let classes = x.len() / losses.len();
        simd::dispatch(
            #[inline(always)]
            || {
                for (((x, t), s), loss) in x.chunks_exact(classes).zip(targets).zip(stats.chunks_exact_mut(2)).zip(losses.iter_mut()) {
                    let Some(t) = *t else {
                        [s[0], s[1], *loss] = [A::NEG_INFINITY, A::ZERO, A::ZERO];
                        continue;
                    };
                    let (m, sum) = row_stats(x);
                    [s[0], s[1]] = [m, sum];
                    *loss = if m == A::NEG_INFINITY { A::ZERO } else { self.row_loss(x, t, w, sum_w, m, sum) };
                }
            },
        );
    }

    #[inline(always)]
    pub(in crate::ops::loss) fn row_loss<A: Number>(&self, x: &[A], t: usize, w: Option<&[A]>, sum_w: A, m: A, sum: A) -> A {
        let w_y = w.map_or(A::ONE, |w| w[t]);
        // ln Σ − (x − m) keeps what (m + ln Σ) − x would lose at a large common offset.
        let log = sum.ln();
        let hard = log - (x[t] - m);
        let z = if self.z_loss == 0.0 { A::ZERO } else { <A as Real>::from_f64(self.z_loss) * w_y * (m + log) * (m + log) };
        if self.label_smoothing == 0.0 {
            return w_y.mul_add(hard, z);
        }
        let q = self.row(<A as Real>::from_f64, w_y, sum_w, x.len(), m + log);
        let shifted = match w {
            None => simd::sum_by(
                x,
                #[inline(always)]
                |acc: A, v: A| acc + (v - m),
            ),
            Some(w) => simd::dot_by(
                x,
                w,
                #[inline(always)]
                |acc: A, v: A, w: A| (v - m).mul_add(w, acc),
            ),
        };
        q.on * hard + q.spread * (sum_w * log - shifted) + z
    }
}

impl CrossEntropyVjp {
    /// Position of ȳ among the inputs.
    fn g(&self) -> usize {
        2 + usize::from(self.of.weighted)
    }
}

impl Describe for CrossEntropyVjp {
    const NAME: &'static str = "cross_entropy_vjp";
    const MATH: Math = Math {
        forward: "x̄ᵢⱼ = (softmax(xᵢ)ⱼ (Σₖ qᵢₖ + 2z w_y lse) − qᵢⱼ) · l̄ᵢ; the difference is taken before any rounding to the logits' type",
        vjp: "through the composition −Σ q · log_softmax(x) + z w_y lse²",
        kinks: "zeros for ignored targets and for rows of −∞ only",
        cost: "one pass over the logits, one write",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let classes = x[0].shape[x[0].shape.rank() - 1];
        let targets = define_targets(&x[1], self.of.ignore_index);
        let w = self.of.weighted.then(|| &x[2]);
        let weight = |j: usize| w.map_or(S::one(), |w| w.data[j]);
        // Behind logits, targets, and weights if there are any.
        let g = &x[if w.is_some() { 3 } else { 2 }];
        let scale = S::lit(self.of.reduction.define_scale(define_weight(&targets, w)));
        let (smoothing, z) = (self.of.label_smoothing, self.of.z_loss);
        let sum_w = S::sum(&(0..classes).map(weight).collect::<Vec<_>>());
        let mut data = Vec::new();
        for (i, row) in x[0].data.chunks(classes.max(1)).enumerate() {
            let Some(t) = targets[i].filter(|_| largest(row) != f64::NEG_INFINITY) else {
                data.extend(row.iter().map(|_| S::zero()));
                continue;
            };
            // The target distribution: `on` at the target, `even` times the weight at every class.
            let (on, even) = (S::lit(1.0 - smoothing) * weight(t), S::lit(smoothing / classes as f64));
            let mut total = if smoothing == 0.0 { on } else { on + even * sum_w };
            if z != 0.0 {
                total = total + S::lit(2.0 * z) * weight(t) * define_lse(row);
            }
            let r = g.data[if g.data.len() == 1 { 0 } else { i }] * scale;
            for (j, p) in softmax_line(row).into_iter().enumerate() {
                let qj = even * weight(j);
                let qj = if j == t { qj + on } else { qj };
                data.push((p * total - qj) * r);
            }
        }
        vec![Nd::new(&x[0].shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::vjp_samples(g)
    }
}

impl Op for CrossEntropyVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.of.check(x)?;
        let g = &x[self.g()];
        let want = self.of.reduction.shape(&x[1].shape);
        if g.shape != want || g.dtype != x[0].dtype {
            bail!(shape, "the cotangent must be {want} of {}: found {} of {}", x[0].dtype, g.shape, g.dtype);
        }
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let classes = last(x[0].shape());
        let targets = Classes::read(&x[1], classes, self.of.ignore_index)?;
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let w = if self.of.weighted { Some(x[2].contiguous::<T>()?) } else { None };
            let w = w.as_deref();
            let stats: Option<Contiguous<'_, A>> = if self.stats { Some(x[self.g() + 1].contiguous()?) } else { None };
            let scale = <A as Real>::from_f64(self.of.reduction.scale(targets.total(w.map(|w| |t: usize| Element::to_f64(w[t])))?));
            let (logits, g) = (x[0].contiguous::<T>()?, x[self.g()].contiguous::<T>()?);
            let each = self.of.reduction == Reduction::None;
            let sum_w = sum_weights::<T>(w, classes);
            let mut wide = Buffer::alloc(A::DTYPE, rows::room::<T>(classes))?;
            let w = w.map(|w| rows::computed(w, wide.slice_mut::<A>()));
            rows::for_tasks(classes, y[0].slice::<T>(), |first, y| {
                let (n, rows) = (y.len(), y.len() / classes);
                let mut wide = Buffer::alloc(A::DTYPE, rows::room::<T>(2 * n + rows))?;
                let (wide_x, wide) = wide.slice_mut::<A>().split_at_mut(rows::room::<T>(n));
                let (wide_y, wide_g) = wide.split_at_mut(rows::room::<T>(n));
                let logits = rows::computed(&logits[first * classes..][..n], wide_x);
                let g = rows::computed(if each { &g[first..first + rows] } else { &g[..1] }, wide_g);
                let stats = stats.as_deref().map(|s| &s[2 * first..]);
                rows::stored(y, wide_y, |y| self.of.rows_vjp(logits, classes, &targets.of[first..], w, sum_w, stats, g, scale, y));
                Ok(())
            })
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let o = self.of.options(last(x[0].shape()));
        let w = cuda::loss::weights(if self.of.weighted { x.get(2) } else { None })?;
        let w = w.as_ref().map(cuda::Dense::src);
        // Saved numbers come from the forward pass, which has checked the targets: no second wait.
        let targets = cuda::loss::Targets::read(&x[1], o.classes, self.of.ignore_index, w.as_ref(), !self.stats)?;
        let stats = if self.stats { x.get(self.g() + 1) } else { None };
        cuda::loss::cross_entropy_vjp(&x[0], &targets, w.as_ref(), &x[self.g()], stats, o, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list((0..=self.g()).map(|i| Some(x[i].clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.of.weighted && want[2])?;
        let (x, targets, g) = (saved.get(0)?, saved.get(1)?, saved.get(self.g())?);
        // The targets enter as a constant distribution, in the type of the composition (f32 for half types).
        let like = if x.dtype().is_half() { x.untracked().cast(DType::F32)? } else { x.untracked() };
        let weights = if self.of.weighted { Some(saved.get(2)?.cast(like.dtype())?) } else { None };
        let q = self.of.distribution(&like, targets, weights.as_ref())?;
        let each = self.of.reduction == Reduction::None;
        let wanted = [want[0], want[self.g()]];
        // The weight of every row's square, with the mean's divisor: the distribution without smoothing holds it at the target.
        let z = if self.of.z_loss == 0.0 {
            None
        } else {
            let sharp = CrossEntropyLoss { label_smoothing: 0.0, ..self.of.clone() };
            Some(sharp.distribution(&like, targets, weights.as_ref())?.sum(-1)?.mul_scalar(-self.of.z_loss)?)
        };
        let found = differentiate_vjp(std::slice::from_ref(x), std::slice::from_ref(g), &[y_bar.get(0).cloned()], &wanted, move |x| {
            let mut losses = x[0].log_softmax(-1)?.mul(&q)?.sum(-1)?;
            if let Some(z) = &z {
                let lse = x[0].logsumexp(-1)?;
                losses = losses.add(&lse.mul(&lse)?.mul(z)?)?;
            }
            Ok(Outputs::from_iter([if each { losses } else { losses.sum(..)? }]))
        })?;
        let mut bars = InputCotangents::from_elem(None, want.len());
        for (at, bar) in [0, self.g()].into_iter().zip(found) {
            bars[at] = bar;
        }
        Ok(bars)
    }
}

impl CrossEntropyLoss {
    /// The derivative in a row of largest element `m` and sum of exponentials `sum`, times `r`; `at` is the target's logit.
    #[inline(always)]
    pub(in crate::ops::loss) fn row_slopes<A: Real>(&self, at: A, w_y: A, sum_w: A, classes: usize, [m, sum, r]: [A; 3]) -> RowSlopes<A> {
        let lse = if self.z_loss == 0.0 { A::ZERO } else { m + sum.ln() };
        let q = self.row(<A as Real>::from_f64, w_y, sum_w, classes, lse);
        // At the target the probability and q nearly cancel: their difference is taken in full precision, before scaling.
        let p = (at - m).exp() / sum;
        RowSlopes { slope: q.total / sum * r, shift: q.spread * r, target: p.mul_add(q.total, -(q.spread * w_y + q.on)) * r }
    }

    /// The derivative in some rows, for the losses' cotangents `g` (one of each, or one for all) times `scale`.
    fn rows_vjp<A: Number>(
        &self,
        x: &[A],
        classes: usize,
        targets: &[Option<usize>],
        w: Option<&[A]>,
        sum_w: A,
        stats: Option<&[A]>,
        g: &[A],
        scale: A,
        y: &mut [A],
    ) {
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, (row, y)) in x.chunks_exact(classes).zip(y.chunks_exact_mut(classes)).enumerate() {
                    let (m, sum) = match (targets[i], stats) {
                        (None, _) => (A::NEG_INFINITY, A::ZERO),
                        (_, Some(s)) => (s[2 * i], s[2 * i + 1]),
                        _ => row_stats(row),
                    };
                    let Some(t) = targets[i].filter(|_| m != A::NEG_INFINITY) else {
                        y.fill(A::ZERO);
                        continue;
                    };
                    let r = g[i.min(g.len() - 1)] * scale;
                    self.row_vjp(row, t, w, sum_w, [m, sum, r], y);
                }
            },
        );
    }

    #[inline(always)]
    fn row_vjp<A: Number>(&self, x: &[A], t: usize, w: Option<&[A]>, sum_w: A, [m, sum, r]: [A; 3], y: &mut [A]) {
        let w_y = w.map_or(A::ONE, |w| w[t]);
        let RowSlopes { slope, shift, target } = self.row_slopes(x[t], w_y, sum_w, x.len(), [m, sum, r]);
        match w {
            Some(w) if self.label_smoothing != 0.0 => {
                for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                    *y = (x - m).exp().mul_add(slope, -(shift * w));
                }
            }
            _ => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = (x - m).exp().mul_add(slope, -shift);
                }
            }
        }
        y[t] = target;
    }
}
