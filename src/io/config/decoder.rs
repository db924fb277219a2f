//! Llama and its relatives: RMS norms, rotary positions, shared key and value heads, gated MLP.

use super::fields::{Fields, divides, positive, show, within};
use super::rope::RopeConfig;
use super::{ConfigActivation, MOST_LAYERS, MOST_POSITIONS, MOST_TOKENS, MOST_WIDTH, Special};
use crate::error::Result;

/// Which relative a [`DecoderConfig`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DecoderFamily {
    /// Llama 1 to 3.
    Llama,
    /// Mistral: as Llama, perhaps with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: RMS norms on queries and keys.
    Qwen3,
}

/// Hyper-parameters of Llama, Mistral, Qwen2 and Qwen3.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which of them.
    pub family: DecoderFamily,
    /// Tokens.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the MLP.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head; not always `width / heads`.
    pub head_dim: usize,
    /// Longest sequence.
    pub context: usize,
    /// Activation of the gate.
    pub activation: ConfigActivation,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether the token table is the output matrix.
    pub tied: bool,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Bias after attention.
    pub output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms on the heads of queries and keys.
    pub qk_norm: bool,
    /// For each layer, how many positions a query sees (itself included), where not all.
    pub windows: Vec<Option<usize>>,
    /// Special tokens.
    pub special: Special,
}

impl DecoderConfig {
    pub(super) fn parse(family: DecoderFamily, config: Fields<'_>) -> Result<Self, String> {
        let heads = config.size("num_attention_heads")?;
        let (width, layers) = (config.size("hidden_size")?, config.size("num_hidden_layers")?);
        let context = config.size("max_position_embeddings")?;
        let head_dim = match config.optional_size("head_dim")? {
            Some(n) => n,
            None => {
                divides(("num_attention_heads", heads), ("hidden_size", width))?;
                width / heads
            }
        };
        within("num_hidden_layers", layers, MOST_LAYERS)?;
        let bias = config.flag("attention_bias", false)?;
        let out = DecoderConfig {
            family,
            vocabulary: config.size("vocab_size")?,
            width,
            hidden: config.size("intermediate_size")?,
            layers,
            heads,
            kv_heads: config.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            context,
            activation: config.text("hidden_act")?.map_or(Ok(ConfigActivation::Silu), |t| ConfigActivation::named("hidden_act", t))?,
            norm_eps: config.optional_float("rms_norm_eps")?.unwrap_or(1e-6),
            rope: RopeConfig::parse(config, context)?,
            tied: config.flag("tie_word_embeddings", false)?,
            qkv_bias: family == DecoderFamily::Qwen2 || bias,
            output_bias: family != DecoderFamily::Qwen2 && bias,
            mlp_bias: config.flag("mlp_bias", false)?,
            qk_norm: family == DecoderFamily::Qwen3,
            windows: windows(family, config, layers)?,
            special: Special::parse(config)?,
        };
        out.check().map(|()| out)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
        positive("rms_norm_eps", self.norm_eps)?;
        self.rope.check(self.context)?;
        if self.windows.len() != self.layers {
            return Err(format!("`layer_types` has {} entries for {} layers", self.windows.len(), self.layers));
        }
        self.windows.iter().flatten().try_for_each(|&w| within("sliding_window", w, MOST_POSITIONS))?;
        self.special.check(self.vocabulary)
    }

    pub(crate) fn check_sizes(&self) -> Result<(), String> {
        within("vocab_size", self.vocabulary, MOST_TOKENS)?;
        within("hidden_size", self.width, MOST_WIDTH)?;
        within("intermediate_size", self.hidden, MOST_WIDTH)?;
        within("num_hidden_layers", self.layers, MOST_LAYERS)?;
        within("num_attention_heads", self.heads, MOST_WIDTH)?;
        within("num_key_value_heads", self.kv_heads, MOST_WIDTH)?;
        divides(("num_key_value_heads", self.kv_heads), ("num_attention_heads", self.heads))?;
        within("head_dim", self.head_dim, MOST_WIDTH)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("`head_dim` is {}, expected an even number: rotary positions turn pairs", self.head_dim));
        }
        within("max_position_embeddings", self.context, MOST_POSITIONS)
    }
}

/// `sliding_window` counts where `use_sliding_window` (Qwen) does not deny it, in the layers that `layer_types` names or,
/// in older files of Qwen, from `max_window_layers` on.
fn windows(family: DecoderFamily, config: Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, String> {
    let qwen = matches!(family, DecoderFamily::Qwen2 | DecoderFamily::Qwen3);
    let may = match family {
        DecoderFamily::Llama => false,
        _ => config.flag("use_sliding_window", !qwen)?,
    };
    // Where a file does not have the field, transformers' classes have a number; `null` is none.
    let window =
        if family == DecoderFamily::Llama || config.has("sliding_window") { config.optional_size("sliding_window")? } else { Some(4096) };
    let window = window.filter(|_| may);
    let types = config.list("layer_types")?;
    if let Some(types) = types
        && types.len() != layers
    {
        return Err(format!("`layer_types` has {} entries for {layers} layers", types.len()));
    }
    let from = if qwen { config.optional_size("max_window_layers")?.unwrap_or(28) } else { 0 };
    let of = |layer: usize| match types.map(|t| &t[layer]) {
        None => Ok(window.filter(|_| layer >= from)),
        Some(t) => match (t.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(w)) => Ok(Some(w)),
            (Some("sliding_attention"), None) => {
                Err(format!("`layer_types[{layer}]` is sliding_attention, but there is no `sliding_window`"))
            }
            _ => Err(format!("`layer_types[{layer}]` is {}, expected full_attention or sliding_attention", show(t))),
        },
    };
    (0..layers).map(of).collect()
}
