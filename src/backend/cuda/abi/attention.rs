//! What the kernels of attention take.

use super::View;
use crate::error::Result;
use crate::layout::Layout;

/// A stack of matrices: `struct Heads` of kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Finds the first element of each matrix.
    pub lead: View,
    pub row: i64,
    pub col: i64,
}

/// Extents and options: `struct Scores` of kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores {
    pub heads: i64,
    pub group: i64,
    pub tq: i64,
    pub tk: i64,
    pub d: i64,
    pub dv: i64,
    pub scale: f64,
    /// 0 without a cap.
    pub softcap: f64,
    pub inverse_keep: f64,
    pub seed: u64,
    pub stream: u64,
    /// Address of the two words of the key in a captured step, else 0.
    pub live: u64,
    pub threshold: u64,
    /// Keys that a query sees before and after its own position, when `banded`.
    pub left: i64,
    pub right: i64,
    /// Address of the pairs {first key, end} of every query of packed sequences, else 0.
    pub spans: u64,
    pub banded: i32,
    pub dropout: i32,
}

impl Heads {
    /// The last two axes of the layout are the matrix.
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        let (shape, strides, r) = (layout.shape(), layout.strides(), layout.rank() - 2);
        let lead = Layout::from_parts(shape[..r].into(), strides[..r].iter().copied().collect(), layout.offset())?;
        Ok(Heads { lead: View::new(&lead)?, row: strides[r] as i64, col: strides[r + 1] as i64 })
    }
}

/// Operands and options: `struct Flash` of kernels/common/flash.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flash {
    pub(crate) q: Heads,
    pub(crate) k: Heads,
    pub(crate) v: Heads,
    pub(crate) g: Heads,
    pub(crate) heads: i64,
    pub(crate) group: i64,
    pub(crate) tq: i64,
    pub(crate) tk: i64,
    pub(crate) left: i64,
    pub(crate) right: i64,
    pub(crate) d: i32,
    pub(crate) dv: i32,
    pub(crate) scale: f32,
    pub(crate) scale2: f32,
    /// Address of the count of what the plain kernels compute again.
    pub(crate) left_out: u64,
}

// The structs of the same names in kernels/common have these sizes as well.
const _: () = assert!(size_of::<Heads>() == 152 && size_of::<Scores>() == 136 && size_of::<Flash>() == 680);
