//! Ops whose result at an index depends on the operands at that index alone, broadcast against each other where there are two:
//! functions of one operand, arithmetic, comparisons, logic, selection, conversion, gates and dropout. They share their loops
//! (`backend::cpu::map`) and, but for a few, take operands of any layout without a copy.

pub mod binary;
pub mod cast;
pub mod compare;
pub mod dropout;
pub mod gated;
pub mod logical;
mod operators;
pub mod select;
pub mod unary;

pub use operators::Number;
pub use unary::*;
