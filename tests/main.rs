//! All integration tests in one binary: it links once.

mod checker;
mod engine;
mod gradcheck;
mod ops;
mod parity;
mod tidy;
