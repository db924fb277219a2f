//! The CPU backend: recycled buffers, SIMD loops, GEMM.
//!
//! Work is split at boundaries that depend on the problem alone, never on the number of threads, so results are
//! bitwise the same on any pool.
//!
//! From the bottom up, each seeing only those before it: `memory` (buffers), `math` (functions of one number), `run` (how loops
//! run), `reduce` (statistics, order and whole rows), `matmul` (matrix products), `attention`, `conv` (convolutions), and `optim` (optimizer steps).

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod math;
pub(crate) mod matmul;
mod memory;
pub(crate) mod optim;
pub(crate) mod reduce;
pub(crate) mod run;

pub(crate) use math::Number;
pub use math::{Compute, Real};
pub use memory::{MemoryStats, memory_stats, poison_fresh_memory, release_cached_memory, reset_peak_memory_stats};
pub use run::view::{Contiguous, In, Out};

pub(crate) use math::normal;
pub(crate) use matmul::{gemm, quant};
pub(crate) use memory::{Buffer, bytes, bytes_mut, is_poisoning};
pub(crate) use reduce::{moments, order, rows};
pub(crate) use run::view::{SERIAL, copy_strided};
pub(crate) use run::{index, map, par, remap, simd};
