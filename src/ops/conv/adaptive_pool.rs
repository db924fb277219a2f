//! Means and maxima of as many windows as are asked for.

use super::sliding::one_image;
use crate::dtype::DType;
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1_as};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::smallvec;

/// The mean (or with `MAX` the largest element) of each of `output` windows along the spatial axes; see
/// [`Tensor::adaptive_avg_pool2d`].
#[derive(Clone, Debug)]
pub struct AdaptivePool<const MAX: bool> {
    /// The output's spatial extents.
    pub output: Shape,
}

/// Window `i` of `of` along an axis of `n`: from the first element that it touches to the last.
fn window(i: usize, of: usize, n: usize) -> (usize, usize) {
    (i * n / of, ((i + 1) * n).div_ceil(of))
}

impl<const MAX: bool> Describe for AdaptivePool<MAX> {
    const NAME: &'static str = if MAX { "adaptive_max_pool" } else { "adaptive_avg_pool" };
    const MATH: Math = Math {
        forward: if MAX {
            "y = max of x over window i of O along each axis of L: from ⌊i·L/O⌋ up to ⌈(i+1)·L/O⌉"
        } else {
            "y = mean of x over window i of O along each axis of L: from ⌊i·L/O⌋ up to ⌈(i+1)·L/O⌉"
        },
        vjp: if MAX {
            "x̄ = ȳ at the first largest element of each window"
        } else {
            "x̄ = Σ ȳ / size over the windows that see an element"
        },
        kinks: if MAX { "the first of equals has all of the cotangent; NaN wins" } else { "linear" },
        cost: "a composition: along one axis after the other, a reduction of each window; saves places of maxima",
        references: "torch.nn.functional.adaptive_avg_pool2d, adaptive_max_pool2d",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = [&x[0].shape[..2], &self.output[..]].concat();
        vec![Nd::from_fn(shape, |i| {
            let mut inside = vec![i[..2].to_vec()];
            for (a, &of) in self.output.iter().enumerate() {
                let n = x[0].shape[2 + a];
                // The elements that touch the i-th of equal stretches.
                let touches = |j: &usize| (j + 1) * of > i[2 + a] * n && j * of < (i[2 + a] + 1) * n;
                inside = inside.iter().flat_map(|at| (0..n).filter(touches).map(move |j| [&at[..], &[j]].concat())).collect();
            }
            let values: Vec<S> = inside.iter().map(|at| x[0].at(at)).collect();
            if MAX {
                let better = |a: S, b: S| b.re() > a.re() || (b.re().is_nan() && !a.re().is_nan());
                values.iter().copied().reduce(|a, b| if better(a, b) { b } else { a }).unwrap_or(S::zero())
            } else {
                S::sum(&values) / S::lit(values.len() as f64)
            }
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |output: &[usize]| AdaptivePool { output: output.into() };
        let mut out = Vec::new();
        let shapes: [(&[usize], &[usize], &'static str); 7] = [
            (&[2, 2, 6], &[3], "windows of one size"),
            (&[1, 2, 7], &[3], "windows that overlap, of different sizes"),
            (&[1, 2, 3], &[5], "more windows than elements"),
            (&[1, 2, 5, 4], &[2, 3], "two axes"),
            (&[1, 1, 3, 2, 4], &[2, 1, 3], "three axes"),
            (&[2, 3, 4, 3], &[1, 1], "one window: all"),
            (&[0, 2, 4], &[2], "no images"),
        ];
        for (x, output, note) in shapes {
            let input = if MAX { g.distinct(x) } else { g.normal(x) };
            out.push(Sample::check(of(output), [input]).note(note));
        }
        let special = Input::values([1, 1, 6], [f64::INFINITY, 1.0, 2.0, f64::NAN, 3.0, f64::NEG_INFINITY]);
        out.push(Sample::value(of(&[3]), [special]).note("what is not finite stays in its window"));
        if MAX {
            let ties = Input::values([1, 1, 2, 3], [1.0, 3.0, 3.0, 3.0, 3.0, 0.0]);
            out.push(Sample::check(of(&[1, 1]), [ties]).at_kink().note("the first of equals in row-major order"));
        }
        out.push(Sample::reject(of(&[0]), [g.normal([1, 2, 4])], ErrorKind::Argument));
        out.push(Sample::reject(of(&[2]), [g.normal([1, 2, 0])], ErrorKind::Shape));
        out.push(Sample::reject(of(&[2]), [g.normal([2, 4])], ErrorKind::Shape));
        out.push(Sample::reject(of(&[2]), [g.below(crate::I64, [1, 2, 4], 3)], ErrorKind::Dtype));
        out.push(Sample::bench(of(&[7, 7]), [g.normal([8, 64, 28, 28])]));
        out
    }
}

impl<const MAX: bool> Composite for AdaptivePool<MAX> {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let x = x[0];
        if !x.dtype().is_float() {
            bail!(dtype, "expected floats, found {} {}", x.dtype(), x.shape());
        }
        let d = self.output.rank();
        if x.rank() != d + 2 || x.shape()[2..].contains(&0) {
            bail!(shape, "x {}: expected [batch, channels, ..] with {d} spatial axes that are not empty", x.shape());
        }
        if self.output.contains(&0) {
            bail!(argument, "output {} must be at least 1 on every axis", self.output);
        }
        // Of half types nothing is rounded between the axes.
        let mut y = if x.dtype().is_half() && !MAX { x.cast(DType::F32)? } else { x.clone() };
        let reduce = |part: &Tensor, axis: usize| if MAX { Ok(part.max_with_index(axis)?.0) } else { part.mean(axis) };
        // From the last axis on: of equal maxima the first in row-major order is then found.
        for a in (0..d).rev() {
            let (axis, n, of) = (2 + a, y.shape()[2 + a], self.output[a]);
            y = if n.is_multiple_of(of) {
                let split: Shape =
                    y.shape()[..axis].iter().copied().chain([of, n / of]).chain(y.shape()[axis + 1..].iter().copied()).collect();
                reduce(&y.reshape(split)?, axis + 1)?
            } else {
                let one = |i: usize| {
                    let (start, end) = window(i, of, n);
                    reduce(&y.narrow(axis, start, end - start)?, axis)
                };
                let parts = crate::memory::try_collect_ok((0..of).map(one))?;
                Tensor::stack(&parts, axis)?
            };
        }
        Ok(smallvec![y.cast(x.dtype())?])
    }
}

#[track_caller]
fn pool<const MAX: bool>(name: &'static str, x: &Tensor, output: &[usize]) -> Result<Tensor> {
    let image = one_image(x, output.len())?;
    let y = compose1_as(name, AdaptivePool::<MAX> { output: output.into() }, &[image.as_ref().unwrap_or(x)])?;
    if image.is_some() { y.squeeze(0) } else { Ok(y) }
}

impl Tensor {
    /// Means of as many windows of `[batch, channels, length]` as the result has positions.
    /// They lie as in [`Tensor::adaptive_avg_pool2d`].
    ///
    /// # Gradient
    /// `ȳ` divided by the number of elements of its window; added up where windows overlap.
    ///
    /// # Errors
    /// Shape error for other axes, or an empty one; argument error for an extent of 0; dtype error for integers.
    #[track_caller]
    pub fn adaptive_avg_pool1d(&self, output: [usize; 1]) -> Result<Tensor> {
        pool::<false>("adaptive_avg_pool1d", self, &output)
    }

    /// Means of as many windows of `[batch, channels, height, width]` as the result has positions.
    ///
    /// ```
    /// use cotangent::Tensor;
    /// let x = Tensor::from_slice(&[1f32, 2., 3., 4., 5.], [1, 1, 1, 5])?;
    /// assert_eq!(x.adaptive_avg_pool2d([1, 2])?.to_vec::<f32>()?, [2., 4.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Shapes
    /// Window `i` of `O` along an axis of `L` reaches from element `⌊i·L/O⌋` up to `⌈(i+1)·L/O⌉`: windows overlap where `O` does not
    /// divide `L`. Without the batch axis `x` is one image, and so is the result.
    ///
    /// # Gradient
    /// `ȳ` divided by the number of elements of its window; added up where windows overlap.
    ///
    /// # Errors
    /// Shape error for other axes, or an empty one; argument error for an extent of 0; dtype error for integers.
    #[track_caller]
    pub fn adaptive_avg_pool2d(&self, output: [usize; 2]) -> Result<Tensor> {
        pool::<false>("adaptive_avg_pool2d", self, &output)
    }

    /// Means of as many windows of `[batch, channels, depth, height, width]` as the result has positions.
    /// They lie as in [`Tensor::adaptive_avg_pool2d`].
    ///
    /// # Gradient
    /// `ȳ` divided by the number of elements of its window; added up where windows overlap.
    ///
    /// # Errors
    /// Shape error for other axes, or an empty one; argument error for an extent of 0; dtype error for integers.
    #[track_caller]
    pub fn adaptive_avg_pool3d(&self, output: [usize; 3]) -> Result<Tensor> {
        pool::<false>("adaptive_avg_pool3d", self, &output)
    }

    /// Maxima of as many windows of `[batch, channels, length]` as the result has positions.
    /// They lie as in [`Tensor::adaptive_avg_pool2d`]; NaN wins.
    ///
    /// # Gradient
    /// `ȳ` to the first largest element of its window; added up where windows overlap.
    ///
    /// # Errors
    /// Shape error for other axes, or an empty one; argument error for an extent of 0; dtype error for integers.
    #[track_caller]
    pub fn adaptive_max_pool1d(&self, output: [usize; 1]) -> Result<Tensor> {
        pool::<true>("adaptive_max_pool1d", self, &output)
    }

    /// Maxima of as many windows of `[batch, channels, height, width]` as the result has positions.
    /// They lie as in [`Tensor::adaptive_avg_pool2d`]; NaN wins.
    ///
    /// # Gradient
    /// `ȳ` to the first largest element of its window; added up where windows overlap.
    ///
    /// # Errors
    /// Shape error for other axes, or an empty one; argument error for an extent of 0; dtype error for integers.
    #[track_caller]
    pub fn adaptive_max_pool2d(&self, output: [usize; 2]) -> Result<Tensor> {
        pool::<true>("adaptive_max_pool2d", self, &output)
    }

    /// Maxima of as many windows of `[batch, channels, depth, height, width]` as the result has positions.
    /// They lie as in [`Tensor::adaptive_avg_pool2d`]; NaN wins.
    ///
    /// # Gradient
    /// `ȳ` to the first largest element of its window; added up where windows overlap.
    ///
    /// # Errors
    /// Shape error for other axes, or an empty one; argument error for an extent of 0; dtype error for integers.
    #[track_caller]
    pub fn adaptive_max_pool3d(&self, output: [usize; 3]) -> Result<Tensor> {
        pool::<true>("adaptive_max_pool3d", self, &output)
    }
}
