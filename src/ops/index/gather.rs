//! Elements picked along an axis by an index of their own, and added back.

use super::places::{define_groups, fits};
use crate::backend::cpu::{self, index};
use crate::backend::cuda;
use crate::dtype::{I64, U8, U32, with_dtype, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::{Axis, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Elements of an axis picked one by one; see [`Tensor::gather`].
#[derive(Clone, Debug)]
pub struct Gather {
    /// The axis.
    pub axis: Axis,
    /// Shape of the operand, for the derivative.
    pub of: Shape,
}

impl Describe for Gather {
    const NAME: &'static str = "gather";
    const MATH: Math = Math {
        forward: "y[i, k, j] = x[i, index[i, k, j], j], with k along the axis",
        vjp: "x̄ = 0 with ȳ[i, k, j] added at [i, index[i, k, j], j]",
        kinks: "linear in x; indices have no derivative",
        cost: "reads index and the picked elements, writes y; saves the index",
        references: "torch.gather",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axis = x[0].axis_at(self.axis);
        vec![Nd::from_fn(&x[1].shape, |i| {
            let mut at = i.to_vec();
            at[axis] = x[1].at(i).re() as usize;
            x[0].at(&at)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |axis: i32, of: &[usize]| Gather { axis: axis.into(), of: of.into() };
        vec![
            Sample::check(of(1, &[3, 5]), [g.normal([3, 5]), Input::ints(I64, [3, 2], &[0, 0, 4, 2, 1, 1])]).note("fixture gather"),
            Sample::check(of(0, &[4, 3]), [g.normal([4, 3]), g.below(U32, [6, 3], 4)]),
            Sample::check(of(-1, &[2, 3, 4]), [g.normal([2, 3, 4]), g.below(U8, [2, 3, 1], 4)]),
            Sample::check(of(1, &[3, 4, 3]), [g.normal([3, 4, 3]), g.below(I64, [2, 5, 2], 4)])
                .note("an index smaller than the operand [D11]"),
            Sample::check(of(0, &[3]), [g.normal([3]), Input::ints(I64, [0], &[])]).note("no indices"),
            Sample::check(of(1, &[0, 3]), [g.normal([0, 3]), Input::ints(I64, [0, 2], &[])]).note("no elements"),
            Sample::check(of(0, &[3, 2]), [g.normal([3, 2]), Input::ints(I64, [2, 0], &[])]),
            Sample::value(of(1, &[300, 90]), [g.normal([300, 90]), g.below(I64, [300, 70], 90)]).note("more than one parallel piece"),
            Sample::reject(of(1, &[3, 5]), [g.normal([3, 5]), Input::ints(I64, [1, 1], &[5])], ErrorKind::Index),
            Sample::reject(of(1, &[3, 5]), [g.normal([3, 5]), Input::ints(I64, [1, 1], &[-1])], ErrorKind::Index),
            Sample::reject(of(1, &[3, 5]), [g.normal([3, 5]), Input::ints(I64, [1], &[0])], ErrorKind::Shape),
            Sample::reject(of(1, &[3, 5]), [g.normal([3, 5]), Input::ints(I64, [4, 1], &[0; 4])], ErrorKind::Shape),
            Sample::reject(of(2, &[3, 5]), [g.normal([3, 5]), Input::ints(I64, [1, 1], &[0])], ErrorKind::Shape),
            Sample::reject(of(1, &[3, 5]), [g.normal([3, 5]), g.normal([3, 1])], ErrorKind::Dtype),
            Sample::bench(of(1, &[4096, 1024]), [g.normal([4096, 1024]), g.below(I64, [4096, 64], 1024)]),
        ]
    }
}

impl Op for Gather {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        if x[0].shape != self.of {
            bail!(shape, "the operand has shape {}, but the op was made for {}", x[0].shape, self.of);
        }
        fits(&x[0].shape, &x[1], self.axis)?;
        Ok(smallvec![Spec { shape: x[1].shape.clone(), dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let (_, extent, width) = x[0].shape().split_at(axis);
        let ids = index::indices(&x[1], extent)?;
        let lines = index::Lines::new(x[1].shape(), x[0].shape(), axis)?;
        let n = x[1].shape()[axis];
        with_dtype!(x[0].dtype(), T => index::gather(&x[0].contiguous::<T>()?, extent, width, &ids, n, &lines, y[0].slice::<T>()));
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let ids = cuda::index::indices(&x[1], x[0].shape()[axis])?;
        cuda::index::gather(&x[0], &ids, axis, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let zeros = Tensor::full_on(&self.of, 0.0, g.dtype(), g.device())?;
        Ok(smallvec![Some(zeros.scatter_add(self.axis, saved.get(0)?, g)?), None])
    }
}

/// Elements added along an axis at positions given one by one; see [`Tensor::scatter_add`].
#[derive(Clone, Debug)]
pub struct ScatterAdd(pub Axis);

impl Describe for ScatterAdd {
    const NAME: &'static str = "scatter_add";
    const MATH: Math = Math {
        forward: "y = x, then y[i, index[i, k, j], j] += src[i, k, j] in the order of k, with k along the axis",
        vjp: "x̄ = ȳ; the cotangent of src[i, k, j] is ȳ[i, index[i, k, j], j]",
        kinks: "linear in x and src; indices have no derivative",
        cost: "reads x, index and src, writes y; saves the index",
        references: "torch.Tensor.scatter_add",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let terms = define_groups(x, self.0, true);
        vec![Nd::new(&x[0].shape, terms.iter().map(|t| S::sum(t)).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |axis: i32| ScatterAdd(axis.into());
        let five: Vec<i64> = [0, 0, 3, 1, 3].iter().flat_map(|&i| [i; 3]).collect();
        vec![
            Sample::check(of(0), [g.normal([4, 3]), Input::ints(I64, [5, 3], &five), g.normal([5, 3])])
                .note("fixture scatter_add: duplicates add up"),
            Sample::check(of(1), [g.normal([3, 5]), g.below(U32, [3, 2], 5), g.normal([3, 2])]),
            Sample::check(of(-1), [g.normal([2, 3, 4]), g.below(U8, [2, 3, 6], 4), g.normal([2, 3, 6])]),
            Sample::check(of(1), [g.normal([3, 4, 3]), g.below(I64, [2, 5, 2], 4), g.normal([2, 5, 2])])
                .note("an index smaller than the operand [D11]"),
            Sample::check(of(0), [g.normal([3]), Input::ints(I64, [0], &[]), g.normal([0])]).note("nothing added"),
            Sample::check(of(1), [g.normal([0, 3]), Input::ints(I64, [0, 2], &[]), g.normal([0, 2])]).note("no elements"),
            Sample::value(
                of(0),
                [Input::values([3], [0.0, 1.0, 2.0]), Input::ints(I64, [1000], &[1; 1000]), Input::values([1000], vec![1.0; 1000])],
            )
            .note("1000 duplicates in half types [D17]"),
            Sample::value(of(0), [g.normal([90, 50]), g.below(I64, [400, 50], 90), g.normal([400, 50])])
                .note("one slab in parallel ranges"),
            Sample::value(of(1), [g.normal([300, 90]), g.below(I64, [300, 70], 90), g.normal([300, 70])])
                .note("more than one parallel piece"),
            Sample::reject(of(0), [g.normal([3]), Input::ints(I64, [1], &[3]), g.normal([1])], ErrorKind::Index),
            Sample::reject(of(0), [g.normal([3]), Input::ints(I64, [1], &[-1]), g.normal([1])], ErrorKind::Index),
            Sample::reject(of(0), [g.normal([3]), Input::ints(I64, [2], &[0, 1]), g.normal([1])], ErrorKind::Shape),
            Sample::reject(of(0), [g.normal([3, 2]), Input::ints(I64, [1, 3], &[0; 3]), g.normal([1, 3])], ErrorKind::Shape),
            Sample::reject(of(1), [g.normal([3]), Input::ints(I64, [1], &[0]), g.normal([1])], ErrorKind::Shape),
            Sample::reject(of(0), [g.normal([3]), g.normal([1]), g.normal([1])], ErrorKind::Dtype),
            Sample::bench(of(1), [g.normal([4096, 1024]), g.below(I64, [4096, 64], 1024), g.normal([4096, 64])]),
        ]
    }
}

impl Op for ScatterAdd {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&[x[0].clone(), x[2].clone()])?;
        fits(&x[0].shape, &x[1], self.0)?;
        if x[1].shape != x[2].shape {
            bail!(shape, "the index has shape {}, what is added {}; they must be equal", x[1].shape, x[2].shape);
        }
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.0.resolve(x[0].shape().rank())?;
        let (_, extent, width) = x[0].shape().split_at(axis);
        let ids = index::indices(&x[1], extent)?;
        let lines = index::Lines::new(x[1].shape(), x[0].shape(), axis)?;
        let n = x[1].shape()[axis];
        with_float!(x[0].dtype(), T => {
            let y = y[0].slice::<T>();
            cpu::copy_strided(x[0].storage::<T>(), x[0].layout(), y)?;
            index::scatter(&x[2].contiguous::<T>()?, extent, width, &ids, n, &lines, y, index::Join::Add)?;
        });
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.0.resolve(x[0].shape().rank())?;
        let ids = cuda::index::indices(&x[1], x[0].shape()[axis])?;
        cuda::index::scatter_add(&x[0], &ids, &x[2], axis, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([want[2].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let g = y_bar.only()?;
        let src = if want[2] { Some(g.gather(self.0, saved.get(0)?)?) } else { None };
        Ok(smallvec![want[0].then(|| g.clone()), None, src])
    }
}

impl Tensor {
    /// Picks along an axis by an index of the result's shape: `y[i, k] = x[i, index[i, k]]` for axis 1.
    ///
    /// # Gradient
    /// `ȳ` added into zeros at the picked positions ([`Tensor::scatter_add`]); saves the index.
    ///
    /// # Shapes
    /// The index has the operand's rank; along other axes it may be shorter than the operand, not longer.
    ///
    /// # Errors
    /// Index error when an index is negative or not below the extent; shape error when the shapes do not fit; dtype error
    /// for float indices.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let log_p = Tensor::from_rows(&[[-1f32, -2., -3.], [-4., -5., -6.]])?;
    /// let target = Tensor::from_slice(&[2i64, 0], [2, 1])?;
    /// assert_eq!(log_p.gather(1, &target)?.to_vec::<f32>()?, [-3., -4.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[doc(alias("take_along_dim", "take_along_axis"))]
    #[track_caller]
    pub fn gather(&self, axis: impl Into<Axis>, index: &Tensor) -> Result<Tensor> {
        apply1(Gather { axis: axis.into(), of: self.shape().clone() }, &[self, index])
    }

    /// A copy with `src` added along an axis: `y[i, index[i, k]] += src[i, k]` for axis 1. Duplicates add up.
    ///
    /// # Gradient
    /// `ȳ` to the operand, `ȳ` gathered by the index to `src`; saves the index.
    ///
    /// # Shapes
    /// `index` and `src` have one shape of the operand's rank; along other axes it may be shorter than the operand.
    ///
    /// # Numerics
    /// Added in the order of `k`, in f32 for half types; the same bits on any number of threads. On the CPU sums of f32 are f64 where there
    /// is a term for every fourth element of the result or more.
    ///
    /// Means, products and extrema: [`Tensor::scatter_reduce`].
    ///
    /// # Errors
    /// As [`Tensor::gather`].
    #[doc(alias("index_add", "scatter", "segment_sum"))]
    #[track_caller]
    pub fn scatter_add(&self, axis: impl Into<Axis>, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        apply1(ScatterAdd(axis.into()), &[self, index, src])
    }
}
