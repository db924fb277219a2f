//! What is fuzzed: a function per format, which may return whatever it likes and must not panic, hang or fill the memory.
//! The tests call the same functions on the seeds (`tests/files/gguf.rs`).

use cotangent::io::{GenerationConfig, GgufFile, GgufType, ModelConfig, TensorFile};
use cotangent::train::{Csv, Jsonl, MetricSink, Snapshot, Snapshots};
use cotangent::{F32, F64, I64, Result};
use std::path::PathBuf;

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

/// These bytes in a file: for what is read from disk only.
fn file(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("cotangent-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) -> Result<()> {
    TensorFile::open(file("any.safetensors", bytes)?)?.tensors()?;
    Ok(())
}

/// A snapshot, which must be what was written: whatever is taken for one is written back to the same bytes.
pub fn snapshot(bytes: &[u8]) -> Result<()> {
    let path = file("step-000000001.safetensors", bytes)?;
    if let Some(folder) = path.parent() {
        let _ = Snapshots::view(folder).newest();
    }
    let snapshot = Snapshot::load(&path)?;
    snapshot.save(&path)?;
    assert_eq!(Snapshot::load(&path)?.step, snapshot.step);
    Ok(())
}

/// Metrics of a run that continues: refused and as they were, or with a new row at their end.
pub fn metrics(bytes: &[u8]) -> Result<()> {
    let step = bytes.first().map_or(1, |b| usize::from(*b) + 1);
    let check = |path: &std::path::Path, opened: Result<()>| -> Result<()> {
        let now = std::fs::read(path)?;
        match opened {
            Ok(()) => assert!(now.ends_with(b"\n")),
            Err(_) => assert!(now == bytes, "a file that was refused was changed"),
        }
        Ok(())
    };
    let (csv, jsonl) = (file("any.csv", bytes)?, file("any.jsonl", bytes)?);
    check(&csv, Csv::open(&csv, &["loss"], step).and_then(|mut f| f.write(step, &[("loss", 1.0)])))?;
    check(&jsonl, Jsonl::open(&jsonl, step).and_then(|mut f| f.write(step, &[("loss", 1.0)])))
}

/// A tokenizer's file.
#[cfg(feature = "tokenizers")]
pub fn tokenizer(bytes: &[u8]) -> Result<()> {
    use cotangent::train::{Tokenizer, TokenizerFile};
    let tokenizer = TokenizerFile::open(file("tokenizer.json", bytes)?)?;
    let ids = tokenizer.encode("to be, or not to be: 1234 \u{e9}\n")?;
    tokenizer.decode(&ids)?;
    Ok(())
}

/// A configuration of a model, or of sampling.
pub fn config(bytes: &[u8]) -> Result<()> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    let settings = GenerationConfig::parse(text).map(|_| ());
    if let ModelConfig::Decoder(c) = ModelConfig::parse(text)? {
        let _ = c.rope.frequencies(c.head_dim, c.context);
    }
    settings
}
