//! Reverse-mode differentiation over tensors.

mod array;
pub mod backend;
mod dtype;
mod error;
mod grad;
mod layout;
pub mod op;
pub mod ops;
mod rng;
mod shape;
mod tape;
mod tensor;
pub mod testing;

pub use backend::Device;
pub use dtype::{DType, Element};
pub use dtype::{BF16, F16, F32, F64, I64, U8, U32};
pub use error::{Error, ErrorKind, Result};
pub use layout::Layout;
pub use rng::{Key, Rng};
pub use shape::{Axes, Axis, Shape};
pub use tape::{Gradients, Tape, checkpoint};
pub use tensor::Tensor;

/// The types of half precision, as tensors store them.
pub use half::{bf16, f16};
