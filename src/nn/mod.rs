//! Layers: plain structs that are parameter trees. Layer L5; no op is defined here.
//!
//! Field names are those of Hugging Face and nanoGPT checkpoints, so that weights load without a mapping.

mod attention;
mod gpt;
mod layers;

pub use attention::CausalSelfAttention;
pub use gpt::{Block, Gpt, GptConfig, Mlp, Transformer};
pub use layers::{Activation, Embedding, LayerNorm, Linear};
