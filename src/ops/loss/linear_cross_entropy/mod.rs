//! Cross-entropy of a linear layer's logits, which never exist as a whole.

mod head;
mod samples;

use super::cross_entropy::{CrossEntropyLoss, CrossEntropyOptions, CrossEntropyVjp, refuse_weights};
use super::reduction::Reduction;
use crate::backend::Device;
use crate::backend::cpu::{self, Buffer, Compute, Real, map};
use crate::backend::cuda;
use crate::dtype::{DType, Element, with_float};
use crate::error::{Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply, apply1, expect};
use crate::ops::differentiate_vjp;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use head::{Head, Rounded, Wide};
use smallvec::{SmallVec, smallvec};

/// Logits that exist at a time: 64 MiB of f32. Products of fewer rows than [`FEWEST`] would spend their time on the weight.
const LOGITS: usize = 1 << 24;

/// Fewest rows of logits at a time.
const FEWEST: usize = 128;

/// Cross-entropy of `x wᵀ + b`; see [`Tensor::linear_cross_entropy`]. Inputs: x `[.., width]`, w `[classes, width]`, targets, then the
/// class weights if there are any, then b `[classes]` if there is one.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropy {
    /// The loss of the logits.
    pub of: CrossEntropyLoss,
    /// Rows of logits that exist at a time.
    pub rows: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether the cotangents of x, of w and of b are computed beside the loss, instead of from logits that are computed again. Only with a
    /// reduction, whose scalar cotangent then multiplies them, and not for half types, where cotangents of 1/rows would vanish.
    pub keep: [bool; 3],
}

/// The derivative kernel of [`LinearCrossEntropy`]. Inputs: those of the op, ȳ, and what the forward pass saved: statistics if
/// `stats`, and then what it kept. Outputs: those of x̄, w̄ and b̄ that `want` names.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropyVjp {
    /// The op it belongs to.
    pub of: LinearCrossEntropy,
    /// Whether every row's maximum and sum of exponentials are given.
    pub stats: bool,
    /// Which cotangents to compute: x, w, b.
    pub want: [bool; 3],
}

impl LinearCrossEntropy {
    /// The logits' spec, or why x and w do not fit.
    fn logits(&self, x: &[Spec]) -> Result<Spec> {
        let dtype = expect::same_float(&x[..2])?;
        let (xs, ws) = (&x[0].shape, &x[1].shape);
        let Some((&k, lead)) = xs.split_last() else {
            bail!(shape, "x {xs} has no axis to map; expected x [.., in], weight [classes, in]")
        };
        if ws.rank() != 2 {
            let axes = ws.rank();
            let hint = match axes {
                3.. => {
                    "; classes are one axis; for several losses of a row: \
                    x.linear(&weight.flatten(0, -2)?, None)?, reshaped so that classes are the last axis, and its cross_entropy"
                }
                _ => "",
            };
            bail!(shape, "weight {ws} has {axes} axes; expected [classes, {k}], one row for each class, beside x {xs}{hint}");
        }
        if ws[1] != k {
            bail!(shape, "inner extents differ: x {xs}, weight {ws}; expected x [.., in], weight [classes, in]");
        }
        if self.bias {
            let b = &x[self.at()[2]];
            expect::same_dtype(&[x[0].clone(), b.clone()])?;
            if b.shape != [ws[0]] {
                bail!(shape, "bias {} does not fit weight {ws}; expected [{}]", b.shape, ws[0]);
            }
        }
        Ok(Spec { shape: lead.iter().copied().chain([ws[0]]).collect(), dtype })
    }

    fn check(&self, x: &[Spec]) -> Result<Spec> {
        let logits = self.logits(x)?;
        let operands: SmallVec<[Spec; 3]> = std::iter::once(&logits).chain(&x[2..3 + usize::from(self.of.weighted)]).cloned().collect();
        self.of.check(&operands)?;
        Ok(logits)
    }

    /// The composition that it replaces.
    fn composed(&self, [x, w]: [&Tensor; 2], b: Option<&Tensor>, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let logits = x.linear(w, b)?;
        let weights = weights.map(|c| c.cast(logits.dtype())).transpose()?;
        let inputs: SmallVec<[&Tensor; 3]> = [Some(&logits), Some(targets), weights.as_ref()].into_iter().flatten().collect();
        apply1(self.of.clone(), &inputs)
    }

    /// What is kept for operands of this type.
    fn kept(&self, dtype: DType) -> [bool; 3] {
        let possible = self.of.reduction != Reduction::None && !dtype.is_half();
        let [x, w, b] = self.keep.map(|k| k && possible);
        [x, w, b && self.bias]
    }

    /// Positions of x, w and b among the inputs.
    fn at(&self) -> [usize; 3] {
        [0, 1, 3 + usize::from(self.of.weighted)]
    }

    /// How many of them there are.
    fn operands(&self) -> usize {
        2 + usize::from(self.bias)
    }

    /// Position of ȳ among the inputs of the derivative.
    fn g(&self) -> usize {
        3 + usize::from(self.of.weighted) + usize::from(self.bias)
    }
}

impl Describe for LinearCrossEntropy {
    const NAME: &'static str = "linear_cross_entropy";
    const MATH: Math = Math {
        forward: "cross_entropy(x wᵀ + b, targets), some rows of logits at a time",
        vjp: "with l̄ the logits' cotangent by the rule of cross_entropy: x̄ = l̄ w, w̄ = l̄ᵀ x, b̄ = Σᵢ l̄ᵢ, summed over the pieces in order",
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
                let mut terms: Vec<S> = (0..width).map(|k| x[0].data[i * width + k] * w.data[c * width + k]).collect();
                // Behind x, w, targets, and class weights if there are any.
                terms.extend(self.bias.then(|| x[if self.of.weighted { 4 } else { 3 }].data[c]));
                data.push(S::sum(&terms));
            }
        }
        let mut operands = vec![Nd::new(x[0].extents_with(lead, classes), data)];
        operands.extend(x[2..].iter().take(if self.of.weighted { 2 } else { 1 }).cloned());
        self.of.define(&operands)
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::samples(g)
    }
}

impl Op for LinearCrossEntropy {
    /// Statistics of every row, and what is kept of x̄, w̄ and b̄ (else empty).
    const AUX: usize = 4;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let logits = self.check(x)?;
        let stats = Spec::new([x[2].shape.checked_numel()?, 2], if logits.dtype == DType::F64 { DType::F64 } else { DType::F32 });
        let keep = self.kept(logits.dtype);
        let at = self.at();
        let kept = |i: usize| if keep[i] { x[at[i]].clone() } else { Spec::new([0], logits.dtype) };
        Ok(smallvec![Spec::new(self.of.reduction.shape(&x[2].shape), logits.dtype), stats, kept(0), kept(1), kept(2)])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let [y, stats, dx, dw, db] = y else { bail!(argument, "linear_cross_entropy has five outputs") };
        let keep = self.kept(x[0].dtype());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let (xs, ws) = (Wide::<T>::new(&x[0])?, Wide::<T>::new(&x[1])?);
            let weights = if self.of.weighted { Some(Wide::<T>::new(&x[3])?) } else { None };
            let bias = if self.bias { Some(Wide::<T>::new(&x[self.at()[2]])?) } else { None };
            let head = Head::new(self, &xs, &ws, &x[2], [weights.as_ref(), bias.as_ref()], x[1].shape())?;
            let mut losses = Buffer::alloc(A::DTYPE, head.targets.of.len())?;
            let losses = losses.slice_mut::<A>();
            let kept = [(dx, keep[0]), (dw, keep[1]), (db, keep[2])].map(|(d, keep)| if keep { T::as_acc_mut(d.slice::<T>()) } else { None });
            let scale = <A as Real>::from_f64(self.of.reduction.scale(head.divisor));
            let r = |_| scale;
            head.run(false, stats.slice::<A>(), losses, (keep != [false; 3]).then_some(&r), kept)?;
            self.of.reduction.store(losses, head.divisor, y.slice::<T>());
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, stats, dx, dw, db] = y else { bail!(argument, "linear_cross_entropy has five outputs") };
        let o = self.of.options(x[1].shape()[0]);
        let weights = cuda::loss::weights(if self.of.weighted { x.get(3) } else { None })?;
        let weights = weights.as_ref().map(cuda::Dense::src);
        let targets = cuda::loss::Targets::read(&x[2], o.classes, self.of.ignore_index, weights.as_ref(), true)?;
        let head = cuda::loss::linear::Head {
            x: &x[0],
            w: &x[1],
            bias: if self.bias { x.get(self.at()[2]) } else { None },
            targets: &targets,
            weights: weights.as_ref(),
            options: o,
            rows: x[2].numel(),
            chunk: self.rows,
        };
        let keep = self.kept(x[0].dtype());
        head.forward(y, stats, [keep[0].then_some(dx), keep[1].then_some(dw), keep[2].then_some(db)])
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        let keep = self.kept(x[0].dtype());
        let kept = |i: usize| if keep[i] { y.get(2 + i).cloned() } else { None };
        let inputs = x.iter().map(|&t| Some(t.clone()));
        Saved::list(inputs.chain([y.get(1).cloned(), kept(0), kept(1), kept(2)]))
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.of.weighted && want[3])?;
        let (n, bar) = (self.g(), y_bar.only()?);
        let mut inputs: SmallVec<[&Tensor; 8]> = (0..n).map(|i| saved.get(i)).collect::<Result<_>>()?;
        // The usual case: the loss itself is differentiated, once. What the forward pass kept is the answer, without a pass over
        // it. (On a GPU reading the number back would wait for the device.)
        let (at, operands) = (self.at(), self.operands());
        let kept = |i: usize| if want[at[i]] { saved.maybe(n + 1 + i) } else { None };
        let complete = (0..operands).all(|i| !want[at[i]] || kept(i).is_some());
        let mut bars = InputCotangents::from_elem(None, want.len());
        if complete && bar.device() == Device::Cpu && !bar.is_tracked() && !inputs.iter().any(|x| x.is_tracked()) && bar.item()? == 1.0 {
            for i in 0..operands {
                bars[at[i]] = kept(i).cloned();
            }
            return Ok(bars);
        }
        inputs.push(bar);
        inputs.push(saved.get(n)?);
        inputs.extend((0..3).filter_map(|i| saved.maybe(n + 1 + i)));
        let wanted = [want[0], want[1], self.bias && want[at[2]]];
        let found = apply(LinearCrossEntropyVjp { of: self.clone(), stats: true, want: wanted }, &inputs)?;
        for (i, bar) in (0..3).filter(|&i| wanted[i]).zip(found) {
            bars[at[i]] = Some(bar);
        }
        Ok(bars)
    }
}

impl Describe for LinearCrossEntropyVjp {
    const NAME: &'static str = "linear_cross_entropy_vjp";
    const MATH: Math = Math {
        forward: "l̄ by the rule of cross_entropy on logits computed again, x̄ = l̄ w, w̄ = l̄ᵀ x, b̄ = Σᵢ l̄ᵢ; or what the forward pass kept, times ȳ",
        vjp: "through the composition cross_entropy(x wᵀ + b), whose logits exist as a whole",
        kinks: "as cross_entropy",
        cost: "6·rows·width·classes arithmetic, or one pass over what was kept",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (w, width, classes) = (&x[1], x[1].shape[1], x[1].shape[0]);
        let n = x[2].data.len();
        // Behind x, w and targets: class weights if there are any, b if there is one, ȳ.
        let weighted = usize::from(self.of.of.weighted);
        let bias = self.of.bias.then(|| &x[3 + weighted]);
        let dot = |i: usize, c: usize| {
            let mut terms: Vec<S> = (0..width).map(|k| x[0].data[i * width + k] * w.data[c * width + k]).collect();
            terms.extend(bias.map(|b| b.data[c]));
            S::sum(&terms)
        };
        let logits =
            Nd::new(x[0].extents_with(x[0].shape.rank() - 1, classes), (0..n * classes).map(|j| dot(j / classes, j % classes)).collect());
        let mut operands = vec![logits];
        operands.extend(x[2..3 + weighted].iter().cloned());
        operands.push(x[if bias.is_some() { 4 + weighted } else { 3 + weighted }].clone());
        let bars = CrossEntropyVjp { of: self.of.of.clone(), stats: false }.define(&operands).swap_remove(0).data;
        let by_x = (0..n * width).map(|j| {
            let (i, k) = (j / width, j % width);
            S::sum(&(0..classes).map(|c| bars[i * classes + c] * w.data[c * width + k]).collect::<Vec<_>>())
        });
        let by_w = (0..classes * width).map(|j| {
            let (c, k) = (j / width, j % width);
            S::sum(&(0..n).map(|i| bars[i * classes + c] * x[0].data[i * width + k]).collect::<Vec<_>>())
        });
        let by_b = (0..classes).map(|c| S::sum(&(0..n).map(|i| bars[i * classes + c]).collect::<Vec<_>>()));
        let all = [Nd::new(&x[0].shape, by_x.collect()), Nd::new(&w.shape, by_w.collect()), Nd::new([classes], by_b.collect())];
        all.into_iter().zip(self.want).filter(|(_, w)| *w).map(|(y, _)| y).collect()
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        samples::vjp_samples(g)
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
        let at = self.of.at();
        Ok((0..3).filter(|&i| self.want[i]).map(|i| x[at[i]].clone()).collect())
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (of, at) = (&self.of.of, self.of.g());
        let kept = self.kept(at, x[0].dtype());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let g = x[at].contiguous::<T>()?;
            let mut outputs = y.iter_mut();
            let mut todo = [None, None, None];
            for i in (0..3).filter(|&i| self.want[i]) {
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
            let bias = if self.of.bias { Some(Wide::<T>::new(&x[self.of.at()[2]])?) } else { None };
            let head = Head::new(&self.of, &xs, &ws, &x[2], [weights.as_ref(), bias.as_ref()], x[1].shape())?;
            let n = head.targets.of.len();
            let mut scratch = Buffer::alloc(A::DTYPE, 3 * n)?;
            let (stats, losses) = scratch.slice_mut::<A>().split_at_mut(2 * n);
            if self.stats {
                stats.copy_from_slice(&x[at + 1].contiguous::<A>()?);
            }
            let scale = <A as Real>::from_f64(of.reduction.scale(head.divisor));
            let each = of.reduction == Reduction::None;
            let r = |i: usize| g[if each { i } else { 0 }].load() * scale;
            let [dx, dw, db] = todo;
            let mut places = [Rounded::<T>::of(dx)?, Rounded::of(dw)?, Rounded::of(db)?];
            head.run(self.stats, stats, losses, Some(&r), places.each_mut().map(|p| p.as_mut().map(Rounded::slice)))?;
            places.into_iter().flatten().for_each(Rounded::finish);
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (of, at) = (&self.of.of, self.of.g());
        let kept = self.kept(at, x[0].dtype());
        let mut outputs = y.iter_mut();
        let mut todo = [None, None, None];
        for i in (0..3).filter(|&i| self.want[i]) {
            let Some(y) = outputs.next() else { bail!(argument, "an output is missing") };
            match kept[i] {
                Some(k) => cuda::loss::linear::scaled(&x[k], &x[at], y)?,
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
        let head = cuda::loss::linear::Head {
            x: &x[0],
            w: &x[1],
            bias: if self.of.bias { x.get(self.of.at()[2]) } else { None },
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
        let of = self.of.clone();
        let mut places: SmallVec<[usize; 4]> = of.at()[..of.operands()].iter().copied().collect();
        let inputs: SmallVec<[Tensor; 3]> = places.iter().map(|&i| saved.get(i).cloned()).collect::<Result<_>>()?;
        places.push(at);
        let wanted: SmallVec<[bool; 4]> = places.iter().map(|&i| want[i]).collect();
        let found = differentiate_vjp(&inputs, std::slice::from_ref(saved.get(at)?), &bars[..of.operands()], &wanted, move |x| {
            Ok(Outputs::from_iter([of.composed([&x[0], &x[1]], x.get(2), &targets, weights.as_ref())?]))
        })?;
        let mut out = InputCotangents::from_elem(None, want.len());
        for (i, bar) in places.into_iter().zip(found) {
            out[i] = bar;
        }
        Ok(out)
    }
}

impl LinearCrossEntropyVjp {
    /// Positions of what the forward pass kept.
    fn kept(&self, g: usize, dtype: DType) -> [Option<usize>; 3] {
        let mut next = g + 2..;
        self.of.kept(dtype).map(|k| if k && self.stats { next.next() } else { None })
    }
}

impl Tensor {
    /// Cross-entropy of the logits `self · weightᵀ + bias` with integer targets: what a language model's head and its loss compute,
    /// without ever holding all logits.
    ///
    /// ```
    /// use cotangent::{F64, Key, Tensor, grad, ops::CrossEntropyOptions};
    /// let hidden = Tensor::randn([5, 3], F64, Key::new(1))?;
    /// let weight = Tensor::randn([7, 3], F64, Key::new(2))?;
    /// let targets = Tensor::from_slice(&[0i64, 6, -100, 2, 3], [5])?;
    /// let fused = |w: &Tensor| hidden.linear_cross_entropy(w, None, &targets, &CrossEntropyOptions::default());
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
    /// `self` `[.., width]` with any leading axes, `weight` `[classes, width]`, `bias` `[classes]`, targets `[..]`. Float targets
    /// `[.., classes]` are probabilities, as in [`Tensor::cross_entropy`]: they are as large as the logits, which are then computed as a
    /// whole, by [`Tensor::linear`].
    ///
    /// # Numerics
    /// Logits are f32 for half types on the CPU, and rounded to the type on a GPU, as matrix products write them there. The
    /// weight's gradient is added up over the pieces in order, in f32.
    ///
    /// # Cost
    /// At a time there are `2²⁴ / classes` rows of logits, at least 128: 64 MiB of f32 up to 131072 classes, 128 MiB at 262144. The
    /// number follows from the sizes alone, so results do not depend on the number of threads. Between the passes it holds the
    /// gradients that it kept, which the sweep would allocate anyway. A bias costs one more pass over each piece, and one for its gradient.
    ///
    /// # Errors
    /// Shape error when the operands do not fit, also for a weight that has not two axes; otherwise as [`Tensor::cross_entropy_with`].
    #[track_caller]
    pub fn linear_cross_entropy(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        targets: &Tensor,
        options: &CrossEntropyOptions,
    ) -> Result<Tensor> {
        if targets.dtype().is_float() && targets.rank() == self.rank() {
            let logits = self.linear(weight, bias).map_err(|e| e.rename_op(LinearCrossEntropy::NAME))?;
            return logits.cross_entropy_with(targets, options).map_err(|e| e.rename_op(LinearCrossEntropy::NAME));
        }
        let of = options.op();
        let classes = weight.shape().first().copied().unwrap_or(0);
        let rows = (LOGITS / classes.max(1)).max(FEWEST);
        let keep = [Some(self), Some(weight), bias].map(|x| x.is_some_and(Tensor::is_tracked));
        let x: SmallVec<[&Tensor; 5]> =
            [Some(self), Some(weight), Some(targets), options.weights.as_ref(), bias].into_iter().flatten().collect();
        apply1(LinearCrossEntropy { of, rows, bias: bias.is_some(), keep }, &x)
    }
}
