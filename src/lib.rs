#![doc = include_str!("../docs/crate.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod array;
pub mod backend;
mod capture;
pub mod diagnostics;
mod dtype;
mod error;
mod functional;
mod grad;
mod instruction_set;
pub mod io;
mod layout;
mod memory;
pub mod models;
mod module;
pub mod nn;
mod notice;
pub mod op;
pub mod ops;
pub mod optim;
pub mod prelude;
mod question_mark;
mod rng;
mod shape;
mod tape;
mod tensor;
pub mod testing;
pub mod train;

pub use backend::Device;
pub use capture::Graph;
pub use dtype::{BF16, F16, F32, F64, I64, U8, U32};
pub use dtype::{DType, Element};
pub use error::{Error, ErrorKind, Result};
pub use functional::{
    GradOptions, Grads, Inputs, Pullback, checkpoint_module, custom_vjp_module, grad, gradcheck_module, hvp, jacobian, jvp, value_and_grad,
    value_and_grad_with, value_and_grad_with_aux, vjp,
};
pub use layout::Layout;
pub use module::{Buffer, BufferUpdates, Leaf, LowRank, Module, Param, Role, Summary, SummaryRow, Visitor, try_walk, walk};
#[doc(hidden)]
pub use question_mark::{QuestionMark, Unwrapped};
pub use rng::{Key, Rng};
pub use shape::{Axes, Axis, Extent, Extents, Shape};
pub use tape::{Composed, Gradients, Observer, Pulled, Ran, Tape, checkpoint, custom_vjp, custom_vjp_once};
pub use tensor::Tensor;

/// The types of half precision, as tensors store them.
pub use half::{bf16, f16};

/// The examples of README, book and contributors' pages run as doc tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/book/README.md")]
    struct Book;
    #[doc = include_str!("../docs/book/start.md")]
    struct Start;
    #[doc = include_str!("../docs/book/from-pytorch.md")]
    struct FromPyTorch;
    #[doc = include_str!("../docs/book/data.md")]
    struct Data;
    #[doc = include_str!("../docs/book/models.md")]
    struct Models;
    #[doc = include_str!("../docs/book/optimizers.md")]
    struct Optimizers;
    #[doc = include_str!("../docs/book/tape.md")]
    struct Tape;
    #[doc = include_str!("../docs/book/layouts.md")]
    struct Layouts;
    #[doc = include_str!("../docs/book/derivations/norms.md")]
    struct Norms;
    #[doc = include_str!("../docs/book/numerics.md")]
    struct Numerics;
    #[doc = include_str!("../docs/book/testing.md")]
    struct Testing;
    #[doc = include_str!("../docs/book/survives.md")]
    struct Survives;
    #[doc = include_str!("../docs/book/training.md")]
    struct Training;
    #[doc = include_str!("../docs/book/derivations/attention.md")]
    struct Attention;
    #[doc = include_str!("../docs/book/gpu.md")]
    struct Gpu;
    #[doc = include_str!("../docs/book/performance.md")]
    struct Performance;
    #[doc = include_str!("../docs/book/diagnostics.md")]
    struct Diagnostics;
    #[doc = include_str!("../docs/book/postmortems.md")]
    struct Postmortems;
    #[doc = include_str!("../docs/book/load.md")]
    struct Load;
    #[doc = include_str!("../docs/book/vision.md")]
    struct Vision;
    #[doc = include_str!("../docs/book/generate.md")]
    struct Generate;
    #[doc = include_str!("../docs/book/finetune.md")]
    struct Finetune;
    #[doc = include_str!("../docs/book/garbage.md")]
    struct Garbage;
    #[doc = include_str!("../docs/life-of-an-op.md")]
    struct LifeOfAnOp;
}
