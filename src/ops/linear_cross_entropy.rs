//! Cross-entropy of a linear layer's logits, which never exist as a whole.

use super::cross_entropy::{CrossEntropy, CrossEntropyLoss, CrossEntropyVjp, RowSlopes, refuse_weights, row_stats, sum_weights};
use super::differentiate_vjp;
use super::loss::{Classes, Reduction};
use super::norm::widened;
use crate::backend::Device;
use crate::backend::cpu::gemm::{GemmFloat, Mat, gemm};
use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Contiguous, Real, map, rows, simd};
use crate::backend::cuda::{self, linear_loss};
use crate::dtype::{DType, Element, with_float};
use crate::error::{Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply, apply1, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::ops::Range;

/// Logits that exist at a time: 64 MiB of f32. Products of fewer rows than [`FEWEST`] would spend their time on the weight.
const LOGITS: usize = 1 << 24;

/// Fewest rows of logits at a time.
const FEWEST: usize = 128;

/// Cross-entropy of `x wᵀ`; see [`Tensor::linear_cross_entropy`]. Inputs: x `[.., width]`, w `[classes, width]`, targets, then the
/// class weights if there are any.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropy {
    /// The loss of the logits.
    pub of: CrossEntropyLoss,
    /// Rows of logits that exist at a time.
    pub rows: usize,
    /// Whether the cotangents of x and of w are computed beside the loss, instead of from logits that are computed again. Only with a
    /// reduction, whose scalar cotangent then multiplies them, and not for half types, where cotangents of 1/rows would vanish.
    pub keep: [bool; 2],
}

/// The derivative kernel of [`LinearCrossEntropy`]. Inputs: those of the op, ȳ, and what the forward pass saved: statistics if
/// `stats`, and then what it kept. Outputs: those of x̄ and w̄ that `want` names.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropyVjp {
    /// The op it belongs to.
    pub of: LinearCrossEntropy,
    /// Whether every row's maximum and sum of exponentials are given.
    pub stats: bool,
    /// Which cotangents to compute: x, w.
    pub want: [bool; 2],
}

impl LinearCrossEntropy {
    /// The logits' spec, or why x and w do not fit.
    fn logits(&self, x: &[Spec]) -> Result<Spec> {
        let dtype = expect::same_float(&x[..2])?;
        let (xs, ws) = (&x[0].shape, &x[1].shape);
        let Some((&k, lead)) = xs.split_last() else {
            bail!(shape, "x {xs} has no axis to map; expected x [.., in], weight [classes, in]")
        };
        if ws.rank() != 2 || ws[1] != k {
            bail!(shape, "inner extents differ: x {xs}, weight {ws}; expected x [.., in], weight [classes, in]");
        }
        Ok(Spec { shape: lead.iter().copied().chain([ws[0]]).collect(), dtype })
    }

    fn check(&self, x: &[Spec]) -> Result<Spec> {
        let logits = self.logits(x)?;
        let operands: SmallVec<[Spec; 3]> = std::iter::once(&logits).chain(&x[2..3 + usize::from(self.of.weighted)]).cloned().collect();
        self.of.check(&operands)?;
        Ok(logits)
    }

    /// The composition it stands for.
    fn composed(&self, x: &Tensor, w: &Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let logits = x.linear(w, None)?;
        let weights = weights.map(|c| c.cast(logits.dtype())).transpose()?;
        let inputs: SmallVec<[&Tensor; 3]> = [Some(&logits), Some(targets), weights.as_ref()].into_iter().flatten().collect();
        apply1(self.of.clone(), &inputs)
    }

    /// What is kept for operands of this type.
    fn kept(&self, dtype: DType) -> [bool; 2] {
        let possible = self.of.reduction != Reduction::None && !dtype.is_half();
        self.keep.map(|k| k && possible)
    }

    /// Position of ȳ among the inputs of the derivative.
    fn g(&self) -> usize {
        3 + usize::from(self.of.weighted)
    }
}

impl Describe for LinearCrossEntropy {
    const NAME: &'static str = "linear_cross_entropy";
    const MATH: Math = Math {
        forward: "cross_entropy(x wᵀ, targets), some rows of logits at a time",
        vjp: "with l̄ the logits' cotangent by the rule of cross_entropy: x̄ = l̄ w, w̄ = l̄ᵀ x, summed over the pieces in order",
        kinks: "as cross_entropy",
        cost: "6·rows·width·classes arithmetic with both derivatives (8 where logits are computed again: half types, no reduction); at most 64 MiB of logits, or 128 rows",
        references: "Wijmans et al., Cut Your Losses, arXiv:2411.09009; Liger-Kernel fused_linear_cross_entropy",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (w, lead) = (&x[1], x[0].shape.rank() - 1);
        let (classes, width) = (w.shape[0], w.shape[1]);
        let mut data = Vec::new();
        for i in 0..x[2].data.len() {
            for c in 0..classes {
                let terms: Vec<S> = (0..width).map(|k| x[0].data[i * width + k] * w.data[c * width + k]).collect();
                data.push(S::sum(&terms));
            }
        }
        let mut operands = vec![Nd::new(x[0].extents_with(lead, classes), data)];
        operands.extend(x[2..].iter().cloned());
        self.of.define(&operands)
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        super::linear_cross_entropy_samples::samples(g)
    }
}

impl Op for LinearCrossEntropy {
    /// Statistics of every row, and what is kept of x̄ and w̄ (else empty).
    const AUX: usize = 3;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let logits = self.check(x)?;
        let stats = Spec::new([x[2].shape.checked_numel()?, 2], if logits.dtype == DType::F64 { DType::F64 } else { DType::F32 });
        let keep = self.kept(logits.dtype);
        let kept = |i: usize| if keep[i] { x[i].clone() } else { Spec::new([0], logits.dtype) };
        Ok(smallvec![Spec::new(self.of.reduction.shape(&x[2].shape), logits.dtype), stats, kept(0), kept(1)])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let [y, stats, dx, dw] = y else { bail!(argument, "linear_cross_entropy has four outputs") };
        let keep = self.kept(x[0].dtype());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let (xs, ws) = (Wide::<T>::new(&x[0])?, Wide::<T>::new(&x[1])?);
            let weights = if self.of.weighted { Some(Wide::<T>::new(&x[3])?) } else { None };
            let head = Head::new(self, &xs, &ws, &x[2], weights.as_ref(), x[1].shape())?;
            let mut losses = Buffer::alloc(A::DTYPE, head.targets.of.len())?;
            let losses = losses.slice_mut::<A>();
            let [dx, dw] = [(dx, keep[0]), (dw, keep[1])].map(|(d, keep)| if keep { T::as_acc_mut(d.slice::<T>()) } else { None });
            let scale = <A as Real>::from_f64(self.of.reduction.scale(head.divisor));
            let r = |_| scale;
            head.run(false, stats.slice::<A>(), losses, (keep != [false; 2]).then_some(&r), dx, dw)?;
            self.of.reduction.store(losses, head.divisor, y.slice::<T>());
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, stats, dx, dw] = y else { bail!(argument, "linear_cross_entropy has four outputs") };
        let o = self.of.options(x[1].shape()[0]);
        let weights = cuda::loss::weights(x.get(3))?;
        let weights = weights.as_ref().map(cuda::Dense::src);
        let targets = cuda::loss::Targets::read(&x[2], o.classes, self.of.ignore_index, weights.as_ref(), true)?;
        let head = linear_loss::Head {
            x: &x[0],
            w: &x[1],
            targets: &targets,
            weights: weights.as_ref(),
            options: o,
            rows: x[2].numel(),
            chunk: self.rows,
        };
        let keep = self.kept(x[0].dtype());
        head.forward(y, stats, [keep[0].then_some(dx), keep[1].then_some(dw)])
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        let keep = self.kept(x[0].dtype());
        let kept = |i: usize| if keep[i] { y.get(2 + i).cloned() } else { None };
        let inputs = x.iter().map(|&t| Some(t.clone()));
        Saved::list(inputs.chain([y.get(1).cloned(), kept(0), kept(1)]))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.of.weighted && want[3])?;
        let (n, bar) = (self.g(), y_bar.only()?);
        let mut inputs: SmallVec<[&Tensor; 8]> = (0..n).map(|i| saved.get(i)).collect::<Result<_>>()?;
        // The usual case: the loss itself is differentiated, once. What the forward pass kept is the answer, without a pass over
        // it. (On a GPU reading the number back would wait for the device.)
        let kept = |i: usize| if want[i] { saved.maybe(n + 1 + i) } else { None };
        let complete = (0..2).all(|i| !want[i] || kept(i).is_some());
        if complete && bar.device() == Device::Cpu && !bar.is_tracked() && !inputs.iter().any(|x| x.is_tracked()) && bar.item()? == 1.0 {
            let mut bars: InputCotangents = (0..2).map(|i| kept(i).cloned()).collect();
            bars.resize(want.len(), None);
            return Ok(bars);
        }
        inputs.push(bar);
        inputs.push(saved.get(n)?);
        inputs.extend((0..2).filter_map(|i| saved.maybe(n + 1 + i)));
        let op = LinearCrossEntropyVjp { of: self.clone(), stats: true, want: [want[0], want[1]] };
        let mut found = apply(op, &inputs)?.into_iter();
        let mut bars: InputCotangents = want[..2].iter().map(|&w| if w { found.next() } else { None }).collect();
        bars.resize(want.len(), None);
        Ok(bars)
    }
}

impl Describe for LinearCrossEntropyVjp {
    const NAME: &'static str = "linear_cross_entropy_vjp";
    const MATH: Math = Math {
        forward: "l̄ by the rule of cross_entropy on logits computed again, x̄ = l̄ w, w̄ = l̄ᵀ x; or what the forward pass kept, times ȳ",
        vjp: "through the composition cross_entropy(x wᵀ), whose logits exist as a whole",
        kinks: "as cross_entropy",
        cost: "6·rows·width·classes arithmetic, or one pass over what was kept",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (w, width, classes) = (&x[1], x[1].shape[1], x[1].shape[0]);
        let n = x[2].data.len();
        let dot = |i: usize, c: usize| S::sum(&(0..width).map(|k| x[0].data[i * width + k] * w.data[c * width + k]).collect::<Vec<_>>());
        let logits =
            Nd::new(x[0].extents_with(x[0].shape.rank() - 1, classes), (0..n * classes).map(|j| dot(j / classes, j % classes)).collect());
        let mut operands = vec![logits];
        // Targets, class weights if there are any, ȳ.
        operands.extend(x[2..4 + usize::from(self.of.of.weighted)].iter().cloned());
        let bars = CrossEntropyVjp { of: self.of.of.clone(), stats: false }.define(&operands).swap_remove(0).data;
        let by_x = (0..n * width).map(|j| {
            let (i, k) = (j / width, j % width);
            S::sum(&(0..classes).map(|c| bars[i * classes + c] * w.data[c * width + k]).collect::<Vec<_>>())
        });
        let by_w = (0..classes * width).map(|j| {
            let (c, k) = (j / width, j % width);
            S::sum(&(0..n).map(|i| bars[i * classes + c] * x[0].data[i * width + k]).collect::<Vec<_>>())
        });
        let all = [Nd::new(&x[0].shape, by_x.collect()), Nd::new(&w.shape, by_w.collect())];
        all.into_iter().zip(self.want).filter(|(_, w)| *w).map(|(y, _)| y).collect()
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        super::linear_cross_entropy_samples::vjp_samples(g)
    }
}

impl Op for LinearCrossEntropyVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let logits = self.of.check(x)?;
        let g = &x[self.of.g()];
        let want = self.of.of.reduction.shape(&x[2].shape);
        if g.shape != want || g.dtype != logits.dtype {
            bail!(shape, "the cotangent must be {want} of {}: found {} of {}", logits.dtype, g.shape, g.dtype);
        }
        Ok((0..2).filter(|&i| self.want[i]).map(|i| x[i].clone()).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (of, at) = (&self.of.of, self.of.g());
        let kept = self.kept(at, x[0].dtype());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let g = x[at].contiguous::<T>()?;
            let mut outputs = y.iter_mut();
            let mut todo = [None, None];
            for i in (0..2).filter(|&i| self.want[i]) {
                let Some(y) = outputs.next() else { bail!(argument, "an output is missing") };
                match kept[i] {
                    Some(k) => {
                        let by = g[0].load();
                        map::unary(&x[k], y.slice::<T>(), #[inline(always)] move |v: T| T::store(v.load() * by))?;
                    }
                    None => todo[i] = Some(y),
                }
            }
            if todo.iter().all(Option::is_none) {
                return Ok(());
            }
            let (xs, ws) = (Wide::<T>::new(&x[0])?, Wide::<T>::new(&x[1])?);
            let weights = if of.weighted { Some(Wide::<T>::new(&x[3])?) } else { None };
            let head = Head::new(&self.of, &xs, &ws, &x[2], weights.as_ref(), x[1].shape())?;
            let n = head.targets.of.len();
            let mut scratch = Buffer::alloc(A::DTYPE, 3 * n)?;
            let (stats, losses) = scratch.slice_mut::<A>().split_at_mut(2 * n);
            if self.stats {
                stats.copy_from_slice(&x[at + 1].contiguous::<A>()?);
            }
            let scale = <A as Real>::from_f64(of.reduction.scale(head.divisor));
            let each = of.reduction == Reduction::None;
            let r = |i: usize| g[if each { i } else { 0 }].load() * scale;
            let [dx, dw] = todo;
            let (mut dx, mut dw) = (dx.map(|y| Rounded::<T>::new(y.slice::<T>())).transpose()?, dw.map(|y| Rounded::<T>::new(y.slice::<T>())).transpose()?);
            head.run(self.stats, stats, losses, Some(&r), dx.as_mut().map(Rounded::slice), dw.as_mut().map(Rounded::slice))?;
            [dx, dw].into_iter().flatten().for_each(Rounded::finish);
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (of, at) = (&self.of.of, self.of.g());
        let kept = self.kept(at, x[0].dtype());
        let mut outputs = y.iter_mut();
        let mut todo = [None, None];
        for i in (0..2).filter(|&i| self.want[i]) {
            let Some(y) = outputs.next() else { bail!(argument, "an output is missing") };
            match kept[i] {
                Some(k) => linear_loss::scaled(&x[k], &x[at], y)?,
                None => todo[i] = Some(y),
            }
        }
        if todo.iter().all(Option::is_none) {
            return Ok(());
        }
        let o = of.options(x[1].shape()[0]);
        let weights = cuda::loss::weights(if of.weighted { x.get(3) } else { None })?;
        let weights = weights.as_ref().map(cuda::Dense::src);
        // As in cross_entropy: the forward pass has checked the targets.
        let targets = cuda::loss::Targets::read(&x[2], o.classes, of.ignore_index, weights.as_ref(), !self.stats)?;
        let head = linear_loss::Head {
            x: &x[0],
            w: &x[1],
            targets: &targets,
            weights: weights.as_ref(),
            options: o,
            rows: x[2].numel(),
            chunk: self.of.rows,
        };
        head.backward(&x[at], if self.stats { x.get(at + 1) } else { None }, todo)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::list((0..=self.of.g()).map(|i| Some(x[i].clone())))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let at = self.of.g();
        refuse_weights(self.of.of.weighted && want[3])?;
        let mut k = 0..;
        let bars = self.want.map(|w| if w { k.next().and_then(|k| y_bar.get(k)).cloned() } else { None });
        let (targets, weights) = (saved.get(2)?.clone(), if self.of.of.weighted { Some(saved.get(3)?.clone()) } else { None });
        let inputs = [saved.get(0)?.clone(), saved.get(1)?.clone()];
        let of = self.of.clone();
        let found = differentiate_vjp(&inputs, std::slice::from_ref(saved.get(at)?), &bars, &[want[0], want[1], want[at]], move |x| {
            Ok(Outputs::from_iter([of.composed(&x[0], &x[1], &targets, weights.as_ref())?]))
        })?;
        let mut out = InputCotangents::from_elem(None, want.len());
        for (i, bar) in [0, 1, at].into_iter().zip(found) {
            out[i] = bar;
        }
        Ok(out)
    }
}

impl LinearCrossEntropyVjp {
    /// Positions of what the forward pass kept.
    fn kept(&self, g: usize, dtype: DType) -> [Option<usize>; 2] {
        let mut next = g + 2..;
        self.of.kept(dtype).map(|k| if k && self.stats { next.next() } else { None })
    }
}

/// An operand in the accumulator's type.
struct Wide<'a, T: Compute> {
    dense: Contiguous<'a, T>,
    wide: Option<Buffer>,
}

impl<'a, T: Compute> Wide<'a, T> {
    fn new(x: &cpu::In<'a>) -> Result<Self> {
        let dense = x.contiguous::<T>()?;
        let wide = if T::as_acc(&dense).is_none() { Some(widened::<T>(x)?) } else { None };
        Ok(Wide { dense, wide })
    }

    fn slice(&self) -> &[T::Acc] {
        match &self.wide {
            Some(w) => w.slice(),
            None => T::as_acc(&self.dense).unwrap_or_default(),
        }
    }
}

/// A result in the accumulator's type: its own memory, or memory that is rounded at the end.
struct Rounded<'a, T: Compute> {
    y: &'a mut [T],
    wide: Option<Buffer>,
}

impl<'a, T: Compute> Rounded<'a, T> {
    fn new(y: &'a mut [T]) -> Result<Self> {
        let wide = if T::as_acc_mut(y).is_none() { Some(Buffer::alloc(T::Acc::DTYPE, y.len())?) } else { None };
        Ok(Rounded { y, wide })
    }

    fn slice(&mut self) -> &mut [T::Acc] {
        match &mut self.wide {
            Some(w) => w.slice_mut(),
            None => T::as_acc_mut(self.y).unwrap_or_default(),
        }
    }

    fn finish(self) {
        if let Some(w) = &self.wide {
            self.y.iter_mut().zip(w.slice::<T::Acc>()).for_each(|(y, &v)| *y = T::store(v));
        }
    }
}

/// The operands of the CPU kernels.
struct Head<'a, A: Compute> {
    of: &'a CrossEntropyLoss,
    x: &'a [A],
    w: &'a [A],
    targets: Classes,
    divisor: f64,
    weights: Option<&'a [A]>,
    sum_w: A,
    classes: usize,
    width: usize,
    rows: usize,
}

impl<'a, A: GemmFloat + Compute<Acc = A> + Real> Head<'a, A> {
    fn new<T: Compute<Acc = A>>(
        op: &'a LinearCrossEntropy,
        x: &'a Wide<'_, T>,
        w: &'a Wide<'_, T>,
        targets: &cpu::In<'_>,
        weights: Option<&'a Wide<'_, T>>,
        shape: &Shape,
    ) -> Result<Self> {
        let (classes, width) = (shape[0], shape[1]);
        let targets = Classes::read(targets, classes, op.of.ignore_index)?;
        let weights = weights.map(Wide::slice);
        let divisor = targets.total(weights.map(|w| |t: usize| Real::to_f64(w[t])))?;
        let sum_w = sum_weights::<A>(weights, classes);
        Ok(Head { of: &op.of, x: x.slice(), w: w.slice(), targets, divisor, weights, sum_w, classes, width, rows: op.rows })
    }

    /// Statistics (unless `given`) and loss of every row; with `r`, what the loss of a row is multiplied with, the cotangents of x and
    /// w as far as there is a place for them.
    fn run(
        &self,
        given: bool,
        stats: &mut [A],
        losses: &mut [A],
        r: Option<&(dyn Fn(usize) -> A + Sync)>,
        mut dx: Option<&mut [A]>,
        mut dw: Option<&mut [A]>,
    ) -> Result<()> {
        let (n, classes, width) = (losses.len(), self.classes, self.width);
        if n == 0 || classes == 0 {
            // Every target is ignored where there is no class.
            for d in [Some(stats), Some(losses), dx, dw].into_iter().flatten() {
                d.fill(A::ZERO);
            }
            return Ok(());
        }
        let rows = self.rows.clamp(1, n);
        let mut logits = Buffer::alloc(A::DTYPE, rows * classes)?;
        let w = Mat::row_major(self.w, classes, width);
        for first in (0..n).step_by(rows) {
            let of = first..(first + rows).min(n);
            let x = Mat::row_major(&self.x[of.start * width..of.end * width], of.len(), width);
            let logits = &mut logits.slice_mut::<A>()[..of.len() * classes];
            gemm(A::ONE, x, w.transposed(), A::ZERO, logits, classes)?;
            self.piece(&of, given, logits, &mut stats[2 * of.start..2 * of.end], &mut losses[of.clone()], r);
            if r.is_none() {
                continue;
            }
            let bars = Mat::row_major(logits, of.len(), classes);
            if let Some(dx) = &mut dx {
                gemm(A::ONE, bars, w, A::ZERO, &mut dx[of.start * width..of.end * width], width)?;
            }
            if let Some(dw) = &mut dw {
                // Pieces are added in order, each by the product itself.
                gemm(A::ONE, bars.transposed(), x, if first == 0 { A::ZERO } else { A::ONE }, dw, width)?;
            }
        }
        Ok(())
    }

    /// Losses of some rows, whose logits become their cotangents if there is `r`.
    fn piece(
        &self,
        of: &Range<usize>,
        given: bool,
        logits: &mut [A],
        stats: &mut [A],
        losses: &mut [A],
        r: Option<&(dyn Fn(usize) -> A + Sync)>,
    ) {
        let classes = self.classes;
        let group = rows::rows_per_task(classes);
        let task = |(g, ((logits, stats), losses)): (usize, ((&mut [A], &mut [A]), &mut [A]))| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (k, ((row, s), loss)) in logits.chunks_exact_mut(classes).zip(stats.chunks_exact_mut(2)).zip(losses).enumerate() {
                        let i = of.start + g * group + k;
                        let target = self.targets.of[i];
                        if !given {
                            [s[0], s[1]] = if target.is_some() { row_stats(row).into() } else { [A::NEG_INFINITY, A::ZERO] };
                        }
                        let Some(t) = target.filter(|_| s[0] != A::NEG_INFINITY) else {
                            *loss = A::ZERO;
                            row.fill(A::ZERO);
                            continue;
                        };
                        *loss = if given { A::ZERO } else { self.of.row_loss(row, t, self.weights, self.sum_w, s[0], s[1]) };
                        if let Some(r) = r {
                            self.slopes(row, t, [s[0], s[1], r(i)]);
                        }
                    }
                },
            );
        };
        let tasks = logits.par_chunks_mut(group * classes).zip(stats.par_chunks_mut(2 * group)).zip(losses.par_chunks_mut(group));
        let small = if of.len() * classes < cpu::SERIAL { usize::MAX } else { 1 };
        tasks.enumerate().with_min_len(small).for_each(task);
    }

    /// Turns a row of logits into their cotangents.
    #[inline(always)]
    fn slopes(&self, row: &mut [A], t: usize, [m, sum, r]: [A; 3]) {
        let w_y = self.weights.map_or(A::ONE, |w| w[t]);
        let RowSlopes { slope, shift, target } = self.of.row_slopes(row[t], w_y, self.sum_w, row.len(), [m, sum, r]);
        match self.weights {
            Some(w) if self.of.label_smoothing != 0.0 => {
                for (v, &w) in row.iter_mut().zip(w) {
                    *v = (*v - m).exp().mul_add(slope, -(shift * w));
                }
            }
            _ => {
                for v in row.iter_mut() {
                    *v = (*v - m).exp().mul_add(slope, -shift);
                }
            }
        }
        row[t] = target;
    }
}

impl Tensor {
    /// Cross-entropy of the logits `self · weightᵀ` with integer targets: what a language model's head and its loss compute, without
    /// ever holding all logits.
    ///
    /// ```
    /// use cotangent::{F64, Key, Tensor, grad, ops::CrossEntropy};
    /// let hidden = Tensor::randn([5, 3], F64, Key::new(1))?;
    /// let weight = Tensor::randn([7, 3], F64, Key::new(2))?;
    /// let targets = Tensor::from_slice(&[0i64, 6, -100, 2, 3], [5])?;
    /// let fused = |w: &Tensor| hidden.linear_cross_entropy(w, &targets, &CrossEntropy::default());
    /// let composed = |w: &Tensor| hidden.linear(w, None)?.cross_entropy(&targets);
    /// assert!((fused(&weight)?.item()? - composed(&weight)?.item()?).abs() < 1e-12);
    /// let difference = grad(&weight, fused)?.sub(&grad(&weight, composed)?.into_inner())?;
    /// assert!(difference.abs()?.max(..)?.item()? < 1e-12);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// That of the composition. For f32 and f64 with a mean or sum, the forward pass also computes the wanted gradients, from each
    /// piece of logits while it is there, and the derivative multiplies them by the loss's cotangent (on the CPU where that is not 1): three
    /// products in all, as without fusing. Otherwise the logits are computed again, piece by piece: four products. Second derivatives build all logits.
    ///
    /// # Shapes
    /// `self` `[.., width]`, `weight` `[classes, width]`, targets `[..]`.
    ///
    /// # Numerics
    /// Logits are f32 for half types on the CPU, and rounded to the type on a GPU, as matrix products write them there. The
    /// weight's gradient is added up over the pieces in order, in f32.
    ///
    /// # Cost
    /// At a time there are `2²⁴ / classes` rows of logits, at least 128: 64 MiB of f32 up to 131072 classes, 128 MiB at 262144. The
    /// number follows from the sizes alone, so results do not depend on the number of threads. Between the passes it holds the
    /// gradients that it kept, which the sweep would allocate anyway.
    ///
    /// # Errors
    /// Shape error when the operands do not fit; otherwise as [`Tensor::cross_entropy_with`].
    #[track_caller]
    pub fn linear_cross_entropy(&self, weight: &Tensor, targets: &Tensor, options: &CrossEntropy) -> Result<Tensor> {
        let of = options.op();
        let classes = weight.shape().first().copied().unwrap_or(0);
        let rows = (LOGITS / classes.max(1)).max(FEWEST);
        let keep = [self, weight].map(Tensor::is_tracked);
        let x: SmallVec<[&Tensor; 4]> = [Some(self), Some(weight), Some(targets), options.weights.as_ref()].into_iter().flatten().collect();
        apply1(LinearCrossEntropy { of, rows, keep }, &x)
    }
}
