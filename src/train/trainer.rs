//! The loop: gradients, clipping, schedule, update, and everything between the steps.

use super::data::Batches;
use super::event::{Event, StepReport};
use super::snapshot::{Found, Snapshot, Snapshots};
use crate::error::{Error, Result, bail};
use crate::functional::{GradOptions, Grads, value_and_grad_with};
use crate::io::at_callers_line;
use crate::module::{Module, ModuleExt, unique_names};
use crate::optim::{Clipped, Ema, LossScaler, Optimizer, Schedule, State};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::panic::Location;
use std::path::{Path, PathBuf};
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
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Steps of the whole run, those before a snapshot included.
    pub steps: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
    /// Largest global norm of the gradients.
    pub clip: Option<f64>,
    /// Steps between evaluations, the first before the first step.
    pub evaluate_every: usize,
    /// Steps in a row whose loss or gradients may be not finite. Such a step changes nothing; one more is an error.
    pub patience: usize,
    /// How gradients are taken.
    pub gradients: GradOptions,
}

impl Default for Options {
    fn default() -> Self {
        Options { steps: 1000, accumulate: 1, clip: None, evaluate_every: 0, patience: 100, gradients: GradOptions::default() }
    }
}

/// How far a run is: what a snapshot stores beside the tensors.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    step: usize,
    position: u64,
    clipped: usize,
    skipped: usize,
    skipped_in_a_row: usize,
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

/// What [`Trainer::resume`] continued from.
#[derive(Debug)]
pub struct Resumed {
    /// The snapshot's file.
    pub path: PathBuf,
    /// Newer snapshots that were passed over, and why; newest first. Each lies beside the others as `NAME.damaged` now.
    pub damaged: Vec<(PathBuf, Error)>,
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
///     let y = x.sum_keep(-1)?;
///     Ok((x, y))
/// };
/// let model = Linear::new(2, 1, true, F32, Key::new(2))?;
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
pub struct Trainer<'a, M, O> {
    /// The model, as trained so far.
    pub model: M,
    /// The optimizer with its state.
    pub optimizer: O,
    /// How to train.
    pub options: Options,
    /// Learning rate by step; without one the optimizer keeps its own.
    pub schedule: Option<Box<dyn Schedule + 'a>>,
    /// Losses get a key derived from this one and the batch's position, for dropout and other noise.
    pub key: Key,
    /// Average of the weights, moved after every step that was taken; part of the snapshots.
    pub ema: Option<Ema>,
    /// Scales the loss, for gradients in `f16`: a step that overflows is left out and changes the scale; part of the snapshots.
    pub scaler: Option<LossScaler>,
    /// Where snapshots go, if anywhere.
    pub snapshots: Option<Snapshots>,
    /// What snapshots of this run say about it; a snapshot with other settings is refused.
    pub settings: BTreeMap<String, String>,
    /// Ends the run before the next step when set; the state is saved first. Let the signals that ask a process to end (SIGINT, SIGTERM,
    /// SIGHUP) set it, and none of them costs a step: the book's page "What survives what" has the lines.
    pub stop: Arc<AtomicBool>,
    callbacks: Vec<Callback<'a, M>>,
    evaluate: Option<Evaluate<'a, M>>,
    done: Progress,
    /// Whether the folder's snapshots are this trainer's: restored or begun.
    begun: bool,
}

type Callback<'a, M> = Box<dyn FnMut(&Event<'_, M>) -> Result<()> + 'a>;
type Evaluate<'a, M> = Box<dyn FnMut(&M) -> Result<Option<f64>> + 'a>;

impl<'a, M: Module + Clone, O: Optimizer<M>> Trainer<'a, M, O> {
    /// A trainer with default options that has done nothing yet.
    pub fn new(model: M, optimizer: O) -> Self {
        Trainer {
            model,
            optimizer,
            options: Options::default(),
            schedule: None,
            key: Key::new(0),
            ema: None,
            scaler: None,
            snapshots: None,
            settings: BTreeMap::new(),
            stop: Arc::default(),
            callbacks: Vec::new(),
            evaluate: None,
            done: Progress::default(),
            begun: false,
        }
    }

    /// Calls `f` at every event, after the callbacks that were there before. Its error ends the run.
    ///
    /// What `f` borrows must be declared before the trainer, which may use it until it is dropped.
    pub fn on(&mut self, f: impl FnMut(&Event<'_, M>) -> Result<()> + 'a) {
        self.callbacks.push(Box::new(f));
    }

    /// Evaluates the model with `f` every so many steps and at the end; `None` says that it was interrupted.
    pub fn evaluate_with(&mut self, f: impl FnMut(&M) -> Result<Option<f64>> + 'a) {
        self.evaluate = Some(Box::new(f));
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.done.step
    }

    /// Makes the steps that are left. `loss` gets the model, a batch and a key, and returns a scalar.
    ///
    /// # Errors
    /// Whatever data, loss, optimizer, callbacks or evaluation return; argument error for options out of range, for a folder that has
    /// snapshots of another run or in which one is training, and when more steps in a row than [`Options::patience`], or all steps of the run, were not finite.
    /// The trainer can be run again after an error: model,
    /// optimizer and position are those of the last whole step.
    #[track_caller]
    pub fn run<D: Batches>(&mut self, data: &D, loss: impl Fn(&M, &D::Batch, Key) -> Result<Tensor>) -> Result<Outcome<M>> {
        let at = Location::caller();
        self.train(data, loss).map_err(|e| at_callers_line(e, "train", at))
    }

    fn train<D: Batches>(&mut self, data: &D, loss: impl Fn(&M, &D::Batch, Key) -> Result<Tensor>) -> Result<Outcome<M>> {
        let Options { steps, accumulate, evaluate_every, .. } = self.options;
        if accumulate == 0 {
            bail!(argument, "accumulate must be at least 1");
        }
        let _mine = self.snapshots.as_ref().map(Snapshots::begin).transpose()?;
        self.refuse_another_runs_folder()?;
        let mut out =
            Outcome { steps: 0, clipped: 0, skipped: 0, made: 0, seconds: 0.0, loss: None, evaluation: None, grads: None, stopped: false };
        let mut saved = None;
        while self.done.step < steps {
            if evaluate_every > 0 && self.done.step.is_multiple_of(evaluate_every) {
                self.evaluate(&mut out)?;
            }
            if self.stop.load(Relaxed) {
                out.stopped = true;
                break;
            }
            // Their memory serves the next gradients.
            out.grads = None;
            emit(&mut self.callbacks, &Event::Begin { step: self.done.step, model: &self.model })?;
            let (report, grads) = self.one_step(data, &loss)?;
            out.seconds += report.seconds;
            out.made += 1;
            out.loss = Some(report.loss);
            emit(&mut self.callbacks, &Event::Step { report, model: &self.model, grads: &grads })?;
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
            bail!(argument, "nothing was trained: in all {} steps the loss or a gradient was not finite", self.done.step);
        }
        if self.snapshots.is_some() && saved != Some(self.done.step) {
            self.save()?;
        }
        if out.stopped {
            tracing::info!(step = self.done.step, "stopped");
            emit(&mut self.callbacks, &Event::Stopped { step: self.done.step })?;
        } else {
            self.evaluate(&mut out)?;
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
        self.begun = true;
        Ok(())
    }

    fn one_step<D: Batches>(&mut self, data: &D, loss: &impl Fn(&M, &D::Batch, Key) -> Result<Tensor>) -> Result<(StepReport, Grads<M>)> {
        let started = Instant::now();
        let step = self.done.step;
        if let Some(s) = &self.schedule {
            self.optimizer.set_learning_rate(s.at(step))?;
        }
        let (loss, mut grads, position) = self.gradients(data, loss)?;
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
        let skipped = !(fits && clipped.finite && loss.is_finite());
        if skipped {
            self.skip(loss, norm)?;
        } else {
            self.optimizer.step(&mut self.model, &grads)?;
            if let Some(ema) = &mut self.ema {
                ema.update(&self.model)?;
            }
            self.done.skipped_in_a_row = 0;
        }
        self.done.clipped += usize::from(clipped.clipped);
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
        Ok((report, grads))
    }

    /// Counts a step that is not finite, or gives up.
    fn skip(&mut self, loss: f64, norm: f64) -> Result<()> {
        let row = self.done.skipped_in_a_row.saturating_add(1);
        if row > self.options.patience {
            let step = self.done.step;
            bail!(argument, "step {step}: loss {loss}, gradient norm {norm}: not finite for {row} steps in a row");
        }
        self.done.skipped_in_a_row = row;
        self.done.skipped = self.done.skipped.saturating_add(1);
        tracing::warn!(step = self.done.step, loss, norm, "not finite: the step is left out");
        Ok(())
    }

    /// Mean loss and gradients over the micro-batches, and the position after them.
    fn gradients<D: Batches>(&self, data: &D, loss: &impl Fn(&M, &D::Batch, Key) -> Result<Tensor>) -> Result<(f64, Grads<M>, u64)> {
        let n = self.options.accumulate;
        let (mut sum, mut total, mut position) = (0.0, None::<Grads<M>>, self.done.position);
        for _ in 0..n {
            let batch = data.batch(position)?;
            let key = self.key.fold(position);
            let (l, g) = value_and_grad_with(&self.model, self.options.gradients, |m| {
                let l = loss(m, &batch, key)?;
                self.scaler.as_ref().map_or(Ok(l.clone()), |s| s.scale(&l))
            })?;
            // A power of two: divided exactly.
            sum += l.item()? / self.scaler.as_ref().map_or(1.0, |s| s.scale);
            match &mut total {
                None => total = Some(g),
                Some(t) => t.accumulate(&g)?,
            }
            let Some(next) = position.checked_add(1) else { bail!(argument, "there is no batch after position {position}") };
            position = next;
        }
        let Some(mut grads) = total else { bail!(argument, "accumulate must be at least 1") };
        if n > 1 {
            grads.scale(1.0 / n as f64)?;
        }
        Ok((sum / n as f64, grads, position))
    }

    fn evaluate(&mut self, out: &mut Outcome<M>) -> Result<()> {
        let Some(f) = &mut self.evaluate else { return Ok(()) };
        let Some(loss) = f(&self.model)? else { return Ok(()) };
        out.evaluation = Some(loss);
        tracing::info!(step = self.done.step, loss, "evaluated");
        emit(&mut self.callbacks, &Event::Evaluated { step: self.done.step, loss })
    }

    fn save(&mut self) -> Result<()> {
        let Some(snapshots) = &self.snapshots else { return Ok(()) };
        let path = snapshots.save(&self.snapshot()?)?;
        tracing::info!(step = self.done.step, path = %path.display(), "saved");
        emit(&mut self.callbacks, &Event::Saved { step: self.done.step, path: &path })
    }

    /// The state between two steps.
    ///
    /// # Errors
    /// Argument error when two tensors of the model have one name.
    pub fn snapshot(&self) -> Result<Snapshot> {
        unique_names(&self.model)?;
        let d = &self.done;
        let counters = [("clipped", d.clipped), ("skipped", d.skipped), ("skipped_in_a_row", d.skipped_in_a_row)];
        let mut numbers: BTreeMap<String, f64> = counters.into_iter().map(|(k, n)| (k.to_owned(), n as f64)).collect();
        numbers.insert("learning_rate".to_owned(), self.optimizer.learning_rate());
        let mut optimizer = self.optimizer.state();
        for more in [self.ema.as_ref().map(Ema::state), self.scaler.as_ref().map(LossScaler::state)].into_iter().flatten() {
            optimizer.tensors.extend(more.tensors);
            optimizer.numbers.extend(more.numbers);
        }
        Ok(Snapshot {
            step: d.step as u64,
            position: d.position,
            key: self.key.parts(),
            model: self.model.named_tensors().into_iter().map(|(n, t)| (n, t.detach())).collect(),
            optimizer,
            numbers,
            settings: self.settings.clone(),
        })
    }

    /// Continues from a snapshot of the same run: model, optimizer, key and position are those it was taken with.
    ///
    /// # Errors
    /// Argument error that names what differs when it is of other settings, another model or another optimizer; shape and
    /// dtype errors. Nothing is changed then.
    #[track_caller]
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let at = Location::caller();
        self.continue_from(snapshot).map_err(|e| at_callers_line(e, "restore", at))
    }

    fn continue_from(&mut self, s: &Snapshot) -> Result<()> {
        s.check_settings(&self.settings)?;
        let mut model = self.model.clone();
        model.load_named(&s.model)?;
        let old: BTreeMap<String, Tensor> = self.model.named_tensors().into_iter().collect();
        let model = model.map(|name, t| {
            let (old, file) = (&old[name], &s.model[name]);
            if old.dtype() != file.dtype() {
                // A cast would continue, but not with the same numbers.
                bail!(dtype, "`{name}` is {} in the snapshot, {} in the model", file.dtype(), old.dtype());
            }
            t.to_device(old.device())
        })?;
        let count = |name: &str| {
            let n = s.numbers.get(name).copied().filter(|n| *n >= 0.0 && n.fract() == 0.0);
            n.map(|n| n as usize).ok_or_else(|| Error::corrupt_file(format!("the snapshot has no count `{name}`")))
        };
        let done = Progress {
            step: usize::try_from(s.step).map_err(|e| Error::corrupt_file("the snapshot's step").with_source(e))?,
            position: s.position,
            clipped: count("clipped")?,
            skipped: count("skipped")?,
            skipped_in_a_row: count("skipped_in_a_row")?,
        };
        let Some(&rate) = s.numbers.get("learning_rate") else { bail!(corrupt_file, "the snapshot has no learning rate") };
        let mut state = s.optimizer.clone();
        // Copies, so that nothing is changed when a later part is refused.
        let (mut ema, mut scaler) = (self.ema.clone(), self.scaler.clone());
        if let Some(ema) = &mut ema {
            ema.load_state(&taken(&mut state, "ema."))?;
        }
        if let Some(scaler) = &mut scaler {
            scaler.load_state(&taken(&mut state, "loss_scaler."))?;
        }
        let before = self.optimizer.learning_rate();
        self.optimizer.set_learning_rate(rate)?;
        if let Err(e) = self.optimizer.load_state(state) {
            self.optimizer.set_learning_rate(before)?;
            return Err(e);
        }
        (self.model, self.done, self.key, self.begun) = (model, done, s.key(), true);
        (self.ema, self.scaler) = (ema, scaler);
        Ok(())
    }

    /// Continues from the newest snapshot of [`Trainer::snapshots`] that can be read; `None` when there is none yet.
    ///
    /// A damaged one is passed over when the one before it is whole, and renamed to `NAME.damaged`: look at [`Resumed::damaged`], steps
    /// are made again then. Whatever else keeps the newest from being read is an error, after which the folder is as it was.
    ///
    /// # Errors
    /// As [`Trainer::restore`] and [`Snapshots::newest`]; argument error when the trainer has no folder of snapshots, or another trainer
    /// runs there.
    #[track_caller]
    pub fn resume(&mut self) -> Result<Option<Resumed>> {
        let at = Location::caller();
        self.continue_newest().map_err(|e| at_callers_line(e, "resume", at))
    }

    fn continue_newest(&mut self) -> Result<Option<Resumed>> {
        let Some(snapshots) = &self.snapshots else { bail!(argument, "there is no folder of snapshots to resume from") };
        let _mine = snapshots.begin()?;
        let Some(Found { path, snapshot, damaged }) = snapshots.newest()? else { return Ok(None) };
        self.continue_from(&snapshot).map_err(|e| refused(&path, e))?;
        tracing::info!(step = self.done.step, path = %path.display(), "resumed");
        Ok(Some(Resumed { path, damaged }))
    }
}

/// The mean of a loss over the first `batches` of some data, for [`Trainer::evaluate_with`]; `None` when `stop` is set meanwhile.
///
/// # Errors
/// What data and loss return; argument error for no batches.
pub fn mean_loss<D: Batches>(
    data: &D,
    batches: usize,
    stop: &AtomicBool,
    loss: impl Fn(&D::Batch) -> Result<Tensor>,
) -> Result<Option<f64>> {
    if batches == 0 {
        bail!(argument, "mean_loss: there must be at least one batch");
    }
    let mut sum = 0.0;
    for i in 0..batches {
        if stop.load(Relaxed) {
            return Ok(None);
        }
        sum += loss(&data.batch(i as u64)?)?.item()?;
    }
    Ok(Some(sum / batches as f64))
}

/// The entries whose names start with `prefix`, taken out.
fn taken(state: &mut State, prefix: &str) -> State {
    let (tensors, other_tensors) = std::mem::take(&mut state.tensors).into_iter().partition(|(name, _)| name.starts_with(prefix));
    let (numbers, other_numbers) = std::mem::take(&mut state.numbers).into_iter().partition(|(name, _)| name.starts_with(prefix));
    (state.tensors, state.numbers) = (other_tensors, other_numbers);
    State { tensors, numbers }
}

fn emit<M>(callbacks: &mut [Callback<'_, M>], event: &Event<'_, M>) -> Result<()> {
    callbacks.iter_mut().try_for_each(|f| f(event))
}

/// The file's name before what is wrong with it; the kind stays.
fn refused(path: &Path, e: Error) -> Error {
    Error::new(e.kind(), format!("cannot continue from {}", path.display())).with_source(e)
}
