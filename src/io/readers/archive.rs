//! A zip archive whose entries are read by name.

use super::open_regular;
use crate::error::{Error, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zip::ZipArchive;
use zip::result::ZipError;

/// What deflate can make of a byte at most, and a little more. An entry that claims to grow beyond is refused before memory is taken.
const DEFLATE_RATIO: u64 = 1032;

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
        let (file, _) = open_regular(path)?;
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(path, "it is not a whole zip archive", e))?;
        let mut entries = BTreeMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| damaged(path, "an entry cannot be found", e))?;
            let name = entry.name().map_err(|e| damaged(path, "an entry has no name", e))?.into_owned();
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

fn damaged(path: &Path, what: &str, e: ZipError) -> Error {
    match e {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof && e.kind() != std::io::ErrorKind::InvalidData => {
            crate::io::failed("read", path, e)
        }
        e => Error::corrupt_file(format!("{}: {what}", path.display())).with_source(e),
    }
}
