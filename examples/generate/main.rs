//! Continues a text with a model that others trained: a folder of Hugging Face, or a GGUF file.
//!
//! `cargo run --release --features tokenizers --example generate -- --model FOLDER --prompt "Once upon a time"`

#[path = "../shared/mod.rs"]
mod shared;

use clap::Parser;
use cotangent::models::{GenerateOptions, Generator};
use cotangent::train::Sampling;
use cotangent::{Key, Result};
use std::io::{self, Write};
use std::process::ExitCode;

/// Continues a text.
#[derive(Parser)]
#[command(after_help = "What is not given is taken from the model's generation_config.json. Speed and memory go to the error stream.")]
struct Args {
    #[command(flatten)]
    open: shared::ModelArgs,
    /// Text to continue.
    #[arg(long)]
    prompt: String,
    /// Tokens to write, at most.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw from so many likeliest tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Draw from tokens at least so likely, relative to the likeliest.
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Makes tokens that occurred less likely; 1 does nothing.
    #[arg(long, value_name = "F")]
    repetition_penalty: Option<f64>,
    /// Text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Draws the tokens: the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the mean log-probability of the prompt's tokens instead of continuing it.
    #[arg(long)]
    score: bool,
}

fn main() -> ExitCode {
    shared::exit("generate", run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let loaded = args.open.open()?;
    let tokenizer = shared::need_tokenizer(&loaded, &args.open.model)?;
    let mut generator = Generator::of(&loaded);
    let own = &generator.options;
    let sampling = Sampling {
        // Any option of sampling asks for it.
        temperature: args.temperature.unwrap_or(match own.sampling.temperature {
            0.0 if args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some() => 1.0,
            t => t,
        }),
        top_k: args.top_k.or(own.sampling.top_k),
        top_p: args.top_p.unwrap_or(own.sampling.top_p),
        min_p: args.min_p.unwrap_or(own.sampling.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(own.sampling.repetition_penalty),
    };
    generator.options = GenerateOptions {
        sampling,
        key: Key::new(args.seed),
        stop_texts: own.stop_texts.iter().chain(&args.stop).cloned().collect(),
        max_tokens: args.max_tokens.unwrap_or(own.max_tokens),
        max_length: own.max_length.filter(|_| args.max_tokens.is_none()),
        ..generator.options
    };
    let prompt = tokenizer.encode_prompt(&args.prompt)?;
    let mut out = io::stdout().lock();
    if args.score {
        let scores = generator.score(&prompt)?;
        let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
        return Ok(writeln!(out, "{} tokens, mean log-probability {mean:.4}, perplexity {:.3}", scores.len(), (-mean).exp())?);
    }
    let mut stream = generator.stream(&prompt)?;
    write!(out, "{}", args.prompt)?;
    for step in stream.by_ref() {
        write!(out, "{}", step?.text)?;
        out.flush()?;
    }
    writeln!(out)?;
    shared::summary(stream.speed(), stream.cache_bytes())
}
