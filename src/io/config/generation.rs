//! `generation_config.json`: how a model's authors sample from it.

use super::fields::{Fields, positive};
use super::{Refusal, Special, open, parse};
use crate::error::Result;
use std::panic::Location;
use std::path::Path;

/// Settings of sampling; `None` where the file does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Special tokens. There may be several that end a text.
    pub special: Special,
    /// Whether to draw tokens; the likeliest is taken otherwise.
    pub sample: bool,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Draw from so many likeliest tokens.
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Draw from tokens at least so likely, relative to the likeliest.
    pub min_p: Option<f64>,
    /// Divides the positive logits of tokens that occurred, and multiplies the negative.
    pub repetition_penalty: Option<f64>,
    /// Tokens to write, at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and text together, at most.
    pub max_length: Option<usize>,
}

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

    /// Takes the text of a `generation_config.json`.
    ///
    /// # Errors
    /// Corrupt-file error that names field and value when the text is not JSON, or a field is of the wrong type or out of range.
    #[track_caller]
    pub fn parse(json: &str) -> Result<Self> {
        let at = Location::caller();
        parse(json.as_bytes(), "generation_config.json", Self::of).map_err(|e| e.in_op("parse", at))
    }

    fn of(config: Fields<'_>) -> Result<Self, Refusal> {
        let share = |name: &str| match config.optional_float(name)? {
            Some(p) if !(0.0..=1.0).contains(&p) => Err(format!("`{name}` is {p}, expected 0 to 1")),
            p => Ok(p),
        };
        let out = GenerationConfig {
            special: Special::parse(config)?,
            sample: config.flag("do_sample", false)?,
            temperature: config.optional_float("temperature")?,
            top_k: config.optional_size("top_k")?,
            top_p: share("top_p")?,
            min_p: share("min_p")?,
            repetition_penalty: config.optional_float("repetition_penalty")?,
            max_new_tokens: config.optional_size("max_new_tokens")?,
            max_length: config.optional_size("max_length")?,
        };
        // A temperature of 0 without sampling is how some say "the likeliest".
        if let Some(t) = out.temperature.filter(|t| out.sample || *t != 0.0) {
            positive("temperature", t)?;
        }
        if let Some(penalty) = out.repetition_penalty {
            positive("repetition_penalty", penalty)?;
        }
        Ok(out)
    }
}
