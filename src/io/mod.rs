//! Tensors and models in files. Layer L7; it knows no training.
//!
//! [`TensorFile`] reads safetensors, [`WeightFiles`] those of a folder, [`save_safetensors`] writes them, [`ModuleFile`] does both for a model. [`GgufFile`] reads GGUF,
//! [`ModelConfig`] and [`GenerationConfig`] the configurations of Hugging Face. [`write_atomically`], [`open_file`] and [`read_file`] are the
//! functions by which files are opened.

mod atomic;
mod config;
mod folder;
mod gguf;
mod header;
mod json;
mod lock;
mod module_file;
mod open;
mod readers;
mod safetensors;

pub use atomic::write_atomically;
pub(crate) use atomic::{folder_of, free_name, replace, set_aside, sweep_partial, sync_folder, write_text};
pub use config::{
    BertConfig, ConfigActivation, DecoderConfig, DecoderFamily, GenerationConfig, Gpt2Config, ImageConfig, ImageNetwork, ModelConfig,
    RopeConfig, RopeScaling, Special, VitConfig,
};
pub use folder::WeightFiles;
pub use gguf::{GgufArray, GgufFile, GgufTokenizer, GgufType, GgufValue};
#[cfg(feature = "tokenizers")]
pub(crate) use json::Parts;
pub(crate) use json::{json, most_of_json};
pub(crate) use lock::{Busy, Lock, lock, lock_around, lock_run};
pub use module_file::{LoadReport, Misshaped, ModuleFile};
pub(crate) use open::{create_new, is_of_kernel, open, open_to_append, read};
pub use open::{open_file, read_file};
#[cfg(feature = "readers")]
pub use readers::{CsvFile, CsvOptions, NpzFile, TorchFile};
#[cfg(feature = "images")]
pub use readers::{ImageMode, ImageOptions, decode_image, read_image, read_image_with, save_image};
pub use readers::{read_idx, read_npy, save_npy};
pub(crate) use safetensors::{Seal, write_sealed, write_tensors};
pub use safetensors::{TensorFile, save_safetensors};

use crate::error::Error;
use std::panic::Location;
use std::path::Path;

/// Entry of the header of a run's snapshot.
pub(crate) const SNAPSHOT: &str = "cotangent.snapshot";

/// Names the op and the caller's line. A location inside this crate is replaced by the caller's; one in the caller's own code, in a
/// closure, stays.
pub(crate) fn at_callers_line(e: Error, op: &'static str, at: &'static Location<'static>) -> Error {
    let sources = &file!()[..file!().len() - "io/mod.rs".len()];
    let inside = e.location().is_some_and(|l| l.file().starts_with(sources));
    let e = e.in_op(op, at);
    if inside { e.called_at(at) } else { e }
}

/// Makes a folder and those around it, where there is none. What is there and is no folder is named.
pub(crate) fn create_folder(folder: &Path) -> crate::Result<()> {
    if let Some(file) = folder.ancestors().find(|f| f.exists() && !f.is_dir()) {
        return Err(Error::io(format!("cannot create the folder {}: {} is a file", folder.display(), file.display())));
    }
    std::fs::create_dir_all(folder).map_err(|e| failed("create", folder, e))
}

/// `cannot read FILE: why`.
pub(crate) fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    let message = format!("cannot {what} {}", path.display());
    let out_of_memory = e.kind() == std::io::ErrorKind::OutOfMemory;
    if out_of_memory { Error::out_of_memory(message) } else { Error::io(message) }.with_source(e)
}
