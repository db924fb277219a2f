//! Matrix products.

use crate::backend::cpu::{self, Real, matmul};
use crate::backend::cuda;
use crate::dtype::with_float;
use crate::error::{ErrorKind, Result, bail};
use crate::layout::Layout;
use crate::op::{Composite, Cotangents, Describe, InputCotangents, Math, Op, Outputs, Saved, Spec, apply1, apply1_as, compose1, expect};
use crate::shape::{Dims, Shape};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar, broadcast_extents};
use smallvec::{SmallVec, smallvec};

/// `a · b` over the last two axes; see [`Tensor::matmul`].
///
/// A transposed operand is one whose last two axes are read the other way round (it makes no difference for a vector). It
/// is how the derivative rules are written: they need no copy and no further node on the tape.
#[derive(Clone, Debug)]
pub struct MatMul {
    /// Read `aᵀ`.
    pub lhs_transposed: bool,
    /// Read `bᵀ`.
    pub rhs_transposed: bool,
    /// Shape of `a`, for the derivative: `a` itself is saved only when `b` needs it.
    pub lhs: Shape,
    /// Shape of `b`.
    pub rhs: Shape,
}

/// The operand's last two axes as a matrix: a vector is a row on the left and a column on the right.
fn as_matrix(rank: usize, transposed: bool) -> (bool, bool) {
    (rank == 1, rank > 1 && transposed)
}

impl MatMul {
    /// The product of two tensors of these shapes.
    pub fn new(lhs: &Shape, rhs: &Shape, lhs_transposed: bool, rhs_transposed: bool) -> Self {
        MatMul { lhs_transposed, rhs_transposed, lhs: lhs.clone(), rhs: rhs.clone() }
    }

    /// The layouts `[.., m, k]` and `[.., k, n]` of the operands.
    fn layouts(&self, a: &Layout, b: &Layout) -> Result<(Layout, Layout)> {
        let arrange = |x: &Layout, transposed: bool, axis: usize| match as_matrix(x.rank(), transposed) {
            (true, _) => Ok(x.with_axis(axis, true)),
            (_, true) => {
                let mut order: Dims = (0..x.rank()).collect();
                order.swap(x.rank() - 2, x.rank() - 1);
                x.permute(&order)
            }
            _ => Ok(x.clone()),
        };
        Ok((arrange(a, self.lhs_transposed, 0)?, arrange(b, self.rhs_transposed, 1)?))
    }
}

impl Describe for MatMul {
    const NAME: &'static str = "matmul";
    const MATH: Math = Math {
        forward: "y = a · b over the last axis of a and the last but one of b (the last one when transposed); batch axes broadcast; 0 where that axis is empty",
        vjp: "ā = ȳ · bᵀ, b̄ = aᵀ · ȳ, each summed over its broadcast batch axes; one product over all rows when b is a single matrix",
        kinks: "bilinear",
        cost: "2·m·k·n arithmetic; saves the operand whose partner is wanted",
        references: "numpy.matmul; Giles, Collected matrix derivative results (2008) §2.2.2",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (a, b) = (&x[0], &x[1]);
        let (vec_a, vec_b) = (a.shape.rank() == 1, b.shape.rank() == 1);
        let k = a.shape[if self.lhs_transposed && !vec_a { a.shape.rank() - 2 } else { a.shape.rank() - 1 }];
        // The output's axes: those of the batch, then rows unless a is a vector, then columns unless b is one.
        let batch = |x: &Nd<S>| Nd::from_fn(&x.shape[..x.shape.rank().max(2) - 2], |_| S::zero());
        let mut out = broadcast_extents(&[batch(a), batch(b)]);
        if !vec_a {
            out.push(a.shape[a.shape.rank() - if self.lhs_transposed { 1 } else { 2 }]);
        }
        if !vec_b {
            out.push(b.shape[b.shape.rank() - if self.rhs_transposed { 2 } else { 1 }]);
        }
        vec![Nd::from_fn(out, |i| {
            let mut i = i.to_vec();
            let col = if vec_b { 0 } else { i.pop().unwrap_or(0) };
            let row = if vec_a { 0 } else { i.pop().unwrap_or(0) };
            let at = |x: &Nd<S>, vector: bool, transposed: bool, p: usize, q: usize, l: usize| {
                if vector {
                    return x.at(&[l]);
                }
                let own = x.shape.rank() - 2;
                let mut j: Vec<usize> = (0..own).map(|d| if x.shape[d] == 1 { 0 } else { i[i.len() - own + d] }).collect();
                j.extend(if transposed { [q, p] } else { [p, q] });
                x.at(&j)
            };
            let terms: Vec<S> =
                (0..k).map(|l| at(a, vec_a, self.lhs_transposed, row, l, l) * at(b, vec_b, self.rhs_transposed, l, col, l)).collect();
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let plain = |a: Input, b: Input| (MatMul::new(a.shape(), b.shape(), false, false), [a, b]);
        let (m, k, n) = (g.extent().min(12), g.extent().min(12), g.extent().min(12));
        let mut out = Vec::new();
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let pair = |t: bool, r: usize, c: usize| if t { [c, r] } else { [r, c] };
            let (a, b) = (pair(ta, m, k), pair(tb, k, n));
            let mut add = |a: Input, b: Input, note: &'static str| {
                out.push(Sample::check(MatMul::new(a.shape(), b.shape(), ta, tb), [a, b]).note(note))
            };
            add(g.normal(a), g.normal(b), "");
            add(g.normal([&[2], &a[..]].concat()), g.normal([&[3, 1], &b[..]].concat()), "batches broadcast on both sides");
            add(g.normal([&[3], &a[..]].concat()), g.normal(b), "one matrix on the right: rows fold");
            add(g.normal([&[2, 2], &a[..]].concat()), g.normal([&[1], &b[..]].concat()), "rows fold under a batch axis of extent 1");
            add(g.normal([k]), g.normal([&[2], &b[..]].concat()), "a vector is never transposed");
        }
        let shapes: [(&[usize], &[usize], &'static str); 22] = [
            (&[4], &[4], "vector times vector"),
            (&[1], &[1], ""),
            (&[0], &[0], "K = 0: exact zero"),
            (&[4], &[4, 3], "vector times matrix"),
            (&[5, 4], &[4], "matrix times vector"),
            (&[2, 3, 4], &[4], "batch times vector"),
            (&[4], &[2, 4, 3], "vector times batch"),
            (&[2, 5, 7], &[2, 7, 3], ""),
            (&[1, 5, 7], &[3, 7, 2], "left batch axis of extent 1"),
            (&[5, 7], &[3, 7, 2], "matrix times batch"),
            (&[4, 1, 2, 3], &[3, 3, 2], "ranks 4 and 3"),
            (&[3, 0], &[0, 2], "pytorch 31421, candle 3756: K = 0 gives zeros, not old memory"),
            (&[0, 3], &[3, 2], "no rows"),
            (&[3, 2], &[2, 0], "no columns"),
            (&[0, 2, 3], &[0, 3, 4], "no batches"),
            (&[0, 2, 3], &[3, 4], "no batches, folded"),
            (&[2, 3, 0], &[2, 0, 4], "batched K = 0"),
            (&[1, 7], &[7, 5], "one row"),
            (&[6, 1], &[1, 5], "K = 1"),
            (&[7, 11], &[11, 13], "primes"),
            (&[17, 3], &[3, 9], "one beyond the micro-tile"),
            (&[1, 1, 1], &[1, 1], ""),
        ];
        for (a, b, note) in shapes {
            let (op, x) = plain(g.normal(a), g.normal(b));
            out.push(Sample::check(op, x).note(note));
        }
        let (op, x) = plain(g.normal([5, 1000]), g.normal([1000, 3]));
        out.push(Sample::value(op, x).note("long K"));
        let (op, x) = plain(g.normal_with([2, 5000], 1.0, 1.0), g.normal_with([5000, 2], 1.0, 1.0));
        out.push(Sample::value(op, x).note("long K without cancellation"));
        let (op, x) = plain(g.normal([65, 129]), g.normal([129, 67]));
        out.push(Sample::value(op, x).note("beyond the tile sizes"));
        let (op, x) = plain(g.normal([31, 17, 9]), g.normal([31, 9, 17]));
        out.push(Sample::value(op, x).note("odd batches"));
        let special = Input::values([3, 2], [f64::INFINITY, 0.0, f64::NAN, 1.0, 2.0, 3.0]);
        let (op, x) = plain(special, Input::values([2, 2], [1.0, 0.0, 2.0, 3.0]));
        out.push(Sample::value(op, x).note("infinite times zero and NaN pass through"));
        for (a, b) in
            [(&[4usize, 3][..], &[5usize, 2][..]), (&[3], &[4]), (&[2, 3], &[4]), (&[2, 2, 3], &[3, 3, 4]), (&[], &[3]), (&[2, 3], &[])]
        {
            let (op, x) = plain(g.normal(a), g.normal(b));
            out.push(Sample::reject(op, x, ErrorKind::Shape));
        }
        let (op, x) = plain(g.normal([2, 2]), g.normal([2, 2]).of_dtype(crate::F64));
        out.push(Sample::reject(op, x, ErrorKind::Dtype));
        let (op, x) = plain(g.below(crate::I64, [2, 2], 3), g.below(crate::I64, [2, 2], 3));
        out.push(Sample::reject(op, x, ErrorKind::Dtype));
        let (op, x) = plain(g.normal([768, 128]), g.normal([128, 384]));
        out.push(Sample::bench(op, x));
        let (op, x) = plain(g.normal([8, 256, 384]), g.normal([384, 1536]));
        out.push(Sample::bench(op, x));
        let (op, x) = plain(g.normal([8, 6, 256, 64]), g.normal([8, 6, 64, 256]));
        out.push(Sample::bench(op, x));
        out
    }
}

impl MatMul {
    fn infer_shape(&self, a: &Shape, b: &Shape) -> Result<Shape> {
        if a.rank() == 0 || b.rank() == 0 {
            bail!(shape, "operands need at least one axis: lhs {a}, rhs {b}; use mul for scalars");
        }
        let ((vec_a, ta), (vec_b, tb)) = (as_matrix(a.rank(), self.lhs_transposed), as_matrix(b.rank(), self.rhs_transposed));
        let ends = |s: &Shape| (s[s.rank().saturating_sub(2)], s[s.rank() - 1]);
        let ((a0, a1), (b0, b1)) = (ends(a), ends(b));
        let (m, k) = if ta { (a1, a0) } else { (a0, a1) };
        let (l, n) = if tb { (b1, b0) } else { (b0, b1) };
        if k != l {
            let say = |t: bool| if t { " transposed" } else { "" };
            bail!(shape, "inner extents differ: lhs {a}{}, rhs {b}{} ({k} vs {l})", say(ta), say(tb));
        }
        let lead = |s: &Shape| Shape::from(&s[..s.rank().saturating_sub(2)]);
        let (la, lb) = (lead(a), lead(b));
        let Ok(batch) = la.broadcast(&lb) else { bail!(shape, "batch axes do not broadcast: lhs {a}, rhs {b} ({la} vs {lb})") };
        Ok(batch.iter().copied().chain((!vec_a).then_some(m)).chain((!vec_b).then_some(n)).collect())
    }
}

impl Op for MatMul {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(x)?;
        Ok(smallvec![Spec { shape: self.infer_shape(&x[0].shape, &x[1].shape)?, dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let (a, b) = self.layouts(x[0].layout(), x[1].layout())?;
        with_float!(x[0].dtype(), T => matmul::matmul::<T>((&x[0], &a), (&x[1], &b), Real::from_f64(0.0), y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let (a, b) = self.layouts(x[0].layout(), x[1].layout())?;
        cuda::linalg::matmul(y[0].context(), (&x[0], &a), (&x[1], &b), None, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([want[1].then_some(x[0]), want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let (ta, tb) = (self.lhs_transposed && self.lhs.rank() > 1, self.rhs_transposed && self.rhs.rank() > 1);
        let (vec_a, vec_b) = (self.lhs.rank() == 1, self.rhs.rank() == 1);
        // Vectors become matrices of one row or column, here and in the cotangent.
        let wide = |x: &Tensor, vector: bool, axes: [usize; 2]| if vector { x.reshape(axes) } else { Ok(x.clone()) };
        let g = y_bar.only()?;
        let kept = usize::from(!vec_a) + usize::from(!vec_b);
        let batch: Shape = g.shape()[..g.rank() - kept].into();
        let ends = &g.shape()[g.rank() - kept..];
        let (m, n) = match (vec_a, vec_b) {
            (true, true) => (1, 1),
            (true, false) => (1, ends[0]),
            (false, true) => (ends[0], 1),
            (false, false) => (ends[0], ends[1]),
        };
        let with = |rest: &[usize]| batch.iter().chain(rest).copied().collect::<Shape>();
        let g = g.reshape(with(&[m, n]))?;
        let product = |a: &Tensor, b: &Tensor, ta: bool, tb: bool| apply1(MatMul::new(a.shape(), b.shape(), ta, tb), &[a, b]);
        let a_bar = if want[0] {
            let b = wide(saved.get(1)?, vec_b, [self.rhs[0], 1])?;
            let bar = if ta { product(&b, &g, tb, true)? } else { product(&g, &b, false, !tb)? };
            Some(if vec_a { bar.reshape(with(&self.lhs))? } else { bar })
        } else {
            None
        };
        let b_bar = if want[1] {
            let a = wide(saved.get(0)?, vec_a, [1, self.lhs[0]])?;
            let single = self.rhs.iter().rev().skip(2).all(|&d| d == 1);
            let bar = if single && !ta && batch.rank() > 0 && batch.numel() > 0 {
                // One matrix served all batches: its cotangent is one product over all rows, not a sum of products.
                let rows = batch.numel() * m;
                let (a, g) = (a.reshape([rows, a.shape()[a.rank() - 1]])?, g.reshape([rows, n])?);
                let bar = if tb { product(&g, &a, true, false)? } else { product(&a, &g, true, false)? };
                bar.reshape(&self.rhs)?
            } else {
                let bar = if tb { product(&g, &a, true, ta)? } else { product(&a, &g, !ta, false)? };
                if vec_b { bar.reshape(with(&self.rhs))? } else { bar }
            };
            Some(bar)
        } else {
            None
        };
        Ok(smallvec![a_bar, b_bar])
    }
}

/// `Σ a·b` of two vectors; see [`Tensor::dot`].
#[derive(Clone, Debug)]
pub struct Dot;

impl Describe for Dot {
    const NAME: &'static str = "dot";
    const MATH: Math = Math {
        forward: "y = Σ a · b of two vectors",
        vjp: "ā = ȳ b, b̄ = ȳ a",
        kinks: "bilinear",
        cost: "reads both; saves the operand whose partner is wanted",
        references: "numpy.dot of vectors",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let terms: Vec<S> = x[0].data.iter().zip(&x[1].data).map(|(&a, &b)| a * b).collect();
        vec![Nd::scalar(S::sum(&terms))]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let n = g.extent();
        vec![
            Sample::check(Dot, [g.normal([n]), g.normal([n])]),
            Sample::check(Dot, [g.normal([0]), g.normal([0])]).note("empty: 0"),
            Sample::value(Dot, [g.normal([100_000]), g.normal([100_000])]),
            Sample::reject(Dot, [g.normal([3]), g.normal([4])], ErrorKind::Shape),
            Sample::reject(Dot, [g.normal([3, 1]), g.normal([1])], ErrorKind::Shape),
            Sample::bench(Dot, [g.normal([1 << 20]), g.normal([1 << 20])]),
        ]
    }
}

impl Composite for Dot {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        if x[0].rank() != 1 || x[1].rank() != 1 {
            bail!(shape, "expected two vectors: lhs {}, rhs {}; matmul takes more axes", x[0].shape(), x[1].shape());
        }
        Ok(smallvec![x[0].matmul(x[1])?])
    }
}

/// `a bᵀ` of two vectors; see [`Tensor::outer`].
#[derive(Clone, Debug)]
pub struct Outer;

impl Describe for Outer {
    const NAME: &'static str = "outer";
    const MATH: Math = Math {
        forward: "y[i, j] = a[i] · b[j]",
        vjp: "ā = ȳ b, b̄ = ȳᵀ a",
        kinks: "bilinear",
        cost: "writes m·n; saves the operand whose partner is wanted",
        references: "numpy.outer",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        vec![Nd::from_fn([x[0].data.len(), x[1].data.len()], |i| x[0].data[i[0]] * x[1].data[i[1]])]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let (m, n) = (g.extent(), g.extent());
        vec![
            Sample::check(Outer, [g.normal([m]), g.normal([n])]),
            Sample::check(Outer, [g.normal([0]), g.normal([3])]),
            Sample::reject(Outer, [g.normal([2, 2]), g.normal([3])], ErrorKind::Shape),
            Sample::bench(Outer, [g.normal([2048]), g.normal([2048])]),
        ]
    }
}

impl Composite for Outer {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        if x[0].rank() != 1 || x[1].rank() != 1 {
            bail!(shape, "expected two vectors: lhs {}, rhs {}", x[0].shape(), x[1].shape());
        }
        Ok(smallvec![x[0].reshape([x[0].numel(), 1])?.mul(x[1])?])
    }
}

impl Tensor {
    /// Matrix product over the last axis of `self` and the last but one of `other`.
    ///
    /// ```
    /// use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let a = tape.watch(&Tensor::from_slice(&[1f64, 2., 3., 4.], [2, 2])?)?;
    /// let b = Tensor::from_slice(&[1f64, 0., 10., 1.], [2, 2])?;
    /// let y = a.matmul(&b)?;
    /// assert_eq!(y.to_vec::<f64>()?, [21., 2., 43., 4.]);
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&a)?.to_vec::<f64>()?, [1., 11., 1., 11.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ·bᵀ` and `aᵀ·ȳ`, summed over broadcast batch axes; saves the operand that the other's gradient needs. With a single
    /// matrix on the right, its gradient is one product over the rows of all batches.
    ///
    /// # Shapes
    /// `[.., m, k] · [.., k, n]` gives `[.., m, n]`; leading axes broadcast. A vector on the left is a row and on the right
    /// a column, and that axis is missing in the result. With `k = 0` the result is zero. Transposed and broadcast operands
    /// are read in place, never copied.
    ///
    /// # Numerics
    /// Half types accumulate in f32 over all of `k` and round once. The bits do not depend on the number of threads.
    ///
    /// # Errors
    /// Shape error when the inner extents differ, batch axes do not broadcast, or an operand is a scalar; dtype error unless
    /// both have the same float type.
    #[doc(alias("mm", "bmm", "mv"))]
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        apply1(MatMul::new(self.shape(), other.shape(), false, false), &[self, other])
    }

    /// `self · otherᵀ` over the last two axes, without a copy: [`Tensor::matmul`] with the right operand transposed.
    ///
    /// # Gradient
    /// `ȳ·b` and `ȳᵀ·a`, otherwise as [`Tensor::matmul`].
    ///
    /// # Errors
    /// As [`Tensor::matmul`].
    #[track_caller]
    pub fn matmul_nt(&self, other: &Tensor) -> Result<Tensor> {
        apply1_as("matmul_nt", MatMul::new(self.shape(), other.shape(), false, true), &[self, other])
    }

    /// `selfᵀ · other` over the last two axes, without a copy: [`Tensor::matmul`] with the left operand transposed.
    ///
    /// # Gradient
    /// `b·ȳᵀ` and `a·ȳ`, otherwise as [`Tensor::matmul`].
    ///
    /// # Errors
    /// As [`Tensor::matmul`].
    #[track_caller]
    pub fn matmul_tn(&self, other: &Tensor) -> Result<Tensor> {
        apply1_as("matmul_tn", MatMul::new(self.shape(), other.shape(), true, false), &[self, other])
    }

    /// `Σ a·b` of two vectors.
    ///
    /// # Gradient
    /// `ȳ·b` and `ȳ·a`; saves the operand that the other's gradient needs.
    ///
    /// # Errors
    /// Shape error unless both have one axis of the same extent; dtype error unless both have the same float type.
    #[doc(alias("vdot", "inner"))]
    #[track_caller]
    pub fn dot(&self, other: &Tensor) -> Result<Tensor> {
        compose1(Dot, &[self, other])
    }

    /// `y[i, j] = a[i]·b[j]` of two vectors.
    ///
    /// # Gradient
    /// `ȳ·b` and `ȳᵀ·a`; saves the operand that the other's gradient needs.
    ///
    /// # Errors
    /// Shape error unless both have one axis; dtype error unless both have the same float type.
    #[doc(alias = "ger")]
    #[track_caller]
    pub fn outer(&self, other: &Tensor) -> Result<Tensor> {
        compose1(Outer, &[self, other])
    }
}
