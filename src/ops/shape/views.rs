//! Changes of layout: no element moves. (And `contiguous`, which moves them so that the next reader need not.)

use crate::backend::{cpu, cuda};
use crate::dtype::with_dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::op::{
    Composite, Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, Stretch, View, apply_view, apply_view_as, apply1,
    compose1,
};
use crate::shape::{Axis, Extents, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};
use std::panic::Location;

/// A new shape for the same elements; see [`Tensor::reshape`].
#[derive(Clone, Debug)]
pub struct Reshape(pub Shape);

impl Describe for Reshape {
    const NAME: &'static str = "reshape";
    const MATH: Math = Math {
        forward: "the same elements in row-major order under another shape",
        vjp: "x̄ = ȳ reshaped back",
        kinks: "linear",
        cost: "none when the layout allows a view, else one copy",
        references: "numpy.reshape",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].reshape(&self.0)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (a, b) = (g.extent(), g.extent());
        vec![
            Sample::check(Reshape([b, a].into()), [g.normal([a, b])]),
            Sample::check(Reshape([a * b].into()), [g.normal([a, b])]),
            Sample::check(Reshape([1, a, 1, b].into()), [g.normal([a, b])]),
            Sample::check(Reshape(().into()), [g.normal([1, 1])]),
            Sample::check(Reshape([3, 0].into()), [g.normal([0, 2])]).note("zero_reshape"),
            Sample::reject(Reshape([5].into()), [g.normal([2, 3])], ErrorKind::Shape),
        ]
    }
}

impl View for Reshape {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        let fits = self.0.checked_numel()? == x.numel();
        fits.then(|| x.reshape(&self.0))
            .ok_or_else(|| {
                Error::shape(format!("cannot reshape {} ({} elements) to {} ({} elements)", x.shape(), x.numel(), self.0, self.0.numel()))
            })?
            .ok_or_else(|| Error::shape("this layout needs a copy first: call contiguous()"))
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        y_bar.reshape(&x.shape)
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

/// Repetition along axes of extent 1; see [`Tensor::expand`].
#[derive(Clone, Debug)]
pub struct Expand(pub Shape);

impl Describe for Expand {
    const NAME: &'static str = "expand";
    const MATH: Math = Math {
        forward: "x repeated along new leading axes and axes of extent 1",
        vjp: "x̄ = ȳ summed over the repeated axes",
        kinks: "linear",
        cost: "none: a view with stride 0",
        references: "numpy.broadcast_to",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![Nd::from_fn(&self.0, |i| x[0].broadcast_at(i))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (a, b) = (g.extent(), g.extent());
        vec![
            Sample::check(Expand([a, b].into()), [g.normal([a, 1])]),
            Sample::check(Expand([2, a, b].into()), [g.normal([a, b])]),
            Sample::check(Expand([2, 3].into()), [g.normal(())]),
            Sample::check(Expand([0, 3].into()), [g.normal([1, 3])]),
            Sample::reject(Expand([4].into()), [g.normal([3])], ErrorKind::Shape),
            Sample::reject(Expand([3].into()), [g.normal([1, 3])], ErrorKind::Shape),
        ]
    }
}

impl View for Expand {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        self.0.checked_numel()?;
        x.expand(&self.0)
    }

    fn vjp(&self, _: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        // The sweep sums over what was broadcast.
        Ok(y_bar.clone())
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

/// Neighbouring axes joined; see [`Tensor::flatten`].
#[derive(Clone, Debug)]
pub struct Flatten {
    /// First of the axes.
    pub from: Axis,
    /// Last of the axes.
    pub to: Axis,
}

impl Flatten {
    fn shape(&self, x: &Shape) -> Result<Shape> {
        if x.rank() == 0 {
            // As PyTorch: a scalar counts as having one axis.
            self.from.resolve(1)?;
            self.to.resolve(1)?;
            return Ok([1].into());
        }
        let (from, to) = (self.from.resolve(x.rank())?, self.to.resolve(x.rank())?);
        if from > to {
            return Err(Error::shape(format!("the first axis, {from}, comes after the last, {to}, in {x}")));
        }
        let joined = x[from..=to].iter().product();
        Ok(x[..from].iter().copied().chain([joined]).chain(x[to + 1..].iter().copied()).collect())
    }
}

impl Describe for Flatten {
    const NAME: &'static str = "flatten";
    const MATH: Math = Math {
        forward: "the same elements with neighbouring axes joined into one",
        vjp: "x̄ = ȳ reshaped back",
        kinks: "linear",
        cost: "none when the layout allows a view, else one copy",
        references: "torch.flatten",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let mut shape = x[0].shape.to_vec();
        if shape.is_empty() {
            return vec![x[0].reshape([1])]; // a scalar counts as having one axis
        }
        let (from, to) = (x[0].axis_at(self.from), x[0].axis_at(self.to));
        for joined in shape.drain(from + 1..=to).collect::<Vec<_>>() {
            shape[from] *= joined;
        }
        vec![x[0].reshape(shape)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |a: i32, b: i32| Flatten { from: a.into(), to: b.into() };
        vec![
            Sample::check(of(0, -1), [g.normal(&shape)]),
            Sample::check(of(1, 2), [g.normal(&shape)]),
            Sample::check(of(0, 1), [g.normal(&shape)]),
            Sample::check(of(1, 1), [g.normal(&shape)]),
            Sample::check(of(0, -1), [g.normal(())]).note("scalar"),
            Sample::check(of(0, 1), [g.normal([2, 0, 3])]).note("no elements"),
            Sample::reject(of(1, 0), [g.normal(&shape)], ErrorKind::Shape),
            Sample::reject(of(0, 3), [g.normal(&shape)], ErrorKind::Shape),
        ]
    }
}

impl Composite for Flatten {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        Ok(smallvec![x[0].reshape(self.shape(x[0].shape())?)?])
    }
}

/// A row-major copy; see [`Tensor::contiguous`].
#[derive(Clone, Debug)]
pub struct Contiguous;

impl Describe for Contiguous {
    const NAME: &'static str = "contiguous";
    const MATH: Math = Math {
        forward: "y = x, stored in row-major order",
        vjp: "x̄ = ȳ",
        kinks: "linear",
        cost: "one copy, none when x is already contiguous",
        references: "torch.Tensor.contiguous",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].clone()]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        vec![
            Sample::check(Contiguous, [g.normal(shape)]),
            Sample::check(Contiguous, [g.normal([65, 67])]).note("larger than a tile, no multiple of one"),
            Sample::check(Contiguous, [g.normal([0, 4])]),
            Sample::bench(Contiguous, [g.normal([2048, 2048])]),
        ]
    }
}

impl Op for Contiguous {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        with_dtype!(x[0].dtype(), T => cpu::copy_strided(x[0].storage::<T>(), x[0].layout(), y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        cuda::copy::gather(y[0].context(), x[0].start(), x[0].layout(), y[0].dst())
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(y_bar.only()?.clone())])
    }
}

impl Tensor {
    /// The same elements in row-major order under another shape. A view where the layout allows one, else a copy.
    ///
    /// In a tuple, one extent may be `()`: it follows from the number of elements, like PyTorch's -1.
    ///
    /// ```
    /// # use cotangent::{F32, Tensor};
    /// let x = Tensor::zeros([4, 6], F32)?;
    /// assert_eq!(x.reshape([2, 12])?.shape(), &[2, 12]);
    /// assert_eq!(x.reshape((2, (), 3))?.shape(), &[2, 4, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ` reshaped back.
    ///
    /// # Errors
    /// Shape error when the element counts differ, or an extent cannot be inferred.
    #[doc(alias("view", "unflatten"))]
    #[track_caller]
    pub fn reshape(&self, shape: impl Extents) -> Result<Tensor> {
        let at = Location::caller();
        let shape = shape.resolve(self.numel()).map_err(|e| e.in_op(Reshape::NAME, at))?;
        if shape.checked_numel().is_ok_and(|n| n == self.numel()) && self.layout().reshape(&shape).is_none() {
            return apply_view(Reshape(shape), &self.contiguous()?);
        }
        apply_view(Reshape(shape), self)
    }

    /// Repeats the tensor along axes of extent 1 and new leading axes, without copying.
    ///
    /// # Gradient
    /// `ȳ` summed over the repeated axes.
    ///
    /// # Errors
    /// Shape error when an extent other than 1 would change.
    #[doc(alias = "broadcast_to")]
    #[track_caller]
    pub fn expand(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        apply_view(Expand(shape.into()), self)
    }

    /// [`Tensor::expand`] to the shape of another tensor.
    ///
    /// # Gradient
    /// `ȳ` summed over the repeated axes; nothing to `other`.
    ///
    /// # Errors
    /// As [`Tensor::expand`].
    #[track_caller]
    pub fn expand_as(&self, other: &Tensor) -> Result<Tensor> {
        apply_view_as("expand_as", Expand(other.shape().clone()), self)
    }

    /// Joins the axes from `from` to `to`, both included: `x.flatten(1, -1)`. A view where the layout allows one.
    ///
    /// # Gradient
    /// `ȳ` reshaped back; saves nothing.
    ///
    /// # Errors
    /// Shape error when an axis does not exist, or `from` comes after `to`.
    #[track_caller]
    pub fn flatten(&self, from: impl Into<Axis>, to: impl Into<Axis>) -> Result<Tensor> {
        compose1(Flatten { from: from.into(), to: to.into() }, &[self])
    }

    /// The same values stored in row-major order; free when they already are.
    ///
    /// # Gradient
    /// `ȳ`.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() { Ok(self.clone()) } else { apply1(Contiguous, &[self]) }
    }
}
