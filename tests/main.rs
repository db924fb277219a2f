//! All integration tests in one binary: it links once. A folder for each thing that is proven.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod device;
mod engine;
mod files;
#[path = "../fuzz/entry.rs"]
mod fuzz_entry;
mod house;
mod models;
mod ops;
mod train;

/// Shown even when the test passes: the runner keeps what `println!` writes to itself.
pub fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
