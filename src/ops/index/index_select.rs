//! Positions of an axis picked by a list of indices.

use crate::backend::cpu::{self, index};
use crate::backend::cuda;
use crate::dtype::{I64, U8, U32, with_dtype, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, compose1, expect};
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `x[…, ids[k], …]`; see [`Tensor::index_select`].
#[derive(Clone, Debug)]
pub struct IndexSelect {
    /// The axis.
    pub axis: Axis,
    /// Extent of the operand along it, for the derivative.
    pub extent: usize,
}

fn one_axis(ids: &Spec) -> Result<usize> {
    expect::index(ids)?;
    if ids.shape.rank() != 1 {
        bail!(shape, "expected a list of indices with one axis, found shape {}", ids.shape);
    }
    Ok(ids.shape[0])
}

impl Describe for IndexSelect {
    const NAME: &'static str = "index_select";
    const MATH: Math = Math {
        forward: "y[…, k, …] = x[…, ids[k], …]",
        vjp: "x̄[…, v, …] = Σ ȳ[…, k, …] over the k with ids[k] = v",
        kinks: "linear in x; indices have no derivative",
        cost: "reads the picked rows of x, writes y; saves ids",
        references: "torch.index_select",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let ids = x[1].indices();
        let axis = x[0].axis_at(self.axis);
        vec![Nd::from_fn(x[0].extents_with(axis, ids.len()), |i| {
            let mut at = i.to_vec();
            at[axis] = ids[i[axis]] as usize;
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(3);
        let of = |axis: i32, extent: usize| IndexSelect { axis: axis.into(), extent };
        let mut out = Vec::new();
        for (axis, dtype) in [(0, I64), (1, U32), (2, U8), (-1, I64)] {
            let n = shape[if axis < 0 { 2 } else { axis as usize }];
            out.push(Sample::check(of(axis, n), [g.normal(&shape), g.below(dtype, [5], n)]));
        }
        out.push(Sample::check(of(0, 3), [g.normal([3, 2]), Input::ints(I64, [0], &[])]).note("no indices"));
        out.push(Sample::check(of(1, 3), [g.normal([0, 3]), Input::ints(I64, [2], &[2, 0])]).note("no elements"));
        out.push(Sample::check(of(0, 3), [g.normal([3, 2]), Input::ints(U8, [3], &[1, 1, 1])]).note("one index three times"));
        out.push(Sample::value(of(0, 50), [g.normal([50, 700]), g.below(I64, [90], 50)]).note("more than one parallel piece"));
        out.push(Sample::reject(of(0, 3), [g.normal([3, 2]), Input::ints(I64, [2], &[0, 3])], ErrorKind::Index));
        out.push(
            Sample::reject(of(0, 3), [g.normal([3, 2]), Input::ints(I64, [1], &[-1])], ErrorKind::Index)
                .note("negative indices are refused"),
        );
        out.push(Sample::reject(of(0, 3), [g.normal([3, 2]), g.normal([2])], ErrorKind::Dtype));
        out.push(Sample::reject(of(0, 3), [g.normal([3, 2]), Input::ints(I64, [1, 1], &[0])], ErrorKind::Shape));
        out.push(Sample::reject(of(2, 0), [g.normal([3, 2]), Input::ints(I64, [1], &[0])], ErrorKind::Shape));
        out.push(Sample::bench(of(0, 4096), [g.normal([4096, 1024]), g.below(I64, [4096], 4096)]));
        out
    }
}

impl Op for IndexSelect {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let n = one_axis(&x[1])?;
        let axis = self.axis.resolve(x[0].shape.rank())?;
        if x[0].shape[axis] != self.extent {
            bail!(shape, "axis {axis} of {} has not the extent {} that the op was made for", x[0].shape, self.extent);
        }
        Ok(smallvec![Spec { shape: x[0].shape.with_dim(axis, n), dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let (_, extent, inner) = x[0].shape().split_at(axis);
        let ids = index::indices(&x[1], extent)?;
        with_dtype!(x[0].dtype(), T => index::select_rows(&x[0].contiguous::<T>()?, &ids, extent, inner, None, y[0].slice::<T>()));
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let (_, extent, inner) = x[0].shape().split_at(axis);
        let ids = cuda::index::indices(&x[1], extent)?;
        cuda::index::select_rows(&x[0], &ids, x[1].numel(), extent, inner, None, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let op = IndexSelectVjp { axis: self.axis, extent: self.extent };
        Ok(smallvec![Some(apply1(op, &[y_bar.only()?, saved.get(0)?])?), None])
    }
}

/// The derivative of [`IndexSelect`]: adds ȳ into zeros at the indices.
#[derive(Clone, Debug)]
pub struct IndexSelectVjp {
    /// The axis.
    pub axis: Axis,
    /// Extent of the operand along it.
    pub extent: usize,
}

impl Describe for IndexSelectVjp {
    const NAME: &'static str = "index_select_vjp";
    const MATH: Math = Math {
        forward: "x̄[…, v, …] = Σ ȳ[…, k, …] over the k with ids[k] = v",
        vjp: "index_select with the same ids",
        kinks: "linear in ȳ",
        cost: "reads ȳ, writes x̄; sums pairwise in the order of k; saves ids",
        references: "transpose of a selection matrix; counting sort: Knuth, TAOCP 3, §5.2",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let ids = x[1].indices();
        let axis = x[0].axis_at(self.axis);
        vec![Nd::from_fn(x[0].extents_with(axis, self.extent), |i| {
            let mut at = i.to_vec();
            let terms: Vec<S> = (0..ids.len())
                .filter(|&k| ids[k] as usize == i[axis])
                .map(|k| {
                    at[axis] = k;
                    x[0].at(&at)
                })
                .collect();
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let shape = g.shape(2);
        let of = |axis: i32, extent: usize| IndexSelectVjp { axis: axis.into(), extent };
        let (a, b) = (shape[0], shape[1]);
        vec![
            Sample::check(of(0, 4), [g.normal([a, b]), g.below(I64, [a], 4)]),
            Sample::check(of(1, 3), [g.normal([a, b]), g.below(U32, [b], 3)]),
            Sample::check(of(1, 3), [g.normal([2, 5, 3]), g.below(U8, [5], 3)]),
            Sample::check(of(0, 3), [g.normal([0, 2]), Input::ints(I64, [0], &[])]).note("no indices: zeros"),
            Sample::check(of(0, 0), [g.normal([0, 2]), Input::ints(I64, [0], &[])]).note("no elements"),
            Sample::value(of(0, 3), [Input::values([1000, 2], vec![1.0; 2000]), Input::ints(I64, [1000], &[1; 1000])])
                .note("1000 duplicates in half types [D17]"),
            Sample::value(of(0, 70), [g.normal([400, 300]), g.below(I64, [400], 70)]).note("more than one parallel piece"),
            Sample::reject(of(0, 3), [g.normal([2, 2]), Input::ints(I64, [2], &[0, 3])], ErrorKind::Index),
            Sample::reject(of(0, 3), [g.normal([2, 2]), Input::ints(I64, [3], &[0, 1, 2])], ErrorKind::Shape),
            Sample::bench(of(0, 4096), [g.normal([4096, 1024]), g.below(I64, [4096], 4096)]),
        ]
    }
}

impl Op for IndexSelectVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&x[..1])?;
        let n = one_axis(&x[1])?;
        let axis = self.axis.resolve(x[0].shape.rank())?;
        if x[0].shape[axis] != n {
            bail!(shape, "there are {n} indices for the {} positions of axis {axis} of {}", x[0].shape[axis], x[0].shape);
        }
        Ok(smallvec![Spec { shape: x[0].shape.with_dim(axis, self.extent), dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let (_, _, inner) = x[0].shape().split_at(axis);
        let ids = index::indices(&x[1], self.extent)?;
        with_float!(x[0].dtype(), T => index::add_rows(&x[0].contiguous::<T>()?, &ids, self.extent, inner, None, y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let (_, _, inner) = x[0].shape().split_at(axis);
        let ids = cuda::index::indices(&x[1], self.extent)?;
        cuda::index::add_rows(&x[0], &ids, self.extent, inner, None, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![Some(y_bar.only()?.index_select(self.axis, saved.get(0)?)?), None])
    }
}

/// Rows added at indices; see [`Tensor::index_add`].
#[derive(Clone, Debug)]
pub struct IndexAdd(pub Axis);

impl Describe for IndexAdd {
    const NAME: &'static str = "index_add";
    const MATH: Math = Math {
        forward: "y[…, v, …] = x[…, v, …] + Σ src[…, k, …] over the k with ids[k] = v",
        vjp: "x̄ = ȳ; the cotangent of src is index_select of ȳ with the same ids",
        kinks: "linear in x and src; indices have no derivative",
        cost: "reads x and src, writes the sums and y; saves ids",
        references: "torch.Tensor.index_add",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let ids = x[1].indices();
        let axis = x[0].axis_at(self.0);
        vec![Nd::from_fn(&x[0].shape, |i| {
            let mut terms = vec![x[0].at(i)];
            let mut at = i.to_vec();
            for k in (0..ids.len()).filter(|&k| ids[k] as usize == i[axis]) {
                at[axis] = k;
                terms.push(x[2].at(&at));
            }
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |axis: i32| IndexAdd(axis.into());
        let ids = |n: usize, below: usize, g: &mut Gen| g.below(I64, [n], below);
        vec![
            Sample::check(of(0), [g.normal([4, 3]), ids(5, 4, g), g.normal([5, 3])]),
            Sample::check(of(1), [g.normal([2, 3, 2]), ids(4, 3, g), g.normal([2, 4, 2])]),
            Sample::check(of(-1), [g.normal([2, 5]), g.below(U8, [2], 5), g.normal([2, 2])]),
            Sample::check(of(0), [g.normal([6]), g.below(U32, [9], 6), g.normal([9])]).note("one axis"),
            Sample::check(of(0), [g.normal([3, 2]), Input::ints(I64, [0], &[]), g.normal([0, 2])]).note("no indices"),
            Sample::check(of(1), [g.normal([0, 3]), Input::ints(I64, [2], &[2, 0]), g.normal([0, 2])]).note("no elements"),
            Sample::check(of(0), [g.normal([3, 2]), Input::ints(I64, [3], &[1, 1, 1]), g.normal([3, 2])]).note("one index three times"),
            Sample::value(of(0), [g.normal([50, 70]), ids(900, 50, g), g.normal([900, 70])]).note("more than one parallel piece"),
            Sample::reject(of(0), [g.normal([3, 2]), Input::ints(I64, [2], &[0, 3]), g.normal([2, 2])], ErrorKind::Index),
            Sample::reject(of(0), [g.normal([3, 2]), Input::ints(I64, [2], &[0, 1]), g.normal([2, 1])], ErrorKind::Shape)
                .note("rows are not broadcast"),
            Sample::reject(of(0), [g.normal([3, 2]), Input::ints(I64, [2], &[0, 1]), g.normal([3, 2])], ErrorKind::Shape),
            Sample::reject(of(0), [g.normal([3, 2]), g.normal([2]), g.normal([2, 2])], ErrorKind::Dtype),
            Sample::reject(of(2), [g.normal([3, 2]), Input::ints(I64, [1], &[0]), g.normal([1, 2])], ErrorKind::Shape),
            Sample::bench(of(0), [g.normal([4096, 1024]), ids(1024, 4096, g), g.normal([1024, 1024])]),
        ]
    }
}

impl Composite for IndexAdd {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let axis = x[0].shape().axis(self.0)?;
        let extent = x[0].shape()[axis];
        let wanted = x[0].shape().with_dim(axis, x[1].numel());
        if x[2].shape() != &wanted {
            bail!(
                shape,
                "what is added has shape {}; {} indices along axis {axis} of {} need {wanted}",
                x[2].shape(),
                x[1].numel(),
                x[0].shape()
            );
        }
        let sums = apply1(IndexSelectVjp { axis: self.0, extent }, &[x[2], x[1]])?;
        Ok(smallvec![x[0].add(&sums)?])
    }
}

impl Tensor {
    /// The positions `ids` of an axis, in their order and as often as they are named. `ids` is a list of `i64`, `u32` or `u8`.
    ///
    /// # Gradient
    /// `ȳ` added up at the positions, in the order of `ids`; saves `ids`.
    ///
    /// # Numerics
    /// Repeated indices accumulate in f32 for half types, pairwise beyond 64 of them; the same bits on any number of threads.
    ///
    /// # Errors
    /// Index error when an index is negative or not below the extent; shape error when the axis does not exist or `ids` has
    /// not one axis; dtype error for float indices.
    #[doc(alias = "take")]
    #[track_caller]
    pub fn index_select(&self, axis: impl Into<Axis>, ids: &Tensor) -> Result<Tensor> {
        let axis = axis.into();
        let extent = axis.resolve(self.rank()).map_or(0, |a| self.shape()[a]);
        apply1(IndexSelect { axis, extent }, &[self, ids])
    }
    /// This tensor with the positions of `src` along an axis added at the positions `ids`: the counterpart of [`Tensor::index_select`].
    /// What is named several times is added several times. `src` has this tensor's shape, but for the axis, where it has one position
    /// for each of `ids`, a list of `i64`, `u32` or `u8`.
    ///
    /// # Gradient
    /// `ȳ`, and for `src` the positions `ids` of `ȳ`; saves `ids`.
    ///
    /// # Numerics
    /// What is added to one position is summed first, pairwise beyond 64, in f32 for half types; the same bits on any number of threads.
    ///
    /// # Errors
    /// Index error when an index is negative or not below the extent; shape error when the axis does not exist, `ids` has not one axis or
    /// `src` does not fit (nothing is broadcast); dtype error for float indices, integers to add, or operands of two types.
    ///
    /// ```
    /// # use cotangent::{F32, Tensor, tensor};
    /// let y = Tensor::zeros([3, 2], F32)?.index_add(0, &tensor![2, 0, 2; I64]?, &tensor![[1, 2], [3, 4], [5, 6]]?)?;
    /// assert_eq!(y.to_vec::<f32>()?, [3., 4., 0., 0., 6., 8.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("scatter", "segment_sum"))]
    #[track_caller]
    pub fn index_add(&self, axis: impl Into<Axis>, ids: &Tensor, src: &Tensor) -> Result<Tensor> {
        compose1(IndexAdd(axis.into()), &[self, ids, src])
    }
}
