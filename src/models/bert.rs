//! BERT and its small relatives (MiniLM): an encoder of whole texts.

use super::sentence::{self, Pooling, Sentence, SentenceDense};
use super::skeleton::{Intermediate, Projections, Skeleton, fresh};
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::io::{self, BertConfig};
use crate::memory::{room, try_collect, try_collect_ok};
use crate::nn::{Activation, Embedding, LayerNorm, Linear};
use crate::rng::Key;
use crate::tensor::Tensor;
use crate::train::Tokenizer;
use std::panic::Location;

/// Sum of the three tables, and its norm.
#[derive(Clone, Debug)]
pub struct BertEmbeddings {
    /// By token.
    pub word_embeddings: Embedding,
    /// By position.
    pub position_embeddings: Embedding,
    /// By segment: the first or the second text of a pair.
    pub token_type_embeddings: Embedding,
    /// Of the sum.
    pub layer_norm: LayerNorm,
}
crate::module!(BertEmbeddings { word_embeddings, position_embeddings, token_type_embeddings, layer_norm as "LayerNorm" });

/// A projection, and the norm of what it adds to.
#[derive(Clone, Debug)]
pub struct BertOutput {
    /// The projection.
    pub dense: Linear,
    /// Of the sum with the input.
    pub layer_norm: LayerNorm,
}
crate::module!(BertOutput { dense, layer_norm as "LayerNorm" });

impl BertOutput {
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.layer_norm.forward(&self.dense.forward(x)?.add(residual)?)
    }
}

#[derive(Clone, Debug)]
struct Attention {
    of: Projections,
    output: BertOutput,
    heads: usize,
}
crate::module!(Attention { of as "self", output } skip { heads });

/// A block: attention and MLP, each followed by a norm of the sum.
#[derive(Clone, Debug)]
pub struct BertLayer {
    attention: Attention,
    intermediate: Intermediate,
    output: BertOutput,
    activation: Activation,
}
crate::module!(BertLayer { attention, intermediate, output } skip { activation });

impl BertLayer {
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let a = &self.attention;
        let x = a.output.forward(&a.of.attend(x, a.heads, mask)?, x)?;
        let h = self.activation.apply(&self.intermediate.dense.forward(&x)?)?;
        self.output.forward(&h, &x)
    }
}

/// The blocks.
#[derive(Clone, Debug)]
pub struct BertEncoder {
    /// One after the other.
    pub layer: Vec<BertLayer>,
}
crate::module!(BertEncoder { layer });

/// BERT without a head, under Hugging Face's names; with [`Bert::embed`] an embedding of texts, as MiniLM is used.
///
/// ```
/// use cotangent::{F32, Key, Tensor, io::ModelConfig, models::Bert};
/// # let json = r#"{"model_type": "bert", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
/// #     "num_attention_heads": 2, "max_position_embeddings": 32}"#;
/// let ModelConfig::Bert(config) = ModelConfig::parse(json)? else { unreachable!() };
/// let bert = Bert::new(&config, F32, Key::new(1))?;
/// // Two texts of three and two tokens: the mask is 0 where there is filling.
/// let tokens = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 0], [2, 3])?;
/// let mask = Tensor::from_slice(&[1u8, 1, 1, 1, 1, 0], [2, 3])?;
/// assert_eq!(bert.embed(&tokens, Some(&mask))?.shape(), &[2, 8]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bert {
    /// Tokens to vectors.
    pub embeddings: BertEmbeddings,
    /// Blocks.
    pub encoder: BertEncoder,
    /// Matrices after the pooling, of models of sentences that have them; mostly none.
    pub dense: Vec<SentenceDense>,
    config: BertConfig,
    pooling: Pooling,
    /// Why the folder's pooling is not done.
    refused: Option<String>,
}
crate::module!(Bert { embeddings, encoder, dense } skip { config, pooling, refused });

impl Bert {
    /// A fresh model with BERT's initialisation.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible; out of memory.
    #[track_caller]
    pub fn new(config: &BertConfig, dtype: DType, key: Key) -> Result<Self> {
        config.validate()?;
        let mut model = Self::skeleton(config, dtype)?;
        fresh(&mut model, config.layers, key, |_| false)?;
        Ok(model)
    }

    pub(super) fn skeleton(c: &BertConfig, dtype: DType) -> Result<Self> {
        let s = Skeleton(dtype);
        let output = |inputs| {
            Ok::<_, crate::Error>(BertOutput { dense: s.linear(inputs, c.width, true)?, layer_norm: s.layer_norm(c.width, c.norm_eps)? })
        };
        let layer = |_| {
            let of = s.projections(c.width, true)?;
            Ok(BertLayer {
                attention: Attention { of, output: output(c.width)?, heads: c.heads },
                intermediate: Intermediate { dense: s.linear(c.width, c.hidden, true)? },
                output: output(c.hidden)?,
                activation: super::activation(c.activation),
            })
        };
        Ok(Bert {
            embeddings: BertEmbeddings {
                word_embeddings: s.embedding(c.vocabulary, c.width)?,
                position_embeddings: s.embedding(c.context, c.width)?,
                token_type_embeddings: s.embedding(c.segments, c.width)?,
                layer_norm: s.layer_norm(c.width, c.norm_eps)?,
            },
            encoder: BertEncoder { layer: try_collect_ok((0..c.layers).map(layer))? },
            dense: Vec::new(),
            config: c.clone(),
            pooling: Pooling::default(),
            refused: None,
        })
    }

    /// Sizes and options.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Token ids `[batch, time]` to the last layer's values `[batch, time, width]`. `mask [batch, time]` of `u8` is 0 where there is
    /// filling, which no token sees; `segments [batch, time]` are 0 where not given.
    ///
    /// # Errors
    /// Shape error when the operands do not fit or the sequence is longer than the context; dtype error for another mask; index error for an
    /// id or segment out of range.
    #[track_caller]
    pub fn forward(&self, tokens: &Tensor, mask: Option<&Tensor>, segments: Option<&Tensor>) -> Result<Tensor> {
        let at = Location::caller();
        self.run(tokens, mask, segments).map_err(|e| io::at_callers_line(e, "bert", at))
    }

    fn run(&self, tokens: &Tensor, mask: Option<&Tensor>, segments: Option<&Tensor>) -> Result<Tensor> {
        let &[batch, time] = tokens.shape().dims() else { bail!(shape, "tokens must have shape [batch, time], found {}", tokens.shape()) };
        if time > self.config.context {
            bail!(shape, "{time} tokens exceed the context of {}", self.config.context);
        }
        for (what, t) in [("mask", mask), ("segments", segments)] {
            if let Some(t) = t
                && t.shape() != tokens.shape()
            {
                bail!(shape, "{what} must have the tokens' shape {}, found {}", tokens.shape(), t.shape());
            }
        }
        let e = &self.embeddings;
        let kinds = match segments {
            Some(s) => e.token_type_embeddings.forward(s)?,
            None => e.token_type_embeddings.weight.narrow(0, 0, 1)?,
        };
        let positions = e.position_embeddings.weight.narrow(0, 0, time)?;
        let sum = e.word_embeddings.forward(tokens)?.add(&kinds)?.add(&positions)?;
        let mut x = e.layer_norm.forward(&sum)?;
        let mask = mask.map(|m| m.reshape([batch, 1, 1, time])).transpose()?;
        for (i, layer) in self.encoder.layer.iter().enumerate() {
            x = layer.forward(&x, mask.as_ref())?;
            x.tap(|| format!("encoder.layer.{i}"));
        }
        Ok(x)
    }

    /// How [`Bert::embed`] makes one vector of a text: as the folder's `modules.json` says, or the mean over its tokens, of length one.
    pub fn pooling(&self) -> &Pooling {
        &self.pooling
    }

    /// With another pooling.
    #[must_use]
    pub fn with_pooling(self, pooling: Pooling) -> Self {
        Bert { pooling, refused: None, ..self }
    }

    /// As a folder says.
    pub(super) fn with_sentence(self, of: Sentence) -> Self {
        Bert { pooling: of.pooling, dense: of.dense, refused: of.refused, ..self }
    }

    /// One vector for each text, `[batch, width]`, as sentence-transformers computes it by [`Bert::pooling`]. Sums are in `f32` at least; a
    /// text without tokens is zero.
    ///
    /// # Errors
    /// As [`Bert::forward`]; argument error when the folder asks for a pooling that is not known here ([`Bert::with_pooling`] sets
    /// another).
    #[track_caller]
    pub fn embed(&self, tokens: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let at = Location::caller();
        self.embed_masked(tokens, mask, mask).map_err(|e| io::at_callers_line(e, "bert", at))
    }

    /// `counts` is the mask of those tokens that the pooling sees.
    fn embed_masked(&self, tokens: &Tensor, mask: Option<&Tensor>, counts: Option<&Tensor>) -> Result<Tensor> {
        if let Some(why) = &self.refused {
            bail!(argument, "the pooling that the model's files ask for is not done: {why}; `with_pooling` sets another");
        }
        sentence::pool(&self.run(tokens, mask, None)?, counts, &self.pooling, &self.dense)
    }

    /// [`Bert::embed`] of texts: each after [`Pooling::prompt`], cut to [`Pooling::max_tokens`] and the model's context before the tokens
    /// that the tokenizer sets at its ends, and filled up to the longest.
    ///
    /// # Errors
    /// As [`Bert::embed`], and what the tokenizer returns; argument error for no text.
    #[track_caller]
    pub fn embed_texts<S: AsRef<str>>(&self, tokenizer: &dyn Tokenizer, texts: &[S]) -> Result<Tensor> {
        let at = Location::caller();
        let all = try_collect(texts.iter().map(AsRef::as_ref)).and_then(|texts| self.embed_all(tokenizer, &texts));
        all.map_err(|e| io::at_callers_line(e, "bert", at))
    }

    fn embed_all(&self, tokenizer: &dyn Tokenizer, texts: &[&str]) -> Result<Tensor> {
        let p = &self.pooling;
        let most = p.max_tokens.unwrap_or(usize::MAX).min(self.config.context);
        let ids = |text: &str| -> Result<Vec<u32>> {
            let text = format!("{}{text}", p.prompt);
            let text = if p.lowercase { text.to_lowercase() } else { text };
            let mut all = tokenizer.encode_prompt(&text)?;
            if all.len() > most {
                // The tokens at the ends stay.
                let plain = tokenizer.encode(&text)?;
                let begins = all.windows(plain.len().max(1)).position(|w| w == plain).unwrap_or(0);
                let over = (all.len() - most).min(plain.len());
                all.drain(begins + plain.len() - over..begins + plain.len());
            }
            Ok(all)
        };
        let rows = try_collect_ok(texts.iter().map(|t| ids(t)))?;
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        if longest == 0 {
            bail!(argument, "there is no text with a token");
        }
        // Tokens of the prompt with what the tokenizer sets before it.
        let prompt = if p.include_prompt || p.prompt.is_empty() {
            0
        } else {
            let (all, plain) = (tokenizer.encode_prompt(&p.prompt)?, tokenizer.encode(&p.prompt)?);
            all.windows(plain.len().max(1)).position(|w| w == plain).unwrap_or(0) + plain.len()
        };
        let shape = [rows.len(), longest];
        let places = |of: &dyn Fn(&[u32], usize) -> i64| -> Result<Vec<i64>> {
            let mut all = room(rows.len() * longest)?;
            all.extend(rows.iter().flat_map(|row| (0..longest).map(move |t| of(row, t))));
            Ok(all)
        };
        let device = self.embeddings.word_embeddings.weight.device();
        let mask = |from: usize| {
            let seen = try_collect(places(&|row, t| i64::from(t >= from && t < row.len()))?.into_iter().map(|m| m as u8))?;
            Tensor::from_vec(seen, shape)?.to_device(device)
        };
        let tokens = Tensor::from_vec(places(&|row, t| row.get(t).map_or(0, |&id| i64::from(id)))?, shape)?.to_device(device)?;
        self.embed_masked(&tokens, Some(&mask(0)?), Some(&mask(prompt)?))
    }
}
