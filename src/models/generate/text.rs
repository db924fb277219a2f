//! Text from tokens as they come: never half a character, and nothing of a text that ends the generation.

use crate::error::Result;
use crate::train::Tokenizer;

/// Tokens that are held back for a character to become whole, at most. A character has up to four bytes, so four tokens of one byte;
/// twice as many, since tokens without text may be among them.
const LONGEST_CHARACTER: usize = 8;

/// Decodes tokens one by one. What it gives is valid text: bytes of a character that is not whole yet are kept for later, and so is
/// what may become one of the texts that stop.
///
/// ```
/// use cotangent::{models::TextStream, train::Bytes};
/// let mut stream = TextStream::new(&["END".to_owned()]);
/// let mut texts = Vec::new();
/// for byte in "aé ENEND z".bytes() {
///     texts.push(stream.push(&Bytes, u32::from(byte))?);
/// }
/// assert_eq!(texts[..3], ["a", "", "é"]); // the first byte of é alone is no text
/// assert_eq!(texts.concat(), "aé EN");
/// assert!(stream.stopped());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    stops: Vec<String>,
    /// Tokens that are decoded together, the last `new` of which have given no text yet.
    window: Vec<u32>,
    new: usize,
    held: String,
    stopped: bool,
}

impl TextStream {
    /// One that stops at any of these texts; empty ones are left out.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        TextStream { stops, window: Vec::new(), new: 0, held: String::new(), stopped: false }
    }

    /// The same, for a text that goes on after this token: at the beginning of a text some tokenizers leave out a space.
    #[must_use]
    pub fn after(mut self, tokenizer: &dyn Tokenizer, token: u32) -> Self {
        // A part of a character has no text that could be cut off again.
        if tokenizer.decode(&[token]).is_ok_and(|text| !text.contains('\u{fffd}')) {
            self.window = vec![token];
        }
        self
    }

    /// Whether a text that stops has come; it and what follows are not given out.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token, and gives the text that it completes.
    ///
    /// # Errors
    /// What [`Tokenizer::decode`] returns.
    pub fn push(&mut self, tokenizer: &dyn Tokenizer, token: u32) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.window.push(token);
        self.new += 1;
        let whole = self.fresh(tokenizer)?.filter(|text| !text.ends_with('\u{fffd}'));
        if whole.is_none() && self.new < LONGEST_CHARACTER {
            return Ok(String::new());
        }
        let text = whole.map_or_else(|| self.remains(tokenizer), Ok)?;
        self.settle();
        Ok(self.give(&text, false))
    }

    /// Gives what was held back: the generation is over.
    ///
    /// # Errors
    /// What [`Tokenizer::decode`] returns.
    pub fn finish(&mut self, tokenizer: &dyn Tokenizer) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let text = if self.new > 0 { self.remains(tokenizer)? } else { String::new() };
        self.settle();
        Ok(self.give(&text, true))
    }

    /// The text of the new tokens. Decoded after those before: some tokenizers treat the first token of a text in another way. `None`
    /// when it changes earlier text: an incomplete character can do that.
    fn fresh(&self, tokenizer: &dyn Tokenizer) -> Result<Option<String>> {
        let old = tokenizer.decode(&self.window[..self.window.len() - self.new])?;
        let all = tokenizer.decode(&self.window)?;
        Ok(all.strip_prefix(&old).map(str::to_owned))
    }

    /// The text of the new tokens when no more will come to make a whole of it.
    fn remains(&self, tokenizer: &dyn Tokenizer) -> Result<String> {
        match self.fresh(tokenizer)? {
            Some(text) => Ok(text),
            None => tokenizer.decode(&self.window[self.window.len() - self.new..]),
        }
    }

    fn settle(&mut self) {
        self.window.drain(..self.window.len() - self.new);
        self.new = 0;
    }

    fn give(&mut self, text: &str, over: bool) -> String {
        self.held.push_str(text);
        let stop = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = stop {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins = |tail: &str| self.stops.iter().any(|s| s.starts_with(tail));
        let keep = if over { None } else { self.held.char_indices().map(|(i, _)| i).find(|&i| begins(&self.held[i..])) };
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }
}
