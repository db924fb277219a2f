#![doc = include_str!("../docs/crate.md")]

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

/// The examples of README and book run as doc tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/book/README.md")]
    struct Book;
    #[doc = include_str!("../docs/book/tape.md")]
    struct Tape;
    #[doc = include_str!("../docs/book/layouts.md")]
    struct Layouts;
    #[doc = include_str!("../docs/book/numerics.md")]
    struct Numerics;
    #[doc = include_str!("../docs/book/testing.md")]
    struct Testing;
    #[doc = include_str!("../docs/book/performance.md")]
    struct Performance;
}
