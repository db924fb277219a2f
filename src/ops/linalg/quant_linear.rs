//! The linear map by a matrix in 8 or 4 bits, and the matrix' elements.

use crate::backend::cpu::quant::{self, BLOCK, Blocks};
use crate::backend::{cpu, cuda};
use crate::dtype::{DType, U8, with_float};
use crate::error::{ErrorKind, Result, bail};
use crate::op::{Cotangents, Describe, InputCotangents, Math, Op, Saved, Spec, apply1, expect};
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::{SmallVec, smallvec};

/// `x Wᵀ` for a matrix in blocks; see [`Tensor::quant_linear`].
#[derive(Clone, Debug)]
pub struct QuantLinear {
    /// How blocks hold their elements.
    pub kind: Blocks,
}

impl QuantLinear {
    /// Elements of a row of the matrix.
    fn columns(&self, w: &Spec) -> Result<usize> {
        match *w.shape.dims() {
            [_, bytes] if w.dtype == U8 && bytes.is_multiple_of(self.kind.bytes()) => Ok(bytes / self.kind.bytes() * BLOCK),
            [_, _] if w.dtype != U8 => bail!(dtype, "expected a matrix of bytes, found {}", w.dtype),
            _ => bail!(shape, "expected a matrix [out, bytes] of whole blocks of {} bytes, found {}", self.kind.bytes(), w.shape),
        }
    }
}

/// The textbook element: scale and whole number of a row's bytes.
fn element<S: Scalar>(kind: Blocks, row: &[S], j: usize) -> f64 {
    let at = j / 32 * block_bytes(kind);
    let byte = |i: usize| row[at + i].re() as u8;
    let d = half_precision(byte(0), byte(1));
    let i = j % 32;
    match kind {
        Blocks::Q8_0 => d * f64::from(byte(2 + i) as i8),
        Blocks::Q4_0 if i < 16 => d * (f64::from(byte(2 + i) % 16) - 8.0),
        Blocks::Q4_0 => d * (f64::from(byte(2 + i - 16) / 16) - 8.0),
    }
}

/// A scale of two bytes, and 32 numbers of one byte or half of one.
fn block_bytes(kind: Blocks) -> usize {
    match kind {
        Blocks::Q8_0 => 2 + 32,
        Blocks::Q4_0 => 2 + 16,
    }
}

/// IEEE binary16 by its definition.
fn half_precision(low: u8, high: u8) -> f64 {
    let sign = if high >= 128 { -1.0 } else { 1.0 };
    let exponent = i32::from(high % 128 / 4);
    let fraction = f64::from(u32::from(high % 4) * 256 + u32::from(low)) / 1024.0;
    sign * match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    }
}

impl Describe for QuantLinear {
    const NAME: &'static str = "quant_linear";
    const MATH: Math = Math {
        forward: "y = x Wᵀ over the last axis of x, with W[i, j] = d·q: a scale for each 32 elements of a row, and whole numbers of 8 or 4 bits",
        vjp: "x̄ = ȳ W, with W expanded; the matrix has none",
        kinks: "linear in x",
        cost: "reads 1.06 or 0.56 bytes per element of W; never expands more than a few rows of it; saves the matrix",
        references: "llama.cpp's Q8_0 and Q4_0",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (w, lead) = (&x[1], x[0].shape.rank() - 1);
        let k = x[0].shape[lead];
        let bytes = w.shape[1];
        vec![Nd::from_fn(x[0].extents_with(lead, w.shape[0]), |i| {
            let row = &w.data[i[lead] * bytes..(i[lead] + 1) * bytes];
            let terms: Vec<S> = (0..k).map(|j| x[0].at(&[&i[..lead], &[j]].concat()) * S::lit(element(self.kind, row, j))).collect();
            S::sum(&terms)
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for kind in [Blocks::Q8_0, Blocks::Q4_0] {
            let op = QuantLinear { kind };
            for (x, n, note) in [
                (&[2, 32][..], 3, "one block"),
                (&[64], 2, "a vector, two blocks"),
                (&[2, 1, 32], 1, "rows over two axes"),
                (&[0, 32], 2, "no rows"),
                (&[2, 0], 2, "no inputs: zeros"),
                (&[1, 32], 0, "no outputs"),
            ] {
                let w = packed(g, kind, n, x[x.len() - 1]);
                out.push(Sample::check(op.clone(), [g.normal(x), w]).note(note));
            }
            // Few and many rows take different ways; panels and tiles end anywhere.
            for (rows, n, k) in [(7, 5, 96), (8, 5, 96), (9, 130, 32), (3, 67, 64), (1, 9, 320), (32, 3, 320), (33, 129, 32), (65, 3, 96)] {
                let w = packed(g, kind, n, k);
                out.push(Sample::value(op.clone(), [g.normal([rows, k]), w]).note("around the border of few rows, of panels and of tiles"));
            }
            let (a, b) = (packed(g, kind, 896, 896), packed(g, kind, 4864, 896));
            out.push(Sample::bench(op.clone(), [g.normal([1, 896]), a]));
            out.push(Sample::bench(op.clone(), [g.normal([128, 896]), b]));
            let w = packed(g, kind, 2, 32);
            out.push(Sample::reject(op.clone(), [g.normal([2, 64]), w.clone()], ErrorKind::Shape).note("another number of elements"));
            out.push(Sample::reject(op.clone(), [g.normal(()), w.clone()], ErrorKind::Shape));
            out.push(
                Sample::reject(op.clone(), [g.normal([2, 32]), g.normal([2, kind.bytes()])], ErrorKind::Dtype).note("a matrix of floats"),
            );
            let bytes = vec![0; 2 * kind.bytes() + 2];
            out.push(
                Sample::reject(op, [g.normal([2, 32]), Input::ints(U8, [2, kind.bytes() + 1], &bytes)], ErrorKind::Shape)
                    .note("half a block"),
            );
        }
        out
    }
}

/// Blocks with scales of both signs, subnormal ones among them, and any whole numbers.
fn packed(g: &mut Gen, kind: Blocks, rows: usize, columns: usize) -> Input {
    let row = columns / BLOCK * kind.bytes();
    let key = g.key();
    let byte = |i: usize| -> i64 {
        let any = i64::from(key.u32(i as u64) % 256);
        match i % kind.bytes() {
            // Exponents up to 15: scales below 2.
            1 => (any % 2) * 128 + any / 2 % 60,
            _ => any,
        }
    };
    let bytes: Vec<i64> = (0..rows * row).map(byte).collect();
    Input::ints(U8, [rows, row], &bytes)
}

impl Op for QuantLinear {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let dtype = expect::same_float(&x[..1])?;
        let k = self.columns(&x[1])?;
        let Some((&last, lead)) = x[0].shape.split_last() else {
            bail!(shape, "x has no axis to map; expected x [.., in]");
        };
        if last != k {
            bail!(shape, "inner extents differ: x {}, a matrix of {} rows of {k} elements", x[0].shape, x[1].shape[0]);
        }
        Ok(smallvec![Spec { shape: lead.iter().copied().chain([x[1].shape[0]]).collect(), dtype }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let k = x[0].shape()[x[0].shape().rank() - 1];
        let w = x[1].contiguous::<u8>()?;
        with_float!(x[0].dtype(), T => quant::product::<T>(self.kind, &x[0].contiguous::<T>()?, &w, k, y[0].slice::<T>()))
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        cuda::linalg::quant::product(self.kind, &x[0], &x[1], &mut y[0])
    }

    fn save(&self, x: &[&Tensor], _: &[Tensor], want: &[bool]) -> Saved {
        Saved::of([want[0].then_some(x[1])])
    }

    fn vjp(&self, saved: &Saved, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        let y_bar = y_bar.only()?;
        let w = saved.get(0)?.dequantize(self.kind, y_bar.dtype())?;
        let x_bar = match y_bar.rank() {
            1 => y_bar.unsqueeze(0)?.matmul(&w)?.squeeze(0)?,
            _ => y_bar.matmul(&w)?,
        };
        Ok(smallvec![Some(x_bar), None])
    }
}

/// The elements of rows in blocks; see [`Tensor::dequantize`].
#[derive(Clone, Debug)]
pub struct Dequantize {
    /// How blocks hold their elements.
    pub kind: Blocks,
    /// Their type.
    pub to: DType,
}

impl Describe for Dequantize {
    const NAME: &'static str = "dequantize";
    const MATH: Math = Math {
        forward: "y = d·q for each 32 elements along the last axis: a scale, and whole numbers of 8 or 4 bits",
        vjp: "none: the operand is of integers",
        kinks: "exact in f32, rounded once from there",
        cost: "reads 1.06 or 0.56 bytes per element, writes y; saves nothing",
        references: "llama.cpp's Q8_0 and Q4_0",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let (w, last) = (&x[0], x[0].shape.rank() - 1);
        let bytes = w.shape[last];
        let shape = w.extents_with(last, bytes / block_bytes(self.kind) * 32);
        let lines: Vec<&[S]> = if bytes > 0 { w.data.chunks_exact(bytes).collect() } else { Vec::new() };
        vec![Nd::from_fn(shape, |i| {
            let line = i[..last].iter().zip(w.shape.iter()).fold(0, |at, (i, d)| at * d + i);
            S::lit(element(self.kind, lines[line], i[last]))
        })]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        let mut out = Vec::new();
        for kind in [Blocks::Q8_0, Blocks::Q4_0] {
            for to in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                let op = Dequantize { kind, to };
                for (rows, k) in [(3, 64), (1, 32), (0, 32), (2, 0), (70, 96)] {
                    let w = packed(g, kind, rows, k);
                    out.push(Sample::value(op.clone(), [w]));
                }
                let one = Input::ints(U8, [kind.bytes()], &vec![65; kind.bytes()]);
                out.push(Sample::value(op.clone(), [one]).note("a row alone"));
                let w = packed(g, kind, 896, 896);
                out.push(Sample::bench(op, [w]));
            }
            let op = Dequantize { kind, to: DType::F32 };
            let odd = Input::ints(U8, [2, kind.bytes() + 1], &vec![0; 2 * kind.bytes() + 2]);
            out.push(Sample::reject(op.clone(), [odd], ErrorKind::Shape).note("half a block"));
            out.push(Sample::reject(op.clone(), [Input::ints(U8, (), &[0])], ErrorKind::Shape));
            out.push(Sample::reject(op, [g.normal([kind.bytes()])], ErrorKind::Dtype).note("a matrix of floats"));
            let row = Input::ints(U8, [kind.bytes()], &vec![0; kind.bytes()]);
            out.push(Sample::reject(Dequantize { kind, to: DType::I64 }, [row], ErrorKind::Dtype).note("to integers"));
        }
        out
    }
}

impl Op for Dequantize {
    const AUX: usize = 0;

    fn infer(&self, x: &[Spec]) -> Result<SmallVec<[Spec; 2]>> {
        let Some((&bytes, lead)) = x[0].shape.split_last() else {
            bail!(shape, "expected rows of blocks [.., bytes], found the scalar {}", x[0].shape)
        };
        if x[0].dtype != U8 || !self.to.is_float() {
            bail!(dtype, "expected bytes (u8) and a float dtype for their elements, found {} and {}", x[0].dtype, self.to);
        }
        if !bytes.is_multiple_of(self.kind.bytes()) {
            bail!(shape, "expected rows of whole blocks of {} bytes, found {}", self.kind.bytes(), x[0].shape);
        }
        let k = bytes / self.kind.bytes() * BLOCK;
        Ok(smallvec![Spec { shape: lead.iter().copied().chain([k]).collect(), dtype: self.to }])
    }

    fn cpu(&self, x: &[cpu::In<'_>], y: &mut [cpu::Out<'_>]) -> Result<()> {
        let w = x[0].contiguous::<u8>()?;
        with_float!(self.to, T => quant::expand::<T>(self.kind, &w, y[0].slice::<T>()));
        Ok(())
    }

    fn cuda(&self, x: &[cuda::In<'_>], y: &mut [cuda::Out<'_>]) -> Result<()> {
        cuda::linalg::quant::expand(self.kind, &x[0], &mut y[0])
    }

    fn save(&self, _: &[&Tensor], _: &[Tensor], _: &[bool]) -> Saved {
        Saved::none()
    }

    fn vjp(&self, _: &Saved, _: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
        Ok(smallvec![None])
    }
}

impl Tensor {
    /// `x Wᵀ` over the last axis of `x [.., in]`, for a matrix `[out, bytes]` of `u8` that holds blocks of 32 elements along its rows, as GGUF
    /// files store them (`io::GgufFile::hf_packed`). The matrix is not expanded as a whole.
    ///
    /// # Gradient
    /// `x̄ = ȳ W`; saves the matrix. The matrix has no gradient.
    ///
    /// # Numerics
    /// Elements are exact in `f32`; sums are accumulated in `f32` (`f64` for `f64`), and rounded once.
    ///
    /// # Errors
    /// Shape error when rows are no whole blocks or do not have `in` elements; dtype error when `x` is not of floats or the matrix not of `u8`.
    ///
    /// ```
    /// use cotangent::{Tensor, ops::Blocks};
    /// // One row: the scale 0.5 in half precision, then 1, 2, 0, 0, …
    /// let mut row = vec![0u8; 34];
    /// row[..4].copy_from_slice(&[0, 0x38, 1, 2]);
    /// let w = Tensor::from_vec(row, [1, 34])?;
    /// assert_eq!(Tensor::ones([32], cotangent::F32)?.quant_linear(&w, Blocks::Q8_0)?.to_vec::<f32>()?, [1.5]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[track_caller]
    pub fn quant_linear(&self, w: &Tensor, kind: Blocks) -> Result<Tensor> {
        apply1(QuantLinear { kind }, &[self, w])
    }

    /// The elements of rows in blocks: `[.., bytes]` of `u8` to `[.., in]` of a float dtype.
    ///
    /// # Gradient
    /// None: the operand is of integers.
    ///
    /// # Numerics
    /// Exact in `f32`, and rounded once from there.
    ///
    /// # Errors
    /// Shape error when rows are no whole blocks or the operand is a scalar; dtype error when the operand is not of `u8`, or `dtype` not a float.
    #[track_caller]
    pub fn dequantize(&self, kind: Blocks, dtype: DType) -> Result<Tensor> {
        apply1(Dequantize { kind, to: dtype }, &[self])
    }
}
