//! Anomaly mode: the first op that gives a NaN or an infinity, forward or backward.

use super::stats::Stats;
use crate::error::{Error, Result};
use crate::functional::{GradOptions, Grads, gradient};
use crate::module::Module;
use crate::tape::{Observer, Pulled, Ran};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Watches a tape for the first value or cotangent that is not finite, and makes the op that gives it an error with
/// the op, the line that called it, the module it follows, and the statistics of its operands.
///
/// Every value is read back and searched: for finding, not for training. A tape that is not watched pays one flag per op.
///
/// ```
/// use cotangent::{diagnostics::Anomaly, value_and_grad, Tensor};
/// let x = Tensor::from_slice(&[1f64, 0.0], [2])?;
/// // √0 has an infinite derivative: the value is finite, the gradient is not.
/// let e = value_and_grad(&x, |x| {
///     Anomaly::new().attach(x)?;
///     x.sqrt()?.sum(..)
/// })
/// .unwrap_err();
/// assert!(e.is_non_finite() && e.to_string().starts_with("sqrt: its derivative gives"), "{e}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Anomaly {
    allow_infinite: bool,
    found: Arc<Mutex<Option<Finding>>>,
}

/// What anomaly mode found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The op.
    pub op: &'static str,
    /// The line that called it.
    pub at: &'static Location<'static>,
    /// Whether its derivative gave the value, and not the op itself.
    pub backward: bool,
    /// The last module with parameters that ran before the op.
    pub after: Option<String>,
    /// What it was given: operands, or the cotangents of its outputs.
    pub given: Vec<Stats>,
    /// What it made of them: outputs, or its inputs' cotangents (those that were wanted).
    pub gave: Vec<Stats>,
    /// Whether something it was given was not finite already.
    pub passed_on: bool,
}

impl Anomaly {
    /// NaN and infinities are errors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only NaN is an error: for programs that mask by −∞.
    #[must_use]
    pub fn allow_infinite(mut self) -> Self {
        self.allow_infinite = true;
        self
    }

    /// Watches the tape that tracks a model's parameters: call it first inside a gradient function.
    ///
    /// # Errors
    /// Tape error when nothing tracks them; non-finite error that names parameters which are not finite before the first op.
    #[track_caller]
    pub fn attach<M: Module + Clone>(&self, model: &M) -> Result<()> {
        let at = Location::caller();
        let mut bad = Vec::new();
        for (name, t) in model.trainable() {
            let stats = Stats::of(&t)?;
            if self.is_bad(&stats) {
                bad.push((name, stats));
            }
        }
        if !bad.is_empty() {
            let list: Vec<String> = bad.iter().map(|(n, s)| format!("`{n}` {s}")).collect();
            let e = Error::non_finite(format!("not finite before the first op: {}", list.join("; ")));
            return Err(e.with_names(bad.into_iter().map(|(n, _)| n).collect()).in_op("anomaly", at));
        }
        let watch = Watch { options: self.clone(), ran: Mutex::default() };
        super::observe(model, Arc::new(watch)).map_err(|e| e.in_op("anomaly", at))
    }

    /// What was found, after an error of kind [`ErrorKind::NonFinite`](crate::ErrorKind::NonFinite).
    pub fn finding(&self) -> Option<Finding> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_bad(&self, s: &Stats) -> bool {
        s.nan > 0 || (s.infinite > 0 && !self.allow_infinite)
    }

    /// An error when something that came out is not finite.
    fn judge(&self, finding: impl FnOnce() -> Result<Finding>, gave: &[Stats]) -> Result<()> {
        if !gave.iter().any(|s| self.is_bad(s)) {
            return Ok(());
        }
        let mut f = finding()?;
        f.passed_on = f.given.iter().any(|s| self.is_bad(s));
        let what = if f.backward { "its derivative gives" } else { "gives" };
        let mut text = what.to_owned();
        for s in f.gave.iter().filter(|s| self.is_bad(s)) {
            let _ = write!(text, " {s}");
        }
        let kind = if f.backward { "cotangent" } else { "operand" };
        text.push_str(match (f.passed_on, f.backward) {
            (false, _) => "; what it was given is finite",
            (true, false) => "; but an operand was not finite already: a constant (no tape saw it made), or an input of the function",
            (true, true) => "; but the cotangent it was given was not finite already: the seed, or a sum of cotangents that overflowed",
        });
        for (i, s) in f.given.iter().enumerate() {
            let _ = write!(text, "; {kind} {i}: {s}");
        }
        if let Some(after) = &f.after {
            let _ = write!(text, "; after module `{after}`");
        }
        let (op, at) = (f.op, f.at);
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(f);
        Err(Error::non_finite(text).in_op(op, at))
    }
}

/// [`value_and_grad`](crate::value_and_grad) in anomaly mode.
///
/// # Errors
/// As there; non-finite error at the first op that gives a NaN or an infinity.
#[track_caller]
pub fn detect_anomaly<M, F>(at: &M, f: F) -> Result<(Tensor, Grads<M>)>
where
    M: Module + Clone,
    F: FnOnce(&M) -> Result<Tensor>,
{
    let line = Location::caller();
    gradient("detect_anomaly", at, GradOptions::default(), |m| {
        Anomaly::new().attach(m).map_err(|e| e.called_at(line))?;
        f(m)
    })
}

struct Watch {
    options: Anomaly,
    ran: Mutex<Modules>,
}

/// The last module that ran, and the one before each op: its derivative is reported with it.
#[derive(Default)]
struct Modules {
    last: Option<Arc<str>>,
    before: HashMap<usize, Arc<str>>,
}

impl Watch {
    fn modules(&self) -> MutexGuard<'_, Modules> {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<Stats>> {
    tensors.filter(|t| t.dtype().is_float()).map(Stats::of).collect()
}

impl Observer for Watch {
    fn ran(&self, op: &Ran<'_>) -> Result<()> {
        let gave = all(op.outputs.iter())?;
        let last = self.modules().last.clone();
        let finding = || {
            let given = all(op.inputs.iter().copied())?;
            let after = last.as_ref().map(|m| m.to_string());
            Ok(Finding { op: op.name, at: op.at, backward: false, after, given, gave: gave.clone(), passed_on: false })
        };
        self.options.judge(finding, &gave)?;
        let mut modules = self.modules();
        if let Some(module) = super::modules::of(op) {
            modules.last = Some(module.into());
        }
        if let Some(last) = last {
            crate::memory::insert(&mut modules.before, op.node, last)?;
        }
        Ok(())
    }

    fn pulled(&self, op: &Pulled<'_>) -> Result<()> {
        let gave = all(op.x_bar.iter().flatten())?;
        let finding = || {
            let after = self.modules().before.get(&op.node).map(|m| m.to_string());
            let given = all((0..).map_while(|i| op.y_bar.slot(i)).flatten())?;
            Ok(Finding { op: op.name, at: op.at, backward: true, after, given, gave: gave.clone(), passed_on: false })
        };
        self.options.judge(finding, &gave)
    }

    fn tapped(&self, _: &str, _: &Tensor) {}
}
