//! All integration tests in one binary: it links once.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod callers;
mod checker;
mod engine;
mod functional;
mod gradcheck;
mod nesting;
mod ops;
mod optimizers;
mod parity;
mod replay;
mod tidy;
