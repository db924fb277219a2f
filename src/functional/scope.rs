//! A tree whose tensors are nodes of a tape, and the sweep back to them.
//!
//! What does not depend on the tree's type is in [`Core`], so that it is compiled here once, and not for every model by its
//! user.

use super::GradOptions;
use super::grads::{Grads, quoted};
use crate::dtype::with_float;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::module::{Module, tensors_of, try_walk, unique, walk};
use crate::ops::ACCUMULATE;
use crate::shape::Shape;
use crate::tape::{Inner, Isolated, Sweep, Tape, common_tape, lost_message, sweep, unused};
use crate::tensor::Tensor;
use std::sync::Arc;

/// A tree whose trainable tensors are nodes of a tape of its own, or of the tape that already tracks one of them (then
/// the derivative is recorded there: this is a derivative inside a derivative).
pub(super) struct Scope<M> {
    pub(super) core: Core,
    pub(super) tree: M,
}

/// A cotangent per trainable tensor, and the names of those that nothing connects to the result.
pub(super) type Found = (Vec<Option<Tensor>>, Vec<String>);

impl<M: Module + Clone> Scope<M> {
    pub(super) fn new(at: &M) -> Result<Self> {
        let mut tree = at.clone();
        let core = Core::new(&mut tree)?;
        Ok(Scope { core, tree })
    }

    /// Gradients in the tree's own shape: zeros where there are none.
    pub(super) fn grads(&self, (found, disconnected): Found) -> Result<Grads<M>> {
        let mut tree = self.tree.clone();
        fill(&mut tree, found)?;
        let mut grads = Grads::new(tree);
        grads.set_disconnected(disconnected);
        Ok(grads)
    }
}

/// A [`Scope`] without its tree.
pub(super) struct Core {
    tape: Tape,
    floor: usize,
    leaves: Vec<Tensor>,
    names: Vec<String>,
    inside: bool,
    /// Whether the tree has no tensor at all.
    empty: bool,
}

impl Core {
    /// Puts nodes in the place of the tree's trainable tensors.
    fn new(tree: &mut dyn Module) -> Result<Self> {
        unique(tree)?;
        let (names, values): (Vec<String>, Vec<Tensor>) = tensors_of(tree, true).into_iter().unzip();
        let empty = values.is_empty() && tensors_of(tree, false).is_empty();
        let outer = common_tape(&values.iter().collect::<Vec<_>>())?;
        let inside = outer.is_some();
        let tape = Tape { inner: outer.unwrap_or_else(Inner::for_function) };
        let leaves = Isolated::named(&values, &names, Some(Arc::clone(&tape.inner)))?.inputs;
        put(tree, &leaves);
        let floor = tape.inner.len();
        Ok(Core { tape, floor, leaves, names, inside, empty })
    }

    /// The tape that holds the nodes of the function now, and where they start: another one's when the function met
    /// values of an outer gradient function.
    fn place(&self) -> Result<(Tape, usize)> {
        match Arc::clone(&self.tape.inner).settled() {
            Some((inner, offset)) => Ok((Tape { inner }, self.floor + offset)),
            None => bail!(tape, "the outer gradient function has ended"),
        }
    }

    /// Whether this runs inside another gradient function, so that the derivative is recorded.
    pub(super) fn records(&self) -> bool {
        self.inside || self.place().is_ok_and(|(tape, _)| !Arc::ptr_eq(&tape.inner, &self.tape.inner))
    }

    /// What the function computed, as it leaves: detached, unless an outer gradient function goes on with it.
    pub(super) fn settle<Y: Module>(&self, mut y: Y) -> Y {
        if !self.records() {
            detach(&mut y);
        }
        y
    }

    fn run(&self, y: &[Tensor], y_bar: &[Tensor], record: bool, consume: bool) -> Result<Vec<Option<Tensor>>> {
        if y.len() != y_bar.len() {
            bail!(shape, "{} cotangents for {} values", y_bar.len(), y.len());
        }
        let (tape, floor) = self.place()?;
        let mut seeds = Vec::new();
        for (y, bar) in y.iter().zip(y_bar) {
            if y.shape() != bar.shape() {
                bail!(shape, "the cotangent has shape {}, its value {}", bar.shape(), y.shape());
            }
            // A value on another tape never met this function's inputs.
            if let Some((own, id)) = y.node.as_ref().map(|n| n.resolve()).transpose()?
                && Arc::ptr_eq(&own, &tape.inner)
            {
                memory::push(&mut seeds, (id, bar.clone()))?;
            }
        }
        let ids: Vec<usize> = self.leaves.iter().map(|t| tape.id_of(t)).collect::<Result<_>>()?;
        let found = sweep(&tape.inner, Sweep { seeds, wanted: &ids, floor, consume, record }, ACCUMULATE)?;
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    fn cotangents(&self, y: &[Tensor], y_bar: &[Tensor], record: bool) -> Result<Vec<Option<Tensor>>> {
        self.run(y, y_bar, record, false)
    }

    pub(super) fn pull(&self, y: &[Tensor], y_bar: &[Tensor], options: GradOptions, last: bool) -> Result<Found> {
        let found = self.run(y, y_bar, self.records(), last && !self.records())?;
        let disconnected = self.require_connected(&found, options, y)?;
        Ok((found, disconnected))
    }

    /// The derivative of a scalar.
    pub(super) fn gradient(&self, y: &Tensor, options: GradOptions) -> Result<Found> {
        if y.numel() != 1 {
            bail!(shape, "the function's value has shape {}; a gradient needs a scalar (reduce it, or use vjp)", y.shape());
        }
        self.pull(std::slice::from_ref(y), &[y.ones_like()?], options, true)
    }

    /// The derivative in a direction of every value: the pullback is linear in the cotangent, so its transpose pushes forward.
    pub(super) fn push(&self, y: &[Tensor], tree: &mut dyn Module, x_dot: &mut dyn Module) -> Result<Vec<Tensor>> {
        let floats: Vec<Tensor> = y.iter().filter(|t| t.dtype().is_float()).cloned().collect();
        let zeros: Vec<Tensor> = floats.iter().map(Tensor::zeros_like).collect::<Result<_>>()?;
        let dummies = Isolated::new(&zeros, Some(self.place()?.0.inner))?;
        let x_bar = self.cotangents(&floats, &dummies.inputs, true)?;
        let directions = trainable_like(tree, x_dot)?;
        let along = inner_product(&x_bar, &directions)?;
        let mut tangents = Vec::new();
        if let Some(s) = along.filter(Tensor::is_tracked) {
            let want = vec![true; zeros.len()];
            tangents = dummies.pull_back(std::slice::from_ref(&s), &[Some(s.ones_like()?)], &want, self.records(), ACCUMULATE)?.into_vec();
        }
        tangents.resize(zeros.len(), None);
        let mut it = tangents.into_iter().zip(zeros).map(|(dot, zero)| dot.unwrap_or(zero));
        y.iter().map(|t| if t.dtype().is_float() { it.next() } else { None }.map_or_else(|| t.zeros_like(), Ok)).collect()
    }

    /// Gradient of a scalar, and its Hessian times a direction.
    pub(super) fn hessian(
        &self,
        y: Tensor,
        tree: &mut dyn Module,
        v: &mut dyn Module,
    ) -> Result<(Vec<Option<Tensor>>, Vec<Option<Tensor>>)> {
        if y.numel() != 1 {
            bail!(shape, "the function's value has shape {}; a Hessian needs a scalar", y.shape());
        }
        let ones = y.ones_like()?;
        let x_bar = self.cotangents(std::slice::from_ref(&y), &[ones], true)?;
        self.require_connected(&x_bar, GradOptions::default(), &[y])?;
        let directions = trainable_like(tree, v)?;
        let along = inner_product(&x_bar, &directions)?;
        let h = match along.filter(Tensor::is_tracked) {
            Some(s) => self.cotangents(std::slice::from_ref(&s), &[s.ones_like()?], self.records())?,
            None => vec![None; x_bar.len()],
        };
        let x_bar = if self.records() { x_bar } else { x_bar.into_iter().map(|t| t.map(|t| t.untracked())).collect() };
        Ok((x_bar, h))
    }

    /// One sweep per element of the value, stacked.
    pub(super) fn jacobian(&self, y: &Tensor) -> Result<Found> {
        let n = y.numel();
        let mut reached = memory::vec_of(n == 0, self.leaves.len())?;
        let mut rows: Vec<Vec<Tensor>> = vec![Vec::new(); self.leaves.len()];
        for i in 0..n {
            let mut seed = y.untracked().zeros_like()?;
            with_float!(seed.dtype(), T => seed.update(|v: &mut [T]| v[i] = <T as crate::Element>::from_f64(1.0))?);
            let found = self.cotangents(std::slice::from_ref(y), &[seed], self.records())?;
            for (((row, g), leaf), reached) in rows.iter_mut().zip(found).zip(&self.leaves).zip(&mut reached) {
                *reached |= g.is_some();
                memory::push(row, g.map_or_else(|| leaf.untracked().zeros_like(), Ok)?)?;
            }
        }
        let mut stacked = Vec::new();
        for (row, leaf) in rows.iter().zip(&self.leaves) {
            let shape: Shape = y.shape().iter().chain(leaf.shape().iter()).copied().collect();
            stacked.push(Some(if n == 0 {
                Tensor::full_on(shape, 0.0, leaf.dtype(), leaf.device())?
            } else {
                Tensor::stack(row, 0)?.reshape(shape)?
            }));
        }
        let lost = self.names.iter().zip(reached).filter(|(_, reached)| !reached).map(|(name, _)| name.clone());
        Ok((stacked, memory::try_collect(lost)?))
    }

    fn require_leaves(&self) -> Result<()> {
        if self.leaves.is_empty() && self.empty {
            bail!(
                argument,
                "there is nothing to differentiate: the input has no tensors; the parameters of a struct are named in `module!`"
            );
        }
        if self.leaves.is_empty() {
            bail!(
                argument,
                "there is nothing to differentiate: every tensor of the input is frozen or holds integers; what is to be trained is thawed by \
                 `model.thaw(|name| ..)`"
            );
        }
        Ok(())
    }

    /// Refuses a function that never used its argument: its derivative is zero, and nearly always it captured what it should have been given.
    pub(super) fn require_used(&self, outputs: &[Tensor]) -> Result<()> {
        self.require_leaves()?;
        let (tape, _) = self.place()?;
        let ids = |tensors: &[Tensor]| tensors.iter().filter_map(|t| tape.id_of(t).ok()).collect::<Vec<_>>();
        match unused(&tape.inner, &ids(&self.leaves), &ids(outputs), &quoted(&self.names[0])) {
            Some(message) => Err(Error::disconnected(message).with_names(self.names.clone())),
            None => Ok(()),
        }
    }

    /// The names without a cotangent; an error unless that is allowed.
    fn require_connected(&self, found: &[Option<Tensor>], options: GradOptions, ends: &[Tensor]) -> Result<Vec<String>> {
        let missing: Vec<String> = self.names.iter().zip(found).filter(|(_, g)| g.is_none()).map(|(n, _)| n.clone()).collect();
        self.require_leaves()?;
        if options.allow_disconnected || missing.is_empty() {
            return Ok(missing);
        }
        let tape = self.place()?.0;
        let ids = |tensors: &[Tensor]| tensors.iter().filter_map(|t| tape.id_of(t).ok()).collect::<Vec<_>>();
        let lost: Vec<Tensor> = self.leaves.iter().zip(found).filter(|(_, g)| g.is_none()).map(|(t, _)| t.clone()).collect();
        let lost: Vec<(String, usize)> = missing.iter().map(|n| quoted(n)).zip(ids(&lost)).collect();
        let allow = "freeze what is meant to be constant, or allow it by GradOptions { allow_disconnected: true }";
        Err(Error::disconnected(lost_message(&tape.inner, &lost, found.len(), &ids(ends), allow)).with_names(missing))
    }
}

/// All tensors of a tree.
pub(super) fn tensors(tree: &mut dyn Module) -> Vec<Tensor> {
    tensors_of(tree, false).into_iter().map(|(_, t)| t).collect()
}

/// Puts tensors in the place of all of a tree's.
pub(super) fn replace(tree: &mut dyn Module, with: Vec<Tensor>) {
    let mut it = with.into_iter();
    walk(tree, |_, leaf| {
        if let Some(t) = it.next() {
            *leaf.tensor = t;
        }
    });
}

/// Puts tensors in the place of a tree's trainable ones.
pub(super) fn put(tree: &mut dyn Module, leaves: &[Tensor]) {
    let mut it = leaves.iter();
    walk(tree, |_, leaf| {
        if leaf.is_trainable()
            && let Some(t) = it.next()
        {
            *leaf.tensor = t.clone();
        }
    });
}

pub(super) fn detach(tree: &mut dyn Module) {
    walk(tree, |_, leaf| *leaf.tensor = leaf.tensor.untracked());
}

/// Puts cotangents in the place of a tree's trainable tensors, and zeros in that of the others.
fn fill(tree: &mut dyn Module, found: Vec<Option<Tensor>>) -> Result<()> {
    let mut it = found.into_iter();
    try_walk(tree, |_, leaf| {
        let g = if leaf.is_trainable() { it.next().flatten() } else { None };
        *leaf.tensor = match g {
            Some(g) => g,
            None => leaf.tensor.untracked().zeros_like()?,
        };
        Ok(())
    })
}

/// The tensors of `directions` that belong to the trainable tensors of `tree`.
fn trainable_like(tree: &mut dyn Module, directions: &mut dyn Module) -> Result<Vec<Tensor>> {
    let (own, other) = (tensors_of(tree, true), tensors_of(directions, false));
    let names = |named: Vec<(String, Tensor)>| named.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let (all, given) = (names(tensors_of(tree, false)), names(other.clone()));
    if all != given {
        bail!(argument, "the direction is another tree: it has [{}], the function's input [{}]", given.join(", "), all.join(", "));
    }
    own.iter()
        .map(|(name, t)| {
            let Some((_, d)) = other.iter().find(|(n, _)| n == name) else { bail!(argument, "the direction has no {}", quoted(name)) };
            if d.shape() != t.shape() {
                bail!(shape, "the direction of {} has shape {}, the parameter {}", quoted(name), d.shape(), t.shape());
            }
            if d.dtype() != t.dtype() {
                bail!(dtype, "the direction of {} is {}, the parameter {}", quoted(name), d.dtype(), t.dtype());
            }
            Ok(d.clone())
        })
        .collect()
}

/// `Σ ⟨a, b⟩` over the pairs that have both.
fn inner_product(a: &[Option<Tensor>], b: &[Tensor]) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for (a, b) in a.iter().zip(b) {
        if let Some(a) = a {
            let term = a.mul(b)?.sum(..)?;
            sum = Some(match sum {
                None => term,
                Some(s) => s.add(&term)?,
            });
        }
    }
    Ok(sum)
}
