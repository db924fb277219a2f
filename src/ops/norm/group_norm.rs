//! Norms over groups of channels: `[batch, channels, ..]`.

use crate::dtype::DType;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1_as};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::smallvec;

/// Group norm; see [`Tensor::group_norm`]. Inputs: x, then the weight if there is one, then the bias if there is one.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// Into how many groups the channels of an image are divided.
    pub groups: usize,
    /// Added to the variance under the root.
    pub eps: f64,
    /// Whether a weight follows x.
    pub weight: bool,
    /// Whether a bias comes last.
    pub bias: bool,
}

/// `y · weight + bias` with one number of each for a channel, the second axis.
pub(super) fn by_channel(mut y: Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape: Shape = y.shape().iter().skip(1).enumerate().map(|(a, &n)| if a == 0 { n } else { 1 }).collect();
    if let Some(w) = weight {
        y = y.mul(&w.reshape(&shape)?)?;
    }
    if let Some(b) = bias {
        y = y.add(&b.reshape(&shape)?)?;
    }
    Ok(y)
}

/// The operands of a norm of channels, checked: x, weight, bias.
pub(super) fn channel_operands<'a>(
    x: &[&'a Tensor],
    weight: bool,
    bias: bool,
) -> Result<(&'a Tensor, Option<&'a Tensor>, Option<&'a Tensor>)> {
    let (w, b) = (weight.then(|| x[1]), bias.then(|| x[x.len() - 1]));
    if x[0].rank() < 2 {
        bail!(shape, "expected x [batch, channels, ..], found {}", x[0].shape());
    }
    let channels = x[0].shape()[1];
    for (name, p) in [("weight", w), ("bias", b)] {
        if let Some(p) = p.filter(|p| p.shape() != &[channels]) {
            bail!(shape, "{name} {} does not fit x {}: expected [{channels}]", p.shape(), x[0].shape());
        }
    }
    if let Some(p) = w.into_iter().chain(b).find(|p| p.dtype() != x[0].dtype()) {
        bail!(dtype, "x is {}, a parameter {}; cast one", x[0].dtype(), p.dtype());
    }
    Ok((x[0], w, b))
}

/// In f32, where values are of a half type: between the norm and its weight nothing is rounded.
pub(super) fn widened(x: &Tensor) -> Result<Tensor> {
    if x.dtype().is_half() { x.cast(DType::F32) } else { Ok(x.clone()) }
}

impl Describe for GroupNorm {
    const NAME: &'static str = "group_norm";
    const MATH: Math = Math {
        forward: "y = (x − μ)/√(σ² + ε) · w + b, with mean μ and biased variance σ² over each group of channels and all positions; w and b by channel",
        vjp: "that of layer_norm over groups as rows, and of the product and sum by channel",
        kinks: "smooth for ε > 0: constant groups give y = b, and derivatives of size 1/√ε",
        cost: "a composition: layer_norm over groups, product, sum; saves what they save",
        references: "Wu, He, Group Normalization, arXiv:1803.08494",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let positions: usize = shape[2..].iter().product();
        let group = shape[1] / self.groups * positions;
        let mut out = Vec::new();
        for row in x[0].data.chunks(group.max(1)) {
            let n = S::lit(row.len() as f64);
            let mean = S::sum(row) / n;
            let squares: Vec<S> = row.iter().map(|&v| (v - mean) * (v - mean)).collect();
            let deviation = (S::sum(&squares) / n + S::lit(self.eps)).sqrt();
            for &v in row {
                let channel = out.len() / positions % shape[1];
                let mut y = (v - mean) / deviation;
                if self.weight {
                    y = y * x[1].data[channel];
                }
                if self.bias {
                    y = y + x[x.len() - 1].data[channel];
                }
                out.push(y);
            }
        }
        vec![Nd::new(shape, out)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for (weight, bias) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = GroupNorm { groups: 2, eps: 1e-2, weight, bias };
            let mut x = vec![g.normal_with([2, 4, 3], 1.2, 0.4)];
            x.extend((0..usize::from(weight) + usize::from(bias)).map(|_| g.normal_with([4], 0.7, 0.5)));
            out.push(Sample::check(op, x).note("the mean of a group, not its sum [E8]"));
        }
        let of = |groups: usize| GroupNorm { groups, eps: 1e-2, weight: true, bias: true };
        let shapes: [(&[usize], usize, &'static str); 6] = [
            (&[2, 3, 2, 3], 3, "each channel by itself"),
            (&[2, 3, 4], 1, "all channels together"),
            (&[3, 6], 2, "no positions but one"),
            (&[1, 4, 2, 1, 3], 2, "three spatial axes"),
            (&[4, 4, 4, 4], 2, "as many images, channels and positions [E6]"),
            (&[0, 4, 3], 2, "no images"),
        ];
        for (shape, groups, note) in shapes {
            let c = shape[1];
            let x = [g.normal(shape), g.normal_with([c], 0.7, 0.5), g.normal([c])];
            out.push(Sample::check(of(groups), x).note(note));
        }
        let zeros = Input::values([1, 2, 3], [5.0; 6]);
        out.push(Sample::check(of(1), [zeros, g.normal([2]), g.normal([2])]).note("constant groups stay finite"));
        for (shape, groups, c) in [(&[2, 4, 3][..], 3, 4), (&[2, 4, 3], 0, 4), (&[2, 4, 3], 2, 3), (&[4], 2, 4)] {
            let kind = if c == 4 && shape.len() > 1 { ErrorKind::Argument } else { ErrorKind::Shape };
            out.push(Sample::reject(of(groups), [g.normal(shape), g.normal([c]), g.normal([c])], kind));
        }
        out.push(Sample::reject(of(2), [g.normal([2, 4]), g.normal([4]).of_dtype(crate::F64), g.normal([4])], ErrorKind::Dtype));
        out.push(Sample::bench(of(32), [g.normal([8, 64, 56, 56]), g.normal([64]), g.normal([64])]));
        out
    }
}

impl Composite for GroupNorm {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, w, b) = channel_operands(x, self.weight, self.bias)?;
        let channels = x.shape()[1];
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            bail!(argument, "the {channels} channels of x {} do not divide into {} groups", x.shape(), self.groups);
        }
        let positions: usize = x.shape()[2..].iter().product();
        let rows = [x.shape()[0] * self.groups, channels / self.groups * positions];
        let y = widened(x)?.reshape(rows)?.layer_norm(1, None, None, self.eps)?.reshape(x.shape())?;
        let (w, b) = (w.map(widened).transpose()?, b.map(widened).transpose()?);
        Ok(smallvec![by_channel(y, w.as_ref(), b.as_ref())?.cast(x.dtype())?])
    }
}

#[track_caller]
fn normed(name: &'static str, x: &Tensor, groups: usize, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let op = GroupNorm { groups, eps, weight: weight.is_some(), bias: bias.is_some() };
    match (weight, bias) {
        (None, None) => compose1_as(name, op, &[x]),
        (Some(p), None) | (None, Some(p)) => compose1_as(name, op, &[x, p]),
        (Some(w), Some(b)) => compose1_as(name, op, &[x, w, b]),
    }
}

impl Tensor {
    /// Normalises each group of channels of `[batch, channels, ..]` by its mean and variance over all positions, then scales and shifts every
    /// channel.
    ///
    /// # Gradient
    /// That of [`Tensor::layer_norm`] over groups, and of the product and sum by channel.
    ///
    /// # Shapes
    /// `weight` and `bias` are `[channels]`; the result has the shape of `x`.
    ///
    /// # Errors
    /// Argument error unless the channels divide into the groups, or for an `eps` that is negative or not finite; shape error for parameters of
    /// another shape, or less than two axes; dtype error unless all have the same float type.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_slice(&[1f64, 3., 10., 30.], [1, 2, 2])?;
    /// let y = x.group_norm(2, None, None, 0.0)?;
    /// assert_eq!(y.to_vec::<f64>()?, [-1., 1., -1., 1.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn group_norm(&self, groups: usize, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        normed("group_norm", self, groups, weight, bias, eps)
    }

    /// [`Tensor::group_norm`] with a group for each channel.
    ///
    /// # Gradient
    /// As there.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn instance_norm(&self, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let channels = self.shape().get(1).copied().unwrap_or(1).max(1);
        normed("instance_norm", self, channels, weight, bias, eps)
    }
}
