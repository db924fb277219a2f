//! Matrix products as the devices take them: equal matrices at equal distances.

pub(crate) mod quant;

use crate::backend::cuda::abi::{Gemm, MOST_MATRICES, Matrices, Plus};
use crate::backend::cuda::device::{Buffer, Context, Dst, Src};
use crate::backend::cuda::launch::{In, Out, copy};
use crate::error::Result;
use crate::layout::{Layout, collapse};
use crate::memory;
use crate::shape::Shape;

/// Matrices that a device can address, in the operand's memory or in a copy.
struct Ready<'a> {
    src: Src<'a>,
    shape: [usize; 2],
    stride: [usize; 2],
    batch: Vec<usize>,
}

impl Ready<'_> {
    /// From an element on, at a distance from one to the next.
    fn matrices(&self, first: usize, batch_stride: usize) -> Matrices {
        Matrices::new(self.src.offset(first).addr(), self.shape, self.stride, batch_stride)
    }
}

/// Enqueues a product of any number of matrices: all products of the crate go through here, with matrices made by [`Matrices::new`].
///
/// # Errors
/// What the device reports.
pub(crate) fn product(on: &Context, g: &Gemm) -> Result<()> {
    let mut g = *g;
    if let Plus::Bias(bias) = g.plus
        && !on.adds_bias(&g)?
    {
        let everywhere = Layout::contiguous([g.n]).expand(&Shape::from([g.batch * g.m, g.n]))?;
        copy::gather(on, Src::at(bias, g.dtype), &everywhere, Dst::at(g.c, g.dtype))?;
        g.plus = Plus::Itself;
    }
    for first in (0..g.batch).step_by(MOST_MATRICES) {
        let from = |addr: u64, stride: usize| addr + (first * stride * g.dtype.size()) as u64;
        let part = |m: Matrices| Matrices { addr: from(m.addr, m.batch_stride), ..m };
        let batch = (g.batch - first).min(MOST_MATRICES);
        on.gemm(&Gemm { batch, a: part(g.a), b: part(g.b), c: from(g.c, g.m * g.n), ..g })?;
    }
    Ok(())
}

/// `y ← a·b + bias` for `a` laid out as `[batch.., m, k]` and `b` as `[batch.., k, n]`, whose batch axes broadcast.
///
/// # Errors
/// Out of memory for a copy that the layout makes necessary; what the device reports.
pub(crate) fn matmul(
    on: &'static Context,
    a: (&In<'_>, &Layout),
    b: (&In<'_>, &Layout),
    bias: Option<&In<'_>>,
    y: &mut Out<'_>,
) -> Result<()> {
    let dtype = y.dtype();
    let (ra, rb) = (a.1.rank() - 2, b.1.rank() - 2);
    let (m, k, n) = (a.1.shape()[ra], a.1.shape()[ra + 1], b.1.shape()[rb + 1]);
    if y.numel() == 0 {
        return Ok(());
    }
    // The library takes the alignment of matrices into account, but not that of the bias: its kernels may read 16 bytes at once.
    let row = bias.map(|b| b.aligned(16)).transpose()?;
    if k == 0 {
        let Some(row) = &row else { return y.zero(on) };
        return copy::gather(on, row.src(), &Layout::contiguous(n).expand(y.shape())?, y.dst());
    }
    let lead = |l: &Layout, r: usize| Shape::from(&l.shape()[..r]);
    let batch = lead(a.1, ra).broadcast(&lead(b.1, rb))?;
    let of = |rows: usize, cols: usize| batch.iter().copied().chain([rows, cols]).collect::<Shape>();
    let (la, lb) = (a.1.expand(&of(m, k))?, b.1.expand(&of(k, n))?);
    let r = batch.rank();
    let (mut ca, mut cb) = (None, None);
    let pa = ready(on, a.0, &la, &mut ca)?;
    let pb = ready(on, b.0, &lb, &mut cb)?;
    let plus = row.as_ref().map_or(Plus::Nothing, |r| Plus::Bias(r.src().addr()));
    let c = y.dst().addr();
    let size = dtype.size() as u64;
    // One matrix on the right of evenly spaced rows is one product.
    if pb.batch.iter().zip(batch.iter()).all(|(&s, &d)| d == 1 || s == 0) && pa.stride[1] == 1 {
        let strides: Vec<usize> = pa.batch.iter().copied().chain([pa.stride[0]]).collect();
        let (rows, steps) = collapse(&la.shape()[..=r], &[&strides]);
        if rows.len() <= 1 {
            let (m, step) = (rows.first().copied().unwrap_or(1), steps[0].first().copied().unwrap_or(k));
            if Matrices::addressable([m, k], [step, 1]) {
                let (a, b) = (Matrices::new(pa.src.addr(), [m, k], [step, 1], 0), pb.matrices(0, 0));
                return product(on, &Gemm { dtype, batch: 1, m, n, k, a, b, c, plus });
            }
        }
    }
    // The innermost batch axes that both operands step through evenly are one call; the rest is a loop.
    let shape: Vec<usize> = batch.iter().copied().collect();
    let (dims, steps) = collapse(&shape, &[&pa.batch, &pb.batch]);
    let inner = dims.last().copied().unwrap_or(1);
    let (sa, sb) = (steps[0].last().copied().unwrap_or(0), steps[1].last().copied().unwrap_or(0));
    let outer = dims.len().saturating_sub(1);
    let offsets = |s: &[usize]| -> Result<Vec<usize>> {
        memory::try_collect(Layout::from_parts(Shape::from(&dims[..outer]), s[..outer].iter().copied().collect(), 0)?.indices())
    };
    for (i, (oa, ob)) in offsets(&steps[0])?.into_iter().zip(offsets(&steps[1])?).enumerate() {
        let c = c + (i * inner * m * n) as u64 * size;
        product(on, &Gemm { dtype, batch: inner, m, n, k, a: pa.matrices(oa, sa), b: pb.matrices(ob, sb), c, plus })?;
    }
    Ok(())
}

/// The operand in its own memory when its matrices are addressable, else gathered into `copy`.
fn ready<'a>(on: &'static Context, x: &In<'a>, layout: &Layout, copy: &'a mut Option<Buffer>) -> Result<Ready<'a>> {
    let r = layout.rank() - 2;
    let shape = [layout.shape()[r], layout.shape()[r + 1]];
    let stride = [layout.strides()[r], layout.strides()[r + 1]];
    if Matrices::addressable(shape, stride) {
        let Matrices { row_stride, col_stride, .. } = Matrices::new(0, shape, stride, 0);
        return Ok(Ready { src: x.at(layout), shape, stride: [row_stride, col_stride], batch: layout.strides()[..r].to_vec() });
    }
    // Copy each distinct matrix once: axes of stride 0 stay broadcast.
    let kept: Shape = layout.shape().iter().enumerate().map(|(i, &d)| if i < r && layout.strides()[i] == 0 { 1 } else { d }).collect();
    let distinct = Layout::from_parts(kept.clone(), layout.strides().iter().copied().collect(), layout.offset())?;
    let mut buffer = on.alloc(x.dtype(), kept.numel())?;
    copy::gather(on, x.start(), &distinct, Dst::new(&mut buffer))?;
    let dense = Layout::contiguous(kept).expand(layout.shape())?;
    let buffer = copy.insert(buffer);
    Ok(Ready { src: Src::new(buffer, 0), shape, stride: [shape[1].max(1), 1], batch: dense.strides()[..r].to_vec() })
}
