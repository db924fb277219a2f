//! What the kernels take that step over many tensors in one launch.

/// Tensors of a table, arrays of a tensor, and sets of numbers: `struct Tensors` of kernels/common/tensors.cuh. They fit the 4 KB that
/// every driver takes as parameters.
pub(crate) const TENSORS: usize = 64;
pub(crate) const ARRAYS: usize = 5;
pub(crate) const SETS: usize = 8;

/// The table that a kernel sees.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensors {
    pub at: [[u64; TENSORS]; ARRAYS],
    pub n: [i64; TENSORS],
    pub first: [i32; TENSORS + 1],
    pub which: [i32; TENSORS],
    pub count: i32,
    pub numbers: [[f64; 3]; SETS],
}

// The struct of the same name in kernels/common/tensors.cuh has this size as well.
const _: () = assert!(size_of::<Tensors>() == 3784);
