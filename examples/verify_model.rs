//! Proves a model equal to Hugging Face's: replays the `fixture.safetensors` in its folder and prints each error beside its tolerance.
//!
//! `cargo run --release --example verify_model -- FOLDER`. The exit code is 0 when every check passed, 1 when one failed (the first module
//! that differs is named), 2 when a folder cannot be read.

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compares models with what Hugging Face computed from them.
#[derive(Parser)]
#[command(after_help = "FOLDER holds config.json, model.safetensors (or shards) and fixture.safetensors with the reference's numbers: \
    input_ids, targets, logits, loss_f64, and what else there is of hidden.*, l0.*, grad.*, adamw.*, train.*, gen.*, leftpad.* and bf16.*. \
    Every other model.*.safetensors and config.*.json in it is compared too.")]
struct Args {
    /// Folders of models.
    #[arg(required = true, value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let (mut passed, mut read) = (true, true);
    for folder in &Args::parse().folders {
        match cotangent::models::verify(folder) {
            Ok(report) => {
                println!("{}\n{report}", folder.display());
                passed &= report.passed();
            }
            Err(e) => {
                eprintln!("verify_model: {}: {e}", folder.display());
                read = false;
            }
        }
    }
    println!("{}", if passed && read { "passed" } else { "FAILED" });
    ExitCode::from(if read { u8::from(!passed) } else { 2 })
}
