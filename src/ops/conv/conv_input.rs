//! The transposed convolution: the derivative of the convolution by its input.

use super::define;
use super::options::{ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, ConvTransposeOptions};
use super::samples::{CHECKED, SMALLEST, all, result, sliding};
use super::sliding::{Sliding, bias_fits, one_image, over_channels};
use crate::backend::{cpu, cuda};
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, apply1_as, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// The transpose of a convolution; see [`Tensor::conv_transpose2d`]. Inputs: what has the shape of the convolution's result, weight, then
/// the bias if there is one. The result has the spatial extents of [`Sliding::input`].
#[derive(Clone, Debug)]
pub struct ConvInput(pub Sliding);

impl Describe for ConvInput {
    const NAME: &'static str = "conv_input";
    const MATH: Math = Math {
        forward: "y[n, c, q] = b[c] + Σ w[o, c, k] · x[n, o, p] over the outputs o of c's group and all p, k with p·stride − low + k·dilation = q",
        vjp: "x̄ = conv(ȳ, w), w̄ = conv_weight(ȳ, x), b̄ = Σ ȳ over images and positions",
        kinks: "trilinear; what no position of x reaches is the bias",
        cost: "2·inputs·kernel·channels/groups arithmetic, three times that with both derivatives; saves w for x̄ and x for w̄",
        references: "torch.nn.functional.conv_transpose2d; Zeiler et al., Deconvolutional Networks, 2010",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (axes, groups, y, w) = (&self.0.axes[..], self.0.groups, &x[0], &x[1]);
        let (each, outputs) = (w.shape[1], w.shape[0] / groups);
        let shape = [&[y.shape[0], each * groups], &self.0.input[..]].concat();
        let (channels, plane) = (shape[1], self.0.input.iter().product::<usize>());
        let mut terms: Vec<Vec<S>> = vec![Vec::new(); y.shape[0] * channels * plane];
        let table = define::meetings(axes, &self.0.input, &y.shape[2..], &w.shape[2..]);
        for image in 0..y.shape[0] {
            for o in 0..w.shape[0] {
                for (p, meetings) in table.iter().enumerate() {
                    for c in 0..each {
                        for (k, at) in meetings.iter().enumerate() {
                            let Some(at) = at else { continue };
                            let v = define::read(y, image, o, Some(p));
                            let channel = o / outputs * each + c;
                            terms[(image * channels + channel) * plane + at].push(v * w.data[(o * each + c) * meetings.len() + k]);
                        }
                    }
                }
            }
        }
        let bias = |i: usize| x.get(2).map(|b| b.data[i / plane % channels]);
        let sums = terms.iter().enumerate().map(|(i, t)| bias(i).map_or(S::sum(t), |b| S::sum(t) + b));
        vec![Nd::new(shape, sums.collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let whole = g.limit() <= SMALLEST;
        let mut out = all(g, ConvInput, |g, of| vec![g.normal(result(of)), g.normal(of.1)]);
        for of in
            [&CHECKED[0], &CHECKED[4], &CHECKED[6], &CHECKED[8], &CHECKED[11], &CHECKED[15], &CHECKED[19]].into_iter().filter(|_| whole)
        {
            let channels = of.1[1] * of.3;
            let inputs = [g.normal(result(of)), g.normal(of.1), g.normal_with([channels], 2.0, 8.0)];
            out.push(Sample::check(ConvInput(sliding(of)), inputs).note("with a bias"));
        }
        let apart = (&[1, 1, 7][..], &[1, 1, 2][..], &[(3, (1, 0), 1)][..], 1, "");
        let x = Input::values([1, 1, 3], [1.0, f64::INFINITY, 2.0]);
        out.push(
            Sample::value(ConvInput(sliding(&apart)), [x, Input::values([1, 1, 2], [f64::INFINITY, 0.0])])
                .note("what no position reaches stays 0 beside an infinite weight [E7]"),
        );
        let two = &CHECKED[5];
        let y = result(two);
        for (y, w, groups, kind) in [
            (&y[..], &[2, 2, 3, 2][..], 1, ErrorKind::Shape),
            (&[2, 3, 9, 9], two.1, 1, ErrorKind::Shape),
            (&y[..], two.1, 2, ErrorKind::Shape),
            (&y[..], two.1, 0, ErrorKind::Argument),
            (&y[..3], two.1, 1, ErrorKind::Shape),
        ] {
            let op = Sliding { groups, ..sliding(two) };
            out.push(Sample::reject(ConvInput(op), [g.normal(y), g.normal(w)], kind));
        }
        out.push(Sample::reject(ConvInput(sliding(two)), [g.normal(&y), g.normal(two.1), g.normal([3])], ErrorKind::Shape));
        out
    }
}

impl Op for ConvInput {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let (ys, ws) = (&x[0].shape, &x[1].shape);
        self.0.ranks([("x", ys, "batch, channels"), ("weight", ws, "in, out / groups")])?;
        self.0.counts()?;
        if ys[1] != ws[0] {
            let last = if ys[ys.rank() - 1] == ws[0] { "; are they the last axis? permute it to the second place" } else { "" };
            bail!(shape, "x {ys} has {} channels, but weight {ws} takes {}{last}", ys[1], ws[0]);
        }
        if !ws[0].is_multiple_of(self.0.groups) {
            bail!(shape, "the {} inputs of weight {ws} do not divide into {} groups", ws[0], self.0.groups);
        }
        let Some(channels) = ws[1].checked_mul(self.0.groups) else {
            bail!(out_of_memory, "{} groups of weight {ws} have more channels than memory can address", self.0.groups)
        };
        bias_fits(x, channels)?;
        let spatial = self.0.output()?;
        self.0.extents("x", ys, &spatial)?;
        self.0.extents("weight", ws, &self.0.kernel)?;
        let shape: Shape = [ys[0], channels].into_iter().chain(self.0.input.iter().copied()).collect();
        Ok(smallvec![Spec { shape, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let plan = self.0.plan(x[0].shape()[0], x[1].shape()[1], x[1].shape()[0])?;
        with_float!(x[0].dtype(), T => cpu::conv::input::<T>(&plan, &x[0], &x[1], x.get(2), y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let plan = self.0.plan(x[0].shape()[0], x[1].shape()[1], x[1].shape()[0])?;
        cuda::conv::input(&plan, &x[0], &x[1], x.get(2), &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([want[1].then_some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let x_bar = if want[0] { Some(g.conv_of(&self.0, saved.get(1)?)?) } else { None };
        let w_bar = if want[1] { Some(g.conv_weight_of(&self.0, saved.get(0)?)?) } else { None };
        let mut out: InputCotangents = smallvec![x_bar, w_bar];
        if let Some(&wants_bias) = want.get(2) {
            out.push(if wants_bias { Some(over_channels(g)?) } else { None });
        }
        Ok(out)
    }
}

impl Tensor {
    /// The transposed convolution with a weight, as a step of derivatives.
    pub(super) fn conv_input_of(&self, windows: &Sliding, w: &Tensor) -> Result<Tensor> {
        apply1(ConvInput(windows.clone()), &[self, w])
    }
}

#[track_caller]
fn transposed<const D: usize>(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvTransposeOptions<D>,
) -> Result<Tensor> {
    let at = std::panic::Location::caller();
    let image = one_image(x, D)?;
    let x = image.as_ref().unwrap_or(x);
    let op = ConvInput(Sliding::transposed(x.shape(), weight.shape(), options).map_err(|e| e.in_op(name, at))?);
    let y = match bias {
        Some(b) => apply1_as(name, op, &[x, weight, b])?,
        None => apply1_as(name, op, &[x, weight])?,
    };
    if image.is_some() { y.squeeze(0) } else { Ok(y) }
}

impl Tensor {
    /// Transposed convolution over one spatial axis: [`Tensor::conv_transpose2d`] for `x` of `[batch, channels, length]` and a weight of
    /// `[channels, out / groups, kernel]`.
    ///
    /// # Gradient
    /// As [`Tensor::conv_transpose2d`].
    ///
    /// # Errors
    /// As [`Tensor::conv_transpose2d`].
    #[track_caller]
    pub fn conv_transpose1d(&self, weight: &Tensor, bias: Option<&Tensor>, options: &ConvTranspose1dOptions) -> Result<Tensor> {
        transposed("conv_transpose1d", self, weight, bias, options)
    }

    /// Transposed convolution over two spatial axes: each position of `x` adds the kernel, times itself, to the result. It is the derivative
    /// of [`Tensor::conv2d`] with the same options by its input, and undoes its change of shape.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::ConvTranspose2dOptions};
    /// let x = Tensor::from_slice(&[1f64, 2., 3., 4.], [1, 1, 2, 2])?;
    /// let w = Tensor::from_slice(&[1f64, 10.], [1, 1, 1, 2])?;
    /// let wide = ConvTranspose2dOptions { stride: [1, 2], ..ConvTranspose2dOptions::default() };
    /// let y = x.conv_transpose2d(&w, None, &wide)?;
    /// assert_eq!(y.to_vec::<f64>()?, [1., 10., 2., 20., 3., 30., 4., 40.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `x̄` is the convolution of `ȳ` with the weight, `w̄` the product of `x` and what each position read of `ȳ`, `b̄` the sum of `ȳ` over
    /// images and positions. Saves `weight` for `x̄` and `x` for `w̄`.
    ///
    /// # Shapes
    /// `x` is `[batch, channels, height, width]`, `weight` `[channels, out / groups, kernel height, kernel width]`, `bias` `[out]`. Each spatial
    /// extent becomes `(extent − 1) · stride − 2 · padding + dilation · (kernel − 1) + 1 + output_padding`. Without the batch axis `x` is one
    /// image, and so is the result.
    ///
    /// # Numerics
    /// As [`Tensor::conv2d`], but there is no padding that takes part in sums.
    ///
    /// # Errors
    /// Shape error when the operands' axes, channels or groups do not fit each other, or nothing is left of the result; argument error for a
    /// stride, dilation or number of groups of 0, and for an output padding that is not smaller than stride or dilation; dtype error unless
    /// all have the same float type.
    #[doc(alias("deconvolution", "deconv"))]
    #[track_caller]
    pub fn conv_transpose2d(&self, weight: &Tensor, bias: Option<&Tensor>, options: &ConvTranspose2dOptions) -> Result<Tensor> {
        transposed("conv_transpose2d", self, weight, bias, options)
    }

    /// Transposed convolution over three spatial axes: [`Tensor::conv_transpose2d`] for `x` of `[batch, channels, depth, height, width]` and a
    /// weight of `[channels, out / groups, ..]` with as many axes.
    ///
    /// # Gradient
    /// As [`Tensor::conv_transpose2d`].
    ///
    /// # Errors
    /// As [`Tensor::conv_transpose2d`].
    #[track_caller]
    pub fn conv_transpose3d(&self, weight: &Tensor, bias: Option<&Tensor>, options: &ConvTranspose3dOptions) -> Result<Tensor> {
        transposed("conv_transpose3d", self, weight, bias, options)
    }
}
