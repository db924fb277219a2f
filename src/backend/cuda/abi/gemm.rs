//! Matrix products as the devices take them: equal matrices at equal distances.

use crate::dtype::DType;

/// A stack of matrices in device memory. One of the two strides is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    /// Address of the first element of the first matrix.
    pub addr: u64,
    /// Elements from row to row.
    pub row_stride: usize,
    /// Elements from column to column.
    pub col_stride: usize,
    /// Elements from matrix to matrix; 0 repeats one matrix.
    pub batch_stride: usize,
}

/// `C ← A·B (+ C) (+ bias)` for every matrix of the stack; C is row-major without gaps. Half types accumulate in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gemm {
    /// Of all operands.
    pub dtype: DType,
    /// Number of products.
    pub batch: usize,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B; at least 1.
    pub k: usize,
    /// `m × k`.
    pub a: Matrices,
    /// `k × n`.
    pub b: Matrices,
    /// Address of the first result.
    pub c: u64,
    /// Whether the product is added to what C holds.
    pub accumulate: bool,
    /// A row of `n` elements added to every row, at a multiple of 16 bytes. Never together with f64, for which cuBLASLt has no such epilogue.
    pub bias: Option<u64>,
}
