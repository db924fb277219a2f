//! Causal self-attention, in GPT-2's form: one projection for queries, keys and values.

use super::layers::{Linear, must_divide};
use crate::error::{Error, Result};
use crate::ops::sdpa::Sdpa;
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

/// Multi-head causal self-attention.
#[derive(Clone, Debug)]
pub struct CausalSelfAttention {
    /// `[3·width, width]`: queries, keys, values, one after the other.
    pub c_attn: Linear,
    /// `[width, width]`.
    pub c_proj: Linear,
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Probability of dropping an attention weight or an output element in training.
    pub dropout: f64,
}
crate::module!(CausalSelfAttention { c_attn, c_proj } skip { heads, dropout });

impl CausalSelfAttention {
    /// `[batch, time, width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the input does not fit the weights.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        let &[batch, time, width] = x.shape().dims() else {
            let e = Error::shape(format!("expected [batch, time, width], found {}", x.shape()));
            return Err(e.in_op("attention", Location::caller()));
        };
        let at = Location::caller();
        let head = must_divide("the width", width, "the number of heads", self.heads).map_err(|e| e.in_op("attention", at))?;
        // [B, T, 3, H, D] -> [3, B, H, T, D]: three views, no copy.
        let qkv = self.c_attn.forward(x)?.reshape([batch, time, 3, self.heads, head])?.permute([2, 0, 3, 1, 4])?;
        let (q, k, v) = (qkv.select(0, 0)?, qkv.select(0, 1)?, qkv.select(0, 2)?);
        [(&q, "q"), (&k, "k"), (&v, "v")].iter().for_each(|(t, name)| t.tap_beside(&self.c_attn.weight, name));
        let options =
            Sdpa { causal: true, dropout: if key.is_some() { self.dropout } else { 0.0 }, key: key.map(|k| k.fold(0)), ..Sdpa::default() };
        let y = q.scaled_dot_product_attention(&k, &v, None, options)?;
        let y = y.permute([0, 2, 1, 3])?.reshape([batch, time, width])?;
        drop_out(&self.c_proj.forward(&y)?, self.dropout, key.map(|k| k.fold(1)))
    }
}

/// Dropout when training (there is a key) and the probability is not zero.
#[track_caller]
pub(super) fn drop_out(x: &Tensor, p: f64, key: Option<Key>) -> Result<Tensor> {
    match key {
        Some(key) if p > 0.0 => x.dropout(p, key),
        _ => Ok(x.clone()),
    }
}
