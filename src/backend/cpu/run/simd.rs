//! Run-time CPU features, and reductions whose bits do not depend on them.
//!
//! Kernels are plain loops over slices inside [`dispatch`]: LLVM vectorises the same source once per instruction set,
//! so there is no hand-written vector code to keep in step and no `target-cpu` flag to ask of users.

use crate::backend::cpu::math::{Compute, Real};
pub(crate) use crate::instruction_set::{dispatch, dispatch_with};

/// Independent accumulators of a reduction: two AVX-512 registers of f32, enough to hide the latency of an addition,
/// and fixed, so that the order of additions is the same at every feature level.
const LANES: usize = 32;

/// Elements that one set of accumulators takes before its sum enters the pairwise tree above: each lane then adds at
/// most 64 terms, which bounds the error of a sum of n by about (64 + log2 n) rounding steps instead of n.
const BLOCK: usize = 64 * LANES;

/// Combines the lanes by halves: 32 → 16 → … → 1.
#[inline(always)]
pub(crate) fn fold_lanes<A: Copy>(acc: [A; LANES], op: impl Fn(A, A) -> A) -> A {
    // Opaque: a compiler that sees this tree and the loop before it as one pattern keeps the lanes in the tree's order, and pays
    // for it with shuffles in the loop (a plain sum took three times as long).
    let mut acc = std::hint::black_box(acc);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] = op(acc[i], acc[i + width]);
        }
        width /= 2;
    }
    acc[0]
}

/// Pairwise tree over block sums that arrive left to right: the classic binary counter, whose slot `k` holds the sum of
/// `2^k` whole blocks. No recursion, so it inlines into a feature level.
struct Pairwise<A> {
    slots: [A; 64],
    blocks: usize,
}

impl<A: Real> Pairwise<A> {
    #[inline(always)]
    fn new() -> Self {
        Self { slots: [A::ZERO; 64], blocks: 0 }
    }

    #[inline(always)]
    fn push(&mut self, mut sum: A) {
        let mut level = 0;
        while (self.blocks >> level) & 1 == 1 {
            sum = self.slots[level] + sum;
            level += 1;
        }
        self.slots[level] = sum;
        self.blocks += 1;
    }

    #[inline(always)]
    fn finish(self) -> A {
        let mut total = None;
        for level in 0..64 {
            if (self.blocks >> level) & 1 == 1 {
                total = Some(match total {
                    None => self.slots[level],
                    Some(right) => self.slots[level] + right,
                });
            }
        }
        total.unwrap_or(A::ZERO)
    }
}

/// Adds one block of at most [`BLOCK`] elements: element `i` always goes to lane `i % LANES`.
#[inline(always)]
fn block_sum<T: Copy, A: Real>(xs: &[T], step: &impl Fn(A, T) -> A) -> A {
    let mut acc = [A::ZERO; LANES];
    let (body, tail) = xs.as_chunks::<LANES>();
    for chunk in body {
        for i in 0..LANES {
            acc[i] = step(acc[i], chunk[i]);
        }
    }
    for (a, &x) in acc.iter_mut().zip(tail) {
        *a = step(*a, x);
    }
    fold_lanes(acc, |a, b| a + b)
}

/// Blocked pairwise reduction by addition; `step(acc, x)` adds the contribution of one element to an accumulator, e.g.
/// `|a, x| x.mul_add(x, a)` for a sum of squares or `|a, x| a + bf16_to_f32(x)` for a half type. Call inside [`dispatch`].
#[inline(always)]
pub(crate) fn sum_by<T: Copy, A: Real>(xs: &[T], step: impl Fn(A, T) -> A) -> A {
    // Rows of a layer are usually one block: skip the tree's 64 slots.
    if xs.len() <= BLOCK {
        return block_sum(xs, &step);
    }
    let mut tree = Pairwise::new();
    for block in xs.chunks(BLOCK) {
        tree.push(block_sum(block, &step));
    }
    tree.finish()
}

/// Sum of a slice; 0 when empty. Call inside [`dispatch`].
#[inline(always)]
pub(crate) fn sum<T: Real>(xs: &[T]) -> T {
    sum_by(xs, |a, x| a + x)
}

/// One block of [`dot_by`].
#[inline(always)]
fn block_dot<T: Copy, U: Copy, A: Real>(xs: &[T], ys: &[U], step: &impl Fn(A, T, U) -> A) -> A {
    let mut acc = [A::ZERO; LANES];
    let (xb, xt) = xs.as_chunks::<LANES>();
    let (yb, yt) = ys.as_chunks::<LANES>();
    for (x, y) in xb.iter().zip(yb) {
        for i in 0..LANES {
            acc[i] = step(acc[i], x[i], y[i]);
        }
    }
    for ((a, &x), &y) in acc.iter_mut().zip(xt).zip(yt) {
        *a = step(*a, x, y);
    }
    fold_lanes(acc, |a, b| a + b)
}

/// [`sum_by`] over two slices of one length.
///
/// # Panics
/// When the lengths differ.
#[inline(always)]
pub(crate) fn dot_by<T: Copy, U: Copy, A: Real>(xs: &[T], ys: &[U], step: impl Fn(A, T, U) -> A) -> A {
    assert_eq!(xs.len(), ys.len(), "dot of slices of different lengths");
    if xs.len() <= BLOCK {
        return block_dot(xs, ys, &step);
    }
    let mut tree = Pairwise::new();
    for (x, y) in xs.chunks(BLOCK).zip(ys.chunks(BLOCK)) {
        tree.push(block_dot(x, y, &step));
    }
    tree.finish()
}

/// Dot product with fused multiply-adds; 0 when empty. Call inside [`dispatch`].
///
/// # Panics
/// When the lengths differ.
#[inline(always)]
pub(crate) fn dot<T: Real>(xs: &[T], ys: &[T]) -> T {
    dot_by(xs, ys, |a: T, x: T, y: T| x.mul_add(y, a))
}

/// The bits of [`dot_by`] with fused multiply-adds, by vectors that are named: among more code than a plain reduction LLVM gives
/// up and multiplies one by one. Call inside [`dispatch_with`].
///
/// # Panics
/// When the lengths differ.
#[inline(always)]
pub(crate) fn dot_vectors<S: pulp::Simd, T: Compute<Acc = f32>>(simd: S, xs: &[T], ys: &[f32]) -> f32 {
    assert_eq!(xs.len(), ys.len(), "dot of slices of different lengths");
    if xs.len() <= BLOCK {
        return block_dot_vectors(simd, xs, ys);
    }
    let mut tree = Pairwise::new();
    for (x, y) in xs.chunks(BLOCK).zip(ys.chunks(BLOCK)) {
        tree.push(block_dot_vectors(simd, x, y));
    }
    tree.finish()
}

/// One block of [`dot_vectors`].
#[inline(always)]
fn block_dot_vectors<S: pulp::Simd, T: Compute<Acc = f32>>(simd: S, xs: &[T], ys: &[f32]) -> f32 {
    // As many as hold the lanes; the others are never touched.
    let mut acc = [simd.splat_f32s(0.0); LANES];
    let (xb, xt) = xs.as_chunks::<LANES>();
    let (yb, yt) = ys.as_chunks::<LANES>();
    let mut wide = [0f32; LANES];
    for (x, y) in xb.iter().zip(yb) {
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = x.load();
        }
        let (x, y) = (S::as_simd_f32s(&wide).0, S::as_simd_f32s(y).0);
        for i in 0..LANES / S::F32_LANES {
            acc[i] = simd.mul_add_f32s(x[i], y[i], acc[i]);
        }
    }
    let mut lanes = [0f32; LANES];
    for (lanes, acc) in S::as_mut_simd_f32s(&mut lanes).0.iter_mut().zip(acc) {
        *lanes = acc;
    }
    for ((a, x), &y) in lanes.iter_mut().zip(xt).zip(yt) {
        *a = x.load().mul_add(y, *a);
    }
    fold_lanes(lanes, |a, b| a + b)
}

/// Largest element, NaN when there is one, -∞ when empty. Call inside [`dispatch`].
#[inline(always)]
pub(crate) fn max<T: Real>(xs: &[T]) -> T {
    let mut acc = [T::NEG_INFINITY; LANES];
    let (body, tail) = xs.as_chunks::<LANES>();
    for chunk in body {
        for i in 0..LANES {
            acc[i] = acc[i].max_nan(chunk[i]);
        }
    }
    for (a, &x) in acc.iter_mut().zip(tail) {
        *a = a.max_nan(x);
    }
    fold_lanes(acc, |a, b| a.max_nan(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<f32> {
        let mut s = 0x9E37_79B9_7F4A_7C15u64;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (s >> 40) as f32 / (1u64 << 24) as f32 - 0.4
            })
            .collect()
    }

    const LENGTHS: [usize; 14] = [0, 1, 2, 31, 32, 33, 100, 2047, 2048, 2049, 4096, 10_000, 65_537, 1_000_003];

    #[test]
    fn reductions_are_accurate_at_every_length() {
        for n in LENGTHS {
            let x = noise(n);
            let y: Vec<f32> = noise(n + 7)[7..].to_vec();
            let exact: f64 = x.iter().map(|&v| v as f64).sum();
            let size: f64 = x.iter().map(|&v| v.abs() as f64).sum();
            let got = dispatch(
                #[inline(always)]
                || sum(&x),
            ) as f64;
            assert!((got - exact).abs() <= 4e-7 * size, "sum of {n}: {got} {exact}");
            let exact: f64 = x.iter().zip(&y).map(|(&a, &b)| a as f64 * b as f64).sum();
            let got = dispatch(
                #[inline(always)]
                || dot(&x, &y),
            ) as f64;
            assert!((got - exact).abs() <= 4e-7 * size, "dot of {n}: {got} {exact}");
            let exact = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(
                dispatch(
                    #[inline(always)]
                    || max(&x)
                ),
                exact
            );
        }
    }

    #[test]
    fn every_feature_level_gives_the_same_bits() {
        for n in LENGTHS {
            let (x, y) = (noise(n), noise(n));
            let native = dispatch(
                #[inline(always)]
                || (sum(&x), dot(&x, &y), max(&x)),
            );
            let base = (sum(&x), dot(&x, &y), max(&x));
            struct Named<'a>(&'a [f32], &'a [f32]);
            impl pulp::WithSimd for Named<'_> {
                type Output = f32;
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, simd: S) -> f32 {
                    dot_vectors(simd, self.0, self.1)
                }
            }
            let by_name = [dispatch_with(Named(&x, &y)), pulp::WithSimd::with_simd(Named(&x, &y), pulp::Scalar::new())];
            assert!(by_name.iter().all(|d| d.to_bits() == base.1.to_bits()), "{n}: {by_name:?}");
            assert_eq!(native.0.to_bits(), base.0.to_bits());
            assert_eq!(native.1.to_bits(), base.1.to_bits());
            assert_eq!(native.2.to_bits(), base.2.to_bits());
        }
    }

    #[test]
    fn max_keeps_a_nan_wherever_it_stands() {
        for at in [0, 5, 31, 32, 63, 64, 69] {
            let mut x = noise(70);
            x[at] = f32::NAN;
            assert!(
                dispatch(
                    #[inline(always)]
                    || max(&x)
                )
                .is_nan(),
                "NaN at {at}"
            );
        }
        assert_eq!(max::<f64>(&[]), f64::NEG_INFINITY);
    }

    #[test]
    fn tree_adds_whole_blocks_by_pairs() {
        // 2^24 ones: a running f32 sum would still be right, 2^25 would stick at 2^24.
        let ones = vec![1f32; 1 << 25];
        assert_eq!(
            dispatch(
                #[inline(always)]
                || sum(&ones)
            ),
            (1 << 25) as f32
        );
    }
}
