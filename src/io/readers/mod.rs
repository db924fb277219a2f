//! Readers of what other programs write: arrays of NumPy, tables, images, checkpoints of PyTorch. Layer L7.
//!
//! All of them take a file for what it says only as far as its length allows: sizes are checked before memory is taken, nothing in
//! a file is executed, and damage is an error that says where.

#[cfg(feature = "readers")]
mod archive;
#[cfg(feature = "readers")]
mod csv;
mod idx;
#[cfg(feature = "images")]
mod image;
mod npy;
#[cfg(feature = "readers")]
mod npz;
#[cfg(feature = "readers")]
mod pickle;
mod raw;
#[cfg(feature = "readers")]
mod torch;

#[cfg(feature = "readers")]
pub use self::csv::{CsvFile, CsvOptions};
#[cfg(feature = "images")]
pub use self::image::{ImageMode, ImageOptions, decode_image, read_image, read_image_with, save_image};
pub use idx::read_idx;
pub use npy::{read_npy, save_npy};
#[cfg(feature = "readers")]
pub use npz::NpzFile;
#[cfg(feature = "readers")]
pub use torch::TorchFile;

use super::{failed, open};
use crate::error::Result;
use std::fs::File;
use std::path::Path;

/// Opens a regular file and says how long it is.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = open(path)?;
    let length = file.metadata().map_err(|e| failed("read", path, e))?.len();
    Ok((file, length))
}
