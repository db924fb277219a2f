//! The best model of a run, and by what it is the best.

/// By what the best model is kept: the loss of evaluations, or a number beside it.
///
/// ```
/// use cotangent::{F64, Tensor, optim::Sgd};
/// use cotangent::train::{KeepBest, Options, Trainer};
/// let mut t = Trainer::new(Tensor::scalar(4f64)?, Sgd::new(0.75)); // oscillates around 0 and falls
/// t.options = Options { steps: 3, evaluate_every: 1, ..Options::default() };
/// t.keep_best = Some(KeepBest::highest("score"));
/// t.evaluate_with(|w| Ok((w.item()?, [("score", w.item()?)])));
/// t.run(&|_| Ok(()), |w, (), _| w.square())?;
/// let best = t.best.as_ref().unwrap();
/// assert_eq!((best.step, best.value, best.model.item()?), (0, 4.0, 4.0));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepBest {
    /// Name of the number beside the loss; none: the loss itself.
    pub metric: Option<String>,
    /// Whether a larger one is a better one.
    pub higher_is_better: bool,
}

impl KeepBest {
    /// The model with the lowest loss.
    pub fn lowest_loss() -> Self {
        KeepBest { metric: None, higher_is_better: false }
    }

    /// The model with the highest number of that name, as an accuracy.
    pub fn highest(metric: impl Into<String>) -> Self {
        KeepBest { metric: Some(metric.into()), higher_is_better: true }
    }

    /// The model with the lowest number of that name, as an error.
    pub fn lowest(metric: impl Into<String>) -> Self {
        KeepBest { metric: Some(metric.into()), higher_is_better: false }
    }

    /// What it judges by.
    pub(super) fn what(&self) -> String {
        self.metric.as_ref().map_or_else(|| "loss".to_owned(), |name| format!("`{name}`"))
    }

    /// As snapshots say it.
    pub(super) fn rule(&self) -> String {
        let end = if self.higher_is_better { "highest" } else { "lowest" };
        format!("{end} {}", self.what())
    }
}

/// The best model so far. It keeps the memory of a model.
#[derive(Clone, Debug)]
pub struct Best<M> {
    /// Steps done when it was evaluated.
    pub step: usize,
    /// What it is the best by.
    pub value: f64,
    /// The model.
    pub model: M,
}
