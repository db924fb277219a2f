//! Stochastic gradient descent.

use super::groups::{self, Group};
use super::macros::optimizer;
use super::memory::{Memory, Named, Pending, Rule, Slots};
use crate::backend::cuda::optim::Descent;
use crate::error::{Result, bail};
use crate::module::Module;
use crate::tensor::Tensor;

/// `p ← p − lr·(g + wd·p)`, with momentum `b ← μ·b + (1−τ)·g` (at first `b = g`) and Nesterov's form as in PyTorch.
///
/// ```
/// use cotangent::{optim::Sgd, value_and_grad, Tensor};
/// let mut w = Tensor::from_slice(&[5f32], [1])?;
/// let mut sgd = Sgd { momentum: 0.9, nesterov: true, ..Sgd::new(0.01) };
/// let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
/// sgd.step(&mut w, &g)?;
/// assert!((w.item()? - 4.81).abs() < 1e-6);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sgd {
    /// Learning rate; 1e-3, as PyTorch's.
    pub lr: f64,
    /// Momentum μ; 0, the default, keeps no state.
    pub momentum: f64,
    /// Dampening τ of the gradients that enter the momentum, in `[0, 1]`; 0.
    pub dampening: f64,
    /// L2 penalty added to the gradient of every parameter that no group excepts; 0.
    pub weight_decay: f64,
    /// Look ahead along the momentum; false. Needs momentum, and no dampening.
    pub nesterov: bool,
    /// Exceptions for some parameters; none.
    pub groups: Vec<Group>,
    /// Skip, and count, a step whose loss is not finite or whose gradients hold an infinity or NaN; true.
    pub skip_non_finite: bool,
    /// Momentum buffers and step count; start with the default.
    pub memory: Memory,
}

impl Default for Sgd {
    fn default() -> Self {
        Sgd {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            groups: Vec::new(),
            skip_non_finite: true,
            memory: Memory::default(),
        }
    }
}

impl Sgd {
    const RULE: Rule = Rule { name: "sgd", slots: &["momentum_buffer"], squares: false };

    /// Plain descent with a learning rate.
    pub fn new(lr: f64) -> Self {
        Sgd { lr, ..Self::default() }
    }

    /// The momentum of a parameter, once it has been stepped.
    pub fn velocity(&self, name: &str) -> Option<&Tensor> {
        self.memory.tensor(name, 0)
    }

    /// What a run must have in common with one that it continues.
    fn hyperparameters(&self) -> Vec<(&'static str, String)> {
        vec![
            ("momentum", format!("{:?}", self.momentum)),
            ("dampening", format!("{:?}", self.dampening)),
            ("weight_decay", format!("{:?}", self.weight_decay)),
            ("nesterov", format!("{:?}", self.nesterov)),
        ]
    }

    fn run(&mut self, model: &mut dyn Module, grads: &Named) -> Result<()> {
        let (momentum, dampening, nesterov) = (self.momentum, self.dampening, self.nesterov);
        if !momentum.is_finite() || momentum < 0.0 {
            bail!(argument, "momentum must be finite and not negative, found {momentum}");
        }
        if momentum >= 1.0 {
            bail!(argument, "momentum must be less than 1, or what it sums grows without bound; found {momentum}");
        }
        if !(0.0..=1.0).contains(&dampening) {
            bail!(argument, "dampening must be in [0, 1], or gradients enter the momentum with the wrong sign or grown; found {dampening}");
        }
        if nesterov && (momentum == 0.0 || dampening != 0.0) {
            bail!(argument, "nesterov needs momentum and no dampening; found momentum {momentum}, dampening {dampening}");
        }
        let Self { groups, memory, lr, weight_decay, .. } = self;
        groups::check_for(groups, &mut memory.grouped, model, *lr, *weight_decay)?;
        memory.keeps(&Self::RULE, |_, p, _| p.steps > 0 && momentum != 0.0)?;
        memory.run(&Self::RULE, model, grads, self.skip_non_finite, |pending, name, slots, p, g| {
            let (lr, decay) = groups::rates(groups, name, p, *lr, *weight_decay);
            // The kernel has no dampening.
            if p.device().is_cuda() && dampening == 0.0 {
                let first = slots.tensors[0].is_none();
                return on_device(pending, slots, p, g, Descent { lr, momentum, decay, nesterov, first });
            }
            let mut g = g.clone();
            if decay != 0.0 {
                g = g.add(&p.mul_scalar(decay)?)?;
            }
            if momentum != 0.0 {
                let v = match &slots.tensors[0] {
                    None => g.clone(),
                    Some(v) => v.mul_scalar(momentum)?.add(&g.mul_scalar(1.0 - dampening)?)?,
                };
                g = if nesterov { g.add(&v.mul_scalar(momentum)?)? } else { v.clone() };
                slots.tensors[0] = Some(v);
            }
            *p = p.sub(&g.mul_scalar(lr)?)?;
            Ok(())
        })
    }
}
optimizer!(Sgd);

/// The same in a launch that all parameters share.
fn on_device(pending: &mut Pending, slots: &mut Slots, p: &mut Tensor, g: &Tensor, step: Descent) -> Result<()> {
    if step.momentum != 0.0 {
        slots.zeros(0, p)?;
    }
    let velocity = slots.tensors[0].as_mut().filter(|_| step.momentum != 0.0);
    let g = pending.gradient(g)?;
    pending.descent.push(p.own_cuda()?, &g.array.cuda()?, velocity.map(Tensor::own_cuda).transpose()?, step)
}
