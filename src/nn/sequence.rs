//! Recurrent layers over whole sequences, under PyTorch's names: its state dicts load as they are.

use super::Layer;
use super::attention::probability;
use super::recurrent::{Cell, GruCell, LstmCell, RnnCell, input_of, state_of, with_matrices};
use crate::dtype::{DType, U8};
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{Module, Visitor};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::panic::Location;

/// Sizes and options of [`Lstm`], [`Gru`] and [`Rnn`]. The default is one layer in one direction, of size zero: set the sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentConfig {
    /// Width of the input.
    pub inputs: usize,
    /// Width of the state.
    pub hidden: usize,
    /// How many layers, each fed by the one before it.
    pub layers: usize,
    /// Whether each layer also runs from the end to the beginning; both values are side by side in the output.
    pub bidirectional: bool,
    /// Probability of dropping an element between layers in training.
    pub dropout: f64,
}

impl Default for RecurrentConfig {
    fn default() -> Self {
        RecurrentConfig { inputs: 0, hidden: 0, layers: 1, bidirectional: false, dropout: 0.0 }
    }
}

impl RecurrentConfig {
    fn directions(&self) -> usize {
        1 + usize::from(self.bidirectional)
    }
}

/// Options of a recurrent layer besides input and state; none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recur<'a> {
    /// How many steps of each sequence of the batch count. Behind them the output is zero and the state stays, in both directions: as
    /// PyTorch's packed sequences.
    pub lengths: Option<&'a [usize]>,
    /// Names the dropout masks; without it there is no dropout.
    pub key: Option<Key>,
}

macro_rules! layer {
    (
        $(#[$doc:meta])* $name:ident of $cell:ident, $op:literal,
        state $state:ty, $given:ty, |$s:ident| $parts:expr, |$r:ident| $whole:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            /// One for each layer and direction: layer 0, layer 0 reversed, layer 1, and so on.
            pub cells: Vec<$cell>,
            /// Sizes and options.
            pub config: RecurrentConfig,
        }

        impl Module for $name {
            fn visit(&mut self, v: &mut Visitor<'_>) {
                let Self { cells, config } = self;
                for (i, cell) in cells.iter_mut().enumerate() {
                    let $cell { weight_ih, weight_hh, bias_ih, bias_hh } = cell;
                    let layer = i / config.directions();
                    let reverse = if i % config.directions() == 1 { "_reverse" } else { "" };
                    v.field(&format!("weight_ih_l{layer}{reverse}"), weight_ih);
                    v.field(&format!("weight_hh_l{layer}{reverse}"), weight_hh);
                    v.field(&format!("bias_ih_l{layer}{reverse}"), bias_ih);
                    v.field(&format!("bias_hh_l{layer}{reverse}"), bias_hh);
                }
            }
        }

        impl $name {
            /// Weights and biases uniform in ±1/√hidden.
            ///
            /// # Errors
            /// Argument error for a size of zero or a dropout that is no probability; dtype error for integers; out of memory.
            #[track_caller]
            pub fn new(config: &RecurrentConfig, dtype: DType, key: impl Into<Key>) -> Result<Self> {
                Self::build(config, dtype, key.into())
            }

            #[track_caller]
            fn build(config: &RecurrentConfig, dtype: DType, key: Key) -> Result<Self> {
                let at = Location::caller();
                let widths = widths(config).map_err(|e| e.in_op($op, at))?;
                let cell = |(i, &inputs): (usize, &usize)| $cell::new(inputs, config.hidden, dtype, key.fold(i as u64));
                let cells = memory::try_collect_ok(widths.iter().enumerate().map(cell)).map_err(|e| e.called_at(at))?;
                Ok($name { cells, config: config.clone() })
            }

            /// `[batch, time, inputs]` and the state before it (zero without) to the outputs of the last layer,
            /// `[batch, time, directions·hidden]`, and the state after it. A state is `[layers·directions, batch, hidden]`.
            ///
            /// # Errors
            /// Shape or dtype error when input or state do not fit, also a state of another batch.
            #[track_caller]
            pub fn forward(&self, x: &Tensor, state: Option<$given>) -> Result<(Tensor, $state)> {
                self.forward_with(x, state, Recur::default())
            }

            /// The same with lengths and dropout.
            ///
            /// # Errors
            /// As [`forward`](Self::forward); argument error for lengths that are not one for each sequence, or beyond its end.
            #[track_caller]
            pub fn forward_with(&self, x: &Tensor, state: Option<$given>, with: Recur<'_>) -> Result<(Tensor, $state)> {
                let at = Location::caller();
                let state: Option<Vec<&Tensor>> = state.map(|$s| $parts);
                let run = || {
                    let (y, $r) = run(&self.cells, &self.config, x, state.as_deref(), with)?;
                    Ok((y, $whole))
                };
                run().map_err(|e: Error| e.rename_op($op).called_at(at))
            }
        }

        impl Layer for $name {
            fn call(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
                Ok(self.forward_with(x, None, Recur { key, ..Recur::default() })?.0)
            }
        }
    };
}

layer! {
    /// Long short-term memory over sequences: PyTorch's `nn.LSTM(batch_first=True)`, with its names (`weight_ih_l0`,
    /// `bias_hh_l1_reverse`) and the gates' order `i, f, g, o`.
    ///
    /// ```
    /// use cotangent::{F32, Key, Module, Tensor, nn::{Lstm, Recur, RecurrentConfig}};
    /// let config = RecurrentConfig { inputs: 3, hidden: 4, layers: 2, bidirectional: true, ..RecurrentConfig::default() };
    /// let lstm = Lstm::new(&config, F32, Key::new(1))?;
    /// assert_eq!(lstm.names()[4], "weight_ih_l0_reverse");
    /// let x = Tensor::randn([2, 5, 3], F32, Key::new(2))?;
    /// let (y, (h, c)) = lstm.forward(&x, None)?;
    /// assert_eq!((y.shape().to_vec(), h.shape().to_vec()), (vec![2, 5, 8], vec![4, 2, 4]));
    /// // The next piece of the same sequences, of which the second ends after three steps:
    /// let (y, _) = lstm.forward_with(&x, Some((&h, &c)), Recur { lengths: Some(&[5, 3]), ..Recur::default() })?;
    /// assert_eq!(y.select(0, 1)?.narrow(0, 3, 2)?.abs()?.sum(..)?.item()?, 0.0);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    Lstm of LstmCell, "lstm", state (Tensor, Tensor), (&Tensor, &Tensor), |s| vec![s.0, s.1], |r| {
        let [h, c] = two(r)?;
        (h, c)
    }
}

layer! {
    /// Gated recurrent units over sequences: PyTorch's `nn.GRU(batch_first=True)`, with its names and the gates' order `r, z, n`.
    Gru of GruCell, "gru", state Tensor, &Tensor, |s| vec![s], |r| one(r)?
}

layer! {
    /// Elman's network over sequences: PyTorch's `nn.RNN(batch_first=True)` with tanh, and its names.
    Rnn of RnnCell, "rnn", state Tensor, &Tensor, |s| vec![s], |r| one(r)?
}

fn one(states: Vec<Tensor>) -> Result<Tensor> {
    states.into_iter().next().ok_or_else(|| Error::argument("there is no state"))
}

fn two(states: Vec<Tensor>) -> Result<[Tensor; 2]> {
    states.try_into().map_err(|_| Error::argument("there are not two states"))
}

/// The width of each cell's input.
fn widths(c: &RecurrentConfig) -> Result<Vec<usize>> {
    if [c.inputs, c.hidden, c.layers].contains(&0) {
        bail!(argument, "inputs, hidden and layers must be at least 1, found {}, {}, {}", c.inputs, c.hidden, c.layers);
    }
    probability("dropout", c.dropout)?;
    let (d, inner) = (c.directions(), c.hidden.saturating_mul(c.directions()));
    memory::try_collect((0..c.layers.saturating_mul(d)).map(|i| if i < d { c.inputs } else { inner }))
}

/// Every layer in turn; gives the last one's outputs, and each part of the state.
fn run<C: Cell>(
    cells: &[C],
    c: &RecurrentConfig,
    x: &Tensor,
    initial: Option<&[&Tensor]>,
    with: Recur<'_>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let d = c.directions();
    if cells.is_empty() || cells.len() != c.layers.saturating_mul(d) {
        bail!(argument, "{} layers in {d} directions need {} cells, found {}", c.layers, c.layers.saturating_mul(d), cells.len());
    }
    let (batch, time, inputs) = match *x.shape().dims() {
        [batch, time, inputs] => (batch, time, inputs),
        _ => (0, 0, 0),
    };
    let fit = || {
        let expected = format!("[batch, time, {}] with at least one step", c.inputs);
        input_of(x, &expected, inputs == c.inputs && time > 0, "", cells[0].matrices()[0])?;
        let mut parts = initial.unwrap_or_default().iter().zip(C::STATE);
        parts.try_for_each(|(part, name)| state_of(name, part, &[c.layers * d, batch, c.hidden], x))
    };
    fit().map_err(|e| with_matrices(e, &cells[0], "_l0"))?;
    let masks = masks(with.lengths, batch, time, x)?;
    let zero = Tensor::full_on([batch, c.hidden], 0.0, x.dtype(), x.device())?;
    let mut x = x.clone();
    let mut last: Vec<Vec<Tensor>> = vec![Vec::new(); C::STATE.len()];
    for layer in 0..c.layers {
        if layer > 0 {
            x = super::Dropout { p: c.dropout }.forward(&x, with.key.map(|k| k.fold(layer as u64)))?;
        }
        let mut directions = Vec::with_capacity(d);
        for direction in 0..d {
            let i = layer * d + direction;
            let cell = &cells[i];
            let mut state = match initial {
                Some(parts) => memory::try_collect_ok(parts.iter().map(|p| p.narrow(0, i, 1)?.squeeze(0)))?,
                None => vec![zero.clone(); C::STATE.len()],
            };
            // The inputs' part of all steps is one product, and cut once: `select` in a loop would be quadratic in its derivative.
            let (steps, mut outputs) = (cell.of_input(&x)?.chunk(time, 1)?, memory::vec_of(zero.clone(), time)?);
            for step in 0..time {
                let t = if direction == 0 { step } else { time - 1 - step };
                let new = cell.step(&steps[t].squeeze(1)?, &state)?;
                (outputs[t], state) = match &masks[t] {
                    None => (new[0].clone(), new),
                    Some(mask) => {
                        let kept = memory::try_collect_ok(new.iter().zip(&state).map(|(new, old)| mask.where_cond(new, old)))?;
                        (mask.where_cond(&new[0], &zero)?, kept)
                    }
                };
            }
            directions.push(Tensor::stack(&outputs, 1)?);
            state.into_iter().zip(&mut last).try_for_each(|(s, all)| memory::push(all, s))?;
        }
        x = match directions.as_slice() {
            [one] => one.clone(),
            both => Tensor::concat(both, 2)?,
        };
    }
    Ok((x, memory::try_collect_ok(last.iter().map(|all| Tensor::stack(all, 0)))?))
}

/// For each step which sequences it counts for, `[batch, 1]`; `None` where it counts for all.
fn masks(lengths: Option<&[usize]>, batch: usize, time: usize, x: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let Some(lengths) = lengths else { return memory::vec_of(None, time) };
    if lengths.len() != batch {
        bail!(argument, "{} lengths for a batch of {batch}: one is needed for each sequence of x {}", lengths.len(), x.shape());
    }
    if let Some(n) = lengths.iter().find(|n| **n > time) {
        bail!(argument, "a length is {n}, beyond the {time} steps of x {}", x.shape());
    }
    let mask = |t| {
        let counts = memory::try_collect(lengths.iter().map(|&n| u8::from(t < n)))?;
        Tensor::from_vec(counts, [batch, 1])?.cast(U8)?.to_device(x.device())
    };
    memory::try_collect_ok((0..time).map(|t| if lengths.iter().all(|&n| t < n) { Ok(None) } else { mask(t).map(Some) }))
}
