//! What is fuzzed: a function per format, which may return whatever it likes and must not panic, hang or fill the memory.
//! The tests call the same functions on the seeds (`tests/io_gguf.rs`).

use cotangent::io::{GenerationConfig, GgufFile, GgufType, ModelConfig, TensorFile};
use cotangent::{F32, F64, I64, Result};

/// Reads whatever a GGUF file holds: tokenizer, every tensor, hyper-parameters, tensors under their other names.
pub fn read_everything(file: &GgufFile) -> Result<()> {
    let config = file.config();
    file.tokenizer()?;
    for name in file.names() {
        let dtype = match file.kind(name)? {
            GgufType::I8 | GgufType::I16 | GgufType::I32 | GgufType::I64 => I64,
            GgufType::F64 => F64,
            _ => F32,
        };
        match file.tensor(name, dtype) {
            Err(e) if !e.is_dtype() => return Err(e),
            _ => {}
        }
    }
    config?;
    file.hf_tensors(F32)?;
    Ok(())
}

/// A GGUF file.
pub fn gguf(bytes: &[u8]) -> Result<()> {
    read_everything(&GgufFile::from_bytes(bytes.to_vec())?)
}

/// A safetensors file; these are read from disk only.
pub fn safetensors(bytes: &[u8]) -> Result<()> {
    let path = std::env::temp_dir().join(format!("cotangent-fuzz-{}.safetensors", std::process::id()));
    std::fs::write(&path, bytes)?;
    TensorFile::open(&path)?.tensors()?;
    Ok(())
}

/// A configuration of a model, or of sampling.
pub fn config(bytes: &[u8]) -> Result<()> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    let settings = GenerationConfig::parse(text).map(|_| ());
    if let ModelConfig::Decoder(c) = ModelConfig::parse(text)? {
        c.rope.frequencies(c.head_dim, c.context);
    }
    settings
}
