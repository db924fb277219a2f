//! Trains a model that others trained on a text of yours: all of it, or changes of low rank (LoRA).
//!
//! `cargo run --release --features tokenizers --example finetune -- --model FOLDER --data FILE --out FOLDER`

#[path = "../shared/run.rs"]
mod run;
#[path = "../shared/mod.rs"]
mod shared;

use clap::Parser;
use cotangent::io::{ModuleFile, read_file, write_atomically};
use cotangent::models::{LanguageModel, Lora, add_lora, merge_lora};
use cotangent::optim::{AdamW, Schedule, WarmupCosine};
use cotangent::train::{Batches, Order, Tokens, Windows};
use cotangent::{BF16, DType, Error, F32, Key, Module, Result, Tensor, value_and_grad};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Fine-tunes a model on a text.
#[derive(Parser)]
#[command(
    after_help = "--out gets the whole model under Hugging Face's names, changes merged, with the configuration and tokenizer of the \
    old: generate, transformers and others open it."
)]
struct Args {
    /// Folder with config.json, model.safetensors and tokenizer.json.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// UTF-8 text to train on.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// New folder for the result.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Rank of the changes; 0 trains every parameter.
    #[arg(long, value_name = "R", default_value_t = 8)]
    rank: usize,
    /// The changes are multiplied by this over the rank.
    #[arg(long, value_name = "A", default_value_t = 16.0)]
    alpha: f64,
    /// Beside which matrices changes stand: those whose name contains one of these, separated by commas.
    #[arg(long, value_name = "NAMES", default_value = "q_proj,k_proj,v_proj,o_proj,c_attn")]
    targets: String,
    /// Steps.
    #[arg(long, default_value_t = 100, value_parser = at_least_one)]
    steps: usize,
    /// Windows of a step.
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    batch: usize,
    /// Tokens of a window; without it, 128 or the model's context.
    #[arg(long, value_parser = at_least_one)]
    context: Option<usize>,
    /// Highest learning rate; without it, 1e-4 for LoRA and 2e-5 for every parameter.
    #[arg(long)]
    lr: Option<f64>,
    /// Type of the frozen weights with LoRA: f32, bf16 or f16.
    #[arg(long, value_parser = shared::dtype)]
    dtype: Option<DType>,
    /// Draws batches and first values.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a whole number from 1 on is needed".to_owned())
}

const NAME: &str = "finetune";

fn main() -> ExitCode {
    run::exit(NAME, finetune(&Args::parse()))
}

/// `println!` that does not mind when nobody reads.
fn say(line: impl Display) {
    run::say(NAME, line);
}

fn finetune(args: &Args) -> Result<()> {
    if args.out.exists() {
        return Err(Error::argument(format!("{} exists already: take a new folder", args.out.display())));
    }
    if !args.model.is_dir() {
        return Err(Error::argument(format!("{} is not a folder: quantised files cannot be trained", args.model.display())));
    }
    let text = String::from_utf8(read_file(&args.data, u64::MAX)?)
        .map_err(|e| Error::corrupt_file(format!("{} is not UTF-8 text", args.data.display())).with_source(e))?;
    // Every parameter is trained in f32: steps are too small for half types.
    let dtype = if args.rank == 0 { Some(F32) } else { args.dtype };
    let loaded = shared::open(&args.model, dtype, cotangent::Device::Cpu, false)?;
    let tokenizer = shared::need_tokenizer(&loaded, &args.model)?;
    let ids = tokenizer.encode(&text)?;
    if ids.len() < 3 {
        return Err(Error::argument(format!("{} has {} tokens: a window and its next token need 3", args.data.display(), ids.len())));
    }
    let context = args.context.unwrap_or(128).min(loaded.model.context()).min(ids.len().saturating_sub(2));
    let tokens = Tokens::from(ids.clone());
    let batches = Windows::new(tokens, args.batch, context, Order::Random, Key::new(args.seed).fold(0))?;
    let mut model = loaded.model.clone();
    if args.rank > 0 {
        let targets: Vec<&str> = args.targets.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
        let lora = Lora { rank: args.rank, alpha: args.alpha, key: Key::new(args.seed).fold(1), ..Lora::default() };
        let n = add_lora(&mut model, lora, |name, t| t.rank() == 2 && targets.iter().any(|x| name.contains(x)))?;
        say(format_args!("changes of rank {} beside {n} matrices", args.rank));
    }
    let trained: usize = model.trainable().iter().map(|(_, t)| t.numel()).sum();
    say(format_args!("{trained} of {} parameters are trained; {} tokens, windows of {context}", model.num_params(), ids.len()));
    // Before the first step: a folder that cannot be written would cost the whole run. It must be new: another process may have made it.
    let parent = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).and_then(|()| std::fs::create_dir(&args.out)).map_err(|e| unwritable(&args.out, e))?;
    train(args, &mut model, &batches, trained)?;
    save(args, &merge_lora(&model)?, &loaded)
}

fn train(args: &Args, model: &mut LanguageModel, batches: &impl Batches<Batch = (Tensor, Tensor)>, trained: usize) -> Result<()> {
    let peak = args.lr.unwrap_or(if args.rank > 0 { 1e-4 } else { 2e-5 });
    let schedule = WarmupCosine { peak, floor: peak / 10.0, warmup: (args.steps / 10).max(1), end: args.steps.max(2) };
    schedule.check()?;
    let mut adam = AdamW { weight_decay: 0.01, ..AdamW::default() };
    let (began, mut first, mut last, mut made) = (Instant::now(), 0.0, 0.0, 0);
    let stop = run::stop_on_signals(NAME);
    for step in 0..args.steps {
        if stop.load(Relaxed) {
            say(format_args!("stopped by a signal after {step} steps: the model is saved as it is"));
            break;
        }
        let (x, y) = batches.batch(step as u64)?;
        adam.set_learning_rate(schedule.at(step))?;
        let (loss, mut grads) = value_and_grad(&*model, |m| m.forward(&x)?.cast(F32)?.cross_entropy(&y))?;
        let norm = grads.clip_global_norm(1.0)?.norm;
        adam.step(model, &grads)?;
        last = loss.item()?;
        if step == 0 {
            first = last;
            let bytes: usize = grads.named().iter().map(|(_, g)| g.numel() * g.dtype().size()).sum();
            say(format_args!("gradients take {:.1} MiB for {trained} parameters", bytes as f64 / (1 << 20) as f64));
        }
        if step % 10 == 0 || step + 1 == args.steps {
            say(format_args!("step {step:>5}  loss {last:.4}  gradient norm {norm:.3}"));
        }
        made += 1;
    }
    let rate = made as f64 * args.batch as f64 / began.elapsed().as_secs_f64();
    say(format_args!(
        "loss {first:.4} -> {last:.4}; {rate:.1} windows/s; memory {} at most",
        shared::peak_memory().unwrap_or_else(|| "?".to_owned())
    ));
    Ok(())
}

fn unwritable(path: &Path, e: std::io::Error) -> Error {
    Error::io(format!("cannot write {}", path.display())).with_source(e)
}

/// The merged model with the files beside it.
fn save(args: &Args, model: &LanguageModel, loaded: &cotangent::models::Loaded) -> Result<()> {
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let (from, to) = (args.model.join(name), args.out.join(name));
        if from.exists() {
            let bytes = read_file(&from, 1 << 30)?;
            write_atomically(&to, |out| out.write_all(&bytes).map_err(|e| unwritable(&to, e)))?;
        }
    }
    // As the old weights were stored.
    let stored = loaded.report.converted.first().map(|(_, from, _)| *from).filter(|d| *d == BF16);
    let model = stored.map_or(Ok(model.clone()), |d| model.cast(d))?;
    model.save(args.out.join("model.safetensors"))?;
    say(format_args!("saved {}", args.out.display()));
    Ok(())
}
