//! Checkpointing: keep the inputs of a function instead of its intermediate values, and run it again in the sweep.

use super::{
    Accumulate, Cotangents, Guard, Inner, InputCotangents, Kind, Node, NodeRef, OpNode, Pull, PullContext, Saved, Sweep, common_tape,
    record, sweep,
};
use crate::error::{Result, bail};
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::panic::Location;
use std::sync::Arc;

type Function = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync;

/// Runs `f` and keeps only its inputs for the derivative; the sweep runs `f` again.
///
/// Trades one more forward pass for the memory of every value inside `f`. May be nested. `f` must compute the same
/// again: give it random [`Key`](crate::Key)s, not a stateful generator, and dropout draws the same mask.
///
/// # Gradient
/// That of `f`, bit for bit; higher orders too.
///
/// # Errors
/// Whatever `f` returns; tape error when `f` uses a tracked tensor that it captured instead of taking it as an input
/// (its gradient would be lost), or when the second run gives other shapes than the first.
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
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let recording = tape.is_recording()?;
    let mut outputs = {
        let _sealed = Guard::new(&tape.sealed);
        f(&detached)?
    };
    if recording {
        let saved = Saved::list(inputs.iter().map(|&t| Some(t.clone())));
        record(&tape, "checkpoint", at, inputs, &mut outputs, saved, Arc::new(Recompute(Box::new(f))));
    }
    Ok(outputs)
}

struct Recompute(Box<Function>);

impl Pull for Recompute {
    fn pull(&self, ctx: &PullContext<'_>, y_bar: &Cotangents, want: &[bool]) -> Result<InputCotangents> {
        let mut inputs = Vec::with_capacity(want.len());
        for i in 0..want.len() {
            inputs.push(ctx.saved.get(i)?.clone());
        }
        let local = Isolated::new(&inputs, ctx.record.then(|| Arc::clone(ctx.tape)));
        let y = (self.0)(&local.inputs)?;
        if y.len() != y_bar.0.len() {
            bail!(tape, "the second run gave {} outputs, the first {}", y.len(), y_bar.0.len());
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
    ids: Vec<Option<usize>>,
    pub(crate) inputs: Vec<Tensor>,
}

impl Isolated {
    pub(crate) fn new(inputs: &[Tensor], tape: Option<Arc<Inner>>) -> Self {
        let tape = tape.unwrap_or_else(Inner::new);
        let inputs: Vec<Tensor> = inputs.iter().map(|t| if t.dtype().is_float() { alias(&tape, t) } else { t.clone() }).collect();
        let ids = inputs.iter().map(|t| t.node.as_ref().map(|n| n.id)).collect();
        let floor = tape.len();
        Isolated { tape, floor, ids, inputs }
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
        let seeds = y.iter().zip(y_bar).filter_map(|(y, bar)| Some((y.node.as_ref()?.id, bar.clone()?))).collect();
        let wanted: Vec<usize> = self.ids.iter().zip(want).filter(|(_, w)| **w).filter_map(|(id, _)| *id).collect();
        // A first derivative on the fresh tape may be followed by a second sweep over the same nodes: keep them.
        let found = sweep(&self.tape, Sweep { seeds, wanted: &wanted, floor: self.floor, consume: false, record }, ops)?;
        Ok(self.ids.iter().zip(want).map(|(id, w)| if *w { id.and_then(|id| found.get(&id).cloned()) } else { None }).collect())
    }
}

/// The same value as a node of its own: a leaf, or a child of the node it had.
fn alias(tape: &Arc<Inner>, t: &Tensor) -> Tensor {
    struct Identity;
    impl Pull for Identity {
        fn pull(&self, _: &PullContext<'_>, y_bar: &Cotangents, _: &[bool]) -> Result<InputCotangents> {
            Ok(SmallVec::from_iter([y_bar.0[0].clone()]))
        }
    }
    let mut nodes = tape.nodes();
    let id = nodes.len();
    let kind = match &t.node {
        Some(n) if std::ptr::eq(n.tape.as_ptr(), Arc::as_ptr(tape)) => Kind::Op(Box::new(OpNode {
            name: "alias",
            pull: Some(Arc::new(Identity)),
            saved: Saved::none(),
            parents: SmallVec::from_iter([Some(n.id)]),
            outputs: 1,
        })),
        _ => Kind::Leaf(None),
    };
    nodes.push(Node { kind, at: Location::caller(), shape: t.shape().clone(), dtype: t.dtype() });
    Tensor { array: t.array.clone(), node: Some(NodeRef { tape: Arc::downgrade(tape), id }) }
}
