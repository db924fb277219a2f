//! The text: characters as tokens, the first nine tenths for training, the rest for validation.

use cotangent::{Error, Key, Result, Tensor};
use std::path::{Path, PathBuf};

/// A text as character tokens.
pub struct Corpus {
    name: String,
    alphabet: Vec<char>,
    train: Vec<i64>,
    validation: Vec<i64>,
}

impl Corpus {
    /// Reads a UTF-8 file, or the crate's own sources and docs.
    pub fn load(path: Option<&Path>, context: usize) -> Result<Self> {
        let (name, text) = match path {
            Some(p) => (p.display().to_string(), read(p)?),
            None => ("the crate's sources and docs".to_owned(), own_sources()?),
        };
        if text.is_empty() {
            return Err(Error::argument(format!("{name} is empty")));
        }
        let mut alphabet: Vec<char> = text.chars().collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        let tokens: Vec<i64> = text.chars().map(|c| alphabet.binary_search(&c).map_or(0, |i| i as i64)).collect();
        let split = tokens.len() / 10 * 9;
        let (train, validation) = tokens.split_at(split);
        if train.len().min(validation.len()) <= context {
            return Err(Error::argument(format!(
                "{name} has {} characters: too short for a context of {context} (the validation tenth has {})",
                tokens.len(),
                validation.len()
            )));
        }
        Ok(Corpus { name, train: train.to_vec(), validation: validation.to_vec(), alphabet })
    }

    pub fn vocabulary(&self) -> usize {
        self.alphabet.len()
    }

    pub fn describe(&self) -> String {
        format!("{}: {} characters, {} different", self.name, self.train.len() + self.validation.len(), self.alphabet.len())
    }

    /// Inputs and next-character targets, `[batch, context]` each.
    pub fn train_batch(&self, batch: usize, context: usize, key: Key) -> Result<(Tensor, Tensor)> {
        draw(&self.train, batch, context, key)
    }

    pub fn validation_batch(&self, batch: usize, context: usize, key: Key) -> Result<(Tensor, Tensor)> {
        draw(&self.validation, batch, context, key)
    }

    /// A token to start generation from: a line break where the text has one.
    pub fn first_token(&self) -> i64 {
        self.alphabet.binary_search(&'\n').map_or(0, |i| i as i64)
    }

    pub fn decode(&self, tokens: &[i64]) -> String {
        tokens.iter().filter_map(|&t| self.alphabet.get(usize::try_from(t).ok()?)).collect()
    }
}

fn draw(tokens: &[i64], batch: usize, context: usize, key: Key) -> Result<(Tensor, Tensor)> {
    let n = batch.checked_mul(context).ok_or_else(|| Error::out_of_memory("batch times context overflows"))?;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for v in [&mut x, &mut y] {
        v.try_reserve_exact(n).map_err(|_| Error::out_of_memory(format!("a batch of {batch} × {context} tokens does not fit memory")))?;
    }
    for b in 0..batch {
        let start = key.below(b as u64, (tokens.len() - context) as u64) as usize;
        x.extend_from_slice(&tokens[start..start + context]);
        y.extend_from_slice(&tokens[start + 1..start + 1 + context]);
    }
    Ok((Tensor::from_slice(&x, [batch, context])?, Tensor::from_slice(&y, [batch, context])?))
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(format!("cannot read {}", path.display())).with_source(e))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::corrupt_file(format!("{} is not UTF-8 text (first bad byte at {})", path.display(), e.utf8_error().valid_up_to()))
    })
}

/// All Rust, CUDA and Markdown files of the crate, in name order.
fn own_sources() -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "docs", "kernels", "tests", "examples"] {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let mut text = String::new();
    for f in files {
        text.push_str(&read(&f)?);
        text.push('\n');
    }
    Ok(text)
}

fn collect(folder: &Path, out: &mut Vec<PathBuf>) {
    // A folder that is not there (an unpacked package has no tests) simply contributes nothing.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            collect(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "md" || e == "cu") {
            out.push(path);
        }
    }
}
