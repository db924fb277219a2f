//! Norms of channels over a batch, or by statistics that were gathered before.

use super::group_norm::{by_channel, channel_operands, widened};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Batch norm by the batch's own statistics; see [`Tensor::batch_norm`]. Inputs: x, then the weight if there is one, then the bias if
/// there is one.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Added to the variance under the root.
    pub eps: f64,
    /// Whether a weight follows x.
    pub weight: bool,
    /// Whether a bias comes last.
    pub bias: bool,
}

impl Describe for BatchNorm {
    const NAME: &'static str = "batch_norm";
    const MATH: Math = Math {
        forward: "y = (x − μ)/√(σ² + ε) · w + b, with mean μ and biased variance σ² of each channel over images and positions; w and b by channel",
        vjp: "that of layer_norm over channels as rows, and of the product and sum by channel",
        kinks: "smooth for ε > 0: constant channels give y = b, and derivatives of size 1/√ε",
        cost: "a composition: x with channels first, layer_norm, product, sum; saves what they save",
        references: "Ioffe, Szegedy, Batch Normalization, arXiv:1502.03167",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let positions: usize = shape[2..].iter().product();
        let channel_of = |i: usize| i / positions % shape[1];
        let mut moments = Vec::new();
        for c in 0..shape[1] {
            let own: Vec<S> = (0..x[0].data.len()).filter(|&i| channel_of(i) == c).map(|i| x[0].data[i]).collect();
            let n = S::lit(own.len() as f64);
            let mean = S::sum(&own) / n;
            let squares: Vec<S> = own.iter().map(|&v| (v - mean) * (v - mean)).collect();
            moments.push((mean, (S::sum(&squares) / n + S::lit(self.eps)).sqrt()));
        }
        let value = |(i, &v): (usize, &S)| {
            let c = channel_of(i);
            let mut y = (v - moments[c].0) / moments[c].1;
            if self.weight {
                y = y * x[1].data[c];
            }
            if self.bias { y + x[x.len() - 1].data[c] } else { y }
        };
        vec![Nd::new(shape, x[0].data.iter().enumerate().map(value).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for (weight, bias) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = BatchNorm { eps: 1e-2, weight, bias };
            let mut x = vec![g.normal_with([2, 3, 4], 1.2, 0.4)];
            x.extend((0..usize::from(weight) + usize::from(bias)).map(|_| g.normal_with([3], 0.7, 0.5)));
            out.push(Sample::check(op, x));
        }
        let op = BatchNorm { eps: 1e-2, weight: true, bias: true };
        let shapes: [(&[usize], &'static str); 5] = [
            (&[5, 3], "no positions but one"),
            (&[3, 3, 3, 3], "as many images, channels and positions [E6]"),
            (&[1, 2, 2, 1, 3], "one image, three spatial axes"),
            (&[2, 0, 3], "no channels"),
            (&[4, 1], "one channel"),
        ];
        for (shape, note) in shapes {
            let c = shape[1];
            let x = [g.normal(shape), g.normal_with([c], 0.7, 0.5), g.normal([c])];
            out.push(Sample::check(op.clone(), x).note(note));
        }
        for (shape, c) in [(&[1, 3][..], 3), (&[0, 3, 2], 3), (&[2, 3], 2), (&[3], 3)] {
            out.push(Sample::reject(op.clone(), [g.normal(shape), g.normal([c]), g.normal([c])], ErrorKind::Shape));
        }
        out.push(Sample::reject(op.clone(), [g.normal([2, 4]), g.normal([4]).of_dtype(crate::F64), g.normal([4])], ErrorKind::Dtype));
        out.push(Sample::bench(op, [g.normal([8, 64, 56, 56]), g.normal([64]), g.normal([64])]));
        out
    }
}

impl Composite for BatchNorm {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, w, b) = channel_operands(x, self.weight, self.bias)?;
        let channels = x.shape()[1];
        let each: usize = x.shape().iter().enumerate().filter(|(a, _)| *a != 1).map(|(_, n)| n).product();
        if each < 2 {
            bail!(
                shape,
                "x {} has {each} values in a channel: statistics of a batch need two; use batch_norm_with in evaluation",
                x.shape()
            );
        }
        let first = widened(x)?.transpose(0, 1)?;
        let y = first.reshape([channels, each])?.layer_norm(1, None, None, self.eps)?.reshape(first.shape())?.transpose(0, 1)?;
        let (w, b) = (w.map(widened).transpose()?, b.map(widened).transpose()?);
        Ok(smallvec![by_channel(y, w.as_ref(), b.as_ref())?.cast(x.dtype())?])
    }
}

/// Batch norm by given statistics; see [`Tensor::batch_norm_with`]. Inputs: x, mean, variance, then the weight if there is one, then
/// the bias if there is one.
#[derive(Clone, Debug)]
pub struct BatchNormWith {
    /// Added to the variance under the root.
    pub eps: f64,
    /// Whether a weight follows the statistics.
    pub weight: bool,
    /// Whether a bias comes last.
    pub bias: bool,
}

impl Describe for BatchNormWith {
    const NAME: &'static str = "batch_norm_with";
    const MATH: Math = Math {
        forward: "y = (x − μ)/√(σ² + ε) · w + b for given μ and σ², by channel",
        vjp: "that of the difference, the quotient, the product and the sum",
        kinks: "smooth for σ² + ε > 0",
        cost: "a composition of elementwise ops; saves what they save",
        references: "Ioffe, Szegedy, Batch Normalization, arXiv:1502.03167, inference",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let positions: usize = shape[2..].iter().product();
        let value = |(i, &v): (usize, &S)| {
            let c = i / positions % shape[1];
            let mut y = (v - x[1].data[c]) / (x[2].data[c] + S::lit(self.eps)).sqrt();
            if self.weight {
                y = y * x[3].data[c];
            }
            if self.bias { y + x[x.len() - 1].data[c] } else { y }
        };
        vec![Nd::new(shape, x[0].data.iter().enumerate().map(value).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for (weight, bias) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = BatchNormWith { eps: 1e-2, weight, bias };
            let mut x = vec![g.normal([2, 3, 4]), g.normal([3]), g.uniform([3], 0.5, 2.0)];
            x.extend((0..usize::from(weight) + usize::from(bias)).map(|_| g.normal_with([3], 0.7, 0.5)));
            out.push(Sample::check(op, x));
        }
        let op = BatchNormWith { eps: 1e-5, weight: false, bias: false };
        out.push(Sample::check(op.clone(), [g.normal([1, 3]), g.normal([3]), g.uniform([3], 0.5, 2.0)]).note("one value in a channel"));
        out.push(Sample::reject(op.clone(), [g.normal([2, 3]), g.normal([2]), g.uniform([3], 0.5, 2.0)], ErrorKind::Shape));
        out.push(Sample::reject(op.clone(), [g.normal([3]), g.normal([3]), g.uniform([3], 0.5, 2.0)], ErrorKind::Shape));
        out.push(Sample::bench(op, [g.normal([8, 64, 56, 56]), g.normal([64]), g.uniform([64], 0.5, 2.0)]));
        out
    }
}

impl Composite for BatchNormWith {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (mean, var) = (x[1], x[2]);
        let rest: SmallVec<[&Tensor; 4]> = [x[0]].into_iter().chain(x[3..].iter().copied()).collect();
        let (x, w, b) = channel_operands(&rest, self.weight, self.bias)?;
        let channels = x.shape()[1];
        for (name, p) in [("mean", mean), ("variance", var)] {
            if p.shape() != &[channels] {
                bail!(shape, "{name} {} does not fit x {}: expected [{channels}]", p.shape(), x.shape());
            }
        }
        let shape: Shape = x.shape().iter().skip(1).enumerate().map(|(a, &n)| if a == 0 { n } else { 1 }).collect();
        let scale = widened(var)?.add_scalar(self.eps)?.rsqrt()?;
        let centred = widened(x)?.sub(&widened(mean)?.reshape(&shape)?)?;
        let (w, b) = (w.map(widened).transpose()?, b.map(widened).transpose()?);
        let scale = if let Some(w) = &w { scale.mul(w)? } else { scale };
        Ok(smallvec![by_channel(centred, Some(&scale), b.as_ref())?.cast(x.dtype())?])
    }
}

impl Tensor {
    /// Normalises each channel of `[batch, channels, ..]` by its mean and variance over the batch and all positions, then scales and shifts it:
    /// batch norm in training. [`nn::BatchNorm`](crate::nn::BatchNorm) gathers running statistics for evaluation.
    ///
    /// # Gradient
    /// That of [`Tensor::layer_norm`] over channels, and of the product and sum by channel: through mean and variance, too.
    ///
    /// # Shapes
    /// `weight` and `bias` are `[channels]`; the result has the shape of `x`.
    ///
    /// # Errors
    /// Shape error for parameters of another shape, less than two axes, or a channel of less than two values; argument error for an `eps`
    /// that is negative or not finite; dtype error unless all have the same float type.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_slice(&[1f64, 10., 3., 30.], [2, 2])?;
    /// assert_eq!(x.batch_norm(None, None, 0.0)?.to_vec::<f64>()?, [-1., -1., 1., 1.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn batch_norm(&self, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let op = BatchNorm { eps, weight: weight.is_some(), bias: bias.is_some() };
        let x: SmallVec<[&Tensor; 4]> = [self].into_iter().chain(weight).chain(bias).collect();
        compose1(op, &x)
    }

    /// [`Tensor::batch_norm`] by given statistics, `[channels]` each: batch norm in evaluation.
    ///
    /// # Gradient
    /// That of the difference, the quotient, the product and the sum; mean and variance have one like any operand.
    ///
    /// # Errors
    /// As there, but one value in a channel is enough.
    #[track_caller]
    pub fn batch_norm_with(&self, mean: &Tensor, var: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let op = BatchNormWith { eps, weight: weight.is_some(), bias: bias.is_some() };
        let x: SmallVec<[&Tensor; 5]> = [self, mean, var].into_iter().chain(weight).chain(bias).collect();
        compose1(op, &x)
    }
}
