//! Hyper-parameters from metadata, checked against the table of tensors.

use super::names::Architecture;
use super::{GgufFile, GgufType, GgufValue};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::io::config::{
    ConfigActivation, DecoderConfig, DecoderFamily, Gpt2Config, ModelConfig, RopeConfig, RopeScaling, Special, attention_factor,
};
use std::panic::Location;

/// Factors of the rotary frequencies, as converters write them for Llama 3.1 and later.
const ROPE_FREQS: &str = "rope_freqs.weight";

impl GgufFile {
    /// The model's hyper-parameters, validated, and consistent with the tensors of the file: what is left out of the metadata
    /// (biases, tied output, size of the vocabulary) is read off those.
    ///
    /// # Errors
    /// Argument error for an architecture that is not known here; corrupt-file error that names what is missing, zero, too
    /// large or inconsistent. Nothing is allocated by what the metadata claim.
    #[track_caller]
    pub fn config(&self) -> Result<ModelConfig> {
        let at = Location::caller();
        self.read_config().map_err(|e| e.in_op("config", at))
    }

    fn read_config(&self) -> Result<ModelConfig> {
        let architecture = self.architecture()?;
        let wrong = |why: String| Error::corrupt_file(format!("{}: {why}", self.path.display()));
        let layers = self.size("block_count")?;
        if architecture == Architecture::Gpt2 {
            let width = self.size("embedding_length")?;
            let config = Gpt2Config {
                vocabulary: self.vocabulary(width)?,
                context: self.size("context_length")?,
                width,
                hidden: self.size("feed_forward_length")?,
                layers,
                heads: self.size("attention.head_count")?,
                activation: ConfigActivation::GeluTanh,
                norm_eps: self.float("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
                tied: !self.contains("output.weight"),
                scaled: true,
                scaled_by_layer: false,
                special: self.special()?,
            };
            config.check().map_err(wrong)?;
            self.check_layers(layers)?;
            return Ok(ModelConfig::Gpt2(config));
        }
        let config = self.decoder(architecture, layers)?;
        config.check().map_err(wrong)?;
        Ok(ModelConfig::Decoder(config))
    }

    fn decoder(&self, architecture: Architecture, layers: usize) -> Result<DecoderConfig> {
        let wrong = |why: String| Error::corrupt_file(format!("{}: {why}", self.path.display()));
        if self.optional("expert_count")?.is_some_and(|n| n > 0) {
            bail!(argument, "{}: a mixture of experts is not known here", self.path.display());
        }
        let (width, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = match self.optional("attention.key_length")? {
            Some(n) => n,
            None if heads > 0 && width.is_multiple_of(heads) => width / heads,
            None => return Err(wrong(format!("`attention.head_count` is {heads}, which does not divide `embedding_length`, {width}"))),
        };
        let mut same = [("attention.value_length", head_dim), ("rope.dimension_count", head_dim)].into_iter();
        if let Some((key, n)) = same
            .find_map(|(key, want)| match self.optional(key) {
                Ok(Some(n)) if n != want => Some(Ok((key, n))),
                Err(e) => Some(Err(e)),
                _ => None,
            })
            .transpose()?
        {
            return Err(wrong(format!("`{key}` is {n}, expected the size of a head, {head_dim}")));
        }
        let (family, prefix) = match architecture {
            Architecture::Qwen2 => (DecoderFamily::Qwen2, "qwen2"),
            Architecture::Qwen3 => (DecoderFamily::Qwen3, "qwen3"),
            _ => (DecoderFamily::Llama, "llama"),
        };
        let bias = |part: &str| self.contains(&format!("blk.0.{part}.bias"));
        let mut config = DecoderConfig {
            family,
            vocabulary: self.vocabulary(width)?,
            width,
            hidden: self.size("feed_forward_length")?,
            layers,
            heads,
            kv_heads: self.head_count("attention.head_count_kv")?,
            head_dim,
            context: self.size("context_length")?,
            activation: ConfigActivation::Silu,
            norm_eps: 0.0,
            rope: RopeConfig { theta: self.float("rope.freq_base")?.unwrap_or(10_000.0), scaling: RopeScaling::None },
            tied: !self.contains("output.weight"),
            qkv_bias: bias("attn_q"),
            output_bias: bias("attn_output"),
            mlp_bias: bias("ffn_up"),
            qk_norm: self.contains("blk.0.attn_q_norm.weight"),
            windows: Vec::new(),
            special: self.special()?,
        };
        // First the sizes: the message should name what is wrong, not what is missing beside it.
        config.check_sizes().map_err(wrong)?;
        self.check_layers(layers)?;
        let eps = "attention.layer_norm_rms_epsilon";
        config.norm_eps = self.float(eps)?.ok_or_else(|| wrong(format!("`{prefix}.{eps}` is missing")))?;
        config.windows = vec![self.optional("attention.sliding_window")?.filter(|n| *n > 0); layers];
        config.rope.scaling = self.scaling(config.context, head_dim)?;
        Ok(config)
    }

    fn scaling(&self, context: usize, head_dim: usize) -> Result<RopeScaling> {
        if self.contains(ROPE_FREQS) {
            let kind = self.kind(ROPE_FREQS)?;
            let n = self.shape(ROPE_FREQS)?.numel();
            if kind != GgufType::F32 || n != head_dim / 2 {
                bail!(corrupt_file, "{}: `{ROPE_FREQS}` has {n} values of {kind}, expected {} of F32", self.path.display(), head_dim / 2);
            }
            return Ok(RopeScaling::Divided { factors: self.read(ROPE_FREQS, DType::F32)?.to_vec::<f32>()? });
        }
        let kind = self.get("rope.scaling.type").and_then(GgufValue::as_str).unwrap_or("none");
        let factor = match self.float("rope.scaling.factor")? {
            Some(f) => f,
            // Before there was a type: 1/factor.
            None => self.float("rope.scale_linear")?.unwrap_or(1.0),
        };
        let original_positions = self.optional("rope.scaling.original_context_length")?.unwrap_or(context);
        match kind {
            "none" if factor == 1.0 => Ok(RopeScaling::None),
            "none" | "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor,
                original_positions,
                attention_factor: self.float("rope.scaling.attn_factor")?.unwrap_or(1.0) * attention_factor(factor, None, None),
                beta_fast: self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
            }),
            other => bail!(argument, "{}: `rope.scaling.type` is `{other}`; none, linear and yarn are known here", self.path.display()),
        }
    }

    /// Blocks must be there: a count alone could ask for four thousand million.
    fn check_layers(&self, layers: usize) -> Result<()> {
        let there = self
            .names()
            .filter_map(|n| n.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok())
            .max()
            .map_or(0, |n| n.saturating_add(1));
        if layers != there {
            bail!(corrupt_file, "{}: `block_count` is {layers}, but there are tensors of {there} blocks", self.path.display());
        }
        Ok(())
    }

    fn vocabulary(&self, width: usize) -> Result<usize> {
        const TABLE: &str = "token_embd.weight";
        let path = self.path.display();
        if !self.contains(TABLE) {
            bail!(corrupt_file, "{path} has no tensor `{TABLE}`");
        }
        let shape = self.shape(TABLE)?;
        let [rows, columns] = *shape.dims() else { bail!(corrupt_file, "{path}: `{TABLE}` is {shape}, expected two axes") };
        if columns != width {
            bail!(corrupt_file, "{path}: `{TABLE}` is {shape}, but `embedding_length` is {width}");
        }
        if let Some(n) = self.optional("vocab_size")?.filter(|n| *n != rows) {
            bail!(corrupt_file, "{path}: `vocab_size` is {n}, but `{TABLE}` is {shape}");
        }
        Ok(rows)
    }

    /// The metadata value under the architecture's prefix.
    fn get(&self, key: &str) -> Option<&GgufValue> {
        let architecture = self.header.metadata.get("general.architecture")?.as_str()?;
        self.header.metadata.get(&format!("{architecture}.{key}"))
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => bail!(
                corrupt_file,
                "{}: `{key}` is a value of the type {}, expected a whole number",
                self.path.display(),
                value.type_name()
            ),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| Error::corrupt_file(format!("{}: `{key}` is missing", self.path.display())))
    }

    /// Heads; those of keys and values are as many as those of queries when the file does not say.
    pub(super) fn head_count(&self, key: &str) -> Result<usize> {
        match self.optional(key)? {
            Some(n) => Ok(n),
            None => self.size("attention.head_count"),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) => Ok(Some(shortest(value, x))),
            None => bail!(corrupt_file, "{}: `{key}` is a value of the type {}, expected a number", self.path.display(), value.type_name()),
        }
    }

    fn special(&self) -> Result<Special> {
        let id = |key: &str| {
            let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
            match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => bail!(corrupt_file, "{}: `{key}` is not a token id", self.path.display()),
            }
        };
        Ok(Special {
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
            pad: id("tokenizer.ggml.padding_token_id")?,
        })
    }
}

/// Files have epsilons in single precision: 1e-6 shall be 1e-6 here, not 9.99999997e-7.
fn shortest(value: &GgufValue, x: f64) -> f64 {
    match value {
        GgufValue::F32(single) => single.to_string().parse().unwrap_or(x),
        _ => x,
    }
}
