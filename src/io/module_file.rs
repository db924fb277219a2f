//! Models to and from files.

use super::at_callers_line;
use super::safetensors::{TensorFile, write_tensors};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::module::{Module, is_batch_counter, unique_names};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::Location;
use std::path::Path;

/// A tensor that has one shape in a file and another in the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Misshaped {
    /// Its name.
    pub name: String,
    /// Shape in the file.
    pub file: Shape,
    /// Shape in the model.
    pub model: Shape,
}

/// What a file had for a model. Prints as a list of what differs.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Names of the tensors that were loaded.
    pub loaded: Vec<String>,
    /// Tensors of the model that the file does not have.
    pub missing: Vec<String>,
    /// Tensors of the file that the model does not have.
    pub unexpected: Vec<String>,
    /// Tensors whose shapes differ.
    pub misshaped: Vec<Misshaped>,
    /// Tensors of integers for parameters of floats, or the other way round, which no cast makes right: name, dtype of the file,
    /// dtype of the model.
    pub mistyped: Vec<(String, DType, DType)>,
    /// Loaded tensors that were cast to the model's dtype: name, dtype of the file, dtype of the model.
    pub converted: Vec<(String, DType, DType)>,
    /// Tensors of the file that the model has no use for by design: masks that old files carry, heads of other tasks, the output matrix of a
    /// model that is tied, the counters of PyTorch's batch norms.
    pub ignored: Vec<String>,
    /// What the files beside the weights say and is passed over, or could not be read: one line each.
    pub notes: Vec<String>,
}

impl LoadReport {
    /// Whether file and model have the same tensors of the same shapes, all floats or integers in both.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty() && self.mistyped.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} loaded", self.loaded.len())?;
        if !self.missing.is_empty() {
            write!(f, "; missing in the file: {}", names(&self.missing))?;
        }
        if !self.unexpected.is_empty() {
            write!(f, "; unexpected in the file: {}", names(&self.unexpected))?;
        }
        for (i, m) in self.misshaped.iter().enumerate() {
            let lead = if i == 0 { "; shapes differ:" } else { "," };
            write!(f, "{lead} `{}` is {} in the file, {} in the model", m.name, m.file, m.model)?;
        }
        for (i, (name, file, model)) in self.mistyped.iter().enumerate() {
            let lead = if i == 0 { "; dtypes differ:" } else { "," };
            write!(f, "{lead} `{name}` is {file} in the file, {model} in the model")?;
        }
        const SHOWN: usize = 6;
        if let Some((name, from, to)) = self.converted.first() {
            write!(f, "; {} converted, `{name}` from {from} to {to}", self.converted.len())?;
        }
        if !self.ignored.is_empty() {
            let more = self.ignored.len().saturating_sub(SHOWN);
            let shown = self.ignored[..self.ignored.len() - more].join(", ");
            write!(f, "; ignored: {shown}{}", if more > 0 { format!(" and {more} more") } else { String::new() })?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// One after the other; a model that is one tensor has a name that is empty.
fn names(all: &[String]) -> String {
    let mut text = String::new();
    for (i, name) in all.iter().enumerate() {
        text.push_str(if i > 0 { ", " } else { "" });
        text.push_str(if name.is_empty() { "a tensor without a name" } else { name });
    }
    text
}

/// Saving and loading, for every [`Module`].
///
/// ```
/// use cotangent::{io::ModuleFile, nn::Linear, Key, Module, F32};
/// # let folder = std::env::temp_dir().join(format!("cotangent-doc-m-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("linear.safetensors");
/// let trained = Linear::new(3, 2, F32, Key::new(1))?;
/// trained.save(&path)?;
///
/// let mut other = Linear::new(3, 2, F32, Key::new(2))?;
/// other.load(&path)?;
/// assert_eq!(other.weight.to_vec::<f32>()?, trained.weight.to_vec::<f32>()?);
///
/// let mut wide = Linear::no_bias(4, 2, F32, Key::new(3))?;
/// let e = wide.load(&path).unwrap_err(); // … unexpected in the file: bias; shapes differ: `weight` is [2, 3] in the file, [2, 4] in the model …
/// assert!(e.is_shape() && e.to_string().contains("`weight` is [2, 3] in the file, [2, 4] in the model"));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), cotangent::Error>(())
/// ```
pub trait ModuleFile: Module + Clone {
    /// Writes all tensors under their names, as safetensors that PyTorch and others read.
    ///
    /// # Errors
    /// Argument error when two tensors have one name; I/O error. An old file is only replaced by a whole new one.
    #[track_caller]
    fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = Location::caller();
        save(self, path.as_ref()).map_err(|e| at_callers_line(e, "save", at))
    }

    /// Writes the tensors that training changes, and no others: what a fine-tuned model has to ship, as adapters or a new head. Put them
    /// back with [`ModuleFile::load_partial`].
    ///
    /// ```
    /// use cotangent::{io::ModuleFile, nn::Linear, Key, Module, F32};
    /// # let folder = std::env::temp_dir().join(format!("cotangent-doc-t-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder)?;
    /// let mut net = (Linear::new(3, 2, F32, Key::new(1))?, Linear::new(2, 2, F32, Key::new(2))?);
    /// let _ = net.freeze(|name| name.starts_with("0."));
    /// net.save_trainable(folder.join("head.safetensors"))?;
    /// let mut other = (Linear::new(3, 2, F32, Key::new(1))?, Linear::new(2, 2, F32, Key::new(9))?);
    /// let report = other.load_partial(folder.join("head.safetensors"))?;
    /// assert_eq!(report.loaded, ["1.weight", "1.bias"]);
    /// assert_eq!(other.1.weight.to_vec::<f32>()?, net.1.weight.to_vec::<f32>()?);
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Argument error when nothing is trainable, or two tensors have one name; I/O error. An old file is only replaced by a whole new one.
    #[track_caller]
    fn save_trainable(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = Location::caller();
        let run = || {
            let named = self.trainable();
            if named.is_empty() {
                return Err(Error::argument("nothing of the model is trainable: every tensor is frozen or holds integers"));
            }
            save_named(self, &named, path.as_ref())
        };
        run().map_err(|e| at_callers_line(e, "save_trainable", at))
    }

    /// Replaces every tensor by the one of the same name in the file, cast to the model's dtype, on the model's device. Casts are
    /// listed in [`LoadReport::converted`].
    ///
    /// # Errors
    /// Argument error that lists all missing and unexpected tensors, dtype error when one is of integers and the other of floats,
    /// shape error when shapes differ too; nothing is changed then. I/O and corrupt-file errors as of [`TensorFile::open`].
    #[track_caller]
    fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport> {
        let at = Location::caller();
        load(self, path.as_ref(), true).map_err(|e| at_callers_line(e, "load", at))
    }

    /// Replaces what fits and leaves the rest: look at the report, which is all that tells.
    ///
    /// # Errors
    /// Argument error where nothing fits: names, shapes and dtypes are others. I/O and corrupt-file errors as of [`TensorFile::open`].
    #[track_caller]
    fn load_partial(&mut self, path: impl AsRef<Path>) -> Result<LoadReport> {
        let at = Location::caller();
        load(self, path.as_ref(), false).map_err(|e| at_callers_line(e, "load_partial", at))
    }
}

impl<M: Module + Clone> ModuleFile for M {}

fn save<M: Module + Clone>(model: &M, path: &Path) -> Result<()> {
    save_named(model, &model.named_tensors(), path)
}

fn save_named<M: Module + Clone>(model: &M, named: &[(String, Tensor)], path: &Path) -> Result<()> {
    unique_names(model)?;
    let tensors = crate::memory::try_collect(named.iter().map(|(n, t)| (n.as_str(), t)))?;
    // Without this key transformers refuses the file.
    write_tensors(path, &tensors, &[("format", "pt")])
}

/// What is said of a snapshot that is opened as a model.
const IN_A_SNAPSHOT: &str =
    " (it is a snapshot of a run: model.load_named(&Snapshot::load(path)?.model) takes its model, Trainer::resume goes on with it)";

fn load<M: Module + Clone>(model: &mut M, path: &Path, strict: bool) -> Result<LoadReport> {
    unique_names(model)?;
    let file = TensorFile::open(path)?;
    let in_file = crate::memory::map(file.all_names()?.into_iter().map(|n| Ok((n, ()))), 0)?;
    let own = model.named_tensors();
    let mut report = LoadReport::default();
    let mut fitting = BTreeMap::new();
    for (name, t) in &own {
        if !in_file.contains_key(name) {
            report.missing.push(name.clone());
        } else if &file.shape(name)? != t.shape() {
            report.misshaped.push(Misshaped { name: name.clone(), file: file.shape(name)?, model: t.shape().clone() });
        } else if file.dtype_of(name)?.is_float() != t.dtype().is_float() {
            report.mistyped.push((name.clone(), file.dtype_of(name)?, t.dtype()));
        } else {
            fitting.insert(name.clone(), file.dtype_of(name)?);
        }
    }
    let named: BTreeSet<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
    for name in in_file.into_keys().filter(|n| !named.contains(n.as_str())) {
        let counter = is_batch_counter(&name, &|n| named.contains(n));
        crate::memory::push(if counter { &mut report.ignored } else { &mut report.unexpected }, name)?;
    }
    if strict && !report.is_complete() {
        // The message lists them all, and grows as it does.
        crate::memory::ensure(report.unexpected.iter().map(|n| 4 * (n.len() + 2)).sum())?;
        let snapshot = if file.metadata().contains_key(super::SNAPSHOT) { IN_A_SNAPSHOT } else { "" };
        let message = format!("{} does not fit the model{snapshot}: {report}", path.display());
        return Err(match (report.misshaped.is_empty(), report.mistyped.is_empty()) {
            (false, _) => Error::shape(message),
            (true, false) => Error::dtype(message),
            (true, true) => Error::argument(message),
        });
    }
    if fitting.is_empty() && !own.is_empty() {
        crate::memory::ensure(report.unexpected.iter().map(|n| 4 * (n.len() + 2)).sum())?;
        let snapshot = if file.metadata().contains_key(super::SNAPSHOT) { IN_A_SNAPSHOT } else { "" };
        bail!(argument, "nothing in {} fits the model{snapshot}: {report}", path.display());
    }
    let loaded = model.map(|name, old| {
        let Some(&dtype) = fitting.get(name) else { return Ok(old.clone()) };
        report.loaded.push(name.to_owned());
        if dtype != old.dtype() {
            report.converted.push((name.to_owned(), dtype, old.dtype()));
        }
        file.tensor(name)?.cast(old.dtype())?.to_device(old.device())
    })?;
    *model = loaded;
    Ok(report)
}
