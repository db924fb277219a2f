//! The feed-forward half of a transformer block.

use super::attention::drop_out;
use super::layers::{Activation, Linear, LinearOptions};
use super::{Init, Layer};
use crate::dtype::DType;
use crate::error::Result;
use crate::rng::Key;
use crate::tensor::Tensor;

/// Two linear layers with a nonlinearity between them, under GPT-2's names.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[hidden, width]`, in GPT-2 `[4·width, width]`.
    pub c_fc: Linear,
    /// `[width, hidden]`.
    pub c_proj: Linear,
    /// Between the two.
    pub activation: Activation,
    /// Dropout probability of the output in training.
    pub dropout: f64,
}
crate::module!(Mlp { c_fc, c_proj } skip { activation, dropout });

impl Mlp {
    /// Xavier's weights, zero biases.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(width: usize, hidden: usize, activation: Activation, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::build(width, hidden, true, activation, dtype, key.into())
    }

    /// [`Mlp::new`] without biases.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn no_bias(width: usize, hidden: usize, activation: Activation, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        Self::build(width, hidden, false, activation, dtype, key.into())
    }

    #[track_caller]
    fn build(width: usize, hidden: usize, bias: bool, activation: Activation, dtype: DType, key: Key) -> Result<Self> {
        let options = LinearOptions { bias, init: Init::xavier() };
        let linear = |i, o, k| Linear::with(i, o, dtype, key.fold(k), &options);
        Ok(Mlp { c_fc: linear(width, hidden, 0)?, c_proj: linear(hidden, width, 1)?, activation, dropout: 0.0 })
    }

    /// `[.., width]` to the same shape. With a key, dropout is active.
    ///
    /// # Errors
    /// Shape error when the last axis is not the width.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        drop_out(&self.branch(x)?, self.dropout, key)
    }

    /// `residual` plus [`forward`](Mlp::forward), dropout and sum in one pass.
    ///
    /// # Errors
    /// Shape error when the last axis is not the width, or the residual has another shape than `x`.
    #[track_caller]
    pub fn forward_onto(&self, residual: &Tensor, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        let y = self.branch(x)?;
        match key {
            Some(key) if self.dropout != 0.0 => y.dropout_add(residual, self.dropout, key),
            _ => residual.add(&y),
        }
    }

    #[track_caller]
    fn branch(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&self.activation.apply(&self.c_fc.forward(x)?)?)
    }
}

impl Layer for Mlp {
    fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward(x, key)
    }
}

/// A gated linear unit, `down(act(gate(x))·up(x))` without biases, under the names of Llama and Qwen2: SwiGLU with SiLU,
/// GEGLU with GELU (Shazeer 2020).
#[derive(Clone, Debug)]
pub struct GatedMlp {
    /// `[hidden, width]`; goes through the activation.
    pub gate_proj: Linear,
    /// `[hidden, width]`.
    pub up_proj: Linear,
    /// `[width, hidden]`.
    pub down_proj: Linear,
    /// Of the gate.
    pub activation: Activation,
}
crate::module!(GatedMlp { gate_proj, up_proj, down_proj } skip { activation });

impl GatedMlp {
    /// Xavier's weights.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(width: usize, hidden: usize, activation: Activation, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let linear = |i, o, k| Linear::with(i, o, dtype, key.fold(k), &LinearOptions { bias: false, init: Init::xavier() });
        Ok(GatedMlp {
            gate_proj: linear(width, hidden, 0)?,
            up_proj: linear(width, hidden, 1)?,
            down_proj: linear(hidden, width, 2)?,
            activation,
        })
    }

    /// `[.., width]` to the same shape.
    ///
    /// # Errors
    /// Shape error when the last axis is not the width.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&self.activation.gate(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}

impl Layer for GatedMlp {
    fn call(&self, x: &Tensor, _: Option<Key>) -> Result<Tensor> {
        self.forward(x)
    }
}
