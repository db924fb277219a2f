//! Standard normal numbers in f32, many at a time.
//!
//! Box & Muller's transform on the words of a [`Key`]'s blocks: a radius from 31 bits of one word, an angle from all of the next. Block
//! `j` gives elements `4j` to `4j + 3`, so a number depends on key and index only. The functions are those of [`math`](super::math),
//! without branches and rounded alike at every feature level: so the bits are the same on every instruction set and for one number
//! alone.

use super::map::Compute;
use super::math::{ln_core_f32, sin_cos_near_f32, split_f32};
use super::par::*;
use super::simd;
use crate::rng::{BLOCKS, Key};

/// Elements that one parallel task fills: whole blocks, fixed, though values would not depend on it.
const CHUNK: usize = 1 << 14;

/// `√(−2 ln u)` for `u = 1 − (word/2 + ½)·2⁻³¹`, in (0, 6.67]. Near 1 the logarithm is that of the rest, near 0 of `u` itself, both
/// taken from the integer: neither side loses digits.
#[inline(always)]
fn radius(word: u32) -> f32 {
    const UNIT: f32 = 1.0 / (1u32 << 31) as f32;
    let v = (word >> 1) as i32;
    let rest = (v as f32 + 0.5) * UNIT;
    let u = ((i32::MAX - v) as f32 + 0.5) * UNIT;
    let (e, m) = split_f32(u);
    let near = rest < 0.25;
    let (e, f) = if near { (0.0, -rest) } else { (e as f32, m - 1.0) };
    (-2.0 * ln_core_f32(e, f)).sqrt()
}

/// Two independent normals from two words: the cosine and the sine of one angle.
#[inline(always)]
fn pair(first: u32, second: u32) -> [f32; 2] {
    let r = radius(first);
    // Two bits choose the quadrant; the rest, centred, is an angle within ±π/4.
    let angle = (second << 2) as i32 as f32 * (std::f32::consts::FRAC_PI_2 / 4_294_967_296.0);
    let (s, c) = sin_cos_near_f32(angle, 0.0);
    let (x, y) = if second & (1 << 30) == 0 { (c, s) } else { (s, c) };
    // Quadrants 0 to 3: (c, s), (−s, c), (−c, −s), (s, −c).
    let x = f32::from_bits(x.to_bits() ^ ((second ^ (second << 1)) & (1 << 31)));
    let y = f32::from_bits(y.to_bits() ^ (second & (1 << 31)));
    [r * x, r * y]
}

#[inline(always)]
fn put<T: Compute<Acc = f32>>(mean: f32, std: f32, z: f32) -> T {
    T::store(z.mul_add(std, mean))
}

/// `out[i] = mean + std·z` for the normal numbers `z` of the key from element `start` on, in parallel.
pub(crate) fn fill<T: Compute<Acc = f32>>(key: Key, start: u64, out: &mut [T], mean: f32, std: f32) {
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(c, chunk)| {
        let at = start.wrapping_add((c * CHUNK) as u64);
        // What stands before the first whole block, which is drawn alone.
        let lead = ((at.wrapping_neg() % 4) as usize).min(chunk.len());
        let (head, body) = chunk.split_at_mut(lead);
        let b = key.u32x4(at / 4);
        let first = [pair(b[0], b[1]), pair(b[2], b[3])];
        for (j, x) in head.iter_mut().enumerate() {
            *x = put(mean, std, first.as_flattened()[(at % 4) as usize + j]);
        }
        let first = at.wrapping_add(lead as u64) / 4;
        simd::dispatch(
            #[inline(always)]
            || {
                let mut z = [0f32; 4 * BLOCKS];
                for (j, part) in body.chunks_mut(4 * BLOCKS).enumerate() {
                    let [a, b, c, d] = key.blocks(first.wrapping_add((BLOCKS * j) as u64));
                    let (mut p, mut q) = ([[0f32; BLOCKS]; 2], [[0f32; BLOCKS]; 2]);
                    for i in 0..BLOCKS {
                        [p[0][i], p[1][i]] = pair(a[i], b[i]);
                    }
                    for i in 0..BLOCKS {
                        [q[0][i], q[1][i]] = pair(c[i], d[i]);
                    }
                    for i in 0..BLOCKS {
                        z[4 * i] = p[0][i];
                        z[4 * i + 1] = p[1][i];
                        z[4 * i + 2] = q[0][i];
                        z[4 * i + 3] = q[1][i];
                    }
                    for (x, &z) in part.iter_mut().zip(&z) {
                        *x = put(mean, std, z);
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One number by itself, at the baseline's level.
    fn alone(key: Key, i: u64) -> f32 {
        let b = key.u32x4(i / 4);
        [pair(b[0], b[1]), pair(b[2], b[3])].as_flattened()[(i % 4) as usize]
    }

    #[test]
    fn bulk_is_one_by_one_from_any_start() {
        let key = Key::new(5).fold(9);
        for start in [0u64, 1, 2, 3, 5, 64, (1 << 34) - 7] {
            for n in [0usize, 1, 3, 4, 65, 255, 256, 1000, CHUNK + 77] {
                let mut z = vec![0f32; n];
                fill(key, start, &mut z, 0.0, 1.0);
                for (j, z) in z.iter().enumerate() {
                    assert_eq!(z.to_bits(), alone(key, start.wrapping_add(j as u64)).to_bits(), "{start} {n} {j}");
                }
            }
        }
    }

    /// Against the same transform of the same words in f64.
    #[test]
    fn each_number_is_the_transform_to_rounding() {
        let key = Key::new(3);
        let words = [0, 1, 2, 3, 1 << 30, (1 << 30) - 1, 1 << 31, u32::MAX, u32::MAX - 1, u32::MAX - 2, 0x4aff_ffff, 0x2555_5555];
        let drawn = (0..40_000).map(|i| [key.u32(2 * i), key.u32(2 * i + 1)]);
        for [a, b] in words.iter().flat_map(|&a| words.map(|b| [a, b])).chain(drawn) {
            let rest = (f64::from(a >> 1) + 0.5) / f64::from(1u32 << 31);
            let r = (-2.0 * (-rest).ln_1p()).sqrt();
            // The quadrant's centre is at its first word: turn = (quadrant + centred rest) of a circle.
            let angle = (f64::from(b >> 30) + f64::from((b << 2) as i32) / 4_294_967_296.0) * std::f64::consts::FRAC_PI_2;
            let [x, y] = pair(a, b).map(f64::from);
            for (got, want) in [(x, r * angle.cos()), (y, r * angle.sin())] {
                assert!((got - want).abs() <= 3e-7 * (r + want.abs()) && got.is_finite(), "{a:#x} {b:#x}: {got}, should be {want}");
            }
        }
        assert!(radius(0) > 0.0 && radius(u32::MAX) < 6.67 && radius(u32::MAX) > 6.66);
    }

    /// Moments, neighbours, the distribution function, and the tails' shares.
    #[test]
    fn numbers_are_normal() {
        let n = 1_000_000;
        for seed in [0, 1, u64::MAX] {
            let mut z = vec![0f32; n];
            fill(Key::new(seed), 0, &mut z, 0.0, 1.0);
            let mut z: Vec<f64> = z.into_iter().map(f64::from).collect();
            let count = n as f64;
            let moment = |k: i32| z.iter().map(|v| v.powi(k)).sum::<f64>() / count;
            // Means and variances of the powers of a normal number: 0, 1; 1, 2; 0, 15; 3, 96.
            for (k, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
                assert!((moment(k) - want).abs() < 5.0 * f64::sqrt(variance / count), "moment {k}: {}", moment(k));
            }
            for lag in 1..=5 {
                let c = z.windows(lag + 1).map(|w| w[0] * w[lag]).sum::<f64>() / count;
                let squares = z.windows(lag + 1).map(|w| (w[0] * w[0] - 1.0) * (w[lag] * w[lag] - 1.0)).sum::<f64>() / count;
                assert!(c.abs() < 5.0 / count.sqrt() && squares.abs() < 10.0 / count.sqrt(), "lag {lag}: {c}, {squares}");
            }
            for (beyond, share) in [(2.0, 0.045_500_26), (3.0, 0.002_699_796), (4.0, 6.334e-5)] {
                let found = z.iter().filter(|v| v.abs() > beyond).count() as f64 / count;
                assert!((found - share).abs() < 5.0 * f64::sqrt(share / count), "beyond {beyond}: {found}");
            }
            z.sort_by(f64::total_cmp);
            let cdf = |x: f64| 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
            let d = z.iter().enumerate().map(|(i, &a)| (cdf(a) - (i as f64 + 0.5) / count).abs()).fold(0.0, f64::max);
            assert!(d * count.sqrt() < 2.2, "Kolmogorov & Smirnov: {d}");
        }
    }
}
