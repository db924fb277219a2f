//! Trains a small character-level GPT on a text, and shows whether its gradients flow.
//!
//! `cargo run --release --example train_gpt` trains nanoGPT's CPU configuration on the crate's own sources and docs;
//! `--data FILE` takes any UTF-8 text. `--help` lists the sizes.

mod data;

use clap::Parser;
use cotangent::diagnostics::HealthReport;
use cotangent::nn::{Activation, Gpt, GptConfig};
use cotangent::optim::{AdamW, Schedule, WarmupCosine};
use cotangent::{DType, Device, Grads, Key, ModuleExt, Result, Rng, Tensor, value_and_grad};
use data::Corpus;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

#[derive(Parser, Debug)]
#[command(about = "Train a small character-level GPT on a text")]
struct Args {
    /// UTF-8 text to learn; by default the crate's own sources and docs.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Sequences per step.
    #[arg(long, default_value_t = 12)]
    batch: usize,
    /// Characters per sequence.
    #[arg(long, default_value_t = 64)]
    context: usize,
    /// Transformer blocks.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Attention heads per block.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Dropout probability.
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// Biases in linear layers and norms.
    #[arg(long)]
    bias: bool,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Final learning rate.
    #[arg(long, default_value_t = 1e-4)]
    min_lr: f64,
    /// Warm-up steps.
    #[arg(long, default_value_t = 100)]
    warmup: usize,
    /// Weight decay of matrices.
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Second Adam moment's decay.
    #[arg(long, default_value_t = 0.99)]
    beta2: f64,
    /// Largest global gradient norm.
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Steps between validations.
    #[arg(long, default_value_t = 250)]
    eval_every: usize,
    /// Validation batches.
    #[arg(long, default_value_t = 20)]
    eval_batches: usize,
    /// Seed of weights, batches, dropout and sampling.
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// Type to compute in: f32, f64, bf16 or f16. Parameters stay f32 (f64 for f64).
    #[arg(long, default_value = "f32")]
    dtype: DType,
    /// Device to train on.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Characters to generate at the end.
    #[arg(long, default_value_t = 400)]
    sample: usize,
    /// Sampling temperature.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("train_gpt: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    check(args)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()
        .map_err(|e| cotangent::Error::argument(format!("cannot start {} threads: {e}", args.threads)))?;
    let corpus = Corpus::load(args.data.as_deref(), args.context)?;
    let config = GptConfig {
        vocabulary: corpus.vocabulary(),
        context: args.context,
        layers: args.layers,
        heads: args.heads,
        width: args.width,
        bias: args.bias,
        dropout: args.dropout,
        activation: Activation::Gelu,
    };
    let master = if args.dtype == cotangent::F64 { cotangent::F64 } else { cotangent::F32 };
    let mut rng = Rng::seed(args.seed);
    let mut gpt = Gpt::new(&config, master, rng.next_key())?;
    println!("{}", corpus.describe());
    println!(
        "GPT with {} parameters: {} layers, {} heads, width {}, context {}; {} on {}, {} threads",
        gpt.num_params(),
        args.layers,
        args.heads,
        args.width,
        args.context,
        args.dtype,
        args.device,
        rayon::current_num_threads()
    );
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Without the handler Ctrl-C still ends the program, only less politely.
    if let Err(e) = ctrlc::set_handler(move || flag.store(true, Relaxed)) {
        eprintln!("train_gpt: Ctrl-C will not stop cleanly: {e}");
    }
    let outcome = train(args, &corpus, &mut gpt, &mut rng, &stop)?;
    report(args, &corpus, &gpt, outcome, &mut rng)
}

fn check(args: &Args) -> Result<()> {
    let positive = [
        ("steps", args.steps),
        ("batch", args.batch),
        ("context", args.context),
        ("eval-every", args.eval_every),
        ("eval-batches", args.eval_batches),
    ];
    for (what, n) in positive {
        if n == 0 {
            return Err(cotangent::Error::argument(format!("--{what} must be at least 1")));
        }
    }
    if !args.dtype.is_float() {
        return Err(cotangent::Error::dtype(format!("--dtype {} cannot be trained in; use f32, f64, bf16 or f16", args.dtype)));
    }
    if args.temperature.is_nan() || args.temperature < 0.0 {
        return Err(cotangent::Error::argument("--temperature must not be negative"));
    }
    Ok(())
}

/// What training leaves behind for the report.
struct Outcome {
    steps: usize,
    clipped: usize,
    skipped: usize,
    grads: Option<Grads<Gpt>>,
    seconds: f64,
}

fn train(args: &Args, corpus: &Corpus, gpt: &mut Gpt, rng: &mut Rng, stop: &AtomicBool) -> Result<Outcome> {
    let schedule = WarmupCosine { peak: args.lr, floor: args.min_lr, warmup: args.warmup, end: args.steps };
    let mut adam = AdamW { betas: (0.9, args.beta2), weight_decay: args.weight_decay, ..AdamW::default() };
    let bar = ProgressBar::new(args.steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  eta {eta}") {
        bar.set_style(style);
    }
    let mut out = Outcome { steps: 0, clipped: 0, skipped: 0, grads: None, seconds: 0.0 };
    let (data_key, drop_key, eval_key) = (rng.next_key(), rng.next_key(), rng.next_key());
    for step in 0..args.steps {
        if step % args.eval_every == 0 {
            let loss = validate(args, corpus, gpt, eval_key)?;
            bar.suspend(|| println!("step {step:>5}  validation loss {loss:.4}"));
        }
        let started = Instant::now();
        let (x, y) = corpus.train_batch(args.batch, args.context, data_key.fold(step as u64))?;
        let key = (args.dropout > 0.0).then(|| drop_key.fold(step as u64));
        let (loss, mut grads) = value_and_grad(&*gpt, |m| compute(m, args.dtype)?.loss(&x, &y, key))?;
        let norm = grads.clip_global_norm(args.clip)?;
        adam.lr = schedule.at(step);
        if norm.finite {
            adam.step(gpt, &grads)?;
        } else {
            out.skipped += 1;
        }
        out.clipped += usize::from(norm.clipped);
        out.steps += 1;
        let elapsed = started.elapsed().as_secs_f64();
        out.seconds += elapsed;
        let rate = (args.batch * args.context) as f64 / elapsed;
        bar.set_message(format!("loss {:.4}  lr {:.2e}  |g| {:.3}  {rate:.0} tok/s", loss.item()?, adam.lr, norm.norm));
        bar.inc(1);
        out.grads = Some(grads);
        if stop.load(Relaxed) {
            bar.suspend(|| println!("stopped by Ctrl-C after step {}", step + 1));
            break;
        }
    }
    bar.finish_and_clear();
    let loss = validate(args, corpus, gpt, eval_key)?;
    println!("step {:>5}  validation loss {loss:.4}", out.steps);
    Ok(out)
}

/// The model in the type to compute in: a recorded cast, so gradients arrive in the parameters' own type.
fn compute(gpt: &Gpt, dtype: DType) -> Result<Gpt> {
    gpt.map(|_, t| if t.dtype() == dtype { Ok(t.clone()) } else { t.cast(dtype) })
}

fn validate(args: &Args, corpus: &Corpus, gpt: &Gpt, key: Key) -> Result<f64> {
    let model = compute(gpt, args.dtype)?;
    let mut sum = 0.0;
    for i in 0..args.eval_batches {
        let (x, y) = corpus.validation_batch(args.batch, args.context, key.fold(i as u64))?;
        sum += model.loss(&x, &y, None)?.item()?;
    }
    Ok(sum / args.eval_batches as f64)
}

fn report(args: &Args, corpus: &Corpus, gpt: &Gpt, outcome: Outcome, rng: &mut Rng) -> Result<()> {
    let steps = outcome.steps.max(1) as f64;
    println!(
        "{} steps in {:.1} s: {:.1} ms per step, {:.0} tokens/s",
        outcome.steps,
        outcome.seconds,
        1e3 * outcome.seconds / steps,
        steps * (args.batch * args.context) as f64 / outcome.seconds.max(1e-9)
    );
    println!("clipped {:.1} % of the steps, skipped {} with non-finite gradients", 100.0 * outcome.clipped as f64 / steps, outcome.skipped);
    if let Some(grads) = &outcome.grads {
        println!("\nGradients of the last step (after clipping):\n{}", HealthReport::new(gpt, grads)?);
    }
    println!("Sample:\n{}", generate(args, corpus, gpt, rng)?);
    Ok(())
}

fn generate(args: &Args, corpus: &Corpus, gpt: &Gpt, rng: &mut Rng) -> Result<String> {
    let model = compute(gpt, args.dtype)?;
    let key = rng.next_key();
    let mut tokens = vec![corpus.first_token()];
    for i in 0..args.sample {
        let window = &tokens[tokens.len().saturating_sub(args.context)..];
        let x = Tensor::from_slice(window, [1, window.len()])?;
        let logits = model.forward(&x, None)?.select(1, -1)?.to_f64_vec()?;
        tokens.push(draw(&logits, args.temperature, key.uniform_f64(i as u64)) as i64);
    }
    Ok(corpus.decode(&tokens[1..]))
}

/// Index drawn from softmax(logits / temperature) with a uniform number; the largest logit at temperature 0.
fn draw(logits: &[f64], temperature: f64, uniform: f64) -> usize {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
    if temperature == 0.0 {
        return best;
    }
    let weights: Vec<f64> = logits.iter().map(|l| ((l - logits[best]) / temperature).exp()).collect();
    let mut left = uniform * weights.iter().sum::<f64>();
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return i;
        }
    }
    best
}
