//! The tape: what was computed from watched tensors, in order. Layer L3; it names no op.
//!
//! A tape is an owned, linear list of nodes. A node keeps what its derivative needs and never an owning pointer to the
//! tape, so there are no reference cycles; dropping and sweeping are loops, so their depth does not grow with the
//! graph. Nothing here is global or thread-local: a tensor that is not tracked costs nothing.

mod checkpoint;
mod custom;
mod explain;
mod observe;
mod sweep;

pub(crate) use checkpoint::Isolated;
pub use checkpoint::checkpoint;
pub use custom::{custom_vjp, custom_vjp_once, once_differentiable};
pub(crate) use explain::{explain, lost_message, parameters, stops, unused};
pub use observe::{Composed, Observer, Pulled, Ran};
pub(crate) use observe::{Started, composed, ran, start};
pub(crate) use sweep::{Accumulate, Sweep, sweep};

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Where a tracked tensor sits.
#[derive(Clone)]
pub(crate) struct NodeRef {
    pub(crate) tape: Weak<Inner>,
    pub(crate) id: usize,
}

impl NodeRef {
    /// The tape and the place on it, unless the tape is gone.
    pub(crate) fn resolve(&self) -> Result<(Arc<Inner>, usize)> {
        let gone = || {
            Error::tape(
                "an operand is tracked by a tape that is gone: a sweep consumed it, or it was dropped; detach() the operand, or keep \
                 the tape (`Tape::cotangents` sweeps without consuming)",
            )
        };
        let (tape, offset) = self.tape.upgrade().and_then(|t| t.settled()).ok_or_else(gone)?;
        Ok((tape, self.id + offset))
    }
}

/// Tensors that a node keeps for its derivative, in the order in which its op saved them.
#[derive(Clone, Default)]
pub struct Saved(SmallVec<[Option<Tensor>; 4]>);

impl Saved {
    /// Nothing is needed.
    pub fn none() -> Self {
        Self::default()
    }

    /// Keeps these tensors; `None` marks one that the wanted derivatives do not need.
    pub fn of<const N: usize>(tensors: [Option<&Tensor>; N]) -> Self {
        Saved(tensors.into_iter().map(|t| t.cloned()).collect())
    }

    /// Keeps a list of tensors.
    pub fn list(tensors: impl IntoIterator<Item = Option<Tensor>>) -> Self {
        Saved(tensors.into_iter().collect())
    }

    /// The tensor saved at position `i`.
    ///
    /// # Errors
    /// Tape error when it was not saved: the op's `save` and `vjp` disagree.
    pub fn get(&self, i: usize) -> Result<&Tensor> {
        self.0.get(i).and_then(Option::as_ref).ok_or_else(|| Error::tape(format!("saved tensor {i} is missing: `save` and `vjp` disagree")))
    }

    /// The tensor saved at position `i`, if any.
    pub fn maybe(&self, i: usize) -> Option<&Tensor> {
        self.0.get(i).and_then(Option::as_ref)
    }

    /// Bytes of the saved values (shared storage counts each time).
    pub fn bytes(&self) -> usize {
        self.0.iter().flatten().map(|t| t.numel() * t.dtype().size()).sum()
    }

    fn detached(self) -> Self {
        Saved(self.0.into_iter().map(|t| t.map(|t| t.untracked())).collect())
    }
}

/// The cotangents of a node's outputs; `None` where nothing used the output.
#[derive(Clone)]
pub struct Cotangents(pub(crate) SmallVec<[Option<Tensor>; 2]>);

impl Cotangents {
    /// The cotangent of output `i`, if anything used it.
    pub fn get(&self, i: usize) -> Option<&Tensor> {
        self.0.get(i).and_then(Option::as_ref)
    }

    /// Output `i`, when there is one: its cotangent, when something used it.
    pub(crate) fn slot(&self, i: usize) -> Option<Option<&Tensor>> {
        self.0.get(i).map(Option::as_ref)
    }

    /// The cotangent of the only output.
    ///
    /// # Errors
    /// Tape error when the node has several outputs and the first was not used.
    pub fn only(&self) -> Result<&Tensor> {
        self.get(0).ok_or_else(|| Error::tape("the first output has no cotangent"))
    }
}

/// One cotangent per input; `None` where none was wanted, or where it is zero everywhere.
pub type InputCotangents = SmallVec<[Option<Tensor>; 4]>;

/// The recorded half of an op: turns output cotangents into input cotangents.
pub(crate) trait Pull: Send + Sync {
    fn pull(&self, ctx: &PullContext<'_>, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents>;

    /// Where the only output is in the only input, when it is a stretch of one of its axes.
    fn stretch(&self) -> Option<Stretch> {
        None
    }

    /// Whether the derivative is the user's own code: what it refuses keeps the op and line that it names.
    fn is_users(&self) -> bool {
        false
    }
}

/// A part of a value along one axis: `len` positions from `start` on, every `step`-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The axis.
    pub axis: usize,
    /// First position.
    pub start: usize,
    /// Number of positions.
    pub len: usize,
    /// Distance between them, at least 1.
    pub step: usize,
}

/// What a pull sees besides the cotangents.
pub(crate) struct PullContext<'a> {
    pub(crate) saved: Saved,
    pub(crate) tape: &'a Arc<Inner>,
    /// The derivative itself is being recorded (higher order).
    pub(crate) record: bool,
    pub(crate) ops: Accumulate,
}

#[derive(Clone)]
pub(crate) struct OpNode {
    pub(crate) name: &'static str,
    /// `None` while the op is being recorded, and once a sweep has consumed it.
    pub(crate) pull: Option<Arc<dyn Pull>>,
    pub(crate) saved: Saved,
    pub(crate) parents: SmallVec<[Option<usize>; 3]>,
    pub(crate) outputs: usize,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Leaf(Option<Arc<str>>),
    Op(Box<OpNode>),
    /// A further output of the op this many nodes back.
    Sibling(usize),
}

pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) at: &'static Location<'static>,
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
}

type Hook = Arc<dyn Fn(&Tensor) + Send + Sync>;

/// Shared state of a tape.
pub(crate) struct Inner {
    nodes: Mutex<Vec<Node>>,
    hooks: Mutex<HashMap<usize, Vec<Hook>>>,
    watchers: observe::Watchers,
    stops: explain::Stops,
    paused: AtomicUsize,
    /// A checkpointed function (or one with its own derivative) is running: whatever it captured instead of taking as input would
    /// lose its gradient.
    sealed: AtomicUsize,
    /// Of a gradient function, which may turn out to run inside another one.
    nested: bool,
    born: u64,
    /// The tape that took over all nodes of this one, and where they start there.
    successor: OnceLock<(Weak<Inner>, usize)>,
    /// Tapes whose nodes this one took over: tensors still refer to them.
    absorbed: Mutex<Vec<Arc<Inner>>>,
}

impl Inner {
    fn new() -> Arc<Self> {
        Self::make(false)
    }

    /// A tape for a gradient function. When its values are combined with those of an older tape, the function
    /// runs inside that tape's: its nodes are moved to the older tape, and the derivative is recorded there.
    pub(crate) fn for_function() -> Arc<Self> {
        Self::make(true)
    }

    fn make(nested: bool) -> Arc<Self> {
        static BORN: AtomicU64 = AtomicU64::new(0);
        Arc::new(Inner {
            nodes: Mutex::default(),
            hooks: Mutex::default(),
            watchers: observe::Watchers::default(),
            stops: explain::Stops::default(),
            paused: AtomicUsize::new(0),
            sealed: AtomicUsize::new(0),
            nested,
            born: BORN.fetch_add(1, SeqCst),
            successor: OnceLock::new(),
            absorbed: Mutex::default(),
        })
    }

    /// The tape that holds the nodes now, and what their ids have grown by; `None` when it is gone.
    pub(crate) fn settled(self: Arc<Self>) -> Option<(Arc<Inner>, usize)> {
        let (mut tape, mut offset) = (self, 0);
        while let Some((next, by)) = tape.successor.get() {
            offset += by;
            let next = next.upgrade()?;
            tape = next;
        }
        Some((tape, offset))
    }

    /// Makes one tape of two where that is right (see [`Inner::for_function`]): the older one.
    ///
    /// # Errors
    /// Out of memory: both are as they were.
    fn unite(a: &Arc<Inner>, b: &Arc<Inner>) -> Result<Option<Arc<Inner>>> {
        let (older, younger) = if a.born < b.born { (a, b) } else { (b, a) };
        if !younger.nested {
            return Ok(None);
        }
        let mut nodes = older.nodes();
        let mut moved = younger.nodes();
        memory::grow(&mut nodes, moved.len())?;
        let offset = nodes.len();
        for mut node in std::mem::take(&mut *moved) {
            if let Kind::Op(op) = &mut node.kind {
                op.parents.iter_mut().flatten().for_each(|p| *p += offset);
            }
            nodes.push(node);
        }
        let hooks = std::mem::take(&mut *younger.hooks.lock().unwrap_or_else(PoisonError::into_inner));
        older.hooks.lock().unwrap_or_else(PoisonError::into_inner).extend(hooks.into_iter().map(|(id, h)| (id + offset, h)));
        older.watchers.extend(&younger.watchers);
        older.stops.take_over(&younger.stops, offset);
        if younger.successor.set((Arc::downgrade(older), offset)).is_err() {
            return Ok(None);
        }
        older.absorbed.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(younger));
        Ok(Some(Arc::clone(older)))
    }

    pub(crate) fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        // A panic while the lock is held cannot leave the list half changed: pushes are the only mutation.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes().len()
    }

    pub(crate) fn is_recording(&self) -> Result<bool> {
        if self.sealed.load(SeqCst) > 0 {
            bail!(
                tape,
                "a checkpointed function, or one with a derivative of its own, uses a tracked tensor that it captured; pass it as an input, or its \
                 gradient would be lost"
            );
        }
        Ok(self.paused.load(SeqCst) == 0)
    }

    fn hooks_of(&self, id: usize) -> Vec<Hook> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().unwrap_or_default()
    }

    pub(crate) fn name_of(&self, id: usize) -> String {
        let nodes = self.nodes();
        match nodes.get(id) {
            Some(Node { kind: Kind::Leaf(Some(name)), .. }) => format!("`{name}`"),
            Some(n) => format!("the tensor of shape {} watched at {}:{}", n.shape, n.at.file(), n.at.line()),
            None => format!("node {id}"),
        }
    }
}

thread_local! {
    /// The line that called what this thread does: a composition, or an op whose derivative is being recorded.
    static CALLER: Cell<Option<&'static Location<'static>>> = const { Cell::new(None) };
}

/// While it lives, nodes that this thread adds point to a line: parts of a composition are the caller's, not lines in here. Of several
/// the outermost counts.
struct Under(Option<&'static Location<'static>>);

impl Under {
    fn new(at: &'static Location<'static>) -> Self {
        let before = CALLER.get();
        CALLER.set(before.or(Some(at)));
        Under(before)
    }

    /// The line that a node points to which an op called at `at` adds.
    fn line(at: &'static Location<'static>) -> &'static Location<'static> {
        CALLER.get().unwrap_or(at)
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        CALLER.set(self.0);
    }
}

/// Counts up while alive.
struct Guard<'a>(&'a AtomicUsize);
impl<'a> Guard<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, SeqCst);
        Guard(counter)
    }
}
impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// The tape that all tracked operands share, if any is tracked.
///
/// # Errors
/// Tape error when operands are on different tapes, or on one that was consumed.
pub(crate) fn common_tape(inputs: &[&Tensor]) -> Result<Option<Arc<Inner>>> {
    let mut tape: Option<Arc<Inner>> = None;
    for node in inputs.iter().filter_map(|t| t.node.as_ref()) {
        match &tape {
            None => tape = Some(node.resolve()?.0),
            Some(t) if std::ptr::eq(Arc::as_ptr(t), node.tape.as_ptr()) => {}
            Some(t) => {
                let (other, _) = node.resolve()?;
                if !Arc::ptr_eq(t, &other) {
                    match Inner::unite(t, &other)? {
                        Some(both) => tape = Some(both),
                        None => bail!(tape, "operands are tracked by different tapes; watch both on one tape, or detach() one"),
                    }
                }
            }
        }
    }
    Ok(tape)
}

/// Appends the node of an op whose float outputs are `outputs` and attaches them to it; what it saves and its
/// derivative follow by [`fulfil`] (an op may save its own outputs, which by then know their node).
pub(crate) fn reserve(
    tape: &Arc<Inner>,
    name: &'static str,
    at: &'static Location<'static>,
    inputs: &[&Tensor],
    outputs: &mut [Tensor],
) -> Result<usize> {
    let place =
        |n: &NodeRef| if std::ptr::eq(n.tape.as_ptr(), Arc::as_ptr(tape)) { Some(n.id) } else { n.resolve().ok().map(|(_, id)| id) };
    let parents = inputs.iter().map(|t| t.node.as_ref().and_then(place)).collect();
    let at = Under::line(at);
    let mut nodes = tape.nodes();
    let id = nodes.len();
    // Beside the node: the op, and what it saves.
    memory::small(memory::TENSOR)?;
    memory::grow(&mut nodes, outputs.len())?;
    let mut op = Some(Box::new(OpNode { name, pull: None, saved: Saved::none(), parents, outputs: outputs.len() }));
    for (i, y) in outputs.iter_mut().enumerate() {
        let kind = op.take().map_or(Kind::Sibling(i), Kind::Op);
        nodes.push(Node { kind, at, shape: y.shape().clone(), dtype: y.dtype() });
        if y.dtype().is_float() {
            y.node = Some(NodeRef { tape: Arc::downgrade(tape), id: id + i });
        }
    }
    Ok(id)
}

/// Completes a reserved node.
pub(crate) fn fulfil(tape: &Arc<Inner>, id: usize, saved: Saved, pull: Arc<dyn Pull>) {
    if let Some(Node { kind: Kind::Op(op), .. }) = tape.nodes().get_mut(id) {
        op.saved = saved;
        op.pull = Some(pull);
    }
}

/// [`reserve`], [`fulfil`] and [`ran`] in one.
pub(crate) fn record(
    tape: &Arc<Inner>,
    name: &'static str,
    at: &'static Location<'static>,
    inputs: &[&Tensor],
    outputs: &mut [Tensor],
    saved: Saved,
    pull: Arc<dyn Pull>,
    started: Started,
) -> Result<()> {
    let id = reserve(tape, name, at, inputs, outputs)?;
    let bytes = started.bytes(&saved);
    fulfil(tape, id, saved, pull);
    ran(tape, id, started, name, at, inputs, outputs, bytes)
}

/// Records what is computed from watched tensors, and gives their gradients.
///
/// For everyday use there is [`value_and_grad`](crate::value_and_grad); use a tape by hand for anything that does not fit it.
///
/// ```
/// use cotangent::{Tape, Tensor};
/// let tape = Tape::new();
/// let x = tape.watch(&Tensor::from_slice(&[3f64], [1])?)?;
/// let y = x.square()?.sum(..)?;
/// let grads = tape.backward(&y)?;
/// assert_eq!(grads.get(&x)?.to_vec::<f64>()?, [6.0]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct Tape {
    pub(crate) inner: Arc<Inner>,
}

impl Default for Tape {
    fn default() -> Self {
        Self::new()
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Tape { inner: Inner::new() }
    }

    /// The same value as a leaf of this tape.
    ///
    /// # Errors
    /// Dtype error for integers; tape error when another tape tracks the tensor (its history would be lost).
    #[track_caller]
    pub fn watch(&self, t: &Tensor) -> Result<Tensor> {
        self.watch_as(t, None, Location::caller())
    }

    /// [`Tape::watch`] with a name for error messages and reports.
    ///
    /// # Errors
    /// As [`Tape::watch`].
    #[track_caller]
    pub fn watch_named(&self, name: &str, t: &Tensor) -> Result<Tensor> {
        self.watch_as(t, Some(name.into()), Location::caller())
    }

    fn watch_as(&self, t: &Tensor, name: Option<Arc<str>>, at: &'static Location<'static>) -> Result<Tensor> {
        if !t.dtype().is_float() {
            return Err(Error::dtype(format!("only float tensors have gradients, found {}", t.dtype())).in_op("watch", at));
        }
        if t.is_tracked() {
            return Err(Error::tape("the tensor is already tracked; detach() it to start a new history").in_op("watch", at));
        }
        let mut nodes = self.inner.nodes();
        let id = nodes.len();
        memory::grow(&mut nodes, 1).map_err(|e| e.in_op("watch", at))?;
        nodes.push(Node { kind: Kind::Leaf(name), at, shape: t.shape().clone(), dtype: t.dtype() });
        Ok(Tensor { array: t.array.clone(), node: Some(NodeRef { tape: Arc::downgrade(&self.inner), id }) })
    }

    /// Runs `f` without recording: what it computes from tracked tensors is untracked.
    pub fn pause<R>(&self, f: impl FnOnce() -> R) -> R {
        let _guard = Guard::new(&self.inner.paused);
        f()
    }

    /// Calls `f` with the complete cotangent of `t` when a sweep passes it.
    ///
    /// # Errors
    /// Tape error when this tape does not track `t`.
    #[track_caller]
    pub fn register_hook(&self, t: &Tensor, f: impl Fn(&Tensor) + Send + Sync + 'static) -> Result<()> {
        let at = Location::caller();
        let id = self.id_of(t).map_err(|e| e.in_op("register_hook", at))?;
        self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().push(Arc::new(f));
        Ok(())
    }

    /// Number of recorded nodes, leaves included.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of values kept for derivatives (a value that several nodes keep counts each time).
    pub fn saved_bytes(&self) -> usize {
        self.inner.nodes().iter().map(|n| if let Kind::Op(op) = &n.kind { op.saved.bytes() } else { 0 }).sum()
    }

    pub(crate) fn id_of(&self, t: &Tensor) -> Result<usize> {
        match &t.node {
            Some(n) => match n.resolve()? {
                (tape, id) if Arc::ptr_eq(&tape, &self.inner) => Ok(id),
                _ => bail!(tape, "the tensor is tracked by another tape"),
            },
            None => bail!(tape, "the tensor is not tracked: nothing it was computed from is watched"),
        }
    }

    pub(crate) fn leaves(&self) -> Result<Vec<usize>> {
        memory::try_collect(self.inner.nodes().iter().enumerate().filter(|(_, n)| matches!(n.kind, Kind::Leaf(_))).map(|(i, _)| i))
    }
}

/// The gradients that a sweep found, by watched tensor.
pub struct Gradients {
    /// Address of the swept tape: compared, never followed.
    pub(crate) tape: usize,
    pub(crate) by_id: HashMap<usize, Tensor>,
    pub(crate) names: HashMap<usize, String>,
    /// Why some have no gradient.
    pub(crate) lost: HashMap<usize, String>,
}

impl std::fmt::Debug for Gradients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut found: Vec<&usize> = self.by_id.keys().collect();
        found.sort_unstable();
        f.debug_map().entries(found.into_iter().map(|id| (self.names.get(id), self.by_id[id].shape()))).finish()
    }
}

impl Gradients {
    /// The gradient of a watched tensor, of its shape and dtype.
    ///
    /// # Errors
    /// Disconnected when the result did not depend on it; tape error when the swept tape did not watch it.
    #[track_caller]
    pub fn get(&self, t: &Tensor) -> Result<&Tensor> {
        let at = Location::caller();
        match &t.node {
            Some(n) if n.tape.as_ptr().addr() == self.tape => self.by_id.get(&n.id).ok_or_else(|| {
                let Some(name) = self.names.get(&n.id).cloned() else {
                    let hint = "gradients are kept for watched tensors; `Tape::cotangents` gives those of values computed from them";
                    return Error::tape(format!("the tensor was not watched, but computed: {hint}")).in_op("get", at);
                };
                let why = self.lost.get(&n.id).map(|why| format!(": {why}")).unwrap_or_default();
                Error::disconnected(format!("the result does not depend on {name}{why}")).with_names(vec![name]).in_op("get", at)
            }),
            Some(_) => Err(Error::tape("another tape than the swept one tracks this tensor").in_op("get", at)),
            None => {
                let hint = "gradients belong to watched tensors: use the tensor that `watch` returned, not the one that was passed to it";
                Err(Error::tape(format!("this tensor is not tracked; {hint}")).in_op("get", at))
            }
        }
    }

    /// The gradient, or `None` when the result did not depend on the tensor.
    pub fn maybe(&self, t: &Tensor) -> Option<&Tensor> {
        t.node.as_ref().filter(|n| n.tape.as_ptr().addr() == self.tape).and_then(|n| self.by_id.get(&n.id))
    }
}
