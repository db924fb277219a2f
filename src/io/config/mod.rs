//! Hyper-parameters of models, from Hugging Face's `config.json` and `generation_config.json`.
//!
//! Both generations are read: `rope_theta` and `rope_scaling` at the top (nearly every file on the Hub), and `rope_parameters`
//! (transformers 5). What would change a model's numbers and is not known here is refused, never ignored.

mod decoder;
mod fields;
mod foreign;
mod generation;
mod rope;
mod vision;

pub use decoder::{DecoderConfig, DecoderFamily};
pub use generation::GenerationConfig;
pub(crate) use rope::attention_factor;
pub use rope::{RopeConfig, RopeScaling};
pub use vision::{ImageConfig, ImageNetwork, VitConfig};

use crate::error::{Error, Result, bail};
use fields::{Fields, divides, positive, within};
use std::panic::Location;
use std::path::Path;

// Beyond any model, below what overflows when multiplied.
pub(super) const MOST_TOKENS: usize = 1 << 28;
pub(super) const MOST_WIDTH: usize = 1 << 24;
pub(super) const MOST_LAYERS: usize = 1 << 14;
pub(super) const MOST_POSITIONS: usize = 1 << 27;
/// Bytes of a configuration file, at most.
const LONGEST_FILE: u64 = 1 << 24;

/// The hyper-parameters of a model of any family that is known here.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ModelConfig {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Llama, Mistral, Qwen2, Qwen3.
    Decoder(DecoderConfig),
    /// BERT.
    Bert(BertConfig),
    /// A network for images: ResNet, a vision transformer.
    Image(ImageConfig),
}

impl ModelConfig {
    /// Reads `config.json`, or the one in a folder.
    ///
    /// ```
    /// # let folder = std::env::temp_dir().join(format!("cotangent-doc-config-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder)?;
    /// # let text = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    /// #     "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}"#;
    /// # std::fs::write(folder.join("config.json"), text)?;
    /// use cotangent::io::ModelConfig;
    /// let ModelConfig::Decoder(llama) = ModelConfig::open(&folder)? else { panic!("another model") };
    /// assert_eq!((llama.layers, llama.head_dim, llama.rope.theta), (32, 128, 10_000.0));
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// I/O error when it cannot be read; otherwise as [`ModelConfig::parse`].
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        open(path.as_ref(), "config.json", Self::of).map_err(|e| e.in_op("open", at))
    }

    /// Takes the text of a `config.json`.
    ///
    /// # Errors
    /// Argument error when the model is of a family that is not known here; corrupt-file error that names field and value when
    /// the text is not JSON, a field is missing or of the wrong type, sizes are zero or do not fit each other, or the file asks
    /// for something that is not done here (a `rope_type`, a partial rotation, a relative position embedding).
    #[track_caller]
    pub fn parse(json: &str) -> Result<Self> {
        let at = Location::caller();
        parse(json.as_bytes(), "config.json", Self::of).map_err(|e| e.in_op("parse", at))
    }

    fn of(config: Fields<'_>) -> Result<Self, Refusal> {
        // Early files have no `model_type`.
        let architecture = config.list("architectures")?.and_then(|a| a.first()?.as_str());
        let family = match (config.text("model_type")?, architecture) {
            (Some(t), _) => t,
            // timm's folders name an architecture alone.
            (None, None) if config.has("architecture") => {
                let name = config.text("architecture")?.unwrap_or_default();
                return ImageConfig::timm(config, name).map(ModelConfig::Image);
            }
            (None, Some(a)) if a.starts_with("GPT2") => "gpt2",
            (None, Some(a)) if a.starts_with("Llama") || a.starts_with("LLaMA") => "llama",
            (None, Some(a)) if a.starts_with("Bert") => "bert",
            (None, other) => {
                let other = other.unwrap_or("nothing");
                return Err(Refusal::Unknown(format!(
                    "`model_type` is missing, and `architectures` names {other}: add `model_type`, one of gpt2, llama, mistral, qwen2, qwen3, bert, resnet and vit"
                )));
            }
        };
        foreign::refuse(config)?;
        let decoder = |family| Ok(ModelConfig::Decoder(DecoderConfig::parse(family, config)?));
        match family {
            "gpt2" => Ok(ModelConfig::Gpt2(Gpt2Config::parse(config)?)),
            "llama" => decoder(DecoderFamily::Llama),
            "mistral" => decoder(DecoderFamily::Mistral),
            "qwen2" => decoder(DecoderFamily::Qwen2),
            "qwen3" => decoder(DecoderFamily::Qwen3),
            "bert" => Ok(ModelConfig::Bert(BertConfig::parse(config)?)),
            "resnet" => ImageConfig::resnet(config).map(ModelConfig::Image),
            "vit" => ImageConfig::vit(config).map(ModelConfig::Image),
            other => Err(Refusal::Unknown(format!(
                "`model_type` is `{other}`; known are gpt2, llama, mistral, qwen2, qwen3, bert, resnet and vit"
            ))),
        }
    }
}

/// Why a configuration is not taken.
enum Refusal {
    /// Something in it is wrong.
    Wrong(String),
    /// It may be right, but of a model that is not known here.
    Unknown(String),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Refusal::Wrong(why)
    }
}

/// Reads the file `name` in the folder `path`, or the file `path`.
fn open<T>(path: &Path, name: &str, of: impl FnOnce(Fields<'_>) -> Result<T, Refusal>) -> Result<T> {
    let inside = path.join(name);
    let path = if path.is_dir() { &inside } else { path };
    parse(&super::read(path, LONGEST_FILE)?, &path.display().to_string(), of)
}

fn parse<T>(bytes: &[u8], shown: &str, of: impl FnOnce(Fields<'_>) -> Result<T, Refusal>) -> Result<T> {
    if bytes.len() as u64 > LONGEST_FILE {
        bail!(corrupt_file, "{shown} has more than {LONGEST_FILE} bytes");
    }
    let value = super::json(bytes, shown)?;
    // What is taken out of it, lists of tokens and texts, is copied: no larger than it.
    crate::memory::ensure(super::most_of_json(bytes))?;
    Fields::of(&value, "").map_err(Refusal::Wrong).and_then(of).map_err(|why| match why {
        Refusal::Wrong(why) => Error::corrupt_file(format!("{shown}: {why}")),
        Refusal::Unknown(why) => Error::argument(format!("{shown}: {why}")),
    })
}

/// Activation functions that configurations name; [`nn::Activation`](crate::nn::Activation) is the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigActivation {
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent: `gelu_new`.
    GeluTanh,
    /// Rectifier.
    Relu,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl ConfigActivation {
    pub(super) fn named(field: &str, name: &str) -> Result<Self, String> {
        match name {
            "gelu" => Ok(ConfigActivation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(ConfigActivation::GeluTanh),
            "relu" => Ok(ConfigActivation::Relu),
            "silu" | "swish" => Ok(ConfigActivation::Silu),
            "tanh" => Ok(ConfigActivation::Tanh),
            other => Err(format!("`{field}` is `{other}`; known are gelu, gelu_new, relu, silu and tanh")),
        }
    }
}

/// Ids of special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Any of them ends a text.
    pub eos: Vec<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
}

impl Special {
    fn parse(config: Fields<'_>) -> Result<Self, String> {
        Ok(Special { bos: config.token("bos_token_id")?, eos: config.tokens("eos_token_id")?, pad: config.token("pad_token_id")? })
    }

    pub(super) fn check(&self, vocabulary: usize) -> Result<(), String> {
        let named = [("bos_token_id", self.bos), ("pad_token_id", self.pad)].into_iter().filter_map(|(n, id)| Some((n, id?)));
        let mut all = named.chain(self.eos.iter().map(|&id| ("eos_token_id", id)));
        match all.find(|(_, id)| *id as usize >= vocabulary) {
            Some((name, id)) => Err(format!("`{name}` is {id}, but `vocab_size` is {vocabulary}")),
            None => Ok(()),
        }
    }
}

/// What configurations that are made by hand are checked by.
macro_rules! validate {
    ($($config:ident)*) => {$(
        impl $config {
            /// Checks that sizes are possible and fit each other.
            ///
            /// # Errors
            /// Argument error that names the field (as config.json calls it) and its value.
            #[track_caller]
            pub fn validate(&self) -> Result<()> {
                self.check().map_err(Error::argument)
            }
        }
    )*};
}

validate! { DecoderConfig Gpt2Config BertConfig }

/// Hyper-parameters of GPT-2.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Tokens.
    pub vocabulary: usize,
    /// Learned positions: the longest sequence.
    pub context: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the MLP.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Activation of the MLP.
    pub activation: ConfigActivation,
    /// Added to the variance in layer norms.
    pub norm_eps: f64,
    /// Whether the token table is the output matrix.
    pub tied: bool,
    /// Whether scores are divided by the root of the head's size.
    pub scaled: bool,
    /// Whether scores are also divided by the number of the layer, from 1.
    pub scaled_by_layer: bool,
    /// Special tokens.
    pub special: Special,
}

impl Gpt2Config {
    fn parse(config: Fields<'_>) -> Result<Self, String> {
        let width = config.size("n_embd")?;
        let context = match config.optional_size("n_positions")? {
            Some(n) => n,
            None => config.size("n_ctx").map_err(|_| "`n_positions` is missing".to_owned())?,
        };
        let out = Gpt2Config {
            vocabulary: config.size("vocab_size")?,
            context,
            width,
            hidden: config.optional_size("n_inner")?.unwrap_or(width.saturating_mul(4)),
            layers: config.size("n_layer")?,
            heads: config.size("n_head")?,
            activation: ConfigActivation::named("activation_function", config.text("activation_function")?.unwrap_or("gelu_new"))?,
            norm_eps: config.optional_float("layer_norm_epsilon")?.unwrap_or(1e-5),
            tied: config.flag("tie_word_embeddings", true)?,
            scaled: config.flag("scale_attn_weights", true)?,
            scaled_by_layer: config.flag("scale_attn_by_inverse_layer_idx", false)?,
            special: Special::parse(config)?,
        };
        out.check().map(|()| out)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        within("vocab_size", self.vocabulary, MOST_TOKENS)?;
        within("n_positions", self.context, MOST_POSITIONS)?;
        within("n_embd", self.width, MOST_WIDTH)?;
        within("n_inner", self.hidden, MOST_WIDTH)?;
        within("n_layer", self.layers, MOST_LAYERS)?;
        divides(("n_head", self.heads), ("n_embd", self.width))?;
        positive("layer_norm_epsilon", self.norm_eps)?;
        self.special.check(self.vocabulary)
    }
}

/// Hyper-parameters of BERT.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Tokens.
    pub vocabulary: usize,
    /// Learned positions: the longest sequence.
    pub context: usize,
    /// Kinds of segments.
    pub segments: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the MLP.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Activation of the MLP.
    pub activation: ConfigActivation,
    /// Added to the variance in layer norms.
    pub norm_eps: f64,
    /// Special tokens.
    pub special: Special,
}

impl BertConfig {
    fn parse(config: Fields<'_>) -> Result<Self, String> {
        if let Some(kind) = config.text("position_embedding_type")?.filter(|k| *k != "absolute") {
            return Err(format!("`position_embedding_type` is `{kind}`; only absolute is known here"));
        }
        if config.flag("is_decoder", false)? {
            return Err("`is_decoder` is true; only encoders are known here".to_owned());
        }
        let out = BertConfig {
            vocabulary: config.size("vocab_size")?,
            context: config.size("max_position_embeddings")?,
            segments: config.optional_size("type_vocab_size")?.unwrap_or(2),
            width: config.size("hidden_size")?,
            hidden: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?,
            heads: config.size("num_attention_heads")?,
            activation: ConfigActivation::named("hidden_act", config.text("hidden_act")?.unwrap_or("gelu"))?,
            norm_eps: config.optional_float("layer_norm_eps")?.unwrap_or(1e-12),
            special: Special::parse(config)?,
        };
        out.check().map(|()| out)
    }

    fn check(&self) -> Result<(), String> {
        within("vocab_size", self.vocabulary, MOST_TOKENS)?;
        within("max_position_embeddings", self.context, MOST_POSITIONS)?;
        within("type_vocab_size", self.segments, MOST_TOKENS)?;
        within("hidden_size", self.width, MOST_WIDTH)?;
        within("intermediate_size", self.hidden, MOST_WIDTH)?;
        within("num_hidden_layers", self.layers, MOST_LAYERS)?;
        divides(("num_attention_heads", self.heads), ("hidden_size", self.width))?;
        positive("layer_norm_eps", self.norm_eps)?;
        self.special.check(self.vocabulary)
    }
}
