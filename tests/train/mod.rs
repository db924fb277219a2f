//! Training: optimizers, the trainer, runs that continue, what a run shows and what a run survives; whole programs.

mod diagnostics;
mod not_finite;
mod notices;
mod optimizer_rules;
mod optimizer_state;
mod optimizers;
mod postmortems;
mod programs;
pub mod pytorch_run;
mod resume;
mod run_folders;
mod schedules;
pub mod survives;
mod trainer;
mod user_training;

use cotangent::{Grads, Tensor, grad};

/// Gradients that are `g`.
fn gradient_of(at: &Tensor, g: &Tensor) -> Grads<Tensor> {
    grad(at, |x| x.mul(g)?.sum(..)).unwrap()
}
