//! Axes of extent 1 added and removed: views, no element moves.

use crate::error::{ErrorKind, Result, bail};
use crate::layout::Layout;
use crate::op::{Describe, Math, Spec, Stretch, View, apply_view};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar, axis_index};

/// One axis of extent 1 removed; see [`Tensor::squeeze`].
#[derive(Clone, Debug)]
pub struct Squeeze(pub Axis);

impl Describe for Squeeze {
    const NAME: &'static str = "squeeze";
    const MATH: Math = Math {
        forward: "the same elements without an axis of extent 1",
        vjp: "x̄ = ȳ with the axis put back",
        kinks: "linear",
        cost: "none: a view",
        references: "torch.squeeze; numpy.squeeze",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![x[0].reshape(x[0].extents_without(&[x[0].axis_at(self.0)], false))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (a, b) = (g.extent(), g.extent());
        let of = |a: i32| Squeeze(a.into());
        vec![
            Sample::check(of(0), [g.normal([1, a, b])]),
            Sample::check(of(1), [g.normal([a, 1, b])]),
            Sample::check(of(-1), [g.normal([a, b, 1])]),
            Sample::check(of(0), [g.normal([1])]).note("to a scalar"),
            Sample::check(of(0), [g.normal([1, 0])]).note("no elements"),
            Sample::reject(of(1), [g.normal([2, 3])], ErrorKind::Shape),
            Sample::reject(of(0), [g.normal([0, 3])], ErrorKind::Shape),
            Sample::reject(of(2), [g.normal([1, 1])], ErrorKind::Shape).note("axis out of range"),
        ]
    }
}

impl View for Squeeze {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        let axis = self.0.resolve(x.rank())?;
        if x.shape()[axis] != 1 {
            bail!(shape, "axis {} of {} has extent {}; only an extent of 1 can be removed", self.0.0, x.shape(), x.shape()[axis]);
        }
        Ok(x.with_axis(axis, false))
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        y_bar.reshape(&x.shape)
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

/// Every axis of extent 1 removed; see [`Tensor::squeeze_all`].
#[derive(Clone, Debug)]
pub struct SqueezeAll;

impl Describe for SqueezeAll {
    const NAME: &'static str = "squeeze_all";
    const MATH: Math = Math {
        forward: "the same elements without the axes of extent 1",
        vjp: "x̄ = ȳ with the axes put back",
        kinks: "linear",
        cost: "none: a view",
        references: "torch.squeeze without an axis",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape: crate::Shape = x[0].shape.iter().copied().filter(|&d| d != 1).collect();
        vec![x[0].reshape(shape)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let a = g.extent();
        vec![
            Sample::check(SqueezeAll, [g.normal([1, 3, 1])]).note("fixture squeeze"),
            Sample::check(SqueezeAll, [g.normal([a, 1, 2])]),
            Sample::check(SqueezeAll, [g.normal([2, a])]),
            Sample::check(SqueezeAll, [g.normal([1, 1])]),
            Sample::check(SqueezeAll, [g.normal(())]),
            Sample::check(SqueezeAll, [g.normal([1, 0, 1])]).note("no elements"),
        ]
    }
}

impl View for SqueezeAll {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        let mut y = x.clone();
        for axis in (0..x.rank()).rev().filter(|&i| x.shape()[i] == 1) {
            y = y.with_axis(axis, false);
        }
        Ok(y)
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        y_bar.reshape(&x.shape)
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

/// An axis of extent 1 inserted; see [`Tensor::unsqueeze`].
#[derive(Clone, Debug)]
pub struct Unsqueeze(pub Axis);

impl Unsqueeze {
    /// Position of the new axis among `rank + 1`.
    fn position(&self, rank: usize) -> Result<usize> {
        match self.0.resolve(rank + 1) {
            Ok(axis) => Ok(axis),
            Err(_) => bail!(shape, "no axis can be inserted at {} into a tensor of rank {rank} (valid: -{}..={rank})", self.0.0, rank + 1),
        }
    }
}

impl Describe for Unsqueeze {
    const NAME: &'static str = "unsqueeze";
    const MATH: Math = Math {
        forward: "the same elements with a new axis of extent 1",
        vjp: "x̄ = ȳ without the axis",
        kinks: "linear",
        cost: "none: a view",
        references: "torch.unsqueeze; numpy.expand_dims",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = axis_index(self.0, x[0].shape.rank() + 1);
        let mut shape = x[0].shape.to_vec();
        shape.insert(axis, 1);
        vec![x[0].reshape(shape)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        let of = |a: i32| Unsqueeze(a.into());
        let mut out: Vec<_> = [0, 1, 2, -1, -3].iter().map(|&a| Sample::check(of(a), [g.normal(&shape)])).collect();
        out.push(Sample::check(of(0), [g.normal(())]).note("scalar"));
        out.push(Sample::check(of(1), [g.normal([0])]).note("no elements"));
        out.push(Sample::reject(of(3), [g.normal([2, 3])], ErrorKind::Shape));
        out.push(Sample::reject(of(-4), [g.normal([2, 3])], ErrorKind::Shape));
        out
    }
}

impl View for Unsqueeze {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        Ok(x.with_axis(self.position(x.rank())?, true))
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        y_bar.reshape(&x.shape)
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

impl Tensor {
    /// Removes an axis of extent 1. A view; no element moves.
    ///
    /// Unlike PyTorch, another extent is an error instead of nothing happening.
    ///
    /// # Gradient
    /// `ȳ` with the axis put back; saves nothing.
    ///
    /// # Errors
    /// Shape error when the axis does not exist or its extent is not 1.
    #[track_caller]
    pub fn squeeze(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply_view(Squeeze(axis.into()), self)
    }

    /// Removes every axis of extent 1. A view; no element moves.
    ///
    /// # Gradient
    /// `ȳ` with the axes put back; saves nothing.
    ///
    /// # Errors
    /// Tape error when a tracked operand's tape was consumed.
    #[track_caller]
    pub fn squeeze_all(&self) -> Result<Tensor> {
        apply_view(SqueezeAll, self)
    }

    /// Inserts an axis of extent 1, so that it is axis `axis` of the result. A view; no element moves.
    ///
    /// # Gradient
    /// `ȳ` without the axis; saves nothing.
    ///
    /// # Errors
    /// Shape error when `axis` is outside `-rank - 1..=rank`.
    #[doc(alias("expand_dims", "newaxis"))]
    #[track_caller]
    pub fn unsqueeze(&self, axis: impl Into<Axis>) -> Result<Tensor> {
        apply_view(Unsqueeze(axis.into()), self)
    }
}
