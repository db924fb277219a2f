//! Trains a small character-level GPT on a text, and shows whether its gradients flow.
//!
//! `cargo run --release --example train_gpt` trains nanoGPT's CPU configuration on the crate's own sources and docs;
//! `--data FILE` takes any UTF-8 text. `--help` lists the sizes.

mod args;
mod data;

use args::Args;
use clap::Parser;
use cotangent::diagnostics::HealthReport;
use cotangent::nn::{Activation, Gpt, GptConfig};
use cotangent::optim::{AdamW, Schedule, WarmupCosine};
use cotangent::{DType, Error, Grads, Key, ModuleExt, Result, Rng, Tensor, value_and_grad};
use data::Corpus;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// How a shell reports a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough (`| head`).
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            // Not `eprintln!`: it panics when nobody reads.
            let _ = writeln!(io::stderr(), "train_gpt: {e}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(e: &Error) -> bool {
    let source = std::error::Error::source(e).and_then(|s| s.downcast_ref::<io::Error>());
    source.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// `println!` that gives back what fails, instead of panicking.
fn say(line: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    Ok(writeln!(out, "{line}").and_then(|()| out.flush())?)
}

fn run(args: &Args) -> Result<()> {
    args.check()?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()
        .map_err(|e| Error::argument(format!("cannot start {} threads: {e}", args.threads)))?;
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
    let mut rng = Rng::seed(args.seed);
    let mut gpt = Gpt::new(&config, args.master(), rng.next_key())?.to_device(args.device)?;
    say(corpus.describe())?;
    say(format_args!(
        "GPT with {} parameters: {} layers, {} heads, width {}, context {}; {} on {}, {} threads",
        gpt.num_params(),
        args.layers,
        args.heads,
        args.width,
        args.context,
        args.dtype,
        args.device,
        rayon::current_num_threads()
    ))?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // The first Ctrl-C ends what is going on at the next step, batch or character; the second does not wait for that.
    let handler = move || {
        if flag.swap(true, Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    };
    // Without the handler Ctrl-C still ends the program, only less politely.
    if let Err(e) = ctrlc::set_handler(handler) {
        let _ = writeln!(io::stderr(), "train_gpt: Ctrl-C will not stop cleanly: {e}");
    }
    let outcome = train(args, &corpus, &mut gpt, &mut rng, &stop)?;
    report(args, &corpus, &gpt, outcome, &mut rng, &stop)
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
    let schedule = WarmupCosine { peak: args.lr, floor: args.floor(), warmup: args.warmup_steps(), end: args.steps };
    let mut adam = AdamW { betas: (0.9, args.beta2), weight_decay: args.weight_decay, ..AdamW::default() };
    let bar = ProgressBar::new(args.steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  eta {eta}") {
        bar.set_style(style);
    }
    let mut out = Outcome { steps: 0, clipped: 0, skipped: 0, grads: None, seconds: 0.0 };
    let (data_key, drop_key, eval_key) = (rng.next_key(), rng.next_key(), rng.next_key());
    for step in 0..args.steps {
        if step % args.eval_every == 0 {
            let loss = validate(args, corpus, gpt, eval_key, stop)?;
            bar.suspend(|| loss.map_or(Ok(()), |loss| say(format_args!("step {step:>5}  validation loss {loss:.4}"))))?;
        }
        if stop.load(Relaxed) {
            bar.suspend(|| say(format_args!("stopped by Ctrl-C after {step} steps")))?;
            break;
        }
        let started = Instant::now();
        let (x, y) = corpus.train_batch(args.batch, args.context, data_key.fold(step as u64))?;
        let (x, y) = (x.to_device(args.device)?, y.to_device(args.device)?);
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
    }
    bar.finish_and_clear();
    if let Some(loss) = validate(args, corpus, gpt, eval_key, stop)? {
        say(format_args!("step {:>5}  validation loss {loss:.4}", out.steps))?;
    }
    Ok(out)
}

/// The model in the type to compute in: a recorded cast, so gradients arrive in the parameters' own type.
fn compute(gpt: &Gpt, dtype: DType) -> Result<Gpt> {
    gpt.map(|_, t| if t.dtype() == dtype { Ok(t.clone()) } else { t.cast(dtype) })
}

/// Mean loss over the validation batches; `None` when Ctrl-C ended it.
fn validate(args: &Args, corpus: &Corpus, gpt: &Gpt, key: Key, stop: &AtomicBool) -> Result<Option<f64>> {
    let model = compute(gpt, args.dtype)?;
    let mut sum = 0.0;
    for i in 0..args.eval_batches {
        if stop.load(Relaxed) {
            return Ok(None);
        }
        let (x, y) = corpus.validation_batch(args.batch, args.context, key.fold(i as u64))?;
        let (x, y) = (x.to_device(args.device)?, y.to_device(args.device)?);
        sum += model.loss(&x, &y, None)?.item()?;
    }
    Ok(Some(sum / args.eval_batches as f64))
}

fn report(args: &Args, corpus: &Corpus, gpt: &Gpt, outcome: Outcome, rng: &mut Rng, stop: &AtomicBool) -> Result<()> {
    let steps = outcome.steps.max(1) as f64;
    say(format_args!(
        "{} steps in {:.1} s: {:.1} ms per step, {:.0} tokens/s",
        outcome.steps,
        outcome.seconds,
        1e3 * outcome.seconds / steps,
        steps * (args.batch * args.context) as f64 / outcome.seconds.max(1e-9)
    ))?;
    let clipped = 100.0 * outcome.clipped as f64 / steps;
    say(format_args!("clipped {clipped:.1} % of the steps, skipped {} with non-finite gradients", outcome.skipped))?;
    if let Some(grads) = &outcome.grads {
        say(format_args!("\nGradients of the last step (after clipping):\n{}", HealthReport::new(gpt, grads)?))?;
    }
    // After Ctrl-C nothing is begun any more; during the sampling it shows what there is.
    if stop.load(Relaxed) {
        return Ok(());
    }
    say(format_args!("Sample:\n{}", generate(args, corpus, gpt, rng, stop)?))
}

fn generate(args: &Args, corpus: &Corpus, gpt: &Gpt, rng: &mut Rng, stop: &AtomicBool) -> Result<String> {
    let model = compute(gpt, args.dtype)?;
    let key = rng.next_key();
    let mut tokens = vec![corpus.first_token()];
    for i in 0..args.sample {
        if stop.load(Relaxed) {
            break;
        }
        let window = &tokens[tokens.len().saturating_sub(args.context)..];
        let x = Tensor::from_slice(window, [1, window.len()])?.to_device(args.device)?;
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
