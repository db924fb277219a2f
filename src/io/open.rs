//! Opening files: only regular ones, and nothing that is read has more bytes than the reader wants.

use super::failed;
use crate::error::{Error, Result, bail};
use crate::memory::{room, vec_of};
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::panic::Location;
use std::path::Path;

/// Opens a regular file for reading. Anything else at the path (folder, FIFO, device, socket) is refused at once: nothing
/// waits for a writer, and nothing is read without end.
///
/// ```
/// let e = cotangent::io::open_file("/").unwrap_err();
/// assert!(e.is_io() && e.to_string().contains("cannot read /: it is a folder"));
/// ```
///
/// # Errors
/// I/O error that says what it is, or why it cannot be read.
#[track_caller]
pub fn open_file(path: impl AsRef<Path>) -> Result<File> {
    let at = Location::caller();
    open(path.as_ref()).map_err(|e| e.in_op("open_file", at))
}

/// Reads a regular file of at most `longest` bytes; [`open_file`] says what is refused.
///
/// ```
/// # let path = std::env::temp_dir().join(format!("cotangent-doc-read-{}", std::process::id()));
/// cotangent::io::write_atomically(&path, |out| Ok(out.write_all(b"12 bytes are")?))?;
/// assert_eq!(cotangent::io::read_file(&path, 100)?, b"12 bytes are");
/// let e = cotangent::io::read_file(&path, 11).unwrap_err();
/// assert!(e.is_corrupt_file() && e.to_string().contains("has more than 11 bytes"));
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// # Errors
/// I/O error, as of [`open_file`]; corrupt-file error when it is longer; out of memory.
#[track_caller]
pub fn read_file(path: impl AsRef<Path>, longest: u64) -> Result<Vec<u8>> {
    let at = Location::caller();
    read(path.as_ref(), longest).map_err(|e| e.in_op("read_file", at))
}

pub(crate) fn open(path: &Path) -> Result<File> {
    opened("read", path, File::options().read(true))
}

pub(crate) fn read(path: &Path, longest: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata().map_err(|e| failed("read", path, e))?.len();
    let too_long = || Error::corrupt_file(format!("{} has more than {longest} bytes", path.display()));
    if length > longest {
        return Err(too_long());
    }
    // Files of the kernel say 0: they grow as they are read.
    let mut bytes = room(usize::try_from(length).unwrap_or(usize::MAX))?;
    file.take(longest.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| failed("read", path, e))?;
    if bytes.len() as u64 > longest {
        return Err(too_long());
    }
    Ok(bytes)
}

/// Whether the path leads to a file that the kernel makes up (`/proc`, `/sys`): its length is 0 whatever it holds, and it cannot be
/// replaced.
pub(crate) fn is_of_kernel(path: &Path) -> bool {
    std::fs::canonicalize(path).is_ok_and(|p| p.starts_with("/proc") || p.starts_with("/sys"))
}

/// So many zeros.
pub(super) fn zeros(length: u64) -> Result<Vec<u8>> {
    vec_of(0, usize::try_from(length).unwrap_or(usize::MAX))
}

/// A regular file that grows at its end, made if there is none.
pub(crate) fn open_to_append(path: &Path) -> Result<File> {
    opened("write", path, File::options().read(true).append(true).create(true))
}

/// A file that was not there before.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    File::create_new(path).map_err(|e| failed("create", path, e))
}

/// Opens what `options` ask for, if it is a regular file or, where they allow it, a new one. `what` is the verb of the message.
pub(super) fn opened(what: &str, path: &Path, options: &mut OpenOptions) -> Result<File> {
    // First, since opening alone can wait (FIFOs) or do something (tapes).
    match std::fs::metadata(path) {
        Ok(about) => only_files(what, path, &about)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed(what, path, e)),
    }
    // Also where something else has come to the path in the meantime.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|e| match std::fs::read_link(path) {
        Ok(to) if e.kind() == ErrorKind::NotFound => {
            let why = format!("cannot {what} {}: it is a link to {}, where nothing is now", path.display(), to.display());
            Error::io(why).with_source(e)
        }
        _ => failed(what, path, e),
    })?;
    only_files(what, path, &file.metadata().map_err(|e| failed(what, path, e))?)?;
    Ok(file)
}

/// Refuses what is no regular file, by name.
pub(super) fn only_files(what: &str, path: &Path, about: &Metadata) -> Result<()> {
    if about.is_file() {
        return Ok(());
    }
    bail!(io, "cannot {what} {}: it is {}, not a file", path.display(), kind(about.file_type()))
}

fn kind(t: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        for (is, name) in [
            (t.is_fifo(), "a FIFO (named pipe)"),
            (t.is_socket(), "a socket"),
            (t.is_char_device(), "a character device"),
            (t.is_block_device(), "a block device"),
        ] {
            if is {
                return name;
            }
        }
    }
    if t.is_dir() { "a folder" } else { "something special" }
}
