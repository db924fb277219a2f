//! `generation_config.json`: how a model's authors sample from it.

use super::fields::{Fields, show};
use super::{Refusal, Special, open, parse};
use crate::error::Result;
use serde_json::Value;
use std::panic::Location;
use std::path::Path;

/// Settings of sampling; `None`, empty or 0 where the file does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Special tokens. There may be several that end a text.
    pub special: Special,
    /// Whether to draw tokens; the likeliest is taken otherwise.
    pub sample: bool,
    /// Divides the logits; 0: the likeliest token.
    pub temperature: Option<f64>,
    /// Draw from so many likeliest tokens. 0 and −1 in the file say "all", as vLLM writes it: `None`.
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability; 0: the likeliest alone.
    pub top_p: Option<f64>,
    /// Draw from tokens at least so likely, relative to the likeliest.
    pub min_p: Option<f64>,
    /// Divides the positive logits of tokens that occurred, and multiplies the negative.
    pub repetition_penalty: Option<f64>,
    /// Tokens to write, at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and text together, at most.
    pub max_length: Option<usize>,
    /// Tokens to write, at least.
    pub min_new_tokens: usize,
    /// Tokens of prompt and text together, at least.
    pub min_length: usize,
    /// Texts that end a text.
    pub stop_strings: Vec<String>,
    /// Tokens that are never drawn.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not drawn first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Sequences that are not drawn.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// No sequence of so many tokens occurs twice.
    pub no_repeat_ngram_size: usize,
    /// The second token of a text whose prompt has one.
    pub forced_bos_token_id: Option<u32>,
    /// The last token of a text that has as many as it may have, one of these.
    pub forced_eos_token_id: Vec<u32>,
    /// Fields whose values mean nothing, with these; generating with them is an error that names them. The model itself is not affected.
    pub wrong: Vec<String>,
    /// Fields that would change what is drawn and are passed over here, with their values.
    pub passed_over: Vec<String>,
}

/// Fields that change what transformers draws, beyond what is done here, and the values at which they do nothing.
const PASSED_OVER: [(&str, &[f64]); 22] = [
    ("num_beams", &[1.0]),
    ("num_beam_groups", &[1.0]),
    ("diversity_penalty", &[0.0]),
    ("constraints", &[]),
    ("force_words_ids", &[]),
    ("penalty_alpha", &[0.0]),
    ("dola_layers", &[]),
    ("typical_p", &[1.0]),
    ("top_h", &[]),
    ("epsilon_cutoff", &[0.0, 1.0]),
    ("eta_cutoff", &[0.0, 1.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
    ("sequence_bias", &[]),
    ("guidance_scale", &[1.0]),
    ("watermarking_config", &[]),
    ("remove_invalid_values", &[]),
    ("token_healing", &[]),
    ("num_return_sequences", &[1.0]),
    ("max_time", &[]),
    ("decoder_start_token_id", &[]),
];

impl GenerationConfig {
    /// Reads `generation_config.json`, or the one in a folder.
    ///
    /// # Errors
    /// I/O error when it cannot be read; otherwise as [`GenerationConfig::parse`].
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        open(path.as_ref(), "generation_config.json", Self::of).map_err(|e| e.in_op("open", at))
    }

    /// Takes the text of a `generation_config.json`. A field of the wrong type or out of range is not an error here: it is in
    /// [`GenerationConfig::wrong`].
    ///
    /// ```
    /// use cotangent::io::GenerationConfig;
    /// let c = GenerationConfig::parse(r#"{"do_sample": true, "top_k": -1, "top_p": 1.5, "num_beams": 4}"#)?;
    /// assert_eq!((c.top_k, c.top_p), (None, None));
    /// assert_eq!(c.wrong, ["`top_p` is 1.5, expected 0 to 1"]);
    /// assert_eq!(c.passed_over, ["`num_beams` is 4"]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Corrupt-file error when the text is not a JSON object.
    #[track_caller]
    pub fn parse(json: &str) -> Result<Self> {
        let at = Location::caller();
        parse(json.as_bytes(), "generation_config.json", Self::of).map_err(|e| e.in_op("parse", at))
    }

    // The signature is that of the other configurations.
    #[allow(clippy::unnecessary_wraps)]
    fn of(config: Fields<'_>) -> Result<Self, Refusal> {
        let mut read = Reading { wrong: Vec::new() };
        let mut out = GenerationConfig {
            special: Special {
                bos: read.take(config.token("bos_token_id")),
                eos: read.take(config.tokens("eos_token_id")),
                pad: read.take(config.token("pad_token_id")),
            },
            sample: read.take(config.flag("do_sample", false)),
            temperature: read.number(config, "temperature", "0 or more", |t| t >= 0.0),
            top_k: read.take(top_k(config)),
            top_p: read.number(config, "top_p", "0 to 1", |p| (0.0..=1.0).contains(&p)),
            min_p: read.number(config, "min_p", "0 to 1", |p| (0.0..=1.0).contains(&p)),
            repetition_penalty: read.number(config, "repetition_penalty", "a positive number", |p| p > 0.0),
            max_new_tokens: read.take(config.optional_size("max_new_tokens")),
            max_length: read.take(config.optional_size("max_length")),
            min_new_tokens: read.take(config.optional_size("min_new_tokens")).unwrap_or(0),
            min_length: read.take(config.optional_size("min_length")).unwrap_or(0),
            stop_strings: read.take(texts(config, "stop_strings")),
            suppress_tokens: read.take(config.tokens("suppress_tokens")),
            begin_suppress_tokens: read.take(config.tokens("begin_suppress_tokens")),
            bad_words_ids: read.take(sequences(config, "bad_words_ids")),
            no_repeat_ngram_size: read.take(config.optional_size("no_repeat_ngram_size")).unwrap_or(0),
            forced_bos_token_id: read.take(config.token("forced_bos_token_id")),
            forced_eos_token_id: read.take(config.tokens("forced_eos_token_id")),
            wrong: Vec::new(),
            passed_over: PASSED_OVER.iter().filter_map(|(name, idle)| passed_over(config, name, idle)).collect(),
        };
        out.wrong = read.wrong;
        Ok(out)
    }
}

/// Collects what is wrong with the fields that are read.
struct Reading {
    wrong: Vec<String>,
}

impl Reading {
    fn take<T: Default>(&mut self, field: Result<T, String>) -> T {
        field.unwrap_or_else(|why| {
            self.wrong.push(why);
            T::default()
        })
    }

    fn number(&mut self, config: Fields<'_>, name: &str, expected: &str, fits: impl Fn(f64) -> bool) -> Option<f64> {
        let field = config.optional_float(name).and_then(|x| match x {
            Some(x) if !fits(x) => Err(format!("`{name}` is {x}, expected {expected}")),
            x => Ok(x),
        });
        self.take(field)
    }
}

fn top_k(config: Fields<'_>) -> Result<Option<usize>, String> {
    match config.get("top_k").and_then(Value::as_i64) {
        Some(-1 | 0) => Ok(None),
        _ => config.optional_size("top_k"),
    }
}

/// One text or a list of them.
fn texts(config: Fields<'_>, name: &str) -> Result<Vec<String>, String> {
    match config.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(value) => {
            let all = value.as_array().and_then(|list| list.iter().map(|t| t.as_str().map(str::to_owned)).collect());
            all.ok_or_else(|| format!("`{name}` is {}, expected a text or a list of them", show(value)))
        }
    }
}

/// A list of lists of token ids, none of them empty.
fn sequences(config: Fields<'_>, name: &str) -> Result<Vec<Vec<u32>>, String> {
    let Some(value) = config.get(name) else { return Ok(Vec::new()) };
    let id = |v: &Value| v.as_u64().and_then(|x| u32::try_from(x).ok());
    let sequence = |v: &Value| v.as_array().filter(|s| !s.is_empty()).and_then(|s| s.iter().map(id).collect());
    let all = value.as_array().and_then(|list| list.iter().map(sequence).collect());
    all.ok_or_else(|| format!("`{name}` is {}, expected lists of token ids", show(value)))
}

fn passed_over(config: Fields<'_>, name: &str, idle: &[f64]) -> Option<String> {
    let value = config.get(name)?;
    let quiet = match value {
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64().is_some_and(|x| idle.contains(&x)),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    (!quiet).then(|| format!("`{name}` is {}", show(value)))
}
