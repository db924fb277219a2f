//! Parameter groups: other learning rates and weight decays for some parameters, chosen by a predicate.

use crate::error::{Result, bail};
use crate::memory;
use crate::module::{Module, tensors_of};
use crate::tensor::Tensor;
use std::sync::Arc;

/// Some parameters of a model, and how they are trained differently. The first group that matches a parameter counts; one that
/// matches none is an error of the first step.
///
/// ```
/// use cotangent::optim::{AdamW, Group, Sgd, norms_and_biases};
/// let tables = Group::new(|name, _| name.contains("wte")).lr(0.1).weight_decay(0.0);
/// let adam = AdamW { groups: vec![tables], ..AdamW::default() };
/// // AdamW leaves norms and biases alone by default; the others decay all that no group excepts.
/// let sgd = Sgd { weight_decay: 1e-4, groups: vec![Group::new(norms_and_biases).weight_decay(0.0)], ..Sgd::new(0.1) };
/// # let _ = (adam, sgd);
/// ```
#[derive(Clone)]
pub struct Group {
    matches: Arc<dyn Fn(&str, &Tensor) -> bool + Send + Sync>,
    lr: f64,
    weight_decay: Option<f64>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("lr", &self.lr).field("weight_decay", &self.weight_decay).finish_non_exhaustive()
    }
}

impl Group {
    /// The parameters whose name and tensor satisfy the predicate; trained as the others until changed.
    ///
    /// The predicate is asked in every step, and must answer by name and shape alone.
    pub fn new(matches: impl Fn(&str, &Tensor) -> bool + Send + Sync + 'static) -> Self {
        Group { matches: Arc::new(matches), lr: 1.0, weight_decay: None }
    }

    /// Multiplies the optimizer's learning rate.
    #[must_use]
    pub fn lr(mut self, factor: f64) -> Self {
        self.lr = factor;
        self
    }

    /// Replaces the optimizer's weight decay.
    #[must_use]
    pub fn weight_decay(mut self, decay: f64) -> Self {
        self.weight_decay = Some(decay);
        self
    }
}

/// Whether a parameter is a norm's gain, a bias or a scalar: rank 0 or 1. These are usually not decayed.
pub fn norms_and_biases(_name: &str, t: &Tensor) -> bool {
    t.rank() < 2
}

/// Refuses numbers that would poison parameters.
pub(super) fn check(groups: &[Group], lr: f64, weight_decay: f64) -> Result<()> {
    let fits = |v: f64| v.is_finite() && v >= 0.0;
    if !fits(lr) || !fits(weight_decay) {
        bail!(argument, "lr and weight decay must be finite and not negative; found {lr}, {weight_decay}");
    }
    for (i, g) in groups.iter().enumerate() {
        let decay = g.weight_decay.unwrap_or(0.0);
        if !fits(g.lr) || !fits(decay) {
            bail!(argument, "lr and weight decay of groups[{i}] must be finite and not negative; found {}, {decay}", g.lr);
        }
    }
    Ok(())
}

/// [`check`], and refuses a group that matches no parameter, frozen ones included: its predicate is mistaken. Asked at the
/// first step, after a state was loaded, and when groups were added: `asked` is their number then.
pub(super) fn check_for(groups: &[Group], asked: &mut usize, model: &mut dyn Module, lr: f64, weight_decay: f64) -> Result<()> {
    check(groups, lr, weight_decay)?;
    if *asked != groups.len() {
        let named = tensors_of(model, false);
        if let Some(i) = groups.iter().position(|g| !named.iter().any(|(name, t)| (g.matches)(name, t))) {
            let names = match named.as_slice() {
                [(name, _)] if name.is_empty() => "a tensor without a name".to_owned(),
                named => memory::some(named.iter().map(|(name, _)| name.as_str())),
            };
            bail!(argument, "groups[{i}] matches no parameter of the model, which has: {names}");
        }
        *asked = groups.len();
    }
    Ok(())
}

/// Learning rate and weight decay of a parameter.
pub(super) fn rates(groups: &[Group], name: &str, p: &Tensor, lr: f64, weight_decay: f64) -> (f64, f64) {
    match groups.iter().find(|g| (g.matches)(name, p)) {
        Some(g) => (lr * g.lr, g.weight_decay.unwrap_or(weight_decay)),
        None => (lr, weight_decay),
    }
}
