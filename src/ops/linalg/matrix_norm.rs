//! Norms of matrices that need no decomposition.

use crate::error::{ErrorKind, Result, bail};
use crate::op::{Composite, Describe, Math, Outputs, compose1};
use crate::shape::Axes;
use crate::tensor::Tensor;
use crate::testing::{Gen, Input, Nd, Sample, Scalar};
use smallvec::smallvec;

/// A norm of a matrix by its name; see [`Tensor::matrix_norm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixNorm {
    /// The root of the sum of all squares.
    Frobenius,
    /// The largest sum of absolute values of a column.
    One,
    /// The largest sum of absolute values of a row.
    Infinity,
    /// The smallest sum of absolute values of a column: no norm, but PyTorch's `ord=-1`.
    MinusOne,
    /// The smallest sum of absolute values of a row: no norm, but PyTorch's `ord=-inf`.
    MinusInfinity,
}

/// The norm of each matrix; see [`Tensor::matrix_norm`].
#[derive(Clone, Debug)]
pub struct MatrixNormOp {
    /// Which norm.
    pub kind: MatrixNorm,
    /// The axis along a column, then the one along a row: two in all.
    pub axes: Axes,
    /// Keep both with extent 1.
    pub keep: bool,
}

impl Describe for MatrixNormOp {
    const NAME: &'static str = "matrix_norm";
    const MATH: Math = Math {
        forward: "y = √(Σᵢⱼ xᵢⱼ²), maxⱼ Σᵢ |xᵢⱼ| (columns) or maxᵢ Σⱼ |xᵢⱼ| (rows); min for the negative orders",
        vjp: "x̄ = ȳ · x / y, or ȳ · sign x in the column or row that is taken",
        kinks: "0 at the zero matrix and at zero elements; columns or rows that tie share the cotangent",
        cost: "reads x, writes y; for columns and rows |x| once more, which is saved with x",
        references: "torch.linalg.matrix_norm; Golub & Van Loan, Matrix Computations, §2.3",
    };

    fn define<S: Scalar>(&self, x: &[Nd<S>]) -> Vec<Nd<S>> {
        let axes: Vec<usize> = match &self.axes {
            Axes::All => vec![0, 1],
            Axes::List(list) => list.iter().map(|&a| x[0].axis_at(a)).collect(),
        };
        let (rows, columns) = (x[0].shape[axes[0]], x[0].shape[axes[1]]);
        // Where the kept axes of a result's index lie in an index of the operand.
        let rank = x[0].shape.rank();
        let outer: Vec<usize> = (0..rank).filter(|a| !axes.contains(a)).collect();
        let y = Nd::from_fn(x[0].extents_without(&axes, self.keep), |i| {
            let mut at = vec![0; rank];
            for (k, &a) in outer.iter().enumerate() {
                at[a] = if self.keep { i[a] } else { i[k] };
            }
            let mut element = |r: usize, c: usize| {
                (at[axes[0]], at[axes[1]]) = (r, c);
                x[0].at(&at)
            };
            let sums: Vec<S> = match self.kind {
                MatrixNorm::Frobenius => {
                    let all: Vec<S> = (0..rows * columns).map(|k| element(k / columns, k % columns)).collect();
                    let scale = all.iter().fold(0.0, |m: f64, v| Scalar::max(m, v.re().abs()));
                    if scale == 0.0 || !scale.is_finite() {
                        return S::lit(scale);
                    }
                    let squares: Vec<S> = all.iter().map(|&v| (v / S::lit(scale)) * (v / S::lit(scale))).collect();
                    return S::sum(&squares).sqrt() * S::lit(scale);
                }
                MatrixNorm::One | MatrixNorm::MinusOne => {
                    (0..columns).map(|c| S::sum(&(0..rows).map(|r| element(r, c).abs()).collect::<Vec<_>>())).collect()
                }
                MatrixNorm::Infinity | MatrixNorm::MinusInfinity => {
                    (0..rows).map(|r| S::sum(&(0..columns).map(|c| element(r, c).abs()).collect::<Vec<_>>())).collect()
                }
            };
            let sign = if matches!(self.kind, MatrixNorm::One | MatrixNorm::Infinity) { 1.0 } else { -1.0 };
            sums.into_iter().reduce(|a, b| if (b.re() - a.re()) * sign > 0.0 || b.re().is_nan() { b } else { a }).unwrap_or(S::zero())
        });
        vec![y]
    }

    #[inline]
    fn samples(g: &mut Gen) -> Vec<Sample<Self>> {
        use MatrixNorm::{Frobenius, Infinity, MinusInfinity, MinusOne, One};
        let of = |kind, axes: [i32; 2], keep| MatrixNormOp { kind, axes: axes.into(), keep };
        // Sums of rows and of columns lie far apart, so that no rounding changes which is taken.
        let matrix = [0.5, -1.0, 3.0, -2.0, 5.0, 0.25];
        let both: Vec<f64> = matrix.iter().chain(&[8.0, 0.75, -0.5, 1.0, 2.0, -16.0]).copied().collect();
        let mut out = Vec::new();
        for kind in [Frobenius, One, Infinity, MinusOne, MinusInfinity] {
            // Repeated rows or columns tie.
            let check = |op, x: Input| Sample::check(op, [x]).unrepeated(if kind == Frobenius { &[] } else { &[0] });
            out.push(check(MatrixNormOp { kind, axes: Axes::All, keep: false }, Input::values([2, 3], matrix)));
            out.push(check(of(kind, [1, 0], false), Input::values([2, 3], matrix)).note("rows and columns exchanged"));
            for keep in [false, true] {
                out.push(check(of(kind, [-2, -1], keep), Input::values([2, 2, 3], both.clone())).note("a batch"));
                out.push(check(of(kind, [2, 0], keep), Input::values([2, 1, 3], matrix)).note("axes apart"));
            }
            out.push(Sample::value(of(kind, [0, 1], false), [Input::values([2, 2], [f64::NAN, 1.0, 2.0, f64::INFINITY])]));
            out.push(Sample::check(of(kind, [1, 2], false), [g.normal([0, 2, 2])]).note("no matrices"));
            out.push(Sample::reject(of(kind, [0, 0], false), [g.normal([2, 3])], ErrorKind::Shape));
            out.push(Sample::reject(of(kind, [0, 2], false), [g.normal([2, 3])], ErrorKind::Shape));
            out.push(Sample::reject(MatrixNormOp { kind, axes: Axes::All, keep: false }, [g.normal([2, 3, 2])], ErrorKind::Shape));
        }
        let zero = |kind, n: usize| Sample::check(of(kind, [0, 1], false), [Input::values([n, 2], vec![0.0; 2 * n])]).at_kink();
        out.push(zero(Frobenius, 2).note("the zero matrix has gradient 0"));
        out.push(Sample::check(of(One, [0, 1], false), [Input::values([1, 1], [-2.0])]));
        out.push(zero(One, 3).note("the zero matrix has gradient 0"));
        out.push(Sample::check(of(Frobenius, [0, 1], false), [g.normal([2, 0])]).note("no elements"));
        out.push(Sample::reject(of(One, [0, 1], false), [g.normal([2, 0])], ErrorKind::Shape).note("no column to choose"));
        out.push(Sample::reject(of(One, [0, 1], false), [Input::ints(crate::I64, [2, 2], &[1; 4])], ErrorKind::Dtype));
        out.push(Sample::bench(of(One, [-2, -1], false), [g.normal([64, 256, 256])]));
        out
    }
}

impl Composite for MatrixNormOp {
    fn compose(&self, x: &[&Tensor]) -> Result<Outputs> {
        let x = x[0];
        let axes = self.axes.ordered(x.rank())?;
        let [rows, columns] = axes[..] else {
            bail!(shape, "a matrix has two axes, found {} for {}", axes.len(), x.shape());
        };
        let y = match self.kind {
            MatrixNorm::Frobenius => x.norm_keepdim(&[rows, columns][..])?,
            MatrixNorm::One => x.abs()?.sum_keepdim(rows)?.max_keepdim(columns)?,
            MatrixNorm::Infinity => x.abs()?.sum_keepdim(columns)?.max_keepdim(rows)?,
            MatrixNorm::MinusOne => x.abs()?.sum_keepdim(rows)?.min_keepdim(columns)?,
            MatrixNorm::MinusInfinity => x.abs()?.sum_keepdim(columns)?.min_keepdim(rows)?,
        };
        Ok(smallvec![if self.keep { y } else { y.squeeze(rows.max(columns))?.squeeze(rows.min(columns))? }])
    }
}

impl Tensor {
    /// The norm of each matrix: `axes` are that along a column and that along a row, `[-2, -1]` for the last two (`..` for a tensor
    /// that is one matrix).
    ///
    /// ```
    /// use cotangent::{ops::MatrixNorm, tensor};
    /// let x = tensor![[1, -2], [3, 4]]?;
    /// assert_eq!(x.matrix_norm(MatrixNorm::One, ..)?.item()?, 6.0); // the second column
    /// assert_eq!(x.matrix_norm(MatrixNorm::Infinity, ..)?.item()?, 7.0); // the second row
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Gradient
    /// `ȳ·x/y` for Frobenius (0 for a zero matrix), `ȳ·sign x` in the row or column that is taken for the others, which ties share.
    ///
    /// # Errors
    /// Shape error unless there are two different axes that exist, or when there is no row or column to choose from; dtype error for
    /// integers.
    #[doc(alias("frobenius", "linalg"))]
    #[track_caller]
    pub fn matrix_norm(&self, kind: MatrixNorm, axes: impl Into<Axes>) -> Result<Tensor> {
        compose1(MatrixNormOp { kind, axes: axes.into(), keep: false }, &[self])
    }

    /// [`Tensor::matrix_norm`] that keeps both axes with extent 1.
    ///
    /// # Errors
    /// As [`Tensor::matrix_norm`].
    #[track_caller]
    pub fn matrix_norm_keepdim(&self, kind: MatrixNorm, axes: impl Into<Axes>) -> Result<Tensor> {
        compose1(MatrixNormOp { kind, axes: axes.into(), keep: true }, &[self])
    }
}
