//! Elementwise loops: one pass, any layout, split at boundaries that only the size decides.

use super::math::{Real, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::simd;
use super::view::{Contiguous, In, OuterWalk, SERIAL};
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::{Layout, collapse};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements per parallel piece: small enough to balance, large enough to hide the hand-over.
pub(crate) const PIECE: usize = 8 * 1024;

/// A value type and the type kernels compute it in: `f64` in itself, the others in `f32`.
pub trait Compute: Element {
    /// The type that kernels compute and accumulate in.
    type Acc: Real + Compute<Acc = Self::Acc>;
    /// Widens, exactly.
    fn load(self) -> Self::Acc;
    /// Rounds to nearest even.
    fn store(x: Self::Acc) -> Self;
}

macro_rules! compute {
    ($($t:ty, $acc:ty, |$x:ident| $load:expr, |$y:ident| $store:expr;)*) => {$(
        impl Compute for $t {
            type Acc = $acc;
            #[inline(always)]
            fn load(self) -> $acc { let $x = self; $load }
            #[inline(always)]
            fn store($y: $acc) -> Self { $store }
        }
    )*};
}

compute! {
    f64, f64, |x| x, |y| y;
    f32, f32, |x| x, |y| y;
    bf16, f32, |x| bf16_to_f32(x.to_bits()), |y| bf16::from_bits(f32_to_bf16(y));
    f16, f32, |x| f16_to_f32(x.to_bits()), |y| f16::from_bits(f32_to_f16(y));
}

/// `y[i] = f(x[i])`, one operand.
pub(crate) fn unary<T: Element, O: Element>(x: &In<'_>, y: &mut [O], f: impl Fn(T) -> O + Sync) -> Result<()> {
    let x = x.contiguous::<T>()?;
    let x = &*x;
    let piece = |(y, x): (&mut [O], &[T])| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(x);
                }
            },
        );
    };
    if y.len() < SERIAL {
        piece((y, x));
    } else {
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(piece);
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

/// `y[i] = f(a[i], b[i])` with both operands broadcast to `shape`.
pub(crate) fn binary<A: Element, B: Element, O: Element>(
    a: &In<'_>,
    b: &In<'_>,
    shape: &crate::Shape,
    y: &mut [O],
    f: impl Fn(A, B) -> O + Sync,
) -> Result<()> {
    let (a, b) = (Operand::<A>::prepare(a, shape)?, Operand::<B>::prepare(b, shape)?);
    let (xa, xb) = (a.data(), b.data());
    for_rows(shape, [&a.layout, &b.layout], y, |y, [i, j], [sa, sb]| {
        let n = y.len();
        simd::dispatch(
            #[inline(always)]
            || match (sa, sb) {
                (1, 1) => {
                    for ((y, &a), &b) in y.iter_mut().zip(&xa[i..i + n]).zip(&xb[j..j + n]) {
                        *y = f(a, b);
                    }
                }
                (1, 0) => {
                    let b = xb[j];
                    for (y, &a) in y.iter_mut().zip(&xa[i..i + n]) {
                        *y = f(a, b);
                    }
                }
                (0, 1) => {
                    let a = xa[i];
                    for (y, &b) in y.iter_mut().zip(&xb[j..j + n]) {
                        *y = f(a, b);
                    }
                }
                _ => {
                    for (k, y) in y.iter_mut().enumerate() {
                        *y = f(xa[i + k * sa], xb[j + k * sb]);
                    }
                }
            },
        );
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
