//! Matrix products as the devices take them: equal matrices at equal distances.

pub(crate) mod quant;

use crate::backend::cuda::abi::{Gemm, Matrices};
use crate::backend::cuda::device::{Buffer, Context, Dst, Src};
use crate::backend::cuda::launch::{In, Out, copy};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::{Layout, collapse};
use crate::memory;
use crate::shape::Shape;

/// A matrix operand that a device can address, and the copy that made it so if one was needed.
struct Ready<'a> {
    src: Src<'a>,
    rows: usize,
    cols: usize,
    batch: Vec<usize>,
}

/// Whether a library can address a matrix of these strides: one of them 1, the other no shorter than a line.
fn addressable(shape: [usize; 2], stride: [usize; 2]) -> bool {
    let row_major = (stride[1] == 1 || shape[1] == 1) && (stride[0] >= shape[1] || shape[0] == 1);
    let column_major = (stride[0] == 1 || shape[0] == 1) && (stride[1] >= shape[0] || shape[1] == 1);
    row_major || column_major
}

/// Strides that describe an addressable matrix the way libraries expect: the unit stride 1 even when its extent is 1.
fn leading(shape: [usize; 2], stride: [usize; 2]) -> (usize, usize) {
    if (stride[1] == 1 || shape[1] == 1) && (stride[0] >= shape[1] || shape[0] == 1) {
        (stride[0].max(shape[1]).max(1), 1)
    } else {
        (1, stride[1].max(shape[0]).max(1))
    }
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
    // A bias that the library cannot add itself is what C holds before the product.
    let fill_bias = row.is_some() && (dtype == DType::F64 || k == 0);
    if fill_bias {
        if let Some(row) = &row {
            let everywhere = Layout::contiguous(n).expand(y.shape())?;
            copy::gather(on, row.src(), &everywhere, y.dst())?;
        }
    } else if k == 0 {
        return y.zero(on);
    }
    if k == 0 {
        return Ok(());
    }
    let lead = |l: &Layout, r: usize| Shape::from(&l.shape()[..r]);
    let batch = lead(a.1, ra).broadcast(&lead(b.1, rb))?;
    let of = |rows: usize, cols: usize| batch.iter().copied().chain([rows, cols]).collect::<Shape>();
    let (la, lb) = (a.1.expand(&of(m, k))?, b.1.expand(&of(k, n))?);
    let r = batch.rank();
    let (mut ca, mut cb) = (None, None);
    let pa = ready(on, a.0, &la, &mut ca)?;
    let pb = ready(on, b.0, &lb, &mut cb)?;
    let bias = if fill_bias { None } else { row.as_ref().map(|r| r.src().addr()) };
    let c = y.dst().addr();
    let size = dtype.size() as u64;
    // One matrix on the right of evenly spaced rows is one product.
    if pb.batch.iter().zip(batch.iter()).all(|(&s, &d)| d == 1 || s == 0) && pa.cols == 1 {
        let strides: Vec<usize> = pa.batch.iter().copied().chain([pa.rows]).collect();
        let (rows, steps) = collapse(&la.shape()[..=r], &[&strides]);
        if rows.len() <= 1 {
            let (m, step) = (rows.first().copied().unwrap_or(1), steps[0].first().copied().unwrap_or(k));
            if addressable([m, k], [step, 1]) {
                let (rs, cs) = leading([m, k], [step, 1]);
                let a = Matrices { addr: pa.src.addr(), row_stride: rs, col_stride: cs, batch_stride: 0 };
                let b = Matrices { addr: pb.src.addr(), row_stride: pb.rows, col_stride: pb.cols, batch_stride: 0 };
                return on.gemm(&Gemm { dtype, batch: 1, m, n, k, a, b, c, accumulate: fill_bias, bias });
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
        let a = Matrices { addr: pa.src.addr() + oa as u64 * size, row_stride: pa.rows, col_stride: pa.cols, batch_stride: sa };
        let b = Matrices { addr: pb.src.addr() + ob as u64 * size, row_stride: pb.rows, col_stride: pb.cols, batch_stride: sb };
        let c = c + (i * inner * m * n) as u64 * size;
        on.gemm(&Gemm { dtype, batch: inner, m, n, k, a, b, c, accumulate: fill_bias, bias })?;
    }
    Ok(())
}

/// The operand in its own memory when its matrices are addressable, else gathered into `copy`.
fn ready<'a>(on: &'static Context, x: &In<'a>, layout: &Layout, copy: &'a mut Option<Buffer>) -> Result<Ready<'a>> {
    let r = layout.rank() - 2;
    let shape = [layout.shape()[r], layout.shape()[r + 1]];
    let stride = [layout.strides()[r], layout.strides()[r + 1]];
    if addressable(shape, stride) {
        let (rows, cols) = leading(shape, stride);
        return Ok(Ready { src: x.at(layout), rows, cols, batch: layout.strides()[..r].to_vec() });
    }
    // Copy each distinct matrix once: axes of stride 0 stay broadcast.
    let kept: Shape = layout.shape().iter().enumerate().map(|(i, &d)| if i < r && layout.strides()[i] == 0 { 1 } else { d }).collect();
    let distinct = Layout::from_parts(kept.clone(), layout.strides().iter().copied().collect(), layout.offset())?;
    let mut buffer = on.alloc(x.dtype(), kept.numel())?;
    copy::gather(on, x.start(), &distinct, Dst::new(&mut buffer))?;
    let dense = Layout::contiguous(kept).expand(layout.shape())?;
    let buffer = copy.insert(buffer);
    Ok(Ready { src: Src::new(buffer, 0), rows: shape[1].max(1), cols: 1, batch: dense.strides()[..r].to_vec() })
}
