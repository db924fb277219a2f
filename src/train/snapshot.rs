//! Snapshots: all that a run needs to continue bit for bit, in one safetensors file.

use crate::error::{Error, Result, bail};
use crate::io::{TensorFile, checksum, failed, lock, sweep_partial, write_tensors};
use crate::optim::State;
use crate::rng::Key;
use crate::tensor::Tensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::panic::Location;
use std::path::{Path, PathBuf};

/// The header's entry with everything that is not a tensor.
const ENTRY: &str = "cotangent.snapshot";
/// Version of that entry.
const VERSION: u64 = 1;
/// Prefix of the model's tensors: with it taken off, the file is a checkpoint like any other.
const MODEL: &str = "model.";
/// Prefix of the optimizer's tensors.
const OPTIMIZER: &str = "optimizer.";

/// The state of a run between two steps.
///
/// Schedules are functions of the step, batches functions of their position and random numbers functions of a key, so these
/// three numbers stand for them.
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
    /// Writes the file: whole or not at all, and on the disk when this returns.
    ///
    /// # Errors
    /// I/O error; out of memory.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = Location::caller();
        self.write(path.as_ref()).map_err(|e| e.in_op("snapshot", at))
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
            // The format checks the header only: this finds a changed byte among the weights.
            "crc32c": checksum(tensors.iter().map(|(_, t)| t))?,
        });
        let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        write_tensors(path, &tensors, &[(ENTRY, &entry.to_string())])
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Corrupt-file error when the file is damaged, its tensors do not have their checksum, or it is no snapshot; I/O error;
    /// out of memory.
    #[track_caller]
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::read(path.as_ref()).map_err(|e| e.in_op("snapshot", at))
    }

    fn read(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let shown = path.display();
        let Some(text) = file.metadata().get(ENTRY) else {
            bail!(corrupt_file, "{shown} is no snapshot: its header has no `{ENTRY}` (it may hold the tensors of a model alone)");
        };
        let damaged = |what: &str| Error::corrupt_file(format!("{shown}: the entry `{ENTRY}` is damaged: {what}"));
        let entry: Value = serde_json::from_str(text).map_err(|e| damaged("no JSON").with_source(e))?;
        let number = |v: &Value, what: &str| v.as_u64().ok_or_else(|| damaged(what));
        let version = number(&entry["version"], "no version")?;
        if version != VERSION {
            bail!(corrupt_file, "{shown} is a snapshot of version {version}; this program reads version {VERSION}");
        }
        let mut out = Snapshot {
            step: number(&entry["step"], "no step")?,
            position: number(&entry["position"], "no position")?,
            key: (number(&entry["key"][0], "no key")?, number(&entry["key"][1], "no key")?),
            numbers: inexact(&entry["numbers"]).ok_or_else(|| damaged("numbers"))?,
            ..Snapshot::default()
        };
        out.optimizer.numbers = inexact(&entry["optimizer"]).ok_or_else(|| damaged("the optimizer's numbers"))?;
        for (k, v) in entry["settings"].as_object().ok_or_else(|| damaged("no settings"))? {
            out.settings.insert(k.clone(), v.as_str().ok_or_else(|| damaged("a setting is no text"))?.to_owned());
        }
        let mut all = Vec::new();
        for name in file.names() {
            let t = file.tensor(&name)?;
            all.push(t.clone());
            if let Some(n) = name.strip_prefix(MODEL) {
                out.model.insert(n.to_owned(), t);
            } else if let Some(n) = name.strip_prefix(OPTIMIZER) {
                out.optimizer.tensors.insert(n.to_owned(), t);
            } else {
                bail!(corrupt_file, "{shown} has a tensor `{name}` that belongs to neither model nor optimizer");
            }
        }
        let (want, have) = (number(&entry["crc32c"], "no checksum")?, u64::from(checksum(&all)?));
        if want != have {
            bail!(corrupt_file, "{shown} is damaged: its tensors have the checksum {have:08x}, when written it was {want:08x}");
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
    pub fn check_settings(&self, now: &BTreeMap<String, String>) -> Result<()> {
        let names: std::collections::BTreeSet<&String> = self.settings.keys().chain(now.keys()).collect();
        let of = |s: &BTreeMap<String, String>, n: &String| s.get(n).map_or("absent".to_owned(), |v| format!("`{v}`"));
        let differ: Vec<String> = names
            .into_iter()
            .filter(|n| self.settings.get(*n) != now.get(*n))
            .map(|n| format!("{n} was {}, is {}", of(&self.settings, n), of(now, n)))
            .collect();
        if !differ.is_empty() {
            bail!(argument, "the snapshot is of another run: {}", differ.join("; "));
        }
        Ok(())
    }
}

/// Numbers as their shortest decimal texts, which read back to the same bits; JSON's own numbers have no NaN.
fn exact(numbers: &BTreeMap<String, f64>) -> Map<String, Value> {
    numbers.iter().map(|(k, v)| (k.clone(), Value::from(format!("{v:?}")))).collect()
}

fn inexact(v: &Value) -> Option<BTreeMap<String, f64>> {
    v.as_object()?.iter().map(|(k, v)| Some((k.clone(), v.as_str()?.parse().ok()?))).collect()
}

/// A run holds the lock of this file, which stays in the folder.
const LOCK: &str = "run.lock";

/// What [`Snapshots::newest`] found.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub snapshot: Snapshot,
    /// Newer files that cannot be read, and why; newest first.
    pub damaged: Vec<(PathBuf, Error)>,
}

/// A folder of snapshots: the newest and the one before it.
///
/// Each is written beside the others and renamed when it lies on the disk, and an old one goes only after that: a process
/// killed at any moment leaves the last whole snapshot. One run has one folder.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: PathBuf,
    /// Steps between snapshots; 0 writes only at the end and when the run is stopped.
    pub every: usize,
}

impl Snapshots {
    /// Snapshots that are kept.
    const KEPT: usize = 2;

    /// Makes the folder if there is none, clears away the snapshots that a killed process left half-written (and no other file),
    /// and finds out whether the folder can be written: not only the first save says so. While another process trains there,
    /// nothing is cleared away.
    ///
    /// # Errors
    /// I/O error.
    #[track_caller]
    pub fn open(folder: impl AsRef<Path>, every: usize) -> Result<Self> {
        let (folder, at) = (folder.as_ref().to_owned(), Location::caller());
        let out = Snapshots { folder, every };
        let clear = || {
            fs::create_dir_all(&out.folder).map_err(|e| failed("create", &out.folder, e))?;
            let free = lock(&out.folder.join(LOCK))?;
            if free.is_some() { sweep_partial(&out.folder, |name| step_of_name(name).is_some()) } else { Ok(()) }
        };
        clear().map_err(|e| e.in_op("snapshots", at))?;
        Ok(out)
    }

    /// Keeps other runs out of the folder while the result lives.
    pub(super) fn keep_others_out(&self) -> Result<File> {
        let Some(mine) = lock(&self.folder.join(LOCK))? else {
            bail!(argument, "another run trains in {} at this moment: take another folder", self.folder.display());
        };
        Ok(mine)
    }

    /// The files, oldest first.
    ///
    /// # Errors
    /// I/O error.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|e| failed("list", &self.folder, e))? {
            let path = entry.map_err(|e| failed("list", &self.folder, e))?.path();
            if step_of(&path).is_some() && path.is_file() {
                out.push(path);
            }
        }
        out.sort_by_key(|p| step_of(p));
        Ok(out)
    }

    /// Writes a snapshot, then removes all but the newest two.
    ///
    /// # Errors
    /// I/O error.
    #[track_caller]
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        let path = self.folder.join(format!("step-{:09}.safetensors", snapshot.step));
        snapshot.save(&path)?;
        // Newer ones are damaged: the run continued from one before them.
        let files = self.files()?;
        let (older, newer): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|p| step_of(p) <= Some(snapshot.step));
        let outdated = older.len().saturating_sub(Self::KEPT);
        for path in newer.iter().chain(&older[..outdated]) {
            fs::remove_file(path).map_err(|e| failed("remove", path, e))?;
        }
        Ok(path)
    }

    /// The newest snapshot that can be read; `None` in a folder without any. A damaged one is passed over with a warning
    /// (`tracing`) when the one before it is whole, and named in [`Found::damaged`].
    ///
    /// # Errors
    /// What was wrong with the newest, when none can be read; I/O error.
    #[track_caller]
    pub fn newest(&self) -> Result<Option<Found>> {
        let mut damaged = Vec::new();
        for path in self.files()?.into_iter().rev() {
            match Snapshot::load(&path) {
                Ok(snapshot) => return Ok(Some(Found { path, snapshot, damaged })),
                Err(e) => {
                    tracing::warn!(path = %path.display(), "snapshot cannot be used: {e}");
                    damaged.push((path, e));
                }
            }
        }
        damaged.into_iter().next().map_or(Ok(None), |(_, e)| Err(e))
    }
}

fn step_of(path: &Path) -> Option<u64> {
    step_of_name(path.file_name()?.to_str()?)
}

fn step_of_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
    // `parse` alone would take a sign too.
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}
