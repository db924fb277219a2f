//! The largest element of each window.

use super::options::{MaxPool1dOptions, MaxPool2dOptions, MaxPool3dOptions, MaxPoolOptions};
use super::sliding::{Sliding, Window, one_image};
use crate::backend::{cpu, cuda};
use crate::dtype::{DType, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply_as, expect};
use crate::ops::reduce::argmax::{place, two};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// The largest element of each window, and where in its plane it is; see [`Tensor::max_pool2d`].
#[derive(Clone, Debug)]
pub struct MaxPool {
    /// How windows slide.
    pub windows: Sliding,
    /// The input's shape, for the derivative: the input is not saved.
    pub of: Shape,
}

impl Describe for MaxPool {
    const NAME: &'static str = "max_pool";
    const MATH: Math = Math {
        forward: "y = max of x over each window, and its place in the plane (i64); the padding takes no part",
        vjp: "x̄ = ȳ at the places, added up where windows overlap",
        kinks: "the first of equals has all of the cotangent; NaN wins",
        cost: "reads x, writes y and places; saves the places",
        references: "torch.nn.functional.max_pool2d",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (axes, kernel) = (&self.windows.axes[..], &self.windows.kernel[..]);
        let input = &x[0].shape[2..];
        let mut shape = x[0].shape[..2].to_vec();
        for (a, window) in axes.iter().enumerate() {
            // The window takes a step as long as its last element stays within the padded input.
            let last = ((kernel[a] - 1) * window.dilation) as isize - window.padding.0;
            let end = input[a] as isize + window.padding.1;
            shape.push((0..).find(|p| (p * window.stride) as isize + last >= end).unwrap_or(0));
        }
        let table = super::define::meetings(axes, input, &shape[2..], kernel);
        let plane = input.iter().product::<usize>();
        let (mut values, mut places) = (Vec::new(), Vec::new());
        for data in x[0].data.chunks(plane) {
            for window in &table {
                let mut inside = window.iter().flatten().copied();
                let mut best = inside.next().unwrap_or(0);
                for i in inside {
                    if data[i].re() > data[best].re() || (data[i].re().is_nan() && !data[best].re().is_nan()) {
                        best = i;
                    }
                }
                values.push(data[best]);
                places.push(S::lit(best as f64));
            }
        }
        vec![Nd::new(&shape[..], values), Nd::new(shape, places)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |x: &[usize], kernel: &[usize], axes: &[(usize, (isize, isize), usize)]| MaxPool {
            windows: Sliding {
                axes: axes.iter().map(|&(stride, padding, dilation)| Window { stride, dilation, padding }).collect(),
                groups: 1,
                input: x[2..].into(),
                kernel: kernel.into(),
            },
            of: x.into(),
        };
        let mut out = Vec::new();
        let shapes: [(&[usize], &[usize], &[(usize, (isize, isize), usize)], &'static str); 9] = [
            (&[2, 2, 6], &[2], &[(2, (0, 0), 1)], "windows side by side"),
            (&[2, 1, 7], &[3], &[(1, (1, 1), 1)], "windows that overlap, with padding [E9]"),
            (&[1, 2, 9], &[2], &[(3, (0, 0), 1)], "windows with gaps, a rest that none reaches [E9]"),
            (&[1, 2, 5, 6], &[2, 3], &[(1, (1, 0), 1), (2, (0, 1), 2)], "everything distinct on each axis [E4]"),
            (&[1, 1, 3, 4, 3], &[2, 1, 3], &[(1, (0, 1), 1), (2, (0, 0), 1), (1, (1, 1), 1)], "three axes"),
            (&[1, 1, 4], &[4], &[(1, (0, 0), 1)], "a window as large as the input"),
            (&[3, 3, 3, 3], &[3, 3], &[(3, (0, 0), 1), (3, (0, 0), 1)], "as many images, channels and positions [E6]"),
            (&[0, 2, 4], &[2], &[(2, (0, 0), 1)], "no images"),
            (&[1, 2, 5], &[2], &[(2, (0, 1), 1)], "the last window reaches beyond the input"),
        ];
        for (x, kernel, axes, note) in shapes {
            out.push(Sample::check(of(x, kernel, axes), [g.distinct(x)]).note(note));
        }
        let op = of(&[1, 1, 6], &[3], &[(1, (1, 1), 1)]);
        let ties = Input::values([1, 1, 6], [1.0, 3.0, 3.0, 3.0, 0.0, 0.0]);
        out.push(Sample::check(op.clone(), [ties]).at_kink().note("the first of equals"));
        let special = Input::values([1, 1, 6], [f64::NEG_INFINITY, f64::NEG_INFINITY, f64::INFINITY, f64::NAN, 0.0, f64::NAN]);
        out.push(Sample::value(op, [special]).note("infinities, and the first NaN"));
        let wide = of(&[3, 5, 40, 41], &[3, 3], &[(2, (1, 1), 1), (2, (1, 1), 1)]);
        out.push(Sample::value(wide, [g.normal([3, 5, 40, 41])]).note("several tasks"));
        let x = &[1, 2, 5][..];
        for (kernel, axis, kind) in [
            (6, (1, (0, 0), 1), ErrorKind::Shape),
            (0, (1, (0, 0), 1), ErrorKind::Shape),
            (2, (0, (0, 0), 1), ErrorKind::Argument),
            (2, (1, (2, 2), 1), ErrorKind::Argument),
        ] {
            out.push(Sample::reject(of(x, &[kernel], &[axis]), [g.normal(x)], kind));
        }
        out.push(Sample::reject(of(x, &[2], &[(1, (0, 0), 1)]), [g.normal([2, 5])], ErrorKind::Shape));
        out.push(Sample::reject(of(x, &[2], &[(1, (0, 0), 1)]), [g.below(crate::I64, x, 3)], ErrorKind::Dtype));
        let large = &[8, 64, 56, 56][..];
        out.push(Sample::bench(of(large, &[3, 3], &[(2, (1, 1), 1), (2, (1, 1), 1)]), [g.normal(large)]));
        out
    }
}

impl Op for MaxPool {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let s = &x[0].shape;
        self.windows.planes(s)?;
        let spatial = self.windows.output()?;
        self.windows.extents("x", s, &self.windows.input)?;
        self.windows.every_window_sees(&spatial)?;
        let shape: Shape = s[..2].iter().chain(spatial.iter()).copied().collect();
        Ok(smallvec![Spec { shape: shape.clone(), dtype }, Spec { shape, dtype: DType::I64 }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let plan = self.windows.plan(x[0].shape()[..2].iter().product(), 1, 1)?;
        let [y, places] = y else { bail!(internal, "two outputs expected") };
        with_float!(x[0].dtype(), T => cpu::conv::max::<T>(&plan, &x[0], y.slice::<T>(), places.slice::<i64>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let plan = self.windows.plan(x[0].shape()[..2].iter().product(), 1, 1)?;
        let [y, places] = y else { bail!(internal, "two outputs expected") };
        cuda::conv::max(&plan, &x[0], y, places)
    }

    fn save(&self, _: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(&y[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let (g, places) = (y_bar.only()?, saved.get(0)?);
        let planes: usize = self.of[..2].iter().product();
        let flat = |s: &Shape| Shape::from([planes, s[2..].iter().product()]);
        let x_bar = place(&flat(&self.of), 1, &places.reshape(flat(places.shape()))?, &g.reshape(flat(g.shape()))?)?;
        Ok(smallvec![Some(x_bar.reshape(&self.of)?)])
    }
}

#[track_caller]
fn pool<const D: usize>(name: &'static str, x: &Tensor, kernel: [usize; D], options: &MaxPoolOptions<D>) -> Result<Outputs> {
    let at = std::panic::Location::caller();
    let image = one_image(x, D)?;
    let x = image.as_ref().unwrap_or(x);
    let windows = Sliding::pool(x.shape(), &kernel, options.stride, options.padding, options.dilation, options.ceil);
    let windows = windows.map_err(|e| e.in_op(name, at))?;
    let mut y = apply_as(name, MaxPool { windows, of: x.shape().clone() }, &[x])?;
    if image.is_some() {
        for y in &mut y {
            *y = y.squeeze(0)?;
        }
    }
    Ok(y)
}

fn first(mut y: Outputs) -> Tensor {
    y.swap_remove(0)
}

impl Tensor {
    /// The largest element of each window along one spatial axis: [`Tensor::max_pool2d`] for `[batch, channels, length]`.
    ///
    /// # Gradient
    /// As [`Tensor::max_pool2d`].
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool1d(&self, kernel: [usize; 1], options: &MaxPool1dOptions) -> Result<Tensor> {
        pool("max_pool1d", self, kernel, options).map(first)
    }

    /// The largest element of each window of `[batch, channels, height, width]`.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::MaxPool2dOptions};
    /// let x = Tensor::from_slice(&[1f32, 2., 5., 4., 3., 6., 7., 8.], [1, 1, 2, 4])?;
    /// assert_eq!(x.max_pool2d([2, 2], &MaxPool2dOptions::default())?.to_vec::<f32>()?, [6., 8.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// All of `ȳ` to the element that was chosen; where windows overlap the parts add up. Saves the places.
    ///
    /// # Shapes
    /// Each spatial extent becomes `(padded − dilation · (kernel − 1) − 1) / stride + 1`, rounded down, or up with `ceil`; then windows that
    /// would begin behind the input and the padding before it are left out. Without the batch axis `x` is one image, and so is the result.
    ///
    /// # Numerics
    /// The first of equal elements; NaN wins. The padding takes no part.
    ///
    /// # Errors
    /// Shape error for other axes, or a window larger than the padded input; argument error for a stride or dilation of 0, or padding with
    /// which a window would see nothing of the input; dtype error for integers.
    #[track_caller]
    pub fn max_pool2d(&self, kernel: [usize; 2], options: &MaxPool2dOptions) -> Result<Tensor> {
        pool("max_pool2d", self, kernel, options).map(first)
    }

    /// The largest element of each window of `[batch, channels, depth, height, width]`: [`Tensor::max_pool2d`] along three axes.
    ///
    /// # Gradient
    /// As [`Tensor::max_pool2d`].
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool3d(&self, kernel: [usize; 3], options: &MaxPool3dOptions) -> Result<Tensor> {
        pool("max_pool3d", self, kernel, options).map(first)
    }

    /// [`Tensor::max_pool1d`] and the place of each element in its line (`i64`).
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool1d_with_index(&self, kernel: [usize; 1], options: &MaxPool1dOptions) -> Result<(Tensor, Tensor)> {
        two(pool("max_pool1d_with_index", self, kernel, options)?)
    }

    /// [`Tensor::max_pool2d`] and the place of each element in its plane (`i64`, counted in row-major order).
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool2d_with_index(&self, kernel: [usize; 2], options: &MaxPool2dOptions) -> Result<(Tensor, Tensor)> {
        two(pool("max_pool2d_with_index", self, kernel, options)?)
    }

    /// [`Tensor::max_pool3d`] and the place of each element in its volume (`i64`, counted in row-major order).
    ///
    /// # Errors
    /// As [`Tensor::max_pool2d`].
    #[track_caller]
    pub fn max_pool3d_with_index(&self, kernel: [usize; 3], options: &MaxPool3dOptions) -> Result<(Tensor, Tensor)> {
        two(pool("max_pool3d_with_index", self, kernel, options)?)
    }
}
