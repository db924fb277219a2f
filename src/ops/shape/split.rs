//! A tensor cut into parts along an axis: views, no element moves.

use super::concat::Concat;
use super::slice::{Slice, SliceVjp};
use crate::error::{Error, ErrorKind, Result, bail};
use crate::memory;
use crate::op::{Composite, Cotangents, Describe, Math, Outputs, apply_parts, apply1, compose};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Nd, Sample, Scalar};
use smallvec::SmallVec;

/// Parts of given sizes; see [`Tensor::split`].
#[derive(Clone, Debug)]
pub struct Split {
    /// Extents of the parts.
    pub sizes: SmallVec<[usize; 4]>,
    /// The axis.
    pub axis: Axis,
}

fn cut<S: Scalar>(x: &Nd<S>, sizes: &[usize], axis: usize) -> Vec<Nd<S>> {
    let mut start = 0;
    let part = |&n: &usize| {
        let y = Nd::from_fn(x.extents_with(axis, n), |i| {
            let mut at = i.to_vec();
            at[axis] += start;
            x.at(&at)
        });
        start += n;
        y
    };
    sizes.iter().map(part).collect()
}

impl Describe for Split {
    const NAME: &'static str = "split";
    const MATH: Math = Math {
        forward: "y₁, y₂, … = consecutive stretches of x along an axis",
        vjp: "x̄ = ȳ₁, ȳ₂, … one after the other, zero where a part was not used",
        kinks: "linear",
        cost: "none: views; the derivative writes x̄ once",
        references: "torch.split",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        cut(&x[0], &self.sizes, axis)
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let b = g.extent();
        let of = |sizes: &[usize], axis: i32| Split { sizes: sizes.into(), axis: axis.into() };
        vec![
            Sample::check(of(&[1, 3, 2], 0), [g.normal([6, b])]),
            Sample::check(of(&[1, 3, 2], 1), [g.normal([b, 6, 2])]),
            Sample::check(of(&[2, 2, 2], -1), [g.normal([b, 6])]).note("queries, keys, values"),
            Sample::check(of(&[4], 0), [g.normal([4])]).note("one part"),
            Sample::check(of(&[0, 3, 0], 0), [g.normal([3, 2])]).note("parts without elements"),
            Sample::reject(of(&[1, 2], 0), [g.normal([4, 2])], ErrorKind::Shape),
            Sample::reject(of(&[3, usize::MAX, 2], 0), [g.normal([4, 2])], ErrorKind::Shape),
            Sample::reject(of(&[1, 2], 2), [g.normal([3, 2])], ErrorKind::Shape),
            Sample::reject(of(&[], 0), [g.normal([0, 2])], ErrorKind::Argument),
            Sample::bench(of(&[768, 768, 768], -1), [g.normal([4096, 2304])]),
        ]
    }
}

impl Composite for Split {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let axis = x[0].shape().axis(self.axis)?;
        let extent = x[0].shape()[axis];
        if self.sizes.is_empty() {
            bail!(argument, "the list of sizes is empty");
        }
        if self.sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(extent) {
            bail!(shape, "sizes {:?} do not add up to the extent {extent} of axis {axis} of {}", self.sizes, x[0].shape());
        }
        let mut start = 0;
        let part = |&n: &usize| {
            let y = x[0].layout().slice(axis, start, n, 1);
            start += n;
            y
        };
        let (sizes, of) = (self.sizes.clone(), x[0].shape().clone());
        apply_parts(Self::NAME, x[0], self.sizes.iter().map(part), move |y_bar| join(y_bar, &sizes, axis, &of))
    }
}

/// The cotangents of the parts one after the other, in one pass; zero where a part was not used.
pub(crate) fn join(y_bar: &Cotangents, sizes: &[usize], axis: usize, of: &Shape) -> Result<Tensor> {
    let used: SmallVec<[usize; 4]> = memory::try_short((0..sizes.len()).filter(|&i| y_bar.get(i).is_some()).map(Ok))?;
    let Some((&first, others)) = used.split_first() else {
        return Err(Error::tape("no part has a cotangent"));
    };
    let bar = |i: usize| y_bar.get(i).ok_or_else(|| Error::tape("a part has no cotangent"));
    if others.is_empty() {
        let start: usize = sizes[..first].iter().sum();
        let slice = Slice { axis: axis.into(), span: (start..start + sizes[first]).into(), step: 1 };
        return apply1(SliceVjp { slice, of: of.clone() }, &[bar(first)?]);
    }
    // One zero, repeated: only the joined tensor takes memory.
    let like = bar(first)?;
    let zero = Tensor::full_on((), 0.0, like.dtype(), like.device())?;
    let part = |(i, &n): (usize, &usize)| match y_bar.get(i) {
        Some(bar) => Ok(bar.clone()),
        None => zero.expand(of.with_dim(axis, n)),
    };
    let parts: SmallVec<[Tensor; 4]> = memory::try_short(sizes.iter().enumerate().map(part))?;
    let parts: SmallVec<[&Tensor; 4]> = memory::try_short(parts.iter().map(Ok))?;
    apply1(Concat { axis: axis.into(), sizes: sizes.into() }, &parts)
}

/// More tensors than this would take gigabytes for their layouts alone.
const MOST: usize = 1 << 24;

/// A number of equal parts; see [`Tensor::chunk`].
#[derive(Clone, Debug)]
pub struct Chunk {
    /// At most how many parts.
    pub parts: usize,
    /// The axis.
    pub axis: Axis,
}

impl Chunk {
    fn sizes(&self, extent: usize) -> Result<SmallVec<[usize; 4]>> {
        let size = extent.div_ceil(self.parts.max(1)).max(1);
        if extent == 0 {
            return memory::try_short((0..self.parts).map(|_| Ok(0)));
        }
        memory::try_short((0..extent).step_by(size).map(|at| Ok(size.min(extent - at))))
    }
}

impl Describe for Chunk {
    const NAME: &'static str = "chunk";
    const MATH: Math = Math {
        forward: "y₁, y₂, … = stretches of ⌈n / parts⌉ positions of x along an axis; the last may be shorter",
        vjp: "x̄ = ȳ₁, ȳ₂, … one after the other, zero where a part was not used",
        kinks: "linear",
        cost: "none: views; the derivative writes x̄ once",
        references: "torch.chunk",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        // ⌈n / parts⌉ positions each, as long as there are some; of no positions, `parts` times none.
        let (n, mut sizes) = (x[0].shape[axis], Vec::new());
        let size = n / self.parts + usize::from(n % self.parts > 0);
        let mut left = n;
        while left > 0 {
            sizes.push(size.min(left));
            left -= size.min(left);
        }
        if n == 0 {
            sizes.resize(self.parts, 0);
        }
        cut(&x[0], &sizes, axis)
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let b = g.extent();
        let of = |parts: usize, axis: i32| Chunk { parts, axis: axis.into() };
        vec![
            Sample::check(of(2, 0), [g.normal([4, b])]),
            Sample::check(of(3, -1), [g.normal([b, 6])]).note("queries, keys, values"),
            Sample::check(of(3, 0), [g.normal([7])]).note("as PyTorch: 3, 3, 1"),
            Sample::check(of(4, 0), [g.normal([5])]).note("as PyTorch: 2, 2, 1"),
            Sample::check(of(1, 0), [g.normal([3, b])]),
            Sample::check(of(9, 0), [g.normal([3])]).note("more parts than positions"),
            Sample::check(of(2, 0), [g.normal([0, 2])]).note("no elements"),
            Sample::reject(of(0, 0), [g.normal([3])], ErrorKind::Argument),
            Sample::reject(of(1 << 25, 0), [g.normal([0, 2])], ErrorKind::OutOfMemory).note("a list that no memory holds"),
            Sample::reject(of(2, 1), [g.normal([3])], ErrorKind::Shape),
        ]
    }
}

impl Composite for Chunk {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let axis = x[0].shape().axis(self.axis)?;
        if self.parts == 0 {
            bail!(argument, "the number of parts must be at least 1");
        }
        let extent = x[0].shape()[axis];
        let count = if extent == 0 { self.parts } else { self.parts.min(extent) };
        if count > MOST {
            bail!(out_of_memory, "{count} parts of {} are {count} tensors; at most {MOST} are made", x[0].shape());
        }
        Split { sizes: self.sizes(extent)?, axis: axis.into() }.compose(x)
    }
}

impl Tensor {
    /// Consecutive parts of the given sizes along an axis: `x.split(&[d, d_kv, d_kv], -1)`. Views; no element moves.
    ///
    /// # Gradient
    /// Each part's `ȳ` at its place; saves nothing.
    ///
    /// # Errors
    /// Shape error when the sizes do not add up to the extent, or the axis does not exist; argument error for an empty list.
    #[doc(alias = "array_split")]
    #[track_caller]
    pub fn split(&self, sizes: &[usize], axis: impl Into<Axis>) -> Result<Vec<Tensor>> {
        Ok(compose(Split { sizes: sizes.into(), axis: axis.into() }, &[self])?.into_vec())
    }

    /// Equal parts along an axis: `x.chunk(3, -1)`. Views; no element moves.
    ///
    /// As in PyTorch each part has `⌈extent / parts⌉` positions, the last perhaps fewer, and there may be fewer parts.
    ///
    /// # Gradient
    /// Each part's `ȳ` at its place; saves nothing.
    ///
    /// # Errors
    /// Argument error for no parts; shape error when the axis does not exist; out of memory for more than 2²⁴ parts.
    #[track_caller]
    pub fn chunk(&self, parts: usize, axis: impl Into<Axis>) -> Result<Vec<Tensor>> {
        Ok(compose(Chunk { parts, axis: axis.into() }, &[self])?.into_vec())
    }
    /// Equal parts along an axis, taken apart by a pattern: `let [mean, log_var] = x.parts(-1)?;`. Views; no element moves.
    ///
    /// Unlike [`Tensor::chunk`], whose parts may be fewer and of different sizes. For the positions of an axis there is [`Tensor::unpack`].
    ///
    /// # Gradient
    /// Each part's `ȳ` at its place; saves nothing.
    ///
    /// # Errors
    /// Shape error when the axis does not exist, or its extent is no multiple of the pattern's places; argument error for an empty pattern.
    ///
    /// ```
    /// # use cotangent::{F32, Key, Tensor};
    /// let gates = Tensor::randn([2, 12], F32, Key::new(1))?;
    /// let [i, f, g, o] = gates.parts(-1)?;
    /// assert_eq!([&i, &f, &g, &o].map(|t| t.shape().dims() == [2, 3]), [true; 4]);
    /// assert!(gates.parts::<5>(-1).unwrap_err().to_string().starts_with("parts: axis 1 of [2, 12] has extent 12, no multiple of 5"));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias = "chunk")]
    #[track_caller]
    pub fn parts<const N: usize>(&self, axis: impl Into<Axis>) -> Result<[Tensor; N]> {
        let at = std::panic::Location::caller();
        array(equal(self, axis.into(), N).map_err(|e| e.in_op("parts", at))?)
    }
}

#[track_caller]
fn equal(x: &Tensor, axis: Axis, places: usize) -> Result<Vec<Tensor>> {
    let a = x.shape().axis(axis)?;
    let n = x.shape()[a];
    if places == 0 {
        bail!(argument, "the pattern is empty");
    }
    if !n.is_multiple_of(places) {
        bail!(shape, "axis {a} of {} has extent {n}, no multiple of {places}", x.shape());
    }
    let sizes = memory::try_short((0..places).map(|_| Ok(n / places)))?;
    Ok(compose(Split { sizes, axis }, &[x])?.into_vec())
}

/// As many tensors as a pattern has places.
pub(crate) fn array<const N: usize>(parts: Vec<Tensor>) -> Result<[Tensor; N]> {
    <[Tensor; N]>::try_from(parts).map_err(|parts| Error::shape(format!("{} parts for a pattern of {N} places", parts.len())))
}
