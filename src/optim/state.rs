//! The interface between optimizers and what drives and stores them: one trait, and state that can be written to a file.

use crate::error::Result;
use crate::functional::Grads;
use crate::module::Module;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// What an optimizer remembers between steps, by name: enough to continue bitwise as if nothing had happened.
///
/// Names read `optimizer.slot.parameter`, as in `adamw.exp_avg.h.0.attn.c_attn.weight`, with PyTorch's names for the
/// slots. Hyperparameters are not state: they belong to the program's configuration.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Moments, momentum and masters.
    pub tensors: BTreeMap<String, Tensor>,
    /// Counters; exact, being integers below 2⁵³.
    pub numbers: BTreeMap<String, f64>,
}

/// A rule that changes the parameters of a model along gradients.
///
/// The optimizers here have all but `step` as methods of their own too, so that the trait is only needed where the
/// optimizer is chosen at run time: `Box<dyn Optimizer<Model>>`.
pub trait Optimizer<M: Module + Clone> {
    /// One step on every trainable parameter but those that the loss did not reach
    /// ([`Grads::disconnected`](crate::Grads::disconnected)).
    ///
    /// # Errors
    /// Argument error for hyperparameters out of range, for gradients or state of another model; shape and dtype errors.
    /// The model is unchanged when the arguments are refused.
    #[track_caller]
    fn step(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()>;

    /// Number of steps that were skipped because something was not finite; 0 for an optimizer that skips none.
    fn skipped(&self) -> u64 {
        0
    }

    /// Its name and hyperparameters by name, without the learning rate, as texts. Snapshots keep them, so that a run does not continue by
    /// another rule unnoticed; functions that choose parameters have no text.
    fn settings(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// The learning rate of the next step.
    fn learning_rate(&self) -> f64;

    /// Sets the learning rate of the next steps: call it with what a [`Schedule`](super::Schedule) says.
    ///
    /// # Errors
    /// Argument error unless it is finite and not negative; it is unchanged then.
    #[track_caller]
    fn set_learning_rate(&mut self, lr: f64) -> Result<()>;

    /// What it remembers (cheap clones of tensors).
    fn state(&self) -> State;

    /// Continues from a state that [`Optimizer::state`] gave.
    ///
    /// What can only be compared with the model (its names, shapes and dtypes) is compared in the next step, before
    /// anything changes, unless this optimizer has already taken a step.
    ///
    /// # Errors
    /// Argument error that names what differs when the state is of another optimizer, incomplete or of another model;
    /// shape and dtype errors. Nothing is changed then.
    #[track_caller]
    fn load_state(&mut self, state: State) -> Result<()>;
}

impl<M: Module + Clone, O: Optimizer<M> + ?Sized> Optimizer<M> for Box<O> {
    fn step(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()> {
        (**self).step(model, grads)
    }

    fn skipped(&self) -> u64 {
        (**self).skipped()
    }

    fn settings(&self) -> BTreeMap<String, String> {
        (**self).settings()
    }

    fn learning_rate(&self) -> f64 {
        (**self).learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) -> Result<()> {
        (**self).set_learning_rate(lr)
    }

    fn state(&self) -> State {
        (**self).state()
    }

    fn load_state(&mut self, state: State) -> Result<()> {
        (**self).load_state(state)
    }
}
