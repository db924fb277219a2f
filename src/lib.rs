//! Reverse-mode differentiation over tensors.
