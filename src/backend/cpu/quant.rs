//! Products with matrices whose elements are stored in blocks of 32 with one scale: the matrix is never expanded as a whole.

use super::Buffer;
use super::gemm::{Mat, gemm};
use super::map::Compute;
use super::math::{Real, f16_to_f32};
use super::matmul::Multiply;
use super::par::*;
use super::simd::{dispatch, dispatch_with, fold_lanes};
use crate::dtype::Element;
use crate::error::Result;

/// Elements of a block.
pub(crate) const BLOCK: usize = 32;
/// Blocks whose scales are converted at once.
const GROUP: usize = 16;
/// Rows of `x` from which on rows of the matrix are expanded, a panel at a time, for the matrix product; below, blocks are read as they are.
const FEW: usize = 8;
/// Rows of the matrix that are expanded at a time.
const PANEL: usize = 128;
/// Multiply-adds that are worth a task.
const TASK: usize = 1 << 16;

/// How a block's bytes hold its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocks {
    /// `d` in half precision, 32 signed bytes: y = d·q.
    Q8_0,
    /// `d` in half precision, 16 bytes of two numbers each: y = d·(q − 8). Byte j holds elements j and j + 16.
    Q4_0,
}

impl Blocks {
    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Blocks::Q8_0 => 34,
            Blocks::Q4_0 => 18,
        }
    }

    /// How rows of so many elements are stored in so many bytes, if they are.
    pub fn of_row(elements: usize, bytes: usize) -> Option<Self> {
        let fits = |kind: &Blocks| elements.is_multiple_of(BLOCK) && elements / BLOCK * kind.bytes() == bytes;
        [Blocks::Q8_0, Blocks::Q4_0].into_iter().find(fits)
    }
}

/// The whole numbers of a block.
#[inline(always)]
fn unpack<A: Real>(kind: Blocks, block: &[u8], q: &mut [A; BLOCK]) {
    match kind {
        Blocks::Q8_0 => {
            for (q, b) in q.iter_mut().zip(&block[2..34]) {
                *q = A::from_f64(f64::from(*b as i8));
            }
        }
        Blocks::Q4_0 => {
            let (low, high) = q.split_at_mut(BLOCK / 2);
            for ((low, high), b) in low.iter_mut().zip(high).zip(&block[2..18]) {
                *low = A::from_f64(f64::from(i32::from(*b & 15) - 8));
                *high = A::from_f64(f64::from(i32::from(*b >> 4) - 8));
            }
        }
    }
}

/// The scales of as many blocks as there are, at most [`GROUP`]: one by one their conversion would take as long as the products.
#[inline(always)]
fn scales<A: Real>(kind: Blocks, blocks: &[u8]) -> [A; GROUP] {
    let mut bits = [0u16; GROUP];
    for (bits, block) in bits.iter_mut().zip(blocks.chunks_exact(kind.bytes())) {
        *bits = u16::from_le_bytes([block[0], block[1]]);
    }
    let mut scales = [A::ZERO; GROUP];
    for (scale, &b) in scales.iter_mut().zip(&bits) {
        // Not `half`'s own conversion, which is a call.
        *scale = A::from_f64(f64::from(f16_to_f32(b)));
    }
    scales
}

/// Writes the elements of consecutive blocks, rounded to `T`.
pub(crate) fn expand<T: Compute>(kind: Blocks, blocks: &[u8], y: &mut [T]) {
    y.par_chunks_mut(64 * BLOCK).zip(blocks.par_chunks(64 * kind.bytes())).for_each(|(y, x)| {
        dispatch(
            #[inline(always)]
            || {
                let mut q = [T::Acc::ZERO; BLOCK];
                for (y, x) in y.chunks_mut(GROUP * BLOCK).zip(x.chunks(GROUP * kind.bytes())) {
                    let blocks = y.chunks_exact_mut(BLOCK).zip(x.chunks_exact(kind.bytes()));
                    for ((y, x), d) in blocks.zip(scales::<T::Acc>(kind, x)) {
                        unpack(kind, x, &mut q);
                        for (y, q) in y.iter_mut().zip(&q) {
                            *y = T::store(d * *q);
                        }
                    }
                }
            },
        );
    });
}

/// `y [rows, n] ← x [rows, k] · Wᵀ` for `W [n, k]` in blocks along its rows. Products are accumulated in `T::Acc`, and rounded once.
///
/// The split into tasks follows the sizes alone, and each sum has one order, so the bits do not depend on the number of threads.
pub(crate) fn product<T: Multiply>(kind: Blocks, x: &[T], w: &[u8], k: usize, y: &mut [T]) -> Result<()> {
    let row_bytes = k / BLOCK * kind.bytes();
    if y.is_empty() {
        return Ok(());
    }
    if k == 0 {
        y.iter_mut().for_each(|y| *y = T::store(<T::Acc as Real>::from_f64(0.0)));
        return Ok(());
    }
    let (n, rows) = (w.len() / row_bytes, x.len() / k);
    let mut wide = Buffer::alloc(T::Acc::DTYPE, x.len())?;
    wide.slice_mut::<T::Acc>().iter_mut().zip(x).for_each(|(a, x)| *a = x.load());
    let wide = wide.slice::<T::Acc>();
    if rows < FEW {
        for (x, y) in wide.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
            let least = (TASK / k).max(1);
            y.par_chunks_mut(least)
                .zip(w.par_chunks(least * row_bytes))
                .for_each(|(y, w)| dispatch_with(Task { kind, x, w, row_bytes, y }));
        }
        return Ok(());
    }
    let mut panel = Buffer::alloc(T::Acc::DTYPE, PANEL.min(n) * k)?;
    let mut out = Buffer::alloc(T::Acc::DTYPE, rows * PANEL.min(n))?;
    for first in (0..n).step_by(PANEL) {
        let size = PANEL.min(n - first);
        let panel = &mut panel.slice_mut::<T::Acc>()[..size * k];
        expand(kind, &w[first * row_bytes..(first + size) * row_bytes], panel);
        let out = &mut out.slice_mut::<T::Acc>()[..rows * size];
        let zero = <T::Acc as Real>::from_f64(0.0);
        gemm(<T::Acc as Real>::from_f64(1.0), Mat::new(wide, rows, k, k, 1), Mat::new(panel, k, size, 1, k), zero, out, size)?;
        for (y, out) in y.chunks_exact_mut(n).zip(out.chunks_exact(size)) {
            y[first..first + size].iter_mut().zip(out).for_each(|(y, o)| *y = T::store(*o));
        }
    }
    Ok(())
}

/// Some rows of the matrix with one of `x`.
struct Task<'a, T: Multiply> {
    kind: Blocks,
    x: &'a [T::Acc],
    w: &'a [u8],
    row_bytes: usize,
    y: &'a mut [T],
}

impl<T: Multiply> pulp::WithSimd for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        for (y, w) in self.y.iter_mut().zip(self.w.chunks_exact(self.row_bytes)) {
            *y = T::store(T::dot_blocks(simd, self.kind, w, self.x));
        }
    }
}

/// One row of the matrix with one of `x`: each of 32 lanes adds its elements of all blocks, then the lanes are added by halves.
#[inline(always)]
pub(super) fn dot_f64<S>(_: S, kind: Blocks, w: &[u8], x: &[f64]) -> f64 {
    let (mut lanes, mut q) = ([0.0; BLOCK], [0.0; BLOCK]);
    for (x, w) in x.chunks(GROUP * BLOCK).zip(w.chunks(GROUP * kind.bytes())) {
        for ((x, w), d) in x.chunks_exact(BLOCK).zip(w.chunks_exact(kind.bytes())).zip(scales::<f64>(kind, w)) {
            unpack(kind, w, &mut q);
            for ((lane, x), q) in lanes.iter_mut().zip(x).zip(&q) {
                *lane = Real::mul_add(d * *q, *x, *lane);
            }
        }
    }
    fold_lanes(lanes, |a, b| a + b)
}

/// The same in f32 by vectors that are named, see [`simd::dot_vectors`](super::simd::dot_vectors).
#[inline(always)]
pub(super) fn dot_f32<S: pulp::Simd>(simd: S, kind: Blocks, w: &[u8], x: &[f32]) -> f32 {
    let mut acc = [simd.splat_f32s(0.0); BLOCK];
    let mut q = [0f32; BLOCK];
    for (x, w) in x.chunks(GROUP * BLOCK).zip(w.chunks(GROUP * kind.bytes())) {
        let scales = scales::<f32>(kind, w);
        for (i, (x, w)) in x.chunks_exact(BLOCK).zip(w.chunks_exact(kind.bytes())).enumerate() {
            unpack(kind, w, &mut q);
            let (x, q, d) = (S::as_simd_f32s(x).0, S::as_simd_f32s(&q).0, simd.splat_f32s(scales[i]));
            for i in 0..BLOCK / S::F32_LANES {
                acc[i] = simd.mul_add_f32s(simd.mul_f32s(d, q[i]), x[i], acc[i]);
            }
        }
    }
    let mut lanes = [0f32; BLOCK];
    for (lanes, acc) in S::as_mut_simd_f32s(&mut lanes).0.iter_mut().zip(acc) {
        *lanes = acc;
    }
    fold_lanes(lanes, |a, b| a + b)
}
