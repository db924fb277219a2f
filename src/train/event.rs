//! What callbacks see.

use crate::functional::Grads;
use crate::optim::Clipped;
use std::path::Path;

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 0.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Mean loss over the micro-batches, before the update.
    pub loss: f64,
    /// The optimizer's learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradients, before clipping.
    pub norm: f64,
    /// What clipping found, as a [`ClipTracker`](crate::diagnostics::ClipTracker) takes it; the norm alone where nothing is clipped.
    pub clipped: Clipped,
    /// Whether the step was left out, because the loss or a gradient was not finite.
    pub skipped: bool,
    /// Wall time: data, gradients and update.
    pub seconds: f64,
}

/// What happens in a run, in order.
#[non_exhaustive]
pub enum Event<'a, M> {
    /// A step comes next.
    Begin {
        /// Its number, from 0.
        step: usize,
        /// The model before the update. While a copy of it lives, the optimizer must copy what it changes.
        model: &'a M,
    },
    /// A step is done.
    Step {
        /// Its numbers.
        report: StepReport,
        /// What the loss function had to say besides: see [`Loss::metric`](super::Loss::metric).
        metrics: &'a [(String, f64)],
        /// The model after the update.
        model: &'a M,
        /// The gradients, after clipping.
        grads: &'a Grads<M>,
    },
    /// A step was left out, because the loss or a gradient was not finite; comes after its [`Event::Step`].
    Skipped {
        /// Number of the step, from 0.
        step: usize,
        /// Mean loss over the micro-batches.
        loss: f64,
        /// Global norm of the gradients.
        norm: f64,
        /// Steps in a row that were left out, this one included.
        in_a_row: usize,
    },
    /// The model was evaluated after so many steps.
    Evaluated {
        /// Steps done.
        step: usize,
        /// What the evaluation gave.
        loss: f64,
        /// The numbers beside it.
        metrics: &'a [(String, f64)],
        /// The model that was evaluated.
        model: &'a M,
        /// Whether it is the best so far, by [`Trainer::keep_best`](super::Trainer::keep_best).
        best: bool,
    },
    /// A snapshot has been written to the disk.
    Saved {
        /// Steps done.
        step: usize,
        /// The file.
        path: &'a Path,
    },
    /// The stop flag ended the run after so many steps.
    Stopped {
        /// Steps done.
        step: usize,
    },
}
