//! Tensors and models in files. Layer L7; it knows no training.
//!
//! [`TensorFile`] reads safetensors, [`WeightFiles`] those of a folder, [`save_safetensors`] writes them, [`ModuleFile`] does both for a model. [`GgufFile`] reads GGUF,
//! [`ModelConfig`] and [`GenerationConfig`] the configurations of Hugging Face.

mod atomic;
mod config;
mod folder;
mod gguf;
mod module_file;
mod safetensors;

pub use atomic::write_atomically;
pub(crate) use atomic::{lock, sweep_partial};
pub use config::{
    Activation, BertConfig, DecoderConfig, DecoderFamily, GenerationConfig, Gpt2Config, ModelConfig, RopeConfig, RopeScaling, Special,
};
pub use folder::WeightFiles;
pub use gguf::{GgufArray, GgufFile, GgufTokenizer, GgufType, GgufValue};
pub use module_file::{LoadReport, Misshaped, ModuleFile};
pub use safetensors::{TensorFile, save_safetensors};
pub(crate) use safetensors::{checksum, write_tensors};

use crate::error::Error;
use std::panic::Location;
use std::path::Path;

/// Names the op and the caller's line: also where a part of this crate has named the line from which another part called it. A
/// line of the caller's own, in a closure of his, stays.
pub(crate) fn at_callers_line(e: Error, op: &'static str, at: &'static Location<'static>) -> Error {
    let sources = &file!()[..file!().len() - "io/mod.rs".len()];
    let inside = e.location().is_some_and(|l| l.file().starts_with(sources));
    let e = e.in_op(op, at);
    if inside { e.called_at(at) } else { e }
}

/// `cannot read FILE: why`.
pub(crate) fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display())).with_source(e)
}
