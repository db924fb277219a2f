//! How a text is continued.

use crate::io::GenerationConfig;
use crate::rng::Key;
use crate::train::{Sampling, TokenRules};

/// How to continue; the default takes 256 of the likeliest tokens and stops at nothing.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to draw, at most.
    pub max_tokens: usize,
    /// Tokens of prompt and text together, at most.
    pub max_length: Option<usize>,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Which may be drawn.
    pub rules: TokenRules,
    /// Draws them: the same key gives the same tokens.
    pub key: Key,
    /// Tokens that end a text; they are not given out.
    pub stop_tokens: Vec<u32>,
    /// Texts that end a text; they are not given out. Needs a tokenizer.
    pub stop_texts: Vec<String>,
    /// Whether each token comes with the logarithm of its probability.
    pub log_probs: bool,
    /// On a CUDA device: whether the step that a token takes is captured as a graph, which spares the host its launches. Memory for
    /// `max_tokens` is then taken at once, and attention reads all of it at every step. Without effect on the CPU.
    pub graph: bool,
    /// What a `generation_config.json` asks for and means nothing ([`GenerationConfig::wrong`]). While there is any, generating is an error
    /// that says so; clear it to go by the other options.
    pub wrong: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 256,
            max_length: None,
            sampling: Sampling::GREEDY,
            rules: TokenRules::default(),
            key: Key::new(0),
            stop_tokens: Vec::new(),
            stop_texts: Vec::new(),
            log_probs: false,
            graph: false,
            wrong: Vec::new(),
        }
    }
}

impl From<&GenerationConfig> for GenerateOptions {
    /// As the model's authors sample, and stopping at their special tokens and texts.
    fn from(c: &GenerationConfig) -> Self {
        let own = GenerateOptions::default();
        let sampling = if c.sample {
            Sampling {
                temperature: c.temperature.unwrap_or(1.0),
                top_k: c.top_k,
                top_p: c.top_p.unwrap_or(1.0),
                min_p: c.min_p.unwrap_or(0.0),
                repetition_penalty: c.repetition_penalty.unwrap_or(1.0),
            }
        } else {
            Sampling { repetition_penalty: c.repetition_penalty.unwrap_or(1.0), ..Sampling::GREEDY }
        };
        let rules = TokenRules {
            suppress_tokens: c.suppress_tokens.clone(),
            begin_suppress_tokens: c.begin_suppress_tokens.clone(),
            bad_words: c.bad_words_ids.clone(),
            no_repeat_ngram_size: c.no_repeat_ngram_size,
            min_new_tokens: c.min_new_tokens,
            min_length: c.min_length,
            forced_first: c.forced_bos_token_id,
            forced_last: c.forced_eos_token_id.clone(),
        };
        GenerateOptions {
            // A length of prompt and text is a limit of its own, where it is the only one.
            max_tokens: c.max_new_tokens.unwrap_or(if c.max_length.is_some() { usize::MAX } else { own.max_tokens }),
            max_length: c.max_length.filter(|_| c.max_new_tokens.is_none()),
            sampling,
            rules,
            stop_tokens: c.special.eos.clone(),
            stop_texts: c.stop_strings.clone(),
            wrong: c.wrong.clone(),
            ..own
        }
    }
}
