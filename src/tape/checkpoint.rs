//! Checkpointing: keep the inputs of a function instead of its intermediate values, and run it again in the sweep.

use super::{
    Accumulate, Cotangents, Guard, Inner, InputCotangents, Kind, Node, NodeRef, OpNode, Pull, PullContext, Saved, Sweep, common_tape,
    record, start, sweep,
};
use crate::dtype::DType;
use crate::error::{Error, Result, bail};
use crate::memory;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::panic::Location;
use std::sync::Arc;

type Function = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync;

/// Runs `f` and keeps only its inputs for the derivative; the sweep runs `f` again.
///
/// Trades one more forward pass for the memory of every value inside `f`. May be nested. `f` must compute the same
/// again: give it random [`Key`](crate::Key)s, not a stateful generator, and dropout draws the same mask. The second run is compared with
/// the first: shapes and dtypes, and in host memory up to a thousand elements of each result.
///
/// # Gradient
/// That of `f`, bit for bit; higher orders too.
///
/// # Errors
/// Whatever `f` returns; tape error when `f` uses a tracked tensor that it captured instead of taking it as an input
/// (its gradient would be lost), or, in the sweep, when the second run gives other shapes, dtypes or values than the first.
///
/// ```
/// use cotangent::{checkpoint, grad, Tensor};
/// let x = Tensor::from_slice(&[0.5f64, 1.0], [2])?;
/// let g = grad(&x, |x| checkpoint(&[x], |x| Ok(vec![x[0].exp()?.square()?]))?[0].sum(..))?;
/// let want = grad(&x, |x| x.exp()?.square()?.sum(..))?;
/// assert_eq!(g.to_vec::<f64>()?, want.to_vec::<f64>()?);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[track_caller]
pub fn checkpoint<F>(inputs: &[&Tensor], f: F) -> Result<Vec<Tensor>>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    let at = Location::caller();
    let Some(tape) = common_tape(inputs)? else {
        let x: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        return f(&x);
    };
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.untracked()).collect();
    let recording = tape.is_recording()?;
    let started = start(inputs);
    let mut outputs = {
        let _sealed = Guard::new(&tape.sealed);
        f(&detached)?
    };
    if recording {
        let saved = Saved::list(inputs.iter().map(|&t| Some(t.clone())));
        let first = outputs.iter().map(Seen::of).collect::<Result<_>>()?;
        record(&tape, "checkpoint", at, inputs, &mut outputs, saved, Arc::new(Recompute { run: Box::new(f), first }), started.stop()?)?;
    }
    Ok(outputs)
}

struct Recompute {
    run: Box<Function>,
    first: Vec<Seen>,
}

/// What is kept of an output of the first run.
struct Seen {
    shape: Shape,
    dtype: DType,
    /// Some of its elements.
    values: Vec<(usize, f64)>,
}

impl Seen {
    const MOST: usize = 1024;

    fn of(y: &Tensor) -> Result<Self> {
        Ok(Seen { shape: y.shape().clone(), dtype: y.dtype(), values: y.array.sample(Self::MOST)? })
    }

    /// Refuses what a second run gave instead: with cotangents of the first its derivative would be that of neither.
    fn check(&self, i: usize, again: &Tensor) -> Result<()> {
        let again = Seen::of(again)?;
        let other = |what: String, first: String| {
            Error::tape(format!(
                "the second run gave output {i} {what}, the first {first}: the function must compute the same again; random numbers come from a \
                 `Key` that it captures, not from a generator that has moved on, and it may read nothing that changes between the runs"
            ))
        };
        if self.shape != again.shape {
            return Err(other(format!("the shape {}", again.shape), self.shape.to_string()));
        }
        if self.dtype != again.dtype {
            return Err(other(format!("the dtype {}", again.dtype), self.dtype.to_string()));
        }
        match self.values.iter().zip(&again.values).find(|((_, a), (_, b))| a.to_bits() != b.to_bits()) {
            Some(((at, first), (_, now))) => Err(other(format!("the value {now} at element {at}"), first.to_string())),
            None => Ok(()),
        }
    }
}

impl Pull for Recompute {
    fn is_users(&self) -> bool {
        true
    }

    fn pull(&self, ctx: &PullContext<'_>, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let mut inputs = Vec::with_capacity(want.len());
        for i in 0..want.len() {
            inputs.push(ctx.saved.get(i)?.clone());
        }
        let local = Isolated::new(&inputs, ctx.record.then(|| Arc::clone(ctx.tape)))?;
        if !ctx.record {
            // What happens inside is seen when it is computed again.
            local.tape.watchers.extend(&ctx.tape.watchers);
        }
        let y = (self.run)(&local.inputs)?;
        if y.len() != self.first.len() {
            bail!(tape, "the second run gave {} outputs, the first {}", y.len(), self.first.len());
        }
        for (i, (y, first)) in y.iter().zip(&self.first).enumerate() {
            first.check(i, y)?;
        }
        local.pull_back(&y, &y_bar.0, want, ctx.record, ctx.ops)
    }
}

/// A function's inputs as nodes of their own, so that a sweep over what the function computes stops at them.
///
/// On a fresh tape for a first derivative; on the tape that is being swept when the derivative itself is recorded.
pub(crate) struct Isolated {
    tape: Arc<Inner>,
    floor: usize,
    pub(crate) inputs: Vec<Tensor>,
}

impl Isolated {
    pub(crate) fn new(inputs: &[Tensor], tape: Option<Arc<Inner>>) -> Result<Self> {
        Self::named(inputs, &[], tape)
    }

    /// [`Isolated::new`] with the inputs' names.
    pub(crate) fn named(inputs: &[Tensor], names: &[String], tape: Option<Arc<Inner>>) -> Result<Self> {
        let tape = tape.unwrap_or_else(Inner::new);
        let name = |i: usize| names.get(i).filter(|n| !n.is_empty()).map(|n| Arc::from(n.as_str()));
        let alias = |(i, t): (usize, &Tensor)| if t.dtype().is_float() { alias(&tape, t, name(i)) } else { Ok(t.clone()) };
        let inputs = memory::try_collect_ok(inputs.iter().enumerate().map(alias))?;
        let floor = tape.len();
        Ok(Isolated { tape, floor, inputs })
    }

    /// Cotangents of the inputs, given those of values computed from them.
    pub(crate) fn pull_back(
        &self,
        y: &[Tensor],
        y_bar: &[Option<Tensor>],
        want: &[bool],
        record: bool,
        ops: Accumulate,
    ) -> Result<InputCotangents> {
        let place = |t: &Tensor| t.node.as_ref().map(|n| n.resolve()).transpose().map(|p| p.map(|(_, id)| id));
        let mut seeds = Vec::new();
        for (y, bar) in y.iter().zip(y_bar) {
            if let (Some(id), Some(bar)) = (place(y)?, bar) {
                memory::push(&mut seeds, (id, bar.clone()))?;
            }
        }
        let ids = self.inputs.iter().map(place).collect::<Result<Vec<_>>>()?;
        let wanted: Vec<usize> = ids.iter().zip(want).filter(|(_, w)| **w).filter_map(|(id, _)| *id).collect();
        let Some((tape, offset)) = Arc::clone(&self.tape).settled() else { bail!(tape, "the tape of the outer function is gone") };
        // A first derivative on the fresh tape may be followed by a second sweep over the same nodes: keep them.
        let found = sweep(&tape, Sweep { seeds, wanted: &wanted, floor: self.floor + offset, consume: false, record }, ops)?;
        Ok(ids.iter().zip(want).map(|(id, w)| if *w { id.and_then(|id| found.get(&id).cloned()) } else { None }).collect())
    }
}

/// The same value as a node of its own: a leaf, or a child of the node it had.
fn alias(tape: &Arc<Inner>, t: &Tensor, name: Option<Arc<str>>) -> Result<Tensor> {
    struct Identity;
    impl Pull for Identity {
        fn pull(&self, _: &PullContext<'_>, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
            Ok(SmallVec::from_iter([y_bar.0[0].clone()]))
        }
    }
    let parent = t.node.as_ref().and_then(|n| n.resolve().ok()).filter(|(own, _)| Arc::ptr_eq(own, tape)).map(|(_, id)| id);
    let mut nodes = tape.nodes();
    let id = nodes.len();
    let kind = match parent {
        Some(parent) => Kind::Op(Box::new(OpNode {
            name: "alias",
            pull: Some(Arc::new(Identity)),
            saved: Saved::none(),
            parents: SmallVec::from_iter([Some(parent)]),
            outputs: 1,
        })),
        None => Kind::Leaf(name),
    };
    memory::push(&mut nodes, Node { kind, at: Location::caller(), shape: t.shape().clone(), dtype: t.dtype() })?;
    Ok(Tensor { array: t.array.clone(), node: Some(NodeRef { tape: Arc::downgrade(tape), id }) })
}
