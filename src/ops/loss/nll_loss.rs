//! Negative log-likelihood of class targets.

use super::cross_entropy::refuse_weights;
use super::reduction::{Classes, Reduction, check_classes, define_targets, define_weight};
use crate::backend::cpu::{self, Buffer, Compute, Real};
use crate::backend::cuda;
use crate::dtype::{DType, Element, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Options of [`Tensor::nll_loss_with`].
#[derive(Clone, Debug)]
pub struct NllLossOptions {
    /// Targets of this value do not count: loss 0, gradient 0. By default −100, as in PyTorch.
    pub ignore_index: Option<i64>,
    /// What becomes of the losses.
    pub reduction: Reduction,
    /// One weight per class. A constant: it gets no gradient.
    pub weights: Option<Tensor>,
}

impl Default for NllLossOptions {
    fn default() -> Self {
        NllLossOptions { ignore_index: Some(-100), reduction: Reduction::Mean, weights: None }
    }
}

/// Negative log-likelihood; see [`Tensor::nll_loss`]. Inputs: log-probabilities, targets, then the class weights if any.
#[derive(Clone, Debug)]
pub struct NllLoss {
    /// Targets of this value do not count.
    pub ignore_index: Option<i64>,
    /// What becomes of the losses.
    pub reduction: Reduction,
    /// Whether class weights are given.
    pub weighted: bool,
}

/// The derivative kernel of [`NllLoss`], its transpose. Inputs: targets, the weights if there are any, ȳ.
#[derive(Clone, Debug)]
pub struct NllLossVjp {
    /// The op it belongs to.
    pub of: NllLoss,
    /// Number of classes.
    pub classes: usize,
}

impl NllLoss {
    fn options(&self, classes: usize) -> cuda::loss::Options {
        let (each, mean) = (self.reduction == Reduction::None, self.reduction == Reduction::Mean);
        cuda::loss::Options { classes, smoothing: 0.0, z: 0.0, each, mean }
    }
}

impl Describe for NllLoss {
    const NAME: &'static str = "nll_loss";
    const MATH: Math = Math {
        forward: "lossᵢ = −w_y xᵢ,y with y = targetᵢ; 0 for ignored targets; then mean (Σ loss / Σ w_y), sum or none",
        vjp: "x̄ᵢⱼ = −w_y l̄ᵢ [j = yᵢ], where l̄ is ȳ, divided by Σ w_y for the mean",
        kinks: "linear; all targets ignored: the mean is 0 with zero gradient",
        cost: "reads one number per row; the derivative writes x̄; saves targets and weights",
        references: "torch.nn.functional.nll_loss",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let classes = x[0].shape[x[0].shape.rank() - 1];
        let targets = define_targets(&x[1], self.ignore_index);
        let w = self.weighted.then(|| &x[2]);
        let losses = targets.iter().enumerate().map(|(i, t)| match *t {
            None => S::zero(),
            Some(t) => -(x[0].data[i * classes + t] * w.map_or(S::one(), |w| w.data[t])),
        });
        let divisor = define_weight(&targets, w);
        let losses = Nd::new(&x[1].shape, losses.collect());
        vec![self.reduction.define(losses, divisor)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let ints = |shape: &[usize], v: &[i64]| Input::ints(DType::I64, shape, v);
        let mut out = Vec::new();
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            for weighted in [false, true] {
                for targets in [[0, 4, 2, 2], [-1, 4, -1, 1], [-1, -1, -1, -1]] {
                    let op = NllLoss { ignore_index: Some(-1), reduction, weighted };
                    let mut x = vec![g.normal([4, 5]), ints(&[4], &targets)];
                    if weighted {
                        x.push(g.uniform([5], 0.2, 2.0));
                    }
                    out.push(
                        Sample::check(op, x)
                            .no_grad(if weighted { &[2] } else { &[] })
                            .note("every pair of options; half and all of the targets ignored [C6, C7, C8]"),
                    );
                }
            }
        }
        let plain = NllLoss { ignore_index: None, reduction: Reduction::Mean, weighted: false };
        out.push(Sample::check(plain.clone(), [g.normal([2, 3, 4]), g.below(DType::U32, [2, 3], 4)]).note("[batch, time, classes]"));
        out.push(Sample::check(plain.clone(), [g.normal([3]), g.below(DType::U8, (), 3)]).note("one row without a batch axis"));
        out.push(Sample::check(plain.clone(), [g.normal([0, 3]), ints(&[0], &[])]).note("no rows [B16]"));
        let inf = f64::INFINITY;
        out.push(
            Sample::value(plain.clone(), [Input::values([2, 2], [-inf, 0.0, 0.0, -inf]), ints(&[2], &[1, 0])])
                .note("masked classes beside the target"),
        );
        out.push(Sample::reject(plain.clone(), [g.normal([2, 5]), ints(&[2], &[0, 5])], ErrorKind::Index).note("target out of range"));
        out.push(Sample::reject(plain.clone(), [g.normal([2, 5]), ints(&[3], &[0, 1, 2])], ErrorKind::Shape));
        out.push(Sample::reject(plain.clone(), [g.normal([2, 5]), g.normal([2])], ErrorKind::Dtype));
        out.push(Sample::bench(plain, [g.normal([4096, 1024]), g.below(DType::I64, [4096], 1024)]));
        out
    }
}

impl Op for NllLoss {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        check_classes(&x[0], &x[1], self.weighted.then(|| &x[2]))?;
        Ok(smallvec![Spec::new(self.reduction.shape(&x[1].shape), x[0].dtype)])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let classes = x[0].shape().last().copied().unwrap_or(0);
        let targets = Classes::read(&x[1], classes, self.ignore_index)?;
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let w = if self.weighted { Some(x[2].contiguous::<T>()?) } else { None };
            let p = x[0].contiguous::<T>()?;
            let mut losses = Buffer::alloc(A::DTYPE, targets.of.len())?;
            let losses = losses.slice_mut::<A>();
            for ((l, t), i) in losses.iter_mut().zip(&targets.of).zip(0..) {
                *l = t.map_or(A::ZERO, |t| -(p[i * classes + t].load() * w.as_ref().map_or(A::ONE, |w| w[t].load())));
            }
            let divisor = targets.total(w.as_ref().map(|w| |t: usize| Element::to_f64(w[t])))?;
            self.reduction.store(losses, divisor, y[0].slice::<T>());
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let o = self.options(x[0].shape().last().copied().unwrap_or(0));
        let w = cuda::loss::weights(x.get(2))?;
        let w = w.as_ref().map(cuda::Dense::src);
        let targets = cuda::loss::Targets::read(&x[1], o.classes, self.ignore_index, w.as_ref(), true)?;
        cuda::loss::nll(&x[0], &targets, w.as_ref(), o, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        // The first one only for its shape: nothing is kept alive that a cheap constant could not replace.
        Saved::of([Some(x[1]), if self.weighted { Some(x[2]) } else { None }, Some(x[0])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.weighted && want[2])?;
        let shape = saved.get(2)?.shape();
        let classes = shape[shape.rank() - 1];
        let inputs: SmallVec<[&Tensor; 3]> = [Some(saved.get(0)?), saved.maybe(1), Some(y_bar.only()?)].into_iter().flatten().collect();
        let mut bars: InputCotangents = smallvec![Some(apply1(NllLossVjp { of: self.clone(), classes }, &inputs)?), None];
        bars.extend(self.weighted.then_some(None));
        Ok(bars)
    }
}

impl Describe for NllLossVjp {
    const NAME: &'static str = "nll_loss_vjp";
    const MATH: Math = Math {
        forward: "x̄ᵢⱼ = −w_y l̄ᵢ [j = yᵢ]",
        vjp: "nll_loss itself: the two are transposes of each other",
        kinks: "linear",
        cost: "writes x̄",
        references: "chain rule",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let targets = define_targets(&x[0], self.of.ignore_index);
        let w = self.of.weighted.then(|| &x[1]);
        let g = &x[x.len() - 1];
        let scale = S::lit(self.of.reduction.define_scale(define_weight(&targets, w)));
        let shape: crate::Shape = x[0].shape.iter().copied().chain([self.classes]).collect();
        let mut y = Nd::new(&shape, vec![S::zero(); shape.numel()]);
        for (i, t) in targets.iter().enumerate() {
            if let Some(t) = *t {
                let g = g.data[if g.data.len() == 1 { 0 } else { i }];
                y.data[i * self.classes + t] = -(w.map_or(S::one(), |w| w.data[t]) * g * scale);
            }
        }
        vec![y]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let checks = NllLoss::samples(g).into_iter().filter(|s| s.purpose == Purpose::Check);
        let mut out: Vec<Sample<Self>> = checks
            .map(|s| {
                let shape = s.inputs[0].shape();
                let classes = shape[shape.rank() - 1];
                let mut inputs = s.inputs[1..].to_vec();
                inputs.push(if s.op.reduction == Reduction::None { g.normal(s.inputs[1].shape()) } else { g.normal(()) });
                let weights: &[usize] = if s.op.weighted { &[1] } else { &[] };
                let mut s = s.map(|of| NllLossVjp { of, classes }).no_grad(weights);
                s.inputs = inputs;
                s
            })
            .collect();
        let of = NllLoss { ignore_index: None, reduction: Reduction::None, weighted: false };
        out.push(Sample::reject(NllLossVjp { of, classes: 3 }, [Input::ints(DType::I64, [2], &[0, 1]), g.normal([3])], ErrorKind::Shape));
        out
    }
}

impl Op for NllLossVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let g = &x[x.len() - 1];
        let want = self.of.reduction.shape(&x[0].shape);
        if g.shape != want {
            bail!(shape, "the cotangent must have shape {want}, found {}", g.shape);
        }
        let out = Spec::new(x[0].shape.iter().copied().chain([self.classes]).collect::<crate::Shape>(), g.dtype);
        check_classes(&out, &x[0], self.of.weighted.then(|| &x[1]))?;
        Ok(smallvec![out])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let targets = Classes::read(&x[0], self.classes, self.of.ignore_index)?;
        let g = &x[x.len() - 1];
        with_float!(g.dtype(), T => {
            type A = <T as Compute>::Acc;
            let w = if self.of.weighted { Some(x[1].contiguous::<T>()?) } else { None };
            let scale = <A as Real>::from_f64(self.of.reduction.scale(targets.total(w.as_ref().map(|w| |t: usize| Element::to_f64(w[t])))?));
            let each = self.of.reduction == Reduction::None;
            let g = g.contiguous::<T>()?;
            let y = y[0].slice::<T>();
            y.fill(T::store(A::ZERO));
            for (i, t) in targets.of.iter().enumerate() {
                if let Some(t) = *t {
                    let w = w.as_ref().map_or(A::ONE, |w| w[t].load());
                    y[i * self.classes + t] = T::store(-(w * g[if each { i } else { 0 }].load() * scale));
                }
            }
            Ok(())
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let w = cuda::loss::weights(x[..x.len() - 1].get(1))?;
        let w = w.as_ref().map(cuda::Dense::src);
        let targets = cuda::loss::Targets::read(&x[0], self.classes, self.of.ignore_index, w.as_ref(), true)?;
        cuda::loss::nll_vjp(&targets, w.as_ref(), &x[x.len() - 1], self.of.options(self.classes), &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), if self.of.weighted { Some(x[1]) } else { None }])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        refuse_weights(self.of.weighted && want[1])?;
        let inputs: SmallVec<[&Tensor; 3]> = [Some(y_bar.only()?), Some(saved.get(0)?), saved.maybe(1)].into_iter().flatten().collect();
        let mut bars = InputCotangents::from_elem(None, want.len());
        bars[want.len() - 1] = Some(apply1(self.of.clone(), &inputs)?);
        Ok(bars)
    }
}

impl Tensor {
    /// Mean negative log-likelihood of integer targets `[..]` under these log-probabilities `[.., C]`.
    ///
    /// For logits, [`Tensor::cross_entropy`] is faster and more accurate.
    ///
    /// # Gradient
    /// `−l̄` at each target, 0 elsewhere.
    ///
    /// # Errors
    /// As [`Tensor::cross_entropy`].
    #[doc(alias = "negative_log_likelihood")]
    #[track_caller]
    pub fn nll_loss(&self, targets: &Tensor) -> Result<Tensor> {
        self.nll_loss_with(targets, &NllLossOptions::default())
    }

    /// [`Tensor::nll_loss`] with options.
    ///
    /// # Gradient
    /// As [`Tensor::nll_loss`]; class weights are constants, and a sweep that wants their gradient is an error.
    ///
    /// # Errors
    /// As [`Tensor::cross_entropy_with`].
    #[track_caller]
    pub fn nll_loss_with(&self, targets: &Tensor, options: &NllLossOptions) -> Result<Tensor> {
        let &NllLossOptions { ignore_index, reduction, ref weights } = options;
        let op = NllLoss { ignore_index, reduction, weighted: weights.is_some() };
        let x: SmallVec<[&Tensor; 3]> = [Some(self), Some(targets), weights.as_ref()].into_iter().flatten().collect();
        apply1(op, &x)
    }
}
