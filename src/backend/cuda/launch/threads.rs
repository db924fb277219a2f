//! How many threads take the elements of a result.

use crate::backend::cuda::abi::Grid;
use crate::backend::cuda::device::Context;

/// Threads per block of elementwise kernels.
pub(crate) const THREADS: u32 = 256;

/// A grid for `n` elements of which each thread takes 16 bytes at a time.
pub(crate) fn grid(on: &Context, n: usize, bytes: usize) -> Grid {
    Grid::over(n.div_ceil((16 / bytes).max(1)), THREADS, on.grid_cap())
}
