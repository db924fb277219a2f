//! GPT-2, as Hugging Face stores it.

use super::input::{Input, Place, asked, logits};
use super::skeleton::{Skeleton, fresh};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::io::{self, Gpt2Config};
use crate::memory::try_collect_ok;
use crate::module::Param;
use crate::nn::{self, Activation, Attend, Embedding, KvCache, LayerNorm, Linear};
use crate::ops::SdpaOptions;
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

/// `y = x · weight + bias`, with `weight` of shape `[in, out]`: GPT-2's files keep their matrices like that.
#[derive(Clone, Debug)]
pub struct Conv1d {
    /// `[in, out]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Param,
}
crate::module!(Conv1d { weight, bias });

impl Conv1d {
    fn skeleton(s: Skeleton, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Conv1d { weight: s.param([inputs, outputs])?, bias: s.param([outputs])? })
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// Shape error when the last axis is not `in`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.linear(&self.weight.t()?, Some(&self.bias))?;
        let Some(change) = self.weight.low_rank() else { return Ok(y) };
        let thin = x.matmul(&change.b.cast(x.dtype())?)?;
        y.add(&thin.matmul(&change.a.cast(x.dtype())?)?.mul_scalar(change.scale)?)
    }
}

/// Attention of a [`Gpt2Block`].
#[derive(Clone, Debug)]
pub struct Gpt2Attention {
    /// `[width, 3·width]`: queries, keys, values, one after the other.
    pub c_attn: Conv1d,
    /// `[width, width]`.
    pub c_proj: Conv1d,
    heads: usize,
    /// Factor of the scores.
    scale: f64,
}
crate::module!(Gpt2Attention { c_attn, c_proj } skip { heads, scale });

impl Gpt2Attention {
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let &[batch, time, width] = x.shape().dims() else { bail!(shape, "expected [batch, time, width], found {}", x.shape()) };
        // [B, T, 3, H, D] -> [3, B, H, T, D]: three views, no copy.
        let qkv = self.c_attn.forward(x)?.reshape([batch, time, 3, self.heads, width / self.heads])?.permute([2, 0, 3, 1, 4])?;
        let (q, k, v) = (qkv.select(0, 0)?, qkv.select(0, 1)?, qkv.select(0, 2)?);
        [(&q, "q"), (&k, "k"), (&v, "v")].iter().for_each(|(t, name)| t.tap_beside(&self.c_attn.weight, name));
        let options = SdpaOptions { scale: Some(self.scale), ..SdpaOptions::causal() };
        self.c_proj.forward(&nn::attend(&q, k, v, options, Attend { mask, cache, ..Attend::default() })?)
    }
}

/// MLP of a [`Gpt2Block`].
#[derive(Clone, Debug)]
pub struct Gpt2Mlp {
    /// `[width, hidden]`.
    pub c_fc: Conv1d,
    /// `[hidden, width]`.
    pub c_proj: Conv1d,
    activation: Activation,
}
crate::module!(Gpt2Mlp { c_fc, c_proj } skip { activation });

/// A block of [`Gpt2`].
#[derive(Clone, Debug)]
pub struct Gpt2Block {
    /// Of attention.
    pub ln_1: LayerNorm,
    /// Mixes positions.
    pub attn: Gpt2Attention,
    /// Of the MLP.
    pub ln_2: LayerNorm,
    /// Mixes channels.
    pub mlp: Gpt2Mlp,
}
crate::module!(Gpt2Block { ln_1, attn, ln_2, mlp });

/// What is below the output matrix of [`Gpt2`].
#[derive(Clone, Debug)]
pub struct Gpt2Transformer {
    /// Token table; also the output matrix where the model is tied.
    pub wte: Embedding,
    /// Position table.
    pub wpe: Embedding,
    /// Blocks.
    pub h: Vec<Gpt2Block>,
    /// Final norm.
    pub ln_f: LayerNorm,
}
crate::module!(Gpt2Transformer { wte, wpe, h, ln_f });

/// GPT-2 under Hugging Face's names and in its layout: files load and save without a conversion. No dropout.
///
/// ```
/// use cotangent::{F32, Key, Tensor, io::ModelConfig, models::Gpt2, value_and_grad};
/// # let json = r#"{"model_type": "gpt2", "vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}"#;
/// let ModelConfig::Gpt2(config) = ModelConfig::parse(json)? else { unreachable!() };
/// let gpt = Gpt2::new(&config, F32, Key::new(1))?;
/// let tokens = Tensor::from_slice(&[1i64, 2, 3], [1, 3])?;
/// let (_, grads) = value_and_grad(&gpt, |m| m.forward(&tokens)?.sum(..))?;
/// assert_eq!(grads.transformer.h[0].attn.c_attn.weight.shape(), &[8, 24]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gpt2 {
    /// All but the output matrix.
    pub transformer: Gpt2Transformer,
    /// The output matrix, where the token table is not it.
    pub lm_head: Option<Linear>,
    config: Gpt2Config,
}
crate::module!(Gpt2 { transformer, lm_head } skip { config });

impl Gpt2 {
    /// A fresh model with GPT-2's initialisation.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible; out of memory.
    #[track_caller]
    pub fn new(config: &Gpt2Config, dtype: DType, key: Key) -> Result<Self> {
        config.validate()?;
        let mut model = Self::skeleton(config, dtype)?;
        fresh(&mut model, config.layers, key, |name| name.ends_with("c_proj.weight"))?;
        Ok(model)
    }

    pub(super) fn skeleton(c: &Gpt2Config, dtype: DType) -> Result<Self> {
        let s = Skeleton(dtype);
        let activation = super::activation(c.activation);
        let head = c.width / c.heads;
        let block = |layer: usize| {
            let mut scale = if c.scaled { 1.0 / (head as f64).sqrt() } else { 1.0 };
            if c.scaled_by_layer {
                scale /= (layer + 1) as f64;
            }
            Ok(Gpt2Block {
                ln_1: s.layer_norm(c.width, c.norm_eps)?,
                attn: Gpt2Attention {
                    c_attn: Conv1d::skeleton(s, c.width, 3 * c.width)?,
                    c_proj: Conv1d::skeleton(s, c.width, c.width)?,
                    heads: c.heads,
                    scale,
                },
                ln_2: s.layer_norm(c.width, c.norm_eps)?,
                mlp: Gpt2Mlp { c_fc: Conv1d::skeleton(s, c.width, c.hidden)?, c_proj: Conv1d::skeleton(s, c.hidden, c.width)?, activation },
            })
        };
        Ok(Gpt2 {
            transformer: Gpt2Transformer {
                wte: s.embedding(c.vocabulary, c.width)?,
                wpe: s.embedding(c.context, c.width)?,
                h: try_collect_ok((0..c.layers).map(block))?,
                ln_f: s.layer_norm(c.width, c.norm_eps)?,
            },
            lm_head: s.head(c.tied, c.width, c.vocabulary)?,
            config: c.clone(),
        })
    }

    /// Sizes and options.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// Token ids `[batch, time]` to logits `[batch, time, vocabulary]`.
    ///
    /// # Errors
    /// Shape error for a rank other than 2 or a sequence longer than the context; index error for an id outside the vocabulary.
    #[track_caller]
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward_with(Input::new(tokens))
    }

    /// [`Gpt2::forward`] with padding or a cache.
    ///
    /// # Errors
    /// As there; argument error when the cache is of another number of layers.
    #[track_caller]
    pub fn forward_with(&self, mut input: Input<'_>) -> Result<Tensor> {
        let at = Location::caller();
        self.run(&mut input).map_err(|e| io::at_callers_line(e, "gpt2", at))
    }

    fn run(&self, input: &mut Input<'_>) -> Result<Tensor> {
        let (t, place) = (&self.transformer, Place::of(input, self.transformer.h.len())?);
        if place.longest() > self.config.context {
            return Err(Error::shape(format!("{} tokens exceed the context of {}", place.longest(), self.config.context)));
        }
        let device = t.wpe.weight.device();
        let positions = match place.position_ids(device)? {
            Some(ids) => t.wpe.forward(&ids)?,
            None => t.wpe.weight.narrow(0, place.start, place.time)?,
        };
        let mask = place.mask(None, device)?;
        let mut x = t.wte.forward(input.tokens)?.add(&positions)?;
        x.tap(|| "embed");
        for (i, block) in t.h.iter().enumerate() {
            let cache = input.cache.as_mut().map(|c| &mut c.layers[i]);
            x = x.add(&block.attn.forward(&block.ln_1.forward(&x)?, mask.as_ref(), cache)?)?;
            let h = block.mlp.activation.apply(&block.mlp.c_fc.forward(&block.ln_2.forward(&x)?)?)?;
            x = x.add(&block.mlp.c_proj.forward(&h)?)?;
            x.tap(|| format!("transformer.h.{i}"));
        }
        let x = t.ln_f.forward(&asked(x, input.last)?)?;
        logits(self.lm_head.as_ref(), &t.wte, &x)
    }
}
