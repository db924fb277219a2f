//! Adam with decoupled weight decay.

use super::{follow, for_each_param};
use crate::backend::cpu::optim::{AdamStep, adam_update};
use crate::backend::cpu::{Compute, Real};
use crate::backend::cuda;
use crate::capture::not_in_state;
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::functional::Grads;
use crate::module::{Module, Phase, Visitor};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// AdamW (Loshchilov & Hutter 2019), in PyTorch's order of operations:
/// `p ← p·(1 − lr·wd)`, `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.
///
/// | Field | Default |
/// |---|---|
/// | `lr` | 1e-3 |
/// | `betas` | (0.9, 0.999) |
/// | `eps` | 1e-8 |
/// | `weight_decay` | 0.01 |
/// | `decays` | tensors of rank 2 and more: no biases, no norms (PyTorch decays every parameter) |
/// | `amsgrad` | false |
///
/// The bias corrections are computed in `f64`. One pass over parameter, gradient and both moments.
///
/// ```
/// use cotangent::{optim::AdamW, value_and_grad, Tensor};
/// let mut w = Tensor::from_slice(&[5f32], [1])?;
/// let mut adam = AdamW { lr: 0.1, ..AdamW::default() };
/// for _ in 0..300 {
///     let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
///     adam.step(&mut w, &g)?;
/// }
/// assert!(w.item()?.abs() < 1e-2);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Learning rate; set it from a schedule before each step.
    pub lr: f64,
    /// Decay rates of the moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Which parameters decay, by name and tensor. Default: all of rank 2 and more (no norms, no biases).
    pub decays: fn(&str, &Tensor) -> bool,
    /// Divide by the largest second moment seen so far (Reddi et al. 2018).
    pub amsgrad: bool,
    /// Moments and step count; start with the default.
    pub state: AdamState,
}

/// What Adam remembers between steps.
#[derive(Clone, Debug, Default)]
pub struct AdamState {
    moments: HashMap<String, Moments>,
    steps: u64,
    /// While a step is captured: where its numbers begin.
    live: Option<usize>,
    /// Numbers that are part of a captured step.
    fixed: Option<((f64, f64), f64, bool)>,
}

#[derive(Clone, Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
    largest: Option<Tensor>,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            lr: 1e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            decays: |_, t| t.rank() >= 2,
            amsgrad: false,
            state: AdamState::default(),
        }
    }
}

/// The state that a step changes: the moments by name, in order. (What else it holds are numbers of the host.)
impl Module for AdamW {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        let fixed = (self.betas, self.eps, self.amsgrad);
        let mut names: Vec<String> = self.state.moments.keys().cloned().collect();
        names.sort_unstable();
        for name in names {
            if let Some(m) = self.state.moments.get_mut(&name) {
                let Moments { first, second, largest } = m;
                v.field(&name, &mut Fields([("first", Some(first)), ("second", Some(second)), ("largest", largest.as_mut())]));
            }
        }
        v.numbers(3, |phase, at, numbers| {
            match phase {
                Phase::Begin => (self.state.live, self.state.fixed) = (Some(at), Some(fixed)),
                Phase::End => self.state.live = None,
                Phase::Step => {
                    if self.state.fixed.is_some_and(|f| f != fixed) {
                        bail!(capture, "adamw: betas, eps and amsgrad are part of the captured step; capture it again");
                    }
                    self.check()?;
                    self.state.steps += 1;
                    let step = self.numbers(self.weight_decay);
                    numbers.copy_from_slice(&[step.rate, step.root, step.shrink]);
                }
            }
            Ok(())
        });
    }
}

/// Some tensors under their names.
struct Fields<'a>([(&'static str, Option<&'a mut Tensor>); 3]);

impl Module for Fields<'_> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (name, tensor) in &mut self.0 {
            if let Some(t) = tensor {
                v.field(name, *t);
            }
        }
    }
}

impl AdamW {
    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.state.steps
    }

    /// First and second moment of a parameter, once it has been stepped.
    pub fn moments(&self, name: &str) -> Option<(&Tensor, &Tensor)> {
        self.state.moments.get(name).map(|m| (&m.first, &m.second))
    }

    /// One step on every trainable parameter of the model.
    ///
    /// In a captured step ([`Device::capture`](crate::Device::capture)) the optimizer is part of the state; `lr` and
    /// `weight_decay` may change between replays, the other numbers are part of the graph.
    ///
    /// # Errors
    /// Argument error for rates outside their range or gradients of another model; dtype error for half-precision
    /// parameters (keep them in f32 and cast inside the gradient function). The model is unchanged when the arguments
    /// are refused.
    #[track_caller]
    pub fn step<M: Module + Clone>(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()> {
        let at = std::panic::Location::caller();
        let _running = cuda::capture::Running::new("adamw", at);
        self.run(model, grads).map_err(|e| e.in_op("adamw", at))
    }

    fn check(&self) -> Result<()> {
        let (b1, b2) = self.betas;
        if !(0.0..1.0).contains(&b1) || !(0.0..1.0).contains(&b2) || self.eps.is_nan() || self.eps < 0.0 || !self.lr.is_finite() {
            bail!(
                argument,
                "betas must be in [0, 1), eps not negative and lr finite; found betas {:?}, eps {}, lr {}",
                self.betas,
                self.eps,
                self.lr
            );
        }
        Ok(())
    }

    /// The numbers of the step at hand for a parameter of this weight decay.
    fn numbers(&self, decay: f64) -> AdamStep {
        let (b1, b2) = self.betas;
        #[allow(clippy::cast_precision_loss)] // reason: step counts stay far below 2⁵³
        let t = self.state.steps as f64;
        AdamStep {
            shrink: 1.0 - self.lr * decay,
            rate: self.lr / (1.0 - b1.powf(t)),
            root: (1.0 - b2.powf(t)).sqrt(),
            b1,
            b2,
            eps: self.eps,
        }
    }

    fn run<M: Module + Clone>(&mut self, model: &mut M, grads: &Grads<M>) -> Result<()> {
        self.check()?;
        // Refuse before anything changes.
        for_each_param(model, grads, |name, p, _| {
            if p.dtype().is_half() {
                bail!(dtype, "`{name}` is {}: keep f32 parameters and cast them inside the gradient function", p.dtype());
            }
            match self.state.moments.get(name) {
                Some(m) if m.first.shape() != p.shape() || m.first.dtype() != p.dtype() => Err(Error::shape(format!(
                    "`{name}` is {} {}, its moments are {} {}",
                    p.dtype(),
                    p.shape(),
                    m.first.dtype(),
                    m.first.shape()
                ))),
                _ => Ok(()),
            }
        })?;
        // Nothing is computed in a capture: each replay counts its step, in `visit`.
        let capturing = cuda::capture::active();
        let live = self.state.live.and_then(cuda::capture::numbers);
        if capturing && live.is_none() {
            return Err(not_in_state("the optimizer"));
        }
        if !capturing {
            self.state.steps += 1;
        }
        for_each_param(model, grads, |name, p, g| {
            if !self.state.moments.contains_key(name) {
                if capturing {
                    bail!(capture, "`{name}` has no moments yet: take one step before the capture");
                }
                let zero = || Tensor::zeros_like(p);
                let moments = Moments { first: zero()?, second: zero()?, largest: if self.amsgrad { Some(zero()?) } else { None } };
                self.state.moments.insert(name.to_owned(), moments);
            }
            let decays = (self.decays)(name, p);
            let step = self.numbers(if decays { self.weight_decay } else { 0.0 });
            let Some(m) = self.state.moments.get_mut(name) else { bail!(argument, "the state of `{name}` is gone") };
            for state in [Some(&mut m.first), Some(&mut m.second), m.largest.as_mut()].into_iter().flatten() {
                follow(state, p)?;
            }
            if p.device().is_cuda() {
                let Moments { first, second, largest } = m;
                let largest = largest.as_mut().map(Tensor::own_cuda).transpose()?;
                let live = live.map(|at| (at, decays));
                return cuda::optim::adam(p.own_cuda()?, &g.array.cuda()?, first.own_cuda()?, second.own_cuda()?, largest, step, live);
            }
            match p.dtype() {
                DType::F64 => update::<f64>(p, g, m, step),
                _ => update::<f32>(p, g, m, step),
            }
        })
    }
}

fn update<T: Compute<Acc = T> + Real>(p: &mut Tensor, g: &Tensor, m: &mut Moments, step: AdamStep) -> Result<()> {
    let g = g.array.cpu()?.contiguous::<T>()?;
    // Three nested closures: each opens one tensor for writing.
    let Moments { first, second, largest } = m;
    let mut result = Ok(());
    p.update(|p: &mut [T]| {
        result = first.update(|m: &mut [T]| {
            let inner = second.update(|v: &mut [T]| match largest {
                None => adam_update(p, &g, m, v, None, step),
                Some(l) => {
                    let _ = l.update(|l: &mut [T]| adam_update(p, &g, m, v, Some(l), step));
                }
            });
            debug_assert!(inner.is_ok(), "moments have the parameter's dtype");
        });
    })?;
    result
}
