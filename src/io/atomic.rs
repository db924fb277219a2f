//! Files that are either whole or not there.
//!
//! Every file that this crate writes goes through [`replace`], but for those that grow by lines and records (metrics).

use super::failed;
use super::open::{is_of_kernel, only_files};
use crate::error::{Error, Result, bail};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the name of a file ends with until it is whole.
const PARTIAL: &str = ".partial";
/// Symbolic links that are followed, as by Linux.
const LINKS: usize = 40;

/// Writes a file so that at any moment, whatever is killed, its name has the whole old content or the whole new.
///
/// `fill` writes to a new file `NAME.PROCESS.COUNT.partial` in the same folder, which is flushed to the disk and then renamed; the
/// folder is flushed too. Two writers of one name do not meet: the last one to end wins. The permissions of an old file are kept; where
/// the name is a symbolic link, the file that it leads to is replaced. On error the old file stays as it is. What a killed writer left
/// is removed by the next one of the same name.
///
/// # Errors
/// What `fill` returns; I/O error with the path, also when there is something that is no regular file (a folder, a device), or the path
/// stands for an open file (`/dev/stdout`, `/proc/self/fd/1`).
#[track_caller]
pub fn write_atomically(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let at = Location::caller();
    replace(path.as_ref(), |out| fill(out)).map_err(|e| e.in_op("write_atomically", at))
}

/// [`write_atomically`] for the parts of this crate: `fill` may go back in the file, and no op is named.
pub(crate) fn replace(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let target = target_of(path)?;
    let Some(name) = target.file_name().map(OsString::from) else {
        bail!(argument, "`{}` does not name a file", path.display());
    };
    let old = match fs::symlink_metadata(&target) {
        Ok(about) => Some(about),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(failed("write", path, e)),
    };
    let folder = folder_of(&target);
    // Untidy at worst: in folders that can be written but not listed.
    let _ = sweep_partial(folder, |n| *n == *name);
    let partial = Partial::create(&target, &name, old.as_ref()).map_err(|e| failed("write", path, e))?;
    let mut out = BufWriter::with_capacity(1 << 20, partial.file.try_clone().map_err(|e| failed("write", path, e))?);
    fill(&mut out)?;
    out.flush().map_err(|e| failed("write", path, e))?;
    // Before the rename: else a power cut can leave the new name with old or no content.
    partial.file.sync_all().map_err(|e| failed("flush", path, e))?;
    // Between the first look and now something else may have taken the name.
    if let Ok(about) = fs::symlink_metadata(&target) {
        only_files("write", path, &about)?;
    }
    partial.rename(&target).map_err(|e| failed("write", path, e))?;
    sync_folder(folder)
}

/// [`replace`] by a text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    replace(path, |out| out.write_all(text.as_bytes()).map_err(|e| failed("write", path, e)))
}

/// The file that a path leads to, through symbolic links; it need not exist.
fn target_of(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path) {
        Ok(about) => only_files("write", path, &about)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed("write", path, e)),
    }
    let mut target = path.to_owned();
    for _ in 0..LINKS {
        // `/dev/stdout`, `/dev/fd/1`, `/proc/self/fd/1`: a process that has the file open would go on writing into one that nobody sees.
        if is_of_kernel(folder_of(&target)) {
            bail!(io, "cannot write {}: it names a file that a process has open, which cannot be replaced; name the file", path.display());
        }
        if !fs::symlink_metadata(&target).is_ok_and(|about| about.is_symlink()) {
            return Ok(target);
        }
        let to = fs::read_link(&target).map_err(|e| failed("write", path, e))?;
        target = folder_of(&target).join(to);
    }
    bail!(io, "cannot write {}: it leads through more than {LINKS} symbolic links", path.display())
}

/// A file that is being written; goes away with this value unless it was renamed.
struct Partial {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Partial {
    /// A new file under a name that nobody has: `create_new` follows no symbolic link. It is locked, which tells others that its writer
    /// lives.
    fn create(target: &Path, name: &OsString, old: Option<&Metadata>) -> std::io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..1000 {
            let suffix = format!(".{}.{}{PARTIAL}", std::process::id(), COUNT.fetch_add(1, Relaxed));
            // File systems allow 255 bytes.
            let mut own = if name.len() + suffix.len() > 255 { OsString::from("cotangent") } else { name.clone() };
            own.push(suffix);
            let path = target.with_file_name(own);
            let mut options = File::options();
            options.write(true).create_new(true);
            // What replaces a private file is never readable by others, not even while it is empty.
            #[cfg(unix)]
            if old.is_some() {
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            }
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            // Before the lock was taken, somebody who clears away may have found it.
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || is_removed(&file) {
                continue;
            }
            let partial = Partial { path, file, renamed: false };
            if let Some(old) = old {
                keep_permissions(&partial.file, old)?;
            }
            return Ok(partial);
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn rename(mut self, target: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            // What is left of it is useless; the error that matters is the first one.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn is_removed(file: &File) -> bool {
    file.metadata().is_ok_and(|about| std::os::unix::fs::MetadataExt::nlink(&about) == 0)
}

#[cfg(not(unix))]
fn is_removed(_: &File) -> bool {
    false
}

/// Owner, group and permissions of the old file, as far as this process may give them.
#[cfg(unix)]
fn keep_permissions(file: &File, old: &Metadata) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    let new = file.metadata()?;
    let mut mode = old.mode() & 0o777;
    let (owner, group) = ((new.uid() != old.uid()).then_some(old.uid()), (new.gid() != old.gid()).then_some(old.gid()));
    if (owner.is_some() || group.is_some()) && fchown(file, owner, group).is_err() && group.is_some() && fchown(file, None, group).is_err()
    {
        // Another group must not see more than everybody.
        mode = mode & 0o707 | (mode & 0o007) << 3;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn keep_permissions(_: &File, _: &Metadata) -> std::io::Result<()> {
    Ok(())
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Brings new names in a folder to the disk. Some systems cannot open folders, or not flush them; there a name is as durable as it gets.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    let Ok(file) = File::open(folder) else { return Ok(()) };
    match file.sync_all() {
        Err(e) if !matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            Err(failed("flush", folder, e))
        }
        _ => Ok(()),
    }
}

/// Removes what killed writers of files that `ours` knows left in a folder. Nothing else: the folder may hold other people's files, and
/// what a living process writes is locked.
///
/// # Errors
/// I/O error with the path.
pub(crate) fn sweep_partial(folder: &Path, ours: impl Fn(&std::ffi::OsStr) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| failed("list", folder, e))? {
        let entry = entry.map_err(|e| failed("list", folder, e))?;
        let (name, path) = (entry.file_name(), entry.path());
        if !whole_name(&name).is_some_and(&ours) || !entry.file_type().is_ok_and(|t| t.is_file()) {
            continue;
        }
        let mut options = File::options();
        options.read(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
        if let Ok(file) = options.open(&path)
            && file.try_lock().is_ok()
        {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("remove", &path, e)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// `NAME` of `NAME.12.3.partial`.
fn whole_name(partial: &std::ffi::OsStr) -> Option<&std::ffi::OsStr> {
    let mut rest = Path::new(partial);
    for part in [None, Some(()), Some(())] {
        let end = rest.extension()?;
        let fits = match part {
            None => end == &PARTIAL[1..],
            Some(()) => !end.is_empty() && end.as_encoded_bytes().iter().all(u8::is_ascii_digit),
        };
        if !fits {
            return None;
        }
        rest = Path::new(rest.file_stem()?);
    }
    Some(rest.as_os_str())
}

/// Gives a file the first free of the names `NAME.ENDING`, `NAME.ENDING.1`, … in its folder, and returns the new path. For files of which
/// nothing may be lost; the caller has the folder for itself.
pub(crate) fn set_aside(path: &Path, ending: &str) -> Result<PathBuf> {
    let new = free_name(path, ending)?;
    fs::rename(path, &new).map_err(|e| failed("rename", path, e))?;
    sync_folder(folder_of(path))?;
    Ok(new)
}

/// The first free of the names that [`set_aside`] gives.
pub(crate) fn free_name(path: &Path, ending: &str) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default();
    for n in 0..u32::MAX {
        let mut new = name.to_owned();
        new.push(if n == 0 { format!(".{ending}") } else { format!(".{ending}.{n}") });
        let new = path.with_file_name(new);
        match fs::symlink_metadata(&new) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(new),
            Err(e) => return Err(failed("rename", path, e)),
        }
    }
    Err(Error::io(format!("cannot rename {}: every name is taken", path.display())))
}
