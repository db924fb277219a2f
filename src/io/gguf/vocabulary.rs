//! The tokenizer that a file carries.

use super::{GgufArray, GgufFile, GgufValue};
use crate::error::{Result, bail};
use crate::memory;
use std::panic::Location;

/// A tokenizer's tables, as a GGUF file has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// Which algorithm: `gpt2` (byte-level BPE), `llama` (SentencePiece), `bert`, …
    pub model: String,
    /// How text is cut before: `qwen2`, `llama-bpe`, `gpt-2`, …
    pub pre: Option<String>,
    /// Texts of the tokens, by id; bytes are written as printable characters in `gpt2`, as `<0x0A>` in `llama`.
    pub tokens: Vec<String>,
    /// By id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. Empty when the file does not say.
    pub types: Vec<i32>,
    /// By id, for `llama`; empty otherwise.
    pub scores: Vec<f32>,
    /// Pairs to merge, most important first, for `gpt2`; empty otherwise.
    pub merges: Vec<(String, String)>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn of a conversation.
    pub eot: Option<u32>,
    /// Ends a message that goes on after a tool was called.
    pub eom: Option<u32>,
    /// What fills in, of a model of code: its filling, name of a repository, and border of a file. None of them occurs in an answer.
    pub fill_in: [Option<u32>; 3],
    /// Never to be drawn.
    pub suppress: Vec<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Whether texts are to begin with `bos`, where the file says.
    pub add_bos: Option<bool>,
    /// Whether texts are to end with `eos`, where the file says.
    pub add_eos: Option<bool>,
    /// Whether a space precedes every text (`llama`), where the file says.
    pub add_space_prefix: Option<bool>,
    /// Template of a conversation, in Jinja.
    pub chat_template: Option<String>,
}

/// Texts of tokens that end an answer, whatever the metadata say: llama.cpp's list.
const ENDS: [&str; 21] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
];
/// Texts of what [`GgufTokenizer::fill_in`] has, where the metadata do not name it.
const FILL_IN: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

impl GgufTokenizer {
    /// Every token that ends an answer: those that the file names as the end of a text, a turn or a message, and those whose text says
    /// so, by llama.cpp's rules. The end of a text comes first, the others by number.
    ///
    /// ```
    /// use cotangent::io::GgufTokenizer;
    /// let tokens = ["a", "<|im_end|>", "<|endoftext|>"].map(str::to_owned).to_vec();
    /// let t = GgufTokenizer { model: "gpt2".to_owned(), tokens, eos: Some(2), ..GgufTokenizer::default() };
    /// assert_eq!(t.end_tokens(), [2, 1]);
    /// ```
    pub fn end_tokens(&self) -> Vec<u32> {
        let text = |id: u32| self.tokens.get(id as usize).map_or("", String::as_str);
        let named = |texts: &[&str]| self.tokens.iter().position(|t| texts.contains(&t.as_str())).map(|id| id as u32);
        let fill_in = self.fill_in.iter().zip(FILL_IN).filter_map(|(id, texts)| id.or_else(|| named(texts)));
        let by_text = (0..).zip(&self.tokens).filter(|(_, t)| ENDS.contains(&t.as_str())).map(|(id, _)| id);
        // SentencePiece's own number, where the file does not say.
        let eos = self.eos.or(if self.model == "llama" { Some(2) } else { None }).filter(|id| (*id as usize) < self.tokens.len());
        let mut all: Vec<u32> = [self.eot, self.eom].into_iter().flatten().chain(fill_in).chain(by_text).collect();
        all.sort_unstable();
        all.dedup();
        let has = |t: &str| all.iter().any(|&id| text(id) == t);
        // Where an answer has parts, the end of a part is no end; where tools answer, `</s>` is a word of theirs.
        let parts = (has("<|call|>") || has("<|calls|>")) && has("<|return|>") || (has("<|call|>") || has("<|calls|>")) && has("<|flush|>");
        let tools = has("<|tool_response>");
        all.retain(|&id| Some(id) != eos && !(parts && text(id) == "<|end|>") && !(tools && text(id) == "</s>"));
        eos.into_iter().chain(all).collect()
    }
}

impl GgufFile {
    /// The tokenizer in the metadata; `None` if there is none.
    ///
    /// # Errors
    /// Corrupt-file error when a part is of the wrong type, tables are of different lengths, a merge is not a pair, or an id is
    /// outside the vocabulary.
    #[track_caller]
    pub fn tokenizer(&self) -> Result<Option<GgufTokenizer>> {
        let at = Location::caller();
        self.read_tokenizer().map_err(|e| e.in_op("tokenizer", at))
    }

    fn read_tokenizer(&self) -> Result<Option<GgufTokenizer>> {
        let Some(model) = self.part("model", "a text", GgufValue::as_str)? else { return Ok(None) };
        let tokens = self.part("tokens", "a list of texts", GgufValue::as_strings)?.unwrap_or_default();
        let n = tokens.len();
        // A copy of each text; of a merge two halves.
        let merges = self.part("merges", "a list of texts", GgufValue::as_strings)?.unwrap_or_default();
        let texts = |list: &[String], each: usize| list.iter().map(|t| t.len() + each).sum::<usize>();
        memory::ensure(texts(tokens, 56) + texts(merges, 3 * 112) + n * 8)?;
        let types = self.part("token_type", "a list of 32-bit integers", integers)?.transpose()?.unwrap_or_default();
        let scores = self.part("scores", "a list of single-precision numbers", |v| match v {
            GgufValue::Array(GgufArray::F32(x)) => Some(memory::copied(x)),
            _ => None,
        })?;
        let scores = scores.transpose()?.unwrap_or_default();
        for (what, len) in [("token_type", types.len()), ("scores", scores.len())] {
            if len != 0 && len != n {
                bail!(corrupt_file, "{}: `tokenizer.ggml.{what}` has {len} entries for {n} tokens", self.path.display());
            }
        }
        let mut pairs = memory::room(merges.len())?;
        for (i, merge) in merges.iter().enumerate() {
            // The first space that is not at the very beginning: the left part is never empty.
            match merge.char_indices().skip(1).find(|(_, c)| *c == ' ') {
                Some((at, _)) if at + 1 < merge.len() => pairs.push((merge[..at].to_owned(), merge[at + 1..].to_owned())),
                _ => bail!(corrupt_file, "{}: `tokenizer.ggml.merges[{i}]`, {merge:?}, is not a pair", self.path.display()),
            }
        }
        let id = |key: &str| match self.part(key, "a token id", |v| u32::try_from(v.as_u64()?).ok())? {
            Some(id) if id as usize >= n => {
                bail!(corrupt_file, "{}: `tokenizer.ggml.{key}` is {id}; there are {n} tokens", self.path.display())
            }
            id => Ok(id),
        };
        Ok(Some(GgufTokenizer {
            model: model.to_owned(),
            pre: self.part("pre", "a text", GgufValue::as_str)?.map(str::to_owned),
            tokens: tokens.to_vec(),
            types,
            scores,
            merges: pairs,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            fill_in: [id("fim_pad_token_id")?, id("fim_rep_token_id")?, id("fim_sep_token_id")?],
            suppress: self.part("suppress_tokens", "a list of token ids", tokens_of)?.transpose()?.unwrap_or_default(),
            pad: id("padding_token_id")?,
            unknown: id("unknown_token_id")?,
            add_bos: self.part("add_bos_token", "a truth value", GgufValue::as_bool)?,
            add_eos: self.part("add_eos_token", "a truth value", GgufValue::as_bool)?,
            add_space_prefix: self.part("add_space_prefix", "a truth value", GgufValue::as_bool)?,
            chat_template: self.header.metadata.get("tokenizer.chat_template").and_then(GgufValue::as_str).map(str::to_owned),
        }))
    }

    fn part<'a, T>(&'a self, key: &str, expected: &str, convert: impl Fn(&'a GgufValue) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.header.metadata.get(&format!("tokenizer.ggml.{key}")) else { return Ok(None) };
        match convert(value) {
            Some(x) => Ok(Some(x)),
            None => bail!(
                corrupt_file,
                "{}: `tokenizer.ggml.{key}` is of the type {}, expected {expected}",
                self.path.display(),
                value.type_name()
            ),
        }
    }
}

/// Token ids of either sign's type.
fn tokens_of(value: &GgufValue) -> Option<Result<Vec<u32>>> {
    match integers(value)? {
        Ok(ids) if ids.iter().any(|&id| id < 0) => None,
        ids => Some(ids.and_then(|ids| memory::try_collect(ids.into_iter().map(i32::unsigned_abs)))),
    }
}

/// Converters have written both signs.
fn integers(value: &GgufValue) -> Option<Result<Vec<i32>>> {
    match value {
        GgufValue::Array(GgufArray::I32(x)) => Some(memory::copied(x)),
        GgufValue::Array(GgufArray::U32(x)) => {
            let signed = || x.iter().map_while(|&n| i32::try_from(n).ok());
            (signed().count() == x.len()).then(|| memory::try_collect(signed()))
        }
        _ => None,
    }
}
