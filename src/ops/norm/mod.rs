//! Ops that rescale rows by a statistic of the row: softmax and its logarithm, layer norm and RMS norm, alone or after a residual
//! sum. Each has a derivative kernel of its own. They share loops over rows (`backend::cpu::rows`) and statistics in the accumulator's
//! type. Norms of channels are layer norms of other rows.

pub mod add_norm;
pub mod batch_norm;
pub mod group_norm;
pub mod layer_norm;
pub mod log_softmax;
pub mod softmax;

pub use layer_norm::{LayerNorm, Norm, NormVjp, RmsNorm};
