//! Residual addition and norm in one pass: between the two halves of every pre-norm block.

use super::layer_norm::{LayerNorm, Norm, NormVjp, RmsNorm};
use crate::backend::cpu::{self, Compute};
use crate::backend::cuda::{self, norm};
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Purpose, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `s = x + r` and its norm; see [`Tensor::add_layer_norm`] and [`Tensor::add_rms_norm`]. Inputs: x, r, then weight and bias as
/// the norm has them. Results: the norm, the sum.
#[derive(Clone, Debug)]
pub struct AddNorm<const CENTRED: bool> {
    /// The norm of the sum.
    pub norm: Norm<CENTRED>,
}

impl<const CENTRED: bool> Describe for AddNorm<CENTRED> {
    const NAME: &'static str = if CENTRED { "add_layer_norm" } else { "add_rms_norm" };
    const MATH: Math = Math {
        forward: if CENTRED { "s = x + r, y = layer_norm(s); both are results" } else { "s = x + r, y = rms_norm(s); both are results" },
        vjp: "x̄ = r̄ = s̄ + (the norm's rule on ȳ), weight and bias as in the norm: one pass",
        kinks: "as the norm",
        cost: "reads x and r, writes s and y; the derivative reads s, s̄ and ȳ, writes one tensor for both operands; saves s, w, two numbers per row",
        references: "chain rule; llm.c fused_residual_forward",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let sum = Nd::new(&x[0].shape, x[0].data.iter().zip(&x[1].data).map(|(&a, &b)| a + b).collect());
        let mut operands = vec![sum.clone()];
        operands.extend(x[2..].iter().cloned());
        let mut y = self.norm.define(&operands);
        y.push(sum);
        y
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for s in Norm::<CENTRED>::samples(g) {
            if matches!(s.purpose, Purpose::Reject(_)) || s.inputs[0].shape().numel() > 40_000 {
                continue;
            }
            let r = g.normal_with(s.inputs[0].shape(), 0.5, 0.0);
            let mut s = s.map(|norm| AddNorm { norm });
            s.inputs.insert(1, r);
            out.push(s);
        }
        let norm = Norm::<CENTRED> { axes: 1, eps: 1e-5, weight: true, bias: false };
        let op = AddNorm { norm };
        let zeros = Input::values([2, 3], vec![0.0; 6]);
        let blunt = AddNorm { norm: Norm { eps: 1e-2, ..op.norm.clone() } };
        out.push(Sample::check(blunt, [zeros.clone(), zeros, g.normal([3])]).note("the sum's rows are zero [B15]"));
        out.push(Sample::value(op.clone(), [g.normal([70, 300]), g.normal([70, 300]), g.normal([300])]).note("several tasks"));
        out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([3]), g.normal([3])], ErrorKind::Shape).note("nothing broadcasts"));
        out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([2, 3]), g.normal([2])], ErrorKind::Shape));
        out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([2, 3]).of_dtype(crate::F64), g.normal([3])], ErrorKind::Dtype));
        out.push(Sample::bench(op, [g.normal([4096, 768]), g.normal([4096, 768]), g.normal([768])]));
        out
    }
}

impl<const CENTRED: bool> Op for AddNorm<CENTRED> {
    /// Mean and 1/σ of every row.
    const AUX: usize = 1;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(x)?;
        if x[0].shape != x[1].shape {
            bail!(shape, "both terms must have one shape: {} and {}", x[0].shape, x[1].shape);
        }
        let operands: SmallVec<[Spec; 3]> = std::iter::once(&x[0]).chain(&x[2..]).cloned().collect();
        let [y, stats] = &self.norm.infer(&operands)?[..] else { bail!(internal, "a norm has two outputs") };
        Ok(smallvec![y.clone(), y.clone(), stats.clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (_, n) = self.norm.split(x[0].shape());
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let [y, sum, stats] = y else { bail!(argument, "a sum and its norm have three outputs") };
            let (w, b) = self.norm.widened_parameters::<T>(&x[2..])?;
            let (a, r) = (x[0].contiguous::<T>()?, x[1].contiguous::<T>()?);
            let (w, b) = (w.as_ref().map(|w| w.slice::<A>()), b.as_ref().map(|b| b.slice::<A>()));
            self.norm.rows::<T>(n, &a, Some((&r, sum.slice::<T>())), y.slice::<T>(), stats.slice::<A>(), w, b)
        })
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let [y, sum, stats] = y else { bail!(argument, "a sum and its norm have three outputs") };
        let (w, b) = (self.norm.weight.then(|| &x[2]), self.norm.bias.then(|| &x[x.len() - 1]));
        norm::forward(self.norm.split(x[0].shape()), CENTRED, self.norm.eps, &x[0], Some((&x[1], sum)), [w, b], y, stats)
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([Some(&y[1]), if self.norm.weight && (want[0] || want[1]) { Some(x[2]) } else { None }, y.get(2)])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let of = &self.norm;
        let mut bars = InputCotangents::from_elem(None, want.len());
        let through = want[0] || want[1];
        let Some(g) = y_bar.get(0) else {
            // The norm was not used: the sum's cotangent is that of both terms.
            for (bar, _) in bars.iter_mut().zip(&want[..2]).filter(|(_, w)| **w) {
                *bar = y_bar.get(1).cloned();
            }
            return Ok(bars);
        };
        let wanted = [through, of.weight && want[2], of.bias && want[want.len() - 1]];
        let sum = saved.get(0)?;
        let ones;
        let mut inputs: SmallVec<[&Tensor; 5]> = smallvec![sum];
        if of.weight {
            // Not needed (and not saved) unless a term's cotangent is wanted.
            inputs.push(match saved.maybe(1) {
                Some(w) => w,
                None => {
                    ones = Tensor::full_on(&sum.shape()[sum.rank() - of.axes..], 1.0, g.dtype(), g.device())?;
                    &ones
                }
            });
        }
        inputs.push(g);
        let added = y_bar.get(1).filter(|_| through);
        inputs.extend(added);
        inputs.push(saved.get(2)?);
        let op = NormVjp { of: of.clone(), stats: true, added: added.is_some(), want: wanted };
        let mut found = apply(op, &inputs)?.into_iter();
        let mut next = |wanted: bool| if wanted { found.next() } else { None };
        let both = next(through);
        for (bar, _) in bars.iter_mut().zip(&want[..2]).filter(|(_, w)| **w) {
            *bar = both.clone();
        }
        let (w, b) = (next(wanted[1]), next(wanted[2]));
        let last = want.len() - 1;
        if of.weight {
            bars[2] = w;
        }
        if of.bias {
            bars[last] = b;
        }
        Ok(bars)
    }
}

impl Tensor {
    /// `s = self + residual` and its layer norm, in one pass: `(norm of s, s)`.
    ///
    /// ```
    /// use cotangent::{Tensor, grad};
    /// let x = Tensor::from_slice(&[1f64, 2.0, 4.0, 0.0], [2, 2])?;
    /// let r = Tensor::from_slice(&[0f64, 3.0, 1.0, 1.0], [2, 2])?;
    /// let (y, s) = x.add_layer_norm(&r, 1, None, None, 1e-5)?;
    /// assert_eq!(s.to_vec::<f64>()?, x.add(&r)?.to_vec::<f64>()?);
    /// assert_eq!(y.to_vec::<f64>()?, x.add(&r)?.layer_norm(1, None, None, 1e-5)?.to_vec::<f64>()?);
    /// // The cotangents of both results meet in one pass.
    /// let g = grad(&x, |x| {
    ///     let (y, s) = x.add_layer_norm(&r, 1, None, None, 1e-5)?;
    ///     y.exp()?.add(&s)?.sum(..)
    /// })?;
    /// assert!((g.sum(..)?.item()? - 4.0).abs() < 1e-12);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// One fused kernel for both terms (whose cotangents are the same tensor), weight and bias; saves the sum, the weight and two
    /// numbers per row. Where only one of the results is used, so is its cotangent.
    ///
    /// # Shapes
    /// Both terms `[.., n₁ .. nₖ]`, weight and bias `[n₁ .. nₖ]` with `k = normalized_axes`.
    ///
    /// # Numerics
    /// The values are those of [`Tensor::add`] and [`Tensor::layer_norm`], bit for bit: the sum is rounded to the operands' type
    /// before it is normalised, since it is what the rest of the model sees.
    ///
    /// # Errors
    /// Shape error when the terms' shapes differ; otherwise as [`Tensor::layer_norm`].
    #[track_caller]
    pub fn add_layer_norm(
        &self,
        residual: &Tensor,
        normalized_axes: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        let norm = LayerNorm { axes: normalized_axes, eps, weight: weight.is_some(), bias: bias.is_some() };
        let x: SmallVec<[&Tensor; 4]> = [Some(self), Some(residual), weight, bias].into_iter().flatten().collect();
        two(apply(AddNorm { norm }, &x)?)
    }

    /// `s = self + residual` and its RMS norm over the last axis, in one pass: `(norm of s, s)`.
    ///
    /// # Gradient
    /// As [`Tensor::add_layer_norm`].
    ///
    /// # Numerics
    /// The values are those of [`Tensor::add`] and [`Tensor::rms_norm`], bit for bit.
    ///
    /// # Errors
    /// Shape error when the terms' shapes differ; otherwise as [`Tensor::rms_norm`].
    #[track_caller]
    pub fn add_rms_norm(&self, residual: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<(Tensor, Tensor)> {
        let norm = RmsNorm { axes: 1, eps, weight: weight.is_some(), bias: false };
        let x: SmallVec<[&Tensor; 3]> = [Some(self), Some(residual), weight].into_iter().flatten().collect();
        two(apply(AddNorm { norm }, &x)?)
    }
}

fn two(y: crate::op::Outputs) -> Result<(Tensor, Tensor)> {
    let mut y = y.into_iter();
    match (y.next(), y.next()) {
        (Some(a), Some(b)) => Ok((a, b)),
        _ => bail!(internal, "a sum and its norm are two results"),
    }
}
