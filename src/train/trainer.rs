//! The loop: gradients, clipping, schedule, update, and what happens between the steps. Files are in `resume`.

use super::best::{Best, KeepBest};
use super::data::Batches;
use super::event::{Event, StepReport};
use super::loss::{Evaluation, Loss, Means, Said};
use super::snapshot::Snapshots;
use crate::error::{Result, bail};
use crate::functional::{GradOptions, Grads, gradient_and};
use crate::io::{at_callers_line, open};
use crate::module::{BufferUpdates, Module};
use crate::notice::notice;
use crate::optim::{Accumulator, Clipped, Ema, LossScaler, Optimizer, Schedule};
use crate::rng::Key;
use std::collections::BTreeMap;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// How to train.
///
/// | Field | Default |
/// |---|---|
/// | `steps` | 1000 |
/// | `accumulate` | 1 |
/// | `clip` | none |
/// | `evaluate_every` | 0: at the end only |
/// | `patience` | 100 |
/// | `gradients` | every parameter must take part in the loss |
/// | `absent_as_zero` | false: what the loss does not reach stays as it is |
/// | `allow_changes` | false |
/// | `quiet` | false |
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Steps of the whole run, those before a snapshot included.
    pub steps: usize,
    /// Batches whose gradients are averaged for one step; by their numbers of targets, where the loss says them
    /// ([`Loss::targets`](super::Loss::targets)).
    pub accumulate: usize,
    /// Largest global norm of the gradients.
    pub clip: Option<f64>,
    /// Steps between evaluations, the first before the first step.
    pub evaluate_every: usize,
    /// How many steps in a row may have a loss or gradients that are not finite. Each is skipped; one more is an error.
    pub patience: usize,
    /// How gradients are taken.
    pub gradients: GradOptions,
    /// Take absent gradients for zeros: see [`Grads::absent_as_zero`].
    pub absent_as_zero: bool,
    /// Continue a run though its learning rate, schedule, optimizer, accumulation, clipping, frozen parameters or data are others than
    /// before. What the program says now counts then.
    pub allow_changes: bool,
    /// Say nothing on stderr. Without it there is a line, whether anybody subscribes to `tracing` or not, about the first step that was
    /// left out, the first whose loss and gradients are all 0, a learning rate of 0, a run without a step left, and a best model that was
    /// to be kept and never was.
    pub quiet: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            steps: 1000,
            accumulate: 1,
            clip: None,
            evaluate_every: 0,
            patience: 100,
            gradients: GradOptions::default(),
            absent_as_zero: false,
            allow_changes: false,
            quiet: false,
        }
    }
}

/// How far a run is: what a snapshot stores beside the tensors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) step: usize,
    pub(super) position: u64,
    pub(super) clipped: usize,
    pub(super) skipped: usize,
    pub(super) skipped_in_a_row: usize,
}

/// What a run leaves behind.
pub struct Outcome<M> {
    /// Steps done, those before a snapshot included.
    pub steps: usize,
    /// How many of them had their gradients clipped.
    pub clipped: usize,
    /// How many of them were left out, being not finite.
    pub skipped: usize,
    /// Steps that this call made.
    pub made: usize,
    /// Time they took, without evaluations and snapshots.
    pub seconds: f64,
    /// Loss of the last step that this call made.
    pub loss: Option<f64>,
    /// The last evaluation.
    pub evaluation: Option<f64>,
    /// Gradients of the last step that this call made, after clipping.
    pub grads: Option<Grads<M>>,
    /// Whether the stop flag ended it.
    pub stopped: bool,
}

/// Trains a model: give it data and a loss with [`Trainer::run`].
///
/// ```
/// use cotangent::{F32, Key, Result, Tensor, nn::Linear, optim::AdamW};
/// use cotangent::train::{Event, Options, Trainer};
/// # fn main() -> Result<()> {
/// // Batch `i` is a function of `i`: so a run can be continued anywhere.
/// let data = |i: u64| -> Result<(Tensor, Tensor)> {
///     let x = Tensor::randn([8, 2], F32, Key::new(1).fold(i))?;
///     let y = x.sum_keepdim(-1)?;
///     Ok((x, y))
/// };
/// let model = Linear::new(2, 1, F32, Key::new(2))?;
/// let mut losses = Vec::new();
/// let mut trainer = Trainer::new(model, AdamW { lr: 0.1, ..AdamW::default() });
/// trainer.options = Options { steps: 200, clip: Some(1.0), ..Options::default() };
/// trainer.on(|event| {
///     if let Event::Step { report, .. } = event {
///         losses.push(report.loss);
///     }
///     Ok(())
/// });
/// let outcome = trainer.run(&data, |m, (x, y), _| (m.forward(x)? - y).square()?.mean(..))?;
/// drop(trainer);
/// assert_eq!((outcome.steps, losses.len()), (200, 200));
/// assert!(losses[199] < 1e-2 * losses[0]);
/// # Ok(())
/// # }
/// ```
///
/// `S` is a state that goes on from step to step beside the model: see [`Trainer::with_carry`].
pub struct Trainer<'a, M, O, S = ()> {
    /// The model, as trained so far.
    pub model: M,
    /// The optimizer with its state.
    pub optimizer: O,
    /// How to train.
    pub options: Options,
    /// Learning rate by step; without one the optimizer keeps its own.
    pub schedule: Option<Box<dyn Schedule + 'a>>,
    /// Losses get a key derived from this one and the batch's position, for dropout and other noise. A run that continues keeps the key
    /// that it began with; another one than the default is a changed option then ([`Options::allow_changes`]).
    pub key: Key,
    /// Average of the weights, moved after every step that was taken; part of the snapshots.
    pub ema: Option<Ema>,
    /// Scales the loss, for gradients in `f16`: a step that overflows is left out and changes the scale; part of the snapshots.
    pub scaler: Option<LossScaler>,
    /// What goes on from step to step beside the model, as a recurrent state does; part of the snapshots.
    pub carry: S,
    /// By what the best model so far is kept, if at all.
    pub keep_best: Option<KeepBest>,
    /// The best model so far; with snapshots it is also in the folder, as `best.safetensors`, a snapshot like the others. A file of that
    /// name that this run neither wrote nor continues from becomes `best.safetensors.old`.
    pub best: Option<Best<M>>,
    /// Where snapshots go, if anywhere.
    pub snapshots: Option<Snapshots>,
    /// What snapshots of this run say about it; a snapshot with other settings is refused.
    pub settings: BTreeMap<String, String>,
    /// Ends the run before the next step when set; the state is saved first. Let the signals that ask a process to end (SIGINT, SIGTERM,
    /// SIGHUP) set it, and none of them costs a step: the book's page "What survives what" has the lines.
    pub stop: Arc<AtomicBool>,
    pub(super) callbacks: Vec<Callback<'a, M>>,
    evaluate: Option<Evaluate<'a, M>>,
    pub(super) done: Progress,
    /// Whether the folder's snapshots are this trainer's: restored or begun.
    pub(super) begun: bool,
    /// Learning rate that the run began with, once it has begun.
    pub(super) first_rate: Option<f64>,
    /// What the data of the run say about themselves.
    pub(super) data: Option<String>,
    /// The data are those of a snapshot, with which the next run's have to agree.
    pub(super) data_of_snapshot: bool,
    /// Step of the last evaluation that the schedule has observed.
    pub(super) observed: Option<usize>,
    /// Step and value of the best model, where the model itself is not here.
    pub(super) best_known: Option<(usize, f64)>,
    /// The best model's file, once it is this run's.
    pub(super) best_file: Option<PathBuf>,
    warned: bool,
    warned_zero: bool,
}

pub(super) type Callback<'a, M> = Box<dyn FnMut(&Event<'_, M>) -> Result<()> + 'a>;
type Evaluate<'a, M> = Box<dyn FnMut(&M) -> Result<Evaluation> + 'a>;

/// What the micro-batches of a step give.
struct Gathered<M, S> {
    loss: f64,
    grads: Grads<M>,
    metrics: Vec<(String, f64)>,
    carry: S,
    /// Of the model's buffers.
    updates: BufferUpdates,
    /// Position after them.
    position: u64,
    /// No batch had any: the loss is NaN.
    no_targets: bool,
}

impl<M: Module + Clone, O: Optimizer<M>> Trainer<'_, M, O> {
    /// A trainer with default options that has done nothing yet.
    pub fn new(model: M, optimizer: O) -> Self {
        Trainer::with_carry(model, optimizer, ())
    }
}

impl<'a, M: Module + Clone, O: Optimizer<M>, S: Module + Clone> Trainer<'a, M, O, S> {
    /// [`Trainer::new`] with a state that goes on from step to step beside the model: what a recurrent network has seen, running
    /// statistics of the data, a queue of keys. Any tree of tensors; it is detached after each batch, part of the snapshots, and as it
    /// was before where a step is left out. Train with [`Trainer::run_carrying`].
    pub fn with_carry(model: M, optimizer: O, carry: S) -> Self {
        Trainer {
            model,
            optimizer,
            options: Options::default(),
            schedule: None,
            key: Key::new(0),
            ema: None,
            scaler: None,
            carry,
            keep_best: None,
            best: None,
            snapshots: None,
            settings: BTreeMap::new(),
            stop: Arc::default(),
            callbacks: Vec::new(),
            evaluate: None,
            done: Progress::default(),
            begun: false,
            first_rate: None,
            data: None,
            data_of_snapshot: false,
            observed: None,
            best_known: None,
            best_file: None,
            warned: false,
            warned_zero: false,
        }
    }

    /// Calls `f` at every event, after the callbacks that were there before. Its error ends the run.
    ///
    /// What `f` borrows must be declared before the trainer, which may use it until it is dropped.
    pub fn on(&mut self, f: impl FnMut(&Event<'_, M>) -> Result<()> + 'a) {
        self.callbacks.push(Box::new(f));
    }

    /// Evaluates the model with `f` every so many steps and at the end. It gives a loss, a loss with named numbers,
    /// `(loss, [("accuracy", 0.9)])`, or an `Option` of a loss, of which `None` says that it was interrupted.
    pub fn evaluate_with<E: Into<Evaluation>>(&mut self, mut f: impl FnMut(&M) -> Result<E> + 'a) {
        self.evaluate = Some(Box::new(move |m| f(m).map(Into::into)));
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.done.step
    }

    /// Makes the steps that are left. `loss` gets the model, a batch and a key, and returns a scalar, or a [`Loss`] that says more.
    ///
    /// # Errors
    /// Whatever data, loss, optimizer, callbacks or evaluation return; argument error for options out of range, for an evaluation that is
    /// asked for and not set, for a folder that has snapshots of another run or in which one is training, for data other than those of the
    /// snapshot that the run continues from, and when more steps in a row than [`Options::patience`], or all steps of the run, were not
    /// finite. The trainer can be run again after an error: model, optimizer and position are those of the last whole step.
    #[track_caller]
    pub fn run<D: Batches, L: Into<Loss>>(&mut self, data: &D, loss: impl Fn(&M, &D::Batch, Key) -> Result<L>) -> Result<Outcome<M>> {
        let at = Location::caller();
        let run = |m: &M, batch: &D::Batch, key: Key, carry: &S| Ok((loss(m, batch, key)?.into(), carry.clone()));
        if !self.carry.named_tensors().is_empty() {
            let text = "run does not give the loss what the trainer carries, and would leave it as it is: call run_carrying";
            return Err(crate::Error::argument(text).in_op("train", at));
        }
        self.train(data, run).map_err(|e| at_callers_line(e, "train", at))
    }

    /// [`Trainer::run`] with a state that goes on: `loss` gets [`Trainer::carry`] too, and returns the next one beside the loss.
    ///
    /// ```
    /// use cotangent::{F64, Tensor, optim::Sgd, train::Trainer};
    /// // A mean that leaks, of numbers that come one by one.
    /// let mut t = Trainer::with_carry(Tensor::scalar(1f64)?, Sgd::new(0.0), Tensor::scalar(0f64)?);
    /// t.options.steps = 3;
    /// t.run_carrying(&|i: u64| Tensor::full([], i as f64, F64), |w, x, _, mean| {
    ///     let mean = mean.mul_scalar(0.5)?.add(&x.mul(w)?)?;
    ///     Ok((mean.clone(), mean)) // the loss, and the state of the next batch
    /// })?;
    /// assert_eq!(t.carry.item()?, 2.5);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Trainer::run`].
    #[track_caller]
    pub fn run_carrying<D: Batches, L: Into<Loss>>(
        &mut self,
        data: &D,
        loss: impl Fn(&M, &D::Batch, Key, &S) -> Result<(L, S)>,
    ) -> Result<Outcome<M>> {
        let at = Location::caller();
        let run = |m: &M, batch: &D::Batch, key: Key, carry: &S| loss(m, batch, key, carry).map(|(l, next)| (l.into(), next));
        self.train(data, run).map_err(|e| at_callers_line(e, "train", at))
    }

    fn train<D: Batches>(&mut self, data: &D, loss: impl Fn(&M, &D::Batch, Key, &S) -> Result<(Loss, S)>) -> Result<Outcome<M>> {
        let Options { steps, accumulate, evaluate_every, .. } = self.options;
        if accumulate == 0 {
            bail!(argument, "accumulate must be at least 1");
        }
        if let Some(s) = &self.schedule {
            s.check()?;
            if s.observes() && (evaluate_every == 0 || self.evaluate.is_none()) {
                bail!(argument, "the schedule follows an evaluation: set evaluate_with, and evaluate_every to the steps between two");
            }
        }
        if self.evaluate.is_none() && (evaluate_every > 0 || self.keep_best.is_some()) {
            bail!(argument, "evaluate_every and keep_best ask for an evaluation, but there is none: set one by evaluate_with");
        }
        self.know(data.fingerprint()?)?;
        self.first_rate.get_or_insert(self.optimizer.learning_rate());
        let _mine = self.snapshots.as_ref().map(Snapshots::begin).transpose()?;
        self.refuse_another_runs_folder()?;
        let mut out =
            Outcome { steps: 0, clipped: 0, skipped: 0, made: 0, seconds: 0.0, loss: None, evaluation: None, grads: None, stopped: false };
        if self.schedule.is_none() && self.optimizer.learning_rate() == 0.0 && self.done.step < steps && !self.options.quiet {
            tracing::warn!("the learning rate is 0, and no schedule changes it");
            notice(format_args!("the learning rate is 0, and no schedule changes it: nothing will be trained"));
        }
        if self.done.step >= steps && !self.options.quiet {
            let done = self.done.step;
            tracing::warn!(done, steps, "no steps are left");
            notice(format_args!("no steps are left: {done} are done, and Options::steps, those before included, is {steps}"));
        }
        let mut saved = None;
        while self.done.step < steps {
            if evaluate_every > 0 && self.done.step.is_multiple_of(evaluate_every) {
                self.evaluate(&mut out, true)?;
            }
            if self.stop.load(Relaxed) {
                out.stopped = true;
                break;
            }
            // Their memory serves the next gradients.
            out.grads = None;
            emit(&mut self.callbacks, &Event::Begin { step: self.done.step, model: &self.model })?;
            let (report, metrics, grads) = self.one_step(data, &loss)?;
            out.seconds += report.seconds;
            out.made += 1;
            out.loss = Some(report.loss);
            emit(&mut self.callbacks, &Event::Step { report, metrics: &metrics, model: &self.model, grads: &grads })?;
            out.grads = Some(grads);
            if report.skipped {
                let in_a_row = self.done.skipped_in_a_row;
                emit(&mut self.callbacks, &Event::Skipped { step: report.step, loss: report.loss, norm: report.norm, in_a_row })?;
            }
            if self.snapshots.as_ref().is_some_and(|s| s.every > 0 && self.done.step.is_multiple_of(s.every)) {
                self.save()?;
                saved = Some(self.done.step);
            }
        }
        // Shorter than the patience, such a run would look like any other.
        if !out.stopped && self.done.step > 0 && self.done.skipped == self.done.step {
            bail!(
                argument,
                "nothing was trained: in all {} steps the loss or a gradient was not finite, or the batch had no targets; `diagnostics::detect_anomaly` around one loss \
                 names the op and the line where it begins",
                self.done.step
            );
        }
        if self.snapshots.is_some() && saved != Some(self.done.step) {
            self.save()?;
        }
        if out.stopped {
            tracing::info!(step = self.done.step, "stopped");
            emit(&mut self.callbacks, &Event::Stopped { step: self.done.step })?;
        } else {
            let regular = evaluate_every > 0 && self.done.step.is_multiple_of(evaluate_every);
            self.evaluate(&mut out, regular)?;
        }
        let never = out.evaluation.is_some() && self.best.is_none() && self.best_known.is_none();
        if let (Some(rule), true, false) = (&self.keep_best, never, self.options.quiet) {
            tracing::warn!(by = rule.what(), "no best model was kept: every evaluation was NaN");
            notice(format_args!("no best model was kept: in every evaluation the {} was NaN", rule.what()));
        }
        (out.steps, out.clipped, out.skipped) = (self.done.step, self.done.clipped, self.done.skipped);
        Ok(out)
    }

    /// A new run in the folder of an old one would overwrite its snapshots.
    fn refuse_another_runs_folder(&mut self) -> Result<()> {
        if let (false, Some(snapshots)) = (self.begun, &self.snapshots)
            && let Some(newest) = snapshots.files()?.last()
        {
            bail!(argument, "there is a snapshot of another run, {}: resume it, or take another folder", newest.display());
        }
        if self.keep_best.is_some()
            && let Some(path) = self.snapshots.as_ref().map(Snapshots::best)
            && path.metadata().is_ok_and(|about| !about.is_file())
        {
            // Which says what it is: at once, and not after the first evaluation.
            open(&path)?;
        }
        self.begun = true;
        Ok(())
    }

    fn one_step<D: Batches>(
        &mut self,
        data: &D,
        loss: &impl Fn(&M, &D::Batch, Key, &S) -> Result<(Loss, S)>,
    ) -> Result<(StepReport, Vec<(String, f64)>, Grads<M>)> {
        let started = Instant::now();
        let step = self.done.step;
        if let Some(s) = &self.schedule {
            self.optimizer.set_learning_rate(s.at(step))?;
        }
        let Gathered { loss, mut grads, metrics, carry, updates, position, no_targets } = self.gradients(data, loss)?;
        if self.options.absent_as_zero {
            grads.absent_as_zero();
        }
        let fits = match &mut self.scaler {
            Some(scaler) => scaler.unscale(&mut grads)?,
            None => true,
        };
        let clipped = match self.options.clip {
            Some(max) => grads.clip_global_norm(max)?,
            None => {
                let norm = grads.global_norm()?;
                Clipped { norm, finite: norm.is_finite(), clipped: false }
            }
        };
        let norm = clipped.norm;
        if loss == 0.0 && norm == 0.0 && !self.options.quiet && !std::mem::replace(&mut self.warned_zero, true) {
            tracing::warn!(step, "loss and gradients are 0");
            notice(format_args!(
                "step {step}: the loss is 0, and so is every gradient: either there is nothing left to learn, or the batch has no rows"
            ));
        }
        let mut skipped = !(fits && clipped.finite && loss.is_finite());
        if !skipped {
            // The optimizer may find more: squares that are infinite.
            let before = self.optimizer.skipped();
            self.optimizer.step(&mut self.model, &grads)?;
            skipped = self.optimizer.skipped() > before;
        }
        if skipped {
            // Finding the scale by overflows is the scaler's way.
            self.skip(loss, norm, fits || !loss.is_finite(), no_targets)?;
        } else {
            self.carry = carry;
            updates.apply(&mut self.model)?;
            if let Some(ema) = &mut self.ema {
                ema.update(&self.model)?;
            }
            self.done.skipped_in_a_row = 0;
        }
        self.done.clipped = self.done.clipped.saturating_add(usize::from(clipped.clipped));
        self.done.position = position;
        self.done.step += 1;
        let report = StepReport {
            step,
            steps: self.options.steps,
            loss,
            learning_rate: self.optimizer.learning_rate(),
            norm,
            clipped,
            skipped,
            seconds: started.elapsed().as_secs_f64(),
        };
        tracing::debug!(
            step,
            loss,
            learning_rate = report.learning_rate,
            norm,
            clipped = clipped.clipped,
            skipped,
            seconds = report.seconds,
            "step"
        );
        Ok((report, metrics, grads))
    }

    /// Counts a step that is not finite, or gives up.
    fn skip(&mut self, loss: f64, norm: f64, unexpected: bool, no_targets: bool) -> Result<()> {
        let (what, where_from) = match no_targets {
            true => ("no targets (`Loss::targets` is 0)".to_owned(), "leave out batches in which every target is ignored"),
            false => (
                format!("loss {loss}, gradient norm {norm}: not finite"),
                "`diagnostics::detect_anomaly` names the op and the line where it begins (a mean over an empty batch is NaN, too)",
            ),
        };
        let row = self.done.skipped_in_a_row.saturating_add(1);
        if row > self.options.patience {
            let step = self.done.step;
            bail!(argument, "step {step}: {what} for {row} steps in a row; {where_from}");
        }
        self.done.skipped_in_a_row = row;
        self.done.skipped = self.done.skipped.saturating_add(1);
        let step = self.done.step;
        if no_targets {
            tracing::warn!(step, "no targets: the step is left out");
        } else {
            tracing::warn!(step, loss, norm, "not finite: the step is left out");
        }
        if unexpected && !self.options.quiet && !std::mem::replace(&mut self.warned, true) {
            notice(format_args!(
                "step {step} is left out: {what}; further ones are counted in Outcome::skipped ({})",
                if no_targets { where_from } else { "diagnostics::detect_anomaly finds the op" }
            ));
        }
        Ok(())
    }

    /// Mean loss, numbers and gradients over the micro-batches, the state after them, and the position.
    fn gradients<D: Batches>(&self, data: &D, loss: &impl Fn(&M, &D::Batch, Key, &S) -> Result<(Loss, S)>) -> Result<Gathered<M, S>> {
        let n = self.options.accumulate;
        let scale = self.scaler.as_ref().map_or(1.0, |s| s.scale);
        let (mut position, mut carry) = (self.done.position, self.carry.clone());
        let (mut sum, mut means, mut last, mut counted) = (Accumulator::new(), Means::default(), None, None);
        let (mut no_targets, mut all) = (true, BufferUpdates::new());
        for _ in 0..n {
            let batch = data.batch(position)?;
            let key = self.key.fold(position);
            let mut said = Said::default();
            let (l, (tensors, next), g) = gradient_and("train", &self.model, self.options.gradients, |m| {
                let (Loss { value, targets, metrics, updates }, next) = loss(m, &batch, key, &carry)?;
                all.append(updates)?;
                let value = self.scaler.as_ref().map_or(Ok(value.clone()), |s| s.scale(&value))?;
                Ok((value, (said.take(targets, metrics), next)))
            })?;
            carry = next;
            // A power of two: divided exactly.
            let l = l.item()? / scale;
            if *counted.get_or_insert(said.targets.is_some()) != said.targets.is_some() {
                bail!(argument, "the loss says its number of targets for some batches and not for others");
            }
            let weight = said.targets.unwrap_or(1.0);
            means.add(said.numbers(&tensors)?, weight);
            // One batch alone is its own mean; one without targets has none.
            no_targets &= weight == 0.0;
            last = Some((if weight == 0.0 { f64::NAN } else { l }, g));
            if n > 1
                && let Some((_, g)) = last.take_if(|_| weight != 0.0)
            {
                sum.add(l, g, weight)?;
            }
            let Some(next) = position.checked_add(1) else { bail!(argument, "there is no batch after position {position}") };
            position = next;
        }
        let (loss, grads) = match last {
            _ if sum.weight() > 0.0 => sum.finish()?,
            Some(alone) => alone,
            None => bail!(argument, "accumulate must be at least 1"),
        };
        Ok(Gathered { loss, grads, metrics: means.finish(), carry, updates: all, position, no_targets })
    }

    fn evaluate(&mut self, out: &mut Outcome<M>, regular: bool) -> Result<()> {
        let Some(f) = &mut self.evaluate else { return Ok(()) };
        let Evaluation { loss: Some(loss), metrics } = f(&self.model)? else { return Ok(()) };
        let step = self.done.step;
        out.evaluation = Some(loss);
        tracing::info!(step, loss, "evaluated");
        let best = self.judge(loss, &metrics)?;
        if regular && self.observed != Some(step) {
            self.observed = Some(step);
            if let Some(s) = &mut self.schedule {
                s.observe(loss)?;
            }
        }
        emit(&mut self.callbacks, &Event::Evaluated { step, loss, metrics: &metrics, model: &self.model, best })
    }

    fn save(&mut self) -> Result<()> {
        let Some(snapshots) = &self.snapshots else { return Ok(()) };
        let path = snapshots.save(&self.snapshot()?)?;
        tracing::info!(step = self.done.step, path = %path.display(), "saved");
        emit(&mut self.callbacks, &Event::Saved { step: self.done.step, path: &path })
    }
}

pub(super) fn emit<M>(callbacks: &mut [Callback<'_, M>], event: &Event<'_, M>) -> Result<()> {
    callbacks.iter_mut().try_for_each(|f| f(event))
}
