//! The text: characters as tokens, the first nine tenths for training, the rest for validation.

use cotangent::io::read_file;
use cotangent::train::{Characters, Tokenizer, Tokens};
use cotangent::{Error, Result};
use std::path::{Path, PathBuf};

/// A text as character tokens.
pub struct Corpus {
    name: String,
    checksum: u32,
    pub characters: Characters,
    pub train: Tokens,
    pub validation: Tokens,
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
        let checksum = crc32c::crc32c(text.as_bytes());
        let characters = Characters::of(&text);
        let tokens = Tokens::from(characters.encode(&text)?);
        let (train, validation) = tokens.split_at(tokens.len() / 10 * 9)?;
        if train.len().min(validation.len()) <= context {
            return Err(Error::argument(format!(
                "{name} has {} characters: too short for a context of {context} (the validation tenth has {})",
                tokens.len(),
                validation.len()
            )));
        }
        Ok(Corpus { name, checksum, characters, train, validation })
    }

    pub fn describe(&self) -> String {
        let (all, different) = (self.train.len() + self.validation.len(), self.characters.vocabulary());
        format!("{}: {all} characters, {different} different", self.name)
    }

    /// Which text it is, whatever its file is called.
    pub fn identity(&self) -> String {
        format!("{} characters, crc32c {:08x}", self.train.len() + self.validation.len(), self.checksum)
    }

    /// A token to start generation from: a line break where the text has one.
    pub fn first_token(&self) -> u32 {
        self.characters.id('\n').unwrap_or(0)
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = read_file(path, u64::MAX)?;
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
        let part = read(&f)?;
        let fits = text.try_reserve(part.len() + 1);
        fits.map_err(|e| {
            Error::out_of_memory("the crate's own text does not fit into memory: --data FILE takes a shorter one").with_source(e)
        })?;
        text.push_str(&part);
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
