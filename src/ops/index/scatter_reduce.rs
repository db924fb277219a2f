//! Elements combined along an axis at positions given one by one: products, extrema, sums and means.

use super::places::{define_groups, fits};
use crate::backend::cpu::{self, index};
use crate::backend::cuda;
use crate::dtype::{DType, F32, F64, I64, U8, U32, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, compose1, expect};
use crate::shape::Axis;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// How [`Tensor::scatter_reduce`] combines what meets at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScatterReduce {
    /// Their sum, as [`Tensor::scatter_add`].
    Sum,
    /// Their mean.
    Mean,
    /// Their product.
    Prod,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// Elements combined at places; see [`Tensor::scatter_reduce`]. Inputs: x, index, src.
#[derive(Clone, Debug)]
pub struct ScatterReduceOp {
    /// The axis.
    pub axis: Axis,
    /// What meets becomes this.
    pub by: ScatterReduce,
    /// Whether the operand's own element takes part where something is put.
    pub include_self: bool,
}

/// A product, or an extremum, of the operand's element and of all that is put at its place. Inputs: x, index, src.
#[derive(Clone, Debug)]
pub struct ScatterFold {
    /// The axis.
    pub axis: Axis,
    /// [`Prod`](ScatterReduce::Prod), [`Max`](ScatterReduce::Max) or [`Min`](ScatterReduce::Min).
    pub by: ScatterReduce,
}

fn define_group<S: Scalar>(group: &[S], by: ScatterReduce) -> S {
    match by {
        ScatterReduce::Sum => S::sum(group),
        ScatterReduce::Mean => S::sum(group) / S::lit(group.len() as f64),
        ScatterReduce::Prod => group.iter().fold(S::one(), |p, &v| p * v),
        ScatterReduce::Max | ScatterReduce::Min => {
            if let Some(&nan) = group.iter().find(|v| v.re().is_nan()) {
                return S::lit(nan.re());
            }
            let sign = if by == ScatterReduce::Max { 1.0 } else { -1.0 };
            let best = group.iter().fold(f64::NEG_INFINITY, |m: f64, v| Scalar::max(m, sign * v.re())) * sign;
            let tied: Vec<S> = group.iter().copied().filter(|v| v.re() == best).collect();
            if let [only] = tied[..] { only } else { S::sum(&tied) / S::lit(tied.len() as f64) }
        }
    }
}

/// Different numbers, exact in every type, of which those with another offset are different, too.
fn sample_values(shape: &[usize], offset: f64) -> Input {
    let n: usize = shape.iter().product();
    Input::values(shape, (0..n).map(|i| ((i * 7 + 3) % 29) as f64 * 0.5 - 6.0 + offset).collect::<Vec<_>>())
}

/// Operands that every reduction takes: x, index, src.
fn sample_inputs(g: &mut Gen) -> Vec<(i32, [Input; 3], &'static str)> {
    let five: Vec<i64> = [0, 0, 3, 1, 3].iter().flat_map(|&i| [i; 3]).collect();
    let of = sample_values;
    vec![
        (0, [of(&[4, 3], 0.0), Input::ints(I64, [5, 3], &five), of(&[5, 3], 0.25)], "several at a place, and none"),
        (1, [of(&[3, 5], 0.0), g.below(U32, [3, 2], 5), of(&[3, 2], 0.25)], "u32"),
        (-1, [of(&[2, 3, 2], 0.0), g.below(U8, [2, 3, 4], 2), of(&[2, 3, 4], 0.25)], "u8"),
        (1, [of(&[2, 4, 3], 0.0), g.below(I64, [1, 5, 2], 4), of(&[1, 5, 2], 0.25)], "an index smaller than the operand [D11]"),
        (1, [of(&[0, 3], 0.0), Input::ints(I64, [0, 2], &[]), of(&[0, 2], 0.25)], "no elements"),
    ]
}

/// Operands that are refused.
fn sample_refused(g: &mut Gen) -> Vec<(i32, [Input; 3], ErrorKind)> {
    vec![
        (0, [g.normal([3]), Input::ints(I64, [1], &[3]), g.normal([1])], ErrorKind::Index),
        (0, [g.normal([3]), Input::ints(I64, [1], &[-1]), g.normal([1])], ErrorKind::Index),
        (0, [g.normal([3]), Input::ints(I64, [2], &[0, 1]), g.normal([1])], ErrorKind::Shape),
        (1, [g.normal([3]), Input::ints(I64, [1], &[0]), g.normal([1])], ErrorKind::Shape),
        (0, [g.normal([3]), g.normal([1]), g.normal([1])], ErrorKind::Dtype),
        (0, [g.normal([3]), Input::ints(I64, [1], &[0]), g.normal([1]).of_dtype(F64)], ErrorKind::Dtype),
        (0, [Input::ints(I64, [3], &[1, 2, 3]), Input::ints(I64, [1], &[0]), Input::ints(I64, [1], &[4])], ErrorKind::Dtype),
    ]
}

impl Describe for ScatterFold {
    const NAME: &'static str = "scatter_fold";
    const MATH: Math = Math {
        forward: "y[p] = x[p] · ∏ s, or max(x[p], max s), or min, over the elements s of src whose index names p, in the order of the index",
        vjp: "ȳ[p] times the product of the others; or ȳ[p] to the element that is taken, shared by those that tie",
        kinks: "ties share ȳ equally; NaN wins and has no gradient; a product's gradient at zeros is that of the others' product, as its second derivative is; a third at places with three zeros is not",
        cost: "reads x, index and src, writes y; sorts the index on a GPU; saves all four",
        references: "torch.Tensor.scatter_reduce",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let groups = define_groups(x, self.axis, true);
        vec![Nd::new(&x[0].shape, groups.iter().map(|g| define_group(g, self.by)).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for by in [ScatterReduce::Prod, ScatterReduce::Max, ScatterReduce::Min] {
            let of = |axis: i32| ScatterFold { axis: axis.into(), by };
            let tie = if by == ScatterReduce::Prod { &[][..] } else { &[0, 2] };
            out.extend(sample_inputs(g).into_iter().map(|(a, x, note)| Sample::check(of(a), x).unrepeated(tie).note(note)));
            out.extend(sample_refused(g).into_iter().map(|(a, x, kind)| Sample::reject(of(a), x, kind)));
            // Few factors: kernels multiply parts of a run, and no product of some of them may overflow.
            let factor = |i: usize| [(0, 2.0), (45, 0.5)].iter().find(|(at, _)| i % 90 == *at).map_or(1.0, |&(_, v)| v);
            let (n, many) = (f64::NAN, (0..999).map(factor).collect::<Vec<_>>());
            out.push(
                Sample::value(of(0), [Input::values([3], [0.0, 1.0, 2.0]), Input::ints(I64, [999], &[1; 999]), Input::values([999], many)])
                    .note("a long run"),
            );
            out.push(
                Sample::value(
                    of(0),
                    [Input::values([3], [0.0, n, f64::INFINITY]), Input::ints(I64, [3], &[0, 1, 2]), Input::values([3], [n, 1.0, 2.0])],
                )
                .note("NaN wins"),
            );
            out.push(
                Sample::value(of(0), [g.normal([90, 50]), g.below(I64, [200, 50], 90), g.normal([200, 50])])
                    .note("one slab in parallel ranges"),
            );
            out.push(
                Sample::value(of(1), [g.normal([300, 90]), g.below(I64, [300, 70], 90), g.normal([300, 70])])
                    .note("more than one parallel piece"),
            );
            out.push(Sample::bench(of(1), [g.normal([4096, 1024]), g.below(I64, [4096, 64], 1024), g.normal([4096, 64])]));
        }
        let zeros = |x: [f64; 4], s: [f64; 5]| [Input::values([4], x), Input::ints(I64, [5], &[0, 0, 1, 2, 2]), Input::values([5], s)];
        let of = |by| ScatterFold { axis: 0.into(), by };
        out.extend([
            Sample::check(of(ScatterReduce::Max), [sample_values(&[3], 0.0), Input::ints(I64, [0], &[]), sample_values(&[0], 0.0)])
                .note("nothing put"),
            Sample::check(of(ScatterReduce::Prod), zeros([2.0, 0.0, 0.5, 3.0], [0.0, 1.5, 2.0, -2.0, 0.5])).note("one zero at a place"),
            Sample::check(of(ScatterReduce::Prod), zeros([2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0, 0.0]))
                .note("two and three zeros at a place"),
            Sample::check(of(ScatterReduce::Max), zeros([2.0, 1.0, 0.5, 3.0], [2.0, 2.0, 1.0, 0.75, 0.75]))
                .at_kink()
                .note("ties share equally"),
            Sample::check(of(ScatterReduce::Min), zeros([2.0, 1.0, 0.5, 3.0], [2.0, 2.0, 1.0, 0.25, 0.25]))
                .at_kink()
                .note("ties share equally"),
        ]);
        out
    }
}

impl Op for ScatterFold {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&[x[0].clone(), x[2].clone()])?;
        fits(&x[0].shape, &x[1], self.axis)?;
        if x[1].shape != x[2].shape {
            bail!(shape, "the index has shape {}, what is put {}; they must be equal", x[1].shape, x[2].shape);
        }
        if matches!(self.by, ScatterReduce::Sum | ScatterReduce::Mean) {
            bail!(argument, "sums are added: scatter_add");
        }
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let (_, extent, width) = x[0].shape().split_at(axis);
        let ids = index::indices(&x[1], extent)?;
        let lines = index::Lines::new(x[1].shape(), x[0].shape(), axis)?;
        let n = x[1].shape()[axis];
        let join = match self.by {
            ScatterReduce::Max => index::Join::Max,
            ScatterReduce::Min => index::Join::Min,
            _ => index::Join::Times,
        };
        with_float!(x[0].dtype(), T => {
            let y = y[0].slice::<T>();
            cpu::copy_strided(x[0].storage::<T>(), x[0].layout(), y)?;
            index::scatter(&x[2].contiguous::<T>()?, extent, width, &ids, n, &lines, y, join)?;
        });
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let axis = self.axis.resolve(x[0].shape().rank())?;
        let ids = cuda::index::indices(&x[1], x[0].shape()[axis])?;
        let how = match self.by {
            ScatterReduce::Max => 1,
            ScatterReduce::Min => 2,
            _ => 0,
        };
        cuda::index::scatter_fold(&x[0], &ids, &x[2], axis, how, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], y: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[0]), Some(x[1]), Some(x[2]), Some(&y[0])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (x, index, s, y) = (saved.get(0)?, saved.get(1)?, saved.get(2)?, saved.get(3)?);
        let g = y_bar.only()?;
        // In f32 for half types: counts and products of factors are rounded once.
        let wide = if g.dtype().is_half() { F32 } else { g.dtype() };
        let cell = Cell { axis: self.axis, index, g: g.cast(wide)? };
        let (by_x, by_s) = if self.by == ScatterReduce::Prod {
            cell.product(&x.cast(wide)?, &s.cast(wide)?, want[0], want[2])?
        } else {
            cell.extremum(x, s, y, want[0], want[2])?
        };
        let back = |bar: Option<Tensor>| bar.map(|b| b.cast(g.dtype())).transpose();
        Ok(smallvec![back(by_x)?, None, back(by_s)?])
    }
}

/// Where derivatives are gathered from: the cotangents of the places.
struct Cell<'a> {
    axis: Axis,
    index: &'a Tensor,
    g: Tensor,
}

impl Cell<'_> {
    fn at(&self, t: &Tensor) -> Result<Tensor> {
        t.gather(self.axis, self.index)
    }

    /// To the elements that equal the result, in equal shares.
    fn extremum(&self, x: &Tensor, s: &Tensor, y: &Tensor, by_x: bool, by_s: bool) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, s, y) = (x.untracked(), s.untracked(), y.untracked());
        let (own, theirs) = (x.eq(&y)?, s.eq(&self.at(&y)?)?);
        let dtype = self.g.dtype();
        let count = own.cast(dtype)?.scatter_add(self.axis, self.index, &theirs.cast(dtype)?)?;
        // Nothing equals a NaN.
        let share = self.g.div(&count.masked_fill(&count.eq_scalar(0.0)?, 1.0)?)?;
        let by_x = by_x.then(|| share.masked_fill(&own.logical_not()?, 0.0)).transpose()?;
        let by_s = by_s.then(|| self.at(&share)?.masked_fill(&theirs.logical_not()?, 0.0)).transpose()?;
        Ok((by_x, by_s))
    }

    /// The product of the others: that of all, divided by the element, as long as none is 0.
    fn product(&self, x: &Tensor, s: &Tensor, by_x: bool, by_s: bool) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (none_x, none_s) = (x.untracked().eq_scalar(0.0)?, s.untracked().eq_scalar(0.0)?);
        let dtype = x.dtype();
        let zeros = none_x.cast(dtype)?.scatter_add(self.axis, self.index, &none_s.cast(dtype)?)?;
        // What is 0 stays apart from the rest, and keeps its derivative: the sum of a place's zeros is the only one, if there is one.
        let rest = apply1(
            ScatterFold { axis: self.axis, by: ScatterReduce::Prod },
            &[&x.masked_fill(&none_x, 1.0)?, self.index, &s.masked_fill(&none_s, 1.0)?],
        )?;
        let lost =
            x.masked_fill(&none_x.logical_not()?, 0.0)?.scatter_add(self.axis, self.index, &s.masked_fill(&none_s.logical_not()?, 0.0)?)?;
        let others = |v: &Tensor, none: &Tensor, [g, zeros, rest, lost]: [&Tensor; 4]| -> Result<Tensor> {
            let (one, two) = (zeros.eq_scalar(1.0)?, zeros.eq_scalar(2.0)?);
            let nothing = rest.untracked().zeros_like()?;
            // Beside an element that is not 0 there are `zeros` zeros, beside one that is there is one fewer.
            let whole = zeros.eq_scalar(0.0)?.where_cond(rest, &one.where_cond(&rest.mul(lost)?, &nothing)?)?;
            let beside = whole.div(&v.masked_fill(none, 1.0)?)?;
            let other = rest.mul(&lost.sub(v)?)?;
            let alone = one.where_cond(rest, &two.where_cond(&other, &nothing)?)?;
            g.mul(&none.where_cond(&alone, &beside)?)
        };
        let by_x = by_x.then(|| others(x, &none_x, [&self.g, &zeros, &rest, &lost])).transpose()?;
        let by_s =
            by_s.then(|| others(s, &none_s, [&self.at(&self.g)?, &self.at(&zeros)?, &self.at(&rest)?, &self.at(&lost)?])).transpose()?;
        Ok((by_x, by_s))
    }
}

impl Describe for ScatterReduceOp {
    const NAME: &'static str = "scatter_reduce";
    const MATH: Math = Math {
        forward: "y[p] = sum, mean, product, max or min of the elements of src whose index names p, and of x[p] if it is included; x[p] where none does",
        vjp: "that of scatter_add and scatter_fold; x[p] gets nothing where it is left out",
        kinks: "as scatter_fold",
        cost: "as scatter_add or scatter_fold; a mean, and leaving x out, count what is put at every place: one more pass over the index",
        references: "torch.Tensor.scatter_reduce",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let groups = define_groups(x, self.axis, self.include_self);
        vec![Nd::new(&x[0].shape, groups.iter().map(|g| define_group(g, self.by)).collect())]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        use ScatterReduce::{Max, Mean, Min, Prod, Sum};
        let mut out = Vec::new();
        for by in [Sum, Mean, Prod, Max, Min] {
            for include_self in [false, true] {
                let of = |axis: i32| ScatterReduceOp { axis: axis.into(), by, include_self };
                let tie = if matches!(by, Max | Min) { &[0, 2][..] } else { &[] };
                // Every kind of operands for two of them; the rest are the same steps.
                let some = if by == Sum || (by == Mean && !include_self) { usize::MAX } else { 2 };
                out.extend(sample_inputs(g).into_iter().take(some).map(|(a, x, note)| Sample::check(of(a), x).unrepeated(tie).note(note)));
                out.extend(sample_refused(g).into_iter().map(|(a, x, kind)| Sample::reject(of(a), x, kind)));
            }
        }
        let many = Input::values([300], vec![1.0; 300]);
        let mean = ScatterReduceOp { axis: 0.into(), by: Mean, include_self: false };
        let nothing = [sample_values(&[3], 0.0), Input::ints(I64, [0], &[]), sample_values(&[0], 0.0)];
        out.push(Sample::check(mean.clone(), nothing).note("nothing put"));
        out.push(
            Sample::value(mean.clone(), [Input::values([2], [0.0, 5.0]), Input::ints(I64, [300], &[0; 300]), many])
                .note("a count beyond a half type's integers"),
        );
        out.push(Sample::bench(mean, [g.normal([4096, 64]), g.below(I64, [16384, 64], 4096), g.normal([16384, 64])]));
        out
    }
}

impl Composite for ScatterReduceOp {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let (x, index, src) = (x[0], x[1], x[2]);
        let spec = |t: &Tensor| Spec::new(t.shape(), t.dtype());
        expect::same_float(&[spec(x), spec(src)])?;
        let mean = self.by == ScatterReduce::Mean;
        // Exact up to 2²⁴ of them.
        let dtype = if x.dtype() == DType::F64 { F64 } else { F32 };
        let count = if mean || !self.include_self {
            let (zeros, ones) =
                (Tensor::full_on(x.shape(), 0.0, dtype, x.device())?, Tensor::full_on(src.shape(), 1.0, dtype, x.device())?);
            Some(zeros.scatter_add(self.axis, index, &ones)?)
        } else {
            None
        };
        let (mut x, mut src, to) = (x.clone(), src.clone(), x.dtype());
        if mean {
            // Sums and counts of half types in f32.
            (x, src) = (x.cast(dtype)?, src.cast(dtype)?);
        }
        if let Some(count) = count.as_ref().filter(|_| !self.include_self) {
            let neutral = match self.by {
                ScatterReduce::Sum | ScatterReduce::Mean => 0.0,
                ScatterReduce::Prod => 1.0,
                ScatterReduce::Max => f64::NEG_INFINITY,
                ScatterReduce::Min => f64::INFINITY,
            };
            x = x.masked_fill(&count.gt_scalar(0.0)?, neutral)?;
        }
        let y = match self.by {
            ScatterReduce::Sum | ScatterReduce::Mean => x.scatter_add(self.axis, index, &src)?,
            by => apply1(ScatterFold { axis: self.axis, by }, &[&x, index, &src])?,
        };
        let Some(count) = count.filter(|_| mean) else { return Ok(smallvec![y]) };
        let count = if self.include_self { count.add_scalar(1.0)? } else { count.masked_fill(&count.eq_scalar(0.0)?, 1.0)? };
        Ok(smallvec![y.div(&count)?.cast(to)?])
    }
}

impl Tensor {
    /// A copy in which the elements of `src` are put along an axis, `y[i, index[i, k]]` for axis 1, and what meets at a place becomes
    /// its sum, mean, product, maximum or minimum. With `include_self` the operand's own element is one of them; without, it stays
    /// only where nothing is put.
    ///
    /// ```
    /// use cotangent::{ops::ScatterReduce, tensor};
    /// let x = tensor![10, 10, 10]?;
    /// let (index, src) = (tensor![0, 0, 2; I64]?, tensor![1, 3, 5]?);
    /// assert_eq!(x.scatter_reduce(0, &index, &src, ScatterReduce::Max, false)?.to_vec::<f32>()?, [3., 10., 5.]);
    /// assert_eq!(x.scatter_reduce(0, &index, &src, ScatterReduce::Mean, false)?.to_vec::<f32>()?, [2., 10., 5.]);
    /// assert_eq!(x.scatter_reduce(0, &index, &src, ScatterReduce::Sum, true)?.to_vec::<f32>()?, [14., 10., 15.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// That of the sum, mean or product; of a maximum or minimum `ȳ` to the elements that are taken, shared by those that tie. None
    /// to the operand where it is left out.
    ///
    /// # Shapes
    /// As [`Tensor::scatter_add`].
    ///
    /// # Numerics
    /// In the order of `k`, in f32 for half types (products on a GPU in an order that the index alone decides); the same bits on any
    /// number of threads. A product's derivatives are those of the other factors, zeros included, up to the second.
    ///
    /// # Errors
    /// As [`Tensor::gather`]; shape error unless `index` and `src` have one shape; dtype error for integers.
    #[doc(alias("scatter_mean", "scatter_max", "amax", "amin", "segment_max"))]
    #[track_caller]
    pub fn scatter_reduce(
        &self,
        axis: impl Into<Axis>,
        index: &Tensor,
        src: &Tensor,
        by: ScatterReduce,
        include_self: bool,
    ) -> Result<Tensor> {
        compose1(ScatterReduceOp { axis: axis.into(), by, include_self }, &[self, index, src])
    }
}
