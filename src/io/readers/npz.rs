//! NumPy's `.npz`: named arrays in a zip archive.

use super::archive::Archive;
use super::npy;
use crate::error::{Result, bail};
use crate::memory;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::path::Path;

/// The arrays that NumPy saved by `np.savez` or `np.savez_compressed`: listed at once, read when they are asked for.
///
/// ```no_run
/// use cotangent::io::NpzFile;
/// let file = NpzFile::open("mnist.npz")?;
/// println!("{:?}", file.names().collect::<Vec<_>>());
/// let (x, y) = (file.tensor("x_train")?, file.tensor("y_train")?);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct NpzFile {
    archive: Archive,
}

impl fmt::Debug for NpzFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct List<'a>(&'a NpzFile);
        impl fmt::Debug for List<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.0.names()).finish()
            }
        }
        f.debug_struct("NpzFile").field("path", &self.archive.path()).field("names", &List(self)).finish()
    }
}

impl NpzFile {
    /// Opens an archive.
    ///
    /// # Errors
    /// I/O error when it cannot be read or is not a regular file; corrupt-file error when it is not a whole zip archive.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        let archive = Archive::open(path.as_ref()).map_err(|e| e.in_op("open", at))?;
        Ok(NpzFile { archive })
    }

    /// Names of the arrays, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.archive.names().filter_map(|n| n.strip_suffix(".npy"))
    }

    /// Reads an array; types as in [`read_npy`](super::read_npy).
    ///
    /// # Errors
    /// Argument error when there is none of that name; otherwise as [`read_npy`](super::read_npy).
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let at = Location::caller();
        self.read(name).map_err(|e| crate::io::at_callers_line(e, "tensor", at))
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let entry = format!("{name}.npy");
        if self.archive.size(&entry).is_none() {
            let names = memory::some(self.names());
            bail!(argument, "{} has no array `{name}`; it has: {}", self.archive.path().display(), names);
        }
        self.archive.entry(&entry, true, npy::read_from)
    }

    /// Reads all arrays.
    ///
    /// # Errors
    /// As [`NpzFile::tensor`].
    #[track_caller]
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let at = Location::caller();
        let read = |name: &str| Ok((name.to_owned(), self.read(name)?));
        memory::map(self.names().map(read), memory::TENSOR).map_err(|e| crate::io::at_callers_line(e, "tensors", at))
    }
}
