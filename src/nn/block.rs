//! Transformer blocks: attention and MLP, each around a residual connection. The sum of a residual connection and the norm that
//! follows it inside a block are one op, with the bits of the two.

use super::Layer;
use super::attention::{Attend, CausalSelfAttention, MultiHeadAttention};
use super::layers::{LayerNorm, RmsNorm};
use super::mlp::{GatedMlp, Mlp};
use crate::error::Result;
use crate::rng::Key;
use crate::tensor::Tensor;

/// Whether a block's norms come before or after its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormOrder {
    /// `x + f(norm(x))`: GPT-2, Llama. The residual stream itself is never normalised, and deep models train.
    #[default]
    Pre,
    /// `norm(x + f(x))`: the first transformer, BERT.
    Post,
}

/// A block in GPT-2's form: layer norms, one projection for queries, keys and values, a plain MLP.
#[derive(Clone, Debug)]
pub struct Block {
    /// Of attention.
    pub ln_1: LayerNorm,
    /// Mixes positions.
    pub attn: CausalSelfAttention,
    /// Of the MLP.
    pub ln_2: LayerNorm,
    /// Mixes channels.
    pub mlp: Mlp,
    /// Whether norms come before or after.
    pub order: NormOrder,
}
crate::module!(Block { ln_1, attn, ln_2, mlp } skip { order });

impl Block {
    /// `[batch, time, width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the input does not fit the weights.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward_with(x, Attend { key, ..Attend::default() })
    }

    /// [`Block::forward`] with a mask or a cache.
    ///
    /// # Errors
    /// As [`CausalSelfAttention::forward_with`].
    #[track_caller]
    pub fn forward_with(&self, x: &Tensor, with: Attend<'_>) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        let key = with.key;
        let run = || {
            let with = Attend { key: key.map(|k| k.fold(0)), ..with };
            let second = key.map(|k| k.fold(1));
            match self.order {
                NormOrder::Pre => {
                    let (normed, x) = self.ln_2.forward_sum(x, &self.attn.forward_with(&self.ln_1.forward(x)?, with)?)?;
                    self.mlp.forward_onto(&x, &normed, second)
                }
                NormOrder::Post => {
                    let (x, _) = self.ln_1.forward_sum(x, &self.attn.forward_with(x, with)?)?;
                    Ok(self.ln_2.forward_sum(&x, &self.mlp.forward(&x, second)?)?.0)
                }
            }
        };
        run().map_err(|e: crate::Error| e.called_at(at))
    }
}

impl Layer for Block {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward(x, key)
    }
}

/// A block in the form of Llama and Qwen2: RMS norms, shared key heads, rotary positions, a gated MLP.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    /// Mixes positions.
    pub self_attn: MultiHeadAttention,
    /// Mixes channels.
    pub mlp: GatedMlp,
    /// Of attention.
    pub input_layernorm: RmsNorm,
    /// Of the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// Whether norms come before or after.
    pub order: NormOrder,
}
crate::module!(DecoderLayer { self_attn, mlp, input_layernorm, post_attention_layernorm } skip { order });

impl DecoderLayer {
    /// `[batch, time, width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the input does not fit the weights.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward_with(x, Attend { key, ..Attend::default() })
    }

    /// [`DecoderLayer::forward`] with a mask, positions or a cache.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward_with`].
    #[track_caller]
    pub fn forward_with(&self, x: &Tensor, with: Attend<'_>) -> Result<Tensor> {
        let at = std::panic::Location::caller();
        let run = || {
            let (first, second) = (&self.input_layernorm, &self.post_attention_layernorm);
            match self.order {
                NormOrder::Pre => {
                    let (normed, x) = second.forward_sum(x, &self.self_attn.forward_with(&first.forward(x)?, with)?)?;
                    x.add(&self.mlp.forward(&normed)?)
                }
                NormOrder::Post => {
                    let (x, _) = first.forward_sum(x, &self.self_attn.forward_with(x, with)?)?;
                    Ok(second.forward_sum(&x, &self.mlp.forward(&x)?)?.0)
                }
            }
        };
        run().map_err(|e: crate::Error| e.called_at(at))
    }
}

impl Layer for DecoderLayer {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward(x, key)
    }
}
