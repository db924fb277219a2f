//! The reverse sweep: walks the tape backwards, turns output cotangents into input cotangents, and adds them up.

use super::explain::gave_none;
use super::{Cotangents, Inner, Kind, OpNode, PullContext, Stretch, Under, observe};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The ops a sweep needs, handed in so that the tape names none.
#[derive(Clone, Copy)]
pub(crate) struct Accumulate {
    /// Sum of two cotangents of one value; may reuse the first one's memory.
    pub(crate) add: fn(Tensor, &Tensor) -> Result<Tensor>,
    /// A cotangent in another float type.
    pub(crate) cast: fn(&Tensor, DType) -> Result<Tensor>,
    /// Sums a cotangent over the axes that broadcasting repeated.
    pub(crate) reduce_to: fn(&Tensor, &Shape) -> Result<Tensor>,
    /// The sum of cotangents of parts of a value of this shape, each in its place within zeros.
    pub(crate) assemble: fn(Vec<(Stretch, Tensor)>, &Shape) -> Result<Tensor>,
}

/// What to sweep.
pub(crate) struct Sweep<'a> {
    /// Values to start from, with their cotangents.
    pub(crate) seeds: Vec<(usize, Tensor)>,
    /// Values whose cotangent is returned.
    pub(crate) wanted: &'a [usize],
    /// Nodes below this id are not visited (their cotangents are still returned when wanted).
    pub(crate) floor: usize,
    /// Free each node after its visit.
    pub(crate) consume: bool,
    /// Record the derivative computations, so that they can be differentiated again.
    pub(crate) record: bool,
}

/// Cotangents of the wanted values; a value that nothing connects to the seeds has no entry.
pub(crate) fn sweep(tape: &Arc<Inner>, s: Sweep<'_>, ops: Accumulate) -> Result<HashMap<usize, Tensor>> {
    let mut wanted = HashSet::new();
    wanted.try_reserve(s.wanted.len()).map_err(|_| Error::out_of_memory(format!("cannot keep {} wanted values", s.wanted.len())))?;
    wanted.extend(s.wanted);
    let Some(top) = s.seeds.iter().map(|(id, _)| *id).max() else { return Ok(HashMap::new()) };
    let needed = reaches_wanted(tape, s.floor, top, &wanted)?;
    let is_needed = |id: usize| if id < s.floor { wanted.contains(&id) } else { needed[id - s.floor] };

    let many = many_stretches(tape, s.floor, top)?;
    let mut found: HashMap<usize, Tensor> = HashMap::new();
    let dense = memory::vec_of(None, (top + 1).saturating_sub(s.floor))?;
    let mut bars = Bars { tape, floor: s.floor, dense, below: HashMap::new(), parts: HashMap::new(), summed: HashMap::new(), ops };
    for (id, seed) in s.seeds {
        bars.add(id, if s.record { seed } else { seed.untracked() })?;
    }
    for id in (s.floor..=top).rev() {
        let (op, at) = {
            let mut nodes = tape.nodes();
            let node = &mut nodes[id];
            let at = node.at;
            match &mut node.kind {
                // What it saved is freed; its parents stay, to explain why a gradient was lost.
                Kind::Op(op) if s.consume => {
                    let (pull, saved) = (op.pull.take(), std::mem::take(&mut op.saved));
                    (OpNode { name: op.name, pull, saved, parents: op.parents.clone(), outputs: op.outputs }, at)
                }
                Kind::Op(op) => (op.as_ref().clone(), at),
                Kind::Sibling(_) => continue,
                Kind::Leaf(_) => {
                    drop(nodes);
                    if let Some(bar) = bars.take(id).map_err(|e| e.in_derivative("backward", at))? {
                        run_hooks(tape, id, &bar);
                        if wanted.contains(&id) {
                            memory::insert(&mut found, id, bar)?;
                        }
                    }
                    continue;
                }
            }
        };
        let mut y_bar: SmallVec<[Option<Tensor>; 2]> = SmallVec::new();
        for j in id..id + op.outputs {
            // Only outputs up to the highest seed can have a cotangent.
            let bar = if j <= top { bars.take(j).map_err(|e| e.in_derivative(op.name, at))? } else { None };
            if let Some(bar) = &bar {
                run_hooks(tape, j, bar);
                if wanted.contains(&j) {
                    memory::insert(&mut found, j, bar.clone())?;
                }
            }
            memory::push_short(&mut y_bar, bar)?;
        }
        if y_bar.iter().all(Option::is_none) || !needed[id - s.floor] {
            continue;
        }
        let want: SmallVec<[bool; 4]> = op.parents.iter().map(|p| p.is_some_and(is_needed)).collect();
        let pull = op.pull.as_ref().ok_or_else(|| Error::tape("the op was never completely recorded").in_op(op.name, at))?;
        // One of several parts of a value waits for the others.
        if let (Some(stretch), &[Some(parent)]) = (pull.stretch(), op.parents.as_slice())
            && want[0]
            && many.contains_key(&parent)
        {
            let bar = y_bar.pop().flatten();
            let (y_bar, x_bar) = (Cotangents(SmallVec::from_iter([bar.clone()])), SmallVec::from_iter([bar]));
            observe::pulled(tape, id, observe::started(tape), op.name, at, &y_bar, &x_bar)?;
            drop(y_bar);
            for bar in x_bar.into_iter().flatten() {
                bars.add_part(parent, stretch, bar).map_err(|e| e.in_derivative(op.name, at))?;
            }
            continue;
        }
        let saved = if s.record { op.saved } else { op.saved.detached() };
        let ctx = PullContext { saved, tape, record: s.record, ops };
        let name = op.name;
        let started = observe::started(tape);
        let y_bar = Cotangents(y_bar);
        let users = pull.is_users();
        // Derivatives of derivatives are reported at the line of the op, too.
        let _under = (s.record && !users).then(|| Under::new(at));
        let x_bar = pull.pull(&ctx, &y_bar, &want).map_err(|e| if users { e.in_op(name, at) } else { e.in_derivative(name, at) })?;
        drop(ctx);
        observe::pulled(tape, id, started, name, at, &y_bar, &x_bar)?;
        drop(y_bar);
        if x_bar.len() != op.parents.len() {
            return Err(Error::tape(format!("vjp returned {} cotangents for {} inputs", x_bar.len(), op.parents.len())).in_op(name, at));
        }
        for (i, (parent, bar)) in op.parents.iter().zip(x_bar).enumerate() {
            match (*parent, bar) {
                (Some(p), Some(bar)) if want[i] => bars.add(p, bar).map_err(|e| e.in_derivative(name, at))?,
                (Some(p), None) if want[i] => gave_none(tape, p, name, at, users),
                _ => {}
            }
        }
    }
    for &id in s.wanted.iter().filter(|&&id| id < s.floor) {
        if let Some(bar) = bars.take(id)? {
            memory::insert(&mut found, id, bar)?;
        }
    }
    Ok(found)
}

/// The values of which several nodes are stretches: their cotangents are put side by side.
fn many_stretches(tape: &Inner, floor: usize, top: usize) -> Result<HashMap<usize, ()>> {
    let nodes = tape.nodes();
    let (mut once, mut many) = (HashMap::new(), HashMap::new());
    for node in &nodes[floor.min(nodes.len())..(top + 1).min(nodes.len())] {
        if let Kind::Op(op) = &node.kind
            && let (Some(_), &[Some(parent)]) = (op.pull.as_ref().and_then(|p| p.stretch()), op.parents.as_slice())
            && memory::insert(&mut once, parent, ())?.is_some()
        {
            memory::insert(&mut many, parent, ())?;
        }
    }
    Ok(many)
}

/// For each node from `floor` to `top`: whether a wanted value is below it.
fn reaches_wanted(tape: &Inner, floor: usize, top: usize, wanted: &HashSet<usize>) -> Result<Vec<bool>> {
    let nodes = tape.nodes();
    let mut out = memory::vec_of(false, (top + 1).saturating_sub(floor))?;
    for id in floor..=top {
        out[id - floor] = wanted.contains(&id)
            || match &nodes[id].kind {
                Kind::Op(op) => {
                    let below = op.parents.iter().flatten().any(|&p| if p < floor { wanted.contains(&p) } else { out[p - floor] });
                    below || (id..id + op.outputs).any(|j| wanted.contains(&j))
                }
                Kind::Sibling(back) => id - back >= floor && out[id - back - floor],
                Kind::Leaf(_) => false,
            };
    }
    Ok(out)
}

/// What the values have received so far.
struct Bars<'a> {
    tape: &'a Arc<Inner>,
    floor: usize,
    /// By place on the tape, from the floor on.
    dense: Vec<Option<Tensor>>,
    below: HashMap<usize, Tensor>,
    parts: HashMap<usize, Parts>,
    /// Values of half types that have received two cotangents. From the third on the sum is one of f32, which is rounded once, when it is
    /// taken: a sum of thousands in a half type stops growing.
    summed: HashMap<usize, ()>,
    ops: Accumulate,
}

/// Cotangents of stretches of one value, not yet put into their places.
#[derive(Default)]
struct Parts {
    list: Vec<(Stretch, Tensor)>,
    elements: usize,
}

impl Bars<'_> {
    fn spec(&self, id: usize) -> (Shape, DType) {
        let nodes = self.tape.nodes();
        (nodes[id].shape.clone(), nodes[id].dtype)
    }

    /// Adds a cotangent: the first one moves in, later ones are added.
    fn add(&mut self, id: usize, bar: Tensor) -> Result<()> {
        let (shape, dtype) = self.spec(id);
        fits(dtype, &bar)?;
        let bar = if bar.shape() == &shape { bar } else { (self.ops.reduce_to)(&bar, &shape)? };
        let old = if id < self.floor { self.below.remove(&id) } else { self.dense[id - self.floor].take() };
        let sum = match old {
            None => bar,
            Some(acc) if dtype.is_half() => self.add_half(id, acc, &bar)?,
            Some(acc) => (self.ops.add)(acc, &bar)?,
        };
        if id < self.floor {
            memory::insert(&mut self.below, id, sum)?;
        } else {
            self.dense[id - self.floor] = Some(sum);
        }
        Ok(())
    }

    fn add_half(&mut self, id: usize, acc: Tensor, bar: &Tensor) -> Result<Tensor> {
        if memory::insert(&mut self.summed, id, ())?.is_none() {
            return (self.ops.add)(acc, bar);
        }
        let wide = |t: &Tensor| (self.ops.cast)(t, DType::F32);
        (self.ops.add)(if acc.dtype().is_half() { wide(&acc)? } else { acc }, &wide(bar)?)
    }

    /// Keeps the cotangent of a part until the value's own is asked for. As many elements as the value has are put together at
    /// once: however many parts there are, this takes time and memory in proportion to their elements.
    fn add_part(&mut self, id: usize, stretch: Stretch, bar: Tensor) -> Result<()> {
        let (shape, dtype) = self.spec(id);
        fits(dtype, &bar)?;
        if !self.parts.contains_key(&id) {
            memory::insert(&mut self.parts, id, Parts::default())?;
        }
        let parts = self.parts.entry(id).or_default();
        parts.elements += bar.numel();
        memory::push(&mut parts.list, (stretch, bar))?;
        if parts.elements > shape.numel() { self.settle(id, &shape) } else { Ok(()) }
    }

    fn settle(&mut self, id: usize, shape: &Shape) -> Result<()> {
        match self.parts.remove(&id) {
            Some(parts) => self.add(id, (self.ops.assemble)(parts.list, shape)?),
            None => Ok(()),
        }
    }

    /// All that a value has received.
    fn take(&mut self, id: usize) -> Result<Option<Tensor>> {
        if self.parts.contains_key(&id) {
            let (shape, _) = self.spec(id);
            self.settle(id, &shape)?;
        }
        let sum = if id < self.floor { self.below.remove(&id) } else { self.dense[id - self.floor].take() };
        match sum {
            Some(wide) if self.summed.contains_key(&id) => Some((self.ops.cast)(&wide, self.spec(id).1)).transpose(),
            sum => Ok(sum),
        }
    }
}

fn fits(dtype: DType, bar: &Tensor) -> Result<()> {
    if bar.dtype() != dtype {
        return Err(Error::dtype(format!("the cotangent of a {dtype} value has dtype {}", bar.dtype())));
    }
    Ok(())
}

fn run_hooks(tape: &Inner, id: usize, bar: &Tensor) {
    for hook in tape.hooks_of(id) {
        hook(bar);
    }
}
