//! A conversation in the terminal with a model that others trained.
//!
//! `cargo run --release --features tokenizers --example chat -- --model FOLDER`. Lines are read until the end of the input; an empty line
//! ends it too.

#[path = "../shared/mod.rs"]
mod shared;

use clap::Parser;
use cotangent::models::{Generator, Loaded, Past, Speed};
use cotangent::{Error, Key, Result};
use minijinja::{Environment, ErrorKind, context};
use serde_json::{Value, json};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

/// Bytes of what is said at a time, at most: an input without line breaks has no end.
const LONGEST_LINE: u64 = 1 << 20;

/// Talks with a model.
#[derive(Parser)]
#[command(after_help = "The model's chat template says how a conversation is written; one without it is given plain lines.")]
struct Args {
    #[command(flatten)]
    open: shared::ModelArgs,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer, at most.
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token. Without it, as the model's authors sample.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draws the tokens.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    shared::exit("chat", run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let loaded = args.open.open()?;
    let tokenizer = shared::need_tokenizer(&loaded, &args.open.model)?;
    let mut generator = Generator::of(&loaded);
    generator.options.max_tokens = args.max_tokens;
    generator.options.max_length = None; // of each answer, not of the conversation
    if let Some(t) = args.temperature {
        generator.options.sampling.temperature = t;
    }
    if loaded.chat_template.is_none() {
        writeln!(io::stderr(), "the model has no chat template: it is given plain lines")?;
        generator.options.stop_texts = vec!["\nUser:".to_owned()];
    }
    let mut messages: Vec<Value> = args.system.iter().map(|s| json!({"role": "system", "content": s})).collect();
    let (mut total, mut cache, mut past) = (Speed::default(), 0, Past::default());
    let asks = io::stdin().is_terminal();
    let mut out = io::stdout().lock();
    for turn in 0.. {
        if asks {
            write!(out, "> ")?;
            out.flush()?;
        }
        let mut line = String::new();
        io::stdin().lock().take(LONGEST_LINE).read_line(&mut line)?;
        if line.len() as u64 == LONGEST_LINE {
            return Err(Error::argument(format!("a line has {LONGEST_LINE} bytes or more")));
        }
        if line.trim().is_empty() {
            break;
        }
        messages.push(json!({"role": "user", "content": line.trim_end()}));
        // The template writes special tokens itself: nothing is added.
        let prompt = tokenizer.encode(&written(&loaded, &messages)?)?;
        generator.options.key = Key::new(args.seed).fold(turn);
        // What the conversation was until now has been computed.
        let mut stream = generator.stream_after(std::mem::take(&mut past), &prompt)?;
        let mut answer = String::new();
        for step in stream.by_ref() {
            let text = step?.text;
            write!(out, "{text}")?;
            out.flush()?;
            answer.push_str(&text);
        }
        writeln!(out)?;
        let speed = stream.speed();
        total = Speed {
            prompt: total.prompt + speed.prompt,
            prefill: total.prefill + speed.prefill,
            tokens: total.tokens + speed.tokens,
            decode: total.decode + speed.decode,
        };
        cache = cache.max(stream.cache_bytes());
        past = stream.into_past();
        messages.push(json!({"role": "assistant", "content": answer}));
    }
    shared::summary(total, cache)
}

/// The conversation so far, as the model wants it.
fn written(loaded: &Loaded, messages: &[Value]) -> Result<String> {
    let Some(template) = &loaded.chat_template else {
        let name = |role: &str| match role {
            "user" => "User",
            "assistant" => "Assistant",
            _ => "System",
        };
        let lines =
            messages.iter().map(|m| format!("{}: {}\n", name(m["role"].as_str().unwrap_or("")), m["content"].as_str().unwrap_or("")));
        return Ok(lines.collect::<String>() + "Assistant:");
    };
    let wrong = |e: minijinja::Error| Error::corrupt_file(format!("the chat template cannot be used: {e:#}"));
    let mut jinja = Environment::new();
    // As Hugging Face renders templates: Python's methods, no empty lines of blocks, a way to refuse a conversation.
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.set_trim_blocks(true);
    jinja.set_lstrip_blocks(true);
    jinja.add_function("raise_exception", |why: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
    });
    jinja.add_template("chat", template).map_err(wrong)?;
    let text = |name: &str| loaded.special_texts.iter().find(|(n, _)| n == name).map(|(_, t)| t.as_str()).unwrap_or_default();
    let chat = jinja.get_template("chat").map_err(wrong)?;
    chat.render(context! { messages, add_generation_prompt => true, bos_token => text("bos_token"), eos_token => text("eos_token") })
        .map_err(wrong)
}
