//! How quantised matrices are stored, in blocks of 32 with one scale, and what reads them: expansion, and dot products with a row.

use crate::backend::cpu::math::{Compute, Real, f16_to_f32};
use crate::backend::cpu::run::par::*;
use crate::backend::cpu::run::simd::{dispatch, fold_lanes};

/// Elements of a block.
pub(crate) const BLOCK: usize = 32;
/// Blocks whose scales are converted at once.
const GROUP: usize = 16;

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

/// The same in f32 by vectors that are named, see [`simd::dot_vectors`](crate::backend::cpu::run::simd::dot_vectors).
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
