//! One op, one file. Layer L4b. The registry below is the only list.

pub mod binary;
pub mod cast;
pub mod concat;
mod create;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod flip;
pub mod log_softmax;
pub mod loss;
pub mod nll_loss;
pub mod pad;
pub mod permute;
pub mod repeat;
pub mod rope;
mod second_order;
pub mod slice;
pub mod softmax;
pub mod split;
pub mod squeeze;
pub mod sum;
pub mod triangle;
pub mod views;

pub use cross_entropy::CrossEntropy;
pub use loss::Reduction;
pub use nll_loss::NegativeLogLikelihood;
pub use rope::{RopePositions, RopeStyle, Rotary};
pub use second_order::{differentiate, differentiate_vjp};

use crate::backend::cpu::map;
use crate::dtype::with_float;
use crate::error::Result;
use crate::shape::Shape;
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::testing::{Config, OpEntry, Report};

/// How the sweep adds cotangents.
pub(crate) const ACCUMULATE: Accumulate = Accumulate { add: add_cotangents, reduce_to };

fn add_cotangents(mut acc: Tensor, bar: &Tensor) -> Result<Tensor> {
    // In place when nothing else can see the first one and the sum is not being recorded.
    if acc.is_tracked() || bar.is_tracked() || !acc.array.is_unique() {
        return acc.add(bar);
    }
    with_float!(acc.dtype(), T => {
        let x = bar.array.cpu()?.contiguous::<T>()?;
        acc.array.update(|y: &mut [T]| map::update(y, &x, #[inline(always)] |y, x| {
            use crate::backend::cpu::Compute;
            T::store(y.load() + x.load())
        }))?;
    });
    Ok(acc)
}

/// Sums over the axes along which `shape` was broadcast to the shape of `x`.
pub(crate) fn reduce_to(x: &Tensor, shape: &Shape) -> Result<Tensor> {
    let lead = x.rank() - shape.rank();
    let axes: Vec<usize> = (0..x.rank()).filter(|&i| i < lead || shape[i - lead] != x.shape()[i]).collect();
    x.sum_keep(&axes[..])?.reshape(shape)
}

/// Checks one op of the registry again: what a failure of the suite asks to run.
///
/// ```
/// let report = cotangent::ops::replay("exp", 0, 3);
/// assert!(report.failures.is_empty());
/// ```
pub fn replay(name: &str, seed: u64, limit: usize) -> Report {
    let mut report = Report::default();
    for entry in registry().iter().filter(|e| e.name == name) {
        entry.check(&Config { seed, limit, quick: false }, &mut report);
    }
    report
}

macro_rules! registry {
    ($(unary: [$($u:ty),* $(,)?])? $(binary: [$($b:ty),* $(,)?])? $(kernels: [$($o:ty),* $(,)?])? $(views: [$($v:ty),* $(,)?])? $(composites: [$($c:ty),* $(,)?])?) => {
        /// Every op of the crate, with its checks and benches.
        pub fn registry() -> Vec<OpEntry> {
            vec![
                $($(OpEntry::unary::<$u>(), OpEntry::op::<elementwise::MapVjp<$u>>(),)*)?
                $($(OpEntry::op::<binary::Zip<$b>>(),)*)?
                $($(OpEntry::op::<$o>(),)*)?
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
        elementwise::Round,
        elementwise::Rsqrt,
        elementwise::Sigmoid,
        elementwise::Sign,
        elementwise::Silu,
        elementwise::Sin,
        elementwise::Softplus,
        elementwise::Sqrt,
        elementwise::Square,
        elementwise::Tanh,
    ]
    binary: [
        binary::Add,
        binary::Mul,
    ]
    kernels: [
        cast::Cast,
        concat::Concat,
        cross_entropy::CrossEntropyLoss,
        cross_entropy::CrossEntropyVjp,
        dropout::Dropout,
        flip::Flip,
        flip::Roll,
        log_softmax::LogSoftmax,
        log_softmax::LogSoftmaxVjp,
        nll_loss::NllLoss,
        nll_loss::NllLossVjp,
        pad::Pad,
        rope::Rope,
        slice::SliceVjp,
        softmax::Softmax,
        softmax::SoftmaxVjp,
        sum::Sum,
        triangle::Tril,
        triangle::Triu,
        views::Contiguous,
    ]
    views: [
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
        concat::Stack,
        repeat::Repeat,
        repeat::RepeatInterleave,
        slice::Select,
        split::Chunk,
        split::Split,
        views::Flatten,
    ]
}
