//! Muon: momentum whose matrices are made orthogonal.

use super::groups::{self, Group};
use super::macros::optimizer;
use super::memory::{Memory, Moments, Named, Rule, Slots};
use crate::backend::cuda::optim::{self, Momentum};
use crate::error::{Result, bail};
use crate::module::Module;
use crate::tensor::Tensor;

/// How long a step of Muon is, for a matrix `[a, b]` and the learning rate `lr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MuonScale {
    /// `0.2·√max(a, b)·lr`: the size of AdamW's steps, so that both take one learning rate and weight decay (Liu et al.
    /// 2025, PyTorch's `match_rms_adamw`).
    #[default]
    MatchAdamW,
    /// `√max(1, a/b)·lr`: Jordan's own (PyTorch's `original`); learning rates around 0.02.
    Original,
}

/// Muon (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon>) for matrices, AdamW for the rest.
///
/// A matrix's momentum `b ← b + (1−μ)(g − b)` (with Nesterov's form, `g + μ(b − g)`) is replaced by the nearest matrix with
/// orthogonal rows or columns, approximately: five Newton–Schulz steps `X ← aX + (bA + cA²)X`, `A = XXᵀ`, from `X = b/‖b‖`,
/// which leave singular values between 0.7 and 1.2. They run in the parameter's precision, at least `f32`. Weight decay
/// is decoupled, as in [`AdamW`](super::AdamW).
///
/// ```
/// use cotangent::{Key, F32, Tensor, optim::Muon, value_and_grad};
/// let mut w = Tensor::randn([4, 3], F32, Key::new(1))?;
/// let mut muon = Muon { lr: 0.1, ..Muon::default() };
/// for _ in 0..200 {
///     let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..))?;
///     muon.step(&mut w, &g)?;
/// }
/// assert!(w.abs()?.mean(..)?.item()? < 0.1);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Muon {
    /// Learning rate; 1e-3.
    pub lr: f64,
    /// Momentum μ of the matrices; 0.95.
    pub momentum: f64,
    /// Look ahead along the momentum; true.
    pub nesterov: bool,
    /// Newton–Schulz steps, at least 1; 5.
    pub newton_schulz: usize,
    /// Length of the matrices' steps.
    pub scale: MuonScale,
    /// Decoupled weight decay of the matrices, and of what else [`Muon::decays`]; 0.1.
    pub weight_decay: f64,
    /// Which parameters are stepped as matrices. Default: rank 2, but not those called `wte`, `wpe`, `embed…` or `lm_head`,
    /// which are tables of vectors.
    pub matrices: fn(&str, &Tensor) -> bool,
    /// Which parameters decay, unless a group says it. Default: all of rank 2 and more.
    pub decays: fn(&str, &Tensor) -> bool,
    /// AdamW's decay rates of the moments; (0.9, 0.95).
    pub betas: (f64, f64),
    /// AdamW's ε; 1e-8.
    pub eps: f64,
    /// Exceptions for some parameters; `lr` also sets AdamW's rate for those it steps.
    pub groups: Vec<Group>,
    /// Skip, and count, a step whose loss is not finite or whose gradients hold an infinity or NaN, or a number whose square is infinite; true.
    pub skip_non_finite: bool,
    /// Momentum, moments and step count; start with the default.
    pub memory: Memory,
}

impl Default for Muon {
    fn default() -> Self {
        Muon {
            lr: 1e-3,
            momentum: 0.95,
            nesterov: true,
            newton_schulz: 5,
            scale: MuonScale::default(),
            weight_decay: 0.1,
            matrices: |name, t| t.rank() == 2 && !["wte", "wpe", "embed", "lm_head"].iter().any(|table| name.contains(table)),
            decays: |name, t| !groups::norms_and_biases(name, t),
            betas: (0.9, 0.95),
            eps: 1e-8,
            groups: Vec::new(),
            skip_non_finite: true,
            memory: Memory::default(),
        }
    }
}

impl Muon {
    const RULE: Rule = Rule { name: "muon", slots: &["exp_avg", "exp_avg_sq", "momentum_buffer"], squares: true };
    const MOMENTUM: usize = 2;

    /// What a run must have in common with one that it continues.
    fn hyperparameters(&self) -> Vec<(&'static str, String)> {
        vec![
            ("momentum", format!("{:?}", self.momentum)),
            ("nesterov", format!("{:?}", self.nesterov)),
            ("newton_schulz", format!("{:?}", self.newton_schulz)),
            ("scale", format!("{:?}", self.scale)),
            ("weight_decay", format!("{:?}", self.weight_decay)),
            ("betas", format!("{:?}", self.betas)),
            ("eps", format!("{:?}", self.eps)),
        ]
    }

    fn run(&mut self, model: &mut dyn Module, grads: &Named) -> Result<()> {
        if !(0.0..1.0).contains(&self.momentum) {
            bail!(argument, "momentum must be in [0, 1), found {}", self.momentum);
        }
        if self.newton_schulz == 0 {
            bail!(
                argument,
                "newton_schulz must be at least 1: without a step the momentum is scaled to length one, and not made orthogonal"
            );
        }
        let adam = Moments { betas: self.betas, eps: self.eps, amsgrad: false };
        adam.check()?;
        groups::check_for(&self.groups, &mut self.memory.grouped, model, self.lr, self.weight_decay)?;
        self.memory.keeps(&Self::RULE, |name, p, slot| {
            let matrix = p.any().is_some_and(|t| (self.matrices)(name, t));
            p.steps > 0 && matrix == (slot == Self::MOMENTUM)
        })?;
        let mut memory = std::mem::take(&mut self.memory);
        let result = memory.run(&Self::RULE, model, grads, self.skip_non_finite, |pending, name, slots, p, g| {
            let decay = if (self.decays)(name, p) { self.weight_decay } else { 0.0 };
            let (lr, decay) = groups::rates(&self.groups, name, p, self.lr, decay);
            if (self.matrices)(name, p) && p.rank() == 2 {
                self.matrix_step(slots, p, g, lr, 1.0 - lr * decay)
            } else {
                adam.step(pending, slots, p, g, lr, 1.0 - lr * decay)
            }
        });
        self.memory = memory;
        result
    }

    fn matrix_step(&self, slots: &mut Slots, p: &mut Tensor, g: &Tensor, lr: f64, shrink: f64) -> Result<()> {
        let (rows, columns) = (p.shape()[0] as f64, p.shape()[1] as f64);
        let length = match self.scale {
            MuonScale::MatchAdamW => 0.2 * rows.max(columns).sqrt(),
            MuonScale::Original => (rows / columns.max(1.0)).max(1.0).sqrt(),
        };
        if p.device().is_cuda() {
            return self.matrix_step_on_device(slots, p, g, lr * length, shrink);
        }
        // b + w(g − b), as PyTorch's lerp.
        let lerp = |from: &Tensor, to: &Tensor, w: f64| from.add(&to.sub(from)?.mul_scalar(w)?);
        let first = match slots.tensors[Self::MOMENTUM].take() {
            Some(b) => b,
            None => g.zeros_like()?,
        };
        let b = lerp(&first, g, 1.0 - self.momentum)?;
        let ahead = if self.nesterov { lerp(g, &b, self.momentum)? } else { b.clone() };
        slots.tensors[Self::MOMENTUM] = Some(b);
        *p = p.mul_scalar(shrink)?.sub(&orthogonal(&ahead, self.newton_schulz)?.mul_scalar(lr * length)?)?;
        Ok(())
    }

    /// The same with one kernel before the Newton–Schulz products and one after them.
    fn matrix_step_on_device(&self, slots: &mut Slots, p: &mut Tensor, g: &Tensor, rate: f64, shrink: f64) -> Result<()> {
        slots.zeros(Self::MOMENTUM, p)?;
        let Some(b) = &mut slots.tensors[Self::MOMENTUM] else { bail!(argument, "the momentum is gone") };
        let (g, mut ahead) = (g.contiguous()?, p.zeros_like()?);
        let m = Momentum { mu: self.momentum, nesterov: self.nesterov };
        optim::muon_before([(b.own_cuda()?, g.array.cuda()?, ahead.own_cuda()?)], m)?;
        let o = orthogonal(&ahead, self.newton_schulz)?.contiguous()?;
        optim::muon_after([(p.own_cuda()?, o.array.cuda()?, shrink, rate)])
    }
}
optimizer!(Muon);

/// The orthogonal factor of a matrix, approximately: Newton–Schulz steps with Jordan's coefficients, whose slope at zero is
/// as large as possible. The zero matrix stays zero.
fn orthogonal(g: &Tensor, steps: usize) -> Result<Tensor> {
    let (a, b, c) = (3.4445, -4.7750, 2.0315);
    // The smaller square matrix is the product of rows of the wider form.
    let tall = g.shape()[0] > g.shape()[1];
    let x = if tall { g.t()? } else { g.clone() };
    let mut x = x.div(&x.norm(..)?.clamp(1e-7, None)?)?;
    for _ in 0..steps {
        let square = x.matmul(&x.t()?)?;
        let polynomial = square.mul_scalar(b)?.add(&square.matmul(&square)?.mul_scalar(c)?)?;
        x = x.mul_scalar(a)?.add(&polynomial.matmul(&x)?)?;
    }
    if tall { x.t() } else { Ok(x) }
}
