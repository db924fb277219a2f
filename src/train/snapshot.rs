//! Snapshots: all that a run needs to continue bit for bit, in one safetensors file.

use crate::error::{Error, Result, bail};
use crate::io::{
    Busy, Lock, Seal, TensorFile, create_folder, failed, folder_of, lock_run, set_aside, sweep_partial, sync_folder, write_sealed,
};
use crate::optim::State;
use crate::rng::Key;
use crate::tensor::Tensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind::NotFound;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// The header's entry with everything that is not a tensor.
const ENTRY: &str = crate::io::SNAPSHOT;
/// Version of that entry, and of the file's checksum.
const VERSION: u64 = 2;
/// Prefix of the model's tensors: with it taken off, the file is a checkpoint like any other.
const MODEL: &str = "model.";
/// File of the best model's snapshot.
pub(super) const BEST: &str = "best.safetensors";
/// Prefix of the settings that the trainer finds out itself, and compares itself.
pub(super) const RUN: &str = "run.";
/// Prefix of the optimizer's tensors.
const OPTIMIZER: &str = "optimizer.";

/// The state of a run between two steps.
///
/// Schedules are functions of the step, batches functions of their position and random numbers functions of a key, so these
/// three numbers represent them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Steps done.
    pub step: u64,
    /// Batches taken from the data.
    pub position: u64,
    /// The key that losses draw from, as [`Key::parts`].
    pub key: (u64, u64),
    /// The model's tensors.
    pub model: BTreeMap<String, Tensor>,
    /// What the optimizer remembers.
    pub optimizer: State,
    /// Other numbers: counters of the trainer, or the caller's own. Kept exactly, NaN and infinities included.
    pub numbers: BTreeMap<String, f64>,
    /// What the run was started with, as texts: must be the same where it continues.
    pub settings: BTreeMap<String, String>,
}

impl Snapshot {
    /// Writes the file: whole or not at all, and on the disk when this returns. A checksum covers every byte of it. Tensors on the
    /// CPU are written from their own memory, without a copy.
    ///
    /// # Errors
    /// I/O error; out of memory.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = Location::caller();
        self.write(path.as_ref()).map_err(|e| e.rename_op("snapshot").called_at(at))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let named = |prefix: &str, tensors: &BTreeMap<String, Tensor>| -> Vec<(String, Tensor)> {
            tensors.iter().map(|(n, t)| (format!("{prefix}{n}"), t.clone())).collect()
        };
        let mut tensors = named(MODEL, &self.model);
        tensors.extend(named(OPTIMIZER, &self.optimizer.tensors));
        let entry = json!({
            "version": VERSION,
            "step": self.step,
            "position": self.position,
            "key": [self.key.0, self.key.1],
            "optimizer": exact(&self.optimizer.numbers),
            "numbers": exact(&self.numbers),
            "settings": self.settings,
        });
        let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        // The format alone notices no changed number or name.
        write_sealed(path, &tensors, &[(ENTRY, &entry.to_string())])
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Corrupt-file error when the file is damaged (any byte of it is not what was written) or no snapshot; argument error that names
    /// the version when it has another format than this release reads; I/O error; out of memory.
    #[track_caller]
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::read(path.as_ref()).map_err(|e| e.rename_op("snapshot").called_at(at))
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let (shown, (file, entry)) = (path.display(), checked(path)?);
        let damaged = |what: &str| damaged(path, what);
        let number = |v: &Value, what: &str| number(path, v, what);
        let mut out = Snapshot {
            step: number(&entry["step"], "no step")?,
            position: number(&entry["position"], "no position")?,
            key: (number(&entry["key"][0], "no key")?, number(&entry["key"][1], "no key")?),
            numbers: inexact(&entry["numbers"]).ok_or_else(|| damaged("numbers"))?,
            ..Snapshot::default()
        };
        out.optimizer.numbers = inexact(&entry["optimizer"]).ok_or_else(|| damaged("the optimizer's numbers"))?;
        for (k, v) in entry["settings"].as_object().ok_or_else(|| damaged("no settings"))? {
            crate::memory::small(2 * size_of::<(String, String)>() + k.len())?;
            out.settings.insert(k.clone(), v.as_str().ok_or_else(|| damaged("a setting is not text"))?.to_owned());
        }
        for name in file.all_names()? {
            crate::memory::small(2 * size_of::<(String, Tensor)>() + crate::memory::TENSOR)?;
            let t = file.tensor(&name)?;
            if let Some(n) = name.strip_prefix(MODEL) {
                out.model.insert(n.to_owned(), t);
            } else if let Some(n) = name.strip_prefix(OPTIMIZER) {
                out.optimizer.tensors.insert(n.to_owned(), t);
            } else {
                bail!(corrupt_file, "{shown} has a tensor `{name}` that belongs to neither model nor optimizer");
            }
        }
        Ok(out)
    }

    /// The key that losses draw from.
    pub(super) fn key(&self) -> Key {
        Key::from_parts(self.key.0, self.key.1)
    }

    /// Refuses settings other than those of the run that was saved, naming what differs.
    ///
    /// # Errors
    /// Argument error.
    #[track_caller]
    pub fn check_settings(&self, now: &BTreeMap<String, String>) -> Result<()> {
        let at = Location::caller();
        self.compare_settings(now).map_err(|e| e.in_op("check_settings", at))
    }

    /// [`Snapshot::check_settings`] for callers that name themselves.
    pub(super) fn compare_settings(&self, now: &BTreeMap<String, String>) -> Result<()> {
        let names: std::collections::BTreeSet<&String> = self.settings.keys().chain(now.keys()).collect();
        let of = |s: &BTreeMap<String, String>, n: &String| s.get(n).map_or("absent".to_owned(), |v| format!("`{v}`"));
        let differ: Vec<String> = names
            .into_iter()
            .filter(|n| !n.starts_with(RUN) && self.settings.get(*n) != now.get(*n))
            .map(|n| format!("{n} was {}, is {}", of(&self.settings, n), of(now, n)))
            .collect();
        if !differ.is_empty() {
            bail!(
                argument,
                "the snapshot is of another run: {}; continue with the settings it had, or begin in another folder",
                differ.join("; ")
            );
        }
        Ok(())
    }
}

/// The file and its entry, when not a byte of it is another than was written and this release reads its version. No tensor is read into
/// memory.
fn checked(path: &Path) -> Result<(TensorFile, Value)> {
    let (shown, file) = (path.display(), TensorFile::open(path)?);
    let Some(text) = file.metadata().get(ENTRY) else {
        bail!(corrupt_file, "{shown} is not a snapshot: its header has no `{ENTRY}` (it may hold the tensors of a model alone)");
    };
    // Not checked yet: it may be any text.
    crate::memory::ensure(crate::io::most_of_json(text.as_bytes()))?;
    let entry: Value = serde_json::from_str(text).map_err(|e| damaged(path, "no JSON").with_source(e))?;
    let version = number(path, &entry["version"], "no version")?;
    // The checksum first: a version that it does not agree with is damage too. A version that is checked in another way has no such
    // checksum, or one of another name.
    match file.seal()? {
        Seal::Broken => bail!(corrupt_file, "{shown} is damaged: it does not have the checksum that it was written with"),
        Seal::None if version == VERSION || version == 0 => bail!(corrupt_file, "{shown} is damaged: its checksum is missing"),
        Seal::Whole if version == VERSION => Ok((file, entry)),
        _ => {
            let hint = if version > VERSION { "take the release that wrote it, or a later one" } else { "take the release that wrote it" };
            bail!(argument, "{shown} is a snapshot of version {version}; this release reads version {VERSION}: {hint}");
        }
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::corrupt_file(format!("{}: the entry `{ENTRY}` is damaged: {what}", path.display()))
}

fn number(path: &Path, v: &Value, what: &str) -> Result<u64> {
    v.as_u64().ok_or_else(|| damaged(path, what))
}

/// Numbers as their shortest decimal texts, which read back to the same bits; JSON's own numbers have no NaN.
fn exact(numbers: &BTreeMap<String, f64>) -> Map<String, Value> {
    numbers.iter().map(|(k, v)| (k.clone(), Value::from(format!("{v:?}")))).collect()
}

fn inexact(v: &Value) -> Option<BTreeMap<String, f64>> {
    v.as_object()?.iter().map(|(k, v)| Some((k.clone(), v.as_str()?.parse().ok()?))).collect()
}

/// What [`Snapshots::newest`] found.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub snapshot: Snapshot,
    /// Newer files that are damaged, and what is wrong with them; newest first. Where the folder was opened for a run, each lies beside
    /// the others as `NAME.damaged` now.
    pub damaged: Vec<(PathBuf, Error)>,
}

/// A folder of snapshots: the newest and the one before it.
///
/// Each is written beside the others and renamed when it is on the disk, and an old one goes only after that: a process
/// killed at any moment leaves the last whole snapshot. A folder belongs to one process: the first that opens it has it until all that
/// it opened there (snapshots, metrics, trainers with them) is dropped, or it ends, however it ends.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: PathBuf,
    /// Steps between snapshots; 0 writes only at the end and when the run is stopped.
    pub every: usize,
    /// Nothing where the folder is only looked at.
    lock: Option<Lock>,
}

impl Snapshots {
    /// Snapshots that are kept.
    const KEPT: usize = 2;

    /// Makes the folder if there is none, takes it for this process, clears away the snapshots that a killed process left half-written
    /// (and no other file), and finds out whether the folder can be written: not only the first save says so.
    ///
    /// Open the folder before anything else in it: until then another process may be writing there.
    ///
    /// # Errors
    /// Argument error while a run of another process has the folder: nothing in it is touched then. I/O error.
    #[track_caller]
    pub fn open(folder: impl AsRef<Path>, every: usize) -> Result<Self> {
        let at = Location::caller();
        Self::open_at(folder.as_ref(), every).map_err(|e| e.rename_op("snapshots").called_at(at))
    }

    fn open_at(folder: &Path, every: usize) -> Result<Self> {
        if !folder.is_dir() {
            create_folder(folder)?;
            sync_folder(folder_of(folder))?;
        }
        let lock = lock_run(folder)?;
        if !lock.shared {
            sweep_partial(folder, |name| name.to_str().is_some_and(|n| n == BEST || step_of_name(n).is_some()))?;
        }
        Ok(Snapshots { folder: folder.to_owned(), every, lock: Some(lock) })
    }

    /// Looks at a folder, in which another process may train: [`Snapshots::files`] and [`Snapshots::newest`], which change nothing then.
    pub fn view(folder: impl AsRef<Path>) -> Self {
        Snapshots { folder: folder.as_ref().to_owned(), every: 0, lock: None }
    }

    /// Keeps other trainers of this process out of the folder while the result lives; other processes are out already.
    pub(super) fn begin(&self) -> Result<Busy> {
        let Some(busy) = self.own()?.begin() else {
            bail!(argument, "another run trains in {} at this moment: take another folder", self.folder.display());
        };
        Ok(busy)
    }

    fn own(&self) -> Result<&Lock> {
        self.lock.as_ref().ok_or_else(|| {
            Error::argument(format!("{} is open for reading only: `Snapshots::open` opens a folder for a run", self.folder.display()))
        })
    }

    /// The path of the best model's snapshot.
    pub(super) fn best(&self) -> PathBuf {
        self.folder.join(BEST)
    }

    /// The files, oldest first: whatever has a name `step-N.safetensors`, also what is no file.
    ///
    /// # Errors
    /// I/O error.
    #[track_caller]
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let at = Location::caller();
        self.list().map_err(|e| e.rename_op("snapshots").called_at(at))
    }

    fn list(&self) -> Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|e| failed("list", &self.folder, e))? {
            let path = entry.map_err(|e| failed("list", &self.folder, e))?.path();
            out.extend(step_of(&path).is_some().then_some(path));
        }
        // Names as `step-7` and `step-000000007` can mean one step.
        out.sort_by_cached_key(|p| (step_of(p), p.clone()));
        Ok(out)
    }

    /// Writes a snapshot, then removes those before the newest two, once the second of these is found to be whole: a damaged one does
    /// not count, and is renamed to `NAME.damaged`. Copies under other names than `step-000000123.safetensors` do not count either, and
    /// stay. Later ones, which a run that was set back to an earlier snapshot left, are renamed to `NAME.superseded`.
    ///
    /// # Errors
    /// Argument error when the folder is only looked at; I/O error; out of memory.
    #[track_caller]
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        let at = Location::caller();
        self.keep(snapshot).map_err(|e| e.rename_op("snapshots").called_at(at))
    }

    fn keep(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        self.own()?;
        let path = self.folder.join(file_name(snapshot.step));
        snapshot.write(&path)?;
        let (older, newer): (Vec<PathBuf>, Vec<PathBuf>) = self.list()?.into_iter().partition(|p| step_of(p) <= Some(snapshot.step));
        for path in &newer {
            let new = set_aside(path, "superseded")?;
            tracing::warn!(path = %new.display(), step = snapshot.step, "a later snapshot than that of this run was renamed");
        }
        // Only what a run wrote; not what somebody put there, nor a link to a disk that is away.
        let mut older: Vec<PathBuf> = older.into_iter().filter(|p| *p != path && is_own(p) && p.is_file()).collect();
        let mut whole = 1;
        // The one that was just written is one of them.
        while older.len() + whole > Self::KEPT
            && let Some(path) = older.pop()
        {
            if whole == Self::KEPT {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != NotFound => return Err(failed("remove", &path, e)),
                    _ => continue,
                }
            }
            match checked(&path) {
                Ok(_) => whole += 1,
                Err(e) if e.is_corrupt_file() => {
                    pass_over(&path, &e)?;
                }
                // What cannot be read now may be whole or not: the run goes on, and those before it stay for this time.
                Err(e) => tracing::warn!(path = %path.display(), "a snapshot cannot be checked: {}", e.why()),
            }
        }
        Ok(path)
    }

    /// The newest snapshot that is whole; `None` in a folder without any. Damaged ones are passed over with a warning
    /// (`tracing`) when one before them is whole, named in [`Found::damaged`] and, where the folder was opened for a run, renamed to
    /// `NAME.damaged`; none is ever removed.
    ///
    /// # Errors
    /// Whatever keeps a snapshot from being read that is not damage: I/O error (also for what is no file: a link that leads nowhere, a
    /// FIFO, a folder), out of memory, argument error for another version of the format. Corrupt-file error that says what is wrong with
    /// each, when all are damaged: they stay as they are.
    #[track_caller]
    pub fn newest(&self) -> Result<Option<Found>> {
        let at = Location::caller();
        self.find_and_pass_over(at).map_err(|e| e.rename_op("snapshots").called_at(at))
    }

    fn find_and_pass_over(&self, at: &'static Location<'static>) -> Result<Option<Found>> {
        let found = self.find("snapshots", at)?;
        for (path, e) in found.iter().flat_map(|f| &f.damaged) {
            if self.lock.is_some() {
                pass_over(path, e)?;
            } else {
                tracing::warn!(path = %path.display(), "snapshot is passed over: {e}");
            }
        }
        Ok(found)
    }

    /// [`Snapshots::newest`] that changes nothing in the folder: [`pass_over`] is for when all else about the run is found to be right.
    /// What is wrong with damaged ones is said of the op and the line.
    pub(super) fn find(&self, op: &'static str, at: &'static Location<'static>) -> Result<Option<Found>> {
        let mut damaged: Vec<(PathBuf, Error)> = Vec::new();
        let mut files = self.list()?;
        while let Some(path) = files.pop() {
            match read_named(&path) {
                Ok(snapshot) => return Ok(Some(Found { path, snapshot, damaged })),
                Err(e) if e.is_corrupt_file() => damaged.push((path, e.rename_op(op).called_at(at))),
                // The run that has the folder has saved newer ones since.
                Err(_) if self.lock.is_none() && fs::symlink_metadata(&path).is_err_and(|e| e.kind() == NotFound) => {
                    damaged.clear();
                    files = self.list()?;
                }
                Err(e) => return Err(e),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let what = if damaged.len() == 1 {
            "the only snapshot is damaged".to_owned()
        } else {
            format!("all {} snapshots are damaged", damaged.len())
        };
        let each: Vec<String> = damaged.iter().map(|(_, e)| e.why()).collect();
        bail!(
            corrupt_file,
            "{}: {what}, and all is left as it is: put back a whole copy of one, or take another folder to begin anew; {}",
            self.folder.display(),
            each.join("; ")
        )
    }
}

/// Renames what is damaged to `NAME.damaged`, and says so.
pub(super) fn pass_over(path: &Path, e: &Error) -> Result<()> {
    let kept = set_aside(path, "damaged")?;
    tracing::warn!(path = %kept.display(), "passed over, being damaged: {}", e.why());
    Ok(())
}

/// The snapshot in a file that is named by its step.
fn read_named(path: &Path) -> Result<Snapshot> {
    let snapshot = Snapshot::read(path)?;
    if step_of(path) != Some(snapshot.step) {
        bail!(corrupt_file, "{} holds the snapshot of step {}, which is not what its name says", path.display(), snapshot.step);
    }
    Ok(snapshot)
}

/// The name that a run gives.
fn file_name(step: u64) -> String {
    format!("step-{step:09}.safetensors")
}

fn is_own(path: &Path) -> bool {
    step_of(path).is_some_and(|step| path.file_name().is_some_and(|name| *name == *file_name(step)))
}

fn step_of(path: &Path) -> Option<u64> {
    step_of_name(path.file_name()?.to_str()?)
}

fn step_of_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
    // `parse` alone would take a sign too.
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}
