//! Reordering of axes: views, no element moves.

use crate::error::{ErrorKind, Result, bail};
use crate::layout::Layout;
use crate::op::{Describe, Math, Spec, Stretch, View, apply_view, apply_view_as};
use crate::shape::{Axes, Axis, Dims, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};

/// Axes in a new order; see [`Tensor::permute`].
#[derive(Clone, Debug)]
pub struct Permute(pub Axes);

impl Permute {
    fn order(&self, rank: usize) -> Result<Dims> {
        if self.0 == Axes::All {
            bail!(argument, "name the axes in their new order, as in permute([1, 0])");
        }
        self.0.ordered(rank)
    }
}

impl Describe for Permute {
    const NAME: &'static str = "permute";
    const MATH: Math = Math {
        forward: "y[i_order[0], i_order[1], …] = x[i_0, i_1, …]",
        vjp: "x̄ = ȳ permuted back",
        kinks: "linear",
        cost: "none: a view",
        references: "torch.permute; numpy.transpose",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let order = x[0].axes_at(&self.0);
        let shape: Vec<usize> = order.iter().map(|&a| x[0].shape[a]).collect();
        vec![Nd::from_fn(shape, |i| {
            let mut at = vec![0; i.len()];
            for (&a, &i) in order.iter().zip(i) {
                at[a] = i;
            }
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |axes: &[i32]| Permute(axes.into());
        let mut out = Vec::new();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [-1, 0, -2]] {
            out.push(Sample::check(of(&order), [g.normal(&shape)]));
        }
        out.push(Sample::check(of(&[0, 2, 1, 3]), [g.normal([2, 3, 4, 5])]).note("heads before positions"));
        out.push(Sample::check(of(&[1, 0]), [g.normal([3, 0])]).note("no elements"));
        out.push(Sample::check(of(&[]), [g.normal(())]).note("scalar"));
        out.push(Sample::reject(of(&[0, 0]), [g.normal([2, 3])], ErrorKind::Shape));
        out.push(Sample::reject(of(&[0]), [g.normal([2, 3])], ErrorKind::Shape));
        out.push(Sample::reject(of(&[0, 2]), [g.normal([2, 3])], ErrorKind::Shape).note("axis out of range"));
        out.push(Sample::reject(Permute(Axes::All), [g.normal([2, 3])], ErrorKind::Argument));
        out
    }
}

impl View for Permute {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        x.permute(&self.order(x.rank())?)
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        let order = self.order(x.shape.rank())?;
        let mut back = vec![0usize; order.len()];
        for (i, &a) in order.iter().enumerate() {
            back[a] = i;
        }
        y_bar.permute(&back[..])
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

/// Two axes exchanged; see [`Tensor::transpose`].
#[derive(Clone, Debug)]
pub struct Transpose {
    /// One axis.
    pub a: Axis,
    /// The other.
    pub b: Axis,
}

impl Describe for Transpose {
    const NAME: &'static str = "transpose";
    const MATH: Math = Math {
        forward: "y[…, j, …, i, …] = x[…, i, …, j, …]",
        vjp: "x̄ = ȳ with the same axes exchanged",
        kinks: "linear",
        cost: "none: a view",
        references: "torch.transpose",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (a, b) = (x[0].axis_at(self.a), x[0].axis_at(self.b));
        let mut shape = x[0].shape.to_vec();
        shape.swap(a, b);
        vec![Nd::from_fn(shape, |i| {
            let mut at = i.to_vec();
            at.swap(a, b);
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |a: i32, b: i32| Transpose { a: a.into(), b: b.into() };
        let mut out: Vec<_> =
            [(0, 1), (1, 2), (0, 2), (-1, -2), (1, 1)].iter().map(|&(a, b)| Sample::check(of(a, b), [g.normal(&shape)])).collect();
        out.push(Sample::check(of(0, 1), [g.normal([0, 3])]).note("no elements"));
        out.push(Sample::reject(of(0, 2), [g.normal([2, 3])], ErrorKind::Shape));
        out.push(Sample::reject(of(-1, -2), [g.normal([3])], ErrorKind::Shape).note("a vector has no second axis"));
        out
    }
}

impl View for Transpose {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        let (a, b) = (self.a.resolve(x.rank())?, self.b.resolve(x.rank())?);
        let mut order: Dims = (0..x.rank()).collect();
        order.swap(a, b);
        x.permute(&order)
    }

    fn vjp(&self, _: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        apply_view(self.clone(), y_bar)
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

impl Tensor {
    /// The axes in a new order: `x.permute([0, 2, 1])`. A view; no element moves.
    ///
    /// # Gradient
    /// `ȳ` permuted back, also a view; saves nothing.
    ///
    /// # Errors
    /// Shape error unless every axis is named exactly once.
    ///
    /// ```
    /// # use cotangent::{Tensor, F32};
    /// let x = Tensor::zeros([2, 3, 5], F32)?;
    /// assert_eq!(x.permute([2, 0, 1])?.shape(), &[5, 2, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn permute(&self, order: impl Into<Axes>) -> Result<Tensor> {
        apply_view(Permute(order.into()), self)
    }

    /// Two axes exchanged. A view; no element moves.
    ///
    /// # Gradient
    /// `ȳ` with the same axes exchanged; saves nothing.
    ///
    /// # Errors
    /// Shape error when an axis does not exist.
    #[doc(alias("swapaxes", "swapdims"))]
    #[track_caller]
    pub fn transpose(&self, a: impl Into<Axis>, b: impl Into<Axis>) -> Result<Tensor> {
        apply_view(Transpose { a: a.into(), b: b.into() }, self)
    }

    /// The last two axes exchanged: the transposed matrix, or each matrix of a batch. A view.
    ///
    /// # Gradient
    /// `ȳ` with the last two axes exchanged; saves nothing.
    ///
    /// # Errors
    /// Shape error when there are fewer than two axes.
    #[doc(alias = "mT")]
    #[track_caller]
    pub fn t(&self) -> Result<Tensor> {
        apply_view_as("t", Transpose { a: Axis(-2), b: Axis(-1) }, self)
    }
}
