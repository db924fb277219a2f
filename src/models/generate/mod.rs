//! Continuing texts: prefill in one pass, then token by token with the keys and values of the past.

mod graph;
mod text;

pub use text::TextStream;

use super::{Cache, Input, LanguageModel, Loaded};
use crate::backend::Device;
use crate::error::{Error, Result, bail};
use crate::io::{self, GenerationConfig};
use crate::rng::Key;
use crate::tensor::Tensor;
use crate::train::{Sampling, Tokenizer};
use std::panic::Location;
use std::time::{Duration, Instant};

/// How to continue; the default takes 256 of the likeliest tokens and stops at nothing.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to draw, at most.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
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
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 256,
            sampling: Sampling::GREEDY,
            key: Key::new(0),
            stop_tokens: Vec::new(),
            stop_texts: Vec::new(),
            log_probs: false,
            graph: false,
        }
    }
}

impl From<&GenerationConfig> for GenerateOptions {
    /// As the model's authors sample, and stopping at their special tokens.
    fn from(c: &GenerationConfig) -> Self {
        let own = GenerateOptions::default();
        let sampling = if c.sample {
            Sampling {
                temperature: c.temperature.unwrap_or(1.0),
                top_k: c.top_k.filter(|&k| k > 0),
                top_p: c.top_p.filter(|&p| p > 0.0).unwrap_or(1.0),
                min_p: c.min_p.unwrap_or(0.0),
                repetition_penalty: c.repetition_penalty.unwrap_or(1.0),
            }
        } else {
            Sampling { repetition_penalty: c.repetition_penalty.unwrap_or(1.0), ..Sampling::GREEDY }
        };
        let max_tokens = c.max_new_tokens.unwrap_or(own.max_tokens);
        GenerateOptions { max_tokens, sampling, stop_tokens: c.special.eos.clone(), ..own }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// One of the stop tokens was drawn.
    StopToken,
    /// One of the stop texts came.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// The model's context is full.
    Context,
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The token; `None` of a last step that only gives text which was held back.
    pub token: Option<u32>,
    /// Text that it completes: whole characters. Empty without a tokenizer.
    pub text: String,
    /// Logarithm of its probability by the model, before temperature and the rest of [`Sampling`], if asked for.
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
    /// Tokens of the prompt per second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt as f64 / self.prefill.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Tokens after it per second.
    pub fn decode_rate(&self) -> f64 {
        self.tokens as f64 / self.decode.as_secs_f64().max(f64::MIN_POSITIVE)
    }
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

    fn check(&self, prompt: &[u32]) -> Result<()> {
        self.options.sampling.check()?;
        if prompt.is_empty() {
            bail!(argument, "the prompt has no token");
        }
        if let Some(t) = prompt.iter().find(|t| **t as usize >= self.model.vocabulary()) {
            bail!(index, "token {t} of the prompt is outside the vocabulary of {}", self.model.vocabulary());
        }
        if prompt.len() > self.model.context() {
            bail!(argument, "the prompt has {} tokens, the model's context is {}", prompt.len(), self.model.context());
        }
        if self.tokenizer.is_none() && !self.options.stop_texts.is_empty() {
            bail!(argument, "stop texts need a tokenizer");
        }
        Ok(())
    }

    /// Continues one prompt, token by token.
    ///
    /// # Errors
    /// Argument error for a prompt that is empty or longer than the context, and for options out of range; index error for a token outside
    /// the vocabulary. The iterator gives what the model's ops and the tokenizer return, and ends with that.
    #[track_caller]
    pub fn stream(&self, prompt: &[u32]) -> Result<Stream<'a>> {
        let at = Location::caller();
        self.check(prompt).map_err(|e| e.in_op("generate", at))?;
        Ok(Stream { rows: Rows::new(self, std::slice::from_ref(&prompt.to_vec())), generator: self.clone() })
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
    /// As [`Generator::stream`].
    #[track_caller]
    pub fn complete(&self, prompt: &[u32]) -> Result<Completion> {
        let mut all = self.batch(std::slice::from_ref(&prompt.to_vec()))?;
        all.pop().ok_or_else(|| Error::argument("a batch of one row gave none"))
    }

    /// Continues several prompts together: shorter ones are padded on the left, which changes no row's tokens. Row `i` draws with
    /// fold `i` of the key.
    ///
    /// # Errors
    /// As [`Generator::stream`].
    #[track_caller]
    pub fn batch(&self, prompts: &[Vec<u32>]) -> Result<Vec<Completion>> {
        let at = Location::caller();
        let run = || {
            prompts.iter().try_for_each(|p| self.check(p))?;
            let mut rows = Rows::new(self, prompts);
            while rows.advance(self)? {}
            Ok(rows.rows.into_iter().map(Row::finished).collect())
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
            let mut cache = Cache::new(self.model.layers(), tokens.len());
            let mut out = Vec::with_capacity(tokens.len());
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
    Tensor::from_vec(tokens.iter().map(|&t| i64::from(t)).collect::<Vec<_>>(), [batch, tokens.len() / batch.max(1)])
}

/// `log softmax(logits)` of one token.
fn log_prob(logits: &[f64], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
    logits.get(token as usize).map_or(f64::NEG_INFINITY, |l| l - largest - sum.ln())
}

/// One text of a batch.
struct Row {
    prompt: usize,
    tokens: Vec<u32>,
    text: TextStream,
    key: Key,
    steps: Vec<Step>,
    finish: Option<Finish>,
    /// Steps that a stream has handed over.
    given: usize,
}

impl Row {
    fn finished(self) -> Completion {
        Completion {
            tokens: self.steps.iter().filter_map(|s| s.token).collect(),
            text: self.steps.iter().map(|s| s.text.as_str()).collect(),
            log_probs: self.steps.iter().filter_map(|s| s.log_prob).collect(),
            finish: self.finish.unwrap_or(Finish::Length),
        }
    }

    /// Draws the next token from its logits.
    fn draw(&mut self, logits: &[f64], g: &Generator<'_>) -> Result<()> {
        let o = &g.options;
        let drawn = self.tokens.len() - self.prompt;
        let token = o.sampling.draw_after(logits, &self.tokens, self.key.uniform_f64(drawn as u64))? as u32;
        if o.stop_tokens.contains(&token) {
            return self.end(Finish::StopToken, g);
        }
        self.tokens.push(token);
        let text = g.tokenizer.map_or(Ok(String::new()), |t| self.text.push(t, token))?;
        self.steps.push(Step { token: Some(token), text, log_prob: o.log_probs.then(|| log_prob(logits, token)) });
        self.check_length(g)
    }

    fn check_length(&mut self, g: &Generator<'_>) -> Result<()> {
        if self.text.stopped() {
            self.end(Finish::StopText, g)
        } else if self.tokens.len() - self.prompt >= g.options.max_tokens {
            self.end(Finish::Length, g)
        } else if self.tokens.len() >= g.model.context() {
            self.end(Finish::Context, g)
        } else {
            Ok(())
        }
    }

    fn end(&mut self, why: Finish, g: &Generator<'_>) -> Result<()> {
        self.finish = Some(why);
        let Some(t) = g.tokenizer else { return Ok(()) };
        let text = self.text.finish(t)?;
        let handed_over = self.given == self.steps.len();
        match self.steps.last_mut() {
            _ if text.is_empty() => {}
            Some(last) if !handed_over => last.text.push_str(&text),
            _ => self.steps.push(Step { token: None, text, log_prob: None }),
        }
        Ok(())
    }
}

/// A batch on its way.
struct Rows {
    rows: Vec<Row>,
    pads: Vec<usize>,
    cache: Cache,
    /// The captured step, which has taken over from the cache.
    decode: Option<graph::Decode>,
    speed: Speed,
    begun: bool,
}

impl Rows {
    fn new(g: &Generator<'_>, prompts: &[Vec<u32>]) -> Self {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let row = |(i, p): (usize, &Vec<u32>)| Row {
            prompt: p.len(),
            tokens: p.clone(),
            text: match (g.tokenizer, p.last()) {
                (Some(t), Some(&last)) => TextStream::new(&g.options.stop_texts).after(t, last),
                _ => TextStream::new(&g.options.stop_texts),
            },
            key: g.options.key.fold(i as u64),
            steps: Vec::new(),
            finish: None,
            given: 0,
        };
        Rows {
            rows: prompts.iter().enumerate().map(row).collect(),
            pads: prompts.iter().map(|p| longest - p.len()).collect(),
            cache: Cache::new(g.model.layers(), longest),
            decode: None,
            speed: Speed { prompt: longest * prompts.len(), ..Speed::default() },
            begun: false,
        }
    }

    /// Draws a token for every row that goes on; `false` when none does.
    fn advance(&mut self, g: &Generator<'_>) -> Result<bool> {
        if !self.begun {
            self.rows.iter_mut().try_for_each(|r| r.check_length(g))?;
        }
        if self.rows.iter().all(|r| r.finish.is_some()) {
            return Ok(false);
        }
        let began = Instant::now();
        let mut next = Vec::new();
        for (row, pad) in self.rows.iter().zip(&self.pads) {
            if self.begun {
                // A row that is over is fed its last token again; nobody reads what comes of it.
                next.push(row.tokens.last().copied().unwrap_or(0));
            } else {
                next.resize(next.len() + pad, 0);
                // Of a single row, the past may have been computed before.
                next.extend(row.tokens.iter().skip(self.cache.len()));
            }
        }
        let logits = self.logits(g, &next)?.to_f64_vec()?;
        let spent = began.elapsed();
        if self.begun {
            self.speed.tokens += self.rows.iter().filter(|r| r.finish.is_none()).count();
            self.speed.decode += spent;
        } else {
            self.speed.prefill = spent;
            self.begun = true;
        }
        let size = logits.len() / self.rows.len().max(1);
        for (row, logits) in self.rows.iter_mut().zip(logits.chunks_exact(size.max(1))) {
            if row.finish.is_none() {
                row.draw(logits, g)?;
            }
        }
        Ok(true)
    }

    /// Of the last of each row's next tokens.
    fn logits(&mut self, g: &Generator<'_>, next: &[u32]) -> Result<Tensor> {
        let there = device(g.model);
        if self.begun && g.options.graph && there != Device::Cpu {
            if self.decode.is_none() {
                let capacity = self.cache.len().saturating_add(g.options.max_tokens).min(g.model.context());
                self.decode = Some(graph::Decode::new(g.model, &self.cache, &self.pads, capacity)?);
                // Its keys and values are the graph's now.
                self.cache.truncate(0)?;
            }
            if let Some(decode) = &mut self.decode {
                return decode.step(next);
            }
        }
        let x = ids(next, self.rows.len())?.to_device(there)?;
        g.model.forward_with(Input { pads: &self.pads, cache: Some(&mut self.cache), last: true, ..Input::new(&x) })
    }
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
        let tokens = rows.into_iter().next().map_or_else(Vec::new, |r| r.tokens.into_iter().take(cache.len()).collect());
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
        let before = self.rows.rows.first()?.given;
        if self.rows.rows.first()?.steps.len() == before
            && let Err(e) = self.rows.advance(&self.generator)
        {
            self.rows.rows.clear();
            return Some(Err(e));
        }
        let row = self.rows.rows.first_mut()?;
        let step = row.steps.get(row.given).cloned();
        row.given += usize::from(step.is_some());
        step.map(Ok)
    }
}
