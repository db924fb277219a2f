//! Matrix products as the devices take them: equal matrices at equal distances.

use crate::dtype::DType;

/// Most matrices of one product: what cuBLASLt takes.
pub(crate) const MOST_MATRICES: usize = 65_535;

/// A stack of matrices in device memory. One of the two strides is 1, and the other is no shorter than a line.
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

impl Matrices {
    /// Whether a library can address matrices of this shape and these strides.
    pub(crate) fn addressable([rows, cols]: [usize; 2], [down, right]: [usize; 2]) -> bool {
        is_row_major([rows, cols], [down, right]) || (down == 1 || rows == 1) && (right >= rows || cols == 1)
    }

    /// Matrices of an addressable shape, described the way libraries expect: along an axis of one element any stride finds it, and
    /// they demand one that is not shorter than a line.
    pub(crate) fn new(addr: u64, [rows, cols]: [usize; 2], [down, right]: [usize; 2], batch_stride: usize) -> Self {
        let (row_stride, col_stride) =
            if is_row_major([rows, cols], [down, right]) { (down.max(cols).max(1), 1) } else { (1, right.max(rows).max(1)) };
        Matrices { addr, row_stride, col_stride, batch_stride }
    }
}

fn is_row_major([rows, cols]: [usize; 2], [down, right]: [usize; 2]) -> bool {
    (right == 1 || cols == 1) && (down >= cols || rows == 1)
}

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plus {
    Nothing,
    /// What C holds.
    Itself,
    /// A row of `n` elements, to every row; at a multiple of 16 bytes.
    Bias(u64),
}

/// `C ← A·B + plus` for every matrix of the stack; C is row-major without gaps. Half types accumulate in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gemm {
    /// Of all operands.
    pub dtype: DType,
    /// Number of products, at most [`MOST_MATRICES`] for a device.
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
    pub plus: Plus,
}
