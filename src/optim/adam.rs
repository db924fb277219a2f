//! Adam, with decoupled weight decay or an L2 penalty.

use super::groups::{self, Group, norms_and_biases};
use super::macros::optimizer;
use super::memory::{Memory, Moments, Named, Pending, Rule, Slots};
use crate::backend::cpu::optim::{AdamStep, adam_update};
use crate::backend::cpu::{Compute, Real};
use crate::dtype::DType;
use crate::error::{Result, bail};
use crate::module::{Module, Phase, Visitor};
use crate::tensor::Tensor;

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
/// | `groups` | none |
/// | `skip_non_finite` | true |
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
    /// Which parameters decay, by name and tensor, unless a group says it. Default: all of rank 2 and more (no norms, no
    /// biases).
    pub decays: fn(&str, &Tensor) -> bool,
    /// Divide by the largest second moment seen so far (Reddi et al. 2018).
    pub amsgrad: bool,
    /// Exceptions for some parameters.
    pub groups: Vec<Group>,
    /// Skip, and count, a step whose loss is not finite or whose gradients hold an infinity or NaN, or a number whose square is infinite.
    pub skip_non_finite: bool,
    /// Moments and step count; start with the default.
    pub memory: Memory,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            lr: 1e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            decays: |name, t| !norms_and_biases(name, t),
            amsgrad: false,
            groups: Vec::new(),
            skip_non_finite: true,
            memory: Memory::default(),
        }
    }
}

impl AdamW {
    pub(super) const RULE: Rule = Rule { name: "adamw", slots: &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], squares: true };

    /// First and second moment of a parameter, once it has been stepped.
    pub fn moments(&self, name: &str) -> Option<(&Tensor, &Tensor)> {
        self.memory.tensor(name, 0).zip(self.memory.tensor(name, 1))
    }

    /// The unrounded value of a parameter of half precision, once it has been stepped.
    pub fn master(&self, name: &str) -> Option<&Tensor> {
        self.memory.master(name)
    }

    fn rule(&self) -> Moments {
        Moments { betas: self.betas, eps: self.eps, amsgrad: self.amsgrad }
    }

    /// What a run must have in common with one that it continues.
    fn hyperparameters(&self) -> Vec<(&'static str, String)> {
        self.rule().hyperparameters(self.weight_decay)
    }

    fn run(&mut self, model: &mut dyn Module, grads: &Named) -> Result<()> {
        let adam = self.rule();
        let Self { groups, memory, lr, weight_decay, .. } = self;
        adam.check()?;
        groups::check_for(groups, &mut memory.grouped, model, *lr, *weight_decay)?;
        memory.keeps(&Self::RULE, |_, p, slot| adam.keeps(p, slot))?;
        memory.run(&Self::RULE, model, grads, self.skip_non_finite, |pending, name, slots, p, g| {
            let decay = if (self.decays)(name, p) { *weight_decay } else { 0.0 };
            let (lr, decay) = groups::rates(groups, name, p, *lr, decay);
            adam.step(pending, slots, p, g, lr, 1.0 - lr * decay)
        })
    }
}
optimizer!(AdamW);

/// Numbers of a parameter that change from step to step: rate, root and shrink of [`AdamStep`].
const LIVE: usize = 3;

/// What a step changes, as the state of a captured step ([`Device::capture`](crate::Device::capture)): the moments. Learning
/// rate, weight decay and groups may change between replays; the other fields are part of the graph.
impl Module for AdamW {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        let adam = self.rule();
        self.memory.visit(&Self::RULE, v);
        v.numbers(self.memory.numbers(LIVE), |phase, first, numbers| {
            let Self { groups, memory, lr, weight_decay, decays, .. } = self;
            match phase {
                Phase::Begin => {
                    memory.fixed = Some(adam);
                    memory.begin_capture(first, LIVE);
                }
                Phase::End => memory.end_capture(),
                Phase::Step => {
                    if memory.fixed.is_some_and(|f| f != adam) {
                        bail!(capture, "adamw: betas, eps and amsgrad are part of the captured step; capture it again");
                    }
                    groups::check(groups, *lr, *weight_decay)?;
                    memory.replay(LIVE, numbers, |name, slots, numbers| {
                        // The first moment has the parameter's shape and dtype.
                        let Some(p) = slots.any() else { return };
                        let decay = if decays(name, p) { *weight_decay } else { 0.0 };
                        let (lr, decay) = groups::rates(groups, name, p, *lr, decay);
                        let step = adam.numbers(slots, lr, 1.0 - lr * decay);
                        numbers.copy_from_slice(&[step.rate, step.root, step.shrink]);
                    });
                }
            }
            Ok(())
        });
    }
}

/// Adam (Kingma & Ba 2015) with PyTorch's L2 penalty: [`AdamW`] without its decay, on the gradient `g + wd·p`.
///
/// The penalty passes through both moments, so parameters with large gradients are decayed less: prefer [`AdamW`].
///
/// ```
/// use cotangent::{optim::Adam, value_and_grad, Tensor};
/// let mut w = Tensor::from_slice(&[5f32], [1])?;
/// let mut adam = Adam { lr: 0.1, weight_decay: 1e-3, ..Adam::default() };
/// let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
/// adam.step(&mut w, &g)?;
/// assert!((w.item()? - 4.9).abs() < 1e-6); // the first step's length is the learning rate
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Adam {
    /// Learning rate; 1e-3.
    pub lr: f64,
    /// Decay rates of the moments; (0.9, 0.999).
    pub betas: (f64, f64),
    /// Added to the root of the second moment; 1e-8.
    pub eps: f64,
    /// L2 penalty on every parameter that no group excepts; 0.
    pub weight_decay: f64,
    /// Divide by the largest second moment seen so far; false.
    pub amsgrad: bool,
    /// Exceptions for some parameters; none.
    pub groups: Vec<Group>,
    /// Skip, and count, a step whose loss is not finite or whose gradients hold an infinity or NaN, or a number whose square is infinite; true.
    pub skip_non_finite: bool,
    /// Moments and step count; start with the default.
    pub memory: Memory,
}

impl Default for Adam {
    fn default() -> Self {
        let AdamW { lr, betas, eps, amsgrad, groups, skip_non_finite, memory, .. } = AdamW::default();
        Adam { lr, betas, eps, weight_decay: 0.0, amsgrad, groups, skip_non_finite, memory }
    }
}

impl Adam {
    const RULE: Rule = Rule { name: "adam", slots: AdamW::RULE.slots, squares: true };

    fn rule(&self) -> Moments {
        Moments { betas: self.betas, eps: self.eps, amsgrad: self.amsgrad }
    }

    /// What a run must have in common with one that it continues.
    fn hyperparameters(&self) -> Vec<(&'static str, String)> {
        self.rule().hyperparameters(self.weight_decay)
    }

    fn run(&mut self, model: &mut dyn Module, grads: &Named) -> Result<()> {
        let adam = self.rule();
        let Self { groups, memory, lr, weight_decay, .. } = self;
        adam.check()?;
        groups::check_for(groups, &mut memory.grouped, model, *lr, *weight_decay)?;
        memory.keeps(&Self::RULE, |_, p, slot| adam.keeps(p, slot))?;
        memory.run(&Self::RULE, model, grads, self.skip_non_finite, |pending, name, slots, p, g| {
            let (lr, decay) = groups::rates(groups, name, p, *lr, *weight_decay);
            if decay == 0.0 {
                return adam.step(pending, slots, p, g, lr, 1.0);
            }
            let g = g.add(&p.mul_scalar(decay)?)?;
            adam.step(pending, slots, p, &g, lr, 1.0)
        })
    }
}
optimizer!(Adam);

impl Moments {
    pub(super) fn check(&self) -> Result<()> {
        let (b1, b2) = self.betas;
        if !(0.0..1.0).contains(&b1) || !(0.0..1.0).contains(&b2) || !self.eps.is_finite() || self.eps < 0.0 {
            bail!(argument, "betas must be in [0, 1), eps finite and not negative; found betas {:?}, eps {}", self.betas, self.eps);
        }
        Ok(())
    }

    /// What a run must have in common with one that it continues.
    fn hyperparameters(&self, weight_decay: f64) -> Vec<(&'static str, String)> {
        vec![
            ("betas", format!("{:?}", self.betas)),
            ("eps", format!("{:?}", self.eps)),
            ("weight_decay", format!("{weight_decay:?}")),
            ("amsgrad", format!("{:?}", self.amsgrad)),
        ]
    }

    /// Which slots a parameter must have.
    fn keeps(&self, p: &Slots, slot: usize) -> bool {
        p.steps > 0 && (slot < 2 || self.amsgrad)
    }

    /// The numbers of a parameter's step at hand.
    fn numbers(&self, slots: &Slots, lr: f64, shrink: f64) -> AdamStep {
        #[allow(clippy::cast_precision_loss)] // reason: step counts stay far below 2⁵³
        let t = slots.steps as f64;
        let (b1, b2) = self.betas;
        AdamStep { shrink, rate: lr / (1.0 - b1.powf(t)), root: (1.0 - b2.powf(t)).sqrt(), b1, b2, eps: self.eps }
    }

    /// Updates moments and parameter; `shrink` multiplies the parameter first. On a CUDA device the step is left pending.
    pub(super) fn step(&self, pending: &mut Pending, slots: &mut Slots, p: &mut Tensor, g: &Tensor, lr: f64, shrink: f64) -> Result<()> {
        for slot in 0..if self.amsgrad { 3 } else { 2 } {
            slots.zeros(slot, p)?;
        }
        let (step, live) = (self.numbers(slots, lr, shrink), slots.live_numbers());
        let [Some(first), Some(second), largest] = &mut slots.tensors else { bail!(argument, "the moments are gone") };
        let largest = largest.as_mut().filter(|_| self.amsgrad);
        if p.device().is_cuda() {
            let largest = largest.map(Tensor::own_cuda).transpose()?;
            let g = pending.gradient(g)?;
            let (p, first, second) = (p.own_cuda()?, first.own_cuda()?, second.own_cuda()?);
            return pending.adam.push(p, &g.array.cuda()?, first, second, largest, step, live);
        }
        match p.dtype() {
            DType::F64 => update::<f64>(p, g, first, second, largest, step),
            _ => update::<f32>(p, g, first, second, largest, step),
        }
    }
}

fn update<T: Compute<Acc = T> + Real>(
    p: &mut Tensor,
    g: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    largest: Option<&mut Tensor>,
    step: AdamStep,
) -> Result<()> {
    let g = g.array.cpu()?.contiguous::<T>()?;
    // Nested closures: each opens one tensor for writing.
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
