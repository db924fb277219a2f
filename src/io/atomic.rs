//! Files that are either whole or not there.

use super::failed;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// What a file is called until it is whole. Always the same, so that a killed process leaves at most one behind.
const PARTIAL: &str = ".partial";

/// Writes a file so that at any moment, whatever is killed, its name stands for the whole old content or the whole new.
///
/// `fill` writes to `NAME.partial` in the same folder, which is flushed to the disk and then renamed; the folder is
/// flushed too. On error the old file stays as it is.
///
/// # Errors
/// What `fill` returns; I/O error with the path.
pub fn write_atomically(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let partial = partial_of(path)?;
    let result = write(path, &partial, fill);
    if result.is_err() {
        // What is left of it is useless; the error that matters is the first one.
        let _ = fs::remove_file(&partial);
    }
    result
}

fn write(path: &Path, partial: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::create(partial).map_err(|e| failed("create", partial, e))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|e| failed("write", partial, e.into_error()))?;
    // Before the rename: else a power cut can leave the new name with old or no content.
    file.sync_all().map_err(|e| failed("flush", partial, e))?;
    fs::rename(partial, path).map_err(|e| failed("write", path, e))?;
    // The rename is in the folder. Some systems cannot open folders; there the rename is as durable as it gets.
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn partial_of(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::argument(format!("`{}` does not name a file", path.display())));
    };
    let mut name = OsString::from(name);
    name.push(PARTIAL);
    Ok(path.with_file_name(name))
}

/// Removes what killed writers of files that `ours` knows left in a folder. Nothing else: the folder may hold other people's files.
///
/// # Errors
/// I/O error with the path.
pub(crate) fn sweep_partial(folder: &Path, ours: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| failed("list", folder, e))? {
        let entry = entry.map_err(|e| failed("list", folder, e))?;
        let (name, path) = (entry.file_name(), entry.path());
        let known = name.to_str().and_then(|n| n.strip_suffix(PARTIAL)).is_some_and(&ours);
        if known && entry.file_type().is_ok_and(|t| t.is_file()) {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Takes the lock that is the file `path`, until the result is dropped or the process ends, however it ends; `None` while another
/// has it. Makes the file, which stays: it also tells whether the folder can be written.
///
/// # Errors
/// I/O error with the path.
pub(crate) fn lock(path: &Path) -> Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(|e| failed("write", path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // Some network file systems have no locks: there nobody is kept out.
        Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
            tracing::warn!(path = %path.display(), "this file system has no locks: make sure that one run has the folder");
            Ok(Some(file))
        }
        Err(TryLockError::Error(e)) => Err(failed("lock", path, e)),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}
