//! Ops: values and derivatives of every one, by the suite, by numbers from outside, and where others failed.

mod attention;
mod checker;
mod conv;
mod definitions;
mod fused;
mod gradcheck;
mod parity;
pub mod suite;
mod torch_ops;
mod user_numbers;
