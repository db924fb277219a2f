//! The positions of an axis as tensors of their own: views, no element moves.

use super::split::{array, join};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Cotangents, Describe, Math, Outputs, apply_parts, compose};
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};

/// Every position of an axis; see [`Tensor::unbind`].
#[derive(Clone, Debug)]
pub struct Unbind(pub Axis);

/// More tensors than this would take gigabytes for their layouts alone.
const MOST: usize = 1 << 24;

impl Describe for Unbind {
    const NAME: &'static str = "unbind";
    const MATH: Math = Math {
        forward: "y₁[…, …] = x[…, 0, …], y₂[…, …] = x[…, 1, …], …",
        vjp: "x̄ = ȳ₁, ȳ₂, … side by side, zero where a position was not used",
        kinks: "linear",
        cost: "none: views; the derivative writes x̄ once",
        references: "torch.unbind",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.0);
        let mut rest = x[0].shape.to_vec();
        let positions = rest.remove(axis);
        let position = |k: usize| {
            Nd::from_fn(rest.clone(), |i| {
                let mut at = i.to_vec();
                at.insert(axis, k);
                x[0].at(&at)
            })
        };
        (0..positions).map(position).collect()
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (a, b) = (g.extent(), g.extent());
        let of = |axis: i32| Unbind(axis.into());
        vec![
            Sample::check(of(0), [g.normal([3, a])]),
            Sample::check(of(1), [g.normal([a, 4, b])]),
            Sample::check(of(-1), [g.normal([a, b, 2])]),
            Sample::check(of(0), [g.normal([3])]).note("to scalars"),
            Sample::check(of(0), [g.normal([1, 2])]).note("one position"),
            Sample::check(of(0), [g.normal([2, 0])]).note("no elements"),
            Sample::reject(of(1), [g.normal([3])], ErrorKind::Shape).note("axis out of range"),
        ]
    }
}

impl Composite for Unbind {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let axis = x[0].shape().axis(self.0)?;
        let n = x[0].shape()[axis];
        if n > MOST {
            bail!(out_of_memory, "{n} positions of {} are {n} tensors; at most {MOST} are made", x[0].shape());
        }
        if n == 0 {
            return Ok(Outputs::new());
        }
        let position = |k: usize| Ok(x[0].layout().slice(axis, k, 1, 1)?.with_axis(axis, false));
        let of = x[0].shape().clone();
        apply_parts(Self::NAME, x[0], (0..n).map(position), move |y_bar| {
            let bars = y_bar.0.iter().map(|bar| bar.as_ref().map(|bar| bar.unsqueeze(axis)).transpose());
            join(&Cotangents(crate::memory::try_short(bars)?), &crate::memory::vec_of(1, n)?, axis, &of)
        })
    }
}

impl Tensor {
    /// The positions of an axis as tensors without it: the steps of a sequence, the rows of a matrix. Views; no element moves.
    ///
    /// # Shapes
    /// `x.unbind(1)` of `[batch, time, width]` gives `time` tensors `[batch, width]`.
    ///
    /// # Gradient
    /// Each part's `ȳ` at its place, written once for all; saves nothing.
    ///
    /// # Errors
    /// Shape error when the axis does not exist; out of memory for more than 2²⁴ positions.
    ///
    /// ```
    /// # use cotangent::{Tensor, grad};
    /// let x = Tensor::from_rows(&[[1f32, 2., 3.], [4., 5., 6.]])?;
    /// let columns = x.unbind(1)?;
    /// assert_eq!((columns.len(), columns[2].to_vec::<f32>()?), (3, vec![3., 6.]));
    /// let g = grad(&x, |x| x.unbind(0)?[1].square()?.sum(..))?;
    /// assert_eq!(g.to_vec::<f32>()?, [0., 0., 0., 8., 10., 12.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias = "unstack")]
    #[track_caller]
    pub fn unbind(&self, axis: impl Into<Axis>) -> Result<Vec<Tensor>> {
        Ok(compose(Unbind(axis.into()), &[self])?.into_vec())
    }
    /// The positions of an axis, taken apart by a pattern: [`Tensor::unbind`] for an axis whose extent is known. For equal stretches of an
    /// axis there is [`Tensor::parts`].
    ///
    /// # Shapes
    /// `let [q, k, v] = x.unpack(0)?;` takes `[3, batch, width]` to three tensors `[batch, width]`.
    ///
    /// # Gradient
    /// Each part's `ȳ` at its place, written once for all; saves nothing.
    ///
    /// # Errors
    /// Shape error when the axis does not exist, or has another extent than the pattern has places.
    ///
    /// ```
    /// # use cotangent::{F32, Key, Tensor};
    /// let qkv = Tensor::randn([3, 2, 5], F32, Key::new(1))?;
    /// let [q, k, v] = qkv.unpack(0)?;
    /// assert_eq!((q.shape().dims(), k.shape(), v.shape()), (&[2, 5][..], q.shape(), q.shape()));
    /// let e = qkv.unpack::<2>(1).and(qkv.unpack::<2>(2)).unwrap_err();
    /// assert!(e.to_string().starts_with("unpack: axis 2 of [3, 2, 5] has extent 5, the pattern 2 places"));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn unpack<const N: usize>(&self, axis: impl Into<Axis>) -> Result<[Tensor; N]> {
        let at = std::panic::Location::caller();
        array(positions(self, axis.into(), N).map_err(|e| e.in_op("unpack", at))?)
    }
}

#[track_caller]
fn positions(x: &Tensor, axis: Axis, places: usize) -> Result<Vec<Tensor>> {
    let a = x.shape().axis(axis)?;
    let n = x.shape()[a];
    if n != places {
        bail!(shape, "axis {a} of {} has extent {n}, the pattern {places} places", x.shape());
    }
    Ok(compose(Unbind(axis), &[x])?.into_vec())
}
