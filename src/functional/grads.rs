//! Gradients as a tree, and what is known about them.

use crate::array::Array;
use crate::backend::Device;
use crate::backend::cpu::reduce::max_abs;
use crate::backend::cuda::capture;
use crate::dtype::with_float;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{Module, try_walk};
use crate::ops::ACCUMULATE;
use crate::tensor::{Short, Tensor};
use std::ops::Deref;
use std::panic::Location;

/// Gradients in the shape of what was differentiated: reads like the model, with gradients in place of parameters.
#[derive(Clone)]
pub struct Grads<M> {
    tree: M,
    /// In visiting order.
    disconnected: Vec<String>,
    /// No gradient element is larger than this: the last check sets it, and any change clears it.
    pub(crate) largest: Option<f64>,
    pub(crate) losses: Losses,
}

/// What is known about the losses that gradients are of.
#[derive(Clone)]
pub(crate) struct Losses {
    /// Whether all that were looked at are finite.
    finite: bool,
    /// Those on devices that nobody has waited for yet.
    waiting: Vec<Array>,
}

impl Losses {
    pub(crate) fn are_finite(&self) -> Result<bool> {
        for loss in &self.waiting {
            if !Tensor::from_array(loss.clone()).item()?.is_finite() {
                return Ok(false);
            }
        }
        Ok(self.finite)
    }

    /// Notes the loss that gradients are of: read at once in host memory, later on a device.
    pub(super) fn note(&mut self, y: &Tensor) -> Result<()> {
        if y.device().is_cuda() {
            // A captured step's loss is the caller's to read.
            if !capture::active() {
                self.waiting.push(y.array.clone());
            }
        } else if y.dtype().is_float() {
            self.finite = y.untracked().item()?.is_finite();
        }
        Ok(())
    }
}

impl<M: Module + Clone> std::fmt::Debug for Grads<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.named().as_slice() {
            [(name, only)] if name.is_empty() => std::fmt::Debug::fmt(only, f),
            named => f.debug_map().entries(named.iter().map(|(name, g)| (name, Short(g)))).finish(),
        }
    }
}

impl<M> Deref for Grads<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.tree
    }
}

impl AsRef<Tensor> for Grads<Tensor> {
    fn as_ref(&self) -> &Tensor {
        &self.tree
    }
}

impl From<Grads<Tensor>> for Tensor {
    fn from(g: Grads<Tensor>) -> Self {
        g.tree
    }
}

impl<M: Module + Clone> Grads<M> {
    /// Gradients of which nothing is known.
    pub(super) fn new(tree: M) -> Self {
        Grads { tree, disconnected: Vec::new(), largest: None, losses: Losses { finite: true, waiting: Vec::new() } }
    }

    pub(super) fn set_disconnected(&mut self, names: Vec<String>) {
        self.disconnected = names;
    }

    /// The tree of gradients itself.
    pub fn into_inner(self) -> M {
        self.tree
    }

    /// Parameters that the result did not depend on, in visiting order. Empty unless allowed by
    /// [`GradOptions`](super::GradOptions).
    ///
    /// Their gradient reads as zero and is absent, as PyTorch's `grad` is `None`: optimizers leave such a parameter alone (no
    /// decay, no momentum, no count of its steps), and a sum of gradients has those that any part has. See
    /// [`Grads::absent_as_zero`].
    pub fn disconnected(&self) -> &[String] {
        &self.disconnected
    }

    /// Takes absent gradients for zeros: parameters that the result did not depend on decay and keep their momentum, as
    /// optax does it and PyTorch with `zero_grad(set_to_none=False)`.
    ///
    /// ```
    /// use cotangent::{F64, GradOptions, Tensor, optim::Sgd, value_and_grad_with};
    /// let mut two = (Tensor::scalar(1f64)?, Tensor::scalar(1f64)?);
    /// let mut sgd = Sgd { weight_decay: 0.5, ..Sgd::new(0.1) };
    /// let options = GradOptions { allow_disconnected: true };
    /// let (_, mut grads) = value_and_grad_with(&two, options, |(a, _)| a.square())?;
    /// sgd.step(&mut two, &grads)?;
    /// assert_eq!(two.1.item()?, 1.0);
    /// grads.absent_as_zero();
    /// sgd.step(&mut two, &grads)?;
    /// assert_eq!(two.1.item()?, 0.95);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn absent_as_zero(&mut self) {
        self.disconnected.clear();
    }

    /// Keeps the gradients of the parameters whose name satisfies `keep`; those of the others become zero and absent.
    ///
    /// # Errors
    /// Argument error that lists the names when none satisfies it: a name that is written otherwise would keep nothing; out of memory.
    #[track_caller]
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Result<()> {
        let at = Location::caller();
        self.keep(&keep).map_err(|e| e.in_op("retain", at).called_at(at))
    }

    fn keep(&mut self, keep: &dyn Fn(&str) -> bool) -> Result<()> {
        let named = self.named();
        if !named.iter().any(|(name, _)| keep(name)) {
            let names = memory::some(named.iter().map(|(name, _)| name.as_str()));
            bail!(argument, "no gradient has a name that is to be kept; there are: {names}");
        }
        drop(named);
        self.change(|name, g| {
            if !keep(name) {
                *g = g.zeros_like()?;
            }
            Ok(())
        })?;
        self.forget(|name| !keep(name));
        Ok(())
    }

    /// Makes gradients absent by name, whatever they are.
    pub(crate) fn forget(&mut self, absent: impl Fn(&str) -> bool) {
        let old = std::mem::take(&mut self.disconnected);
        let all = self.named().into_iter().map(|(name, _)| name);
        self.disconnected = all.filter(|name| absent(name) || old.contains(name)).collect();
    }

    /// The gradients by parameter name; frozen parameters have none.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.tree.trainable()
    }

    /// Replaces every gradient. An [absent](Grads::disconnected) one that becomes something else than zero is absent no longer.
    ///
    /// # Errors
    /// The first error of `f`; capture error when a captured step replaces an absent gradient, since whether it is zero can only be
    /// seen on the host.
    #[track_caller]
    pub fn update(&mut self, mut f: impl FnMut(&str, &mut Tensor) -> Result<()>) -> Result<()> {
        let absent = std::mem::take(&mut self.disconnected);
        let (mut next, mut still) = (0, Vec::new());
        let result = self.change(|name, g| {
            if absent.get(next).is_none_or(|n| n != name) {
                return f(name, g);
            }
            next += 1;
            let before = g.clone();
            f(name, g)?;
            if g.shares_storage(&before) || is_zero(name, g)? {
                still.push(name.to_owned());
            }
            Ok(())
        });
        self.disconnected = if result.is_ok() { still } else { absent };
        result
    }

    /// [`Grads::update`] by a function that leaves zeros zero, or makes no difference to which are absent.
    pub(crate) fn change(&mut self, mut f: impl FnMut(&str, &mut Tensor) -> Result<()>) -> Result<()> {
        self.largest = None;
        try_walk(&mut self.tree, |name, leaf| if leaf.is_trainable() { f(name, leaf.tensor) } else { Ok(()) })
    }

    /// Adds other gradients of the same model: accumulation over micro-batches. Absent is what is absent in both.
    ///
    /// # Errors
    /// Shape error when the trees differ; nothing is changed then.
    #[track_caller]
    pub fn accumulate(&mut self, other: &Grads<M>) -> Result<()> {
        let at = Location::caller();
        self.add(other).map_err(|e| e.in_op("accumulate", at))
    }

    fn add(&mut self, other: &Grads<M>) -> Result<()> {
        let (own, others) = (self.named(), other.named());
        // All is compared before anything changes.
        if own.len() != others.len() {
            bail!(shape, "the other gradients have {} tensors, these {}", others.len(), own.len());
        }
        for ((name, g), (theirs, o)) in own.iter().zip(&others) {
            if name != theirs {
                bail!(shape, "the other gradients have `{theirs}` in the place of `{name}`");
            }
            if g.shape() != o.shape() || g.dtype() != o.dtype() {
                bail!(shape, "{} is {}{} in the other gradients, {}{} here", quoted(name), o.dtype(), o.shape(), g.dtype(), g.shape());
            }
        }
        drop(own);
        let mut it = others.iter();
        let absent = std::mem::take(&mut self.disconnected);
        let (mut own_absent, mut other_absent) = (absent.iter().peekable(), other.disconnected.iter().peekable());
        let mut both = Vec::new();
        self.change(|name, g| {
            let Some((_, o)) = it.next() else { return Ok(()) };
            match (own_absent.next_if(|n| *n == name).is_some(), other_absent.next_if(|n| *n == name).is_some()) {
                (true, true) => both.push(name.to_owned()),
                (true, false) => *g = o.clone(),
                (false, true) => {}
                (false, false) => {
                    let own = std::mem::replace(g, o.clone());
                    *g = (ACCUMULATE.add)(own, o)?;
                }
            }
            Ok(())
        })?;
        self.disconnected = both;
        self.losses.finite &= other.losses.finite;
        memory::extend(&mut self.losses.waiting, other.losses.waiting.iter().cloned())
    }

    /// Whether the losses that these are the gradients of are finite; true of gradients that are not of a loss. On a device it waits
    /// for them.
    ///
    /// A gradient can be finite where the loss is not: the logarithm of a negative number is NaN and its derivative is not. Optimizers
    /// skip such a step unless `skip_non_finite` is false, and count it.
    ///
    /// ```
    /// use cotangent::{Tensor, optim::Sgd, value_and_grad};
    /// let mut w = Tensor::scalar(-2f64)?;
    /// let (loss, grads) = value_and_grad(&w, |w| w.log())?;
    /// assert!(loss.item()?.is_nan() && grads.item()? == -0.5);
    /// assert!(grads.is_finite()? && !grads.is_loss_finite()?);
    /// let mut sgd = Sgd::new(0.1);
    /// sgd.step(&mut w, &grads)?;
    /// assert_eq!((w.item()?, sgd.steps(), sgd.skipped()), (-2.0, 0, 1));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    #[track_caller]
    pub fn is_loss_finite(&self) -> Result<bool> {
        let at = Location::caller();
        self.losses.are_finite().map_err(|e| e.in_op("is_loss_finite", at).called_at(at))
    }
}

fn is_zero(name: &str, g: &Tensor) -> Result<bool> {
    if capture::active() {
        bail!(
            capture,
            "{} has no gradient, and update replaces it: call absent_as_zero() or retain() before, to say what is meant",
            quoted(name)
        );
    }
    let g = g.detach().to_device(Device::Cpu)?;
    let largest: Result<f64> = with_float!(g.dtype(), T => max_abs::<T>(&g.array.cpu()?));
    largest.map(|m| m == 0.0).map_err(|e: Error| e)
}

/// A parameter's name for messages; a tensor given alone has none.
pub(super) fn quoted(name: &str) -> String {
    if name.is_empty() { "the input".into() } else { format!("`{name}`") }
}
