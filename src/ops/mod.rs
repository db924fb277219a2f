//! One op, one file; a folder for each family. Layer L4b. The registry below is the only list.
//!
//! Users call methods of [`Tensor`](crate::Tensor); public here is what those take, and what ops outside of this crate are made with. The
//! types of the ops themselves are hidden: they may change at any time.

mod accumulate;
#[doc(hidden)]
pub mod attention;
#[doc(hidden)]
pub mod conv;
mod create;
#[doc(hidden)]
pub mod elementwise;
#[doc(hidden)]
pub mod index;
#[doc(hidden)]
pub mod linalg;
#[doc(hidden)]
pub mod loss;
#[doc(hidden)]
pub mod norm;
#[doc(hidden)]
pub mod reduce;
mod second_order;
#[doc(hidden)]
pub mod shape;

#[doc(hidden)]
pub use attention::{rope, sdpa};
#[doc(hidden)]
pub use conv::{
    adaptive_pool, affine_grid, avg_pool, conv_input, conv_weight, grid_sample, interpolate, local_response_norm, max_pool, resample,
    unfold,
};
#[doc(hidden)]
pub use elementwise::{binary, cast, compare, dropout, gated, logical, select};
#[doc(hidden)]
pub use index::{embedding, gather, index_select, scatter_reduce};
#[doc(hidden)]
pub use linalg::{einsum, linear, matmul, matrix_norm, quant_linear};
#[doc(hidden)]
pub use loss::{bce_with_logits, cross_entropy, linear_cross_entropy, mse_loss, nll_loss, soft_cross_entropy};
#[doc(hidden)]
pub use norm::{add_norm, batch_norm, group_norm, log_softmax, softmax};
#[doc(hidden)]
pub use reduce::{any_all, argmax, cumsum, group, mean, sort, sum};
#[doc(hidden)]
pub use shape::{concat, diagonal, flip, pad, pad_with, permute, pixel_shuffle, repeat, slice, split, squeeze, triangle, unbind, views};

pub use crate::backend::cpu::quant::Blocks;
pub(crate) use accumulate::ACCUMULATE;
pub use bce_with_logits::BceWithLogitsOptions;
pub use conv::{
    AvgPool1dOptions, AvgPool2dOptions, AvgPool3dOptions, AvgPoolOptions, Conv1dOptions, Conv2dOptions, Conv3dOptions, ConvOptions,
    ConvTranspose1dOptions, ConvTranspose2dOptions, ConvTranspose3dOptions, ConvTransposeOptions, GridSampleMode, GridSampleOptions,
    GridSamplePadding, InterpolateMode, InterpolateOptions, InterpolateSize, MaxPool1dOptions, MaxPool2dOptions, MaxPool3dOptions,
    MaxPoolOptions, Padding, UnfoldOptions,
};
#[doc(hidden)]
pub use create::{Nested, Written, from_floats, from_whole};
pub use cross_entropy::CrossEntropyOptions;
pub use elementwise::Number;
pub use loss::Reduction;
pub use matrix_norm::MatrixNorm;
pub use nll_loss::NllLossOptions;
pub use pad_with::PadMode;
pub use repeat::Repeats;
pub use rope::{RopeOptions, RopePositions, RopeStyle};
pub use scatter_reduce::ScatterReduce;
pub use sdpa::SdpaOptions;
pub use second_order::{differentiate, differentiate_vjp, widened};
pub use slice::Span;

use crate::testing::{Config, OpEntry, Report};

/// Checks one op of the registry again: what a failure of the suite asks to run.
///
/// ```
/// let report = cotangent::ops::replay("exp", 0, 3);
/// assert!(report.failures.is_empty());
/// ```
#[inline]
pub fn replay(name: &str, seed: u64, limit: usize) -> Report {
    let mut report = Report::default();
    for entry in registry().iter().filter(|e| e.name == name) {
        entry.check(&Config { seed, limit, ..Config::default() }, &mut report);
    }
    report
}

macro_rules! registry {
    ($(unary: [$($u:ty),* $(,)?])? $(binary: [$($b:ty),* $(,)?])? $(kernels: [$($o:ty),* $(,)?])? $(rounding: [$($r:ty),* $(,)?])? $(views: [$($v:ty),* $(,)?])? $(composites: [$($c:ty),* $(,)?])?) => {
        /// Every op of the crate, with its checks and benches.
        // `inline`, like every function of samples: definitions and samples are then compiled where they are used (tests, benches), not into
        // the library.
        #[inline]
        pub fn registry() -> Vec<OpEntry> {
            vec![
                $($(OpEntry::unary::<$u>(), OpEntry::op::<elementwise::MapVjp<$u>>(),)*)?
                $($(OpEntry::op::<binary::Zip<$b>>(),)*)?
                $($(OpEntry::op::<$o>(),)*)?
                $($(OpEntry::rounding::<$r>(),)*)?
                $($(OpEntry::view::<$v>(),)*)?
                $($(OpEntry::composite::<$c>(),)*)?
            ]
        }
    };
}

registry! {
    unary: [
        elementwise::Abs,
        elementwise::Ceil,
        elementwise::Clamp,
        elementwise::Cos,
        elementwise::Elu,
        elementwise::Erf,
        elementwise::Exp,
        elementwise::Expm1,
        elementwise::Floor,
        elementwise::Gelu,
        elementwise::GeluTanh,
        elementwise::LeakyRelu,
        elementwise::Log,
        elementwise::Log1p,
        elementwise::Neg,
        elementwise::NormalCdf,
        elementwise::Powf,
        elementwise::Powi,
        elementwise::Recip,
        elementwise::Relu,
        elementwise::ReluSquared,
        elementwise::Round,
        elementwise::RoundDecimals,
        elementwise::Rsqrt,
        elementwise::Sigmoid,
        elementwise::Sign,
        elementwise::Silu,
        elementwise::Sin,
        elementwise::Softplus,
        elementwise::Sqrt,
        elementwise::Square,
        elementwise::Tanh,
        elementwise::AddScalar,
        elementwise::DivScalar,
        elementwise::MulScalar,
        elementwise::RdivScalar,
        elementwise::RsubScalar,
        elementwise::SubScalar,
    ]
    binary: [
        binary::Add,
        binary::Div,
        binary::Maximum,
        binary::Minimum,
        binary::Mul,
        binary::NegMul,
        binary::Pow,
        binary::Sub,
    ]
    kernels: [
        cast::Cast,
        any_all::AnyAll,
        argmax::Arg,
        argmax::WithIndex,
        binary::ExtremumVjp,
        compare::Compare,
        compare::CompareScalar,
        concat::Concat,
        conv::conv::Conv,
        conv_input::ConvInput,
        conv_weight::ConvWeight,
        cross_entropy::CrossEntropyLoss,
        cross_entropy::CrossEntropyVjp,
        cumsum::Cumsum,
        dropout::Dropout,
        dropout::DropoutAdd,
        embedding::Embedding,
        embedding::EmbeddingVjp,
        embedding::OneHot,
        flip::Flip,
        flip::Roll,
        gated::Gated<elementwise::Gelu>,
        gated::Gated<elementwise::GeluTanh>,
        gated::Gated<elementwise::Silu>,
        gated::GatedVjp<elementwise::Gelu>,
        gated::GatedVjp<elementwise::GeluTanh>,
        gated::GatedVjp<elementwise::Silu>,
        gather::Gather,
        gather::ScatterAdd,
        index_select::IndexSelect,
        index_select::IndexSelectVjp,
        linear::Linear,
        log_softmax::LogSoftmax,
        log_softmax::LogSoftmaxVjp,
        matmul::MatMul,
        max_pool::MaxPool,
        group::Reduce<group::LogSumExp>,
        group::Reduce<group::Max>,
        group::Reduce<group::Min>,
        group::Reduce<group::Norm>,
        group::Reduce<group::Prod>,
        group::Reduce<group::Std>,
        group::Reduce<group::Var>,
        group::ReduceVjp<group::LogSumExp>,
        group::ReduceVjp<group::Max>,
        group::ReduceVjp<group::Min>,
        group::ReduceVjp<group::Norm>,
        group::ReduceVjp<group::Prod>,
        group::ReduceVjp<group::Std>,
        group::ReduceVjp<group::Var>,
        logical::Logical,
        logical::LogicalNot,
        mean::Mean,
        nll_loss::NllLoss,
        nll_loss::NllLossVjp,
        norm::LayerNorm,
        norm::NormVjp<true>,
        norm::NormVjp<false>,
        norm::RmsNorm,
        pad::Pad,
        quant_linear::Dequantize,
        quant_linear::QuantLinear,
        resample::Resample<false>,
        resample::Resample<true>,
        rope::Rope,
        rope::RopePair,
        scatter_reduce::ScatterFold,
        sdpa::SdpaOp,
        sdpa::SdpaVjp,
        select::MaskedFill,
        select::WhereCond,
        slice::SliceVjp,
        soft_cross_entropy::SoftCrossEntropy,
        soft_cross_entropy::SoftCrossEntropyVjp,
        softmax::Softmax,
        softmax::SoftmaxVjp,
        sort::Sort<false>,
        sort::Sort<true>,
        sum::Sum,
        triangle::Tril,
        triangle::Triu,
        unfold::Fold,
        unfold::Unfold,
        views::Contiguous,
    ]
    rounding: [
        add_norm::AddNorm<false>,
        add_norm::AddNorm<true>,
        linear_cross_entropy::LinearCrossEntropy,
        linear_cross_entropy::LinearCrossEntropyVjp,
    ]
    views: [
        diagonal::Diagonal,
        permute::Permute,
        permute::Transpose,
        slice::Slice,
        squeeze::Squeeze,
        squeeze::SqueezeAll,
        squeeze::Unsqueeze,
        views::Expand,
        views::Reshape,
    ]
    composites: [
        adaptive_pool::AdaptivePool<false>,
        adaptive_pool::AdaptivePool<true>,
        affine_grid::AffineGrid,
        avg_pool::AvgPool,
        batch_norm::BatchNorm,
        batch_norm::BatchNormWith,
        bce_with_logits::BceWithLogits,
        concat::Stack,
        einsum::Einsum,
        grid_sample::GridSample,
        group_norm::GroupNorm,
        index_select::IndexAdd,
        interpolate::Interpolate,
        local_response_norm::LocalResponseNorm,
        matmul::Dot,
        matmul::Outer,
        matrix_norm::MatrixNormOp,
        mse_loss::MseLoss,
        pad_with::PadWith,
        pixel_shuffle::PixelShuffle<false>,
        pixel_shuffle::PixelShuffle<true>,
        repeat::Repeat,
        repeat::RepeatInterleave,
        repeat::RepeatInterleaveBy,
        scatter_reduce::ScatterReduceOp,
        slice::Select,
        split::Chunk,
        split::Split,
        unbind::Unbind,
        views::Flatten,
    ]
}
