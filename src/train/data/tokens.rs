//! Long lists of token ids, in memory or in a file.

use crate::error::{Error, Result, bail};
use crate::io::{failed, is_of_kernel, open, replace};
use crate::memory;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Size of the ids in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `u16`, little-endian: nanoGPT's `train.bin`.
    U16,
    /// `u32`, little-endian.
    U32,
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Width::U16 => 2,
            Width::U32 => 4,
        }
    }
}

/// Token ids. Cheap to clone and to slice; clones share memory and file.
///
/// A file is read by position, a window at a time: it may be larger than memory, the system caches what is read often, and
/// when it is cut short that is an error and not, as with a memory map, the end of the process.
#[derive(Clone)]
pub struct Tokens {
    source: Source,
    range: Range<usize>,
}

#[derive(Clone)]
enum Source {
    // The list as it came: `Arc<[u32]>` would be a copy.
    Memory(Arc<Vec<u32>>),
    File(Arc<TokenFile>),
}

struct TokenFile {
    path: PathBuf,
    // Reading moves the file's one position.
    file: Mutex<File>,
    width: Width,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Memory(_) => "memory".to_owned(),
            Source::File(file) => file.path.display().to_string(),
        };
        write!(f, "Tokens({source}, {:?})", self.range)
    }
}

impl From<Vec<u32>> for Tokens {
    fn from(ids: Vec<u32>) -> Self {
        Tokens { range: 0..ids.len(), source: Source::Memory(Arc::new(ids)) }
    }
}

/// Refuses a text, whose bytes would be taken for ids. Bytes of ids hold zeros, or are no UTF-8 by the first few dozen of them.
fn refuse_text(path: &Path, file: &File) -> Result<()> {
    let mut head = [0; 512];
    let mut n = 0;
    let mut reader = file;
    while n < head.len() {
        match reader.read(&mut head[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed("read", path, e)),
        }
    }
    let head = &head[..n];
    let whole = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character may be cut.
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or(""),
        Err(_) => return Ok(()),
    };
    let several = head.iter().any(|&b| b != head[0]) && head.chunks(2).any(|pair| pair != &head[..2]);
    if n >= 64 && several && !whole.is_empty() && !whole.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        bail!(
            corrupt_file,
            "{} is a text, not a list of token ids: encode it first (`Characters`, `Bytes`, `TokenizerFile`), and keep the ids by `Tokens::save`",
            path.display()
        );
    }
    Ok(())
}

impl Tokens {
    /// Opens a file of ids without a header, as [`Tokens::save`] and nanoGPT's `prepare.py` write it.
    ///
    /// # Errors
    /// I/O error, also for files of the kernel (`/proc`, `/sys`), which have no length; corrupt-file error when its length is no multiple
    /// of an id's, and for a text: whatever has 64 bytes and begins as UTF-8 without control characters, which ids do not.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>, width: Width) -> Result<Self> {
        let (path, at) = (path.as_ref(), std::panic::Location::caller());
        Self::of_file(path, width).map_err(|e| e.in_op("tokens", at))
    }

    fn of_file(path: &Path, width: Width) -> Result<Self> {
        let file = open(path)?;
        let bytes = file.metadata().map_err(|e| failed("read", path, e))?.len();
        // Its ids are read by position, as many as its length says; what it says there is made up as it is read.
        if is_of_kernel(path) {
            bail!(io, "cannot read {}: it is a file of the kernel, which has no length", path.display());
        }
        if bytes % width.bytes() as u64 != 0 {
            bail!(corrupt_file, "{} has {bytes} bytes, which is not a multiple of {}", path.display(), width.bytes());
        }
        refuse_text(path, &file)?;
        let range = 0..(bytes / width.bytes() as u64) as usize;
        Ok(Tokens { source: Source::File(Arc::new(TokenFile { path: path.to_owned(), file: Mutex::new(file), width })), range })
    }

    /// Writes the ids to a file, whole or not at all.
    ///
    /// # Errors
    /// Index error for an id beyond the width; I/O error.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>, width: Width) -> Result<()> {
        let at = std::panic::Location::caller();
        let path = path.as_ref();
        let write = |out: &mut std::io::BufWriter<File>| {
            let mut bytes = memory::room((1 << 18) * width.bytes())?;
            for start in (0..self.len()).step_by(1 << 18) {
                bytes.clear();
                for id in self.read(start, (1 << 18).min(self.len() - start))? {
                    match (width, u16::try_from(id)) {
                        (Width::U16, Ok(id)) => bytes.extend(id.to_le_bytes()),
                        (Width::U16, Err(_)) => bail!(index, "token {id} does not fit 16 bits"),
                        (Width::U32, _) => bytes.extend(id.to_le_bytes()),
                    }
                }
                out.write_all(&bytes).map_err(|e| failed("write", path, e))?;
            }
            Ok(())
        };
        replace(path, write).map_err(|e| e.in_op("tokens", at))
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The first `n` ids, and the rest.
    ///
    /// # Errors
    /// Index error when there are fewer.
    #[track_caller]
    pub fn split_at(&self, n: usize) -> Result<(Tokens, Tokens)> {
        if n > self.len() {
            let e = Error::index(format!("cannot split {} tokens at {n}", self.len()));
            return Err(e.in_op("split_at", std::panic::Location::caller()));
        }
        let middle = self.range.start + n;
        let part = |range| Tokens { source: self.source.clone(), range };
        Ok((part(self.range.start..middle), part(middle..self.range.end)))
    }

    /// `count` ids from `start` on.
    ///
    /// # Errors
    /// Index error beyond the end; I/O error.
    pub fn read(&self, start: usize, count: usize) -> Result<Vec<u32>> {
        if start.checked_add(count).is_none_or(|end| end > self.len()) {
            bail!(index, "tokens {start} to {start} + {count} of {}", self.len());
        }
        let start = self.range.start + start;
        match &self.source {
            Source::Memory(ids) => memory::copied(&ids[start..start + count]),
            Source::File(f) => f.read(start, count),
        }
    }
}

impl TokenFile {
    fn read(&self, start: usize, count: usize) -> Result<Vec<u32>> {
        let width = self.width.bytes();
        let mut bytes = memory::vec_of(0, count * width)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(start as u64 * width as u64)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|e| failed("read", &self.path, e))?;
        match self.width {
            Width::U16 => memory::try_collect(bytes.as_chunks().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)))),
            Width::U32 => memory::try_collect(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b))),
        }
    }
}
