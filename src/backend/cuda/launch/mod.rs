//! Launches: typed operands, the generated launchers, and copies between layouts and types.

pub(crate) mod copy;
pub(crate) mod kernels;
mod operand;
mod threads;

pub(crate) use operand::Dense;
pub use operand::{In, Out};
pub(crate) use threads::{THREADS, grid};
