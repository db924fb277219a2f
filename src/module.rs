//! Parameter trees: how a plain struct becomes a model. Layer L5; it names no op.
//!
//! [`Module`] has one method, which walks over the fields. Names, counting, watching, freezing, casting, loading and the
//! optimizer's walk all follow from it. Tensors, tuples, lists and options are trees too, so the gradient functions take
//! any of them.

use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// A tensor that training changes. Reads like a tensor; can be frozen.
#[derive(Clone, Debug)]
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

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
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

/// One tensor of a tree, as a visitor sees it.
pub struct Leaf<'a> {
    /// The tensor; may be replaced.
    pub tensor: &'a mut Tensor,
    frozen: Option<&'a mut bool>,
    low_rank: Option<&'a mut Option<Box<LowRank>>>,
}

impl Leaf<'_> {
    /// Whether gradients are taken with respect to it: a float that is not frozen.
    pub fn is_trainable(&self) -> bool {
        self.tensor.dtype().is_float() && !self.frozen.as_deref().copied().unwrap_or(false)
    }

    /// Freezes it, or thaws it; `false` for a plain tensor, which cannot be frozen.
    pub fn set_frozen(&mut self, frozen: bool) -> bool {
        self.frozen.as_deref_mut().map(|f| *f = frozen).is_some()
    }

    /// Puts a change of low rank beside it, or takes it away; gives the old one. A plain tensor cannot have one.
    ///
    /// # Errors
    /// Argument error for a plain tensor.
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
    /// A capture begins; the numbers will stand at the given position.
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

/// A tree of parameters: a model, a layer, a tuple of tensors.
///
/// Write it with the [`module!`](crate::module) macro, which does not compile when a field is forgotten.
///
/// ```
/// use cotangent::{module, value_and_grad, Module, ModuleExt, Param, Result, Tensor, F64};
/// #[derive(Clone)]
/// struct Line { slope: Param, offset: Param, name: &'static str }
/// module!(Line { slope, offset } skip { name });
///
/// let line = Line { slope: Tensor::scalar(2f64)?.into(), offset: Tensor::scalar(0f64)?.into(), name: "line" };
/// assert_eq!(line.names(), ["slope", "offset"]);
/// let x = Tensor::from_slice(&[1f64, 2., 3.], [3])?;
/// let (_, grads) = value_and_grad(&line, |l| x.mul(&l.slope)?.add(&l.offset)?.sum(..))?;
/// assert_eq!(grads.slope.item()?, 6.0);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub trait Module {
    /// Visits every field that holds parameters, in a fixed order, under the name it has in checkpoints.
    fn visit(&mut self, v: &mut Visitor<'_>);
}

impl Module for Param {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.leaf(Leaf { tensor: &mut self.value, frozen: Some(&mut self.frozen), low_rank: Some(&mut self.low_rank) });
        if let Some(change) = &mut self.low_rank {
            v.field("lora_a", &mut change.a);
            v.field("lora_b", &mut change.b);
        }
    }
}

impl Module for Tensor {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.leaf(Leaf { tensor: self, frozen: None, low_rank: None });
    }
}

impl<M: Module> Module for Option<M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        if let Some(m) = self {
            m.visit(v);
        }
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        (**self).visit(v);
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (i, m) in self.iter_mut().enumerate() {
            v.field(&i.to_string(), m);
        }
    }
}

impl<M: Module, const N: usize> Module for [M; N] {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (i, m) in self.iter_mut().enumerate() {
            v.field(&i.to_string(), m);
        }
    }
}

macro_rules! tuples {
    ($(($($T:ident $i:tt),+);)*) => {$(
        impl<$($T: Module),+> Module for ($($T,)+) {
            fn visit(&mut self, v: &mut Visitor<'_>) {
                $(v.field(stringify!($i), &mut self.$i);)+
            }
        }
    )*};
}
tuples! {
    (A 0);
    (A 0, B 1);
    (A 0, B 1, C 2);
    (A 0, B 1, C 2, D 3);
    (A 0, B 1, C 2, D 3, E 4);
    (A 0, B 1, C 2, D 3, E 4, F 5);
}

impl Module for () {
    fn visit(&mut self, _: &mut Visitor<'_>) {}
}

/// Writes [`Module`] for a struct: `module!(Linear { weight, bias } skip { dropout })`.
///
/// Every field stands in one of the two lists (parameters and sub-modules first, everything else under `skip`), so a
/// forgotten field does not compile. A field's checkpoint name is its own unless given: `{ wte as "embed_tokens" }`.
///
/// ```compile_fail,E0063
/// use cotangent::{module, Param};
/// struct Net { a: Param, b: Param, n: usize }
/// module!(Net { a } skip { n }); // missing field `b` in initializer of `Net`
/// ```
#[macro_export]
macro_rules! module {
    ($name:ident { $($field:ident $(as $label:literal)?),* $(,)? } $(skip { $($skip:ident),* $(,)? })?) => {
        impl $crate::Module for $name {
            fn visit(&mut self, v: &mut $crate::Visitor<'_>) {
                // Never called. A pattern written here may not name the fields of another crate's struct in its error, a literal does.
                #[allow(unreachable_code, clippy::diverging_sub_expression, clippy::panic)]
                let _ = || $name { $($field: ::core::panic!(),)* $($($skip: ::core::panic!(),)*)? };
                let Self { $($field,)* .. } = self;
                $(v.field($crate::module!(@label $field $($label)?), $field);)*
                let _ = v;
            }
        }
    };
    (@label $field:ident) => { stringify!($field) };
    (@label $field:ident $label:literal) => { $label };
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
    let mut seen = BTreeSet::new();
    try_walk(&mut m.clone(), |name, _| {
        if !seen.insert(name.to_owned()) {
            bail!(argument, "two tensors of the model are called `{name}`: give one of the fields another name");
        }
        Ok(())
    })
}

fn loaded<M: Module + Clone>(m: &M, tensors: &BTreeMap<String, Tensor>) -> Result<M> {
    let own: BTreeSet<String> = m.names().into_iter().collect();
    let missing: Vec<&str> = own.iter().filter(|n| !tensors.contains_key(*n)).map(String::as_str).collect();
    let unexpected: Vec<&str> = tensors.keys().filter(|n| !own.contains(*n)).map(String::as_str).collect();
    if !missing.is_empty() || !unexpected.is_empty() {
        bail!(argument, "names do not match: missing [{}], unexpected [{}]", missing.join(", "), unexpected.join(", "));
    }
    m.map(|name, old| {
        let new = &tensors[name];
        if new.shape() != old.shape() {
            bail!(shape, "`{name}` has shape {} in the file, {} in the model", new.shape(), old.shape());
        }
        new.cast(old.dtype())
    })
}

/// What every [`Module`] can do.
pub trait ModuleExt: Module + Clone {
    /// Dotted names of all tensors, in visiting order.
    fn names(&self) -> Vec<String> {
        self.named_tensors().into_iter().map(|(n, _)| n).collect()
    }

    /// All tensors by name, in visiting order (cheap clones).
    fn named_tensors(&self) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        walk(&mut self.clone(), |name, leaf| out.push((name.to_owned(), leaf.tensor.clone())));
        out
    }

    /// The trainable tensors by name.
    fn trainable(&self) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        walk(&mut self.clone(), |name, leaf| {
            if leaf.is_trainable() {
                out.push((name.to_owned(), leaf.tensor.clone()));
            }
        });
        out
    }

    /// Number of elements of all float tensors; frozen ones included.
    fn num_params(&self) -> usize {
        self.named_tensors().iter().filter(|(_, t)| t.dtype().is_float()).map(|(_, t)| t.numel()).sum()
    }

    /// Freezes the parameters whose name satisfies `frozen`, and thaws the others. Returns how many are frozen.
    ///
    /// Frozen parameters are not watched, get no gradient and cost no gradient memory. A count of 0 where some were meant is a
    /// name that matches nothing: compare it, `let _ =` where none is fine.
    ///
    /// ```compile_fail
    /// #![deny(unused_must_use)]
    /// use cotangent::{nn::Linear, Key, ModuleExt, F32};
    /// let mut layer = Linear::new(3, 2, true, F32, Key::new(1)).unwrap();
    /// layer.freeze(|name| name == "weigth"); // does not compile: nobody looks at the count, which is 0
    /// ```
    #[must_use = "0 means that no name matched"]
    fn freeze(&mut self, frozen: impl Fn(&str) -> bool) -> usize {
        let mut n = 0;
        walk(self, |name, leaf| {
            if let Some(flag) = leaf.frozen {
                *flag = frozen(name);
                n += usize::from(*flag);
            }
        });
        n
    }

    /// The same tree with every tensor replaced.
    ///
    /// # Errors
    /// The first error of `f`.
    fn map(&self, mut f: impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut out = self.clone();
        try_walk(&mut out, |name, leaf| {
            *leaf.tensor = f(name, leaf.tensor)?;
            Ok(())
        })?;
        Ok(out)
    }

    /// The same tree with every float tensor cast. A recorded op when the tensors are tracked: inside a gradient
    /// function this is mixed precision, and the gradients arrive in the original dtype.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    fn cast(&self, dtype: DType) -> Result<Self> {
        let at = std::panic::Location::caller();
        self.map(|_, t| if t.dtype().is_float() { t.cast(dtype) } else { Ok(t.clone()) }).map_err(|e| e.called_at(at))
    }

    /// The same tree with every tensor on a device.
    ///
    /// # Errors
    /// Device error when it is not available; out of memory.
    #[track_caller]
    fn to_device(&self, device: crate::Device) -> Result<Self> {
        let at = std::panic::Location::caller();
        self.map(|_, t| t.to_device(device)).map_err(|e| e.called_at(at))
    }

    /// The same tree with its trainable tensors watched by a tape, under their names.
    ///
    /// # Errors
    /// Tape error when one is already tracked.
    #[track_caller]
    fn watch(&self, tape: &crate::Tape) -> Result<Self> {
        let at = std::panic::Location::caller();
        let mut out = self.clone();
        try_walk(&mut out, |name, leaf| {
            if leaf.is_trainable() {
                *leaf.tensor = tape.watch_named(name, leaf.tensor).map_err(|e| e.called_at(at))?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Replaces every tensor by the one of the same name, cast to the dtype it has now.
    ///
    /// # Errors
    /// Shape error when a shape differs; argument error that lists all missing and all unexpected names. Nothing is
    /// changed on error.
    #[track_caller]
    fn load_named(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let at = std::panic::Location::caller();
        let loaded = loaded(self, tensors).map_err(|e| e.in_op("load_named", at).called_at(at))?;
        *self = loaded;
        Ok(())
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// Argument error when there is none.
    fn get(&self, name: &str) -> Result<Tensor> {
        let found = self.named_tensors().into_iter().find(|(n, _)| n == name);
        found
            .map(|(_, t)| t)
            .ok_or_else(|| Error::argument(format!("no tensor is called `{name}`; there are: {}", self.names().join(", "))))
    }
}

impl<M: Module + Clone> ModuleExt for M {}
