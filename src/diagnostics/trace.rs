//! Recording every module's output by path, to find the first one that differs from a reference.

use super::modules;
use crate::error::{Error, Result};
use crate::functional::{Grads, value_and_grad};
use crate::io::{TensorFile, write_tensors};
use crate::memory;
use crate::module::Module;
use crate::tape::{Observer, Pulled, Ran, Tape};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::panic::Location;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The text of a file that holds the names in the order of computation.
const ORDER: &str = "order";

/// Values of a run by the path of the module that gave them, in the order in which they were computed.
///
/// A module's path is that of its parameters: the result of an op that takes `h.0.mlp.c_fc.weight` is the output of
/// `h.0.mlp.c_fc`, so no layer has to report anything. `PATH` is its output, `PATH:input` what it was given, `PATH:grad` the
/// output's cotangent; a module that runs again is `PATH#1`. What takes the tree's own parameters (a bare layer's) is `(root)`. Values without parameters of their own are named by
/// [`Tensor::tap`]. What runs inside a [`checkpoint`](crate::checkpoint) is not seen.
///
/// ```
/// use cotangent::{diagnostics::Trace, nn::{Gpt, GptConfig}, Key, Module, Tensor, F32};
/// let config = GptConfig { vocabulary: 11, context: 8, layers: 2, heads: 2, width: 16, ..GptConfig::default() };
/// let gpt = Gpt::new(&config, F32, Key::new(1))?;
/// let tokens = Tensor::from_slice(&[1i64, 2, 3, 4], [1, 4])?;
/// let (_, reference) = Trace::of(&gpt, |m| m.forward(&tokens, None))?;
/// // One weight is wrong: the trace says which.
/// let broken = gpt.map(|name, t| if name == "transformer.h.1.mlp.c_fc.weight" { t.mul_scalar(1.1) } else { Ok(t.clone()) })?;
/// let (_, trace) = Trace::of(&broken, |m| m.forward(&tokens, None))?;
/// let found = trace.compare(&reference, 1e-4)?;
/// assert_eq!(found.first().unwrap().name, "transformer.h.1.mlp.c_fc");
/// println!("{found}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Trace {
    entries: Vec<(String, Tensor)>,
}

impl Trace {
    /// Runs a function of a model and records every module's input and output. Returns its value, untracked.
    ///
    /// # Errors
    /// What `f` returns; tape error when the model is tracked already.
    #[track_caller]
    pub fn of<M, Y, F>(model: &M, f: F) -> Result<(Y, Trace)>
    where
        M: Module + Clone,
        Y: Module + Clone,
        F: FnOnce(&M) -> Result<Y>,
    {
        let tape = Tape::new();
        // Frozen parameters have no gradient, but they have a path.
        let mut all = model.clone();
        let _ = all.thaw(|_| true);
        let watched = all.watch(&tape)?;
        let tracer = Tracer::new();
        tracer.attach(&watched)?;
        let y = f(&watched)?.map(|_, t| Ok(t.detach()))?;
        Ok((y, tracer.finish()))
    }

    /// [`value_and_grad`], with a trace of outputs and their cotangents.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn with_cotangents<M, F>(model: &M, f: F) -> Result<(Tensor, Grads<M>, Trace)>
    where
        M: Module + Clone,
        F: FnOnce(&M) -> Result<Tensor>,
    {
        let tracer = Tracer::new();
        let (y, grads) = value_and_grad(model, |m| {
            tracer.attach(m)?;
            f(m)
        })?;
        Ok((y, grads, tracer.finish()))
    }

    /// A trace from values by name, in the order of computation.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn from_values(entries: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let at = Location::caller();
        Ok(Trace { entries: memory::try_collect(entries).map_err(|e| e.in_op("trace", at))? })
    }

    /// Names and values, in the order of computation.
    pub fn entries(&self) -> &[(String, Tensor)] {
        &self.entries
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Writes a safetensors file, whole or not at all. The order of computation goes into its metadata.
    ///
    /// # Errors
    /// Argument error when two values have one name; I/O error.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = Location::caller();
        self.write(path.as_ref()).map_err(|e| e.rename_op("trace").called_at(at))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let tensors = memory::try_collect(self.entries.iter().map(|(n, t)| (n.as_str(), t)))?;
        let order: Vec<&str> = memory::try_collect(tensors.iter().map(|(n, _)| *n))?;
        // Their text, which may have to be escaped and doubles as it grows.
        memory::ensure(order.iter().map(|n| 8 * n.len() + 16).sum())?;
        let order = serde_json::to_string(&order).map_err(|e| Error::io("the names cannot be stored").with_source(e))?;
        write_tensors(path, &tensors, &[(ORDER, &order)])
    }

    /// Reads a safetensors file: of [`Trace::save`], or of any other program that used the same names.
    ///
    /// # Errors
    /// I/O error; corrupt-file error for another format; dtype error for a dtype that tensors do not have.
    #[track_caller]
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let at = Location::caller();
        Self::read(path.as_ref()).map_err(|e| e.rename_op("trace").called_at(at))
    }

    fn read(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let order = file.metadata().get(ORDER);
        // A text for each name, twice while the list of them grows, and a place in a map.
        memory::ensure(order.map_or(0, |text| text.len().saturating_mul(40)))?;
        let order: Option<Vec<String>> = order.and_then(|text| serde_json::from_str(text).ok());
        let mut entries: Vec<(String, Tensor)> = memory::try_collect(file.tensors()?)?;
        if let Some(order) = order {
            let place: HashMap<&str, usize> = order.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
            memory::ensure(entries.len() * size_of::<(String, Tensor)>())?;
            entries.sort_by_key(|(n, _)| place.get(n.as_str()).copied().unwrap_or(usize::MAX));
        }
        Ok(Trace { entries })
    }
}

/// Records a [`Trace`] inside a gradient function of your own.
///
/// ```
/// use cotangent::{diagnostics::Tracer, nn::Linear, value_and_grad, Key, Tensor, F32};
/// let layer = Linear::new(3, 2, F32, Key::new(1))?;
/// let x = Tensor::ones([4, 3], F32)?;
/// let tracer = Tracer::new();
/// let (_, grads) = value_and_grad(&layer, |l| {
///     tracer.attach(l)?;
///     let y = l.forward(&x)?;
///     y.tap(|| "hidden"); // a name besides `(root)`, the path of a layer at the root
///     y.square()?.sum(..)
/// })?;
/// assert_eq!(tracer.finish().get("hidden:grad").unwrap().shape(), &[4, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Tracer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    entries: Vec<(String, Tensor)>,
    runs: HashMap<String, usize>,
    /// The latest output of a module: the index of its entry and its node.
    latest: HashMap<String, (usize, usize)>,
    /// Entries whose cotangent a node's sweep gives.
    nodes: HashMap<usize, Vec<String>>,
}

impl Tracer {
    /// One that has recorded nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records what is computed from a model's parameters from now on.
    ///
    /// # Errors
    /// Tape error when no tape tracks the model.
    #[track_caller]
    pub fn attach<M: Module + Clone>(&self, model: &M) -> Result<()> {
        super::observe(model, Arc::new(self.clone()))
    }

    /// What was recorded.
    pub fn finish(&self) -> Trace {
        Trace { entries: std::mem::take(&mut *self.state()).entries }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Error unless there is room for what an op adds: two entries, a place in each table, and the name in all of them.
    fn room(&mut self, path: &str) -> Result<()> {
        memory::small(8 * (path.len() + 8))?;
        memory::grow(&mut self.entries, 2)?;
        memory::grow_table(&mut self.runs)?;
        memory::grow_table(&mut self.latest)?;
        memory::grow_table(&mut self.nodes)
    }

    /// The name of a new entry of that path.
    fn name(&mut self, path: &str) -> String {
        let run = self.runs.entry(path.to_owned()).or_default();
        *run += 1;
        if *run == 1 { path.to_owned() } else { format!("{path}#{}", *run - 1) }
    }

    fn push(&mut self, name: String, value: &Tensor, node: Option<usize>) {
        if let Some(node) = node {
            self.nodes.entry(node).or_default().push(name.clone());
        }
        self.entries.push((name, value.untracked()));
    }
}

impl Observer for Tracer {
    fn ran(&self, op: &Ran<'_>) -> Result<()> {
        let (Some(path), Some(y)) = (modules::or_root(op), op.outputs.first()) else { return Ok(()) };
        let s = &mut *self.state();
        s.room(&path)?;
        // A module of several ops: the last result is the module's.
        if let Some(&(entry, node)) = s.latest.get(&path)
            && op.inputs.iter().any(|x| x.place() == Some(node))
        {
            let name = s.entries[entry].0.clone();
            s.entries[entry].1 = y.untracked();
            if let Some(names) = s.nodes.get_mut(&node) {
                names.retain(|n| *n != name);
            }
            s.nodes.entry(op.node).or_default().push(name);
            s.latest.insert(path, (entry, op.node));
            return Ok(());
        }
        let name = s.name(&path);
        if let Some(given) = op.given() {
            s.push(format!("{name}:input"), given, None);
        }
        s.push(name, y, Some(op.node));
        let entry = s.entries.len() - 1;
        s.latest.insert(path, (entry, op.node));
        Ok(())
    }

    fn pulled(&self, op: &Pulled<'_>) -> Result<()> {
        let mut s = self.state();
        for (i, bar) in (0..).map_while(|i| op.y_bar.slot(i)).enumerate() {
            if let (Some(names), Some(bar)) = (s.nodes.remove(&(op.node + i)), bar) {
                memory::extend(&mut s.entries, names.into_iter().map(|n| (format!("{n}:grad"), bar.untracked())))?;
            }
        }
        Ok(())
    }

    fn tapped(&self, name: &str, value: &Tensor) {
        let mut s = self.state();
        let name = s.name(name);
        s.push(name, value, value.place());
    }
}
