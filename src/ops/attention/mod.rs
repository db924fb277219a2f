//! Attention and what goes with it: scaled dot products with every mask, window and packing, and rotary positions. The options and
//! which keys a query sees are shared with both backends (`backend::attention`).

pub mod rope;
pub mod sdpa;
