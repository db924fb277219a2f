//! Llama and its relatives: Llama 1 to 3, Mistral, Qwen2, Qwen2.5, Qwen3.

use super::input::{Input, Place, asked, logits};
use super::skeleton::{Skeleton, fresh};
use crate::dtype::{DType, U8};
use crate::error::{Result, bail};
use crate::io::{self, DecoderConfig, RopeScaling};
use crate::memory::try_collect_ok;
use crate::nn::{Attend, AttentionConfig, DecoderLayer, Embedding, GatedMlp, Linear, MultiHeadAttention, NormOrder, RmsNorm};
use crate::ops::{Blocks, RopeOptions};
use crate::rng::Key;
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::panic::Location;

/// What is below the output matrix of a [`Decoder`].
#[derive(Clone, Debug)]
pub struct DecoderStack {
    /// Token table; also the output matrix where the model is tied.
    pub embed_tokens: Embedding,
    /// Blocks.
    pub layers: Vec<DecoderLayer>,
    /// Final norm.
    pub norm: RmsNorm,
}
crate::module!(DecoderStack { embed_tokens, layers, norm });

/// A model of Llama's family under Hugging Face's names: RMS norms, rotary positions, shared key heads, gated MLPs; by its configuration
/// with biases (Qwen2), norms on queries and keys (Qwen3), sliding windows (Mistral) and stretched rotary frequencies (Llama 3).
///
/// ```
/// use cotangent::{F32, Key, Tensor, io::ModelConfig, models::{Cache, Decoder, Input}};
/// # let json = r#"{"model_type": "qwen2", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
/// #     "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "rope_theta": 1e6, "tie_word_embeddings": true}"#;
/// let ModelConfig::Decoder(config) = ModelConfig::parse(json)? else { unreachable!() };
/// let qwen = Decoder::new(&config, F32, Key::new(1))?;
/// let tokens = Tensor::from_slice(&[1i64, 2, 3, 4], [1, 4])?;
/// let all = qwen.forward(&tokens)?;
/// // The same in two parts, with the keys and values of the past kept:
/// let mut cache = Cache::new(config.layers, 0)?;
/// for (from, n) in [(0, 3), (3, 1)] {
///     let y = qwen.forward_with(Input { cache: Some(&mut cache), ..Input::new(&tokens.narrow(1, from, n)?) })?;
///     assert!(y.sub(&all.narrow(1, from, n)?)?.abs()?.max(..)?.item()? < 1e-5);
/// }
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    /// All but the output matrix.
    pub model: DecoderStack,
    /// The output matrix, where the token table is not it.
    pub lm_head: Option<Linear>,
    config: DecoderConfig,
}
crate::module!(Decoder { model, lm_head } skip { config });

impl Decoder {
    /// A fresh model with Hugging Face's initialisation.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible; out of memory.
    #[track_caller]
    pub fn new(config: &DecoderConfig, dtype: DType, key: Key) -> Result<Self> {
        config.validate()?;
        let mut model = Self::skeleton(config, dtype)?;
        fresh(&mut model, config.layers, key, |_| false)?;
        Ok(model)
    }

    pub(super) fn skeleton(c: &DecoderConfig, dtype: DType) -> Result<Self> {
        let s = Skeleton(dtype);
        let activation = super::activation(c.activation);
        let attention = AttentionConfig {
            width: c.width,
            kv_width: None,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head: c.head_dim,
            qkv_bias: c.qkv_bias,
            output_bias: c.output_bias,
            qk_norm: c.qk_norm.then_some(c.norm_eps),
            rope: Some(RopeOptions { base: c.rope.theta, ..RopeOptions::default() }),
            causal: true,
            window: None,
            softcap: None,
            dropout: 0.0,
        };
        let head_norm = || attention.qk_norm.map(|eps| s.rms_norm(c.head_dim, eps)).transpose();
        let layer = |i: usize| {
            // A sliding window of n keys is a query's own and those before it.
            let window = c.windows[i].map(|keys| (keys.saturating_sub(1), 0));
            Ok(DecoderLayer {
                self_attn: MultiHeadAttention {
                    q_proj: s.linear(c.width, c.heads * c.head_dim, c.qkv_bias)?,
                    k_proj: s.linear(c.width, c.kv_heads * c.head_dim, c.qkv_bias)?,
                    v_proj: s.linear(c.width, c.kv_heads * c.head_dim, c.qkv_bias)?,
                    o_proj: s.linear(c.heads * c.head_dim, c.width, c.output_bias)?,
                    q_norm: head_norm()?,
                    k_norm: head_norm()?,
                    config: AttentionConfig { window, ..attention.clone() },
                },
                mlp: GatedMlp {
                    gate_proj: s.linear(c.width, c.hidden, c.mlp_bias)?,
                    up_proj: s.linear(c.width, c.hidden, c.mlp_bias)?,
                    down_proj: s.linear(c.hidden, c.width, c.mlp_bias)?,
                    activation,
                },
                input_layernorm: s.rms_norm(c.width, c.norm_eps)?,
                post_attention_layernorm: s.rms_norm(c.width, c.norm_eps)?,
                order: NormOrder::Pre,
            })
        };
        Ok(Decoder {
            model: DecoderStack {
                embed_tokens: s.embedding(c.vocabulary, c.width)?,
                layers: try_collect_ok((0..c.layers).map(layer))?,
                norm: s.rms_norm(c.width, c.norm_eps)?,
            },
            lm_head: s.head(c.tied, c.width, c.vocabulary)?,
            config: c.clone(),
        })
    }

    /// Sizes and options.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Token ids `[batch, time]` to logits `[batch, time, vocabulary]`.
    ///
    /// # Errors
    /// Shape error for a rank other than 2; index error for an id outside the vocabulary.
    #[track_caller]
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward_with(Input::new(tokens))
    }

    /// [`Decoder::forward`] with padding or a cache.
    ///
    /// With dynamic scaling frequencies follow the length so far, and keys in a cache keep those they were turned by (as in Hugging Face):
    /// there, and only beyond the old context, a cache changes the logits.
    ///
    /// # Errors
    /// As there; argument error when the cache is of another number of layers.
    #[track_caller]
    pub fn forward_with(&self, mut input: Input<'_>) -> Result<Tensor> {
        let at = Location::caller();
        self.run(&mut input).map_err(|e| io::at_callers_line(e, "decoder", at))
    }

    /// Rows of the token table, which may be stored in blocks.
    fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let table = &self.model.embed_tokens.weight;
        if table.dtype() != U8 {
            return self.model.embed_tokens.forward(tokens);
        }
        let Some(kind) = Blocks::of_row(self.config.width, table.size(1)?) else {
            bail!(shape, "a token table of {} bytes a row does not hold {} elements", table.size(1)?, self.config.width);
        };
        let rows = table.index_select(0, &tokens.reshape([tokens.numel()])?)?;
        let shape: Shape = tokens.shape().iter().copied().chain([self.config.width]).collect();
        rows.dequantize(kind, self.model.norm.weight.dtype())?.reshape(shape)
    }

    fn run(&self, input: &mut Input<'_>) -> Result<Tensor> {
        let (m, c) = (&self.model, &self.config);
        let place = Place::of(input, m.layers.len())?;
        let device = m.embed_tokens.weight.device();
        let mut x = self.embed(input.tokens)?;
        x.tap(|| "embed");
        let rotation = match c.rope.scaling {
            RopeScaling::None => None,
            _ => Some(place.rotation(x.dtype(), |length| c.rope.frequencies(c.head_dim, length))?),
        };
        let positions = if rotation.is_none() { place.position_ids(device)? } else { None };
        // In memory of a fixed size a mask says what a window hides: one for each that layers have.
        let mut masks = BTreeMap::new();
        for (i, layer) in m.layers.iter().enumerate() {
            let window = c.windows[i].filter(|_| place.fixed());
            if let std::collections::btree_map::Entry::Vacant(free) = masks.entry(window) {
                free.insert(place.mask(window, device)?);
            }
            let with = Attend {
                mask: masks.get(&window).and_then(Option::as_ref),
                key_padding: None,
                positions: positions.as_ref(),
                rotation: rotation.as_ref(),
                cache: input.cache.as_mut().map(|c| &mut c.layers[i]),
                key: None,
            };
            x = layer.forward_with(&x, with)?;
            x.tap(|| format!("model.layers.{i}"));
        }
        let x = m.norm.forward(&asked(x, input.last)?)?;
        logits(self.lm_head.as_ref(), &m.embed_tokens, &x)
    }
}
