//! Observers: what tools see of a tape while it records and while it is swept.
//!
//! An observer belongs to one tape, so there is nothing global; a tape without one asks a single flag per op.

use super::{Cotangents, Inner, InputCotangents, Kind, Saved, Tape, Under};
use crate::backend::{Device, cuda};
use crate::error::Result;
use crate::tensor::Tensor;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sees every op that a tape records, and every derivative that a sweep computes; see [`Tape::observe`].
///
/// Ops on untracked tensors are not recorded, so they are not seen; nor is what runs inside a
/// [`checkpoint`](crate::checkpoint) until the sweep computes it again.
pub trait Observer: Send + Sync {
    /// An op ran and was recorded.
    ///
    /// # Errors
    /// An error makes the op fail: it reaches the caller of the op.
    fn ran(&self, op: &Ran<'_>) -> Result<()>;

    /// A sweep computed an op's input cotangents.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn pulled(&self, op: &Pulled<'_>) -> Result<()>;

    /// The program named a value by [`Tensor::tap`].
    fn tapped(&self, name: &str, value: &Tensor);

    /// An op that is a composition of others ran; each of them was seen by [`Observer::ran`] before. Few ask: nothing unless said otherwise.
    ///
    /// # Errors
    /// An error makes the op fail: it reaches the caller of the op.
    fn composed(&self, _: &Composed<'_>) -> Result<()> {
        Ok(())
    }
}

/// A composition that ran.
pub struct Composed<'a> {
    /// The op's name as its caller wrote it.
    pub name: &'static str,
    /// The line that called it.
    pub at: &'static Location<'static>,
    /// Its operands.
    pub inputs: &'a [&'a Tensor],
    /// Its results.
    pub outputs: &'a [Tensor],
}

/// An op that ran.
pub struct Ran<'a> {
    /// The op's name as its caller wrote it: `narrow`, not `slice`.
    pub name: &'static str,
    /// The line that called it.
    pub at: &'static Location<'static>,
    /// Its operands.
    pub inputs: &'a [&'a Tensor],
    /// Its visible results.
    pub outputs: &'a [Tensor],
    /// Its place on the tape; unique for one tape.
    pub node: usize,
    /// Bytes that it keeps for its derivative. Memory shared with other nodes counts each time.
    pub saved_bytes: usize,
    /// When it began.
    pub began: Instant,
    /// How long its kernel took, on a GPU waited for; zero for views.
    pub time: Duration,
    tape: &'a Arc<Inner>,
}

impl Ran<'_> {
    /// The watched parameter that operand `i` is, directly or through casts and permutations.
    pub fn parameter(&self, i: usize) -> Option<String> {
        parameter(self.tape, self.inputs.get(i)?)
    }

    /// What a module was given whose parameters the op takes: its first operand that is none. A norm that is fused with the sum
    /// before it was given the sum, the op's second result.
    pub fn given(&self) -> Option<&Tensor> {
        if SUMMED.contains(&self.name) {
            return self.outputs.get(1);
        }
        (0..self.inputs.len()).find(|&i| self.inputs[i].dtype().is_float() && self.parameter(i).is_none()).map(|i| self.inputs[i])
    }

    /// Whether the op gives its operand in another form (cast, permuted, moved): no element is computed.
    pub fn is_form(&self) -> bool {
        FORMS.contains(&self.name)
    }
}

/// An op whose derivative was computed.
pub struct Pulled<'a> {
    /// The op's name.
    pub name: &'static str,
    /// The line that called it in the forward pass.
    pub at: &'static Location<'static>,
    /// Its place on the tape, as [`Ran::node`] gave it.
    pub node: usize,
    /// Cotangents of its outputs, complete.
    pub y_bar: &'a Cotangents,
    /// Its contributions to the cotangents of its inputs.
    pub x_bar: &'a InputCotangents,
    /// When it began.
    pub began: Instant,
    /// How long it took.
    pub time: Duration,
}

/// The observers of a tape, and a flag that is cheap to ask.
#[derive(Default)]
pub(super) struct Watchers {
    any: AtomicBool,
    list: Mutex<Vec<Arc<dyn Observer>>>,
}

impl Watchers {
    fn list(&self) -> Vec<Arc<dyn Observer>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    pub(super) fn extend(&self, other: &Watchers) {
        if other.any() {
            let more = other.list();
            self.list.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
            self.any.store(true, Relaxed);
        }
    }
}

/// The time of an op that is observed; nothing otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Started(Option<(Instant, Duration, Device)>);

impl Started {
    /// Bytes of what is saved, when somebody wants to know.
    pub(crate) fn bytes(&self, saved: &Saved) -> usize {
        if self.0.is_some() { saved.bytes() } else { 0 }
    }

    /// The work is done (on a GPU: queued, and waited for).
    pub(crate) fn stop(self) -> Result<Self> {
        let Some((began, _, device)) = self.0 else { return Ok(self) };
        wait(device)?;
        Ok(Started(Some((began, began.elapsed(), device))))
    }
}

/// Starts the clock when the operands' tape is observed.
pub(crate) fn start(x: &[&Tensor]) -> Started {
    let tracked = x.iter().find_map(|t| t.node.as_ref().map(|n| (n, t.device())));
    Started(tracked.and_then(|(n, device)| n.tape.upgrade().filter(|t| t.watchers.any()).map(|_| (Instant::now(), Duration::ZERO, device))))
}

/// The clock of a sweep's step.
pub(super) fn started(tape: &Inner) -> Option<Instant> {
    tape.watchers.any().then(Instant::now)
}

fn wait(device: Device) -> Result<()> {
    if device.is_cuda() { cuda::synchronize(device) } else { Ok(()) }
}

/// Tells the observers of an op that was recorded.
pub(crate) fn ran(
    tape: &Arc<Inner>,
    node: usize,
    started: Started,
    name: &'static str,
    at: &'static Location<'static>,
    inputs: &[&Tensor],
    outputs: &[Tensor],
    saved_bytes: usize,
) -> Result<()> {
    let Some((began, time, _)) = started.0 else { return Ok(()) };
    let op = Ran { name, at, inputs, outputs, node, saved_bytes, began, time, tape };
    tape.watchers.list().iter().try_for_each(|o| o.ran(&op)).map_err(|e| e.in_op(name, at))
}

/// Tells the observers of a derivative.
pub(super) fn pulled(
    tape: &Inner,
    node: usize,
    started: Option<Instant>,
    name: &'static str,
    at: &'static Location<'static>,
    y_bar: &Cotangents,
    x_bar: &InputCotangents,
) -> Result<()> {
    let Some(began) = started else { return Ok(()) };
    if let Some(t) = x_bar.iter().flatten().next() {
        wait(t.device())?;
    }
    let op = Pulled { name, at, node, y_bar, x_bar, began, time: began.elapsed() };
    tape.watchers.list().iter().try_for_each(|o| o.pulled(&op)).map_err(|e| e.in_op(name, at))
}

/// Runs a composition; the nodes that it adds to a tape get the line of its caller, and observers see the whole.
pub(crate) fn composed<R: AsRef<[Tensor]>>(
    name: &'static str,
    x: &[&Tensor],
    at: &'static Location<'static>,
    f: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let observed = start(x).0.is_some();
    let result = {
        let _under = Under::new(at);
        f()
    };
    let tape = x.iter().filter(|_| observed).find_map(|t| t.node.as_ref()).and_then(|n| n.resolve().ok());
    if let (Some((tape, _)), Ok(outputs)) = (tape, &result) {
        let op = Composed { name, at, inputs: x, outputs: outputs.as_ref() };
        tape.watchers.list().iter().try_for_each(|o| o.composed(&op))?;
    }
    result
}

/// The leaf's name that a tensor is, or a cast or permuted form of.
pub(super) fn parameter(tape: &Arc<Inner>, t: &Tensor) -> Option<String> {
    let (own, mut id) = t.node.as_ref()?.resolve().ok()?;
    if !Arc::ptr_eq(&own, tape) {
        return None;
    }
    let nodes = tape.nodes();
    loop {
        match &nodes.get(id)?.kind {
            Kind::Leaf(name) => return name.as_ref().map(|n| n.to_string()),
            // One operand, and not a part of it: the same parameter in another form. A part (a row of a table) is a value.
            Kind::Op(op) if op.outputs == 1 => {
                let &[Some(parent)] = op.parents.as_slice() else { return None };
                let (here, there) = (&nodes[id], &nodes[parent]);
                let same_elements = here.shape.numel() == there.shape.numel() && FORMS.contains(&op.name);
                id = if same_elements { parent } else { return None };
            }
            _ => return None,
        }
    }
}

/// Ops that add a residual before they normalise: what the norm was given is their second result.
const SUMMED: &[&str] = &["add_layer_norm", "add_rms_norm"];

/// What leaves a parameter the same parameter. This and the list above are the only names of ops here: a name missing only costs a name in reports.
const FORMS: [&str; 7] = ["alias", "cast", "permute", "reshape", "t", "to_device", "transpose"];

impl Tape {
    /// Lets an observer see what is recorded and swept from now on; it stays until the tape goes.
    ///
    /// Inside [`value_and_grad`](crate::value_and_grad) there is no tape in sight: use
    /// [`diagnostics::observe`](crate::diagnostics::observe) on the watched model.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner.watch_by(observer);
    }
}

impl Inner {
    fn watch_by(&self, observer: Arc<dyn Observer>) {
        self.watchers.list.lock().unwrap_or_else(PoisonError::into_inner).push(observer);
        self.watchers.any.store(true, Relaxed);
    }
}

impl Tensor {
    /// Names this value for the observers of the tape that tracks it (a [`Trace`](crate::diagnostics::Trace), say).
    ///
    /// Costs one flag when nobody does: the name is only made when somebody listens.
    pub fn tap<S: AsRef<str>>(&self, name: impl FnOnce() -> S) {
        let Some(tape) = self.node.as_ref().and_then(|n| n.tape.upgrade()).filter(|t| t.watchers.any()) else { return };
        let name = name();
        for o in tape.watchers.list() {
            o.tapped(name.as_ref(), self);
        }
    }

    /// [`Tensor::tap`] for a layer that does not know its own path: the name is put beside the module that owns
    /// `parameter`. A value tapped as `q` beside `h.0.attn.c_attn.weight` is called `h.0.attn.q`.
    pub fn tap_beside(&self, parameter: &Tensor, name: &str) {
        let Some(tape) = self.node.as_ref().and_then(|n| n.tape.upgrade()).filter(|t| t.watchers.any()) else { return };
        let Some((tape, _)) = tape.settled() else { return };
        let Some(path) = parameter_path(&tape, parameter) else { return };
        let name = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for o in tape.watchers.list() {
            o.tapped(&name, self);
        }
    }

    /// Lets an observer see the tape that tracks this tensor. `false` when none does.
    pub(crate) fn observe_tape(&self, observer: Arc<dyn Observer>) -> bool {
        let tape = self.node.as_ref().and_then(|n| n.resolve().ok());
        if let Some((tape, _)) = &tape {
            tape.watch_by(observer);
        }
        tape.is_some()
    }

    /// Where this tensor is on its tape.
    pub(crate) fn place(&self) -> Option<usize> {
        self.node.as_ref().and_then(|n| n.resolve().ok()).map(|(_, id)| id)
    }
}

/// The path of the module that contains the module that owns a parameter.
fn parameter_path(tape: &Arc<Inner>, t: &Tensor) -> Option<String> {
    let name = parameter(tape, t)?;
    let mut parts: Vec<&str> = name.split('.').collect();
    parts.truncate(parts.len().saturating_sub(2));
    Some(parts.join("."))
}
