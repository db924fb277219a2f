//! The reverse sweep: walks the tape backwards, turns output cotangents into input cotangents, and adds them up.

use super::{Cotangents, Inner, Kind, OpNode, PullContext, observe};
use crate::error::{Error, Result};
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The two ops a sweep needs, handed in so that the tape names none.
#[derive(Clone, Copy)]
pub(crate) struct Accumulate {
    /// Sum of two cotangents of one value; may reuse the first one's memory.
    pub(crate) add: fn(Tensor, &Tensor) -> Result<Tensor>,
    /// Sums a cotangent over the axes that broadcasting repeated.
    pub(crate) reduce_to: fn(&Tensor, &Shape) -> Result<Tensor>,
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
    let wanted: HashSet<usize> = s.wanted.iter().copied().collect();
    let Some(top) = s.seeds.iter().map(|(id, _)| *id).max() else { return Ok(HashMap::new()) };
    let needed = reaches_wanted(tape, s.floor, top, &wanted)?;
    let is_needed = |id: usize| if id < s.floor { wanted.contains(&id) } else { needed[id - s.floor] };

    let mut found: HashMap<usize, Tensor> = HashMap::new();
    let mut bars: Vec<Option<Tensor>> = memory::vec_of(None, (top + 1).saturating_sub(s.floor))?;
    for (id, seed) in s.seeds {
        let seed = if s.record { seed } else { seed.untracked() };
        deposit(tape, &mut bars, &mut found, s.floor, id, seed, ops)?;
    }
    for id in (s.floor..=top).rev() {
        let (op, at) = {
            let mut nodes = tape.nodes();
            let node = &mut nodes[id];
            let at = node.at;
            match &mut node.kind {
                // What it saved goes; where it came from stays, for whoever asks why a gradient was lost.
                Kind::Op(op) if s.consume => {
                    let (pull, saved) = (op.pull.take(), std::mem::take(&mut op.saved));
                    (OpNode { name: op.name, pull, saved, parents: op.parents.clone(), outputs: op.outputs }, at)
                }
                Kind::Op(op) => (op.as_ref().clone(), at),
                Kind::Sibling(_) => continue,
                Kind::Leaf(_) => {
                    drop(nodes);
                    if let Some(bar) = bars[id - s.floor].take() {
                        run_hooks(tape, id, &bar);
                        if wanted.contains(&id) {
                            found.insert(id, bar);
                        }
                    }
                    continue;
                }
            }
        };
        let mut y_bar: SmallVec<[Option<Tensor>; 2]> = SmallVec::new();
        for j in id..id + op.outputs {
            // Only outputs up to the highest seed can have a cotangent.
            let bar = bars.get_mut(j - s.floor).and_then(Option::take);
            if let Some(bar) = &bar {
                run_hooks(tape, j, bar);
                if wanted.contains(&j) {
                    found.insert(j, bar.clone());
                }
            }
            y_bar.push(bar);
        }
        if y_bar.iter().all(Option::is_none) || !needed[id - s.floor] {
            continue;
        }
        let want: SmallVec<[bool; 4]> = op.parents.iter().map(|p| p.is_some_and(is_needed)).collect();
        let saved = if s.record { op.saved } else { op.saved.detached() };
        let ctx = PullContext { saved, tape, record: s.record, ops };
        let name = op.name;
        let started = observe::started(tape);
        let pull = op.pull.as_ref().ok_or_else(|| Error::tape("the op was never completely recorded").in_op(name, at))?;
        let y_bar = Cotangents(y_bar);
        let x_bar = pull.pull(&ctx, &y_bar, &want).map_err(|e| e.in_op(name, at))?;
        drop(ctx);
        observe::pulled(tape, id, started, name, at, &y_bar, &x_bar)?;
        drop(y_bar);
        if x_bar.len() != op.parents.len() {
            return Err(Error::tape(format!("vjp returned {} cotangents for {} inputs", x_bar.len(), op.parents.len())).in_op(name, at));
        }
        for (i, (parent, bar)) in op.parents.iter().zip(x_bar).enumerate() {
            let (Some(p), Some(bar), true) = (*parent, bar, want[i]) else { continue };
            deposit(tape, &mut bars, &mut found, s.floor, p, bar, ops).map_err(|e| e.in_op(name, at))?;
        }
    }
    Ok(found)
}

/// For each node from `floor` to `top`: whether a wanted value lies below it.
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

/// Adds a cotangent to what a value has received so far: the first one moves in, later ones are added.
fn deposit(
    tape: &Arc<Inner>,
    bars: &mut [Option<Tensor>],
    found: &mut HashMap<usize, Tensor>,
    floor: usize,
    id: usize,
    bar: Tensor,
    ops: Accumulate,
) -> Result<()> {
    let (shape, dtype) = {
        let nodes = tape.nodes();
        (nodes[id].shape.clone(), nodes[id].dtype)
    };
    if bar.dtype() != dtype {
        return Err(Error::dtype(format!("the cotangent of a {dtype} value has dtype {}", bar.dtype())));
    }
    let bar = if bar.shape() == &shape { bar } else { (ops.reduce_to)(&bar, &shape)? };
    let add = |old: Option<Tensor>, bar: Tensor| match old {
        None => Ok(bar),
        Some(acc) => (ops.add)(acc, &bar),
    };
    if id < floor {
        let sum = add(found.remove(&id), bar)?;
        found.insert(id, sum);
    } else {
        let slot = &mut bars[id - floor];
        *slot = Some(add(slot.take(), bar)?);
    }
    Ok(())
}

fn run_hooks(tape: &Inner, id: usize, bar: &Tensor) {
    for hook in tape.hooks_of(id) {
        hook(bar);
    }
}
