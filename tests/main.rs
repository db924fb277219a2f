//! All integration tests in one binary: it links once.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod absent;
mod advice;
mod api_fuzz;
mod attention;
mod callers;
#[cfg(feature = "emulator")]
mod capture;
mod checker;
mod custom_vjp;
mod definitions;
mod device;
#[cfg(feature = "emulator")]
mod device_generation;
#[cfg(feature = "emulator")]
mod device_lines;
mod diagnostics;
mod doors;
#[cfg(feature = "emulator")]
mod endurance;
mod engine;
mod far;
mod files;
#[cfg(feature = "emulator")]
mod flash;
mod functional;
mod fused;
#[path = "../fuzz/entry.rs"]
mod fuzz_entry;
mod generate;
mod gradcheck;
mod io_config;
mod io_gguf;
mod kernels;
mod layers;
mod load_page;
mod lora;
mod lost;
#[cfg(all(target_os = "linux", feature = "readers"))]
mod memory_files;
#[cfg(target_os = "linux")]
mod memory_limits;
mod mistakes;
mod mistakes_training;
mod models;
mod module_macro;
mod modules;
mod named_errors;
mod nesting;
mod not_finite;
mod ops;
mod optimizer_rules;
mod optimizer_state;
mod optimizers;
mod parity;
mod planted;
mod postmortems;
mod programs;
#[cfg(feature = "readers")]
mod readers;
mod recurrence;
mod refused;
mod reliability_files;
mod reliability_review;
mod reliability_sizes;
mod replay;
mod resume;
mod schedules;
mod survives;
mod tidy;
#[cfg(feature = "tokenizers")]
mod tokenizer;
mod torch_ops;
mod training;
mod user_models;
mod user_numbers;
#[cfg(feature = "tokenizers")]
mod user_tokenizers;
mod user_training;

/// Shown even when the test passes: the runner keeps what `println!` writes to itself.
pub fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
