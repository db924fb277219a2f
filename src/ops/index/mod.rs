//! Ops that read or write at positions which a tensor of integers gives: rows of a table, elements along an axis, and sums into
//! them. They share the check of indices (`backend::cpu::index`) and sums in a fixed order where several positions are equal.

pub mod embedding;
pub mod gather;
pub mod index_select;
mod nonzero;
mod places;
pub mod scatter_reduce;
