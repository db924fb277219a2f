//! A zip archive whose entries are read by name.

use super::open_regular;
use crate::error::{Error, Result, bail};
use crate::memory;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zip::ZipArchive;
use zip::result::ZipError;

/// What deflate can make of a byte at most, and a little more. An entry that claims to grow beyond is refused before memory is taken.
const DEFLATE_RATIO: u64 = 1032;

/// Bytes that the crate `zip` takes for an entry: its record, twice while the list of them grows, a hash and a few short texts.
const PER_ENTRY: u64 = 1200;

pub(super) struct Archive {
    path: PathBuf,
    /// Reading moves the file's one position.
    zip: Mutex<ZipArchive<BufReader<File>>>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    index: usize,
    size: u64,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Archive> {
        let (mut file, length) = open_regular(path)?;
        let (entries, bytes) = announced(&mut file, length).map_err(|e| crate::io::failed("read", path, e))?;
        // Names and other texts are kept twice.
        let most = entries.saturating_mul(PER_ENTRY).saturating_add(bytes.saturating_mul(3)).saturating_add(1 << 17);
        memory::ensure(usize::try_from(most).unwrap_or(usize::MAX))?;
        let mut zip = ZipArchive::new(BufReader::new(file))
            .map_err(|e| damaged(path, "it is not a whole zip archive, as .npz files and PyTorch's .pt files are", e))?;
        let mut entries = BTreeMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| damaged(path, "an entry cannot be found", e))?;
            let name = memory::text(&entry.name().map_err(|e| damaged(path, "an entry has no name", e))?)?;
            memory::small(name.len() + 2 * size_of::<(String, Entry)>())?;
            let (size, packed) = (entry.size(), entry.compressed_size());
            if size > packed.saturating_mul(DEFLATE_RATIO).saturating_add(DEFLATE_RATIO) {
                bail!(corrupt_file, "{}: {packed} bytes of `{name}` are said to unpack to {size}", path.display());
            }
            if entries.insert(name.clone(), Entry { index, size }).is_some() {
                bail!(corrupt_file, "{}: two entries are called `{name}`", path.display());
            }
        }
        Ok(Archive { path: path.to_owned(), zip: Mutex::new(zip), entries })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Unpacked bytes of an entry.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|e| e.size)
    }

    /// Hands the unpacked entry and its size to `read`. With `whole`, `read` must take all of it, and its checksum is compared.
    pub fn entry<R>(&self, name: &str, whole: bool, read: impl FnOnce(&mut dyn Read, u64) -> Result<R>) -> Result<R> {
        let Some(Entry { index, size }) = self.entries.get(name).copied() else {
            bail!(corrupt_file, "{} has no entry `{name}`", self.path.display());
        };
        let mut zip = self.zip.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = zip.by_index(index).map_err(|e| damaged(&self.path, &format!("`{name}` cannot be read"), e))?;
        let result = read(&mut entry, size).map_err(|e| e.about(format_args!("{}: `{name}`", self.path.display())))?;
        if whole {
            // The checksum is compared where the entry ends.
            match entry.read(&mut [0]) {
                Ok(0) => {}
                Ok(_) => bail!(corrupt_file, "{}: `{name}` is longer than the archive says", self.path.display()),
                Err(e) => return Err(Error::corrupt_file(format!("{}: `{name}` is damaged", self.path.display())).with_source(e)),
            }
        }
        Ok(result)
    }
}

/// How many entries the end of an archive announces, and bytes of their list: the most of all ends that its last bytes could be, at most
/// as many as fit.
fn announced(file: &mut File, length: u64) -> std::io::Result<(u64, u64)> {
    // The end has 22 bytes and up to 64 KiB of comment; before it there may be, each with a mark of its own, the offset of a longer one.
    let mut last = [0; (1 << 16) + 22 + 20];
    let n = length.min(last.len() as u64) as usize;
    let last = &mut last[..n];
    file.seek(SeekFrom::Start(length - n as u64))?;
    file.read_exact(last)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let (mut most, mut longest) = (0, 0);
    for at in 0..n.saturating_sub(3) {
        let piece = &last[at..];
        match &piece[..4] {
            b"PK\x05\x06" if piece.len() >= 16 => {
                most = most.max(number(&piece[8..10])).max(number(&piece[10..12]));
                longest = longest.max(number(&piece[12..16]));
            }
            b"PK\x06\x07" if piece.len() >= 16 => {
                let mut end = [0; 48];
                let there = file.seek(SeekFrom::Start(number(&piece[8..16]))).and_then(|_| file.read_exact(&mut end));
                if there.is_ok() {
                    most = most.max(number(&end[24..32])).max(number(&end[32..40]));
                    longest = longest.max(number(&end[40..48]));
                }
            }
            _ => {}
        }
    }
    file.rewind()?;
    // An entry has 46 bytes at the end of the archive, and 30 before its content.
    Ok((most.min(length / 76), longest.min(length)))
}

fn damaged(path: &Path, what: &str, e: ZipError) -> Error {
    match e {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof && e.kind() != std::io::ErrorKind::InvalidData => {
            crate::io::failed("read", path, e)
        }
        e => Error::corrupt_file(format!("{}: {what}", path.display())).with_source(e),
    }
}
