//! The main diagonal over two axes: a view, no element moves.

use super::slice::{Slice, SliceVjp};
use crate::error::{ErrorKind, Result, bail};
use crate::layout::Layout;
use crate::op::{Describe, Math, Spec, Stretch, View, apply_view, apply1};
use crate::shape::{Axis, Dims, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};

/// The elements with equal positions on two axes; see [`Tensor::diagonal`].
#[derive(Clone, Debug)]
pub struct Diagonal {
    /// One of the axes.
    pub a: Axis,
    /// The other one.
    pub b: Axis,
}

impl Diagonal {
    fn axes(&self, shape: &Shape) -> Result<(usize, usize)> {
        let (a, b) = (self.a.resolve(shape.rank())?, self.b.resolve(shape.rank())?);
        if a == b {
            bail!(shape, "a diagonal needs two different axes of {shape}, found axis {a} twice");
        }
        Ok((a, b))
    }
}

/// The other axes in order, then the two.
fn pair_last(rank: usize, a: usize, b: usize) -> Dims {
    (0..rank).filter(|&i| i != a && i != b).chain([a, b]).collect()
}

impl Describe for Diagonal {
    const NAME: &'static str = "diagonal";
    const MATH: Math = Math {
        forward: "y[…, k] = x[…, k, …, k, …], the new axis last",
        vjp: "x̄ = 0 except x̄[…, k, …, k, …] = ȳ[…, k]",
        kinks: "linear",
        cost: "none: a view; the derivative writes x̄ once; saves nothing",
        references: "torch.diagonal with offset 0",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let (a, b) = (x[0].axis_at(self.a), x[0].axis_at(self.b));
        let rest: Vec<usize> = (0..shape.rank()).filter(|&i| i != a && i != b).collect();
        let out: Shape = rest.iter().map(|&i| shape[i]).chain([shape[a].min(shape[b])]).collect();
        vec![Nd::from_fn(out, |i| {
            let mut at = vec![0; shape.rank()];
            for (&axis, &i) in rest.iter().zip(i) {
                at[axis] = i;
            }
            at[a] = i[rest.len()];
            at[b] = i[rest.len()];
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (n, m) = (g.extent(), g.extent());
        let of = |a: i32, b: i32| Diagonal { a: a.into(), b: b.into() };
        vec![
            Sample::check(of(0, 1), [g.normal([n, n])]),
            Sample::check(of(1, 0), [g.normal([n, m])]),
            Sample::check(of(0, 1), [g.normal([2, 5])]).note("wide"),
            Sample::check(of(0, 1), [g.normal([5, 2])]).note("tall"),
            Sample::check(of(-2, -1), [g.normal([2, 3, 3])]),
            Sample::check(of(0, 2), [g.normal([3, 2, 4])]).note("axes apart"),
            Sample::check(of(3, 1), [g.normal([2, 3, 2, 2])]),
            Sample::check(of(0, 1), [g.normal([1, 1])]),
            Sample::check(of(0, 1), [g.normal([1, 6])]),
            Sample::check(of(0, 1), [g.normal([0, 3])]).note("no rows"),
            Sample::check(of(0, 1), [g.normal([3, 0])]).note("no columns"),
            Sample::check(of(1, 2), [g.normal([0, 2, 2])]).note("no matrices"),
            Sample::value(of(0, 1), [g.normal([200, 210])]),
            Sample::reject(of(0, 0), [g.normal([2, 2])], ErrorKind::Shape),
            Sample::reject(of(1, -1), [g.normal([2, 2])], ErrorKind::Shape).note("the same axis under two names"),
            Sample::reject(of(0, 2), [g.normal([2, 2])], ErrorKind::Shape).note("axis out of range"),
            Sample::reject(of(0, 1), [g.normal([3])], ErrorKind::Shape),
            Sample::bench(of(0, 1), [g.normal([2048, 2048])]),
        ]
    }
}

impl View for Diagonal {
    fn layout(&self, x: &Layout) -> Result<Layout> {
        let (a, b) = self.axes(x.shape())?;
        let rest = pair_last(x.rank(), a, b);
        let rest = &rest[..x.rank() - 2];
        let shape = rest.iter().map(|&i| x.shape()[i]).chain([x.shape()[a].min(x.shape()[b])]).collect();
        // A stride that nothing steps by may be saturated.
        let step = x.strides()[a].saturating_add(x.strides()[b]);
        let strides = rest.iter().map(|&i| x.strides()[i]).chain([step]).collect();
        Layout::from_parts(shape, strides, x.offset())
    }

    fn vjp(&self, x: &Spec, y_bar: &Tensor) -> Result<Tensor> {
        let (a, b) = self.axes(&x.shape)?;
        let order = pair_last(x.shape.rank(), a, b);
        let lead = order.len() - 2;
        let (rows, cols) = (x.shape[a], x.shape[b]);
        // With the two axes joined, the diagonal is every (cols + 1)-th element.
        let flat: Shape = order[..lead].iter().map(|&i| x.shape[i]).chain([rows * cols]).collect();
        let end = rows.min(cols).checked_sub(1).map_or(0, |last| last * (cols + 1) + 1);
        let slice = Slice { axis: lead.into(), span: (0..end).into(), step: cols + 1 };
        let bar = apply1(SliceVjp { slice, of: flat }, &[y_bar])?;
        let square: Shape = order.iter().map(|&i| x.shape[i]).collect();
        let mut back = Dims::from_elem(0, order.len());
        for (i, &axis) in order.iter().enumerate() {
            back[axis] = i;
        }
        bar.reshape(square)?.permute(&back[..])
    }

    fn stretch(&self, _: &Shape) -> Option<Stretch> {
        None
    }
}

impl Tensor {
    /// The main diagonal over two axes, which disappear; it becomes the last axis, as long as the shorter of the two.
    /// A view; no element moves.
    ///
    /// # Gradient
    /// `ȳ` on the diagonal of zeros; saves nothing.
    ///
    /// # Shapes
    /// `x.diagonal(0, 1)` takes `[3, 4, 7]` to `[7, 3]`.
    ///
    /// # Errors
    /// Shape error when an axis does not exist or both are the same.
    ///
    /// ```
    /// # use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.watch(&Tensor::from_slice(&[1f32, 2., 3., 4.], [2, 2])?)?;
    /// let y = x.diagonal(0, 1)?;
    /// assert_eq!(y.to_vec::<f32>()?, [1., 4.]);
    /// let grads = tape.backward(&y.square()?.sum(..)?)?;
    /// assert_eq!(grads.get(&x)?.to_vec::<f32>()?, [2., 0., 0., 8.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias = "diag")]
    #[track_caller]
    pub fn diagonal(&self, a: impl Into<Axis>, b: impl Into<Axis>) -> Result<Tensor> {
        apply_view(Diagonal { a: a.into(), b: b.into() }, self)
    }
}
