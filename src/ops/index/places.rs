//! What ops with an index for each element share: the check of the index, and what meets at each place by the textbook.

use crate::error::{Result, bail};
use crate::op::{Spec, expect};
use crate::shape::{Axis, Shape};
use crate::testing::{Nd, Scalar};

/// Checks an index against the operand that it reads or writes.
pub(super) fn fits(x: &Shape, index: &Spec, axis: Axis) -> Result<usize> {
    expect::index(index)?;
    let axis = axis.resolve(x.rank())?;
    let ids = &index.shape;
    if ids.rank() != x.rank() {
        let hint = if ids.rank() == 1 {
            "; for whole rows: index.unsqueeze(-1)?.expand(..)? to one index for each element (to read rows: index_select)"
        } else {
            ""
        };
        bail!(shape, "the index {ids} has rank {}, the operand {x} rank {}; they must be equal{hint}", ids.rank(), x.rank());
    }
    if let Some(a) = (0..x.rank()).find(|&a| a != axis && ids[a] > x[a]) {
        bail!(shape, "the index {ids} reaches beyond the operand {x} along axis {a} ({} vs {})", ids[a], x[a]);
    }
    Ok(axis)
}

/// What meets at every place of x, in order: its own element if `own` or if nothing else does, then those of src.
pub(super) fn define_groups<S: Scalar>(x: &[Nd<S>], axis: Axis, own: bool) -> Vec<Vec<S>> {
    let axis = x[0].axis_at(axis);
    let mut groups: Vec<Vec<S>> = x[0].data.iter().map(|_| Vec::new()).collect();
    let places = Nd::from_fn(&x[1].shape, |i| {
        let mut at = i.to_vec();
        at[axis] = x[1].at(i).re() as usize;
        S::lit(at.iter().zip(x[0].shape.iter()).fold(0, |n, (i, d)| n * d + i) as f64)
    });
    for (at, &s) in places.indices().into_iter().zip(&x[2].data) {
        groups[at as usize].push(s);
    }
    for (group, &v) in groups.iter_mut().zip(&x[0].data) {
        if own || group.is_empty() {
            group.insert(0, v);
        }
    }
    groups
}
