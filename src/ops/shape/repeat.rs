//! Repetition of whole tensors or of single positions.

use crate::dtype::{I64, U8, U32};
use crate::error::{ErrorKind, Result, bail};
use crate::memory;
use crate::op::{Composite, Describe, Math, Outputs, Spec, compose1, compose1_as, expect};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
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

    #[inline]
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

    #[inline]
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

/// Every position as often as its own count says; see [`Tensor::repeat_interleave`]. Inputs: x, counts.
#[derive(Clone, Debug)]
pub struct RepeatInterleaveBy(pub Axis);

impl Describe for RepeatInterleaveBy {
    const NAME: &'static str = "repeat_interleave_by";
    const MATH: Math = Math {
        forward: "y[…, k, …] = x[…, i, …] for the i with n₀ + … + nᵢ₋₁ ≤ k < n₀ + … + nᵢ, nᵢ the count of position i",
        vjp: "x̄[…, i, …] = Σ of ȳ over the nᵢ copies of position i",
        kinks: "linear in x; counts have no derivative",
        cost: "reads the counts on the host, then as index_select: reads x, writes y; saves an index for every copy, nothing with one count for all",
        references: "torch.repeat_interleave; numpy.repeat",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.0);
        let counts = x[1].indices();
        let mut from = Vec::new();
        for i in 0..x[0].shape[axis] {
            for _ in 0..counts[if counts.len() == 1 { 0 } else { i }] {
                from.push(i);
            }
        }
        vec![Nd::from_fn(x[0].extents_with(axis, from.len()), |i| {
            let mut at = i.to_vec();
            at[axis] = from[i[axis]];
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let by = |axis: i32| RepeatInterleaveBy(axis.into());
        let ints = |v: &[i64]| Input::ints(I64, [v.len()], v);
        vec![
            Sample::check(by(0), [g.normal([3, 2]), ints(&[2, 0, 3])]),
            Sample::check(by(1), [g.normal([2, 3, 2]), ints(&[1, 1, 4])]),
            Sample::check(by(-1), [g.normal([2, 3]), Input::ints(U32, [3], &[0, 2, 1])]),
            Sample::check(by(-2), [g.normal([2, 3]), Input::ints(U8, [2], &[3, 0])]),
            Sample::check(by(0), [g.normal([3]), ints(&[0, 0, 0])]).note("no copies"),
            Sample::check(by(1), [g.normal([0, 2]), ints(&[2, 1])]).note("no elements"),
            Sample::check(by(0), [g.normal([0, 2]), ints(&[])]).note("no positions"),
            Sample::check(by(1), [g.normal([2, 3]), ints(&[2])]).note("one count for all"),
            Sample::check(by(1), [g.normal([2, 3]), Input::ints(I64, (), &[2])]).note("a number for all"),
            Sample::value(by(0), [g.normal([70, 300]), g.below(I64, [70], 5)]).note("more than one parallel piece"),
            Sample::reject(by(0), [g.normal([3, 2]), ints(&[1, 2])], ErrorKind::Shape),
            Sample::reject(by(0), [g.normal([3, 2]), Input::ints(I64, [3, 1], &[1; 3])], ErrorKind::Shape),
            Sample::reject(by(2), [g.normal([3, 2]), ints(&[1, 1, 1])], ErrorKind::Shape),
            Sample::reject(by(0), [g.normal([3, 2]), ints(&[1, -1, 1])], ErrorKind::Argument).note("negative counts are refused"),
            Sample::reject(by(0), [g.normal([3, 2]), ints(&[i64::MAX, i64::MAX, i64::MAX])], ErrorKind::OutOfMemory),
            Sample::reject(by(0), [g.normal([3, 2]), g.normal([3])], ErrorKind::Dtype),
            Sample::bench(by(0), [g.normal([4096, 1024]), g.below(I64, [4096], 4)]),
        ]
    }
}

impl Composite for RepeatInterleaveBy {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, counts) = (x[0], x[1]);
        expect::index(&Spec::new(counts.shape(), counts.dtype()))?;
        let axis = x.shape().axis(self.0)?;
        let extent = x.shape()[axis];
        if counts.rank() > 1 || (counts.numel() != 1 && counts.numel() != extent) {
            bail!(shape, "expected one count for each of the {extent} positions of axis {axis} of {}, found {}", x.shape(), counts.shape());
        }
        let counts = counts.cast(I64)?.to_vec::<i64>()?;
        let count = |at: usize| match usize::try_from(counts[at]) {
            Ok(n) => Ok(n),
            Err(_) => bail!(argument, "a count is negative: {} at position {at}", counts[at]),
        };
        if counts.len() != extent {
            // No index: positions without memory, of an expanded tensor, may be more than one can list.
            return RepeatInterleave { count: count(0)?, axis: self.0 }.compose(&[x]);
        }
        let mut total = 0usize;
        for i in 0..extent {
            let Some(sum) = total.checked_add(count(i)?) else {
                bail!(out_of_memory, "repeating {} gives more elements than memory can address", x.shape())
            };
            total = sum;
        }
        x.shape().with_dim(axis, total).checked_numel()?;
        let mut from = memory::room::<i64>(total)?;
        for i in 0..extent {
            memory::extend(&mut from, std::iter::repeat_n(i as i64, count(i)?))?;
        }
        let from = Tensor::from_slice(&from, [total])?.to_device(x.device())?;
        Ok(smallvec![x.index_select(axis, &from)?])
    }
}

/// How often positions are repeated: one number, or a tensor with a count for each.
#[derive(Clone, Copy, Debug)]
pub enum Repeats<'a> {
    /// Every position so often.
    All(usize),
    /// Position `i` as often as the `i`-th count says.
    Each(&'a Tensor),
}

impl From<usize> for Repeats<'_> {
    fn from(count: usize) -> Self {
        Repeats::All(count)
    }
}

impl<'a> From<&'a Tensor> for Repeats<'a> {
    fn from(counts: &'a Tensor) -> Self {
        Repeats::Each(counts)
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

    /// Every position of an axis several times in a row: `x.repeat_interleave(2, 0)` makes `[a, a, b, b]` of `[a, b]`, and with a tensor
    /// of counts each position has its own.
    ///
    /// ```
    /// # use cotangent::tensor;
    /// let x = tensor![[1, 2], [3, 4], [5, 6]]?;
    /// let lengths = tensor![2, 0, 1; I64]?;
    /// assert_eq!(x.repeat_interleave(&lengths, 0)?.to_vec::<f32>()?, [1., 2., 1., 2., 5., 6.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// The sum of `ȳ` over the copies of each position; saves nothing, with a count for each position an index for every copy.
    ///
    /// # Shapes
    /// With one number the axis grows by that factor. A tensor holds a count for each position (or one for all), of an integer type; the
    /// axis then has as many positions as they sum to: a shape that the data decides. The counts are read on the host, so on a GPU this
    /// waits for them, and a captured step refuses it.
    ///
    /// # Errors
    /// Shape error when the axis does not exist or the number of counts differs from its extent; argument error for a negative count;
    /// dtype error for float counts; capture error for a tensor of counts in a captured step; out of memory.
    #[track_caller]
    pub fn repeat_interleave<'a>(&self, count: impl Into<Repeats<'a>>, axis: impl Into<Axis>) -> Result<Tensor> {
        match count.into() {
            Repeats::All(count) => compose1(RepeatInterleave { count, axis: axis.into() }, &[self]),
            Repeats::Each(counts) => compose1_as("repeat_interleave", RepeatInterleaveBy(axis.into()), &[self, counts]),
        }
    }
}
