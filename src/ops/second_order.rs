//! Derivatives of compositions, for ops whose derivative is a kernel.
//!
//! A fused derivative kernel is itself an op, and its own derivative follows from the composition that it fuses: run
//! the composition on a tape, sweep it, and sweep the sweep.

use super::accumulate::ACCUMULATE;
use crate::dtype::F32;
use crate::error::Result;
use crate::op::{InputCotangents, Outputs};
use crate::tape::{Isolated, common_tape};
use crate::tensor::Tensor;

/// A half type as f32: a composition rounds after every op, and its intermediate values leave the range of f16 where the
/// fused kernel, which computes in f32, does not. The cast is recorded, so cotangents come back in the operand's own type.
///
/// # Errors
/// Allocation error.
pub fn widened(x: &Tensor) -> Result<Tensor> {
    if x.dtype().is_half() { x.cast(F32) } else { Ok(x.clone()) }
}

fn all_widened(x: &[Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(widened).collect()
}

/// Cotangents of the wanted `inputs` of a composition, given those of its outputs.
///
/// Recorded when an operand is tracked (a higher derivative is being taken), and untracked otherwise. The composition
/// gets half types as f32, and `y_bar` may be of either type; what it captures beside its arguments goes through
/// [`widened`] first.
///
/// # Errors
/// Whatever the composition returns.
pub fn differentiate(
    inputs: &[Tensor],
    want: &[bool],
    y_bar: &[Tensor],
    composition: impl Fn(&[Tensor]) -> Result<Outputs>,
) -> Result<InputCotangents> {
    differentiate_by(inputs, want, y_bar, &composition)
}

/// [`differentiate`], compiled once.
fn differentiate_by(
    inputs: &[Tensor],
    want: &[bool],
    y_bar: &[Tensor],
    composition: &dyn Fn(&[Tensor]) -> Result<Outputs>,
) -> Result<InputCotangents> {
    let operands: Vec<&Tensor> = inputs.iter().chain(y_bar).collect();
    let tape = common_tape(&operands)?;
    let record = tape.is_some();
    let local = Isolated::new(inputs, tape)?;
    let y = composition(&all_widened(&local.inputs)?)?;
    let bars: Vec<Option<Tensor>> = all_widened(y_bar)?.into_iter().map(Some).collect();
    local.pull_back(&y, &bars, want, record, ACCUMULATE)
}

/// The derivative of a fused derivative.
///
/// The fused op maps `inputs` and the cotangents `y_bar` of the composition's outputs to the inputs' cotangents
/// `x_bar = vjp(inputs, y_bar)`. Given the cotangents `x_bar_bar` of that result (`None` = zero), returns those of
/// `inputs` and of `y_bar`, in this order; `want` says which.
///
/// # Errors
/// Whatever the composition returns.
pub fn differentiate_vjp(
    inputs: &[Tensor],
    y_bar: &[Tensor],
    x_bar_bar: &[Option<Tensor>],
    want: &[bool],
    composition: impl Fn(&[Tensor]) -> Result<Outputs>,
) -> Result<InputCotangents> {
    differentiate_vjp_by(inputs, y_bar, x_bar_bar, want, &composition)
}

/// [`differentiate_vjp`], compiled once.
fn differentiate_vjp_by(
    inputs: &[Tensor],
    y_bar: &[Tensor],
    x_bar_bar: &[Option<Tensor>],
    want: &[bool],
    composition: &dyn Fn(&[Tensor]) -> Result<Outputs>,
) -> Result<InputCotangents> {
    let all: Vec<Tensor> = inputs.iter().chain(y_bar).cloned().collect();
    let operands: Vec<&Tensor> = all.iter().chain(x_bar_bar.iter().flatten()).collect();
    let tape = common_tape(&operands)?;
    let record = tape.is_some();
    let local = Isolated::new(&all, tape)?;
    let (x, g) = local.inputs.split_at(inputs.len());
    let y = composition(&all_widened(x)?)?;
    let bars: Vec<Option<Tensor>> = all_widened(g)?.into_iter().map(Some).collect();
    let mut first: Vec<bool> = x_bar_bar.iter().map(Option::is_some).collect();
    first.resize(all.len(), false);
    let x_bar = local.pull_back(&y, &bars, &first, true, ACCUMULATE)?;
    let (mut results, mut seeds) = (Vec::new(), Vec::new());
    for (bar, seed) in x_bar.into_iter().zip(x_bar_bar) {
        if let (Some(bar), Some(seed)) = (bar, seed) {
            results.push(bar);
            seeds.push(Some(seed.clone()));
        }
    }
    local.pull_back(&results, &seeds, want, record, ACCUMULATE)
}
