//! Elementwise loops: one pass, any layout, split at boundaries that only the size decides.
//!
//! The walk over memory is compiled once per element type; an op adds only its innermost loop, over blocks of plain
//! slices (`&dyn Fn`, one indirect call per block). With some hundred elementwise kernels this keeps the build short.

use super::par::*;
use super::simd;
use super::view::{Contiguous, In, Out, OuterWalk, SERIAL};
use crate::backend::cpu::math::{Compute, Real};
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::{Layout, collapse};

/// Elements per parallel piece: small enough to balance, large enough to hide the hand-over.
pub(crate) const PIECE: usize = 8 * 1024;

/// `y[i] = f(x[i])`, one operand. `f` should own what it captures (`move`): each block takes a copy of it, whose parameters
/// no store can change, so the loop vectorises.
pub(crate) fn unary<T: Element, O: Element>(x: &In<'_>, y: &mut [O], f: impl Fn(T) -> O + Sync + Copy) -> Result<()> {
    unary_blocks(x, y, &|x: &[T], y: &mut [O]| {
        #[expect(clippy::redundant_locals, reason = "a copy of the captured parameters, which no store aliases")]
        let f = f;
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(x);
                }
            },
        );
    })
}

/// [`unary`] by blocks: `block(x, y)` gets slices of one length.
pub(crate) fn unary_blocks<T: Element, O: Element>(x: &In<'_>, y: &mut [O], block: &(dyn Fn(&[T], &mut [O]) + Sync)) -> Result<()> {
    let x = x.contiguous::<T>()?;
    let x = &*x;
    if y.len() < SERIAL {
        block(x, y);
    } else {
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| block(x, y));
    }
    Ok(())
}

/// Calls `body` with the number of each row of a row-major output and the row itself.
pub(crate) fn rows<O: Send>(y: &mut [O], len: usize, body: impl Fn(usize, &mut [O]) + Sync) {
    if y.is_empty() {
        return;
    }
    let group = (PIECE / len).max(1);
    let task = |(g, out): (usize, &mut [O])| {
        for (r, row) in out.chunks_mut(len).enumerate() {
            body(g * group + r, row);
        }
    };
    if y.len() < SERIAL {
        y.chunks_mut(group * len).enumerate().for_each(task);
    } else {
        y.par_chunks_mut(group * len).enumerate().for_each(task);
    }
}

/// [`unary_blocks`] in the type that kernels compute in: half types are widened and rounded block by block.
pub(crate) fn unary_acc<T: Compute>(x: &In<'_>, y: &mut [T], block: &(dyn Fn(&[T::Acc], &mut [T::Acc]) + Sync)) -> Result<()> {
    unary_blocks(x, y, &|x: &[T], y: &mut [T]| {
        if let (Some(x), Some(y)) = (T::as_acc(x), T::as_acc_mut(y)) {
            return block(x, y);
        }
        let (mut wide_x, mut wide_y) = ([T::Acc::ZERO; WIDE], [T::Acc::ZERO; WIDE]);
        for (y, x) in y.chunks_mut(WIDE).zip(x.chunks(WIDE)) {
            let n = y.len();
            widen(x, &mut wide_x[..n]);
            block(&wide_x[..n], &mut wide_y[..n]);
            narrow(&wide_y[..n], y);
        }
    })
}

/// Runs `$run` on the elements of a float tensor, of any dtype, with the kernel for the type that they are computed in: `$narrow` for
/// f32, in which half types are computed too, and `$wide` for f64.
macro_rules! by_number {
    ($y:expr, ($narrow:expr, $wide:expr), |$elements:ident, $kernel:ident| $run:expr) => {
        match $y.dtype() {
            $crate::DType::F64 => {
                let ($elements, $kernel) = ($y.slice::<f64>(), $wide);
                $run
            }
            $crate::DType::F32 => {
                let ($elements, $kernel) = ($y.slice::<f32>(), $narrow);
                $run
            }
            $crate::DType::BF16 => {
                let ($elements, $kernel) = ($y.slice::<half::bf16>(), $narrow);
                $run
            }
            $crate::DType::F16 => {
                let ($elements, $kernel) = ($y.slice::<half::f16>(), $narrow);
                $run
            }
            d => Err($crate::Error::dtype(format!("expected a float dtype, found {d}"))),
        }
    };
}
pub(crate) use by_number;

/// The innermost loop of an op of one operand, over slices of one length: for f32, in which half types are computed, and for f64.
pub(crate) type Floats1<'a> = (&'a (dyn Fn(&[f32], &mut [f32]) + Sync), &'a (dyn Fn(&[f64], &mut [f64]) + Sync));

/// [`unary_acc`] for a tensor of any float dtype.
pub(crate) fn unary_floats(x: &In<'_>, y: &mut Out<'_>, blocks: Floats1<'_>) -> Result<()> {
    by_number!(y, (blocks.0, blocks.1), |y, block| unary_acc(x, y, block))
}

/// [`Floats1`] for two operands.
pub(crate) type Floats2<'a> = (Block2<'a, f32, f32, f32>, Block2<'a, f64, f64, f64>);

/// [`binary_acc`] for tensors of any float dtype.
pub(crate) fn binary_floats(a: &In<'_>, b: &In<'_>, y: &mut Out<'_>, blocks: Floats2<'_>) -> Result<()> {
    let shape = y.shape();
    by_number!(y, (blocks.0, blocks.1), |y, block| binary_acc(a, b, shape, y, block))
}

/// Elements that are widened at a time: three buffers stay well inside the first-level cache.
pub(crate) const WIDE: usize = 1024;

/// Widens elements to numbers.
pub(crate) fn widen<T: Compute>(x: &[T], y: &mut [T::Acc]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = x.load();
            }
        },
    );
}

/// Rounds numbers to elements.
pub(crate) fn narrow<T: Compute>(x: &[T::Acc], y: &mut [T]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = T::store(x);
            }
        },
    );
}

/// Calls `body` for pieces of the innermost axis of a row-major output: the piece, and for each operand the storage
/// index of its first element and its stride along the piece (0 or 1 after [`Operand::prepare`]).
pub(crate) fn for_rows<O: Send, const N: usize>(
    shape: &[usize],
    layouts: [&Layout; N],
    y: &mut [O],
    body: impl Fn(&mut [O], [usize; N], [usize; N]) + Sync,
) {
    if y.is_empty() {
        return;
    }
    let strides: [&[usize]; N] = layouts.map(Layout::strides);
    let (dims, strides) = collapse(shape, &strides);
    let offsets = layouts.map(Layout::offset);
    let Some((&inner, outer)) = dims.split_last() else {
        body(y, offsets, [0; N]);
        return;
    };
    let k = outer.len();
    let step: [usize; N] = std::array::from_fn(|i| strides[i][k]);
    let walks = |row: usize| -> [OuterWalk<'_>; N] { std::array::from_fn(|i| OuterWalk::new(outer, &strides[i][..k], offsets[i], row)) };
    let small = y.len() < SERIAL;
    if inner >= 2 * PIECE && !small {
        y.par_chunks_mut(inner).enumerate().for_each(|(row, out)| {
            let walks = walks(row);
            out.par_chunks_mut(PIECE).enumerate().for_each(|(p, out)| {
                body(out, std::array::from_fn(|i| walks[i].at + p * PIECE * step[i]), step);
            });
        });
        return;
    }
    let rows = (PIECE / inner).max(1);
    let task = |(t, out): (usize, &mut [O])| {
        let mut walks = walks(t * rows);
        for out in out.chunks_mut(inner) {
            body(out, std::array::from_fn(|i| walks[i].at), step);
            walks.iter_mut().for_each(OuterWalk::step);
        }
    };
    if small {
        y.chunks_mut(rows * inner).enumerate().for_each(task);
    } else {
        y.par_chunks_mut(rows * inner).enumerate().for_each(task);
    }
}

/// An operand broadcast to the output's shape, whose innermost step is 0 or 1.
pub(crate) struct Operand<'a, T> {
    data: Contiguous<'a, T>,
    pub(crate) layout: Layout,
}

impl<'a, T: Element> Operand<'a, T> {
    /// Broadcasts; an operand with a long inner step is gathered first, in cache-friendly tiles.
    pub(crate) fn prepare(x: &In<'a>, shape: &crate::Shape) -> Result<Self> {
        let inner = x.shape().iter().zip(x.layout().strides()).rev().find(|(d, _)| **d != 1).map_or(1, |(_, s)| *s);
        if inner <= 1 {
            return Ok(Operand { data: Contiguous::Borrowed(x.storage()), layout: x.layout().expand(shape)? });
        }
        Ok(Operand { data: x.contiguous()?, layout: Layout::contiguous(x.shape()).expand(shape)? })
    }

    pub(crate) fn data(&self) -> &[T] {
        &self.data
    }
}

/// `y[i] = f(a[i], b[i])` with both operands broadcast to `shape`; `f` as in [`unary`].
pub(crate) fn binary<A: Element, B: Element, O: Element>(
    a: &In<'_>,
    b: &In<'_>,
    shape: &crate::Shape,
    y: &mut [O],
    f: impl Fn(A, B) -> O + Sync + Copy,
) -> Result<()> {
    binary_blocks(a, b, shape, y, &|a: &[A], b: &[B], y: &mut [O]| {
        #[expect(clippy::redundant_locals, reason = "a copy of the captured parameters, which no store aliases")]
        let f = f;
        simd::dispatch(
            #[inline(always)]
            || {
                for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                    *y = f(a, b);
                }
            },
        );
    })
}

/// The innermost loop of an op of two operands: slices of one length.
pub(crate) type Block2<'a, A, B, O> = &'a (dyn Fn(&[A], &[B], &mut [O]) + Sync);

/// [`binary`] by blocks: an operand that repeats one element along a row is written out block by block.
pub(crate) fn binary_blocks<A: Element, B: Element, O: Element>(
    a: &In<'_>,
    b: &In<'_>,
    shape: &crate::Shape,
    y: &mut [O],
    block: Block2<'_, A, B, O>,
) -> Result<()> {
    let (a, b) = (Operand::<A>::prepare(a, shape)?, Operand::<B>::prepare(b, shape)?);
    let (xa, xb) = (a.data(), b.data());
    for_rows(shape, [&a.layout, &b.layout], y, |y, [i, j], [sa, sb]| {
        let n = y.len();
        match (sa, sb) {
            (1, 1) => block(&xa[i..i + n], &xb[j..j + n], y),
            // Short rows fill short buffers.
            _ if n <= 16 => repeated::<16, A, B, O>((xa, i, sa), (xb, j, sb), y, block),
            _ => repeated::<256, A, B, O>((xa, i, sa), (xb, j, sb), y, block),
        }
    });
    Ok(())
}

/// A row in which at least one operand has step 0. Operands are given as data, first index and step.
fn repeated<const N: usize, A: Element, B: Element, O: Element>(
    (xa, i, sa): (&[A], usize, usize),
    (xb, j, sb): (&[B], usize, usize),
    y: &mut [O],
    block: Block2<'_, A, B, O>,
) {
    let (fill_a, fill_b) = ([xa[i]; N], [xb[j]; N]);
    for (k, y) in y.chunks_mut(N).enumerate() {
        let n = y.len();
        let a = if sa == 0 { &fill_a[..n] } else { &xa[i + k * N..][..n] };
        let b = if sb == 0 { &fill_b[..n] } else { &xb[j + k * N..][..n] };
        block(a, b, y);
    }
}

/// [`binary_blocks`] in the type that kernels compute in: half types are widened and rounded block by block.
pub(crate) fn binary_acc<T: Compute>(
    a: &In<'_>,
    b: &In<'_>,
    shape: &crate::Shape,
    y: &mut [T],
    block: Block2<'_, T::Acc, T::Acc, T::Acc>,
) -> Result<()> {
    binary_blocks(a, b, shape, y, &|a: &[T], b: &[T], y: &mut [T]| {
        if let (Some(a), Some(b), Some(y)) = (T::as_acc(a), T::as_acc(b), T::as_acc_mut(y)) {
            return block(a, b, y);
        }
        if y.len() <= 16 { widened::<16, T>(a, b, y, block) } else { widened::<WIDE, T>(a, b, y, block) }
    })
}

fn widened<const N: usize, T: Compute>(a: &[T], b: &[T], y: &mut [T], block: Block2<'_, T::Acc, T::Acc, T::Acc>) {
    let mut wide = [[T::Acc::ZERO; N]; 3];
    let [wide_a, wide_b, wide_y] = &mut wide;
    for ((y, a), b) in y.chunks_mut(N).zip(a.chunks(N)).zip(b.chunks(N)) {
        let n = y.len();
        widen(a, &mut wide_a[..n]);
        widen(b, &mut wide_b[..n]);
        block(&wide_a[..n], &wide_b[..n], &mut wide_y[..n]);
        narrow(&wide_y[..n], y);
    }
}

/// `y[i] = f(a[i], b[i], c[i])` with all operands broadcast to `shape`; `f` as in [`unary`].
pub(crate) fn ternary<A: Element, B: Element, C: Element, O: Element>(
    a: &In<'_>,
    b: &In<'_>,
    c: &In<'_>,
    shape: &crate::Shape,
    y: &mut [O],
    f: impl Fn(A, B, C) -> O + Sync + Copy,
) -> Result<()> {
    let (a, b, c) = (Operand::<A>::prepare(a, shape)?, Operand::<B>::prepare(b, shape)?, Operand::<C>::prepare(c, shape)?);
    let (xa, xb, xc) = (a.data(), b.data(), c.data());
    let block = |a: &[A], b: &[B], c: &[C], y: &mut [O]| {
        #[expect(clippy::redundant_locals, reason = "a copy of the captured parameters, which no store aliases")]
        let f = f;
        simd::dispatch(
            #[inline(always)]
            || {
                for (((y, &a), &b), &c) in y.iter_mut().zip(a).zip(b).zip(c) {
                    *y = f(a, b, c);
                }
            },
        );
    };
    for_rows(shape, [&a.layout, &b.layout, &c.layout], y, |y, [i, j, k], [sa, sb, sc]| {
        let n = y.len();
        if (sa, sb, sc) == (1, 1, 1) {
            return block(&xa[i..i + n], &xb[j..j + n], &xc[k..k + n], y);
        }
        // As in `repeated`: an operand that repeats one element along a row is written out.
        const N: usize = 256;
        let (fill_a, fill_b, fill_c) = ([xa[i]; N], [xb[j]; N], [xc[k]; N]);
        for (p, y) in y.chunks_mut(N).enumerate() {
            let (n, at) = (y.len(), p * N);
            let a = if sa == 0 { &fill_a[..n] } else { &xa[i + at..][..n] };
            let b = if sb == 0 { &fill_b[..n] } else { &xb[j + at..][..n] };
            let c = if sc == 0 { &fill_c[..n] } else { &xc[k + at..][..n] };
            block(a, b, c, y);
        }
    });
    Ok(())
}

/// `y[i] = f(y[i], x[i])` for equal lengths.
pub(crate) fn update<T: Element>(y: &mut [T], x: &[T], f: impl Fn(T, T) -> T + Sync) {
    let piece = |(y, x): (&mut [T], &[T])| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(*y, x);
                }
            },
        );
    };
    if y.len() < SERIAL {
        piece((y, x));
    } else {
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(piece);
    }
}
