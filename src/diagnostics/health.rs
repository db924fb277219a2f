//! Gradient health: statistics per parameter and per layer, and a verdict.

use super::depth::DepthProfile;
use super::stats::{norm, quantile, survey};
use super::verdict::Verdict;
use crate::backend::cuda::optim::Survey;
use crate::error::{Error, Result, bail};
use crate::functional::Grads;
use crate::memory;
use crate::module::Module;
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::fmt;
use std::panic::Location;

/// When a gradient counts as conspicuous. The defaults stay quiet on healthy models of very different kinds.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Vanishing below this ratio of gradient norm to parameter norm.
    pub vanishing: f64,
    /// Vanishing also below this share of the other parameters' ratio (of its upper quartile): one layer that gets a
    /// hundred-thousandth of what the others get does not learn with them.
    pub vanishing_beside_others: f64,
    /// Exploding above this ratio of gradient norm to parameter norm.
    pub exploding: f64,
    /// Dead from this share of exact zeros on.
    pub dead: f64,
    /// A parameter counts as at least this large per element (root mean square), so that a bias that starts at zero does
    /// not make its gradient look huge. The usual deviation of initial weights.
    pub scale: f64,
    /// Parameters of which one step touches few rows, by name: tables. They are dead only when all is zero.
    pub sparse: fn(&str) -> bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            vanishing: HealthReport::VANISHING,
            vanishing_beside_others: HealthReport::VANISHING_BESIDE_OTHERS,
            exploding: HealthReport::EXPLODING,
            dead: HealthReport::DEAD,
            scale: 0.02,
            sparse: |name| ["embed", "wte", "wpe", "table"].iter().any(|part| name.contains(part)),
        }
    }
}

/// Statistics of one parameter's gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Parameter name.
    pub name: String,
    /// Number of elements.
    pub count: usize,
    /// Number of axes of the parameter.
    pub rank: usize,
    /// L2 norm.
    pub norm: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Largest absolute value.
    pub max: f64,
    /// Share of elements that are exactly zero.
    pub zeros: f64,
    /// L2 norm of the parameter itself.
    pub weight: f64,
    /// Gradient norm over parameter norm; infinite for a parameter of zeros.
    pub ratio: f64,
    /// Norm of the last update over the parameter's norm, when [`HealthReport::with_updates`] gave it. Around 1e-3 is usual.
    pub update: Option<f64>,
    /// The judgement.
    pub verdict: Verdict,
}

/// The parameters of one layer together.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerHealth {
    /// The path up to its number (`transformer.h.3`), or to the module for parameters outside numbered layers.
    pub name: String,
    /// Number of elements.
    pub count: usize,
    /// L2 norm of all gradients.
    pub norm: f64,
    /// L2 norm of all parameters.
    pub weight: f64,
    /// Gradient norm over parameter norm.
    pub ratio: f64,
    /// Share of exact zeros.
    pub zeros: f64,
    /// Norm of the last update over the parameters' norm, when known.
    pub update: Option<f64>,
    /// The worst verdict of its parameters.
    pub verdict: Verdict,
}

/// Health of every parameter of a model; prints as a table.
///
/// ```
/// use cotangent::{diagnostics::{HealthReport, Verdict}, value_and_grad, Tensor};
/// let x = Tensor::from_slice(&[-1f32, -2.0, -3.0], [3])?;
/// let (_, g) = value_and_grad(&x, |x| x.relu()?.sum(..))?;
/// let report = HealthReport::new(&x, &g)?;
/// assert_eq!(report.rows[0].verdict, Verdict::Dead); // all inputs are on the flat side
/// println!("{report}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HealthReport {
    /// One row per trainable parameter, in the model's order.
    pub rows: Vec<Health>,
}

impl HealthReport {
    /// Default of [`Thresholds::vanishing`].
    pub const VANISHING: f64 = 1e-7;
    /// Default of [`Thresholds::vanishing_beside_others`].
    pub const VANISHING_BESIDE_OTHERS: f64 = 1e-4;
    /// Default of [`Thresholds::exploding`].
    pub const EXPLODING: f64 = 1e3;
    /// Default of [`Thresholds::dead`].
    pub const DEAD: f64 = 0.99;

    /// Statistics of all gradients of a model, judged by the default thresholds.
    ///
    /// # Errors
    /// Argument or shape error for gradients of another model; out of memory.
    #[track_caller]
    pub fn new<M: Module + Clone>(model: &M, grads: &Grads<M>) -> Result<Self> {
        Self::judged(model, grads, &Thresholds::default(), 1.0)
    }

    /// [`HealthReport::new`] by other thresholds, of gradients multiplied by `scale`: give the norm before clipping over
    /// the norm after it to see what clipping hid.
    ///
    /// # Errors
    /// Argument or shape error for gradients of another model; out of memory.
    #[track_caller]
    pub fn judged<M: Module + Clone>(model: &M, grads: &Grads<M>, t: &Thresholds, scale: f64) -> Result<Self> {
        let at = std::panic::Location::caller();
        Self::survey(model, grads, t, scale).map_err(|e: Error| e.in_op("health_report", at))
    }

    pub(super) fn survey<M: Module + Clone>(model: &M, grads: &Grads<M>, t: &Thresholds, scale: f64) -> Result<Self> {
        let (named, trainable) = (grads.named(), model.trainable());
        if let Some((name, _)) = named.get(trainable.len()) {
            bail!(
                argument,
                "the model has no trainable `{name}`, of which there is a gradient: it belongs to another model, or was frozen"
            );
        }
        let mut pairs = memory::room(trainable.len())?;
        for (i, (name, p)) in trainable.into_iter().enumerate() {
            let Some((_, g)) = named.get(i).filter(|(n, _)| *n == name) else {
                bail!(argument, "the gradients have no `{name}`: they belong to another model, or its frozen parameters changed");
            };
            if g.shape() != p.shape() {
                bail!(shape, "the gradient of `{name}` has shape {}, the parameter {}: it belongs to another model", g.shape(), p.shape());
            }
            pairs.push((name, p, g));
        }
        // One parameter a thread; a device's queue takes them one after the other.
        let measure = |(_, p, g): &(String, Tensor, &Tensor)| Ok((survey(g)?, norm(p)?));
        let on_device = pairs.iter().any(|(_, p, g)| p.device().is_cuda() || g.device().is_cuda());
        let measured: Vec<((Survey, f64), f64)> = if on_device {
            memory::try_collect_ok(pairs.iter().map(measure))?
        } else {
            pairs.par_iter().map(measure).collect::<Result<_>>()?
        };
        let mut rows = memory::room(pairs.len())?;
        for ((name, _, g), ((Survey { mean, std, max, zeros, not_finite }, norm), weight)) in pairs.into_iter().zip(measured) {
            let norm = scale * norm;
            let zeros = zeros / g.numel().max(1) as f64;
            let verdict = if not_finite > 0.0 {
                Verdict::NonFinite
            } else if grads.disconnected().contains(&name) {
                Verdict::Disconnected
            } else if g.numel() > 0 && zeros >= if (t.sparse)(&name) { 1.0 } else { t.dead } {
                Verdict::Dead
            } else {
                Verdict::Healthy
            };
            let (mean, std, max) = (scale * mean, scale * std, scale * max);
            let (count, rank, ratio) = (g.numel(), g.rank(), norm / weight);
            rows.push(Health { name, count, rank, norm, mean, std, max, zeros, weight, ratio, update: None, verdict });
        }
        judge_sizes(&mut rows, t);
        Ok(HealthReport { rows })
    }

    /// Adds the size of an optimizer's step, from the model before and after it.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn with_updates<M: Module + Clone>(mut self, before: &M, after: &M) -> Result<Self> {
        let at = Location::caller();
        let norms = update_norms(before, after).map_err(|e| e.in_op("health", at).called_at(at))?;
        for ((row, update), weight) in self.rows.iter_mut().zip(norms).map(|(r, (u, w))| ((r, u), w)) {
            row.update = Some(update / weight.max(f64::MIN_POSITIVE));
        }
        Ok(self)
    }

    /// Whether no parameter is conspicuous.
    pub fn is_healthy(&self) -> bool {
        self.rows.iter().all(|r| r.verdict == Verdict::Healthy)
    }

    /// The row of a parameter.
    pub fn row(&self, name: &str) -> Option<&Health> {
        self.rows.iter().find(|r| r.name == name)
    }

    /// The rows that are not healthy.
    pub fn conspicuous(&self) -> Vec<&Health> {
        self.rows.iter().filter(|r| r.verdict != Verdict::Healthy).collect()
    }

    /// The parameters of each layer together, in the model's order.
    pub fn layers(&self) -> Vec<LayerHealth> {
        let mut out: Vec<(LayerHealth, f64)> = Vec::new(); // with the update's norm
        for r in &self.rows {
            let name = layer_of(&r.name);
            if !out.iter().any(|(l, _)| l.name == name) {
                let new = LayerHealth {
                    name: name.to_owned(),
                    count: 0,
                    norm: 0.0,
                    weight: 0.0,
                    ratio: 0.0,
                    zeros: 0.0,
                    update: None,
                    verdict: Verdict::Healthy,
                };
                out.push((new, 0.0));
            }
            let Some((l, step)) = out.iter_mut().find(|(l, _)| l.name == name) else { continue };
            l.count += r.count;
            l.norm = l.norm.hypot(r.norm);
            l.weight = l.weight.hypot(r.weight);
            l.zeros += r.zeros * r.count as f64;
            l.verdict = l.verdict.max(r.verdict);
            if let Some(u) = r.update {
                *step = step.hypot(u * r.weight);
                l.update = Some(0.0);
            }
        }
        for (l, step) in &mut out {
            l.zeros /= l.count.max(1) as f64;
            l.ratio = l.norm / l.weight;
            l.update = l.update.map(|_| *step / l.weight.max(f64::MIN_POSITIVE));
        }
        out.into_iter().map(|(l, _)| l).collect()
    }

    /// Gradient norm against depth: the numbered layers, from the input to the output.
    pub fn depth(&self) -> DepthProfile {
        let numbered = |n: &str| n.rsplit('.').next().is_some_and(|p| p.parse::<usize>().is_ok());
        DepthProfile { points: self.layers().into_iter().filter(|l| numbered(&l.name)).map(|l| (l.name, l.norm)).collect() }
    }
}

/// Vanishing and exploding: sizes beside the parameter's own, and beside what the other parameters get.
fn judge_sizes(rows: &mut [Health], t: &Thresholds) {
    let own = |r: &Health| r.norm / r.weight.max(t.scale * (r.count as f64).sqrt());
    // Vectors may have next to no gradient by right (the bias of attention's keys has none at all), so matrices are judged.
    let matrices = rows.iter().any(|r| r.rank >= 2);
    let judged = |r: &Health| r.verdict == Verdict::Healthy && r.count > 0 && (r.rank >= 2 || !matrices);
    let usual = quantile(rows.iter().filter(|r| judged(r)).map(own), 0.75);
    for r in rows.iter_mut() {
        let size = own(r);
        if judged(r) && (r.ratio < t.vanishing || size < t.vanishing_beside_others * usual) {
            r.verdict = Verdict::Vanishing;
        } else if r.verdict == Verdict::Healthy && size > t.exploding {
            r.verdict = Verdict::Exploding;
        }
    }
}

/// Norms of the change of each trainable parameter and of the parameter before it.
pub(super) fn update_norms<M: Module + Clone>(before: &M, after: &M) -> Result<Vec<(f64, f64)>> {
    let difference = |a: &Tensor, b: &Tensor| b.detach().sub(&a.detach()).and_then(|d| norm(&d));
    memory::try_collect_ok(before.trainable().iter().zip(after.trainable()).map(|((_, a), (_, b))| Ok((difference(a, &b)?, norm(a)?))))
}

/// The layer that a parameter belongs to: its path up to the first number, or without its last part.
pub(super) fn layer_of(name: &str) -> &str {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if part.parse::<usize>().is_ok() {
            return &name[..end];
        }
        end += 1;
    }
    name.rsplit_once('.').map_or(name, |(path, _)| path)
}

/// One line a parameter, for 80 columns where names have 25 characters; mean and standard deviation are fields of [`LayerHealth`].
impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max("parameter".len());
        let updates = self.rows.iter().any(|r| r.update.is_some());
        write!(f, "{:<width$} {:>8} {:>7} {:>7} {:>6} {:>10}", "parameter", "elements", "norm", "max", "zeros", "grad/param")?;
        if updates {
            write!(f, " {:>10}", "step/param")?;
        }
        writeln!(f, "  verdict")?;
        for r in &self.rows {
            write!(f, "{:<width$} {:>8} {:>7.1e} {:>7.1e} {:>5.1}% {:>10.1e}", r.name, r.count, r.norm, r.max, 100.0 * r.zeros, r.ratio)?;
            if updates {
                write!(f, " {:>10.1e}", r.update.unwrap_or(f64::NAN))?;
            }
            writeln!(f, "  {}", r.verdict)?;
        }
        Ok(())
    }
}
