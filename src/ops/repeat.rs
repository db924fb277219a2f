//! Repetition of whole tensors or of single positions.

use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::smallvec;

/// Copies side by side; see [`Tensor::repeat`].
#[derive(Clone, Debug)]
pub struct Repeat(pub Shape);

/// `a · b` as an extent.
fn times(a: usize, b: usize, x: &Shape) -> Result<usize> {
    match a.checked_mul(b) {
        Some(n) => Ok(n),
        None => bail!(out_of_memory, "repeating {x} gives more elements than memory can address"),
    }
}

impl Describe for Repeat {
    const NAME: &'static str = "repeat";
    const MATH: Math = Math {
        forward: "y[i₀, i₁, …] = x[i₀ mod n₀, i₁ mod n₁, …]",
        vjp: "x̄ = Σ of ȳ over the copies",
        kinks: "linear",
        cost: "reads x, writes y; saves nothing",
        references: "torch.Tensor.repeat; numpy.tile",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let lead = self.0.rank() - x[0].shape.rank();
        let shape: Shape = self.0.iter().enumerate().map(|(a, &c)| if a < lead { c } else { c * x[0].shape[a - lead] }).collect();
        vec![Nd::from_fn(shape, |i| {
            let at: Vec<usize> = i[lead..].iter().zip(x[0].shape.iter()).map(|(&i, &d)| i % d).collect();
            x[0].at(&at)
        })]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = Shape::from([g.int(1, 3), g.int(1, 3)]);
        let of = |c: &[usize]| Repeat(c.into());
        vec![
            Sample::check(of(&[2, 3]), [g.normal(&shape)]),
            Sample::check(of(&[1, 4]), [g.normal(&shape)]),
            Sample::check(of(&[1, 1]), [g.normal(&shape)]),
            Sample::check(of(&[2, 1, 2]), [g.normal(&shape)]).note("a new leading axis"),
            Sample::check(of(&[3]), [g.normal(())]).note("scalar"),
            Sample::check(of(&[]), [g.normal(())]),
            Sample::check(of(&[0, 2]), [g.normal(&shape)]).note("no copies"),
            Sample::check(of(&[2, 2]), [g.normal([0, 3])]).note("no elements"),
            Sample::reject(of(&[2]), [g.normal(&shape)], ErrorKind::Shape),
            Sample::reject(of(&[usize::MAX, 2]), [g.normal([2, 3])], ErrorKind::OutOfMemory),
            Sample::bench(of(&[4, 1]), [g.normal([1024, 1024])]),
        ]
    }
}

impl Composite for Repeat {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let shape = x[0].shape();
        let Some(lead) = self.0.rank().checked_sub(shape.rank()) else {
            bail!(
                shape,
                "{} counts were given for the {} axes of {shape}; give one for each, and for new leading axes",
                self.0.rank(),
                shape.rank()
            );
        };
        // [n₀, n₁] → [1, n₀, 1, n₁] → [c₀, n₀, c₁, n₁] → [c₀·n₀, c₁·n₁]: one copy, at the end.
        let (mut apart, mut wide, mut out) = (Vec::new(), Vec::new(), Vec::new());
        for (a, &c) in self.0.iter().enumerate() {
            let n = if a < lead { 1 } else { shape[a - lead] };
            apart.extend([1, n]);
            wide.extend([c, n]);
            out.push(times(c, n, shape)?);
        }
        Ok(smallvec![x[0].reshape(apart)?.expand(wide)?.reshape(out)?])
    }
}

/// Every position several times; see [`Tensor::repeat_interleave`].
#[derive(Clone, Debug)]
pub struct RepeatInterleave {
    /// How often.
    pub count: usize,
    /// The axis.
    pub axis: Axis,
}

impl Describe for RepeatInterleave {
    const NAME: &'static str = "repeat_interleave";
    const MATH: Math = Math {
        forward: "y[…, i, …] = x[…, ⌊i / count⌋, …]",
        vjp: "x̄ = Σ of ȳ over each group of `count` positions",
        kinks: "linear",
        cost: "reads x, writes y; saves nothing",
        references: "torch.repeat_interleave; numpy.repeat",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        vec![Nd::from_fn(x[0].extents_with(axis, x[0].shape[axis] * self.count), |i| {
            let mut at = i.to_vec();
            at[axis] /= self.count;
            x[0].at(&at)
        })]
    }

    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = Shape::from([g.int(1, 3), g.int(1, 3), g.int(1, 3)]);
        let of = |count: usize, axis: i32| RepeatInterleave { count, axis: axis.into() };
        let mut out: Vec<_> = [(2, 0), (3, 1), (2, -1), (1, 1)].iter().map(|&(c, a)| Sample::check(of(c, a), [g.normal(&shape)])).collect();
        out.push(Sample::check(of(3, 1), [g.normal([1, 2, 3, 4])]).note("fixture repeat_interleave: shared key heads"));
        out.push(Sample::check(of(0, 1), [g.normal(&shape)]).note("no copies"));
        out.push(Sample::check(of(2, 0), [g.normal([0, 3])]).note("no elements"));
        out.push(Sample::reject(of(2, 3), [g.normal(&shape)], ErrorKind::Shape));
        out.push(Sample::reject(of(2, 0), [g.normal(())], ErrorKind::Shape).note("a scalar has no axis"));
        out.push(Sample::reject(of(usize::MAX, 0), [g.normal([2, 3])], ErrorKind::OutOfMemory));
        out.push(Sample::bench(of(4, 1), [g.normal([16, 4, 256, 64])]));
        out
    }
}

impl Composite for RepeatInterleave {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let shape = x[0].shape();
        let axis = shape.axis(self.axis)?;
        let out = shape.with_dim(axis, times(shape[axis], self.count, shape)?);
        let mut wide = shape.to_vec();
        wide.insert(axis + 1, self.count);
        Ok(smallvec![x[0].unsqueeze(axis + 1)?.expand(wide)?.reshape(out)?])
    }
}

impl Tensor {
    /// Copies of the whole tensor side by side: `x.repeat([2, 3])`; further leading counts make new axes.
    ///
    /// # Gradient
    /// The sum of `ȳ` over the copies; saves nothing.
    ///
    /// # Errors
    /// Shape error when there are fewer counts than axes.
    #[doc(alias = "tile")]
    #[track_caller]
    pub fn repeat(&self, counts: impl Into<Shape>) -> Result<Tensor> {
        compose1(Repeat(counts.into()), &[self])
    }

    /// Every position of an axis `count` times in a row: `[a, b]` becomes `[a, a, b, b]`.
    ///
    /// # Gradient
    /// The sum of `ȳ` over each group; saves nothing.
    ///
    /// # Errors
    /// Shape error when the axis does not exist.
    #[track_caller]
    pub fn repeat_interleave(&self, count: usize, axis: impl Into<Axis>) -> Result<Tensor> {
        compose1(RepeatInterleave { count, axis: axis.into() }, &[self])
    }
}
