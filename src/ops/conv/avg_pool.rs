//! The mean of each window.

use super::options::{AvgPool1dOptions, AvgPool2dOptions, AvgPool3dOptions, AvgPoolOptions};
use super::sliding::{Sliding, Window, one_image};
use crate::dtype::DType;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1_as};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::smallvec;

/// The mean of each window; see [`Tensor::avg_pool2d`].
#[derive(Clone, Debug)]
pub struct AvgPool {
    /// How windows slide.
    pub windows: Sliding,
    /// Zeros at both ends of each axis that count as elements.
    pub counted: Shape,
}

impl Describe for AvgPool {
    const NAME: &'static str = "avg_pool";
    const MATH: Math = Math {
        forward: "y = Σ x over each window, divided by its number of elements, of which padding may be some",
        vjp: "x̄ = Σ ȳ, divided in the same way, over the windows that see an element",
        kinks: "linear",
        cost: "a composition: a convolution of each channel with ones, a quotient; saves nothing of x",
        references: "torch.nn.functional.avg_pool2d",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (axes, kernel) = (&self.windows.axes[..], &self.windows.kernel[..]);
        let input = &x[0].shape[2..];
        let mut shape = x[0].shape[..2].to_vec();
        for (a, window) in axes.iter().enumerate() {
            let end = input[a] as isize + window.padding.1;
            let last = kernel[a] as isize - 1 - window.padding.0;
            shape.push((0..).find(|p| (p * window.stride) as isize + last >= end).unwrap_or(0));
        }
        let table = super::define::meetings(axes, input, &shape[2..], kernel);
        // The elements that count are those of an input that is larger by the padding.
        let wide: Vec<usize> = input.iter().zip(self.counted.iter()).map(|(n, p)| n + 2 * p).collect();
        let shifted: Vec<Window> =
            axes.iter().zip(self.counted.iter()).map(|(w, &p)| Window { padding: (w.padding.0 - p as isize, w.padding.1), ..*w }).collect();
        let counts = super::define::meetings(&shifted, &wide, &shape[2..], kernel);
        let plane = input.iter().product::<usize>();
        let mut out = Vec::new();
        for data in x[0].data.chunks(plane.max(1)) {
            for (window, count) in table.iter().zip(&counts) {
                let terms: Vec<S> = window.iter().flatten().map(|&i| data[i]).collect();
                out.push(S::sum(&terms) / S::lit(count.iter().flatten().count() as f64));
            }
        }
        vec![Nd::new(shape, out)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |x: &[usize], kernel: &[usize], axes: &[(usize, (isize, isize))], counted: &[usize]| AvgPool {
            windows: Sliding {
                axes: axes.iter().map(|&(stride, padding)| Window { stride, dilation: 1, padding }).collect(),
                groups: 1,
                input: x[2..].into(),
                kernel: kernel.into(),
            },
            counted: counted.into(),
        };
        let mut out = Vec::new();
        let shapes: [(&[usize], &[usize], &[(usize, (isize, isize))], &[usize], &'static str); 8] = [
            (&[2, 2, 6], &[2], &[(2, (0, 0))], &[0], "windows side by side"),
            (&[2, 1, 7], &[3], &[(1, (1, 1))], &[1], "windows that overlap, with padding that counts [E9]"),
            (&[2, 1, 7], &[3], &[(1, (1, 1))], &[0], "padding that does not count"),
            (&[1, 2, 9], &[2], &[(3, (0, 0))], &[0], "windows with gaps, a rest that none reaches [E9]"),
            (&[1, 2, 5, 6], &[2, 3], &[(1, (1, 1)), (2, (0, 1))], &[1, 0], "everything distinct on each axis"),
            (&[1, 1, 3, 4, 3], &[2, 1, 3], &[(1, (0, 0)), (2, (0, 0)), (1, (1, 1))], &[0, 0, 1], "three axes"),
            (&[0, 2, 4], &[2], &[(2, (0, 0))], &[0], "no images"),
            (&[1, 2, 6], &[3], &[(2, (1, 2))], &[1], "the last window reaches beyond what counts"),
        ];
        for (x, kernel, axes, counted, note) in shapes {
            out.push(Sample::check(of(x, kernel, axes, counted), [g.normal(x)]).note(note));
        }
        let special = Input::values([1, 1, 5], [f64::INFINITY, 1.0, 2.0, f64::NAN, 3.0]);
        out.push(Sample::value(of(&[1, 1, 5], &[2], &[(1, (1, 1))], &[1]), [special]).note("not finite at a border"));
        let x = &[1, 2, 5][..];
        for (kernel, axis, kind) in
            [(6, (1, (0, 0)), ErrorKind::Shape), (0, (1, (0, 0)), ErrorKind::Shape), (2, (0, (0, 0)), ErrorKind::Argument)]
        {
            out.push(Sample::reject(of(x, &[kernel], &[axis], &[0]), [g.normal(x)], kind));
        }
        out.push(Sample::reject(of(x, &[2], &[(1, (0, 0))], &[0]), [g.normal([2, 5])], ErrorKind::Shape));
        out.push(Sample::reject(of(x, &[2], &[(1, (0, 0))], &[0]), [g.below(crate::I64, x, 3)], ErrorKind::Dtype));
        let large = &[8, 64, 56, 56][..];
        out.push(Sample::bench(of(large, &[2, 2], &[(2, (0, 0)), (2, (0, 0))], &[0, 0]), [g.normal(large)]));
        out
    }
}

impl Composite for AvgPool {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, w) = (x[0], &self.windows);
        if !x.dtype().is_float() {
            bail!(dtype, "expected floats, found {} {}", x.dtype(), x.shape());
        }
        w.planes(x.shape())?;
        let spatial = w.output()?;
        w.extents("x", x.shape(), &w.input)?;
        // Half types are summed and divided in f32, and rounded once.
        let wide = if x.dtype().is_half() { x.cast(DType::F32)? } else { x.clone() };
        let alone = |n: usize, s: &Shape| [n, 1].into_iter().chain(s.iter().copied()).collect::<Shape>();
        let ones = |shape: Shape| Tensor::full_on(shape, 1.0, wide.dtype(), wide.device());
        let window = ones(alone(1, &w.kernel))?;
        let planes = x.shape()[..2].iter().product();
        let sums = wide.reshape(alone(planes, &w.input))?.conv_of(w, &window)?;
        // Whether no window has more than what counts.
        let exact = |a: usize| {
            let (low, counted) = (w.axes[a].padding.0, self.counted[a] as isize);
            let end = ((spatial[a] - 1) * w.axes[a].stride + w.kernel[a]) as isize - low;
            low <= counted && end <= w.input[a] as isize + counted
        };
        let y = if (0..spatial.rank()).all(exact) {
            sums.div_scalar(w.kernel.numel() as f64)?
        } else {
            // How many elements of a window count: the same sum, over ones.
            let wider = Sliding {
                axes: w
                    .axes
                    .iter()
                    .zip(self.counted.iter())
                    .map(|(a, &p)| Window { padding: (a.padding.0 - p as isize, a.padding.1 - p as isize), ..*a })
                    .collect(),
                input: w.input.iter().zip(self.counted.iter()).map(|(n, p)| n + 2 * p).collect(),
                ..w.clone()
            };
            sums.div(&ones(alone(1, &wider.input))?.conv_of(&wider, &window)?)?
        };
        let shape: Shape = x.shape()[..2].iter().chain(spatial.iter()).copied().collect();
        Ok(smallvec![y.reshape(shape)?.cast(x.dtype())?])
    }
}

#[track_caller]
fn pool<const D: usize>(name: &'static str, x: &Tensor, kernel: [usize; D], options: &AvgPoolOptions<D>) -> Result<Tensor> {
    let at = std::panic::Location::caller();
    let image = one_image(x, D)?;
    let x = image.as_ref().unwrap_or(x);
    let windows = Sliding::pool(x.shape(), &kernel, options.stride, options.padding, [1; D], options.ceil);
    let windows = windows.map_err(|e| e.in_op(name, at))?;
    let counted = if options.count_include_pad { options.padding } else { [0; D] };
    let y = compose1_as(name, AvgPool { windows, counted: counted.into() }, &[x])?;
    if image.is_some() { y.squeeze(0) } else { Ok(y) }
}

impl Tensor {
    /// The mean of each window along one spatial axis: [`Tensor::avg_pool2d`] for `[batch, channels, length]`.
    ///
    /// # Gradient
    /// As [`Tensor::avg_pool2d`].
    ///
    /// # Errors
    /// As [`Tensor::avg_pool2d`].
    #[track_caller]
    pub fn avg_pool1d(&self, kernel: [usize; 1], options: &AvgPool1dOptions) -> Result<Tensor> {
        pool("avg_pool1d", self, kernel, options)
    }

    /// The mean of each window of `[batch, channels, height, width]`.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::AvgPool2dOptions};
    /// let x = Tensor::from_slice(&[1f32, 2., 5., 4., 3., 6., 7., 8.], [1, 1, 2, 4])?;
    /// assert_eq!(x.avg_pool2d([2, 2], &AvgPool2dOptions::default())?.to_vec::<f32>()?, [3., 6.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Each element gets `ȳ` of the windows that see it, divided by their numbers of elements; saves nothing of `x`.
    ///
    /// # Shapes
    /// As [`Tensor::max_pool2d`], with dilation 1.
    ///
    /// # Numerics
    /// Half types are summed in f32 and rounded once. What a window has beyond the padding, with `ceil`, never counts as elements.
    ///
    /// # Errors
    /// Shape error for other axes, or a window larger than the padded input; argument error for a stride of 0, or padding of more than
    /// half of a window; dtype error for integers.
    #[track_caller]
    pub fn avg_pool2d(&self, kernel: [usize; 2], options: &AvgPool2dOptions) -> Result<Tensor> {
        pool("avg_pool2d", self, kernel, options)
    }

    /// The mean of each window of `[batch, channels, depth, height, width]`: [`Tensor::avg_pool2d`] along three axes.
    ///
    /// # Gradient
    /// As [`Tensor::avg_pool2d`].
    ///
    /// # Errors
    /// As [`Tensor::avg_pool2d`].
    #[track_caller]
    pub fn avg_pool3d(&self, kernel: [usize; 3], options: &AvgPool3dOptions) -> Result<Tensor> {
        pool("avg_pool3d", self, kernel, options)
    }
}
