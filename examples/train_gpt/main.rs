//! Trains a small character-level GPT on a text, and shows whether its gradients flow.
//!
//! `cargo run --release --example train_gpt` trains nanoGPT's CPU configuration on the crate's own sources and docs;
//! `--data FILE` takes any UTF-8 text. `--out FOLDER` keeps snapshots and metrics, `--resume` continues. `--help` lists the
//! sizes.

mod args;
mod data;
#[path = "../shared/run.rs"]
mod run;

use args::Args;
use clap::Parser;
use cotangent::diagnostics::colored;
use cotangent::nn::{Activation, Gpt, GptConfig};
use cotangent::optim::{AdamW, WarmupCosine};
use cotangent::train::{
    Csv, Event, HealthWatch, Jsonl, Options, Order, Outcome, Prefetch, Progress, Sampling, Snapshots, TensorBoard, Tokenizer, Trainer,
    Windows, generate, mean_loss, record,
};
use cotangent::{DType, Error, Module, Result, Rng, Tensor};
use data::Corpus;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const NAME: &str = "train_gpt";

fn main() -> ExitCode {
    run::exit(NAME, train(&Args::parse()))
}

/// `println!` that does not mind when nobody reads.
fn say(line: impl Display) {
    run::say(NAME, line);
}

fn train(args: &Args) -> Result<()> {
    args.check()?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global();
    threads.map_err(|e| Error::argument(format!("cannot start {} threads: {e}", args.threads)))?;
    let corpus = Corpus::load(args.data.as_deref(), args.context)?;
    let &Args { context, layers, heads, width, bias, dropout, .. } = args;
    let vocabulary = corpus.characters.vocabulary();
    let config = GptConfig { vocabulary, context, layers, heads, width, bias, dropout, activation: Activation::Gelu };
    let mut rng = Rng::seed(args.seed);
    let gpt = Gpt::new(&config, args.master(), rng.next_key())?.to_device(args.device)?;
    say(corpus.describe());
    let (n, cores) = (gpt.num_params(), rayon::current_num_threads());
    say(format_args!(
        "GPT with {n} parameters: {layers} layers, {heads} heads, width {width}, context {context}; {} on {}, {cores} threads",
        args.dtype, args.device
    ));

    let (data_key, drop_key, eval_key) = (rng.next_key(), rng.next_key(), rng.next_key());
    let validation = Windows::new(corpus.validation.clone(), args.batch, context, Order::Random, eval_key)?;
    let train = Prefetch::new(Windows::new(corpus.train.clone(), args.batch, context, Order::Random, data_key)?, 2);
    let there = |t: &Tensor| t.to_device(args.device);
    let (stop, bar) = (run::stop_on_signals(NAME), Progress::new(args.batch * context, "tok"));
    let adam = AdamW { betas: (0.9, args.beta2), weight_decay: args.weight_decay, ..AdamW::default() };
    let mut trainer = Trainer::new(gpt, adam);
    trainer.options = Options {
        steps: args.steps,
        clip: Some(args.clip),
        evaluate_every: args.eval_every,
        patience: args.patience(),
        quiet: true, // says it itself
        ..Options::default()
    };
    trainer.schedule = Some(Box::new(WarmupCosine { peak: args.lr, floor: args.floor(), warmup: args.warmup_steps(), end: args.steps }));
    trainer.key = drop_key;
    trainer.settings = args.settings(corpus.identity());
    trainer.stop = Arc::clone(&stop);
    if let Some(folder) = &args.out {
        open_folder(args, folder, &mut trainer)?;
    }
    let health = HealthWatch::new(args.health_every);
    trainer.on(health.callback());
    trainer.on(bar.callback());
    trainer.on(|event| {
        match event {
            Event::Evaluated { step, loss, .. } => bar.suspend(|| say(format_args!("step {step:>5}  validation loss {loss:.4}"))),
            // On the other stream: also seen where the output goes to a file.
            Event::Skipped { step, loss, norm, .. } => bar.suspend(|| {
                let _ = writeln!(io::stderr(), "{NAME}: step {step} is left out: loss {loss}, gradient norm {norm}");
            }),
            Event::Stopped { step } => bar.suspend(|| say(format_args!("stopped by a signal after {step} steps"))),
            _ => {}
        }
        Ok(())
    });
    trainer.evaluate_with(|gpt| {
        let model = compute(gpt, args.dtype)?;
        mean_loss(&validation, args.eval_batches, &stop, |(x, y)| model.loss(&there(x)?, &there(y)?, None))
    });
    let outcome =
        trainer.run(&train, |m, (x, y), key| compute(m, args.dtype)?.loss(&there(x)?, &there(y)?, (dropout > 0.0).then_some(key)))?;
    bar.finish();
    report(args, &outcome, &health)?;
    // After a signal nothing is begun any more; during the sampling it shows what there is. Nor is a sample drawn for nobody.
    if stop.load(Relaxed) || !run::is_heard() {
        return Ok(());
    }
    let model = compute(&trainer.model, args.dtype)?;
    let sampling = Sampling { temperature: args.temperature, ..Sampling::default() };
    let sample =
        generate(&[corpus.first_token()], args.sample, context, sampling, rng.next_key(), &stop, |x| model.forward(&there(x)?, None))?;
    say(format_args!("Sample:\n{}", corpus.characters.decode(&sample)?));
    Ok(())
}

/// Snapshots and metrics, continued where the newest snapshot is. The snapshots first: they take the folder for this process.
fn open_folder(args: &Args, folder: &Path, trainer: &mut Trainer<'_, Gpt, AdamW>) -> Result<()> {
    let snapshots = Snapshots::open(folder, args.save_every)?;
    if !args.resume && snapshots.files()?.pop().is_some() {
        return Err(Error::argument(format!("{} has snapshots of a run: add --resume, or take another folder", folder.display())));
    }
    trainer.snapshots = Some(snapshots);
    if args.resume
        && let Some(resumed) = trainer.resume().map_err(as_begun)?
    {
        for (path, e) in &resumed.damaged {
            let _ = writeln!(io::stderr(), "{NAME}: passed over {}, which is kept as .damaged: {e}", path.display());
        }
        say(format_args!("continues after {} steps", trainer.step()));
    }
    let step = trainer.step();
    trainer.on(record(Csv::open(folder.join("metrics.csv"), &Csv::COLUMNS, step)?));
    trainer.on(record(Jsonl::open(folder.join("metrics.jsonl"), step)?));
    trainer.on(record(TensorBoard::create(folder.join("tensorboard"), step)?));
    Ok(())
}

/// What is to be typed, where the library names its own settings.
fn as_begun(e: Error) -> Error {
    match e.is_argument() {
        true => Error::argument(format!(
            "{e}; --resume goes on with the options that the run began with, --steps, --lr and --warmup among them"
        )),
        false => e,
    }
}

/// The model in the type to compute in: a recorded cast, so gradients arrive in the parameters' own type.
fn compute(gpt: &Gpt, dtype: DType) -> Result<Gpt> {
    gpt.map(|_, t| if t.dtype() == dtype { Ok(t.clone()) } else { t.cast(dtype) })
}

/// Speed, clipping, and the gradients' health over the run, by layer.
fn report(args: &Args, outcome: &Outcome<Gpt>, health: &HealthWatch) -> Result<()> {
    say(args.speed(outcome.made, outcome.seconds));
    let clipped = 100.0 * outcome.clipped as f64 / outcome.steps.max(1) as f64;
    say(format_args!("clipped {clipped:.1} % of the steps, skipped {} with non-finite gradients", outcome.skipped));
    let history = health.history();
    let Some(first) = history.steps.first() else { return Ok(()) };
    say(format_args!("\nGradients over the run:\n{}", colored(&history)));
    if let Some(folder) = &args.out {
        // A continued run has a page of its own.
        let name = if first.step == 0 { "health.html".to_owned() } else { format!("health-from-{}.html", first.step) };
        let page = folder.join(name);
        history.write_html(&page)?;
        say(format_args!("report: {}", page.display()));
    }
    Ok(())
}
