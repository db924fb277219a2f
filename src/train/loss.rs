//! What a loss function gives the trainer.

use super::data::{Batches, ids_of};
use crate::error::{Error, Result, bail};
use crate::module::BufferUpdates;
use crate::nn::Pass;
use crate::tensor::Tensor;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What a loss function returns to [`Trainer::run`](super::Trainer::run): the loss, and what else it has to say. A tensor is one, and so is
/// a tensor with named numbers: `Ok((loss, [("accuracy", accuracy)]))`.
///
/// ```
/// use cotangent::{F32, Key, Tensor, nn::Linear, optim::AdamW};
/// use cotangent::train::{Event, Loss, Options, Trainer, count_targets};
/// let data = |i: u64| -> cotangent::Result<(Tensor, Tensor)> {
///     let x = Tensor::randn([8, 3], F32, Key::new(1).fold(i))?;
///     Ok((x.clone(), x.argmax(1)?)) // the class is the largest number's place
/// };
/// let mut seen = Vec::new();
/// let mut trainer = Trainer::new(Linear::new(3, 3, F32, Key::new(2))?, AdamW { lr: 0.1, ..AdamW::default() });
/// trainer.options = Options { steps: 60, accumulate: 2, ..Options::default() };
/// trainer.on(|event| {
///     if let Event::Step { metrics, .. } = event {
///         seen.push(metrics[0].1);
///     }
///     Ok(())
/// });
/// trainer.run(&data, |m, (x, y), _| {
///     let scores = m.forward(x)?;
///     let right = scores.argmax(1)?.eq(y)?.cast(F32)?.mean(..)?;
///     Ok(Loss::new(scores.cross_entropy(y)?).targets(count_targets(y, -100)?).metric("accuracy", right))
/// })?;
/// drop(trainer);
/// assert!(seen[59] > 0.8, "{seen:?}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Loss {
    pub(super) value: Tensor,
    pub(super) targets: Option<f64>,
    pub(super) metrics: Vec<(String, Metric)>,
    pub(super) updates: BufferUpdates,
}

/// A number beside a loss: a tensor of one element, which is read after the step's gradients are there, or a number.
#[derive(Clone, Debug)]
pub enum Metric {
    /// A tensor of one element.
    Tensor(Tensor),
    /// A number.
    Number(f64),
}

impl From<Tensor> for Metric {
    fn from(t: Tensor) -> Self {
        Metric::Tensor(t)
    }
}

impl From<&Tensor> for Metric {
    fn from(t: &Tensor) -> Self {
        Metric::Tensor(t.clone())
    }
}

impl From<f64> for Metric {
    fn from(v: f64) -> Self {
        Metric::Number(v)
    }
}

impl Loss {
    /// The loss alone: what gradients are taken of.
    pub fn new(value: Tensor) -> Self {
        Loss { value, targets: None, metrics: Vec::new(), updates: BufferUpdates::new() }
    }

    /// Of how many targets the loss is the mean. With [`Options::accumulate`](super::Options::accumulate), micro-batches then count by
    /// their targets, so that the step is that of the whole batch; one without any adds nothing.
    #[must_use]
    pub fn targets(mut self, count: f64) -> Self {
        self.targets = Some(count);
        self
    }

    /// A number of this batch by name: callbacks see it in [`Event::Step`](super::Event::Step), sinks write it. Over micro-batches it is
    /// their mean, weighted as the loss is.
    #[must_use]
    pub fn metric(mut self, name: impl Into<String>, value: impl Into<Metric>) -> Self {
        self.metrics.push((name.into(), value.into()));
        self
    }

    /// What the [`Pass`] of this loss noted about the model's buffers, as running statistics of batch norms: the trainer writes it into
    /// the model with the step, and leaves it out where the step is left out. Micro-batches of one step are noted one after the other.
    ///
    /// ```
    /// use cotangent::{F32, Key, Tensor, nn::{BatchNorm1d, Layer, Linear, Pass}, optim::Sgd};
    /// use cotangent::train::{Loss, Options, Trainer};
    /// let data = |i: u64| Tensor::randn([8, 3], F32, Key::new(1).fold(i));
    /// let net = (Linear::new(3, 4, F32, Key::new(2))?, BatchNorm1d::new(4, F32)?);
    /// let mut trainer = Trainer::new(net, Sgd { lr: 0.1, ..Sgd::default() });
    /// trainer.options = Options { steps: 5, ..Options::default() };
    /// trainer.run(&data, |net, x, key| {
    ///     let mut pass = Pass::train().with_key(key);
    ///     let y = net.call_in(x, &mut pass)?;
    ///     Ok(Loss::new(y.powi(3)?.mean(..)?).pass(pass))
    /// })?;
    /// assert!(trainer.model.1.running_mean.to_vec::<f32>()?.iter().all(|&m| m != 0.0));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    #[must_use]
    pub fn pass(mut self, pass: Pass) -> Self {
        self.updates = pass.into_updates();
        self
    }
}

impl From<Tensor> for Loss {
    fn from(value: Tensor) -> Self {
        Loss::new(value)
    }
}

impl<N: Into<String>, V: Into<Metric>, const K: usize> From<(Tensor, [(N, V); K])> for Loss {
    fn from((value, metrics): (Tensor, [(N, V); K])) -> Self {
        metrics.into_iter().fold(Loss::new(value), |l, (n, v)| l.metric(n, v))
    }
}

/// What an evaluation gives: the loss, named numbers beside it, or that it was interrupted (`None`).
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub(super) loss: Option<f64>,
    pub(super) metrics: Vec<(String, f64)>,
}

impl From<f64> for Evaluation {
    fn from(loss: f64) -> Self {
        Evaluation { loss: Some(loss), metrics: Vec::new() }
    }
}

impl From<Option<f64>> for Evaluation {
    fn from(loss: Option<f64>) -> Self {
        Evaluation { loss, metrics: Vec::new() }
    }
}

impl<N: Into<String>, const K: usize> From<(f64, [(N, f64); K])> for Evaluation {
    fn from((loss, metrics): (f64, [(N, f64); K])) -> Self {
        Evaluation { loss: Some(loss), metrics: metrics.into_iter().map(|(n, v)| (n.into(), v)).collect() }
    }
}

/// How many class targets are not `ignore`: what a mean of [`cross_entropy`](Tensor::cross_entropy) is over, for [`Loss::targets`].
///
/// # Errors
/// Dtype error unless the targets are `i64`.
#[track_caller]
pub fn count_targets(targets: &Tensor, ignore: i64) -> Result<f64> {
    let at = std::panic::Location::caller();
    let ids = ids_of("targets", targets).map_err(|e| e.in_op("count_targets", at))?;
    Ok(ids.iter().filter(|t| **t != ignore).count() as f64)
}

/// The mean of a loss over the first `batches` of some data, for [`Trainer::evaluate_with`](super::Trainer::evaluate_with); `None` when
/// `stop` is set meanwhile. Batches count alike, or by their targets where the loss says them ([`Loss::targets`]), as for a last batch that
/// is partly filled.
///
/// # Errors
/// What data and loss return; argument error for no batches.
#[track_caller]
pub fn mean_loss<D: Batches, L: Into<Loss>>(
    data: &D,
    batches: usize,
    stop: &AtomicBool,
    loss: impl Fn(&D::Batch) -> Result<L>,
) -> Result<Option<f64>> {
    if batches == 0 {
        return Err(Error::argument("there must be at least one batch").in_op("mean_loss", std::panic::Location::caller()));
    }
    let (mut sum, mut weights) = (0.0, 0.0);
    for i in 0..batches {
        if stop.load(Relaxed) {
            return Ok(None);
        }
        let Loss { value, targets, .. } = loss(&data.batch(i as u64)?)?.into();
        let weight = targets.unwrap_or(1.0);
        if weight != 0.0 {
            (sum, weights) = (sum + weight * value.item()?, weights + weight);
        }
    }
    Ok(Some(sum / weights))
}

/// What is said beside a loss while its gradients are taken: tensors are read afterwards.
#[derive(Default)]
pub(super) struct Said {
    pub(super) targets: Option<f64>,
    names: Vec<(String, Option<f64>)>,
}

impl Said {
    /// Notes what is no tensor, and gives the rest.
    pub(super) fn take(&mut self, targets: Option<f64>, metrics: Vec<(String, Metric)>) -> Vec<Tensor> {
        self.targets = targets;
        let mut tensors = Vec::new();
        for (name, value) in metrics {
            let number = match value {
                Metric::Number(v) => Some(v),
                Metric::Tensor(t) => {
                    tensors.push(t);
                    None
                }
            };
            self.names.push((name, number));
        }
        tensors
    }

    /// All of it as numbers.
    pub(super) fn numbers(self, tensors: &[Tensor]) -> Result<Vec<(String, f64)>> {
        let mut next = tensors.iter();
        let read = |(name, number): (String, Option<f64>)| {
            if super::Csv::COLUMNS.contains(&name.as_str()) {
                bail!(argument, "the metric `{name}` has the name of a number that every step has: take another");
            }
            let v = match number {
                Some(v) => v,
                None => match next.next() {
                    Some(t) => one(&name, t)?,
                    None => bail!(argument, "internal: the metric `{name}` has no value"),
                },
            };
            Ok((name, v))
        };
        self.names.into_iter().map(read).collect()
    }
}

fn one(name: &str, t: &Tensor) -> Result<f64> {
    if t.numel() != 1 {
        return Err(Error::shape(format!("the metric `{name}` has shape {}: a metric is one number", t.shape())));
    }
    t.detach().cast(crate::DType::F64)?.item()
}

/// Means of named numbers over micro-batches, in the order in which they came.
#[derive(Default)]
pub(super) struct Means(Vec<(String, f64, f64)>);

impl Means {
    pub(super) fn add(&mut self, values: Vec<(String, f64)>, weight: f64) {
        if weight == 0.0 {
            return;
        }
        for (name, v) in values {
            match self.0.iter_mut().find(|m| m.0 == name) {
                Some(m) => (m.1, m.2) = (m.1 + weight * v, m.2 + weight),
                None => self.0.push((name, weight * v, weight)),
            }
        }
    }

    pub(super) fn finish(self) -> Vec<(String, f64)> {
        self.0.into_iter().map(|(name, sum, weight)| (name, sum / weight)).collect()
    }
}
