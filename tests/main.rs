//! All integration tests in one binary: it links once.

mod checker;
mod engine;
mod functional;
mod gradcheck;
mod ops;
mod optimizers;
mod parity;
mod replay;
mod tidy;
