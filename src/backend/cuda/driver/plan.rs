//! What cuBLASLt is asked for a product, as plain data. `blaslt` makes the library's descriptors of it; the emulated device computes
//! by it, after holding it against the library's rules.

use crate::backend::cuda::abi::{Gemm, Matrices, Plus};
use crate::dtype::DType;

/// What the fastest Hopper algorithms ask for.
pub(super) const WORKSPACE: usize = 32 << 20;

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: partial sums go through memory in a fixed order and in the type that is computed in, or
/// there are none. Never in place, whose order differs from run to run, and never in the type of the output: that would round the
/// partial sums of half types.
pub(super) const SCHEMES: u32 = 2;

/// Matrices in columns, as the library wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Columns {
    pub rows: usize,
    pub cols: usize,
    /// Elements from column to column.
    pub ld: usize,
    pub batch_stride: usize,
}

/// All that decides an algorithm: descriptors, preferences, and of the addresses what they are aligned to.
///
/// Row-major C = A·B is column-major Cᵀ = Bᵀ·Aᵀ: the library's `a` is our B, its `b` our A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub dtype: DType,
    pub batch: usize,
    pub a: Columns,
    pub b: Columns,
    pub c: Columns,
    /// Whether the library's A and B are transposed.
    pub transposed: [bool; 2],
    pub accumulate: bool,
    /// Whether the epilogue adds a bias.
    pub bias: bool,
    /// Reduction schemes that are allowed.
    pub schemes: u32,
    /// Bytes that the addresses of a, b and c are multiples of.
    pub alignment: [u32; 3],
    /// Most bytes of workspace.
    pub workspace: usize,
}

/// The addresses of one product, in the library's order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub bias: Option<u64>,
}

fn alignment(addr: u64) -> u32 {
    1 << addr.trailing_zeros().min(8)
}

impl Plan {
    pub(super) fn new(g: &Gemm) -> (Self, Addresses) {
        let columns = |rows: usize, cols: usize, m: &Matrices| {
            let (rows, cols) = if m.col_stride == 1 { (cols, rows) } else { (rows, cols) };
            Columns { rows, cols, ld: m.row_stride.max(m.col_stride), batch_stride: m.batch_stride }
        };
        let bias = if let Plus::Bias(addr) = g.plus { Some(addr) } else { None };
        let at = Addresses { a: g.b.addr, b: g.a.addr, c: g.c, bias };
        let plan = Plan {
            dtype: g.dtype,
            batch: g.batch,
            a: columns(g.k, g.n, &g.b),
            b: columns(g.m, g.k, &g.a),
            c: Columns { rows: g.n, cols: g.m, ld: g.n, batch_stride: g.m * g.n },
            transposed: [g.b.col_stride != 1, g.a.col_stride != 1],
            accumulate: g.plus == Plus::Itself,
            bias: bias.is_some(),
            schemes: SCHEMES,
            alignment: [at.a, at.b, at.c].map(alignment),
            workspace: WORKSPACE,
        };
        (plan, at)
    }
}
