//! Models that others trained, under Hugging Face's names: GPT-2, the family of Llama, BERT, ResNet, vision transformers. Layer L7, the last.
//!
//! [`load`] opens a folder or a GGUF file and gives a [`LanguageModel`] with its tokenizer; [`load_encoder`] a [`Bert`];
//! [`load_image_model`] an [`ImageModel`]. Each is a
//! [`Module`]: it trains, and saves what it loaded. [`Generator`] continues texts, [`verify`] proves
//! a model equal to Hugging Face's.

mod bert;
mod decoder;
mod generate;
mod gpt2;
mod image;
mod image_processor;
mod input;
mod load;
mod load_options;
mod lora;
mod sentence;
mod skeleton;
mod source;
mod verify;
mod vit;

pub use bert::{Bert, BertEmbeddings, BertEncoder, BertLayer, BertOutput};
pub use decoder::{Decoder, DecoderStack};
pub use generate::{Completion, Finish, GenerateOptions, Generator, Past, Speed, Step, Stream, TextStream};
pub use gpt2::{Conv1d, Gpt2, Gpt2Attention, Gpt2Block, Gpt2Mlp, Gpt2Transformer};
pub use image::{ImageModel, load_image_model};
pub use image_processor::{ImageProcessor, ImageResize};
pub use input::{Cache, Input};
pub use load::{Loaded, load, load_encoder};
pub use load_options::LoadOptions;
pub use lora::{Lora, add_lora, merge_lora};
pub use sentence::{Pooling, PoolingMode, PoolingStage, SentenceDense};
pub use verify::{Check, Verification, verify, verify_model};
pub use vit::{Vit, VitBackbone, VitEmbeddings, VitLayer};

use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::io::{self, ModelConfig, Special};
use crate::module::{Module, Visitor};
use crate::rng::Key;
use crate::tensor::Tensor;

/// A language model of any family that is known here.
///
/// ```
/// use cotangent::{F32, Key, Tensor, io::ModelConfig, models::LanguageModel, value_and_grad};
/// # let json = r#"{"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
/// #     "num_attention_heads": 2, "max_position_embeddings": 32}"#;
/// let model = LanguageModel::new(&ModelConfig::parse(json)?, F32, Key::new(1))?;
/// let (tokens, targets) = (Tensor::from_slice(&[1i64, 2, 3], [1, 3])?, Tensor::from_slice(&[2i64, 3, 4], [1, 3])?);
/// let (loss, grads) = value_and_grad(&model, |m| m.forward(&tokens)?.cross_entropy(&targets))?;
/// assert!((loss.item()? - 11f64.ln()).abs() < 0.1 && grads.named()[0].0 == "model.embed_tokens.weight");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
// One model lives at a time, and its memory is elsewhere.
#[allow(clippy::large_enum_variant)]
pub enum LanguageModel {
    /// GPT-2.
    Gpt2(Gpt2),
    /// Llama, Mistral, Qwen2, Qwen3.
    Decoder(Decoder),
}

impl Module for LanguageModel {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        match self {
            LanguageModel::Gpt2(m) => m.visit(v),
            LanguageModel::Decoder(m) => m.visit(v),
        }
    }
}

impl LanguageModel {
    /// A fresh model.
    ///
    /// # Errors
    /// Argument error when the configuration is impossible, or of an encoder; out of memory.
    #[track_caller]
    pub fn new(config: &ModelConfig, dtype: DType, key: Key) -> Result<Self> {
        match config {
            ModelConfig::Gpt2(c) => Ok(LanguageModel::Gpt2(Gpt2::new(c, dtype, key)?)),
            ModelConfig::Decoder(c) => Ok(LanguageModel::Decoder(Decoder::new(c, dtype, key)?)),
            ModelConfig::Bert(_) => bail!(argument, "BERT is an encoder, no language model: `Bert::new`"),
            ModelConfig::Image(_) => bail!(argument, "a network for images is no language model: `ImageModel::new`"),
        }
    }

    fn skeleton(config: &ModelConfig, dtype: DType) -> Result<Self> {
        match config {
            ModelConfig::Gpt2(c) => Ok(LanguageModel::Gpt2(Gpt2::skeleton(c, dtype)?)),
            ModelConfig::Decoder(c) => Ok(LanguageModel::Decoder(Decoder::skeleton(c, dtype)?)),
            ModelConfig::Bert(_) => bail!(argument, "BERT is an encoder, no language model: `models::load_encoder` opens it"),
            ModelConfig::Image(_) => bail!(argument, "a network for images is no language model: `models::load_image_model` opens it"),
        }
    }

    /// Token ids `[batch, time]` to logits `[batch, time, vocabulary]`.
    ///
    /// # Errors
    /// Shape error for a rank other than 2 or, of GPT-2, a sequence longer than the context; index error for an id outside the vocabulary.
    #[track_caller]
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward_with(Input::new(tokens))
    }

    /// [`LanguageModel::forward`] with padding or a cache.
    ///
    /// # Errors
    /// As there; argument error when the cache is of another number of layers.
    #[track_caller]
    pub fn forward_with(&self, input: Input<'_>) -> Result<Tensor> {
        match self {
            LanguageModel::Gpt2(m) => m.forward_with(input),
            LanguageModel::Decoder(m) => m.forward_with(input),
        }
    }

    /// Sizes and options.
    pub fn config(&self) -> ModelConfig {
        match self {
            LanguageModel::Gpt2(m) => ModelConfig::Gpt2(m.config().clone()),
            LanguageModel::Decoder(m) => ModelConfig::Decoder(m.config().clone()),
        }
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        match self {
            LanguageModel::Gpt2(m) => m.config().layers,
            LanguageModel::Decoder(m) => m.config().layers,
        }
    }

    /// Length of the sequences that the model was made for. Of rotary models it is no limit: [`LanguageModel::limit`].
    pub fn context(&self) -> usize {
        match self {
            LanguageModel::Gpt2(m) => m.config().context,
            LanguageModel::Decoder(m) => m.config().context,
        }
    }

    /// Longest sequence that can be computed, where there is one: positions of GPT-2 are learned, one by one. Rotary positions go on, and
    /// with `dynamic` scaling they only change beyond the context; what a model makes of more than it was trained for is another matter.
    pub fn limit(&self) -> Option<usize> {
        match self {
            LanguageModel::Gpt2(m) => Some(m.config().context),
            LanguageModel::Decoder(_) => None,
        }
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        match self {
            LanguageModel::Gpt2(m) => m.config().vocabulary,
            LanguageModel::Decoder(m) => m.config().vocabulary,
        }
    }

    /// Special tokens, as the configuration has them.
    pub fn special(&self) -> &Special {
        match self {
            LanguageModel::Gpt2(m) => &m.config().special,
            LanguageModel::Decoder(m) => &m.config().special,
        }
    }
}

/// A configuration's activation as layers have it.
fn activation(a: io::ConfigActivation) -> crate::nn::Activation {
    match a {
        io::ConfigActivation::Gelu => crate::nn::Activation::Gelu,
        io::ConfigActivation::GeluTanh => crate::nn::Activation::GeluTanh,
        io::ConfigActivation::Relu => crate::nn::Activation::Relu,
        io::ConfigActivation::Silu => crate::nn::Activation::Silu,
        io::ConfigActivation::Tanh => crate::nn::Activation::Tanh,
    }
}
