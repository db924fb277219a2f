//! Continuing texts: prefill in one pass, then token by token with the keys and values of the past.

mod graph;
mod options;
mod rows;
mod text;

pub use options::GenerateOptions;
pub use text::TextStream;

use super::{Cache, Input, LanguageModel, Loaded};
use crate::backend::Device;
use crate::error::{Error, Result, bail};
use crate::io;
use crate::memory;
use crate::tensor::Tensor;
use crate::train::Tokenizer;
use rows::Rows;
use std::panic::Location;
use std::time::Duration;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// One of the stop tokens was drawn.
    StopToken,
    /// One of the stop texts came.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// The model has no further positions: [`LanguageModel::limit`].
    Context,
    /// Something went wrong: [`Completion::error`]. What was drawn before is there.
    Failed,
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The token; `None` of a last step that only gives text which was held back.
    pub token: Option<u32>,
    /// Text that it completes: whole characters. Empty without a tokenizer.
    pub text: String,
    /// Logarithm of its probability by the model, before temperature and the rest of [`Sampling`](crate::train::Sampling), if asked for.
    pub log_prob: Option<f64>,
}

/// A whole continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The tokens, without one that stopped.
    pub tokens: Vec<u32>,
    /// Their text, up to a text that stopped. Empty without a tokenizer.
    pub text: String,
    /// For each token, if asked for.
    pub log_probs: Vec<f64>,
    /// Why it ended.
    pub finish: Finish,
    /// What went wrong, of [`Finish::Failed`].
    pub error: Option<String>,
}

/// How fast a text came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Time until its logits.
    pub prefill: Duration,
    /// Tokens after it that were computed one by one.
    pub tokens: usize,
    /// Time for those.
    pub decode: Duration,
}

impl Speed {
    /// Tokens of the prompt per second; 0 where none was computed.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt, self.prefill)
    }

    /// Tokens after it per second; 0 where none was computed.
    pub fn decode_rate(&self) -> f64 {
        rate(self.tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// Continues texts with a language model.
///
/// ```
/// use cotangent::{F32, Key, io::ModelConfig, models::{GenerateOptions, Generator, LanguageModel}, train::{Bytes, Sampling}};
/// # let json = r#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
/// #     "num_attention_heads": 2, "max_position_embeddings": 64}"#;
/// let model = LanguageModel::new(&ModelConfig::parse(json)?, F32, Key::new(1))?;
/// let sampling = Sampling { temperature: 0.8, top_k: Some(40), ..Sampling::default() };
/// let options = GenerateOptions { max_tokens: 20, sampling, key: Key::new(7), ..GenerateOptions::default() };
/// let generator = Generator::new(&model, options).with_tokenizer(&Bytes);
/// for step in generator.stream(b"To be".map(u32::from).as_slice())? {
///     print!("{}", step?.text); // a random model: whole characters, but no sense
/// }
/// let both = generator.batch(&[vec![65, 66, 67], vec![68]])?; // padded on the left, in one pass
/// assert_eq!(both[1].tokens.len(), 20);
/// let log_probs = generator.score(&[65, 66, 67])?; // of 66 after 65, and of 67 after both
/// assert!(log_probs.len() == 2 && log_probs.iter().all(|p| *p < 0.0));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone)]
pub struct Generator<'a> {
    model: &'a LanguageModel,
    tokenizer: Option<&'a dyn Tokenizer>,
    /// How to continue.
    pub options: GenerateOptions,
}

impl std::fmt::Debug for Generator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<'a> Generator<'a> {
    /// One that gives tokens.
    pub fn new(model: &'a LanguageModel, options: GenerateOptions) -> Self {
        Generator { model, tokenizer: None, options }
    }

    /// One that also gives text.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: &'a dyn Tokenizer) -> Self {
        Generator { tokenizer: Some(tokenizer), ..self }
    }

    /// The model and the tokenizer of a folder or file, sampling as its authors do.
    pub fn of(loaded: &'a Loaded) -> Self {
        let tokenizer = loaded.tokenizer.as_ref().map(|t| &**t as &dyn Tokenizer);
        Generator { model: &loaded.model, tokenizer, options: GenerateOptions::from(&loaded.generation) }
    }

    fn check_options(&self) -> Result<()> {
        let o = &self.options;
        if !o.wrong.is_empty() {
            bail!(argument, "{}: set the option and clear `GenerateOptions::wrong`", o.wrong.join("; "));
        }
        o.sampling.checked()?;
        o.rules.checked(self.model.vocabulary())?;
        if self.tokenizer.is_none() && !o.stop_texts.is_empty() {
            bail!(argument, "stop texts need a tokenizer: `with_tokenizer`, or clear `stop_texts`");
        }
        Ok(())
    }

    fn check(&self, prompt: &[u32]) -> Result<()> {
        if prompt.is_empty() {
            bail!(argument, "the prompt has no token");
        }
        if let Some(t) = prompt.iter().find(|t| **t as usize >= self.model.vocabulary()) {
            bail!(index, "token {t} of the prompt is outside the vocabulary of {}", self.model.vocabulary());
        }
        if let Some(limit) = self.model.limit().filter(|&limit| prompt.len() > limit) {
            bail!(argument, "the prompt has {} tokens, the model's context is {limit}", prompt.len());
        }
        Ok(())
    }

    /// Continues one prompt, token by token.
    ///
    /// # Errors
    /// Argument error for a prompt that is empty or longer than [`LanguageModel::limit`], and for options out of range; index error for a
    /// token outside the vocabulary. The iterator gives what the model's ops and the tokenizer return, and ends with that.
    #[track_caller]
    pub fn stream(&self, prompt: &[u32]) -> Result<Stream<'a>> {
        let at = Location::caller();
        self.check_options().and_then(|()| self.check(prompt)).map_err(|e| e.in_op("generate", at))?;
        Ok(Stream { rows: Rows::new(self, std::slice::from_ref(&prompt.to_vec()))?, generator: self.clone(), at })
    }

    /// [`Generator::stream`] with what an earlier stream of the same model computed: tokens that the prompt begins with as that text
    /// did are not computed again. So a conversation, which is written anew for each turn, costs its new part alone.
    ///
    /// # Errors
    /// As [`Generator::stream`].
    #[track_caller]
    pub fn stream_after(&self, past: Past, prompt: &[u32]) -> Result<Stream<'a>> {
        let mut stream = self.stream(prompt)?;
        let Past { tokens, mut cache } = past;
        let common = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The logits of the last token are wanted: it is computed in any case.
        cache.truncate(common.min(prompt.len() - 1))?;
        if !cache.is_empty() {
            stream.rows.speed.prompt -= cache.len();
            stream.rows.cache = cache;
        }
        Ok(stream)
    }

    /// Continues one prompt to its end.
    ///
    /// # Errors
    /// As [`Generator::batch`].
    #[track_caller]
    pub fn complete(&self, prompt: &[u32]) -> Result<Completion> {
        let mut all = self.batch(std::slice::from_ref(&prompt.to_vec()))?;
        all.pop().ok_or_else(|| Error::argument("a batch of one row gave none"))
    }

    /// Continues several prompts together: shorter ones are padded on the left, which changes no row's tokens. Row `i` draws with
    /// fold `i` of the key.
    ///
    /// What goes wrong on the way ends the rows that it concerns, with [`Finish::Failed`] and what they have; the others go on.
    ///
    /// # Errors
    /// Argument error for a prompt that is empty or longer than [`LanguageModel::limit`], and for options out of range; index error for a
    /// token outside the vocabulary; what went wrong, where no row has drawn a token.
    #[track_caller]
    pub fn batch(&self, prompts: &[Vec<u32>]) -> Result<Vec<Completion>> {
        let at = Location::caller();
        let run = || {
            self.check_options()?;
            // Nothing is computed yet, so nothing is lost: which of them it is is said.
            let named = |(i, p): (usize, &Vec<u32>)| match self.check(p) {
                Err(e) if prompts.len() > 1 => Err(e.about(format!("prompt {i}"))),
                checked => checked,
            };
            prompts.iter().enumerate().try_for_each(named)?;
            let mut rows = Rows::new(self, prompts)?;
            loop {
                match rows.advance(self) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(e) if rows.rows.iter().all(|r| r.steps.is_empty()) => return Err(e),
                    Err(e) => {
                        let (kind, why) = (e.kind(), e.text());
                        let on_their_way = rows.rows.iter_mut().filter(|r| r.finish.is_none());
                        on_their_way.for_each(|r| r.fail(Error::new(kind, why.clone())));
                        break;
                    }
                }
            }
            let lost = !rows.rows.is_empty() && rows.rows.iter().all(|r| r.error.is_some() && r.steps.is_empty());
            if let Some(e) = rows.rows.iter_mut().find_map(|r| r.error.take_if(|_| lost)) {
                return Err(e);
            }
            memory::try_collect_ok(rows.rows.into_iter().map(rows::Row::finished))
        };
        run().map_err(|e: Error| io::at_callers_line(e, "generate", at))
    }

    /// For each token but the first, the logarithm of its probability after those before.
    ///
    /// # Errors
    /// As [`Generator::stream`].
    #[track_caller]
    pub fn score(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        /// Positions at a time: logits of a large vocabulary are large.
        const PIECE: usize = 128;
        let at = Location::caller();
        let run = || {
            self.check(tokens)?;
            let mut cache = Cache::new(self.model.layers(), tokens.len())?;
            let mut out = crate::memory::room(tokens.len())?;
            for start in (0..tokens.len() - 1).step_by(PIECE) {
                let end = (start + PIECE).min(tokens.len() - 1);
                let x = ids(&tokens[start..end], 1)?.to_device(device(self.model))?;
                let logits = self.model.forward_with(Input { cache: Some(&mut cache), ..Input::new(&x) })?;
                for (i, t) in (start..end).enumerate() {
                    let row = logits.narrow(1, i, 1)?.to_f64_vec()?;
                    out.push(log_prob(&row, tokens[t + 1]));
                }
            }
            Ok(out)
        };
        run().map_err(|e: Error| io::at_callers_line(e, "score", at))
    }
}

/// Where a model's weights are.
fn device(model: &LanguageModel) -> Device {
    match model {
        LanguageModel::Gpt2(m) => m.transformer.wte.weight.device(),
        LanguageModel::Decoder(m) => m.model.embed_tokens.weight.device(),
    }
}

fn ids(tokens: &[u32], batch: usize) -> Result<Tensor> {
    Tensor::from_vec(crate::memory::try_collect(tokens.iter().map(|&t| i64::from(t)))?, [batch, tokens.len() / batch.max(1)])
}

/// `log softmax(logits)` of one token.
fn log_prob(logits: &[f64], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
    logits.get(token as usize).map_or(f64::NEG_INFINITY, |l| l - largest - sum.ln())
}

/// What a [`Stream`] has computed: its tokens with their keys and values, for [`Generator::stream_after`]. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Past {
    tokens: Vec<u32>,
    cache: Cache,
}

impl Past {
    /// The tokens whose keys and values are kept.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

/// The tokens of one text as they are drawn; made by [`Generator::stream`].
pub struct Stream<'a> {
    rows: Rows,
    generator: Generator<'a>,
    at: &'static Location<'static>,
}

impl Stream<'_> {
    /// Why it ended; `None` while it goes on.
    pub fn finish(&self) -> Option<Finish> {
        self.rows.rows.first().and_then(|r| r.finish)
    }

    /// How fast it has been.
    pub fn speed(&self) -> Speed {
        self.rows.speed
    }

    /// Prompt and tokens so far.
    pub fn tokens(&self) -> &[u32] {
        self.rows.rows.first().map_or(&[], |r| &r.tokens)
    }

    /// Ends the text, and gives what was computed for it.
    pub fn into_past(self) -> Past {
        let Rows { rows, cache, .. } = self.rows;
        // The last token that was drawn has not been through the model.
        let mut tokens = rows.into_iter().next().map_or_else(Vec::new, |r| r.tokens);
        tokens.truncate(cache.len());
        Past { tokens, cache }
    }

    /// Bytes of the keys and values that are kept.
    pub fn cache_bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.numel() * t.dtype().size();
        let layers = self.rows.cache.layers().iter();
        let kept: usize = layers.filter_map(|l| l.get().ok().flatten()).map(|(k, v)| bytes(&k) + bytes(&v)).sum();
        kept + self.rows.decode.as_ref().map_or(0, graph::Decode::bytes)
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Result<Step>> {
        let row = self.rows.rows.first()?;
        if row.steps.len() == row.given
            && let Err(e) = self.rows.advance(&self.generator)
        {
            self.rows.rows.first_mut()?.fail(e);
        }
        let row = self.rows.rows.first_mut()?;
        match row.steps.get(row.given).cloned() {
            Some(step) => {
                row.given += 1;
                Some(Ok(step))
            }
            None => row.error.take().map(|e| Err(io::at_callers_line(e, "generate", self.at))),
        }
    }
}
