//! Locks: a file that is locked belongs to this process.
//!
//! The system's locks belong to an opened file and not to a process, so what this process holds is listed here: its parts (snapshots and
//! metrics of one run) share a lock, other processes are kept out.

use super::open::opened;
use super::{failed, folder_of};
use crate::error::{Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex, PoisonError};

/// The file whose lock a run holds; it stays in the folder.
const RUN: &str = "run.lock";

/// Which file: device and number.
#[cfg(unix)]
#[derive(Clone, Debug, PartialEq)]
struct Key(u64, u64);

/// Which file: its path without links.
#[cfg(not(unix))]
#[derive(Clone, Debug, PartialEq)]
struct Key(std::path::PathBuf);

struct Held {
    key: Key,
    file: File,
    /// The process that took it: a copy of this list in a forked process gives nothing back.
    owner: u32,
    holders: usize,
    busy: Arc<AtomicBool>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread starts at this moment has the opened file until it is executed.
        if self.owner == std::process::id() {
            let _ = self.file.unlock();
        }
    }
}

static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

/// A share of this process in a lock, which is given back when the last share is dropped, or the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    key: Key,
    busy: Arc<AtomicBool>,
    /// Whether this process had it before.
    pub(crate) shared: bool,
}

impl Lock {
    /// Says that something is going on that only one part of this process may do at a time, until the result is dropped; `None` while
    /// another does it.
    pub(crate) fn begin(&self) -> Option<Busy> {
        self.busy.compare_exchange(false, true, AcqRel, Acquire).is_ok().then(|| Busy(Arc::clone(&self.busy)))
    }
}

impl Clone for Lock {
    fn clone(&self) -> Self {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter_mut().filter(|h| h.key == self.key).for_each(|h| h.holders += 1);
        Lock { key: self.key.clone(), busy: Arc::clone(&self.busy), shared: true }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter_mut().filter(|h| h.key == self.key).for_each(|h| h.holders -= 1);
        held.retain(|h| h.holders > 0);
    }
}

/// See [`Lock::begin`].
#[derive(Debug)]
pub(crate) struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

/// Takes the lock of a file, or a share when this process has it; `None` while another process has it.
///
/// # Errors
/// I/O error with the path.
pub(crate) fn lock(file: File, path: &Path) -> Result<Option<Lock>> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let key = key(&file, path).map_err(|e| failed("lock", path, e))?;
    if let Some(h) = held.iter_mut().find(|h| h.key == key) {
        h.holders += 1;
        return Ok(Some(Lock { key, busy: Arc::clone(&h.busy), shared: true }));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        // Some network file systems have no locks: there nobody is kept out.
        Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
            tracing::warn!(path = %path.display(), "this file system has no locks: make sure that one run has the folder");
        }
        Err(TryLockError::Error(e)) => return Err(failed("lock", path, e)),
    }
    let busy = Arc::<AtomicBool>::default();
    held.push(Held { key: key.clone(), file, owner: std::process::id(), holders: 1, busy: Arc::clone(&busy) });
    Ok(Some(Lock { key, busy, shared: false }))
}

#[cfg(unix)]
fn key(file: &File, _: &Path) -> std::io::Result<Key> {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map(|about| Key(about.dev(), about.ino()))
}

#[cfg(not(unix))]
fn key(_: &File, path: &Path) -> std::io::Result<Key> {
    path.canonicalize().map(Key)
}

/// Takes a folder for a run of this process. Makes the lock's file, which also tells whether the folder can be written.
///
/// # Errors
/// Argument error while a run of another process has it; I/O error.
pub(crate) fn lock_run(folder: &Path) -> Result<Lock> {
    let path = folder.join(RUN);
    let file = opened("write", &path, File::options().create(true).truncate(false).write(true))?;
    match lock(file, &path)? {
        Some(mine) => Ok(mine),
        None => bail!(argument, "another run trains in {} at this moment: take another folder", folder.display()),
    }
}

/// The share in the lock of the run whose folder a file is in, if it is one's: nothing there may be opened, changed or named while a run
/// of another process has it.
///
/// # Errors
/// As [`lock_run`].
pub(crate) fn lock_around(file: &Path) -> Result<Option<Lock>> {
    let folder = folder_of(file);
    match folder.join(RUN).symlink_metadata() {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed("read", &folder.join(RUN), e)),
        Ok(_) => lock_run(folder).map(Some),
    }
}
