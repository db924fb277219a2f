//! Tensors from nothing: constants, ranges, random values and the literals of `tensor!`. They have no operands, so they are not
//! ops of the contract. They share the check that a number fits a dtype (`held`).

mod fill;
mod literal;
mod random;

pub(crate) use fill::held;
#[doc(hidden)]
pub use literal::{Nested, Written, from_floats, from_whole};
