//! All integration tests in one binary: it links once.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod callers;
#[cfg(feature = "emulator")]
mod capture;
mod checker;
mod device;
mod engine;
mod functional;
mod gradcheck;
mod kernels;
mod nesting;
mod ops;
mod optimizers;
mod parity;
mod replay;
mod tidy;

/// Shown even when the test passes: the runner keeps what `println!` writes to itself.
pub fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
