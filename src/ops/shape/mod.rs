//! Ops that move elements or only rename their places, and compute nothing: views (the result reads the operand's memory), joining
//! and cutting, borders, repetition, moves between devices. Their derivatives are each other: a slice's writes into zeros, a
//! concatenation's cuts. They share the loops of `backend::cpu::remap`.

pub mod concat;
pub mod diagonal;
pub mod flip;
pub mod pad;
pub mod pad_with;
pub mod permute;
pub mod pixel_shuffle;
pub mod repeat;
pub mod slice;
pub mod split;
pub mod squeeze;
mod to_device;
pub mod triangle;
pub mod unbind;
pub mod views;
