//! Texts to token ids and back.

use crate::error::{Error, Result, bail};
use crate::memory;

/// Turns texts into token ids below [`Tokenizer::vocabulary`], and back.
pub trait Tokenizer {
    /// The ids of a text.
    ///
    /// # Errors
    /// Argument error when the text has something without an id.
    #[track_caller]
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// The ids of a prompt: a text with what the tokenizer's own rules add, as a token that begins it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    /// The text of some ids. What is not UTF-8, as half a character at the end, reads as U+FFFD.
    ///
    /// # Errors
    /// Index error for an id outside the vocabulary, of tokenizers that do not pass over it.
    fn decode(&self, tokens: &[u32]) -> Result<String>;

    /// Number of different ids.
    fn vocabulary(&self) -> usize;
}

/// Every byte of the UTF-8 text is a token: 256 of them, nothing is unknown.
///
/// ```
/// use cotangent::train::{Bytes, Tokenizer};
/// assert_eq!(Bytes.encode("é")?, [0xc3, 0xa9]);
/// assert_eq!(Bytes.decode(&[0xc3, 0xa9])?, "é");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Bytes;

impl Tokenizer for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        memory::try_collect(text.bytes().map(u32::from))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        let mut bytes = memory::room(tokens.len())?;
        for &t in tokens {
            let Ok(b) = u8::try_from(t) else { bail!(index, "token {t} is not a byte") };
            bytes.push(b);
        }
        memory::text_lossy(bytes)
    }

    fn vocabulary(&self) -> usize {
        256
    }
}

/// Every different character of a text is a token, in the order of their code points.
///
/// ```
/// use cotangent::train::{Characters, Tokenizer};
/// let abc = Characters::of("cabbage");
/// assert_eq!((abc.vocabulary(), abc.encode("bag")?), (5, vec![1, 0, 4]));
/// assert!(abc.encode("bat").is_err());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Characters(Vec<char>);

impl Characters {
    /// The characters that occur in a text.
    pub fn of(text: &str) -> Self {
        // As large as the alphabet, not as the text, which collecting into a set would copy and sort.
        let mut known = std::collections::BTreeSet::new();
        known.extend(text.chars());
        Characters(known.into_iter().collect())
    }

    /// The id of a character.
    pub fn id(&self, c: char) -> Option<u32> {
        self.0.binary_search(&c).ok().map(|i| i as u32)
    }
}

impl Tokenizer for Characters {
    #[track_caller]
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let at = std::panic::Location::caller();
        let mut out = memory::room(text.len())?;
        for (i, c) in text.char_indices() {
            let Some(id) = self.id(c) else {
                let known = self.0.len();
                let e = Error::argument(format!(
                    "the character {c:?} at byte {i} is not among the {known} known: make `Characters` of all texts, or take `Bytes`"
                ));
                return Err(e.in_op("characters", at));
            };
            out.push(id);
        }
        Ok(out)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        let mut bytes = memory::room(tokens.len())?;
        for &t in tokens {
            let Some(c) = self.0.get(t as usize) else { bail!(index, "token {t} is outside the vocabulary of {}", self.0.len()) };
            memory::extend(&mut bytes, c.encode_utf8(&mut [0; 4]).bytes())?;
        }
        // Every piece is a whole character.
        String::from_utf8(bytes).map_err(|e| Error::argument(e.to_string()))
    }

    fn vocabulary(&self) -> usize {
        self.0.len()
    }
}

#[cfg(feature = "tokenizers")]
pub use file::TokenizerFile;

#[cfg(feature = "tokenizers")]
mod file {
    use super::super::gguf_tokenizer;
    use super::Tokenizer;
    use crate::error::{Error, Result};
    use crate::io::{GgufTokenizer, Parts};
    use crate::memory;
    use std::path::Path;
    use tokenizers::models::ModelWrapper;

    /// Bytes of a file, at most; the largest vocabularies take 40 MiB.
    const LONGEST: u64 = 1 << 30;

    /// A `tokenizer.json`, as models on the Hugging Face hub have it. Needs the feature `tokenizers`.
    ///
    /// The file's `truncation`, `padding` and dropout of merges are put aside: as in transformers a text gives all of its tokens and no
    /// others, and always the same.
    #[derive(Clone, Debug)]
    pub struct TokenizerFile {
        inner: tokenizers::Tokenizer,
        vocabulary: usize,
    }

    /// Bytes that the crate `tokenizers` takes for a text of a table: its JSON, a place in two hash maps that are up to half empty, in
    /// both a copy of the text, and another map while the largest id is looked for.
    const PER_TEXT: usize = 650;
    /// And for each byte of a table of unigrams: a node of a tree, with a hash map of its own.
    const PER_UNIGRAM_BYTE: usize = 320;
    /// For each byte of a text that is encoded: where it came from, twice, and its share of a token with its text.
    const PER_BYTE: usize = 64;

    impl TokenizerFile {
        /// Reads the file.
        ///
        /// # Errors
        /// I/O error when it cannot be read, corrupt-file error when it is not a tokenizer.
        #[track_caller]
        pub fn open(path: impl AsRef<Path>) -> Result<Self> {
            let (path, at) = (path.as_ref(), std::panic::Location::caller());
            let bytes = crate::io::read(path, LONGEST).map_err(|e| e.in_op("tokenizer", at))?;
            Self::parse(&bytes)
                .and_then(|inner| {
                    Self::plain(inner.map_err(|e| {
                        Error::corrupt_file(format!(
                            "{} is not a tokenizer: {e}; expected is a `tokenizer.json` of Hugging Face",
                            path.display()
                        ))
                    })?)
                })
                .map(Self::of)
                .map_err(|e| e.in_op("tokenizer", at))
        }

        /// Where there is memory for what the text may become.
        fn parse(text: &[u8]) -> Result<tokenizers::Result<tokenizers::Tokenizer>> {
            let unigrams = text.windows(9).any(|w| w == b"\"Unigram\"");
            let per_byte = if unigrams { PER_UNIGRAM_BYTE } else { 3 };
            memory::ensure(text.len().saturating_mul(per_byte).saturating_add(Parts::of(text).texts.saturating_mul(PER_TEXT)))?;
            Ok(Self::built(text))
        }

        /// The library cuts by lengths that a damaged file's tables do not have, as of a merge whose result is longer than every token: what
        /// ends in a panic there is an error here.
        fn built(text: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
            std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text))
                .unwrap_or_else(|_| Err("its vocabulary and its merges do not fit each other".into()))
        }

        fn of(inner: tokenizers::Tokenizer) -> Self {
            let vocabulary = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
            TokenizerFile { inner, vocabulary }
        }

        fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            memory::ensure(text.len().saturating_mul(PER_BYTE))?;
            let encoding = self.inner.encode_fast(text, special);
            memory::copied(encoding.map_err(|e| Error::argument(format!("the text cannot be tokenized: {e}")))?.get_ids())
        }

        /// Without what a file keeps from training: a text is not cut to a length or filled up to one, and its tokens are not drawn.
        fn plain(mut inner: tokenizers::Tokenizer) -> Result<tokenizers::Tokenizer> {
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| Error::corrupt_file(format!("truncation cannot be put aside: {e}")))?;
            match inner.get_model() {
                ModelWrapper::BPE(bpe) if bpe.dropout.is_some() => {
                    let mut bpe = bpe.clone();
                    bpe.dropout = None;
                    inner.with_model(bpe);
                }
                ModelWrapper::Unigram(unigram) if unigram.alpha.is_some() || unigram.nbest_size.is_some() => {
                    let mut unigram = unigram.clone();
                    (unigram.alpha, unigram.nbest_size) = (None, None);
                    inner.with_model(unigram);
                }
                _ => {}
            }
            Ok(inner)
        }

        /// The tokenizer that a GGUF file carries: byte-level BPE, or SentencePiece's with its scores; `None` for another algorithm. What the
        /// name of its rule to cut texts implies (`tokenizer.ggml.pre`: patterns, merges that are passed over, a token that begins
        /// prompts) is as in llama.cpp.
        ///
        /// # Errors
        /// Argument error for a rule to cut texts that is not known here; corrupt-file error when the tables make no tokenizer.
        #[track_caller]
        pub fn from_gguf(tables: &GgufTokenizer) -> Result<Option<Self>> {
            let at = std::panic::Location::caller();
            let json = match tables.model.as_str() {
                "gpt2" => gguf_tokenizer::byte_level(tables).map_err(|e| e.in_op("tokenizer", at))?,
                "llama" => gguf_tokenizer::sentence_piece(tables).map_err(|e| e.in_op("tokenizer", at))?,
                _ => return Ok(None),
            };
            let inner = Self::built(json.to_string().as_bytes())
                .map_err(|e| Error::corrupt_file(format!("the tables make no tokenizer: {e}")).in_op("tokenizer", at))?;
            Ok(Some(Self::of(inner)))
        }
    }

    impl Tokenizer for TokenizerFile {
        /// Without the special tokens that a post-processor would add: a training text is one stream.
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            self.ids(text, false)
        }

        fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
            self.ids(text, true)
        }

        /// An id that the tokenizer lacks gives nothing: tables of published models have more rows than their tokenizers have ids.
        fn decode(&self, tokens: &[u32]) -> Result<String> {
            self.inner.decode(tokens, false).map_err(|e| Error::argument(format!("the tokens cannot be decoded: {e}")))
        }

        /// One more than the largest id, added tokens included.
        fn vocabulary(&self) -> usize {
            self.vocabulary
        }
    }
}
