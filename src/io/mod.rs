//! Tensors and models in files. Layer L7; it knows no training.
//!
//! [`TensorFile`] reads safetensors, [`save_safetensors`] writes them, [`ModuleFile`] does both for a model.

mod atomic;
mod module_file;
mod safetensors;

pub(crate) use atomic::sweep_partial;
pub use atomic::write_atomically;
pub use module_file::{LoadReport, Misshaped, ModuleFile};
pub(crate) use safetensors::{checksum, write_tensors};
pub use safetensors::{TensorFile, save_safetensors};

use crate::error::Error;
use std::path::Path;

/// `cannot read FILE: why`.
pub(crate) fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display())).with_source(e)
}
