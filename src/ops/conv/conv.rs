//! The convolution.

use super::define;
use super::options::{Conv1dOptions, Conv2dOptions, Conv3dOptions, ConvOptions};
use super::samples::{CHECKED, Geometry, PLAIN, SMALLEST, all, sliding};
use super::sliding::{Sliding, bias_fits, one_image, over_channels};
use crate::backend::{cpu, cuda};
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, apply1_as, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// A kernel slid over an input; see [`Tensor::conv2d`]. Inputs: x, weight, then the bias if there is one.
#[derive(Clone, Debug)]
pub struct Conv(pub Sliding);

impl Describe for Conv {
    const NAME: &'static str = "conv";
    const MATH: Math = Math {
        forward: "y[n, o, p] = b[o] + Σ w[o, c, k] · x[n, c, p·stride − low + k·dilation] over the channels c of o's group and the kernel k; the padding is 0",
        vjp: "x̄ = conv_input(ȳ, w), w̄ = conv_weight(x, ȳ), b̄ = Σ ȳ over images and positions",
        kinks: "trilinear; the padding takes part: 0 · ∞ is NaN",
        cost: "2·outputs·kernel·channels/groups arithmetic, three times that with both derivatives; saves w for x̄ and x for w̄",
        references: "torch.nn.functional.conv2d; Dumoulin, Visin, A guide to convolution arithmetic, arXiv:1603.07285",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (axes, groups, w) = (&self.0.axes[..], self.0.groups, &x[1]);
        let (each, outputs) = (w.shape[1], w.shape[0] / groups);
        let (input, kernel) = (&x[0].shape[2..], &w.shape[2..]);
        let mut shape = vec![x[0].shape[0], w.shape[0]];
        for (a, window) in axes.iter().enumerate() {
            // The kernel takes a step as long as its last element stays within the padded input.
            let last = ((kernel[a] - 1) * window.dilation) as isize - window.padding.0;
            let end = input[a] as isize + window.padding.1;
            shape.push((0..).find(|p| (p * window.stride) as isize + last >= end).unwrap_or(0));
        }
        let table = define::meetings(axes, input, &shape[2..], kernel);
        let mut out = Vec::new();
        for image in 0..shape[0] {
            for o in 0..shape[1] {
                for meetings in &table {
                    let mut terms = Vec::new();
                    for c in 0..each {
                        for (k, &at) in meetings.iter().enumerate() {
                            let v = define::read(&x[0], image, o / outputs * each + c, at);
                            terms.push(v * w.data[(o * each + c) * meetings.len() + k]);
                        }
                    }
                    let y = S::sum(&terms);
                    out.push(x.get(2).map_or(y, |b| y + b.data[o]));
                }
            }
        }
        vec![Nd::new(shape, out)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let whole = g.limit() <= SMALLEST;
        let mut out = all(g, Conv, |g, of| vec![g.normal(of.0), g.normal(of.1)]);
        let bias = |g: &mut Gen, of: &Geometry| vec![g.normal(of.0), g.normal(of.1), g.normal_with([of.1[0]], 2.0, 8.0)];
        for of in [&CHECKED[0], &CHECKED[6], &CHECKED[8], &CHECKED[11], &CHECKED[16], &CHECKED[18]].into_iter().filter(|_| whole) {
            out.push(Sample::check(Conv(sliding(of)), bias(g, of)).note("with a bias"));
        }
        let edge = (&[1, 1, 4][..], &[1, 1, 3][..], &[(1, (1, 1), 1)][..], 1, "");
        let with = |x: [f64; 4], w: [f64; 3]| [Input::values([1, 1, 4], x), Input::values([1, 1, 3], w)];
        out.push(
            Sample::value(Conv(sliding(&edge)), with([f64::INFINITY, 1.0, 2.0, f64::NAN], [1.0, 2.0, 3.0])).note("not finite at borders"),
        );
        out.push(
            Sample::value(Conv(sliding(&edge)), with([1.0, 2.0, 3.0, 4.0], [f64::NEG_INFINITY, 1.0, 2.0]))
                .note("the padding times an infinite weight is NaN, whatever the number of channels [E7]"),
        );
        let wide = (&[1, 5, 4][..], &[5, 5, 3][..], &[(1, (1, 1), 1)][..], 1, "");
        let mut w = vec![1.0; 75];
        w[0] = f64::INFINITY;
        out.push(Sample::value(Conv(sliding(&wide)), [g.normal([1, 5, 4]), Input::values([5, 5, 3], w)]).note("the same by products [E7]"));

        let mut refuse = |of: Geometry, x: &[usize], w: &[usize], b: Option<usize>, kind: ErrorKind| {
            let mut inputs = vec![g.normal(x), g.normal(w)];
            inputs.extend(b.map(|n| g.normal([n])));
            out.push(Sample::reject(Conv(sliding(&of)), inputs, kind));
        };
        let two = (&[1, 3, 8, 9][..], &[4, 3, 3, 3][..], &[PLAIN, PLAIN][..], 1, "");
        refuse((&[1, 8, 9, 3], two.1, two.2, 1, ""), &[1, 8, 9, 3], two.1, None, ErrorKind::Shape);
        refuse((two.0, two.1, two.2, 2, ""), two.0, two.1, None, ErrorKind::Shape);
        refuse((&[1, 6, 8, 9], &[4, 2, 3, 3], two.2, 3, ""), &[1, 6, 8, 9], &[4, 2, 3, 3], None, ErrorKind::Shape);
        refuse((&[1, 3, 2, 9], two.1, two.2, 1, ""), &[1, 3, 2, 9], two.1, None, ErrorKind::Shape);
        refuse((&[1, 3, 4, 9], two.1, &[(1, (0, 0), 2), PLAIN], 1, ""), &[1, 3, 4, 9], two.1, None, ErrorKind::Shape);
        refuse((two.0, &[4, 3, 0, 3], two.2, 1, ""), two.0, &[4, 3, 0, 3], None, ErrorKind::Shape);
        refuse(two, &[3, 8, 9], two.1, None, ErrorKind::Shape);
        refuse(two, two.0, &[4, 3, 3], None, ErrorKind::Shape);
        refuse(two, two.0, two.1, Some(3), ErrorKind::Shape);
        refuse((two.0, two.1, &[(0, (0, 0), 1), PLAIN], 1, ""), two.0, two.1, None, ErrorKind::Argument);
        refuse((two.0, two.1, &[PLAIN, (1, (0, 0), 0)], 1, ""), two.0, two.1, None, ErrorKind::Argument);
        refuse((two.0, two.1, two.2, 0, ""), two.0, two.1, None, ErrorKind::Argument);
        refuse((two.0, two.1, &[(1, (isize::MAX, 0), 1), PLAIN], 1, ""), two.0, two.1, None, ErrorKind::Argument);
        out.push(Sample::reject(Conv(sliding(&two)), [g.normal(two.0), g.normal(two.1).of_dtype(crate::F64)], ErrorKind::Dtype));
        out.push(Sample::reject(Conv(sliding(&two)), [g.below(crate::U8, two.0, 9), g.normal(two.1)], ErrorKind::Dtype));
        out
    }
}

impl Op for Conv {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let (xs, ws) = (&x[0].shape, &x[1].shape);
        self.0.ranks([("x", xs, "batch, channels"), ("weight", ws, "out, in / groups")])?;
        self.0.counts()?;
        self.0.channels("x", xs, ws, ws[1])?;
        if !ws[0].is_multiple_of(self.0.groups) {
            bail!(shape, "the {} outputs of weight {ws} do not divide into {} groups", ws[0], self.0.groups);
        }
        bias_fits(x, ws[0])?;
        let spatial = self.0.output()?;
        self.0.extents("x", xs, &self.0.input)?;
        self.0.extents("weight", ws, &self.0.kernel)?;
        let shape: Shape = [xs[0], ws[0]].into_iter().chain(spatial.iter().copied()).collect();
        Ok(smallvec![Spec { shape, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let plan = self.0.plan(x[0].shape()[0], x[1].shape()[1], x[1].shape()[0])?;
        with_float!(x[0].dtype(), T => cpu::conv::forward::<T>(&plan, &x[0], &x[1], x.get(2), y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let plan = self.0.plan(x[0].shape()[0], x[1].shape()[1], x[1].shape()[0])?;
        cuda::conv::forward(&plan, &x[0], &x[1], x.get(2), &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([want[1].then_some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let x_bar = if want[0] { Some(g.conv_input_of(&self.0, saved.get(1)?)?) } else { None };
        let w_bar = if want[1] { Some(saved.get(0)?.conv_weight_of(&self.0, g)?) } else { None };
        let mut out: InputCotangents = smallvec![x_bar, w_bar];
        if let Some(&wants_bias) = want.get(2) {
            out.push(if wants_bias { Some(over_channels(g)?) } else { None });
        }
        Ok(out)
    }
}

impl Tensor {
    /// The convolution with a weight, as a step of derivatives.
    pub(super) fn conv_of(&self, windows: &Sliding, w: &Tensor) -> Result<Tensor> {
        apply1(Conv(windows.clone()), &[self, w])
    }
}

#[track_caller]
fn conv<const D: usize>(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<D>,
) -> Result<Tensor> {
    let at = std::panic::Location::caller();
    let image = one_image(x, D)?;
    let x = image.as_ref().unwrap_or(x);
    let op = Conv(Sliding::conv(x.shape(), weight.shape(), options).map_err(|e| e.in_op(name, at))?);
    let y = match bias {
        Some(b) => apply1_as(name, op, &[x, weight, b])?,
        None => apply1_as(name, op, &[x, weight])?,
    };
    if image.is_some() { y.squeeze(0) } else { Ok(y) }
}

impl Tensor {
    /// Convolution over one spatial axis: [`Tensor::conv2d`] for `x` of `[batch, channels, length]` and a weight of
    /// `[out, channels / groups, kernel]`.
    ///
    /// # Gradient
    /// As [`Tensor::conv2d`].
    ///
    /// # Errors
    /// As [`Tensor::conv2d`].
    #[track_caller]
    pub fn conv1d(&self, weight: &Tensor, bias: Option<&Tensor>, options: &Conv1dOptions) -> Result<Tensor> {
        conv("conv1d", self, weight, bias, options)
    }

    /// Convolution over two spatial axes, as deep learning has it: the kernel is not reversed.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor, ops::Conv2dOptions};
    /// let tape = Tape::new();
    /// let x = Tensor::from_slice(&[1f64, 2., 3., 4., 5., 6., 7., 8., 9.], [1, 1, 3, 3])?;
    /// let w = tape.watch(&Tensor::from_slice(&[1f64, 0., 0., -1.], [1, 1, 2, 2])?)?;
    /// let y = x.conv2d(&w, None, &Conv2dOptions::default())?;
    /// assert_eq!(y.to_vec::<f64>()?, [-4., -4., -4., -4.]);
    /// let padded = x.conv2d(&w, None, &Conv2dOptions { stride: [2, 2], padding: 1.into(), ..Conv2dOptions::default() })?;
    /// assert_eq!(padded.shape(), &[1, 1, 2, 2]);
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&w)?.to_vec::<f64>()?, [12., 16., 24., 28.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `x̄` is the transposed convolution of `ȳ` with the weight, `w̄` the product of `ȳ` and what each position read of `x`, `b̄` the sum
    /// of `ȳ` over images and positions. Saves `weight` for `x̄` and `x` for `w̄`.
    ///
    /// # Shapes
    /// `x` is `[batch, channels, height, width]`, `weight` `[out, channels / groups, kernel height, kernel width]`, `bias` `[out]`. Each
    /// spatial extent becomes `(padded − dilation · (kernel − 1) − 1) / stride + 1`, rounded down. Any layout of the operands is taken; what
    /// is not contiguous is copied. Without the batch axis `x` is one image, and so is the result.
    ///
    /// # Numerics
    /// Half types accumulate in f32, bias included, and round once. The padding takes part in sums as zeros: times an infinite weight it is
    /// NaN. The bits do not depend on the number of threads.
    ///
    /// # Errors
    /// Shape error when the operands' axes, channels or groups do not fit each other, or the kernel is larger than the padded input;
    /// argument error for a stride, dilation or number of groups of 0, and for `Padding::Same` with another stride than 1; dtype error unless
    /// all have the same float type.
    #[track_caller]
    pub fn conv2d(&self, weight: &Tensor, bias: Option<&Tensor>, options: &Conv2dOptions) -> Result<Tensor> {
        conv("conv2d", self, weight, bias, options)
    }

    /// Convolution over three spatial axes: [`Tensor::conv2d`] for `x` of `[batch, channels, depth, height, width]` and a weight of
    /// `[out, channels / groups, ..]` with as many axes.
    ///
    /// # Gradient
    /// As [`Tensor::conv2d`].
    ///
    /// # Errors
    /// As [`Tensor::conv2d`].
    #[track_caller]
    pub fn conv3d(&self, weight: &Tensor, bias: Option<&Tensor>, options: &Conv3dOptions) -> Result<Tensor> {
        conv("conv3d", self, weight, bias, options)
    }
}
