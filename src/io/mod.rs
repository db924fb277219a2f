//! Tensors and models in files. Layer L7; it knows no training.
//!
//! [`TensorFile`] reads safetensors, [`save_safetensors`] writes them, [`ModuleFile`] does both for a model. [`GgufFile`] reads GGUF,
//! [`ModelConfig`] and [`GenerationConfig`] the configurations of Hugging Face.

mod atomic;
mod config;
mod gguf;
mod module_file;
mod safetensors;

pub(crate) use atomic::sweep_partial;
pub use atomic::write_atomically;
pub use config::{
    Activation, BertConfig, DecoderConfig, DecoderFamily, GenerationConfig, Gpt2Config, ModelConfig, RopeConfig, RopeScaling, Special,
};
pub use gguf::{GgufArray, GgufFile, GgufTokenizer, GgufType, GgufValue};
pub use module_file::{LoadReport, Misshaped, ModuleFile};
pub use safetensors::{TensorFile, save_safetensors};
pub(crate) use safetensors::{checksum, write_tensors};

use crate::error::Error;
use std::path::Path;

/// `cannot read FILE: why`.
pub(crate) fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display())).with_source(e)
}
