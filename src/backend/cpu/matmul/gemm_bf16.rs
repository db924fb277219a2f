//! Products of bf16 on processors that multiply it (AVX-512 BF16): two products and two additions in f32 by each lane of an
//! instruction, twice the arithmetic of the f32 kernels and no widened copy of the operands.
//!
//! Mapping: A is packed into panels of 12 rows and B, by the tasks, into panels of 32 columns, in both of which the elements of
//! a lane stand as pairs along K. A tile of 12 × 32 sums stays in registers over all of K: each is one chain of additions in f32
//! in the order of K, and is rounded once. Tasks follow from the sizes alone, so the bits do not depend on the number of threads.
//!
//! The instruction reads subnormal operands, below 1.2e-38, as zeros, and writes subnormal sums as such.

#![cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "there is no other instruction of this kind here"))]

use super::gemm::{Mat, Shared, check_c};
use crate::backend::cpu::math::bf16_to_f32;
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::run::par::*;
use crate::dtype::DType;
use crate::error::Result;
use half::bf16;
use std::sync::LazyLock;

/// Rows and columns of a tile: 24 registers of sums, 2 of B.
const ROWS: usize = 12;
const COLS: usize = 32;
/// Panels of A that a task takes.
const PANELS: usize = 48;
/// Rows below which packing B costs too much, and multiply-adds below which nothing is gained.
const FEW: usize = 9;
const WORK: usize = 1 << 19;
/// Pairs of K that are packed at a time: a block of panel stays in the first cache.
const STEP: usize = 16;

static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
});

/// Whether `a·b` is to be computed here.
pub(super) fn suits(a: &Mat<'_, bf16>, b: &Mat<'_, bf16>) -> bool {
    let (m, n, k) = (a.rows(), b.cols(), a.cols());
    m >= FEW && n > 0 && k > 1 && m.saturating_mul(n).saturating_mul(k) >= WORK && *AVAILABLE
}

/// C ← A·B + beta C, with rows of C `rs` apart; beta = 0 ignores what C held. Only for what [`suits`].
///
/// # Panics
/// When the sizes do not fit each other or C.
pub(super) fn product(a: Mat<'_, bf16>, b: Mat<'_, bf16>, beta: f32, c: &mut [bf16], rs: usize) -> Result<()> {
    assert_eq!(a.cols(), b.rows(), "inner sizes of a matrix product differ");
    let (m, n, pairs) = (a.rows(), b.cols(), a.cols().div_ceil(2));
    check_c(m, n, rs, c.len());
    let panels = m.div_ceil(ROWS);
    let mut packed = Buffer::alloc(DType::U32, panels * pairs * ROWS)?;
    let packed = packed.slice_mut::<u32>();
    packed.par_chunks_mut(pairs * ROWS).enumerate().for_each(|(i, panel)| pack::<ROWS>(a, i * ROWS, panel));
    let (packed, b) = (&*packed, b.transposed());
    let (groups, out) = (panels.div_ceil(PANELS), Shared::new(c));
    numbers(0..n.div_ceil(COLS) * groups).try_for_each(|task| {
        let (first, group) = (task / groups * COLS, task % groups);
        let mut panel = Buffer::alloc(DType::U32, pairs * COLS)?;
        let panel = panel.slice_mut::<u32>();
        pack::<COLS>(b, first, panel);
        let width = COLS.min(n - first);
        for i in group * PANELS..panels.min((group + 1) * PANELS) {
            let mut sums = [[0f32; COLS]; ROWS];
            tile(&packed[i * pairs * ROWS..(i + 1) * pairs * ROWS], panel, &mut sums);
            for (r, sums) in sums.iter().enumerate().take(m - i * ROWS) {
                // SAFETY: `check_c` found the window inside c, which we hold exclusively; tasks have columns or rows of their own.
                let row = unsafe { std::slice::from_raw_parts_mut(out.at((i * ROWS + r) * rs + first), width) };
                for (y, &sum) in row.iter_mut().zip(sums) {
                    *y = bf16::from_f32(if beta == 0.0 { sum } else { beta.mul_add(bf16_to_f32(y.to_bits()), sum) });
                }
            }
        }
        Ok(())
    })
}

/// Rows `first..first + W` of a matrix, as pairs of columns in the lanes of a panel; zeros beyond its borders.
fn pack<const W: usize>(x: Mat<'_, bf16>, first: usize, panel: &mut [u32]) {
    let (rows, k) = (W.min(x.rows() - first), x.cols());
    let pair = |a: bf16, b: bf16| u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
    let (whole, panel) = (k / 2, panel.as_chunks_mut::<W>().0);
    if rows < W || !k.is_multiple_of(2) {
        panel.iter_mut().for_each(|p| *p = [0; W]);
    }
    if x.has_rows() {
        for (step, block) in panel[..whole].chunks_mut(STEP).enumerate() {
            for r in 0..rows {
                let from = x.row(first + r)[step * STEP * 2..].as_chunks::<2>().0;
                for (p, [a, b]) in block.iter_mut().zip(from) {
                    p[r] = pair(*a, *b);
                }
            }
        }
    } else {
        for (i, p) in panel[..whole].iter_mut().enumerate() {
            for (r, p) in p.iter_mut().enumerate().take(rows) {
                *p = pair(x.at(first + r, 2 * i), x.at(first + r, 2 * i + 1));
            }
        }
    }
    if !k.is_multiple_of(2) {
        for r in 0..rows {
            panel[whole][r] = pair(x.at(first + r, k - 1), bf16::ZERO);
        }
    }
}

/// `sums[r][s] ← Σ a[p][r] · b[p][s]` over the pairs of two panels.
fn tile(a: &[u32], b: &[u32], sums: &mut [[f32; COLS]; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `suits` found the instructions.
    unsafe {
        avx512::tile(a.as_chunks::<ROWS>().0, b.as_chunks::<COLS>().0, sums)
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (a, b, sums);
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{COLS, ROWS};
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::transmute;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn tile(a: &[[u32; ROWS]], b: &[[u32; COLS]], sums: &mut [[f32; COLS]; ROWS]) {
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        for (a, b) in a.iter().zip(b) {
            // SAFETY: both loads lie in the 32 elements of b; the types are 64 bytes without a meaning of their own.
            let b: [__m512bh; 2] = unsafe {
                [
                    transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.as_ptr().cast())),
                    transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.as_ptr().add(16).cast())),
                ]
            };
            for r in 0..ROWS {
                // SAFETY: as above.
                let x: __m512bh = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a[r].cast_signed())) };
                acc[r] = [_mm512_dpbf16_ps(acc[r][0], x, b[0]), _mm512_dpbf16_ps(acc[r][1], x, b[1])];
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: both stores lie in the 32 elements of a row.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr(), acc[0]);
                _mm512_storeu_ps(sums.as_mut_ptr().add(16), acc[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<bf16> {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32((s >> 40) as f32 / (1u64 << 24) as f32 - 0.4)
        };
        (0..n).map(|_| next()).collect()
    }

    /// Every layout, borders of tiles and of groups, odd K, gaps between rows of C, one to three threads.
    #[test]
    fn products_are_exact_sums_rounded_once() {
        for (m, n, k) in [(9, 300, 401), (12, 32, 2000), (13, 33, 1999), (64, 100, 120), (600, 70, 65), (25, 1000, 33)] {
            for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                let (a, b) = (noise(m * k, 1), noise(n * k, 2));
                let ma = if ta { Mat::new(&a, m, k, 1, m) } else { Mat::row_major(&a, m, k) };
                let mb = if tb { Mat::new(&b, k, n, 1, k) } else { Mat::row_major(&b, k, n) };
                if !suits(&ma, &mb) {
                    assert!(!*AVAILABLE, "{m} {n} {k} is large enough");
                    continue;
                }
                let run = |threads: usize, beta: f32| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut c = vec![if beta == 0.0 { bf16::NAN } else { bf16::from_f32(2.0) }; m * (n + 3)];
                    pool.install(|| product(ma, mb, beta, &mut c, n + 3)).unwrap();
                    c
                };
                let (plain, added) = (run(1, 0.0), run(1, 0.5));
                for threads in [2, 3] {
                    let same = |x: &[bf16], y: &[bf16]| x.iter().zip(y).all(|(x, y)| x.to_bits() == y.to_bits());
                    assert!(same(&run(threads, 0.0), &plain) && same(&run(threads, 0.5), &added), "{m} {n} {k} with {threads} threads");
                }
                for i in 0..m {
                    for j in 0..n {
                        let terms = || (0..k).map(|p| ma.at(i, p).to_f64() * mb.at(p, j).to_f64());
                        let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                        let slack = 6e-8 * (k as f64).sqrt() * size;
                        for (got, want) in [(plain[i * (n + 3) + j], exact), (added[i * (n + 3) + j], exact + 1.0)] {
                            let error = (got.to_f64() - want).abs();
                            assert!(error <= want.abs() / 256.0 + slack, "{m} {n} {k} {ta} {tb} at {i}, {j}: {got} {want}");
                        }
                    }
                    assert!(plain[i * (n + 3) + n..(i + 1) * (n + 3)].iter().all(|x| x.is_nan()), "gaps stay as they were");
                }
            }
        }
    }
}
