//! Gradient health over time: what a training run looked like, layer by layer.

use super::clip::ClipTracker;
use super::health::{HealthReport, Thresholds, layer_of, update_norms};
use super::stats::quantile;
use super::verdict::Verdict;
use crate::error::{Error, Result, bail};
use crate::functional::Grads;
use crate::memory;
use crate::module::Module;
use crate::optim::Clipped;
use std::fmt;
use std::panic::Location;

/// One recorded step.
#[derive(Clone, Debug)]
pub struct HistoryStep {
    /// Number of the step.
    pub step: u64,
    /// Loss.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global gradient norm before clipping.
    pub norm: f64,
    /// Whether the gradients were clipped.
    pub clipped: bool,
    /// Gradient norm of each layer before clipping, in the order of [`HealthHistory::layers`].
    pub norms: Vec<f64>,
    /// Verdict of each layer.
    pub verdicts: Vec<Verdict>,
    /// Norm of the update over the parameters' norm of each layer; empty unless [`HealthHistory::updates`] was called.
    pub updates: Vec<f64>,
}

/// What a training run's gradients looked like: prints as a table, and as a page with pictures.
///
/// ```
/// use cotangent::{diagnostics::HealthHistory, nn::Linear, optim::Sgd, value_and_grad, Key, Tensor, F32};
/// let mut layer = Linear::new(3, 2, F32, Key::new(1))?;
/// let x = Tensor::randn([8, 3], F32, Key::new(2))?;
/// let (mut sgd, mut history) = (Sgd::default(), HealthHistory::new());
/// for step in 0..3 {
///     let (loss, mut grads) = value_and_grad(&layer, |l| l.forward(&x)?.square()?.mean(..))?;
///     let clipped = grads.clip_global_norm(1.0)?;
///     history.record(step, &layer, &grads, loss.item()?, 0.1, &clipped)?;
///     let before = layer.clone();
///     sgd.step(&mut layer, &grads)?;
///     history.updates(&before, &layer)?; // optional: how far the step went
/// }
/// println!("{history}");
/// assert!(history.html()?.contains("<svg"));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HealthHistory {
    /// Layer names, from the first step.
    pub layers: Vec<String>,
    /// The recorded steps.
    pub steps: Vec<HistoryStep>,
    /// Steps at which the model was evaluated, and the losses: a curve beside the training loss.
    pub validation: Vec<(u64, f64)>,
    /// Clipping.
    pub clips: ClipTracker,
    /// By which layers are judged.
    pub thresholds: Thresholds,
    last: Option<HealthReport>,
}

impl Default for HealthHistory {
    fn default() -> Self {
        Self::new()
    }
}

impl HealthHistory {
    /// Of recorded steps, the share with the same bad verdict that makes it the layer's.
    pub const PERSISTENT: f64 = 0.5;

    /// An empty history with a clip window of 100 steps.
    pub fn new() -> Self {
        HealthHistory {
            layers: Vec::new(),
            steps: Vec::new(),
            validation: Vec::new(),
            clips: ClipTracker::new(100),
            thresholds: Thresholds::default(),
            last: None,
        }
    }

    /// Adds a step: call it after clipping and before the optimizer. Norms are given as they were before clipping.
    ///
    /// Reads every gradient once; record each tenth step where that counts.
    ///
    /// # Errors
    /// Argument error when the model has other layers than at the first step; argument or shape error for gradients of another
    /// model; out of memory.
    #[track_caller]
    pub fn record<M: Module + Clone>(
        &mut self,
        step: u64,
        model: &M,
        grads: &Grads<M>,
        loss: f64,
        lr: f64,
        clip: &Clipped,
    ) -> Result<&HealthReport> {
        let at = std::panic::Location::caller();
        let refuse = |e: Error| e.in_op("health_history", at);
        let scale = if clip.clipped { clip.norm / grads.global_norm()?.max(f64::MIN_POSITIVE) } else { 1.0 };
        let report = HealthReport::survey(model, grads, &self.thresholds, scale).map_err(refuse)?;
        let layers = report.layers();
        let names = memory::try_collect_ok(layers.iter().map(|l| memory::text(&l.name))).map_err(refuse)?;
        if self.steps.is_empty() {
            self.layers = names;
        } else if self.layers != names {
            let message = format!("the model's layers are [{}], at first they were [{}]", names.join(", "), self.layers.join(", "));
            return Err(refuse(Error::argument(message)));
        }
        let norms = memory::try_collect(layers.iter().map(|l| l.norm)).map_err(refuse)?;
        let verdicts = memory::try_collect(layers.iter().map(|l| l.verdict)).map_err(refuse)?;
        memory::grow(&mut self.steps, 1).map_err(refuse)?;
        self.clips.push(clip);
        self.steps.push(HistoryStep { step, loss, lr, norm: clip.norm, clipped: clip.clipped, norms, verdicts, updates: Vec::new() });
        Ok(self.last.insert(report))
    }

    /// Adds the size of the step just recorded, from the model before and after it.
    ///
    /// Keep the model before the step only for steps that are recorded: while a copy lives, the optimizer must copy what it
    /// changes.
    ///
    /// # Errors
    /// Argument error before the first [`HealthHistory::record`]; out of memory.
    #[track_caller]
    pub fn updates<M: Module + Clone>(&mut self, before: &M, after: &M) -> Result<()> {
        let at = Location::caller();
        self.add_updates(before, after).map_err(|e| e.in_op("health_history", at).called_at(at))
    }

    fn add_updates<M: Module + Clone>(&mut self, before: &M, after: &M) -> Result<()> {
        let (Some(step), Some(report)) = (self.steps.last_mut(), self.last.take()) else {
            bail!(argument, "there is no recorded step to add updates to");
        };
        // By layer: the norm of all its changes over that of all its parameters.
        let mut sums = memory::vec_of((0f64, 0f64), self.layers.len())?;
        for (row, (change, weight)) in report.rows.iter().zip(update_norms(before, after)?) {
            if let Some(i) = self.layers.iter().position(|l| l == layer_of(&row.name)) {
                sums[i] = (sums[i].0.hypot(change), sums[i].1.hypot(weight));
            }
        }
        step.updates = memory::try_collect(sums.into_iter().map(|(u, w)| u / w.max(f64::MIN_POSITIVE)))?;
        self.last = Some(report.with_updates(before, after)?);
        Ok(())
    }

    /// Parameter by parameter, the last recorded step.
    pub fn last(&self) -> Option<&HealthReport> {
        self.last.as_ref()
    }

    /// A layer's verdict over time: the worst that holds in at least half of the recorded steps; a gradient that was ever
    /// not finite stays so.
    pub fn verdict(&self, layer: usize) -> Verdict {
        let of = |s: &HistoryStep| s.verdicts.get(layer).copied().unwrap_or(Verdict::Healthy);
        if self.steps.iter().any(|s| of(s) == Verdict::NonFinite) {
            return Verdict::NonFinite;
        }
        let share = |v: Verdict| self.steps.iter().filter(|s| of(s) == v).count() as f64 / self.steps.len().max(1) as f64;
        let bad = [Verdict::Disconnected, Verdict::Dead, Verdict::Exploding, Verdict::Vanishing];
        bad.into_iter().find(|&v| share(v) >= Self::PERSISTENT).unwrap_or(Verdict::Healthy)
    }

    /// All that is conspicuous over the whole run, in words; empty when nothing is.
    pub fn warnings(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for (i, name) in self.layers.iter().enumerate() {
            let verdict = self.verdict(i);
            if verdict != Verdict::Healthy {
                let median = quantile(self.steps.iter().map(|s| s.norms[i]), 0.5);
                out.push(format!("{name}: {verdict}, median gradient norm {median:.3e}"));
            }
        }
        out.extend(self.clips.warning());
        out
    }
}

impl fmt::Display for HealthHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.layers.iter().map(String::len).max().unwrap_or(0).max("layer".len());
        writeln!(
            f,
            "{:<width$} {:>7} {:>7} {:>8} {:>7} {:>10}  verdict over {} steps",
            "layer",
            "last",
            "median",
            "smallest",
            "largest",
            "step/param",
            self.steps.len()
        )?;
        for (i, name) in self.layers.iter().enumerate() {
            let norm = |q| quantile(self.steps.iter().map(|s| s.norms[i]), q);
            let last = self.steps.last().map_or(0.0, |s| s.norms[i]);
            write!(f, "{name:<width$} {last:>7.1e} {:>7.1e} {:>8.1e} {:>7.1e}", norm(0.5), norm(0.0), norm(1.0))?;
            match self.steps.iter().rev().find_map(|s| s.updates.get(i)) {
                Some(_) => write!(f, " {:>10.1e}", quantile(self.steps.iter().filter_map(|s| s.updates.get(i).copied()), 0.5))?,
                None => write!(f, " {:>10}", "")?,
            }
            writeln!(f, "  {}", self.verdict(i))?;
        }
        writeln!(f, "{}", self.clips)
    }
}
