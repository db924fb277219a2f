//! GPT: embeddings, pre-norm blocks, a head tied to the token embedding. The model that `train_gpt` trains.

use super::Init;
use super::attention::{CausalSelfAttention, drop_out};
use super::block::{Block, NormOrder};
use super::layers::{Activation, Embedding, LayerNorm, Linear, LinearOptions, must_divide};
use super::mlp::Mlp;
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

/// Sizes and options of a [`Gpt`]. The default is nanoGPT's configuration for a CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GptConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads per block; divides the width.
    pub heads: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Whether linear layers and norms have a bias.
    pub bias: bool,
    /// Dropout probability in training.
    pub dropout: f64,
    /// Nonlinearity of the MLPs.
    pub activation: Activation,
}

impl Default for GptConfig {
    fn default() -> Self {
        GptConfig { vocabulary: 65, context: 64, layers: 4, heads: 4, width: 128, bias: false, dropout: 0.0, activation: Activation::Gelu }
    }
}

/// Embeddings, blocks and the final norm.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// Token embedding; also the output head.
    pub wte: Embedding,
    /// Position embedding.
    pub wpe: Embedding,
    /// Blocks.
    pub h: Vec<Block>,
    /// Final norm.
    pub ln_f: LayerNorm,
}
crate::module!(Transformer { wte, wpe, h, ln_f });

/// A decoder-only language model.
///
/// ```
/// use cotangent::{nn::{Gpt, GptConfig}, value_and_grad, Key, Module, Tensor, F32};
/// let config = GptConfig { vocabulary: 11, context: 8, layers: 2, heads: 2, width: 16, ..GptConfig::default() };
/// let gpt = Gpt::new(&config, F32, Key::new(1))?;
/// let tokens = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6, 7, 8], [1, 8])?;
/// let targets = Tensor::from_slice(&[2i64, 3, 4, 5, 6, 7, 8, 9], [1, 8])?;
/// let (loss, grads) = value_and_grad(&gpt, |m| m.loss(&tokens, &targets, None))?;
/// assert!((loss.item()? - 11f64.ln()).abs() < 0.2); // nothing learned yet: uniform over 11 tokens
/// assert_eq!(grads.named().len(), gpt.names().len());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gpt {
    /// The parameters.
    pub transformer: Transformer,
    /// Sizes and options.
    pub config: GptConfig,
}
crate::module!(Gpt { transformer } skip { config });

impl Gpt {
    /// GPT-2's initialisation: normal with σ = 0.02, residual projections divided by √(2·layers), norms one.
    ///
    /// # Errors
    /// Argument error for a size of zero or heads that do not divide the width; out of memory.
    #[track_caller]
    pub fn new(config: &GptConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let at = Location::caller();
        // The line inside that refused would not help.
        Self::build(config, dtype, key).map_err(|e| e.in_op("gpt", at).called_at(at))
    }

    fn build(c: &GptConfig, dtype: DType, key: Key) -> Result<Self> {
        for (what, n) in
            [("vocabulary", c.vocabulary), ("context", c.context), ("layers", c.layers), ("heads", c.heads), ("width", c.width)]
        {
            if n == 0 {
                bail!(argument, "{what} must be at least 1");
            }
        }
        if !(0.0..1.0).contains(&c.dropout) {
            bail!(argument, "dropout must be in [0, 1), found {}", c.dropout);
        }
        must_divide("width", c.width, "heads", c.heads)?;
        // What the layers will hold, in all: small ones are made without asking, and that many would end the process.
        let weights = c.width.checked_mul(c.width).and_then(|n| n.checked_mul(12)?.checked_mul(dtype.size()));
        let all = weights.and_then(|n| n.checked_add(size_of::<Block>() + 4096)?.checked_mul(c.layers));
        let Some(all) = all.filter(|&n| n <= isize::MAX as usize / 16) else {
            bail!(out_of_memory, "{} layers of width {} exceed the address space", c.layers, c.width);
        };
        memory::ensure(all)?;
        let std = 0.02;
        let residual = std / (2.0 * c.layers as f64).sqrt();
        let norm = |width| if c.bias { LayerNorm::new(width, dtype) } else { LayerNorm::no_bias(width, dtype) };
        let linear = |i, o, std, k| Linear::with(i, o, dtype, k, &LinearOptions { bias: c.bias, init: Init::Normal { std } });
        let mut h = memory::room(c.layers)?;
        for l in 0..c.layers {
            let k = key.fold(2).fold(l as u64);
            h.push(Block {
                ln_1: norm(c.width)?,
                attn: CausalSelfAttention {
                    c_attn: linear(c.width, 3 * c.width, std, k.fold(0))?,
                    c_proj: linear(c.width, c.width, residual, k.fold(1))?,
                    heads: c.heads,
                    dropout: c.dropout,
                },
                ln_2: norm(c.width)?,
                mlp: Mlp {
                    c_fc: linear(c.width, 4 * c.width, std, k.fold(2))?,
                    c_proj: linear(4 * c.width, c.width, residual, k.fold(3))?,
                    activation: c.activation,
                    dropout: c.dropout,
                },
                order: NormOrder::Pre,
            });
        }
        Ok(Gpt {
            transformer: Transformer {
                wte: Embedding::normal(c.vocabulary, c.width, std, dtype, key.fold(0))?,
                wpe: Embedding::normal(c.context, c.width, std, dtype, key.fold(1))?,
                h,
                ln_f: norm(c.width)?,
            },
            config: c.clone(),
        })
    }

    /// Token ids `[batch, time]` to logits `[batch, time, vocabulary]`. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error for a rank other than 2 or a sequence longer than the context; index error for an id outside the
    /// vocabulary.
    #[track_caller]
    pub fn forward(&self, tokens: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.transformer.wte.unembed(&self.hidden(tokens, key)?)
    }

    /// Token ids `[batch, time]` to what the head sees: the final norm's result `[batch, time, width]`. With a key, dropout is active.
    ///
    /// # Errors
    /// As [`Gpt::forward`].
    #[track_caller]
    pub fn hidden(&self, tokens: &Tensor, key: Option<Key>) -> Result<Tensor> {
        let refuse = |message: String, at| Err(Error::shape(message).in_op("gpt", at));
        let &[_, time] = tokens.shape().dims() else {
            return refuse(format!("tokens must have shape [batch, time], found {}", tokens.shape()), Location::caller());
        };
        if time > self.config.context {
            return refuse(format!("{time} tokens exceed the context of {}", self.config.context), Location::caller());
        }
        let t = &self.transformer;
        let positions = t.wpe.weight.narrow(0, 0, time)?;
        let mut x = drop_out(&t.wte.forward(tokens)?.add(&positions)?, self.config.dropout, key.map(|k| k.fold(u64::MAX)))?;
        for (i, block) in t.h.iter().enumerate() {
            x = block.forward(&x, key.map(|k| k.fold(i as u64)))?;
            x.tap(|| format!("transformer.h.{i}"));
        }
        t.ln_f.forward(&x)
    }

    /// Mean cross-entropy of the next tokens `targets [batch, time]`. The logits never exist as a whole: see
    /// [`Tensor::linear_cross_entropy`]; [`Gpt::forward`] gives them.
    ///
    /// # Errors
    /// As [`Gpt::forward`], also for a target outside the vocabulary.
    #[track_caller]
    pub fn loss(&self, tokens: &Tensor, targets: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.transformer.wte.loss(&self.hidden(tokens, key)?, targets)
    }
}
