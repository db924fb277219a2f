//! The rows of a batch on their way.

use super::graph::Decode;
use super::{Completion, Finish, Generator, Speed, Step, TextStream, device, ids, log_prob};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::models::{Cache, Input};
use crate::rng::Key;
use crate::tensor::Tensor;
use crate::train::Sampler;
use std::time::Instant;

/// One text of a batch.
pub(super) struct Row {
    prompt: usize,
    pub tokens: Vec<u32>,
    text: TextStream,
    key: Key,
    pub steps: Vec<Step>,
    pub finish: Option<Finish>,
    /// Why it failed.
    pub error: Option<Error>,
    /// Steps that a stream has handed over.
    pub given: usize,
}

impl Row {
    fn new(g: &Generator<'_>, prompt: &[u32], key: Key) -> Self {
        let text = TextStream::new(&g.options.stop_texts);
        Row {
            prompt: prompt.len(),
            tokens: prompt.to_vec(),
            text: match (g.tokenizer, prompt.last()) {
                (Some(t), Some(&last)) => text.after(t, last),
                _ => text,
            },
            key,
            steps: Vec::new(),
            finish: None,
            error: None,
            given: 0,
        }
    }

    pub fn finished(self) -> Result<Completion> {
        let mut text = String::new();
        self.steps.iter().try_for_each(|s| memory::append(&mut text, &s.text))?;
        Ok(Completion {
            tokens: memory::try_collect(self.steps.iter().filter_map(|s| s.token))?,
            text,
            log_probs: memory::try_collect(self.steps.iter().filter_map(|s| s.log_prob))?,
            finish: self.finish.unwrap_or(Finish::Length),
            error: self.error.map(|e| e.text()),
        })
    }

    /// Tokens that there may be, prompt included.
    fn most(&self, g: &Generator<'_>) -> usize {
        self.prompt.saturating_add(g.options.max_tokens).min(g.options.max_length.unwrap_or(usize::MAX))
    }

    /// Draws the next token from its logits. What goes wrong ends this row alone, and leaves it what it has.
    fn draw(&mut self, logits: &[f64], g: &Generator<'_>) {
        // The last text may come as a step of its own.
        if let Err(e) = memory::grow(&mut self.tokens, 1).and_then(|()| memory::grow(&mut self.steps, 2)) {
            return self.fail(e);
        }
        let o = &g.options;
        let (key, prompt, most) = (self.key, self.prompt, self.most(g));
        let sampler = Sampler { sampling: o.sampling, rules: &o.rules, ends: &o.stop_tokens, key, prompt, most };
        let token = match sampler.next(logits, &self.tokens) {
            Ok(token) => token,
            Err(e) => return self.fail(e),
        };
        if o.stop_tokens.contains(&token) {
            return self.end(Finish::StopToken, g);
        }
        self.tokens.push(token);
        let text = g.tokenizer.map_or(Ok(String::new()), |t| self.text.push(t, token));
        let (text, error) = text.map_or_else(|e| (String::new(), Some(e)), |text| (text, None));
        self.steps.push(Step { token: Some(token), text, log_prob: o.log_probs.then(|| log_prob(logits, token)) });
        match error {
            Some(e) => self.fail(e),
            None => self.check_length(g),
        }
    }

    fn check_length(&mut self, g: &Generator<'_>) {
        if self.text.stopped() {
            self.end(Finish::StopText, g);
        } else if self.tokens.len() >= self.most(g) {
            self.end(Finish::Length, g);
        } else if g.model.limit().is_some_and(|limit| self.tokens.len() >= limit) {
            self.end(Finish::Context, g);
        }
    }

    fn end(&mut self, why: Finish, g: &Generator<'_>) {
        self.finish = Some(why);
        let Some(t) = g.tokenizer else { return };
        let text = match self.text.finish(t) {
            Ok(text) => text,
            Err(e) => return self.fail(e),
        };
        let handed_over = self.given == self.steps.len();
        match self.steps.last_mut() {
            _ if text.is_empty() => {}
            Some(last) if !handed_over => last.text.push_str(&text),
            _ => self.steps.push(Step { token: None, text, log_prob: None }),
        }
    }

    pub fn fail(&mut self, why: Error) {
        self.finish = Some(Finish::Failed);
        self.error = Some(why);
    }
}

/// A batch on its way.
pub(super) struct Rows {
    pub rows: Vec<Row>,
    pads: Vec<usize>,
    pub cache: Cache,
    /// The captured step, which has taken over from the cache.
    pub decode: Option<Decode>,
    pub speed: Speed,
    begun: bool,
}

impl Rows {
    pub fn new(g: &Generator<'_>, prompts: &[Vec<u32>]) -> Result<Self> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Rows {
            rows: prompts.iter().enumerate().map(|(i, p)| Row::new(g, p, g.options.key.fold(i as u64))).collect(),
            pads: prompts.iter().map(|p| longest - p.len()).collect(),
            cache: Cache::new(g.model.layers(), longest)?,
            decode: None,
            speed: Speed { prompt: longest * prompts.len(), ..Speed::default() },
            begun: false,
        })
    }

    /// Draws a token for every row that goes on; `false` when none does.
    ///
    /// # Errors
    /// What ends all rows: those of the model. What ends one row is in that row.
    pub fn advance(&mut self, g: &Generator<'_>) -> Result<bool> {
        if !self.begun {
            self.rows.iter_mut().for_each(|r| r.check_length(g));
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
                row.draw(logits, g);
            }
        }
        Ok(true)
    }

    /// Of the last of each row's next tokens.
    fn logits(&mut self, g: &Generator<'_>, next: &[u32]) -> Result<Tensor> {
        let there = device(g.model);
        if self.begun && g.options.graph && there != Device::Cpu {
            if self.decode.is_none() {
                let longest = g.model.limit().unwrap_or(usize::MAX).min(g.options.max_length.unwrap_or(usize::MAX));
                let most = self.pads.iter().max().copied().unwrap_or(0).saturating_add(longest);
                let capacity = self.cache.len().saturating_add(g.options.max_tokens).min(most);
                self.decode = Some(Decode::new(g.model, &self.cache, &self.pads, capacity)?);
                // Its keys and values are the graph's now.
                self.cache.truncate(0)?;
            }
            if let Some(decode) = &mut self.decode {
                return decode.step(next);
            }
        }
        // Where positions are learned, a row that is over would ask for one that there is not: its past becomes filling.
        if let Some(limit) = g.model.limit().filter(|_| self.begun) {
            let place = self.cache.len();
            let over = self.rows.iter().zip(&mut self.pads).filter(|(row, pad)| row.finish.is_some() && place >= **pad + limit);
            over.for_each(|(_, pad)| *pad = place);
        }
        let x = ids(next, self.rows.len())?.to_device(there)?;
        g.model.forward_with(Input { pads: &self.pads, cache: Some(&mut self.cache), last: true, ..Input::new(&x) })
    }
}
