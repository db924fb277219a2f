//! Stochastic gradient descent.

use super::{follow, for_each_param};
use crate::backend::cuda::optim::{self, Descent};
use crate::error::{Result, bail};
use crate::functional::Grads;
use crate::module::Module;
use crate::tensor::Tensor;
use std::collections::HashMap;

/// `p ← p − lr·(g + wd·p)`, with momentum `b ← μ·b + g` and Nesterov's form as in PyTorch.
#[derive(Clone, Debug, Default)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; 0 keeps no state.
    pub momentum: f64,
    /// L2 penalty added to the gradient.
    pub weight_decay: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
    /// Momentum buffers by parameter name; start empty.
    pub velocity: HashMap<String, Tensor>,
}

impl Sgd {
    /// Plain descent with a learning rate.
    pub fn new(lr: f64) -> Self {
        Sgd { lr, ..Self::default() }
    }

    /// One step on every trainable parameter of the model.
    ///
    /// # Errors
    /// Argument error for a rate that is not finite or gradients of another model.
    #[track_caller]
    pub fn step<M: Module + Clone>(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()> {
        let at = std::panic::Location::caller();
        let mut run = || {
            if !self.lr.is_finite() || !self.momentum.is_finite() || !self.weight_decay.is_finite() {
                bail!(
                    argument,
                    "lr, momentum and weight decay must be finite; found {}, {}, {}",
                    self.lr,
                    self.momentum,
                    self.weight_decay
                );
            }
            for_each_param(model, grads, |name, p, g| {
                if let Some(v) = self.velocity.get_mut(name) {
                    follow(v, p)?;
                }
                if p.device().is_cuda() {
                    return self.step_on_device(name, p, g);
                }
                let mut g = g.clone();
                if self.weight_decay != 0.0 {
                    g = g.add(&p.mul_scalar(self.weight_decay)?)?;
                }
                if self.momentum != 0.0 {
                    let v = match self.velocity.get(name) {
                        None => g.clone(),
                        Some(v) => v.mul_scalar(self.momentum)?.add(&g)?,
                    };
                    g = if self.nesterov { g.add(&v.mul_scalar(self.momentum)?)? } else { v.clone() };
                    self.velocity.insert(name.to_owned(), v);
                }
                *p = p.sub(&g.mul_scalar(self.lr)?)?;
                Ok(())
            })
        };
        run().map_err(|e| e.in_op("sgd", at))
    }

    /// The same in one kernel.
    fn step_on_device(&mut self, name: &str, p: &mut Tensor, g: &Tensor) -> Result<()> {
        let first = !self.velocity.contains_key(name);
        let velocity = match self.momentum {
            0.0 => None,
            _ if first => Some(self.velocity.entry(name.to_owned()).or_insert(g.zeros_like()?)),
            _ => self.velocity.get_mut(name),
        };
        let step = Descent { lr: self.lr, momentum: self.momentum, decay: self.weight_decay, nesterov: self.nesterov, first };
        optim::descend(p.own_cuda()?, &g.array.cuda()?, velocity.map(Tensor::own_cuda).transpose()?, step)
    }
}
