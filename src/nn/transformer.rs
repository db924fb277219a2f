//! Transformer layers in PyTorch's form: an encoder's, and a decoder's that looks at an encoder's values.

use super::attention::{Attend, AttentionConfig, MultiHeadAttention, drop_out, probability};
use super::layers::{Activation, LayerNorm, Linear, must_divide};
use super::{Layer, NormOrder};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

/// Sizes and options of [`TransformerEncoderLayer`] and [`TransformerDecoderLayer`]. The default is PyTorch's (norms after, ReLU, biases)
/// without dropout, of size zero: set the sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Width of input and output; PyTorch's `d_model`.
    pub width: usize,
    /// Heads; they divide the width.
    pub heads: usize,
    /// Width between the two linear layers; PyTorch's `dim_feedforward`.
    pub hidden: usize,
    /// Between the two linear layers.
    pub activation: Activation,
    /// Whether norms come before or after; PyTorch's `norm_first` is [`NormOrder::Pre`].
    pub order: NormOrder,
    /// Probability of dropping in training: attention weights, what attention gives, and in the feed-forward part.
    pub dropout: f64,
    /// Whether a position of self-attention sees only those up to itself; in a decoder's layer always.
    pub causal: bool,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        TransformerConfig {
            width: 0,
            heads: 0,
            hidden: 0,
            activation: Activation::Relu,
            order: NormOrder::Post,
            dropout: 0.0,
            causal: false,
        }
    }
}

impl TransformerConfig {
    fn attention(&self, causal: bool, dtype: DType, key: Key) -> Result<MultiHeadAttention> {
        probability("dropout", self.dropout)?;
        let head = must_divide("the width", self.width, "the number of heads", self.heads)?;
        let (width, heads, dropout) = (self.width, self.heads, self.dropout);
        let config = AttentionConfig {
            width,
            heads,
            kv_heads: heads,
            head,
            qkv_bias: true,
            output_bias: true,
            causal,
            dropout,
            ..AttentionConfig::default()
        };
        MultiHeadAttention::new(&config, dtype, key)
    }

    fn norm(&self, dtype: DType) -> Result<LayerNorm> {
        LayerNorm::new(self.width, dtype)
    }
}

/// One branch around which its input is added, with the norm before the branch or after the sum.
fn residual(x: &Tensor, norm: &LayerNorm, order: NormOrder, branch: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match order {
        NormOrder::Pre => x.add(&branch(&norm.forward(x)?)?),
        NormOrder::Post => Ok(norm.forward_sum(x, &branch(x)?)?.0),
    }
}

fn feed_forward(x: &Tensor, [first, second]: [&Linear; 2], activation: Activation, p: f64, key: Option<Key>) -> Result<Tensor> {
    let inner = drop_out(&activation.apply(&first.forward(x)?)?, p, key.map(|k| k.fold(0)))?;
    drop_out(&second.forward(&inner)?, p, key.map(|k| k.fold(1)))
}

/// Self-attention and a feed-forward part, each around a residual connection: PyTorch's `nn.TransformerEncoderLayer(batch_first=True)`.
///
/// Its names are PyTorch's but in attention: [`from_torch`](super::from_torch) renames a state dict.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::{Attend, TransformerConfig, TransformerEncoderLayer}};
/// let config = TransformerConfig { width: 8, heads: 2, hidden: 16, ..TransformerConfig::default() };
/// let layer = TransformerEncoderLayer::new(&config, F32, Key::new(1))?;
/// let x = Tensor::randn([2, 3, 8], F32, Key::new(2))?;
/// let real = Tensor::from_slice(&[1u8, 1, 1, 1, 1, 0], [2, 3])?; // the second sequence has two tokens
/// let y = layer.forward_with(&x, Attend { key_padding: Some(&real), ..Attend::default() })?;
/// assert_eq!(y.shape(), &[2, 3, 8]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TransformerEncoderLayer {
    /// Mixes positions.
    pub self_attn: MultiHeadAttention,
    /// `[hidden, width]`.
    pub linear1: Linear,
    /// `[width, hidden]`.
    pub linear2: Linear,
    /// Of attention.
    pub norm1: LayerNorm,
    /// Of the feed-forward part.
    pub norm2: LayerNorm,
    /// Sizes and options.
    pub config: TransformerConfig,
}
crate::module!(TransformerEncoderLayer { self_attn, linear1, linear2, norm1, norm2 } skip { config });

impl TransformerEncoderLayer {
    /// Xavier's weights in attention, PyTorch's default in the linear layers.
    ///
    /// # Errors
    /// Argument error when a size is zero, the heads do not divide the width, or dropout is no probability; out of memory.
    #[track_caller]
    pub fn new(config: &TransformerConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::build(config, dtype, key.into())
    }

    #[track_caller]
    fn build(c: &TransformerConfig, dtype: DType, key: Key) -> Result<Self> {
        let at = Location::caller();
        let build = || {
            Ok(TransformerEncoderLayer {
                self_attn: c.attention(c.causal, dtype, key.fold(0))?,
                linear1: Linear::new(c.width, c.hidden, dtype, key.fold(1))?,
                linear2: Linear::new(c.hidden, c.width, dtype, key.fold(2))?,
                norm1: c.norm(dtype)?,
                norm2: c.norm(dtype)?,
                config: c.clone(),
            })
        };
        build().map_err(|e: Error| e.in_op("encoder_layer", at).called_at(at))
    }

    /// `[batch, time, width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the input does not fit the weights.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward_with(x, Attend { key, ..Attend::default() })
    }

    /// [`forward`](Self::forward) with masks or a cache.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward_with`].
    #[track_caller]
    pub fn forward_with(&self, x: &Tensor, with: Attend<'_>) -> Result<Tensor> {
        let at = Location::caller();
        let (c, key) = (&self.config, with.key);
        let fold = |n| key.map(|k: Key| k.fold(n));
        let run = || {
            let with = Attend { key: fold(0), ..with };
            let x = residual(x, &self.norm1, c.order, |x| drop_out(&self.self_attn.forward_with(x, with)?, c.dropout, fold(1)))?;
            let linear = [&self.linear1, &self.linear2];
            residual(&x, &self.norm2, c.order, |x| feed_forward(x, linear, c.activation, c.dropout, fold(2)))
        };
        run().map_err(|e: Error| e.called_at(at))
    }
}

impl Layer for TransformerEncoderLayer {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward(x, key)
    }
}

/// Causal self-attention, attention over an encoder's values, and a feed-forward part: PyTorch's
/// `nn.TransformerDecoderLayer(batch_first=True)` with a causal `tgt_mask`.
///
/// Its names are PyTorch's but in attention: [`from_torch`](super::from_torch) renames a state dict.
#[derive(Clone, Debug)]
pub struct TransformerDecoderLayer {
    /// Mixes positions up to each one's own.
    pub self_attn: MultiHeadAttention,
    /// Reads the encoder's values.
    pub multihead_attn: MultiHeadAttention,
    /// `[hidden, width]`.
    pub linear1: Linear,
    /// `[width, hidden]`.
    pub linear2: Linear,
    /// Of self-attention.
    pub norm1: LayerNorm,
    /// Of attention over the encoder's values.
    pub norm2: LayerNorm,
    /// Of the feed-forward part.
    pub norm3: LayerNorm,
    /// Sizes and options.
    pub config: TransformerConfig,
}
crate::module!(TransformerDecoderLayer { self_attn, multihead_attn, linear1, linear2, norm1, norm2, norm3 } skip { config });

impl TransformerDecoderLayer {
    /// Xavier's weights in attention, PyTorch's default in the linear layers.
    ///
    /// # Errors
    /// Argument error when a size is zero, the heads do not divide the width, or dropout is no probability; out of memory.
    #[track_caller]
    pub fn new(config: &TransformerConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::build(config, dtype, key.into())
    }

    #[track_caller]
    fn build(c: &TransformerConfig, dtype: DType, key: Key) -> Result<Self> {
        let at = Location::caller();
        let build = || {
            Ok(TransformerDecoderLayer {
                self_attn: c.attention(true, dtype, key.fold(0))?,
                multihead_attn: c.attention(false, dtype, key.fold(1))?,
                linear1: Linear::new(c.width, c.hidden, dtype, key.fold(2))?,
                linear2: Linear::new(c.hidden, c.width, dtype, key.fold(3))?,
                norm1: c.norm(dtype)?,
                norm2: c.norm(dtype)?,
                norm3: c.norm(dtype)?,
                config: c.clone(),
            })
        };
        build().map_err(|e: Error| e.in_op("decoder_layer", at).called_at(at))
    }

    /// `[batch, time, width]` and an encoder's values `[batch, places, width]` to the shape of the first. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the inputs do not fit the weights or each other.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, memory: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward_with(x, memory, Attend { key, ..Attend::default() }, Attend::default())
    }

    /// [`forward`](Self::forward) with options for each attention: masks, a cache of self-attention. The key of the first is that of the
    /// layer, the second needs none.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward_with`] and [`MultiHeadAttention::cross`].
    #[track_caller]
    pub fn forward_with(&self, x: &Tensor, memory: &Tensor, own: Attend<'_>, cross: Attend<'_>) -> Result<Tensor> {
        let at = Location::caller();
        let (c, key) = (&self.config, own.key);
        let fold = |n| key.map(|k: Key| k.fold(n));
        let run = || {
            let (own, cross) = (Attend { key: fold(0), ..own }, Attend { key: fold(1), ..cross });
            let x = residual(x, &self.norm1, c.order, |x| drop_out(&self.self_attn.forward_with(x, own)?, c.dropout, fold(2)))?;
            let x = residual(&x, &self.norm2, c.order, |x| drop_out(&self.multihead_attn.cross(x, memory, cross)?, c.dropout, fold(3)))?;
            let linear = [&self.linear1, &self.linear2];
            residual(&x, &self.norm3, c.order, |x| feed_forward(x, linear, c.activation, c.dropout, fold(4)))
        };
        run().map_err(|e: Error| e.called_at(at))
    }
}
