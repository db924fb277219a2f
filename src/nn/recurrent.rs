//! Recurrent cells: one step in time each, with PyTorch's names, gate order and initialisation.

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::module::Param;
use crate::rng::Key;
use crate::tape;
use crate::tensor::Tensor;
use std::panic::Location;

/// What a layer over sequences needs of its cell.
pub(super) trait Cell {
    /// Names of the parts of its state; the first is its value.
    const STATE: &'static [&'static str];
    /// The layer that runs it over sequences.
    const OVER_SEQUENCES: &'static str;
    /// The matrices of the input and of the state.
    fn matrices(&self) -> [&Param; 2];
    /// The gates' part that comes from the input, for any number of steps at once.
    fn of_input(&self, x: &Tensor) -> Result<Tensor>;
    /// One step, given that part of it.
    fn step(&self, of_input: &Tensor, state: &[Tensor]) -> Result<Vec<Tensor>>;
}

/// A part of the state must have this shape, and the input's dtype.
pub(super) fn state_of(name: &str, state: &Tensor, expected: &[usize], x: &Tensor) -> Result<()> {
    of_dtype(name, state, x)?;
    if state.shape().dims() == expected {
        return Ok(());
    }
    let n = expected.len();
    let same_but_batch = state.rank() == n && (0..n).all(|i| i + 2 == n || state.shape()[i] == expected[i]);
    let hint = if same_but_batch { ": it is the state of another batch" } else { "" };
    bail!(shape, "the state does not fit the input: x {}, {name} {} (expected {expected:?}){hint}", x.shape(), state.shape());
}

fn of_dtype(name: &str, t: &Tensor, x: &Tensor) -> Result<()> {
    if t.dtype() != x.dtype() {
        let (a, b) = (x.dtype(), t.dtype());
        bail!(dtype, "{name} has another dtype than the input: x is {a} {}, {name} is {b} {}; cast one", x.shape(), t.shape());
    }
    Ok(())
}

/// The input must be of the matrix's width and dtype.
pub(super) fn input_of(x: &Tensor, expected: &str, fits: bool, hint: &str, weight_ih: &Param) -> Result<()> {
    if !fits {
        bail!(shape, "the input does not fit: expected x {expected}, found {}{hint}", x.shape());
    }
    of_dtype("weight_ih", weight_ih, x)
}

/// A refusal with the matrices of a cell, by their names in the model where the tape knows them; `suffix` is that of the layer's names.
#[cold]
pub(super) fn with_matrices<C: Cell>(e: Error, cell: &C, suffix: &str) -> Error {
    let [ih, hh] = cell.matrices();
    let own = || {
        let named = [("weight_ih", ih), ("weight_hh", hh)];
        named.map(|(name, p)| (format!("{name}{suffix}"), format!("{}{}", p.dtype(), p.shape()))).into()
    };
    e.with_parameters(|| tape::parameters(&[ih, hh])).with_own_parameters(own)
}

/// One step of a cell from its input and state.
fn one_step<C: Cell>(cell: &C, op: &'static str, x: &Tensor, state: &[&Tensor], at: &'static Location<'static>) -> Result<Vec<Tensor>> {
    let fit = || {
        let [ih, hh] = cell.matrices();
        let (inputs, width) = (ih.size(-1)?, hh.size(-1)?);
        let hint = if x.rank() > 2 { format!("; nn::{} takes whole sequences", C::OVER_SEQUENCES) } else { String::new() };
        let fits = x.rank() <= 2 && x.shape().last() == Some(&inputs);
        input_of(x, &format!("[batch, {inputs}]"), fits, &hint, ih)?;
        let expected: Vec<usize> = x.shape().iter().take(x.rank().saturating_sub(1)).copied().chain([width]).collect();
        for (name, part) in C::STATE.iter().zip(state) {
            // One state for the whole batch may be given as one.
            if part.shape().last() != Some(&width) || part.shape().broadcast(&expected.as_slice().into()).is_err() {
                state_of(name, part, &expected, x)?;
            }
            of_dtype(name, part, x)?;
        }
        Ok(())
    };
    fit().map_err(|e: Error| with_matrices(e, cell, "").in_op(op, at).called_at(at))?;
    let run = || cell.step(&cell.of_input(x)?, &state.iter().map(|&t| t.clone()).collect::<Vec<_>>());
    run().map_err(|e: Error| e.rename_op(op).called_at(at))
}

/// A refusal with the cell's own parameters, unless the tape knows their names in the model.
#[cold]
fn own(e: Error, parameters: [(&str, &Param); 2]) -> Error {
    e.with_own_parameters(|| parameters.iter().map(|(name, p)| ((*name).to_owned(), format!("{}{}", p.dtype(), p.shape()))).collect())
}

macro_rules! parts {
    ($over_sequences:literal) => {
        const OVER_SEQUENCES: &'static str = $over_sequences;
        fn matrices(&self) -> [&Param; 2] {
            [&self.weight_ih, &self.weight_hh]
        }
        fn of_input(&self, x: &Tensor) -> Result<Tensor> {
            let y = x.linear(&self.weight_ih, Some(&self.bias_ih));
            y.map_err(|e| own(e, [("weight_ih", &self.weight_ih), ("bias_ih", &self.bias_ih)]))
        }
    };
    ($self:ident, $h:expr) => {
        $h.linear(&$self.weight_hh, Some(&$self.bias_hh))
            .map_err(|e| own(e, [("weight_hh", &$self.weight_hh), ("bias_hh", &$self.bias_hh)]))?
    };
}

/// The two projections of a cell with `gates` gates: uniform in ±1/√hidden.
#[track_caller]
fn weights(gates: usize, inputs: usize, hidden: usize, dtype: DType, key: Key) -> Result<[Param; 4]> {
    let bound = 1.0 / (hidden.max(1) as f64).sqrt();
    let rows = gates.saturating_mul(hidden);
    let draw = |shape: &[usize], k| Tensor::uniform(shape, -bound..bound, dtype, key.fold(k)).map(Param::from);
    let all = || Ok([draw(&[rows, inputs], 0)?, draw(&[rows, hidden], 1)?, draw(&[rows], 2)?, draw(&[rows], 3)?]);
    let at = Location::caller();
    all().map_err(|e: Error| e.called_at(at))
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

    /// One step from an input `[batch, in]` and a state `[batch, hidden]` to the next state. Without a batch: `[in]` and `[hidden]`.
    ///
    /// # Errors
    /// Shape or dtype error when input or state do not fit.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, h: &Tensor) -> Result<Tensor> {
        one_step(self, "rnn_cell", x, &[h], Location::caller())?.pop().ok_or_else(|| Error::argument("no state"))
    }
}

impl Cell for RnnCell {
    const STATE: &'static [&'static str] = &["h"];
    parts!("Rnn");
    fn step(&self, of_input: &Tensor, state: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![of_input.add(&parts!(self, state[0]))?.tanh()?])
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

    /// One step from an input `[batch, in]` and the states `h`, `c` `[batch, hidden]` to the next `(h, c)`. Without a batch: `[in]` and `[hidden]`.
    ///
    /// # Errors
    /// Shape or dtype error when input or states do not fit.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, (h, c): (&Tensor, &Tensor)) -> Result<(Tensor, Tensor)> {
        let new = one_step(self, "lstm_cell", x, &[h, c], Location::caller())?;
        Ok((new[0].clone(), new[1].clone()))
    }
}

impl Cell for LstmCell {
    const STATE: &'static [&'static str] = &["h", "c"];
    parts!("Lstm");
    fn step(&self, of_input: &Tensor, state: &[Tensor]) -> Result<Vec<Tensor>> {
        let gates = of_input.add(&parts!(self, state[0]))?.chunk(4, -1)?;
        let c = gates[1].sigmoid()?.mul(&state[1])?.add(&gates[0].sigmoid()?.mul(&gates[2].tanh()?)?)?;
        Ok(vec![gates[3].sigmoid()?.mul(&c.tanh()?)?, c])
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

    /// One step from an input `[batch, in]` and a state `[batch, hidden]` to the next state. Without a batch: `[in]` and `[hidden]`.
    ///
    /// # Errors
    /// Shape or dtype error when input or state do not fit.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, h: &Tensor) -> Result<Tensor> {
        one_step(self, "gru_cell", x, &[h], Location::caller())?.pop().ok_or_else(|| Error::argument("no state"))
    }
}

impl Cell for GruCell {
    const STATE: &'static [&'static str] = &["h"];
    parts!("Gru");
    fn step(&self, of_input: &Tensor, state: &[Tensor]) -> Result<Vec<Tensor>> {
        let h = &state[0];
        let (x, own) = (of_input.chunk(3, -1)?, parts!(self, h).chunk(3, -1)?);
        let reset = x[0].add(&own[0])?.sigmoid()?;
        let update = x[1].add(&own[1])?.sigmoid()?;
        let candidate = x[2].add(&reset.mul(&own[2])?)?.tanh()?;
        // n + z(h − n)
        Ok(vec![candidate.add(&update.mul(&h.sub(&candidate)?)?)?])
    }
}
