//! Optimizers, schedules and clipping, over parameter trees. Layer L6.

mod adamw;
mod clip;
mod schedule;
mod sgd;

pub use adamw::{AdamState, AdamW};
pub use clip::Clipped;
pub use schedule::{Schedule, WarmupCosine};
pub use sgd::Sgd;

use crate::error::{Result, bail};
use crate::functional::Grads;
use crate::module::{Module, try_walk};
use crate::tensor::Tensor;

/// State follows its parameter to the device where that is now.
fn follow(state: &mut Tensor, p: &Tensor) -> Result<()> {
    if state.device() != p.device() {
        *state = state.to_device(p.device())?;
    }
    Ok(())
}

/// Calls `f(name, parameter, gradient)` for every trainable parameter.
///
/// # Errors
/// Shape, dtype or device error when a gradient does not fit its parameter; whatever `f` returns.
fn for_each_param<M: Module + Clone>(
    model: &mut M,
    grads: &Grads<M>,
    mut f: impl FnMut(&str, &mut Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    let named = grads.named();
    let mut it = named.iter();
    try_walk(model, |name, leaf| {
        if !leaf.is_trainable() {
            return Ok(());
        }
        let Some((_, g)) = it.next().filter(|(n, _)| n == name) else {
            bail!(argument, "the gradients have no `{name}`: they belong to another model, or its frozen parameters changed");
        };
        if g.shape() != leaf.tensor.shape() || g.dtype() != leaf.tensor.dtype() {
            bail!(
                shape,
                "the gradient of `{name}` is {} {}, the parameter {} {}",
                g.dtype(),
                g.shape(),
                leaf.tensor.dtype(),
                leaf.tensor.shape()
            );
        }
        if g.device() != leaf.tensor.device() {
            bail!(device_unavailable, "the gradient of `{name}` is on {}, the parameter on {}", g.device(), leaf.tensor.device());
        }
        f(name, leaf.tensor, g)
    })?;
    match it.next() {
        Some((name, _)) => {
            bail!(argument, "the model has no trainable `{name}`, of which there is a gradient: it belongs to another model, or was frozen")
        }
        None => Ok(()),
    }
}
