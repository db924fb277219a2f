//! Recurrent cells: one step in time each, with PyTorch's names, gate order and initialisation.

use crate::dtype::DType;
use crate::error::Result;
use crate::module::Param;
use crate::rng::Key;
use crate::tensor::Tensor;

/// The two projections of a cell with `gates` gates: uniform in ±1/√hidden.
#[track_caller]
fn weights(gates: usize, inputs: usize, hidden: usize, dtype: DType, key: Key) -> Result<[Param; 4]> {
    let bound = 1.0 / (hidden.max(1) as f64).sqrt();
    let rows = gates.saturating_mul(hidden);
    let draw = |shape: &[usize], k| Tensor::uniform(shape, -bound..bound, dtype, key.fold(k)).map(Param::from);
    let all = || Ok([draw(&[rows, inputs], 0)?, draw(&[rows, hidden], 1)?, draw(&[rows], 2)?, draw(&[rows], 3)?]);
    let at = std::panic::Location::caller();
    all().map_err(|e: crate::Error| e.called_at(at))
}

/// Elman's cell: `h' = tanh(W_ih·x + b_ih + W_hh·h + b_hh)`.
#[derive(Clone, Debug)]
pub struct RnnCell {
    /// `[hidden, in]`.
    pub weight_ih: Param,
    /// `[hidden, hidden]`.
    pub weight_hh: Param,
    /// `[hidden]`.
    pub bias_ih: Param,
    /// `[hidden]`.
    pub bias_hh: Param,
}
crate::module!(RnnCell { weight_ih, weight_hh, bias_ih, bias_hh });

impl RnnCell {
    /// Weights and biases uniform in ±1/√hidden.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(inputs: usize, hidden: usize, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let [weight_ih, weight_hh, bias_ih, bias_hh] = weights(1, inputs, hidden, dtype, key)?;
        Ok(RnnCell { weight_ih, weight_hh, bias_ih, bias_hh })
    }

    /// One step from an input `[batch, in]` and a state `[batch, hidden]` to the next state.
    ///
    /// # Errors
    /// Shape error when input or state do not fit.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, h: &Tensor) -> Result<Tensor> {
        x.linear(&self.weight_ih, Some(&self.bias_ih))?.add(&h.linear(&self.weight_hh, Some(&self.bias_hh))?)?.tanh()
    }
}

/// Long short-term memory (Hochreiter & Schmidhuber 1997): `c' = σ(f)·c + σ(i)·tanh(g)`, `h' = σ(o)·tanh(c')`, with
/// `[i, f, g, o] = W_ih·x + b_ih + W_hh·h + b_hh`.
#[derive(Clone, Debug)]
pub struct LstmCell {
    /// `[4·hidden, in]`: input gate, forget gate, candidate, output gate.
    pub weight_ih: Param,
    /// `[4·hidden, hidden]`.
    pub weight_hh: Param,
    /// `[4·hidden]`.
    pub bias_ih: Param,
    /// `[4·hidden]`.
    pub bias_hh: Param,
}
crate::module!(LstmCell { weight_ih, weight_hh, bias_ih, bias_hh });

impl LstmCell {
    /// Weights and biases uniform in ±1/√hidden.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(inputs: usize, hidden: usize, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let [weight_ih, weight_hh, bias_ih, bias_hh] = weights(4, inputs, hidden, dtype, key)?;
        Ok(LstmCell { weight_ih, weight_hh, bias_ih, bias_hh })
    }

    /// One step from an input `[batch, in]` and the states `h`, `c` `[batch, hidden]` to the next `(h, c)`.
    ///
    /// # Errors
    /// Shape error when input or states do not fit.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, (h, c): (&Tensor, &Tensor)) -> Result<(Tensor, Tensor)> {
        let all = x.linear(&self.weight_ih, Some(&self.bias_ih))?.add(&h.linear(&self.weight_hh, Some(&self.bias_hh))?)?;
        let gates = all.chunk(4, -1)?;
        let c = gates[1].sigmoid()?.mul(c)?.add(&gates[0].sigmoid()?.mul(&gates[2].tanh()?)?)?;
        Ok((gates[3].sigmoid()?.mul(&c.tanh()?)?, c))
    }
}

/// Gated recurrent unit (Cho et al. 2014) in PyTorch's form: `h' = (1 − z)·n + z·h` with `r = σ(·)`, `z = σ(·)` and
/// `n = tanh(W_in·x + b_in + r·(W_hn·h + b_hn))`.
#[derive(Clone, Debug)]
pub struct GruCell {
    /// `[3·hidden, in]`: reset gate, update gate, candidate.
    pub weight_ih: Param,
    /// `[3·hidden, hidden]`.
    pub weight_hh: Param,
    /// `[3·hidden]`.
    pub bias_ih: Param,
    /// `[3·hidden]`.
    pub bias_hh: Param,
}
crate::module!(GruCell { weight_ih, weight_hh, bias_ih, bias_hh });

impl GruCell {
    /// Weights and biases uniform in ±1/√hidden.
    ///
    /// # Errors
    /// Dtype error for integers; out of memory.
    #[track_caller]
    pub fn new(inputs: usize, hidden: usize, dtype: DType, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let [weight_ih, weight_hh, bias_ih, bias_hh] = weights(3, inputs, hidden, dtype, key)?;
        Ok(GruCell { weight_ih, weight_hh, bias_ih, bias_hh })
    }

    /// One step from an input `[batch, in]` and a state `[batch, hidden]` to the next state.
    ///
    /// # Errors
    /// Shape error when input or state do not fit.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, h: &Tensor) -> Result<Tensor> {
        let (from_x, from_h) = (x.linear(&self.weight_ih, Some(&self.bias_ih))?, h.linear(&self.weight_hh, Some(&self.bias_hh))?);
        let (x, own) = (from_x.chunk(3, -1)?, from_h.chunk(3, -1)?);
        let reset = x[0].add(&own[0])?.sigmoid()?;
        let update = x[1].add(&own[1])?.sigmoid()?;
        let candidate = x[2].add(&reset.mul(&own[2])?)?.tanh()?;
        // n + z(h − n)
        candidate.add(&update.mul(&h.sub(&candidate)?)?)
    }
}
