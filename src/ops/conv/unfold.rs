//! Windows as columns, and the sums of columns back into images: what a convolution is a product of.

use super::define;
use super::options::UnfoldOptions;
use super::samples::{COLUMNS, columns, windows_of};
use super::sliding::{Sliding, Window, one_image};
use crate::backend::conv::Conv;
use crate::backend::{cpu, cuda};
use crate::dtype::with_float;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, apply1_as, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::panic::Location;

/// Each window of an image as a column; see [`Tensor::unfold`].
#[derive(Clone, Debug)]
pub struct Unfold(pub Sliding);

/// Columns added up to images; see [`Tensor::fold`].
#[derive(Clone, Debug)]
pub struct Fold(pub Sliding);

impl Sliding {
    /// Of windows that are looked at one by one.
    ///
    /// # Errors
    /// Argument error for another number of axes than one to three, or padding beyond what memory can address.
    pub fn columns<const D: usize>(input: &[usize], kernel: &[usize; D], options: &UnfoldOptions<D>) -> Result<Self> {
        if !(1..=3).contains(&D) {
            bail!(argument, "kernel {kernel:?}: expected one to three spatial axes");
        }
        let mut axes = SmallVec::new();
        for a in 0..D {
            let low = isize::try_from(options.padding[a]);
            let low = low.map_err(|_| Error::argument(format!("padding {:?} is more than memory can address", options.padding)))?;
            axes.push(Window { stride: options.stride[a], dilation: options.dilation[a], padding: (low, low) });
        }
        Ok(Sliding { axes, groups: 1, input: input.into(), kernel: kernel[..].into() })
    }

    /// How many columns there are, and how many elements of each channel a column has.
    fn column(&self) -> Result<(usize, usize)> {
        let count = |e: &Shape| e.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match (count(&self.kernel), count(&self.output()?)) {
            (Some(taps), Some(positions)) => Ok((taps, positions)),
            _ => bail!(shape, "windows {} of an image {}: more elements than memory can address", self.kernel, self.input),
        }
    }

    /// Planes as images of one channel.
    fn planes_plan(&self, planes: usize) -> Result<Conv> {
        self.plan(planes, 1, 1)
    }
}

impl Describe for Unfold {
    const NAME: &'static str = "unfold";
    const MATH: Math = Math {
        forward: "y[n, c·K + k, p] = x[n, c, p·stride − padding + k·dilation] for the K elements k of the window; the padding is 0",
        vjp: "x̄ = fold(ȳ)",
        kinks: "linear",
        cost: "reads each element once for every window that it is in, writes y: K times x for stride 1; saves nothing",
        references: "torch.nn.functional.unfold; Chellapilla et al., High Performance Convolutional Neural Networks, 2006",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let output = define::positions(&self.0.axes, &self.0.input, &self.0.kernel);
        let table = define::meetings(&self.0.axes, &x[0].shape[2..], &output, &self.0.kernel);
        let taps: usize = self.0.kernel.iter().product();
        vec![Nd::from_fn([x[0].shape[0], x[0].shape[1] * taps, table.len()], |i| {
            define::read(&x[0], i[0], i[1] / taps, table[i[2]][i[1] % taps])
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for &(x, kernel, axes, note) in COLUMNS {
            out.push(Sample::check(Unfold(windows_of(x, kernel, axes)), [g.normal(x)]).note(note));
        }
        let edge = windows_of(&[1, 1, 4], &[3], &[(1, (1, 1), 1)]);
        let special = Input::values([1, 1, 4], [f64::INFINITY, 1.0, f64::NAN, f64::NEG_INFINITY]);
        out.push(Sample::value(Unfold(edge), [special]).note("not finite at borders"));
        let x = [2, 3, 70, 75];
        let wide = windows_of(&x, &[3, 3], &[(1, (1, 1), 1), (2, (1, 1), 1)]);
        out.push(Sample::value(Unfold(wide), [g.normal(x)]).note("several tasks"));
        let x = &[1, 2, 5][..];
        for (kernel, axis, kind) in [
            (6, (1, (0, 0), 1), ErrorKind::Shape),
            (0, (1, (0, 0), 1), ErrorKind::Shape),
            (2, (0, (0, 0), 1), ErrorKind::Argument),
            (2, (1, (0, 0), 0), ErrorKind::Argument),
        ] {
            out.push(Sample::reject(Unfold(windows_of(x, &[kernel], &[axis])), [g.normal(x)], kind));
        }
        let op = Unfold(windows_of(x, &[2], &[(1, (0, 0), 1)]));
        out.push(Sample::reject(op.clone(), [g.normal([2, 5])], ErrorKind::Shape));
        out.push(Sample::reject(op, [g.below(crate::I64, x, 3)], ErrorKind::Dtype));
        let large = &[4, 64, 56, 56][..];
        out.push(Sample::bench(Unfold(windows_of(large, &[3, 3], &[(1, (1, 1), 1), (1, (1, 1), 1)])), [g.normal(large)]));
        out
    }
}

impl Op for Unfold {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let s = &x[0].shape;
        self.0.planes(s)?;
        self.0.extents("x", s, &self.0.input)?;
        let (taps, positions) = self.0.column()?;
        let Some(rows) = s[1].checked_mul(taps) else { bail!(shape, "x {s}: more elements in a column than memory can address") };
        Ok(smallvec![Spec { shape: Shape::from([s[0], rows, positions]), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let plan = self.0.planes_plan(x[0].shape()[..2].iter().product())?;
        with_float!(x[0].dtype(), T => cpu::conv::unfold::<T>(&plan, &x[0], y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let plan = self.0.planes_plan(x[0].shape()[..2].iter().product())?;
        cuda::conv::unfold(&plan, &x[0], &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(Fold(self.0.clone()), &[y_bar.only()?])?)])
    }
}

impl Describe for Fold {
    const NAME: &'static str = "fold";
    const MATH: Math = Math {
        forward: "y[n, c, q] = Σ x[n, c·K + k, p] over all p, k with p·stride − padding + k·dilation = q",
        vjp: "x̄ = unfold(ȳ)",
        kinks: "linear; what no window reaches is 0",
        cost: "reads x, writes y; saves nothing",
        references: "torch.nn.functional.fold",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let output = define::positions(&self.0.axes, &self.0.input, &self.0.kernel);
        let table = define::meetings(&self.0.axes, &self.0.input, &output, &self.0.kernel);
        let taps: usize = self.0.kernel.iter().product();
        let plane: usize = self.0.input.iter().product();
        let (images, channels) = (x[0].shape[0], x[0].shape[1] / taps);
        let mut terms: Vec<Vec<S>> = vec![Vec::new(); images * channels * plane];
        for i in 0..images * channels {
            for (p, meetings) in table.iter().enumerate() {
                for (k, at) in meetings.iter().enumerate() {
                    let Some(at) = at else { continue };
                    terms[i * plane + at].push(x[0].at(&[i / channels, i % channels * taps + k, p]));
                }
            }
        }
        vec![Nd::new([&[images, channels], &self.0.input[..]].concat(), terms.iter().map(|t| S::sum(t)).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for &(x, kernel, axes, note) in COLUMNS {
            let windows = windows_of(x, kernel, axes);
            let shape = columns(x, &windows);
            out.push(Sample::check(Fold(windows), [g.normal(shape)]).note(note));
        }
        let edge = windows_of(&[1, 1, 2], &[3], &[(1, (1, 1), 1)]);
        let special = Input::values([1, 3, 2], [f64::INFINITY, 1.0, f64::NAN, 2.0, 3.0, f64::NEG_INFINITY]);
        out.push(Sample::value(Fold(edge), [special]).note("not finite, some in the padding"));
        let x = [2, 3, 70, 75];
        let wide = windows_of(&x, &[3, 3], &[(1, (1, 1), 1), (2, (1, 1), 1)]);
        let shape = columns(&x, &wide);
        out.push(Sample::value(Fold(wide), [g.normal(shape)]).note("large planes"));
        let x = &[1, 2, 5][..];
        let op = || Fold(windows_of(x, &[2], &[(1, (0, 0), 1)]));
        for shape in [&[1, 4, 3][..], &[1, 5, 4], &[4, 4], &[1, 4, 4, 1]] {
            out.push(Sample::reject(op(), [g.normal(shape)], ErrorKind::Shape));
        }
        out.push(Sample::reject(Fold(windows_of(x, &[6], &[(1, (0, 0), 1)])), [g.normal([1, 12, 1])], ErrorKind::Shape));
        out.push(Sample::reject(Fold(windows_of(x, &[2], &[(0, (0, 0), 1)])), [g.normal([1, 4, 4])], ErrorKind::Argument));
        out.push(Sample::reject(op(), [g.below(crate::I64, [1, 4, 4], 3)], ErrorKind::Dtype));
        let large = &[4, 64, 56, 56][..];
        let windows = windows_of(large, &[3, 3], &[(1, (1, 1), 1), (1, (1, 1), 1)]);
        let shape = columns(large, &windows);
        out.push(Sample::bench(Fold(windows), [g.normal(shape)]));
        out
    }
}

impl Fold {
    /// Images and channels of the result.
    fn lead(&self, x: &Shape) -> Result<[usize; 2]> {
        let (taps, positions) = self.0.column()?;
        if x.rank() != 3 {
            bail!(shape, "x {x}: expected [batch, channels · {taps}, columns] for the window {}", self.0.kernel);
        }
        if !x[1].is_multiple_of(taps) || x[2] != positions {
            let (kernel, input) = (&self.0.kernel, &self.0.input);
            bail!(
                shape,
                "x {x}: a window {kernel} over an image {input} makes {positions} columns, each of a multiple of {taps} elements; found {} of {}",
                x[2],
                x[1]
            );
        }
        Ok([x[0], x[1] / taps])
    }
}

impl Op for Fold {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        let shape = self.lead(&x[0].shape)?.into_iter().chain(self.0.input.iter().copied()).collect();
        Ok(smallvec![Spec { shape, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let plan = self.0.planes_plan(self.lead(x[0].shape())?.iter().product())?;
        with_float!(x[0].dtype(), T => cpu::conv::fold::<T>(&plan, &x[0], y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let plan = self.0.planes_plan(self.lead(x[0].shape())?.iter().product())?;
        cuda::conv::fold(&plan, &x[0], &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(apply1(Unfold(self.0.clone()), &[y_bar.only()?])?)])
    }
}

#[track_caller]
fn windows<const D: usize>(name: &'static str, input: &[usize], kernel: &[usize; D], options: &UnfoldOptions<D>) -> Result<Sliding> {
    let at = Location::caller();
    Sliding::columns(input, kernel, options).map_err(|e| e.in_op(name, at))
}

impl Tensor {
    /// Each window of `[batch, channels, ..]` as a column: im2col. One to three spatial axes, as many as `kernel` has.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::UnfoldOptions};
    /// let x = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6., 7., 8., 9.], [1, 1, 3, 3])?;
    /// let columns = x.unfold([2, 2], &UnfoldOptions::default())?;
    /// assert_eq!(columns.to_vec::<f32>()?, [1., 2., 4., 5., 2., 3., 5., 6., 4., 5., 7., 8., 5., 6., 8., 9.]);
    /// let counted = columns.fold([3, 3], [2, 2], &UnfoldOptions::default())?; // each as often as windows see it
    /// assert_eq!(counted.to_vec::<f32>()?, [1., 4., 3., 8., 20., 12., 7., 16., 9.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Shapes
    /// `[batch, channels · K, columns]` for windows of `K` elements: the rows are channels, and in each the window's elements in row-major
    /// order; the columns are the windows in row-major order, of which each axis has `(padded − dilation · (kernel − 1) − 1) / stride + 1`,
    /// rounded down. Without the batch axis `x` is one image, and so is the result.
    ///
    /// # Gradient
    /// [`Tensor::fold`] of `ȳ`; saves nothing.
    ///
    /// # Errors
    /// Shape error for other axes, or a window larger than the padded image; argument error for a stride or dilation of 0, or more than three
    /// axes; dtype error for integers.
    #[doc(alias("im2col"))]
    #[track_caller]
    pub fn unfold<const D: usize>(&self, kernel: [usize; D], options: &UnfoldOptions<D>) -> Result<Tensor> {
        let image = one_image(self, D)?;
        let x = image.as_ref().unwrap_or(self);
        let input = x.shape().get(2..).unwrap_or(&[]);
        let y = apply1_as("unfold", Unfold(windows("unfold", input, &kernel, options)?), &[x])?;
        if image.is_some() { y.squeeze(0) } else { Ok(y) }
    }

    /// Images of the spatial extents `output` from columns: each element is the sum of all that [`Tensor::unfold`] took it to. col2im.
    ///
    /// # Shapes
    /// `x` is `[batch, channels · K, columns]`, as `unfold` of such an image gives it; the result `[batch, channels, ..]`.
    ///
    /// # Gradient
    /// [`Tensor::unfold`] of `ȳ`; saves nothing.
    ///
    /// # Numerics
    /// Half types accumulate in f32.
    ///
    /// # Errors
    /// Shape error unless `x` has as many columns as `output` has windows, and rows for whole channels; else as `unfold`.
    #[doc(alias("col2im"))]
    #[track_caller]
    pub fn fold<const D: usize>(&self, output: [usize; D], kernel: [usize; D], options: &UnfoldOptions<D>) -> Result<Tensor> {
        let image = one_image(self, 1)?;
        let y = apply1_as("fold", Fold(windows("fold", &output, &kernel, options)?), &[image.as_ref().unwrap_or(self)])?;
        if image.is_some() { y.squeeze(0) } else { Ok(y) }
    }
}
