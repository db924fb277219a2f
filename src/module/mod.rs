//! Parameter trees: how a plain struct becomes a model. Layer L5; it names no op but those of a running mean.
//!
//! [`Module`] has one method, which walks over the fields. Names, counting, watching, freezing, casting, loading and the
//! optimizer's walk all follow from it. Tensors, tuples, lists and options are trees too, so the gradient functions take
//! any of them.

mod buffer;
mod macros;
mod summary;
mod tree;
mod trees;

pub use buffer::{Buffer, BufferUpdates};
pub use summary::{Role, Summary, SummaryRow};
pub use tree::Module;
pub(crate) use tree::is_batch_counter;

use crate::error::{Result, bail};
use crate::tensor::{Short, Tensor};
use std::collections::BTreeSet;
use std::ops::Deref;
use std::panic::Location;

/// A tensor that training changes. Reads like a tensor; can be frozen.
///
/// Assigning a new `Param` to a field makes a trainable one; [`set`](Param::set) gives a value to the one that is there, which stays
/// frozen if it is.
#[derive(Clone)]
pub struct Param {
    value: Tensor,
    frozen: bool,
    low_rank: Option<Box<LowRank>>,
}

/// A change of low rank beside a matrix that stays as it is (LoRA, Hu et al. 2021): the layer that owns the matrix computes as if it were
/// `W + scale · b · a`. Its parameters are visited after the matrix, as `NAME.lora_a` and `NAME.lora_b`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[rank, columns of W]`.
    pub a: Param,
    /// `[rows of W, rank]`.
    pub b: Param,
    /// Factor of the change.
    pub scale: f64,
}

impl Param {
    /// A trainable parameter with this value. A tracked value stays tracked: a parameter computed from others (a
    /// hypernetwork's, one of an inner training step) passes its gradient on to them.
    pub fn new(value: Tensor) -> Self {
        Param { value, frozen: false, low_rank: None }
    }

    /// A parameter that training leaves alone until it is [thawed](Module::thaw). For statistics that are never trained there is
    /// [`Buffer`].
    pub fn frozen(value: Tensor) -> Self {
        Param { frozen: true, ..Param::new(value) }
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Gives it another value of its shape, in its dtype and on its device. It stays frozen, or trainable, and keeps a change of low
    /// rank. The value's history stays, as in [`Param::new`].
    ///
    /// ```
    /// use cotangent::{F32, Param, Tensor};
    /// let mut p = Param::frozen(Tensor::zeros([2], F32)?);
    /// p.set(&Tensor::ones([2], F32)?)?;
    /// assert!(p.is_frozen() && p.to_vec::<f32>()? == [1.0, 1.0]);
    /// assert!(p.set(&Tensor::ones([3], F32)?).is_err());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shape error for another shape; dtype error for integers in the place of floats, or the other way round; device error; out of memory.
    /// Nothing is changed then.
    #[track_caller]
    pub fn set(&mut self, value: &Tensor) -> Result<()> {
        let at = Location::caller();
        self.value = like(&self.value, value).map_err(|e| e.rename_op("param").called_at(at))?;
        Ok(())
    }

    /// Whether training leaves it alone.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// The change beside it, which the layer that owns it has to compute.
    pub fn low_rank(&self) -> Option<&LowRank> {
        self.low_rank.as_deref()
    }
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Param({:?}", Short(&self.value))?;
        if self.frozen {
            f.write_str(", frozen")?;
        }
        if let Some(change) = &self.low_rank {
            write!(f, ", low rank {}", change.a.shape().first().copied().unwrap_or(0))?;
        }
        f.write_str(")")
    }
}

impl AsRef<Tensor> for Param {
    fn as_ref(&self) -> &Tensor {
        &self.value
    }
}

impl From<Tensor> for Param {
    fn from(value: Tensor) -> Self {
        Param::new(value)
    }
}

impl Deref for Param {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        &self.value
    }
}

/// A new value in the dtype and on the device of the old one.
fn like(old: &Tensor, new: &Tensor) -> Result<Tensor> {
    if new.shape() != old.shape() {
        bail!(shape, "the new value has shape {}, the old one {}", new.shape(), old.shape());
    }
    if new.dtype().is_float() != old.dtype().is_float() {
        let (new, old) = (new.dtype(), old.dtype());
        bail!(
            dtype,
            "the new value is {new}, the old one {old}: numbers of the one kind are none of the other; cast it before, where they are meant"
        );
    }
    new.to_device(old.device())?.cast(old.dtype())
}

/// One tensor of a tree, as a visitor sees it.
pub struct Leaf<'a> {
    /// The tensor; may be replaced.
    pub tensor: &'a mut Tensor,
    frozen: Option<&'a mut bool>,
    low_rank: Option<&'a mut Option<Box<LowRank>>>,
    /// Which buffer, if it is one.
    buffer: Option<u64>,
}

impl Leaf<'_> {
    /// Whether gradients are taken with respect to it: a float that is neither frozen nor a buffer.
    pub fn is_trainable(&self) -> bool {
        self.role() == Role::Trainable
    }

    /// What training does with it.
    pub fn role(&self) -> Role {
        match () {
            () if self.buffer.is_some() => Role::Buffer,
            () if !self.tensor.dtype().is_float() => Role::Constant,
            () if self.frozen.as_deref().copied().unwrap_or(false) => Role::Frozen,
            () => Role::Trainable,
        }
    }

    /// Freezes it, or thaws it; `false` for a plain tensor, which cannot be frozen, and for a buffer, which always is.
    pub fn set_frozen(&mut self, frozen: bool) -> bool {
        self.frozen.as_deref_mut().map(|f| *f = frozen).is_some()
    }

    /// Puts a change of low rank beside it, or takes it away; gives the old one. A plain tensor cannot have one.
    ///
    /// # Errors
    /// Argument error for a plain tensor or a buffer.
    pub fn replace_low_rank(&mut self, new: Option<LowRank>) -> Result<Option<LowRank>> {
        let Some(place) = self.low_rank.as_deref_mut() else { bail!(argument, "a plain tensor cannot have a change of low rank") };
        Ok(std::mem::replace(place, new.map(Box::new)).map(|old| *old))
    }
}

/// Walks over a tree; made by [`walk`].
pub struct Visitor<'a> {
    path: String,
    visit: &'a mut dyn FnMut(&str, Leaf<'_>),
    numbers: Option<&'a mut Numbers>,
}

/// Why a walk asks for numbers that change from step to step: a captured step reads them from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A capture begins; the numbers will be at the given position.
    Begin,
    /// It is over, or has failed.
    End,
    /// A replay: the host's side of a step is due, and the numbers it has.
    Step,
}

struct Numbers {
    phase: Phase,
    values: Vec<f64>,
    result: Result<()>,
}

impl Visitor<'_> {
    /// Visits a field under its name.
    pub fn field<M: Module + ?Sized>(&mut self, name: &str, m: &mut M) {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        m.visit(self);
        self.path.truncate(len);
    }

    /// What a part of the tree does about `count` numbers of its own when a step is captured or replayed; called with the phase,
    /// the position of the first, and where to write them.
    pub(crate) fn numbers(&mut self, count: usize, f: impl FnOnce(Phase, usize, &mut [f64]) -> Result<()>) {
        if let Some(n) = self.numbers.as_deref_mut()
            && n.result.is_ok()
        {
            let first = n.values.len();
            n.values.resize(first + count, 0.0);
            n.result = f(n.phase, first, &mut n.values[first..]);
        }
    }

    fn leaf(&mut self, leaf: Leaf<'_>) {
        (self.visit)(&self.path, leaf);
    }
}

impl Module for Param {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.leaf(Leaf { tensor: &mut self.value, frozen: Some(&mut self.frozen), low_rank: Some(&mut self.low_rank), buffer: None });
        if let Some(change) = &mut self.low_rank {
            v.field("lora_a", &mut change.a);
            v.field("lora_b", &mut change.b);
        }
    }
}

impl Module for Tensor {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.leaf(Leaf { tensor: self, frozen: None, low_rank: None, buffer: None });
    }
}

/// Calls `f` for every tensor of a tree with its dotted name.
pub fn walk<M: Module + ?Sized>(m: &mut M, mut f: impl FnMut(&str, Leaf<'_>)) {
    m.visit(&mut Visitor { path: String::new(), visit: &mut f, numbers: None });
}

/// The numbers of a tree's parts in visiting order; see [`Visitor::numbers`].
///
/// # Errors
/// The first error of a part.
pub(crate) fn walk_numbers<M: Module + ?Sized>(m: &mut M, phase: Phase) -> Result<Vec<f64>> {
    let mut numbers = Numbers { phase, values: Vec::new(), result: Ok(()) };
    m.visit(&mut Visitor { path: String::new(), visit: &mut |_, _| (), numbers: Some(&mut numbers) });
    numbers.result.map(|()| numbers.values)
}

/// [`walk`] with a function that may fail; the first error ends the visits.
///
/// # Errors
/// The first error of `f`.
pub fn try_walk<M: Module + ?Sized>(m: &mut M, mut f: impl FnMut(&str, Leaf<'_>) -> Result<()>) -> Result<()> {
    let mut result = Ok(());
    walk(m, |name, leaf| {
        if result.is_ok() {
            result = f(name, leaf);
        }
    });
    result
}

/// An error when two tensors of a tree have one name: optimizer state and files go by it.
pub(crate) fn unique_names<M: Module + Clone>(m: &M) -> Result<()> {
    unique(&mut m.clone())
}

/// [`unique_names`] without the tree's type; changes nothing.
pub(crate) fn unique(m: &mut dyn Module) -> Result<()> {
    let mut seen = BTreeSet::new();
    try_walk(m, |name, _| {
        if !seen.insert(name.to_owned()) {
            bail!(argument, "two tensors of the model are called `{name}`: give one of the fields another name");
        }
        Ok(())
    })
}

/// The tensors of a tree by name, in visiting order: all, or the trainable ones. Changes nothing; without the tree's type, so that
/// it is compiled here once.
pub(crate) fn tensors_of(m: &mut dyn Module, trainable: bool) -> Vec<(String, Tensor)> {
    let mut out = Vec::new();
    walk(m, |name, leaf| {
        if !trainable || leaf.is_trainable() {
            out.push((name.to_owned(), leaf.tensor.clone()));
        }
    });
    out
}
