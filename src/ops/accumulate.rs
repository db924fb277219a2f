//! How the sweep adds cotangents, in ops. Those of parts of one value are put side by side: a loop over the positions of an axis
//! costs one tensor, not one each.

use super::shape::concat::Concat;
use super::shape::slice::{Slice, SliceVjp};
use crate::backend::cpu::map;
use crate::dtype::with_float;
use crate::error::Result;
use crate::memory;
use crate::op::apply1;
use crate::shape::Shape;
use crate::tape::{Accumulate, Stretch};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// How the sweep adds cotangents.
pub(crate) const ACCUMULATE: Accumulate = Accumulate { add: add_cotangents, cast: Tensor::cast, reduce_to, assemble };

fn add_cotangents(mut acc: Tensor, bar: &Tensor) -> Result<Tensor> {
    // In place when nothing else can see the first one and the sum is not being recorded.
    if acc.device() != crate::Device::Cpu || acc.is_tracked() || bar.is_tracked() || !acc.array.is_unique() {
        return acc.add(bar);
    }
    with_float!(acc.dtype(), T => {
        let x = bar.array.cpu()?.contiguous::<T>()?;
        acc.array.update(|y: &mut [T]| map::update(y, &x, #[inline(always)] |y, x| {
            use crate::backend::cpu::Compute;
            T::store(y.load() + x.load())
        }))?;
    });
    Ok(acc)
}

/// Sums over the axes along which `shape` was broadcast to the shape of `x`.
pub(crate) fn reduce_to(x: &Tensor, shape: &Shape) -> Result<Tensor> {
    let lead = x.rank() - shape.rank();
    let axes: Vec<usize> = (0..x.rank()).filter(|&i| i < lead || shape[i - lead] != x.shape()[i]).collect();
    x.sum_keepdim(&axes[..])?.reshape(shape)
}

/// The sum of tensors, each in its place within zeros of the shape `of`.
///
/// Equal stretches are added first, in the order given; in half types from the third on in f32, and rounded once. Others are laid out along their axis in as few layers as they overlap,
/// and the layers are added: all of it in ops, so it is recorded when the parts are tracked.
fn assemble(parts: Vec<(Stretch, Tensor)>, of: &Shape) -> Result<Tensor> {
    let like = parts.first().map(|(_, t)| (t.dtype(), t.device()));
    // By axis, step, start, length.
    let mut sums: BTreeMap<(usize, usize, usize, usize), (Tensor, usize)> = BTreeMap::new();
    for (s, bar) in parts {
        let key = (s.axis, s.step, s.start, s.len);
        let sum = match sums.remove(&key) {
            None => (bar, 1),
            Some((sum, n)) if n > 1 && bar.dtype().is_half() => (add_cotangents(sum.cast(crate::F32)?, &bar.cast(crate::F32)?)?, n + 1),
            Some((sum, n)) => (add_cotangents(sum, &bar)?, n + 1),
        };
        memory::small(2 * size_of::<((usize, usize, usize, usize), (Tensor, usize))>())?;
        sums.insert(key, sum);
    }
    let mut total: Option<Tensor> = None;
    let mut add = |t: Tensor| -> Result<()> {
        total = Some(match total.take() {
            None => t,
            Some(sum) => add_cotangents(sum, &t)?,
        });
        Ok(())
    };
    let mut lines: BTreeMap<usize, Vec<Piece>> = BTreeMap::new();
    for ((axis, step, start, len), (bar, _)) in sums {
        let bar = match like {
            Some((dtype, _)) => bar.cast(dtype)?,
            None => bar,
        };
        if step == 1 || len <= 1 {
            if len > 0 {
                memory::push(lines.entry(axis).or_default(), Piece { start, end: start + len, bar })?;
            }
        } else {
            let slice = Slice { axis: axis.into(), span: (start..start + (len - 1) * step + 1).into(), step };
            add(apply1(SliceVjp { slice, of: of.clone() }, &[&bar])?)?;
        }
    }
    for (axis, pieces) in lines {
        add(lay_out(pieces, axis, of)?)?;
    }
    match (total, like) {
        (Some(total), _) => Ok(total),
        (None, Some((dtype, device))) => Tensor::full_on(of, 0.0, dtype, device),
        (None, None) => Tensor::full_on(of, 0.0, crate::F32, crate::Device::Cpu),
    }
}

/// A cotangent and where it lies on its axis.
struct Piece {
    start: usize,
    end: usize,
    bar: Tensor,
}

/// Pieces along one axis, in the order of their starts.
fn lay_out(mut pieces: Vec<Piece>, axis: usize, of: &Shape) -> Result<Tensor> {
    // Sorting takes as much again.
    memory::ensure(pieces.len() * size_of::<Piece>())?;
    pieces.sort_by_key(|p| p.start);
    let lo = pieces.iter().map(|p| p.start).min().unwrap_or(0);
    let hi = pieces.iter().map(|p| p.end).max().unwrap_or(0);
    let mut layers: Vec<Vec<Piece>> = Vec::new();
    for piece in pieces {
        match layers.iter_mut().find(|l| l.last().is_none_or(|p| p.end <= piece.start)) {
            Some(layer) => memory::push(layer, piece)?,
            None => memory::push(&mut layers, vec![piece])?,
        }
    }
    let mut sum: Option<Tensor> = None;
    for layer in layers {
        let row = row(layer, axis, lo, hi)?;
        sum = Some(match sum {
            None => row,
            Some(sum) => add_cotangents(sum, &row)?,
        });
    }
    let Some(sum) = sum else { return Tensor::full_on(of, 0.0, crate::F32, crate::Device::Cpu) };
    if (lo, hi) == (0, of[axis]) {
        return Ok(sum);
    }
    let slice = Slice { axis: axis.into(), span: (lo..hi).into(), step: 1 };
    apply1(SliceVjp { slice, of: of.clone() }, &[&sum])
}

/// Pieces that do not overlap, and zeros between them, from `lo` to `hi`.
fn row(pieces: Vec<Piece>, axis: usize, lo: usize, hi: usize) -> Result<Tensor> {
    let mut parts: Vec<Tensor> = Vec::new();
    let mut at = lo;
    // One zero, repeated: a gap takes no memory.
    let gap = |like: &Tensor, n: usize| Tensor::full_on((), 0.0, like.dtype(), like.device())?.expand(like.shape().with_dim(axis, n));
    for piece in pieces {
        if piece.start > at {
            memory::push(&mut parts, gap(&piece.bar, piece.start - at)?)?;
        }
        at = piece.end;
        memory::push(&mut parts, piece.bar)?;
    }
    if let Some(last) = parts.last().filter(|_| at < hi) {
        let after = gap(last, hi - at)?;
        memory::push(&mut parts, after)?;
    }
    if let [only] = parts.as_slice() {
        return Ok(only.clone());
    }
    let sizes = memory::try_short(parts.iter().map(|t| Ok(t.shape()[axis])))?;
    apply1(Concat { axis: axis.into(), sizes }, &memory::try_collect(&parts)?)
}
