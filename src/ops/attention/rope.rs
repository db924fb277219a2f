//! Rotary position embedding.

use crate::backend::cpu::par::*;
use crate::backend::cpu::{self, Buffer, Compute, Real, rows, simd};
use crate::backend::cuda;
use crate::dtype::{DType, Element, with_dtype, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::memory;
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply, apply1, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// Which two elements of a row form a rotated pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` and `i + d/2` (GPT-NeoX, Llama and Qwen2 as Hugging Face stores them).
    #[default]
    Half,
    /// `2i` and `2i + 1` (GPT-J, the original Llama).
    Interleaved,
}

/// The position of each row.
#[derive(Clone, Debug)]
pub enum RopePositions {
    /// Consecutive, from this one on.
    From(usize),
    /// Given as integers `[T]`, or `[B, T]` for a leading axis `B`.
    Given(Tensor),
}

/// Options of [`Tensor::rope`].
#[derive(Clone, Debug)]
pub struct RopeOptions {
    /// Pair `i` turns by `position · base^(−2i/d)`.
    pub base: f64,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// The position of each row.
    pub positions: RopePositions,
    /// Rotate the first so many elements of a row and pass the others through; `None`: all.
    pub rotary_dim: Option<usize>,
}

impl Default for RopeOptions {
    fn default() -> Self {
        RopeOptions { base: 10_000.0, style: RopeStyle::Half, positions: RopePositions::From(0), rotary_dim: None }
    }
}

/// Rotary embedding; see [`Tensor::rope`]. Inputs: x, then the positions if they are given.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Base of the frequencies.
    pub base: f64,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// First position, unless positions are an input.
    pub start: usize,
    /// Whether positions are the second input.
    pub given: bool,
    /// How many elements of a row rotate.
    pub rotary_dim: Option<usize>,
    /// Turn backwards: the transpose, and the inverse.
    pub inverse: bool,
}

/// [`Rope`] of queries and keys; see [`Tensor::rope_with_key`]. Inputs: q, k, then the positions if they are given.
#[derive(Clone, Debug)]
pub struct RopePair(pub Rope);

impl Rope {
    fn dim(&self, x: &Shape) -> usize {
        self.rotary_dim.unwrap_or(x[x.rank() - 1])
    }

    /// What pair `i` turns by per position.
    fn frequency(&self, i: usize, dim: usize) -> f64 {
        let frequency = self.base.powf(-2.0 * i as f64 / dim as f64);
        if self.inverse { -frequency } else { frequency }
    }
}

impl Describe for Rope {
    const NAME: &'static str = "rope";
    const MATH: Math = Math {
        forward: "each pair (a, b) of a row at position t turns by θ = t · base^(−2i/d): (a cos θ − b sin θ, b cos θ + a sin θ)",
        vjp: "x̄ = ȳ turned by −θ: the same kernel; elements beyond rotary_dim pass through",
        kinks: "linear; keeps the norm of every pair",
        cost: "reads x, writes y; one sine and cosine per position and pair; saves the positions",
        references: "Su et al., RoFormer, arXiv:2104.09864; GPT-NeoX (half), GPT-J (interleaved)",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let shape = &x[0].shape;
        let rank = shape.rank();
        let dim = self.rotary_dim.unwrap_or(shape[rank - 1]);
        let mut y = x[0].clone();
        let position = |row: &[usize]| match x.get(1) {
            None => (self.start + row[rank - 2]) as f64,
            Some(p) if p.shape.rank() == 1 => p.data[row[rank - 2]].re(),
            Some(p) => p.data[row[0] * shape[rank - 2] + row[rank - 2]].re(),
        };
        let rows = Nd::from_fn(&shape[..rank - 1], |row| S::lit(position(row)));
        for (r, p) in rows.data.iter().enumerate() {
            let at = r * shape[rank - 1];
            for i in 0..dim / 2 {
                let (j, k) = if self.style == RopeStyle::Half { (i, dim / 2 + i) } else { (2 * i, 2 * i + 1) };
                let (a, b) = (x[0].data[at + j], x[0].data[at + k]);
                let angle = p.re() * self.base.powf(-((2 * i) as f64) / dim as f64);
                let (sin, cos) = if self.inverse { -angle } else { angle }.sin_cos();
                y.data[at + j] = a * S::lit(cos) - b * S::lit(sin);
                y.data[at + k] = b * S::lit(cos) + a * S::lit(sin);
            }
        }
        vec![y]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let plain = Rope { base: 1e4, style: RopeStyle::Half, start: 0, given: false, rotary_dim: None, inverse: false };
        let mut out = Vec::new();
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            for inverse in [false, true] {
                for rotary_dim in [None, Some(4), Some(2), Some(0)] {
                    for start in [0, 1000] {
                        let op = Rope { style, inverse, rotary_dim, start, base: 1e6, ..plain.clone() };
                        out.push(Sample::check(op, [g.normal([2, 3, 6])]).note("every option; elements beyond rotary_dim pass through"));
                    }
                }
            }
            let op = Rope { style, ..plain.clone() };
            for start in [4095, 32_760, 131_064] {
                out.push(Sample::check(Rope { start, ..op.clone() }, [g.normal([8, 4])]).note("positions up to 131072 [D32]"));
            }
            let given = Rope { given: true, ..op.clone() };
            out.extend([
                Sample::check(given.clone(), [g.normal([2, 2, 4, 6]), Input::ints(DType::I64, [4], &[3, 0, 0, 17])])
                    .note("scattered and repeated positions"),
                Sample::check(given.clone(), [g.normal([2, 2, 3, 4]), Input::ints(DType::I64, [2, 3], &[0, 1, 2, 7, 8, 9])])
                    .note("positions per batch [D34]"),
                Sample::check(given.clone(), [g.normal([2, 3, 4]), Input::ints(DType::U32, [2, 3], &[0, 1, 2, 70_000, 8, 9])])
                    .note("positions per batch, no heads [D34]"),
                Sample::check(given.clone(), [g.normal([2, 4]), Input::ints(DType::I64, [2], &[-3, 5])])
                    .note("negative positions turn backwards"),
                Sample::check(op.clone(), [g.normal([1, 2])]).note("one pair"),
                Sample::check(op.clone(), [g.normal([3, 2, 1, 4])]).note("one row per sequence"),
                Sample::check(op.clone(), [g.normal([0, 3, 4])]).note("no sequences"),
                Sample::check(op.clone(), [g.normal([2, 0, 4])]).note("no rows"),
                Sample::value(op.clone(), [g.normal([3, 67, 34])]).note("odd extents"),
                Sample::value(op.clone(), [g.normal([2, 3, 300, 64])]).note("more than one task"),
            ]);
        }
        let given = Rope { given: true, ..plain.clone() };
        out.push(Sample::reject(plain.clone(), [g.normal([4])], ErrorKind::Shape).note("rank 1"));
        out.push(Sample::reject(plain.clone(), [g.normal([2, 5])], ErrorKind::Shape).note("an odd number of elements"));
        out.push(
            Sample::reject(Rope { rotary_dim: Some(8), ..plain.clone() }, [g.normal([2, 6])], ErrorKind::Shape)
                .note("rotary_dim beyond the row"),
        );
        out.push(Sample::reject(Rope { base: -1.0, ..plain.clone() }, [g.normal([2, 6])], ErrorKind::Argument));
        out.push(
            Sample::reject(given.clone(), [g.normal([2, 3, 4]), Input::ints(DType::I64, [2], &[0, 1])], ErrorKind::Shape)
                .note("another number of positions"),
        );
        out.push(Sample::reject(given, [g.normal([3, 4]), g.normal([3])], ErrorKind::Dtype).note("float positions"));
        out.push(Sample::bench(plain, [g.normal([8, 12, 512, 64])]));
        out
    }
}

impl Op for Rope {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&x[..1])?;
        let shape = &x[0].shape;
        let rank = shape.rank();
        if rank < 2 {
            bail!(shape, "rope needs [.., T, D], found {shape}");
        }
        let dim = self.dim(shape);
        if !dim.is_multiple_of(2) || dim > shape[rank - 1] {
            bail!(shape, "rope rotates an even number of elements, at most a row: rotary_dim {dim}, x {shape}");
        }
        if !(self.base > 0.0 && self.base.is_finite()) {
            bail!(argument, "the base must be positive and finite, found {}", self.base);
        }
        let t = shape[rank - 2];
        if self.start.checked_add(t).is_none() {
            bail!(argument, "{t} positions from {} on cannot be counted", self.start);
        }
        if let Some(p) = x.get(1) {
            expect::index(p)?;
            let fits = p.shape[..] == [t] || (rank > 2 && p.shape[..] == [shape[0], t]);
            if !fits {
                bail!(
                    shape,
                    "positions must be [{t}]{}: positions {}, x {shape}",
                    if rank > 2 { format!(" or [{}, {t}]", shape[0]) } else { String::new() },
                    p.shape
                );
            }
        }
        Ok(smallvec![x[0].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        self.run(&x[..1], x.get(1), y)
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.launch(&x[..1], x.get(1), y)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([x.get(1).copied()])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let back = Rope { inverse: !self.inverse, ..self.clone() };
        let inputs: SmallVec<[&Tensor; 2]> = [Some(y_bar.only()?), saved.maybe(0)].into_iter().flatten().collect();
        let mut bars: InputCotangents = smallvec![Some(apply1(back, &inputs)?)];
        bars.extend(self.given.then_some(None));
        Ok(bars)
    }
}

impl Describe for RopePair {
    const NAME: &'static str = "rope_with_key";
    const MATH: Math = Math {
        forward: "rope of q and of k, by one table of angles",
        vjp: "both cotangents turned by −θ: the same op",
        kinks: "linear; keeps the norm of every pair",
        cost: "reads q and k, writes both results; one sine and cosine per position and pair; saves the positions",
        references: "Su et al., RoFormer, arXiv:2104.09864",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let of = |x: &Nd<S>, p: &[Nd<S>]| self.0.define(&std::iter::once(x).chain(p).cloned().collect::<Vec<_>>()).swap_remove(0);
        vec![of(&x[0], &x[2..]), of(&x[1], &x[2..])]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for s in Rope::samples(g) {
            let q = s.inputs[0].shape().clone();
            // A key with one head, where queries have several.
            let k = if q.rank() == 4 { q.with_dim(1, 1) } else { q };
            let mut s = s.map(RopePair);
            s.inputs.insert(1, g.normal(k));
            out.push(s);
        }
        let op = RopePair(RopeOptions::default().op().0);
        out.push(Sample::reject(op.clone(), [g.normal([2, 3, 4]), g.normal([2, 2, 4])], ErrorKind::Shape).note("keys of another length"));
        out.push(Sample::reject(op, [g.normal([2, 3, 4]), g.normal([2, 3, 4]).of_dtype(crate::F64)], ErrorKind::Dtype));
        out
    }
}

impl Op for RopePair {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&x[..2])?;
        let with = |i: usize| std::iter::once(&x[i]).chain(&x[2..]).cloned().collect::<SmallVec<[Spec; 2]>>();
        self.0.infer(&with(0))?;
        self.0.infer(&with(1))?;
        let (q, k) = (&x[0].shape, &x[1].shape);
        if q[q.rank() - 2..] != k[k.rank() - 2..] {
            bail!(shape, "queries and keys must have the same rows and width: q {q}, k {k}");
        }
        Ok(smallvec![x[0].clone(), x[1].clone()])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        self.0.run(&x[..2], x.get(2), y)
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        self.0.launch(&x[..2], x.get(2), y)
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([x.get(2).copied()])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let back = Rope { inverse: !self.0.inverse, ..self.0.clone() };
        let given = saved.maybe(0);
        let bars = [0, 1].map(|i| y_bar.get(i).filter(|_| want[i]));
        let mut out = InputCotangents::from_elem(None, want.len());
        if let [Some(q), Some(k)] = bars {
            let inputs: SmallVec<[&Tensor; 3]> = [Some(q), Some(k), given].into_iter().flatten().collect();
            for (out, bar) in out.iter_mut().zip(apply(RopePair(back), &inputs)?) {
                *out = Some(bar);
            }
            return Ok(out);
        }
        for (out, bar) in out.iter_mut().zip(bars) {
            if let Some(bar) = bar {
                let inputs: SmallVec<[&Tensor; 2]> = [Some(bar), given].into_iter().flatten().collect();
                *out = Some(apply1(back.clone(), &inputs)?);
            }
        }
        Ok(out)
    }
}

fn positions(p: &cpu::In<'_>) -> Result<Vec<f64>> {
    with_dtype!(p.dtype(), T => memory::try_collect(p.contiguous::<T>()?.iter().map(|&v| Element::to_f64(v))))
}

impl Rope {
    /// Turns tensors of equal positions, by one table.
    fn run(&self, x: &[cpu::In<'_>], given: Option<&cpu::In<'_>>, y: &mut [cpu::Out<'_>]) -> Result<()> {
        let rank = x[0].shape().rank();
        let (t, dim) = (x[0].shape()[rank - 2], self.dim(x[0].shape()));
        if y.iter().all(|y| y.shape().contains(&0)) {
            return Ok(()); // extents beside a 0 may be larger than memory
        }
        let positions = match given {
            None => memory::try_collect((0..t).map(|i| (self.start + i) as f64))?,
            Some(p) => positions(p)?,
        };
        with_float!(x[0].dtype(), T => {
            type A = <T as Compute>::Acc;
            let mut table = Buffer::alloc(A::DTYPE, positions.len() * dim)?;
            let table = table.slice_mut::<A>();
            self.fill_table(&positions, dim, table)?;
            x.iter().zip(y).try_for_each(|(x, y)| self.turn::<T>(x, table, y.slice::<T>()))
        })
    }

    fn turn<T: Compute>(&self, x: &cpu::In<'_>, table: &[T::Acc], y: &mut [T]) -> Result<()> {
        let shape = x.shape();
        let rank = shape.rank();
        let (t, d, dim) = (shape[rank - 2], shape[rank - 1], self.dim(shape));
        let x = x.contiguous::<T>()?;
        if dim == 0 {
            y.copy_from_slice(&x);
            return Ok(());
        }
        // Rows of the table repeat for every head; those of a batch follow each other.
        let per_batch = if table.len() > t * dim { shape[1..rank - 1].iter().product::<usize>() } else { usize::MAX };
        rows::for_tasks(d, y, |first, y| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (k, y) in y.chunks_exact_mut(d).enumerate() {
                        let row = first + k;
                        let x = &x[row * d..(row + 1) * d];
                        let at = (row / per_batch * t + row % t) * dim;
                        let (cos, sin) = table[at..at + dim].split_at(dim / 2);
                        rotate(self.style, &x[..dim], cos, sin, &mut y[..dim]);
                        y[dim..].copy_from_slice(&x[dim..]);
                    }
                },
            );
            Ok(())
        })
    }

    fn launch(&self, x: &[cuda::In<'_>], given: Option<&cuda::In<'_>>, y: &mut [cuda::Out<'_>]) -> Result<()> {
        let dim = self.dim(x[0].shape());
        let frequencies = memory::try_collect((0..dim / 2).map(|i| self.frequency(i, dim)))?;
        cuda::attention::rope::rotate(x, given, self.start, &frequencies, self.style == RopeStyle::Interleaved, y)
    }

    /// For each position the cosines of all pairs, then their sines. Angles are f64: in f32 they would be off by up to
    /// `position · 2⁻²⁴`, in bf16 positions beyond 256 would coincide.
    fn fill_table<A: Real>(&self, positions: &[f64], dim: usize, table: &mut [A]) -> Result<()> {
        if dim == 0 {
            return Ok(());
        }
        let frequencies = memory::try_collect((0..dim / 2).map(|i| self.frequency(i, dim)))?;
        let row = |(table, &p): (&mut [A], &f64)| {
            let (cos, sin) = table.split_at_mut(dim / 2);
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(&frequencies) {
                let (sin, cos) = (p * f).sin_cos();
                (*c, *s) = (A::from_f64(cos), A::from_f64(sin));
            }
        };
        if table.len() < 2048 {
            table.chunks_mut(dim).zip(positions).for_each(row);
        } else {
            table.par_chunks_mut(dim).zip(positions.par_chunks(1)).with_min_len((1024 / dim).max(1)).for_each(|(t, p)| row((t, &p[0])));
        }
        Ok(())
    }
}

/// Turns the pairs of one row.
#[inline(always)]
fn rotate<T: Compute>(style: RopeStyle, x: &[T], cos: &[T::Acc], sin: &[T::Acc], y: &mut [T]) {
    let angles = cos.iter().zip(sin);
    match style {
        RopeStyle::Half => {
            let (xa, xb) = x.split_at(cos.len());
            let (ya, yb) = y.split_at_mut(cos.len());
            for ((((&a, &b), ya), yb), (&c, &s)) in xa.iter().zip(xb).zip(ya).zip(yb).zip(angles) {
                let (a, b) = (a.load(), b.load());
                *ya = T::store(a * c - b * s);
                *yb = T::store(b * c + a * s);
            }
        }
        RopeStyle::Interleaved => {
            for ((x, y), (&c, &s)) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(angles) {
                let (a, b) = (x[0].load(), x[1].load());
                y[0] = T::store(a * c - b * s);
                y[1] = T::store(b * c + a * s);
            }
        }
    }
}

impl Tensor {
    /// Rotary position embedding of `[.., T, D]`: each pair of a row turns by an angle that grows with the row's position.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::{RopePositions, RopeOptions}};
    /// let q = Tensor::from_slice(&[1f64, 0.0, 1.0, 0.0], [2, 2])?;
    /// let y = q.rope(&RopeOptions { positions: RopePositions::From(0), ..Default::default() })?;
    /// assert_eq!(y.to_vec::<f64>()?, [1.0, 0.0, 1f64.cos(), 1f64.sin()]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ` turned back by the same kernel; saves only given positions.
    ///
    /// # Shapes
    /// x `[.., T, D]`; given positions `[T]`, or `[B, T]` where `B` is the first of at least three axes.
    ///
    /// # Numerics
    /// Angles, sines and cosines are computed in f64, so positions of 131072 and more stay exact to the working precision.
    ///
    /// # Errors
    /// Shape error unless x has two axes and an even number of rotated elements that fits a row, or when positions do not fit;
    /// argument error for a base that is not positive; dtype error for integers, or positions that are floats.
    #[doc(alias = "rotary")]
    #[track_caller]
    pub fn rope(&self, options: &RopeOptions) -> Result<Tensor> {
        let (op, given) = options.op();
        let x: SmallVec<[&Tensor; 2]> = [Some(self), given].into_iter().flatten().collect();
        apply1(op, &x)
    }

    /// [`Tensor::rope`] of queries and keys at once: `(self, key)` turned by one table of angles.
    ///
    /// ```
    /// use cotangent::{F64, Key, Tensor, ops::RopeOptions};
    /// let (q, k) = (Tensor::randn([1, 4, 3, 8], F64, Key::new(1))?, Tensor::randn([1, 2, 3, 8], F64, Key::new(2))?);
    /// let (a, b) = q.rope_with_key(&k, &RopeOptions::default())?;
    /// assert_eq!(a.to_vec::<f64>()?, q.rope(&RopeOptions::default())?.to_vec::<f64>()?);
    /// assert_eq!(b.to_vec::<f64>()?, k.rope(&RopeOptions::default())?.to_vec::<f64>()?);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// Both cotangents turned back at once; saves only given positions.
    ///
    /// # Shapes
    /// Two tensors as in [`Tensor::rope`] with the same `T` and `D`; the numbers of heads may differ.
    ///
    /// # Cost
    /// One table of cosines and sines instead of two. The rotations themselves stay two launches on a GPU: each moves its own
    /// tensor once, and neither has anything to share with the other but the table.
    ///
    /// # Errors
    /// Shape error when the two differ in `T` or `D`; otherwise as [`Tensor::rope`].
    #[track_caller]
    pub fn rope_with_key(&self, key: &Tensor, options: &RopeOptions) -> Result<(Tensor, Tensor)> {
        let (op, given) = options.op();
        let x: SmallVec<[&Tensor; 3]> = [Some(self), Some(key), given].into_iter().flatten().collect();
        let mut y = apply(RopePair(op), &x)?.into_iter();
        match (y.next(), y.next()) {
            (Some(q), Some(k)) => Ok((q, k)),
            _ => bail!(internal, "queries and keys are two results"),
        }
    }
}

impl RopeOptions {
    /// The op, and the positions if they are given.
    fn op(&self) -> (Rope, Option<&Tensor>) {
        let options = self;
        let (start, given) = match &options.positions {
            RopePositions::From(start) => (*start, None),
            RopePositions::Given(p) => (0, Some(p)),
        };
        let op = Rope {
            base: options.base,
            style: options.style,
            start,
            given: given.is_some(),
            rotary_dim: options.rotary_dim,
            inverse: false,
        };
        (op, given)
    }
}
