//! Rows of a table picked by token ids.

use crate::backend::cpu::{self, index};
use crate::backend::cuda;
use crate::dtype::{DType, I64, U8, U32, with_dtype, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// What the padding row contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// There is no padding row.
    None,
    /// Read like every row, but without a gradient.
    Row(usize),
    /// Read as zeros: what the derivative of the derivative needs.
    Zero(usize),
}

impl Padding {
    fn row(self) -> Option<usize> {
        match self {
            Padding::None => None,
            Padding::Row(p) | Padding::Zero(p) => Some(p),
        }
    }

    fn check(self, rows: usize) -> Result<()> {
        match self.row() {
            Some(p) if p >= rows => bail!(index, "the padding index {p} is outside 0..{rows}"),
            _ => Ok(()),
        }
    }
}

/// `weight[ids]`; see [`Tensor::embedding`].
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The padding row.
    pub padding: Padding,
    /// Number of rows of the table, for the derivative.
    pub rows: usize,
}

impl Describe for Embedding {
    const NAME: &'static str = "embedding";
    const MATH: Math = Math {
        forward: "y[…, :] = weight[ids[…], :]",
        vjp: "row v of the weight's cotangent = Σ ȳ[k, :] over the positions k with ids[k] = v; exactly 0 for the padding row",
        kinks: "linear in the weight; ids have no derivative, nor has the padding row by definition",
        cost: "reads the picked rows, writes y; saves ids. The derivative writes the whole table once and reads ȳ once",
        references: "torch.nn.functional.embedding",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let ids = x[1].indices();
        let width = x[0].shape[1];
        let mut shape = x[1].shape.to_vec();
        shape.push(width);
        let mut data = Vec::new();
        for &id in &ids {
            for c in 0..width {
                let v = x[0].at(&[id as usize, c]);
                data.push(match self.padding {
                    Padding::Row(p) if p as i64 == id => S::lit(v.re()),
                    Padding::Zero(p) if p as i64 == id => S::zero(),
                    _ => v,
                });
            }
        }
        vec![Nd::new(shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |rows: usize| Embedding { padding: Padding::None, rows };
        let pad = |rows: usize, p: usize| Embedding { padding: Padding::Row(p), rows };
        // A padding row has no derivative where finite differences see one.
        let kink = |mut s: Sample<Self>| {
            s.kink = true;
            s
        };
        let d = g.extent();
        let many: Vec<i64> = (0..769).map(|i| i % 3).collect();
        vec![
            Sample::check(of(11), [g.normal([11, d]), g.below(I64, [2, 7], 11)]).note("fixture batch"),
            Sample::check(of(3), [g.normal([3, 1]), g.below(U32, [1], 3)]).note("fixture one_token"),
            Sample::check(of(4), [g.normal([4, 3]), Input::ints(I64, [0], &[])]).note("fixture empty_ids: the gradient is zero"),
            Sample::check(of(4), [g.normal([4, 3]), Input::ints(I64, [0, 5], &[])]).note("fixture empty_batch"),
            Sample::check(of(4), [g.normal([4, 3]), Input::ints(U8, (), &[2])]).note("fixture scalar_id"),
            Sample::check(of(5), [g.normal([5, 2]), g.below(I64, [2, 1, 3], 5)]).note("fixture ids_3d"),
            Sample::check(of(3), [g.normal([3, 0]), g.below(I64, [4], 3)]).note("rows without elements"),
            kink(Sample::check(pad(5, 1), [g.normal([5, d]), Input::ints(I64, [6], &[1, 0, 1, 4, 2, 1])])),
            kink(Sample::check(pad(3, 2), [g.normal([3, 2]), Input::ints(I64, [769], &many)])).note("padding_idx with 769 indices [D16]"),
            kink(Sample::check(Embedding { padding: Padding::Zero(1), rows: 4 }, [g.normal([4, 2]), Input::ints(I64, [3], &[1, 3, 1])])),
            Sample::value(of(4), [g.normal([4, 8]), Input::ints(I64, [4096], &[2; 4096])]).note("fixture same_id_4096"),
            Sample::reject(of(3), [g.normal([3, 2]), Input::ints(I64, [2], &[0, 3])], ErrorKind::Index),
            Sample::reject(of(3), [g.normal([3, 2]), Input::ints(I64, [1], &[-1])], ErrorKind::Index).note("negative ids are refused"),
            Sample::reject(of(0), [g.normal([0, 2]), Input::ints(U8, [1], &[0])], ErrorKind::Index),
            Sample::reject(pad(3, 3), [g.normal([3, 2]), Input::ints(I64, [1], &[0])], ErrorKind::Index),
            Sample::reject(of(3), [g.normal([3]), Input::ints(I64, [1], &[0])], ErrorKind::Shape),
            Sample::reject(of(3), [g.normal([3, 2]), g.normal([1])], ErrorKind::Dtype),
            Sample::bench(of(50_257), [g.normal([50_257, 768]), g.below(I64, [8, 1024], 50_257)]),
        ]
    }
}

/// The table's extents.
fn table(weight: &Spec, rows: usize) -> Result<usize> {
    if weight.shape.rank() != 2 {
        bail!(shape, "expected a weight [rows, width], found shape {}", weight.shape);
    }
    if weight.shape[0] != rows {
        bail!(shape, "the weight {} has not the {rows} rows that the op was made for", weight.shape);
    }
    Ok(weight.shape[1])
}

impl Op for Embedding {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&x[..1])?;
        expect::index(&x[1])?;
        let width = table(&x[0], self.rows)?;
        self.padding.check(self.rows)?;
        Ok(smallvec![Spec { shape: x[1].shape.iter().copied().chain([width]).collect(), dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let ids = index::indices(&x[1], self.rows)?;
        let width = x[0].shape()[1];
        let skip = if let Padding::Zero(p) = self.padding { Some(p as i64) } else { None };
        with_dtype!(x[0].dtype(), T => index::select_rows(&x[0].contiguous::<T>()?, &ids, self.rows, width, skip, y[0].slice::<T>()));
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let ids = cuda::index::indices(&x[1], self.rows)?;
        let skip = if let Padding::Zero(p) = self.padding { Some(p) } else { None };
        cuda::index::select_rows(&x[0], &ids, x[1].numel(), self.rows, x[0].shape()[1], skip, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let op = EmbeddingVjp { padding: self.padding.row(), rows: self.rows };
        Ok(smallvec![Some(apply1(op, &[y_bar.only()?, saved.get(0)?])?), None])
    }
}

/// The derivative of [`Embedding`]: adds rows of ȳ into a table of zeros.
#[derive(Clone, Debug)]
pub struct EmbeddingVjp {
    /// This row stays zero.
    pub padding: Option<usize>,
    /// Number of rows of the table.
    pub rows: usize,
}

impl Describe for EmbeddingVjp {
    const NAME: &'static str = "embedding_vjp";
    const MATH: Math = Math {
        forward: "row v = Σ ȳ[k, :] over the positions k with ids[k] = v; 0 for the padding row",
        vjp: "embedding with the same ids, zero at the padding index",
        kinks: "linear in ȳ",
        cost: "writes the table once, reads ȳ once; counting sort by id, sums pairwise in the order of k; saves ids",
        references: "transpose of a selection matrix; counting sort: Knuth, TAOCP 3, §5.2",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let ids = x[1].indices();
        let width = x[0].shape[x[0].shape.rank() - 1];
        let mut out = Vec::new();
        for v in 0..self.rows {
            for c in 0..width {
                let terms: Vec<S> =
                    (0..ids.len()).filter(|&k| ids[k] as usize == v && self.padding != Some(v)).map(|k| x[0].data[k * width + c]).collect();
                out.push(S::sum(&terms));
            }
        }
        vec![Nd::new([self.rows, width], out)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |rows: usize, padding: Option<usize>| EmbeddingVjp { padding, rows };
        let d = g.extent();
        let many: Vec<i64> = (0..769).map(|i| i % 3).collect();
        let ones = |n: usize, d: usize| Input::values([n, d], vec![1.0; n * d]);
        vec![
            Sample::check(of(5, None), [g.normal([2, 3, d]), g.below(I64, [2, 3], 5)]),
            Sample::check(of(4, Some(1)), [g.normal([5, 2]), Input::ints(U32, [5], &[1, 0, 1, 3, 3])])
                .note("the padding row is exactly zero"),
            Sample::check(of(4, None), [g.normal([3]), Input::ints(U8, (), &[2])]).note("scalar id"),
            Sample::check(of(4, None), [g.normal([0, 3]), Input::ints(I64, [0], &[])]).note("no ids: zeros"),
            Sample::value(of(3, Some(2)), [g.normal([769, 2]), Input::ints(I64, [769], &many)]).note("padding_idx with 769 indices [D16]"),
            Sample::value(of(3, None), [ones(1000, 3), Input::ints(I64, [1000], &[1; 1000])]).note("1000 duplicates in half types [D17]"),
            Sample::value(of(4, None), [g.normal([4096, 8]), Input::ints(I64, [4096], &[2; 4096])]).note("fixture same_id_4096"),
            Sample::value(of(3, None), [g.normal([300, 600]), Input::ints(I64, [300], &[1; 300])])
                .note("one row with many columns, in parallel"),
            Sample::value(of(500, None), [g.normal([200, 257]), g.below(I64, [200], 500)]).note("most rows stay zero"),
            Sample::reject(of(3, None), [g.normal([2, 2]), Input::ints(I64, [2], &[0, 3])], ErrorKind::Index),
            Sample::reject(of(3, None), [g.normal([2, 2]), Input::ints(I64, [3], &[0, 1, 2])], ErrorKind::Shape),
            Sample::bench(of(50_257, None), [g.normal([8, 1024, 768]), g.below(I64, [8, 1024], 50_257)]),
        ]
    }
}

impl Op for EmbeddingVjp {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::same_float(&x[..1])?;
        expect::index(&x[1])?;
        let (g, ids): (&Shape, &Shape) = (&x[0].shape, &x[1].shape);
        if g.rank() != ids.rank() + 1 || g[..ids.rank()] != ids[..] {
            bail!(shape, "the cotangent {g} does not fit the ids {ids}");
        }
        let padding = self.padding.map_or(Padding::None, Padding::Row);
        padding.check(self.rows)?;
        Ok(smallvec![Spec { shape: [self.rows, g[ids.rank()]].into(), dtype: x[0].dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let ids = index::indices(&x[1], self.rows)?;
        let width = y[0].shape()[1];
        let skip = self.padding.map(|p| p as i64);
        with_float!(x[0].dtype(), T => index::add_rows(&x[0].contiguous::<T>()?, &ids, self.rows, width, skip, y[0].slice::<T>())?);
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let ids = cuda::index::indices(&x[1], self.rows)?;
        let width = y[0].shape()[1];
        cuda::index::add_rows(&x[0], &ids, self.rows, width, self.padding, &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::of([Some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let op = Embedding { padding: self.padding.map_or(Padding::None, Padding::Zero), rows: self.rows };
        Ok(smallvec![Some(apply1(op, &[y_bar.only()?, saved.get(0)?])?), None])
    }
}

/// 1 at the class, 0 elsewhere; see [`Tensor::one_hot`].
#[derive(Clone, Debug)]
pub struct OneHot {
    /// Number of classes.
    pub classes: usize,
    /// Type of the result.
    pub dtype: DType,
}

impl Describe for OneHot {
    const NAME: &'static str = "one_hot";
    const MATH: Math = Math {
        forward: "y[…, c] = 1 if ids[…] = c, else 0",
        vjp: "none: ids have no derivative",
        kinks: "constant",
        cost: "writes y",
        references: "torch.nn.functional.one_hot",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let ids = x[0].indices();
        let data = ids.iter().flat_map(|&id| (0..self.classes).map(move |c| if c as i64 == id { S::one() } else { S::zero() })).collect();
        let mut shape = x[0].shape.to_vec();
        shape.push(self.classes);
        vec![Nd::new(shape, data)]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let of = |classes: usize, dtype: DType| OneHot { classes, dtype };
        let mut out: Vec<_> = DType::ALL.iter().map(|&d| Sample::check(of(4, d), [g.below(I64, [2, 3], 4)])).collect();
        out.push(Sample::check(of(3, DType::F32), [Input::ints(U8, (), &[1])]).note("scalar"));
        out.push(Sample::check(of(3, DType::F32), [Input::ints(U32, [0], &[])]).note("no ids"));
        out.push(Sample::value(of(300, DType::F32), [g.below(I64, [90], 300)]));
        out.push(Sample::reject(of(3, DType::F32), [Input::ints(I64, [1], &[3])], ErrorKind::Index));
        out.push(Sample::reject(of(3, DType::F32), [Input::ints(I64, [1], &[-1])], ErrorKind::Index));
        out.push(Sample::reject(of(3, DType::F32), [g.normal([2])], ErrorKind::Dtype));
        out
    }
}

impl Op for OneHot {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        expect::index(&x[0])?;
        Ok(smallvec![Spec { shape: x[0].shape.iter().copied().chain([self.classes]).collect(), dtype: self.dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let ids = index::indices(&x[0], self.classes)?;
        with_dtype!(self.dtype, T => cpu::map::rows(y[0].slice::<T>(), self.classes, |row, out| {
            out.fill(<T as crate::Element>::from_f64(0.0));
            out[ids[row] as usize] = <T as crate::Element>::from_f64(1.0);
        }));
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        let ids = cuda::index::indices(&x[0], self.classes)?;
        cuda::index::one_hot(&ids, self.classes, &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None])
    }
}

impl Tensor {
    /// Rows of this table `[rows, width]` picked by `ids` (`i64`, `u32` or `u8`, any shape): the result has one more axis.
    ///
    /// The row `padding` is read like every other, but gets no gradient.
    ///
    /// # Gradient
    /// Each row gets the sum of `ȳ` over the positions that name it; the padding row exactly 0. Saves `ids`.
    ///
    /// # Numerics
    /// Rows named often accumulate in f32 for half types, pairwise beyond 64 times; the same bits on any number of threads.
    ///
    /// # Errors
    /// Index error that shows the id, its position and the valid range (negative ids are refused); shape error unless the
    /// table has two axes; dtype error for float ids.
    ///
    /// ```
    /// # use cotangent::{Tape, Tensor};
    /// let tape = Tape::new();
    /// let table = tape.watch(&Tensor::from_rows(&[[1f32, 2.], [3., 4.], [5., 6.]])?)?;
    /// let ids = Tensor::from_slice(&[2i64, 0, 2], [3])?;
    /// let y = table.embedding(&ids, None)?;
    /// assert_eq!(y.to_vec::<f32>()?, [5., 6., 1., 2., 5., 6.]);
    /// let grads = tape.backward(&y.sum(..)?)?;
    /// assert_eq!(grads.get(&table)?.to_vec::<f32>()?, [1., 1., 0., 0., 2., 2.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn embedding(&self, ids: &Tensor, padding: Option<usize>) -> Result<Tensor> {
        let rows = self.shape().first().copied().unwrap_or(0);
        apply1(Embedding { padding: padding.map_or(Padding::None, Padding::Row), rows }, &[self, ids])
    }

    /// 1 at the class that each id names, 0 elsewhere, along a new last axis.
    ///
    /// # Gradient
    /// None: ids have no derivative.
    ///
    /// # Errors
    /// Index error when an id is negative or not below `classes`; dtype error for float ids.
    #[track_caller]
    pub fn one_hot(&self, classes: usize, dtype: DType) -> Result<Tensor> {
        apply1(OneHot { classes, dtype }, &[self])
    }
}
