//! What the examples with models share: opening a model with a line of progress, and the end of a program.
#![allow(dead_code)] // each example uses its part

use cotangent::models::{LoadOptions, Loaded, Speed, load};
use cotangent::{BF16, DType, Device, Error, F16, F32, F64, Module, Result, U8};
use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Reports how the program ended: 0, or 2 with one line. Output that nobody reads any more (`| head`) is no failure.
pub fn exit(name: &str, result: Result<()>) -> ExitCode {
    let Err(e) = result else { return ExitCode::SUCCESS };
    let source = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<io::Error>());
    if source.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "{name}: {e}");
    ExitCode::from(2)
}

/// A dtype by its name on the command line.
pub fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f64" => Ok(F64),
        "f32" => Ok(F32),
        "bf16" => Ok(BF16),
        "f16" => Ok(F16),
        other => Err(format!("`{other}` is none of f64, f32, bf16 and f16")),
    }
}

/// A device by its name on the command line.
pub fn device(text: &str) -> Result<Device, String> {
    match text.strip_prefix("cuda:").map(str::parse) {
        _ if text == "cpu" => Ok(Device::Cpu),
        Some(Ok(n)) => Device::cuda(n).map_err(|e| e.to_string()),
        _ => Err(format!("`{text}` is neither cpu nor cuda:0")),
    }
}

/// The model of a command line, and how it is opened.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Folder with config.json and model.safetensors, or a GGUF file.
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Type of the weights: f32, bf16, f16; without it, the file's.
    #[arg(long, value_parser = dtype)]
    pub dtype: Option<DType>,
    /// Keep matrices that a GGUF file has in Q8_0 or Q4_0 as they are: less memory.
    #[arg(long)]
    pub packed: bool,
    /// cpu, or cuda:0.
    #[arg(long, value_parser = device, default_value = "cpu")]
    pub device: Device,
}

impl ModelArgs {
    /// Opens the model, with progress on the error stream.
    pub fn open(&self) -> Result<Loaded> {
        open(&self.model, self.dtype, self.device, self.packed)
    }
}

/// Opens a model, with progress on the error stream.
pub fn open(path: &Path, dtype: Option<DType>, device: Device, packed: bool) -> Result<Loaded> {
    let began = Instant::now();
    let live = io::stderr().is_terminal();
    let mut progress = |done: usize, all: usize| {
        if live {
            let _ = write!(io::stderr(), "\rloading {done} of {all} tensors");
        }
    };
    let loaded = load(path, LoadOptions { dtype, device, packed, progress: Some(&mut progress) })?;
    let end = if live { "\r" } else { "" };
    let all = loaded.model.named_tensors();
    let mebibytes = all.iter().map(|(_, t)| t.numel() * t.dtype().size()).sum::<usize>() as f64 / (1 << 20) as f64;
    let kinds: BTreeSet<&str> = all.iter().map(|(_, t)| if t.dtype() == U8 { "blocks" } else { t.dtype().name() }).collect();
    let (kinds, seconds) = (kinds.into_iter().collect::<Vec<_>>().join(" and "), began.elapsed().as_secs_f64());
    writeln!(io::stderr(), "{end}loaded {} tensors, {mebibytes:.1} MiB as {kinds}, in {seconds:.2} s", all.len())?;
    for (name, from, to) in loaded.report.converted.iter().take(1) {
        writeln!(io::stderr(), "converted {} tensors, {name} from {from} to {to}", loaded.report.converted.len())?;
    }
    for note in &loaded.report.notes {
        writeln!(io::stderr(), "{note}")?;
    }
    Ok(loaded)
}

/// The tokenizer of a model, or an error that says where it was looked for.
pub fn need_tokenizer<'a>(loaded: &'a Loaded, path: &Path) -> Result<&'a (dyn cotangent::train::Tokenizer + Send + Sync)> {
    loaded.tokenizer.as_deref().ok_or_else(|| {
        let why = loaded.tokenizer_refused.as_deref().unwrap_or("a tokenizer.json in the folder, or BPE in a GGUF file");
        Error::argument(format!("{} has no tokenizer that is known here: {why}", path.display()))
    })
}

/// The largest resident memory so far, where the system tells.
pub fn peak_memory() -> Option<String> {
    let status = String::from_utf8(cotangent::io::read_file("/proc/self/status", 1 << 20).ok()?).ok()?;
    let kib: f64 = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    Some(format!("{:.0} MiB", kib / 1024.0))
}

/// Speed and memory on the error stream.
pub fn summary(speed: Speed, cache_bytes: usize) -> Result<()> {
    // Nothing was computed, so nothing was fast.
    let part = |tokens: usize, rate: f64| if rate > 0.0 { format!("{tokens} tokens, {rate:.1} tokens/s") } else { "nothing".to_owned() };
    let mut line = format!(
        "prefill {}; decode {}; cache {:.1} MiB",
        part(speed.prompt, speed.prefill_rate()),
        part(speed.tokens, speed.decode_rate()),
        cache_bytes as f64 / (1 << 20) as f64
    );
    if let Some(peak) = peak_memory() {
        line.push_str(&format!("; memory {peak} at most"));
    }
    Ok(writeln!(io::stderr(), "\n{line}")?)
}
