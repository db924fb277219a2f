//! Channels divided by how large their neighbours are.

use super::options::AvgPoolOptions;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::ops::widened;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Local response normalisation; see [`Tensor::local_response_norm`].
#[derive(Clone, Debug)]
pub struct LocalResponseNorm {
    /// Neighbouring channels that are looked at, the channel itself among them.
    pub size: usize,
    /// How much their mean square counts.
    pub alpha: f64,
    /// The exponent.
    pub beta: f64,
    /// What is divided by where all is zero.
    pub k: f64,
}

impl Describe for LocalResponseNorm {
    const NAME: &'static str = "local_response_norm";
    const MATH: Math = Math {
        forward: "y[n, c, p] = x[n, c, p] · (k + α/size · Σ x[n, c', p]²)^−β over the channels c' from c − ⌊size/2⌋ to c + ⌊(size − 1)/2⌋ that there are",
        vjp: "that of the quotient, the power, and the mean of squares",
        kinks: "smooth for k > 0",
        cost: "a composition: squares, a mean of windows of channels (avg_pool), a power, a quotient; saves what they save",
        references: "Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural Networks, 2012; torch.nn.functional.local_response_norm",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (shape, n) = (&x[0].shape, self.size);
        vec![Nd::from_fn(shape, |i| {
            let near: Vec<usize> = (0..shape[1]).filter(|c| c + n / 2 >= i[1] && *c <= i[1] + (n - 1) / 2).collect();
            let squares: Vec<S> = near
                .iter()
                .map(|&c| {
                    let mut at = i.to_vec();
                    at[1] = c;
                    x[0].at(&at) * x[0].at(&at)
                })
                .collect();
            let mean = S::sum(&squares) / S::lit(n as f64);
            x[0].at(i) / (S::lit(self.k) + S::lit(self.alpha) * mean).powf(self.beta)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |size, alpha, beta, k| LocalResponseNorm { size, alpha, beta, k };
        let mut out = Vec::new();
        let shapes: [(&[usize], usize, &'static str); 7] = [
            (&[2, 5, 3], 3, "as many neighbours at both sides"),
            (&[1, 6, 2, 2], 4, "one more before than after"),
            (&[1, 2, 3], 5, "more neighbours than channels"),
            (&[2, 3, 2], 1, "each by itself"),
            (&[2, 4], 2, "no positions but one"),
            (&[1, 3, 2, 1, 2], 2, "three spatial axes"),
            (&[0, 3, 2], 2, "no images"),
        ];
        for (shape, size, note) in shapes {
            out.push(Sample::check(of(size, 0.5, 0.75, 1.0), [g.normal(shape)]).note(note));
        }
        out.push(Sample::check(of(2, 2.0, 1.5, 0.5), [g.normal([1, 4, 3])]));
        out.push(Sample::check(of(2, 0.0, 0.5, 2.0), [g.normal([1, 4, 3])]).note("nothing but k"));
        out.push(Sample::check(of(3, 1e-4, 0.75, 1.0), [Input::values([1, 3, 2], [0.0, 5.0, 0.0, -3.0, 0.0, 0.0])]).note("zeros"));
        out.push(Sample::reject(of(0, 1.0, 1.0, 1.0), [g.normal([2, 3])], ErrorKind::Argument));
        out.push(Sample::reject(of(2, f64::NAN, 1.0, 1.0), [g.normal([2, 3])], ErrorKind::Argument));
        out.push(Sample::reject(of(2, 1.0, 1.0, 1.0), [g.normal([3])], ErrorKind::Shape));
        out.push(Sample::reject(of(2, 1.0, 1.0, 1.0), [g.below(crate::I64, [2, 3], 3)], ErrorKind::Dtype));
        out.push(Sample::bench(of(5, 1e-4, 0.75, 1.0), [g.normal([8, 64, 28, 28])]));
        out
    }
}

impl Composite for LocalResponseNorm {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, n) = (x[0], self.size);
        if !x.dtype().is_float() {
            bail!(dtype, "expected floats, found {} {}", x.dtype(), x.shape());
        }
        if x.rank() < 2 {
            bail!(shape, "expected x [batch, channels, ..], found {}", x.shape());
        }
        let numbers = [self.alpha, self.beta, self.k];
        if n == 0 || numbers.iter().any(|v| !v.is_finite()) {
            bail!(argument, "size {n} must be at least 1, and alpha, beta, k {numbers:?} finite");
        }
        let wide = widened(x)?;
        let (images, channels) = (x.shape()[0], x.shape()[1]);
        let positions: usize = x.shape()[2..].iter().product();
        if x.numel() == 0 {
            return Ok(smallvec![x.clone()]);
        }
        let by: SmallVec<[(usize, usize); 4]> = smallvec![(0, 0), (0, 0), (n / 2, (n - 1) / 2), (0, 0)];
        let squares = wide.square()?.reshape([images, 1, channels, positions])?.pad(&by, 0.0)?;
        let mean = squares.avg_pool2d([n, 1], &AvgPoolOptions { stride: Some([1, 1]), ..AvgPoolOptions::default() })?;
        let by = mean.mul_scalar(self.alpha)?.add_scalar(self.k)?.powf(self.beta)?.reshape(x.shape())?;
        Ok(smallvec![wide.div(&by)?.cast(x.dtype())?])
    }
}

impl Tensor {
    /// Divides each element of `[batch, channels, ..]` by a power of the mean square of neighbouring channels at its position, `size` of them,
    /// channels beyond the ends counting as zeros: `x / (k + alpha · mean)^beta`. PyTorch's defaults are `alpha` 1e-4, `beta` 0.75, `k` 1.
    ///
    /// ```
    /// use cotangent::Tensor;
    /// let x = Tensor::from_slice(&[3f64, 4.], [1, 2, 1])?;
    /// let y = x.local_response_norm(2, 2.0, 0.5, 0.0)?; // before each channel one neighbour
    /// assert_eq!(y.to_vec::<f64>()?, [1., 0.8]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// That of the quotient, the power and the mean of squares.
    ///
    /// # Errors
    /// Argument error for a `size` of 0, or other numbers that are not finite; shape error for less than two axes; dtype error for integers.
    #[track_caller]
    pub fn local_response_norm(&self, size: usize, alpha: f64, beta: f64, k: f64) -> Result<Tensor> {
        compose1(LocalResponseNorm { size, alpha, beta, k }, &[self])
    }
}
