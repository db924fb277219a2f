//! Which tokens may be drawn at all.

use super::sampling::Sampling;
use crate::error::{Result, bail};
use crate::rng::Key;

/// What may be drawn, whatever its probability: rules with the meaning of transformers' options of the same names. The default allows
/// every token.
///
/// ```
/// use cotangent::train::TokenRules;
/// let rules = TokenRules { no_repeat_ngram_size: 2, ..TokenRules::default() };
/// // 7 8 is there already: after another 7 anything but 8 may come.
/// let mut logits = vec![0.0; 10];
/// rules.apply(&mut logits, &[7, 8, 7], 1, &[], usize::MAX);
/// assert!(logits[8] == f64::NEG_INFINITY && logits[7] == 0.0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRules {
    /// Tokens that are never drawn.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not drawn as the first one after the prompt.
    pub begin_suppress_tokens: Vec<u32>,
    /// Sequences that are not completed. One of a single token that ends texts is passed over.
    pub bad_words: Vec<Vec<u32>>,
    /// No sequence of so many tokens occurs twice, prompt included; 0: any may.
    pub no_repeat_ngram_size: usize,
    /// No token that ends a text is drawn before so many others after the prompt.
    pub min_new_tokens: usize,
    /// No token that ends a text is drawn before prompt and text have so many tokens.
    pub min_length: usize,
    /// The second token of a text whose prompt has one.
    pub forced_first: Option<u32>,
    /// The last token, where a text reaches the most tokens that it may have, is one of these; empty: any.
    pub forced_last: Vec<u32>,
}

impl TokenRules {
    fn idle(&self) -> bool {
        *self == TokenRules::default()
    }

    /// Index error that names a token outside a vocabulary of this size.
    ///
    /// # Errors
    /// That one; argument error for a sequence of [`TokenRules::bad_words`] without a token.
    #[track_caller]
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let at = std::panic::Location::caller();
        self.checked(vocabulary).map_err(|e| e.in_op("token_rules", at))
    }

    /// [`TokenRules::check`] for callers that name themselves.
    pub(crate) fn checked(&self, vocabulary: usize) -> Result<()> {
        if self.bad_words.iter().any(Vec::is_empty) {
            bail!(argument, "a sequence of `bad_words` has no token");
        }
        let lists = [&self.suppress_tokens, &self.begin_suppress_tokens, &self.forced_last];
        let all = lists.into_iter().flatten().chain(self.bad_words.iter().flatten()).chain(&self.forced_first);
        match all.copied().find(|&t| t as usize >= vocabulary) {
            Some(t) => bail!(index, "token {t} of the rules is outside the vocabulary of {vocabulary}"),
            None => Ok(()),
        }
    }

    /// Sets the logits of what may not come next to −∞. `tokens` are those so far, the first `prompt` of them given; `ends` are those
    /// that end a text; `most` is how many tokens there may be, prompt included. Ids beyond the logits are passed over.
    pub fn apply(&self, logits: &mut [f64], tokens: &[u32], prompt: usize, ends: &[u32], most: usize) {
        let mut forbid = |t: u32| {
            if let Some(l) = logits.get_mut(t as usize) {
                *l = f64::NEG_INFINITY;
            }
        };
        let (n, len) = (self.no_repeat_ngram_size, tokens.len());
        if n > 0 && len + 1 >= n {
            let last = &tokens[len + 1 - n..];
            tokens.windows(n).filter(|w| w[..n - 1] == *last).for_each(|w| forbid(w[n - 1]));
        }
        for word in &self.bad_words {
            if let Some((&end, before)) = word.split_last()
                && tokens.ends_with(before)
                && !(before.is_empty() && ends.contains(&end))
            {
                forbid(end);
            }
        }
        if len < self.min_length || len < prompt.saturating_add(self.min_new_tokens) {
            ends.iter().copied().for_each(&mut forbid);
        }
        self.suppress_tokens.iter().copied().for_each(&mut forbid);
        // What is forced comes after the prompt's token, so the beginning is one later.
        if len == prompt + usize::from(prompt == 1 && self.forced_first.is_some()) {
            self.begin_suppress_tokens.iter().copied().for_each(&mut forbid);
        }
        let mut force = |only: &[u32]| {
            for (i, l) in logits.iter_mut().enumerate() {
                *l = if only.contains(&(i as u32)) { 0.0 } else { f64::NEG_INFINITY };
            }
        };
        if let (1, Some(first)) = (len, self.forced_first) {
            force(&[first]);
        }
        if !self.forced_last.is_empty() && len + 1 == most {
            force(&self.forced_last);
        }
    }
}

/// Draws the tokens of one text: the one place where logits become tokens.
pub(crate) struct Sampler<'a> {
    pub sampling: Sampling,
    pub rules: &'a TokenRules,
    /// Tokens that end a text.
    pub ends: &'a [u32],
    /// Token `i` after the prompt is drawn with number `i`.
    pub key: Key,
    /// Tokens that were given.
    pub prompt: usize,
    /// Tokens that there may be, prompt included.
    pub most: usize,
}

impl Sampler<'_> {
    /// The token that comes after these, by the logits of the last.
    pub fn next(&self, logits: &[f64], tokens: &[u32]) -> Result<u32> {
        let uniform = self.key.uniform_f64((tokens.len() - self.prompt) as u64);
        if self.rules.idle() {
            return Ok(self.sampling.after(logits, tokens, uniform)? as u32);
        }
        let mut allowed = crate::memory::copied(logits)?;
        self.rules.apply(&mut allowed, tokens, self.prompt, self.ends, self.most);
        if !logits.is_empty() && allowed.iter().all(|l| *l == f64::NEG_INFINITY) && logits.iter().any(|l| l.is_finite()) {
            bail!(argument, "the rules forbid every one of the {} tokens: look at suppress_tokens, bad_words and their like", logits.len());
        }
        Ok(self.sampling.after(&allowed, tokens, uniform)? as u32)
    }
}
