//! The CPU backend: recycled buffers, SIMD loops, GEMM.
//!
//! Work is split at boundaries that depend on the problem alone, never on the number of threads, so results are
//! bitwise the same on any pool.

pub(crate) mod attention;
mod attention_decode;
mod attention_panel;
mod attention_plan;
mod buffer;
#[cfg(all(test, target_arch = "x86_64"))]
mod denormal_tests;
pub(crate) mod gemm;
mod gemm_bf16;
pub(crate) mod index;
pub(crate) mod map;
pub(crate) mod math;
pub(crate) mod matmul;
mod matvec;
pub(crate) mod moments;
pub(crate) mod normal;
pub(crate) mod optim;
pub(crate) mod order;
pub(crate) mod par;
pub(crate) mod quant;
pub(crate) mod reduce;
pub(crate) mod remap;
pub(crate) mod rows;
pub(crate) mod simd;
mod view;

pub use buffer::{MemoryStats, memory_stats, poison_fresh_memory, release_cached_memory, reset_peak_memory_stats};
pub use map::Compute;
pub use math::Real;
pub use view::{Contiguous, In, Out};

pub(crate) use buffer::{Buffer, bytes, bytes_mut, is_poisoning};
pub(crate) use view::{SERIAL, copy_strided};
