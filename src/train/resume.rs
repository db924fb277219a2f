//! Snapshots of a run and what continues from them: the state between two steps, what must be as it was, and the best model.

use super::best::{Best, KeepBest};
use super::snapshot::{Found, RUN, Snapshot, pass_over};
use super::trainer::{Progress, Trainer};
use crate::error::{Error, Result, bail};
use crate::io::{at_callers_line, failed, set_aside};
use crate::module::{Module, unique_names};
use crate::optim::{Ema, LossScaler, Optimizer, State};
use crate::rng::Key;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Prefix of the carried state among the optimizer's tensors.
const CARRY: &str = "carry.";
/// A learning rate that is a schedule's.
const SCHEDULED: &str = "by schedule ";

/// What [`Trainer::resume`] continued from.
#[derive(Debug)]
pub struct Resumed {
    /// The snapshot's file.
    pub path: PathBuf,
    /// What was passed over, and why: newer snapshots, newest first, and last `best.safetensors`, be it damaged or gone. Each file lies
    /// beside the others as `NAME.damaged` now.
    pub damaged: Vec<(PathBuf, Error)>,
}

impl<M: Module + Clone, O: Optimizer<M>, S: Module + Clone> Trainer<'_, M, O, S> {
    /// The state between two steps.
    ///
    /// # Errors
    /// Argument error when two tensors of the model have one name.
    #[track_caller]
    pub fn snapshot(&self) -> Result<Snapshot> {
        let at = Location::caller();
        unique_names(&self.model).and(unique_names(&self.carry)).map_err(|e| e.in_op("snapshot", at))?;
        let d = &self.done;
        let counters = [("clipped", d.clipped), ("skipped", d.skipped), ("skipped_in_a_row", d.skipped_in_a_row)];
        let mut numbers: BTreeMap<String, f64> = counters.into_iter().map(|(k, n)| (k.to_owned(), n as f64)).collect();
        numbers.insert("learning_rate".to_owned(), self.optimizer.learning_rate());
        let mut optimizer = self.optimizer.state();
        let carried = self.carry.named_tensors().into_iter().map(|(n, t)| (format!("{CARRY}{n}"), t.detach()));
        optimizer.tensors.extend(carried);
        let schedule = self.schedule.as_ref().map(|s| s.state());
        for more in [self.ema.as_ref().map(Ema::state), self.scaler.as_ref().map(LossScaler::state), schedule].into_iter().flatten() {
            optimizer.tensors.extend(more.tensors);
            optimizer.numbers.extend(more.numbers);
        }
        if let Some((step, value)) = self.best.as_ref().map(|b| (b.step, b.value)).or(self.best_known) {
            numbers.extend([("best".to_owned(), value), ("best_step".to_owned(), step as f64)]);
        }
        // Whether the schedule has observed the evaluation at this step: a run that is stopped after one is, others are not.
        numbers.extend(self.observed.map(|step| ("observed".to_owned(), step as f64)));
        let mut settings = self.settings.clone();
        settings.extend(self.run_settings(d.step));
        settings.extend(self.data.clone().map(|d| (format!("{RUN}data"), d)));
        Ok(Snapshot {
            step: d.step as u64,
            position: d.position,
            key: self.key.parts(),
            model: self.model.named_tensors().into_iter().map(|(n, t)| (n, t.detach())).collect(),
            optimizer,
            numbers,
            settings,
        })
    }

    /// Continues from a snapshot of the same run: model, optimizer, key and position are those it was taken with. Of the best model it
    /// has step and value alone: a later one counts as the best when it is better.
    ///
    /// # Errors
    /// Argument error that names what differs when it is of other settings, another model or another optimizer, or of a run with other
    /// learning rates, hyperparameters, accumulation, clipping, frozen parameters or another key than the default
    /// ([`Options::allow_changes`](super::Options::allow_changes) lets it); shape and dtype errors. Nothing is changed then.
    #[track_caller]
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let at = Location::caller();
        self.continue_from(snapshot).map_err(|e| at_callers_line(e, "restore", at))
    }

    fn continue_from(&mut self, s: &Snapshot) -> Result<()> {
        s.compare_settings(&self.settings)?;
        let model = self.model_of(s)?;
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
            if !state.numbers.keys().chain(state.tensors.keys()).any(|name| name.starts_with("ema.")) {
                bail!(argument, "the snapshot has no average of the weights: leave Trainer::ema out, or set it after the resumption");
            }
            ema.load_state(&taken(&mut state, "ema."))?;
        }
        if let Some(scaler) = &mut scaler {
            if !state.numbers.keys().any(|name| name.starts_with("loss_scaler.")) {
                bail!(argument, "the snapshot has no loss scaler: leave Trainer::scaler out, or set it after the resumption");
            }
            scaler.load_state(&taken(&mut state, "loss_scaler."))?;
        }
        let of_schedule = taken(&mut state, "schedule.");
        let carry = self.carry_of(taken(&mut state, CARRY))?;
        let other_rates = self.other_rates(s)?;
        let before = (self.optimizer.learning_rate(), self.schedule.as_ref().map(|s| s.state()));
        if !other_rates {
            if let Some(mine) = &mut self.schedule {
                mine.load_state(&of_schedule)?;
            }
            self.optimizer.set_learning_rate(rate)?;
        }
        if let Err(e) = self.optimizer.load_state(state) {
            self.optimizer.set_learning_rate(before.0)?;
            if let (Some(mine), Some(old)) = (&mut self.schedule, before.1) {
                mine.load_state(&old)?;
            }
            return Err(e);
        }
        if !self.another_key(s) {
            self.key = s.key();
        }
        (self.model, self.done, self.begun) = (model, done, true);
        (self.ema, self.scaler, self.carry) = (ema, scaler, carry);
        self.observed = s.numbers.get("observed").map(|step| *step as usize);
        self.best_known = best_in(s).filter(|_| self.keeps_best_as(s));
        let first = s.settings.get(&format!("{RUN}learning_rate")).and_then(|r| r.parse().ok());
        self.first_rate = Some(if other_rates { before.0 } else { first.unwrap_or(rate) });
        self.data = s.settings.get(&format!("{RUN}data")).cloned();
        self.data_of_snapshot = self.data.is_some();
        Ok(())
    }

    /// Continues from the newest snapshot of [`Trainer::snapshots`] that can be read; `None` when there is none yet.
    ///
    /// A damaged one is passed over when the one before it is whole, and renamed to `NAME.damaged`: look at [`Resumed::damaged`], steps
    /// are made again then. So is the best model's file where one is kept ([`Trainer::keep_best`]); its value still counts, so that no worse
    /// model takes its place. Whatever else keeps one of them from being read, or the run from continuing, is an error, after which the
    /// folder is as it was.
    ///
    /// # Errors
    /// As [`Trainer::restore`] and [`Snapshots::newest`](crate::train::Snapshots::newest); argument error when the trainer has no folder of snapshots, or another trainer
    /// runs there.
    #[track_caller]
    pub fn resume(&mut self) -> Result<Option<Resumed>> {
        let at = Location::caller();
        self.continue_newest(at).map_err(|e| at_callers_line(e, "resume", at))
    }

    fn continue_newest(&mut self, at: &'static Location<'static>) -> Result<Option<Resumed>> {
        let Some(snapshots) = self.snapshots.clone() else { bail!(argument, "there is no folder of snapshots to resume from") };
        let _mine = snapshots.begin()?;
        let Some(Found { path, snapshot, mut damaged }) = snapshots.find("resume", at)? else { return Ok(None) };
        let refused =
            |path: &Path, e| at_callers_line(e, "resume", at).rename_op("resume").about(format!("cannot continue from {}", path.display()));
        let place = snapshots.best();
        let best = match self.find_best(&place, &snapshot) {
            Ok(best) => best,
            Err(e) => {
                // Where the snapshot itself is of another run, that is the reason to give.
                let its = snapshot.compare_settings(&self.settings).and_then(|()| self.model_of(&snapshot));
                return Err(its.map_or_else(|e| refused(&path, e), |_| refused(&place, e)));
            }
        };
        self.continue_from(&snapshot).map_err(|e| refused(&path, e))?;
        // Nothing is refused any more: now the folder may change.
        for (path, e) in &damaged {
            pass_over(path, e)?;
        }
        match best {
            FoundBest::None => {}
            FoundBest::Whole(best) => (self.best, self.best_file) = (Some(best), Some(place)),
            FoundBest::Lost(e) => {
                let e = e.rename_op("resume").called_at(at);
                match e.is_corrupt_file() {
                    true => pass_over(&place, &e)?,
                    false => tracing::warn!("{}", e.why()),
                }
                damaged.push((place, e));
            }
        }
        tracing::info!(step = self.done.step, path = %path.display(), "resumed");
        Ok(Some(Resumed { path, damaged }))
    }

    /// Whether the best model is chosen as in a snapshot's run.
    fn keeps_best_as(&self, s: &Snapshot) -> bool {
        let was = s.settings.get(&format!("{RUN}keep_best"));
        self.keep_best.as_ref().is_some_and(|now| was.is_none_or(|was| *was == now.rule()))
    }

    /// The best model of a snapshot's run, from its file.
    fn find_best(&self, path: &Path, s: &Snapshot) -> Result<FoundBest<M>> {
        if !self.keeps_best_as(s) {
            return Ok(FoundBest::None);
        }
        let shown = path.display();
        match path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(match best_in(s) {
                    Some((step, value)) => {
                        FoundBest::Lost(Error::io(format!("{shown} is gone: the best model was that of step {step}, with {value}")))
                    }
                    None => FoundBest::None,
                });
            }
            Err(e) => return Err(failed("read", path, e)),
            Ok(_) => {}
        }
        let best = match Snapshot::read(path) {
            Ok(best) => best,
            Err(e) if e.is_corrupt_file() => return Ok(FoundBest::Lost(e)),
            Err(e) => return Err(e),
        };
        let Some((step, value)) = best_in(&best) else {
            bail!(argument, "it is a whole snapshot that does not say what it is the best by: move it away, or put back the best one");
        };
        best.compare_settings(&self.settings)?;
        Ok(FoundBest::Whole(Best { step, value, model: self.model_of(&best)? }))
    }

    /// What a run like this one must have in common with a snapshot of it, after so many steps.
    fn run_settings(&self, steps: usize) -> BTreeMap<String, String> {
        let rate = match &self.schedule {
            Some(s) => format!("{SCHEDULED}{}", s.fingerprint(steps)),
            None => format!("{:?}", self.first_rate.unwrap_or(self.optimizer.learning_rate())),
        };
        let clip = self.options.clip.map_or("none".to_owned(), |c| format!("{c:?}"));
        let accumulate = self.options.accumulate.to_string();
        let own = [("learning_rate", rate), ("accumulate", accumulate), ("clip", clip), ("frozen", frozen(&self.model))];
        let mut all: BTreeMap<String, String> = own.into_iter().map(|(n, v)| (format!("{RUN}{n}"), v)).collect();
        all.extend(self.keep_best.as_ref().map(|keep| (format!("{RUN}keep_best"), keep.rule())));
        all.extend(self.optimizer.settings().into_iter().map(|(n, v)| (format!("{RUN}optimizer.{n}"), v)));
        all
    }

    /// Whether a key was set that is not the snapshot's. The default is nobody's choice.
    fn another_key(&self, s: &Snapshot) -> bool {
        self.key != Key::new(0) && self.key != s.key()
    }

    /// Refuses what is otherwise now than in a snapshot's run, the data not counted, unless that is allowed; says whether learning rates are.
    fn other_rates(&self, s: &Snapshot) -> Result<bool> {
        let now = self.run_settings(usize::try_from(s.step).unwrap_or(usize::MAX));
        // Of another optimizer: its state will say so.
        let name = format!("{RUN}optimizer.name");
        if s.settings.get(&name) != now.get(&name) {
            return Ok(false);
        }
        let rate = format!("{RUN}learning_rate");
        let mut differ = Vec::new();
        for (key, now) in &now {
            let Some(was) = s.settings.get(key).filter(|was| *was != now) else { continue };
            let shown = key.trim_start_matches(RUN);
            let by = |v: &str| if v.starts_with(SCHEDULED) { "a schedule's".to_owned() } else { format!("`{v}`") };
            differ.push(if *key == rate && was.starts_with(SCHEDULED) && now.starts_with(SCHEDULED) {
                format!("the schedule gives other rates for the {} steps that are done", s.step)
            } else {
                format!("{shown} was {}, is {}", by(was), by(now))
            });
        }
        if self.another_key(s) {
            let shown = |(seed, stream): (u64, u64)| if stream == 0 { seed.to_string() } else { format!("{seed} with stream {stream}") };
            differ.push(format!("key was {}, is {}", shown(s.key), shown(self.key.parts())));
        }
        if differ.is_empty() {
            return Ok(false);
        }
        let differ = differ.join("; ");
        if !self.options.allow_changes {
            bail!(argument, "the run would continue by other rules: {differ}; Options::allow_changes permits it, with the new ones");
        }
        tracing::warn!("the run continues by other rules: {differ}");
        Ok(s.settings.get(&rate) != now.get(&rate))
    }

    /// Notes what the data say about themselves: the data of a snapshot must say the same.
    pub(super) fn know(&mut self, now: Option<String>) -> Result<()> {
        if std::mem::take(&mut self.data_of_snapshot)
            && let (Some(was), Some(now)) = (&self.data, &now)
            && was != now
        {
            if !self.options.allow_changes {
                self.data_of_snapshot = true;
                bail!(
                    argument,
                    "the data differ from those before: {was}; now {now}; Options::allow_changes lets the run continue with them"
                );
            }
            tracing::warn!("the data differ from those before: {was}; now {now}");
        }
        self.data = now;
        Ok(())
    }

    /// Keeps the model where an evaluation says that it is the best.
    pub(super) fn judge(&mut self, loss: f64, metrics: &[(String, f64)]) -> Result<bool> {
        let Some(KeepBest { metric, higher_is_better }) = &self.keep_best else { return Ok(false) };
        let value = match metric {
            None => loss,
            Some(name) => match metrics.iter().find(|(n, _)| n == name) {
                Some((_, v)) => *v,
                None => {
                    let all: Vec<&str> = metrics.iter().map(|(n, _)| n.as_str()).collect();
                    bail!(argument, "the best model is kept by `{name}`, the evaluation has only the loss and [{}]", all.join(", "));
                }
            },
        };
        let better = |best: f64| if *higher_is_better { value > best } else { value < best };
        let so_far = self.best.as_ref().map(|b| b.value).or(self.best_known.map(|(_, value)| value));
        if value.is_nan() || so_far.is_some_and(|best| !better(best)) {
            return Ok(false);
        }
        let new = Best { step: self.done.step, value, model: self.model.map(|_, t| Ok(t.detach()))? };
        let old = self.best.replace(new);
        if let Err(e) = self.save_best() {
            // What the file does not have is not the best yet: the next try is to write it.
            self.best = old;
            return Err(e);
        }
        Ok(true)
    }

    fn save_best(&mut self) -> Result<()> {
        let Some(snapshots) = &self.snapshots else { return Ok(()) };
        let path = snapshots.best();
        if self.best_file.as_ref() != Some(&path) && path.is_file() {
            // Where the path is a link, its file.
            let real = path.canonicalize().map_err(|e| failed("write", &path, e))?;
            let old = set_aside(&real, "old")?;
            tracing::warn!(path = %old.display(), "the best model of another run was kept");
        }
        self.snapshot()?.save(&path)?;
        self.best_file = Some(path);
        Ok(())
    }

    /// The model with a snapshot's tensors, which must be those that it has.
    fn model_of(&self, s: &Snapshot) -> Result<M> {
        let mut model = self.model.clone();
        model.load_named(&s.model)?;
        let old: BTreeMap<String, Tensor> = self.model.named_tensors().into_iter().collect();
        model.map(|name, t| {
            let (old, file) = (&old[name], &s.model[name]);
            if old.dtype() != file.dtype() {
                // A cast would continue, but not with the same numbers.
                bail!(dtype, "`{name}` is {} in the snapshot, {} in the model", file.dtype(), old.dtype());
            }
            t.to_device(old.device())
        })
    }

    /// The carried state with a snapshot's tensors.
    fn carry_of(&self, state: State) -> Result<S> {
        let own: BTreeMap<String, Tensor> = self.carry.named_tensors().into_iter().map(|(n, t)| (format!("{CARRY}{n}"), t)).collect();
        if let Some(name) = state.tensors.keys().find(|n| !own.contains_key(*n)) {
            bail!(argument, "the snapshot has `{name}`, this trainer does not carry it: see Trainer::with_carry");
        }
        self.carry.map(|name, old| {
            let Some(t) = state.tensors.get(&format!("{CARRY}{name}")) else {
                bail!(argument, "the snapshot has no `{CARRY}{name}`, which this trainer carries");
            };
            if t.shape() != old.shape() || t.dtype() != old.dtype() {
                bail!(shape, "`{CARRY}{name}` is {} {} in the snapshot, {} {} here", t.dtype(), t.shape(), old.dtype(), old.shape());
            }
            t.to_device(old.device())
        })
    }
}

/// The entries whose names start with `prefix`, taken out.
fn taken(state: &mut State, prefix: &str) -> State {
    let (tensors, other_tensors) = std::mem::take(&mut state.tensors).into_iter().partition(|(name, _)| name.starts_with(prefix));
    let (numbers, other_numbers) = std::mem::take(&mut state.numbers).into_iter().partition(|(name, _)| name.starts_with(prefix));
    (state.tensors, state.numbers) = (other_tensors, other_numbers);
    State { tensors, numbers }
}

/// What there is of the best model when a run continues.
enum FoundBest<M> {
    /// None was kept, or by another rule.
    None,
    Whole(Best<M>),
    /// Damaged or gone, and why.
    Lost(Error),
}

/// The parameters that are not trained: all by name when they are few.
fn frozen<M: Module + Clone>(model: &M) -> String {
    const SHOWN: usize = 4;
    let moving: BTreeSet<String> = model.trainable().into_iter().chain(model.buffers()).map(|(n, _)| n).collect();
    let names: Vec<String> = model.named_tensors().into_iter().map(|(n, _)| n).filter(|n| !moving.contains(n)).collect();
    match names.len() {
        0 => "none".to_owned(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{}, … ({n}, checksum {:08x})", names[..SHOWN].join(", "), crc32c::crc32c(names.join(",").as_bytes())),
    }
}

/// Step and value of the best model, as a snapshot has them.
fn best_in(s: &Snapshot) -> Option<(usize, f64)> {
    s.numbers.get("best_step").map(|step| *step as usize).zip(s.numbers.get("best").copied())
}
