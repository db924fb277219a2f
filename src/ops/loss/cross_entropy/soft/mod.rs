//! Cross-entropy of logits with a distribution over the classes as target, fused like that of class indices.

mod samples;

use super::classes::{CrossEntropyLoss, define_lse, refuse_weights, row_stats};
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Contiguous, Number, Real, rows, simd};
use crate::backend::cuda;
use crate::dtype::{DType, Element, with_float};
use crate::error::{Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply, expect};
use crate::ops::differentiate_vjp;
use crate::ops::loss::reduction::Reduction;
use crate::ops::norm::{log_softmax::log_softmax_line, softmax::largest, softmax::softmax_line};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Cross-entropy with probabilities as targets; see [`Tensor::cross_entropy`]. Inputs: logits, probabilities of the same shape, then
/// the class weights if there are any.
#[derive(Clone, Debug)]
pub struct SoftCrossEntropy {
    /// The options of the loss.
    pub of: CrossEntropyLoss,
}

/// The derivative kernel of [`SoftCrossEntropy`]. Inputs: those of the op, ȳ, and the three saved numbers of every row if `stats`.
/// Outputs: the cotangents that `want` names.
#[derive(Clone, Debug)]
pub struct SoftCrossEntropyVjp {
    /// The op it belongs to.
    pub of: SoftCrossEntropy,
    /// Whether every row's numbers are given; otherwise they are computed again.
    pub stats: bool,
    /// Which cotangents to compute: logits, probabilities.
    pub want: [bool; 2],
}

/// What the derivative needs of a row: the largest logit, the sum of exponentials, and what the probabilities are multiplied with.
type Stats<A> = [A; 3];

impl SoftCrossEntropy {
    fn check(&self, x: &[Spec]) -> Result<()> {
        self.of.check_options()?;
        let (scores, targets) = (&x[0], &x[1]);
        if !scores.dtype.is_float() {
            let (s, t) = (scores, targets);
            bail!(
                dtype,
                "the scores are {} {}, the targets {} {}: it reads scores.cross_entropy(&targets)",
                s.dtype,
                s.shape,
                t.dtype,
                t.shape
            );
        }
        let Some((&classes, lead)) = scores.shape.split_last() else { bail!(shape, "scores need an axis of classes, found a scalar") };
        if targets.shape != scores.shape {
            let (rank, mut turned) = (scores.shape.rank(), targets.shape.iter().copied().collect::<crate::shape::Dims>());
            if rank > 2 && turned.len() == rank {
                turned.swap(1, rank - 1);
                if turned[..] == scores.shape[..] {
                    bail!(
                        shape,
                        "scores {}, probabilities {}: classes are the last axis of both: transpose(1, -1)",
                        scores.shape,
                        targets.shape
                    );
                }
            }
            bail!(
                shape,
                "float targets are probabilities {}, one for every score; found {} {} (class indices are integers {:?}: \
                 targets.cast(I64)?)",
                scores.shape,
                targets.dtype,
                targets.shape,
                lead
            );
        }
        expect::same_dtype(&x[..2])?;
        if let Some(i) = self.of.ignore_index.filter(|&i| i >= 0) {
            bail!(argument, "ignore_index {i} names a class, which probabilities do not have; rows without one have zeros only");
        }
        if self.of.weighted {
            expect::same_dtype(&[scores.clone(), x[2].clone()])?;
            if x[2].shape[..] != [classes] {
                bail!(shape, "there must be one weight per class: weights {}, scores {} ({classes} classes)", x[2].shape, scores.shape);
            }
        }
        Ok(())
    }

    fn leading(scores: &Shape) -> Result<(Shape, usize)> {
        let lead: Shape = scores[..scores.rank().saturating_sub(1)].iter().copied().collect();
        let n = lead.checked_numel()?;
        Ok((lead, n))
    }

    /// The composition that it replaces.
    fn composed(&self, x: &Tensor, q: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let of = &self.of;
        let weights = weights.map(|w| w.cast(x.dtype())).transpose()?;
        let weigh = |t: Tensor| weights.as_ref().map_or(Ok(t.clone()), |w| t.mul(w));
        let mut p = q.clone();
        if of.label_smoothing != 0.0 {
            let classes = x.shape()[x.rank() - 1];
            p = p.mul_scalar(1.0 - of.label_smoothing)?.add_scalar(of.label_smoothing / classes as f64)?;
        }
        let mut losses = weigh(p)?.mul(&x.log_softmax(-1)?)?.sum(-1)?.neg()?;
        if of.z_loss != 0.0 {
            losses = losses.add(&x.logsumexp(-1)?.square()?.mul(&weigh(q.clone())?.sum(-1)?)?.mul_scalar(of.z_loss)?)?;
        }
        of.reduction.reduce(&losses)
    }

    /// `p = w ((1 − s) q + s/C)` of one class.
    #[inline(always)]
    fn share<A: Real>(&self, q: A, w: A, spread: A) -> A {
        w * q.mul_add(<A as Real>::from_f64(1.0 - self.of.label_smoothing), spread)
    }

    /// Numbers and loss of a row; `p` is room for as many numbers.
    #[inline(always)]
    fn row<A: Number>(&self, x: &[A], q: &[A], w: Option<&[A]>, p: &mut [A]) -> (Stats<A>, A) {
        let (m, sum) = row_stats(x);
        if m == A::NEG_INFINITY {
            return ([m, A::ZERO, A::ZERO], A::ZERO);
        }
        let spread = <A as Real>::from_f64(self.of.label_smoothing / x.len() as f64);
        match w {
            Some(w) => p.iter_mut().zip(q).zip(w).for_each(|((p, &q), &w)| *p = self.share(q, w, spread)),
            None => p.iter_mut().zip(q).for_each(|(p, &q)| *p = self.share(q, A::ONE, spread)),
        }
        let total = simd::sum(p);
        // Classes without a share do not count, whatever their logit is.
        let shifted = simd::dot_by(
            x,
            p,
            #[inline(always)]
            |acc: A, x: A, p: A| if p == A::ZERO { acc } else { p.mul_add(x - m, acc) },
        );
        let log = sum.ln();
        let loss = total * log - shifted;
        if self.of.z_loss == 0.0 {
            return ([m, sum, total], loss);
        }
        let mass = match w {
            Some(w) => simd::dot_by(
                q,
                w,
                #[inline(always)]
                |acc: A, q: A, w: A| q.mul_add(w, acc),
            ),
            None => simd::sum_by(
                q,
                #[inline(always)]
                |acc: A, q: A| acc + q,
            ),
        };
        let (z, lse) = (<A as Real>::from_f64(self.of.z_loss) * mass, m + log);
        ([m, sum, total + (z + z) * lse], loss + z * lse * lse)
    }

    /// Numbers and losses of some rows.
    fn rows<A: Number>(&self, x: &[A], q: &[A], w: Option<&[A]>, shares: &mut [A], stats: &mut [A], losses: &mut [A]) {
        let classes = shares.len();
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(classes).zip(q.chunks_exact(classes));
                for (((x, q), s), loss) in rows.zip(stats.chunks_exact_mut(3)).zip(losses.iter_mut()) {
                    let (numbers, l) = self.row(x, q, w, shares);
                    s.copy_from_slice(&numbers);
                    *loss = l;
                }
            },
        );
    }
}

impl Describe for SoftCrossEntropy {
    const NAME: &'static str = "soft_cross_entropy";
    const MATH: Math = Math {
        forward: "lossᵢ = −Σⱼ pᵢⱼ log softmax(xᵢ)ⱼ with pᵢⱼ = wⱼ ((1−s) qᵢⱼ + s/C), plus z lse² Σⱼ wⱼ qᵢⱼ; then mean (over the rows), sum or none",
        vjp: "x̄ᵢⱼ = (softmax(xᵢ)ⱼ (Σₖ pᵢₖ + 2z lse Σₖ wₖ qᵢₖ) − pᵢⱼ) · l̄ᵢ; q̄ᵢⱼ = wⱼ (z lse² − (1−s) log softmax(xᵢ)ⱼ) · l̄ᵢ",
        kinks: "smooth; a row of −∞ only counts 0; a logit of −∞ counts nothing where its share p is 0, and has the cotangent +∞ for its q",
        cost: "two passes over the logits (the second from cache) and one over q forward, one of each backward; saves both, and three numbers per row",
        references: "torch.nn.functional.cross_entropy with class probabilities; Hinton et al., arXiv:1503.02531 (distillation)",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let rank = x[0].shape.rank();
        let classes = x[0].shape[rank - 1];
        let rows: usize = x[0].shape[..rank - 1].iter().product();
        let (s, z) = (self.of.label_smoothing, self.of.z_loss);
        let weight = |j: usize| if self.of.weighted { x[2].data[j] } else { S::one() };
        let mut losses = Vec::new();
        for i in 0..rows {
            let row = &x[0].data[i * classes..(i + 1) * classes];
            if largest(row) == f64::NEG_INFINITY {
                losses.push(S::zero());
                continue;
            }
            let lp = log_softmax_line(row);
            let (mut terms, mut masses) = (Vec::new(), Vec::new());
            for j in 0..classes {
                let q = x[1].data[i * classes + j];
                let p = weight(j) * (q * S::lit(1.0 - s) + S::lit(s / classes as f64));
                let counts = p.re() != 0.0 || row[j].re() != f64::NEG_INFINITY;
                terms.push(if counts { -(p * lp[j]) } else { S::zero() });
                masses.push(weight(j) * q);
            }
            let mut loss = S::sum(&terms);
            if z != 0.0 {
                let lse = define_lse(row);
                loss = loss + S::lit(z) * lse * lse * S::sum(&masses);
            }
            losses.push(loss);
        }
        let lead = x[0].extents_without(&[rank - 1], false);
        vec![self.of.reduction.define(Nd::new(lead, losses), rows as f64)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::samples(g)
    }
}

impl Op for SoftCrossEntropy {
    /// Three numbers of every row.
    const AUX: usize = 1;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.check(x)?;
        let (lead, n) = Self::leading(&x[0].shape)?;
        let stats = Spec::new([n, 3], if x[0].dtype == DType::F64 { DType::F64 } else { DType::F32 });
        Ok(smallvec![Spec::new(self.of.reduction.shape(&lead), x[0].dtype), stats])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (_, n) = Self::leading(x[0].shape())?;
        let classes = x[0].shape()[x[0].shape().rank() - 1];
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let [y, stats] = y else { bail!(internal, "soft_cross_entropy has two outputs") };
            let stats = stats.slice::<A>();
            let mut losses = Buffer::alloc(A::DTYPE, n)?;
            let losses = losses.slice_mut::<A>();
            if classes == 0 {
                stats.fill(A::ZERO);
                losses.fill(A::ZERO);
            } else {
                let (xs, qs) = (x[0].contiguous::<T>()?, x[1].contiguous::<T>()?);
                let w = if self.of.weighted { Some(x[2].contiguous::<T>()?) } else { None };
                let mut wide = Buffer::alloc(A::DTYPE, rows::room::<T>(classes))?;
                let w = w.as_deref().map(|w| rows::computed(w, wide.slice_mut::<A>()));
                let rows = rows::rows_per_task(classes);
                let task = |(((x, q), stats), losses): (((&[T], &[T]), &mut [A]), &mut [A])| -> Result<()> {
                    let room = rows::room::<T>(x.len());
                    let mut buffer = Buffer::alloc(A::DTYPE, classes + 2 * room)?;
                    let (shares, wide) = buffer.slice_mut::<A>().split_at_mut(classes);
                    let (wide_x, wide_q) = wide.split_at_mut(room);
                    self.rows(rows::computed(x, wide_x), rows::computed(q, wide_q), w, shares, stats, losses);
                    Ok(())
                };
                let (step, xs, qs) = (rows * classes, &xs[..], &qs[..]);
                if xs.len() < cpu::SERIAL {
                    xs.chunks(step).zip(qs.chunks(step)).zip(stats.chunks_mut(3 * rows)).zip(losses.chunks_mut(rows)).try_for_each(task)?;
                } else {
                    xs.par_chunks(step).zip(qs.par_chunks(step)).zip(stats.par_chunks_mut(3 * rows)).zip(losses.par_chunks_mut(rows)).try_for_each(task)?;
                }
            }
            self.of.reduction.store(losses, n as f64, y.slice::<T>());
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, stats] = y else { bail!(internal, "soft_cross_entropy has two outputs") };
        let (_, rows) = Self::leading(x[0].shape())?;
        let w = cuda::loss::weights(x.get(2))?;
        let w = w.as_ref().map(cuda::Dense::src);
        let options = self.of.options(x[0].shape()[x[0].shape().rank() - 1]);
        cuda::loss::soft(&x[0], &x[1], w.as_ref(), options, rows, y, stats)
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1]), if self.of.weighted { Some(x[2]) } else { None }, y.get(1)])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.of.weighted && want[2])?;
        let mut inputs: SmallVec<[&Tensor; 5]> = smallvec![saved.get(0)?, saved.get(1)?];
        if self.of.weighted {
            inputs.push(saved.get(2)?);
        }
        inputs.push(y_bar.only()?);
        inputs.push(saved.get(3)?);
        let wanted = [want[0], want[1]];
        let mut found = apply(SoftCrossEntropyVjp { of: self.clone(), stats: true, want: wanted }, &inputs)?.into_iter();
        let mut bars: InputCotangents = wanted.iter().map(|&w| if w { found.next() } else { None }).collect();
        bars.extend(self.of.weighted.then_some(None));
        Ok(bars)
    }
}

impl SoftCrossEntropyVjp {
    /// Position of ȳ among the inputs.
    fn g(&self) -> usize {
        2 + usize::from(self.of.of.weighted)
    }

    /// The cotangents of some rows' logits or probabilities, for the losses' cotangents `g` (one of each, or one for all) times `scale`.
    fn rows<A: Number>(
        &self,
        classes: usize,
        by_x: bool,
        [x, q]: [&[A]; 2],
        w: Option<&[A]>,
        stats: Option<&[A]>,
        g: &[A],
        scale: A,
        shares: &mut [A],
        y: &mut [A],
    ) {
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(classes).enumerate() {
                    let (x, q) = (&x[i * classes..(i + 1) * classes], &q[i * classes..(i + 1) * classes]);
                    let numbers = match stats {
                        Some(s) => [s[3 * i], s[3 * i + 1], s[3 * i + 2]],
                        None => self.of.row(x, q, w, shares).0,
                    };
                    let r = g[i.min(g.len() - 1)] * scale;
                    if numbers[0] == A::NEG_INFINITY {
                        y.fill(A::ZERO);
                    } else if by_x {
                        self.of.row_by_logits(x, q, w, numbers, r, y);
                    } else {
                        self.of.row_by_targets(x, w, numbers, r, y);
                    }
                }
            },
        );
    }
}

impl Describe for SoftCrossEntropyVjp {
    const NAME: &'static str = "soft_cross_entropy_vjp";
    const MATH: Math = Math {
        forward: "x̄ᵢⱼ = (softmax(xᵢ)ⱼ (Σₖ pᵢₖ + 2z lse Σₖ wₖ qᵢₖ) − pᵢⱼ) · l̄ᵢ and q̄ᵢⱼ = wⱼ (z lse² − (1−s) log softmax(xᵢ)ⱼ) · l̄ᵢ, rounded once",
        vjp: "through the composition −Σ p · log_softmax(x) + z lse² Σ w q",
        kinks: "zeros for rows of −∞ only",
        cost: "reads logits and q once, writes what is wanted",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let of = &self.of.of;
        let rank = x[0].shape.rank();
        let classes = x[0].shape[rank - 1];
        let rows: usize = x[0].shape[..rank - 1].iter().product();
        let g = &x[if of.weighted { 3 } else { 2 }];
        let scale = S::lit(of.reduction.define_scale(rows as f64));
        let (s, z) = (of.label_smoothing, of.z_loss);
        let weight = |j: usize| if of.weighted { x[2].data[j] } else { S::one() };
        let (mut by_x, mut by_q) = (Vec::new(), Vec::new());
        for i in 0..rows {
            let row = &x[0].data[i * classes..(i + 1) * classes];
            let q = &x[1].data[i * classes..(i + 1) * classes];
            if largest(row) == f64::NEG_INFINITY {
                by_x.extend(row.iter().map(|_| S::zero()));
                by_q.extend(row.iter().map(|_| S::zero()));
                continue;
            }
            let lse = if z == 0.0 { S::zero() } else { define_lse(row) };
            let p: Vec<S> = (0..classes).map(|j| weight(j) * (q[j] * S::lit(1.0 - s) + S::lit(s / classes as f64))).collect();
            let mut total = S::sum(&p);
            if z != 0.0 {
                let masses: Vec<S> = (0..classes).map(|j| weight(j) * q[j]).collect();
                total = total + S::lit(2.0 * z) * lse * S::sum(&masses);
            }
            let r = g.data[if g.data.len() == 1 { 0 } else { i }] * scale;
            let (soft, log) = (softmax_line(row), log_softmax_line(row));
            for j in 0..classes {
                by_x.push((soft[j] * total - p[j]) * r);
                let sharp = if s == 1.0 { S::zero() } else { log[j] * S::lit(1.0 - s) };
                by_q.push(weight(j) * (S::lit(z) * lse * lse - sharp) * r);
            }
        }
        let all = [Nd::new(&x[0].shape, by_x), Nd::new(&x[0].shape, by_q)];
        all.into_iter().zip(self.want).filter(|(_, w)| *w).map(|(y, _)| y).collect()
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::vjp_samples(g)
    }
}

impl Op for SoftCrossEntropyVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        self.of.check(x)?;
        let g = &x[self.g()];
        let want = self.of.of.reduction.shape(&SoftCrossEntropy::leading(&x[0].shape)?.0);
        if g.shape != want || g.dtype != x[0].dtype {
            bail!(shape, "the cotangent must be {want} of {}: found {} of {}", x[0].dtype, g.shape, g.dtype);
        }
        Ok(self.want.iter().filter(|&&w| w).map(|_| x[0].clone()).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (_, n) = SoftCrossEntropy::leading(x[0].shape())?;
        let classes = x[0].shape()[x[0].shape().rank() - 1];
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let of = &self.of.of;
            let (logits, probabilities, g) = (x[0].contiguous::<T>()?, x[1].contiguous::<T>()?, x[self.g()].contiguous::<T>()?);
            let w = if of.weighted { Some(x[2].contiguous::<T>()?) } else { None };
            let mut wide = Buffer::alloc(A::DTYPE, rows::room::<T>(classes))?;
            let w = w.as_deref().map(|w| rows::computed(w, wide.slice_mut::<A>()));
            let stats: Option<Contiguous<'_, A>> = if self.stats { Some(x[self.g() + 1].contiguous()?) } else { None };
            let scale = <A as Real>::from_f64(of.reduction.scale(n as f64));
            let each = of.reduction == Reduction::None;
            let places = [true, false].into_iter().zip(self.want).filter(|(_, w)| *w).map(|(by_x, _)| by_x);
            for (by_x, y) in places.zip(y.iter_mut()) {
                rows::for_tasks(classes, y.slice::<T>(), |first, y| {
                    let (n, rows, room) = (y.len(), y.len() / classes, rows::room::<T>(y.len()));
                    let shares = if stats.is_none() { classes } else { 0 };
                    let mut buffer = Buffer::alloc(A::DTYPE, shares + rows::room::<T>(3 * n + rows))?;
                    let (shares, wide) = buffer.slice_mut::<A>().split_at_mut(shares);
                    let (wide_x, wide) = wide.split_at_mut(room);
                    let (wide_q, wide) = wide.split_at_mut(room);
                    let (wide_y, wide_g) = wide.split_at_mut(room);
                    let x = rows::computed(&logits[first * classes..][..n], wide_x);
                    let q = rows::computed(&probabilities[first * classes..][..n], wide_q);
                    let g = rows::computed(if each { &g[first..first + rows] } else { &g[..1] }, wide_g);
                    let stats = stats.as_deref().map(|s| &s[3 * first..]);
                    rows::stored(y, wide_y, |y| self.rows(classes, by_x, [x, q], w, stats, g, scale, shares, y));
                    Ok(())
                })?;
            }
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (_, rows) = SoftCrossEntropy::leading(x[0].shape())?;
        let w = cuda::loss::weights(if self.of.of.weighted { x.get(2) } else { None })?;
        let w = w.as_ref().map(cuda::Dense::src);
        let options = self.of.of.options(x[0].shape()[x[0].shape().rank() - 1]);
        let stats = if self.stats { x.get(self.g() + 1) } else { None };
        let places = [true, false].into_iter().zip(self.want).filter(|(_, w)| *w).map(|(by_x, _)| by_x);
        for (by_x, y) in places.zip(y.iter_mut()) {
            cuda::loss::soft_vjp([&x[0], &x[1], &x[self.g()]], w.as_ref(), stats, options, rows, by_x, y)?;
        }
        Ok(())
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list((0..=self.g()).map(|i| Some(x[i].clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let at = self.g();
        refuse_weights(self.of.of.weighted && want[2])?;
        let mut k = 0..;
        let bars = self.want.map(|w| if w { k.next().and_then(|k| y_bar.get(k)).cloned() } else { None });
        let weights = if self.of.of.weighted { Some(saved.get(2)?.clone()) } else { None };
        let inputs = [saved.get(0)?.clone(), saved.get(1)?.clone()];
        let of = self.of.clone();
        let found = differentiate_vjp(&inputs, std::slice::from_ref(saved.get(at)?), &bars, &[want[0], want[1], want[at]], move |x| {
            Ok(Outputs::from_iter([of.composed(&x[0], &x[1], weights.as_ref())?]))
        })?;
        let mut out = InputCotangents::from_elem(None, want.len());
        for (i, bar) in [0, 1, at].into_iter().zip(found) {
            out[i] = bar;
        }
        Ok(out)
    }
}

impl SoftCrossEntropy {
    /// The logits' cotangents of a row, for the loss's cotangent `r`.
    #[inline(always)]
    fn row_by_logits<A: Number>(&self, x: &[A], q: &[A], w: Option<&[A]>, [m, sum, total]: Stats<A>, r: A, y: &mut [A]) {
        let (slope, spread) = (total / sum, <A as Real>::from_f64(self.of.label_smoothing / x.len() as f64));
        // The probability and its target may nearly cancel: their difference is taken before it is scaled and rounded.
        match w {
            Some(w) => {
                for (((y, &x), &q), &w) in y.iter_mut().zip(x).zip(q).zip(w) {
                    let p = self.share(q, w, spread);
                    *y = (x - m).exp().mul_add(slope, -p) * r;
                }
            }
            None => {
                for ((y, &x), &q) in y.iter_mut().zip(x).zip(q) {
                    let p = self.share(q, A::ONE, spread);
                    *y = (x - m).exp().mul_add(slope, -p) * r;
                }
            }
        }
    }

    /// The probabilities' cotangents.
    #[inline(always)]
    fn row_by_targets<A: Number>(&self, x: &[A], w: Option<&[A]>, [m, sum, _]: Stats<A>, r: A, y: &mut [A]) {
        let (log, sharp) = (sum.ln(), <A as Real>::from_f64(1.0 - self.of.label_smoothing));
        let lse = m + log;
        let z = if self.of.z_loss == 0.0 { A::ZERO } else { <A as Real>::from_f64(self.of.z_loss) * lse * lse };
        for (j, (y, &x)) in y.iter_mut().zip(x).enumerate() {
            // log Σ − (x − m), and not 0 · ∞.
            let own = if sharp == A::ZERO { z } else { sharp.mul_add(log - (x - m), z) };
            *y = w.map_or(A::ONE, |w| w[j]) * own * r;
        }
    }
}
