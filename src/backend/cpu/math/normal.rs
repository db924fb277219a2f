//! Standard normal numbers in f32, many at a time.
//!
//! [`Key::normal`]'s transform of the same blocks, in f32: block `j` gives elements `2j` and `2j + 1`, a radius from 53 bits and an angle
//! from the next 34. So a number is that of f64 to a few roundings, and a model that is drawn in two types is the same model. The
//! functions are those of [`math`](super), without branches and rounded alike at every feature level: the bits are the same on every
//! instruction set and for one number alone.

use super::{Compute, ln_core_f32, sin_cos_near_f32, split_f32};
use crate::rng::Key;

/// A word as a number, rounded once: its halves are exact, and signed conversions are vector instructions everywhere.
#[inline(always)]
fn number(word: u32) -> f32 {
    ((word >> 16) as i32 as f32).mul_add(65_536.0, (word & 0xffff) as i32 as f32)
}

/// `√(−2 ln u)` for `u = (v + 1)·2⁻⁵³`, where `v` is the upper 53 of 64 bits. Near 1 the logarithm is that of the rest `1 − u`, near 0 of `u`
/// itself, both from the integer: neither side loses digits.
#[inline(always)]
fn radius(lo: u32, hi: u32) -> f32 {
    const HI: f32 = 1.0 / (1u64 << 32) as f32;
    const LO: f32 = 1.0 / (1u64 << 53) as f32;
    let low = (lo >> 11) as i32;
    let u = number(hi).mul_add(HI, (low + 1) as f32 * LO);
    let rest = number(!hi).mul_add(HI, (0x1f_ffff - low) as f32 * LO);
    let (e, m) = split_f32(u);
    let near = rest < 0.25;
    let (e, f) = if near { (0.0, -rest) } else { (e as f32, m - 1.0) };
    (-2.0 * ln_core_f32(e, f)).abs().sqrt()
}

/// Two independent normals from a block: the cosine and the sine of one angle.
#[inline(always)]
fn pair(b: [u32; 4]) -> [f32; 2] {
    let r = radius(b[0], b[1]);
    let turn = b[3];
    // Two bits choose the quadrant; the rest, centred, is an angle within ±π/4.
    let angle = (turn << 2 | b[2] >> 30) as i32 as f32 * (std::f32::consts::FRAC_PI_2 / 4_294_967_296.0);
    let (s, c) = sin_cos_near_f32(angle, 0.0);
    let (x, y) = if turn & (1 << 30) == 0 { (c, s) } else { (s, c) };
    // Quadrants 0 to 3: (c, s), (−s, c), (−c, −s), (s, −c).
    let x = f32::from_bits(x.to_bits() ^ ((turn ^ (turn << 1)) & (1 << 31)));
    let y = f32::from_bits(y.to_bits() ^ (turn & (1 << 31)));
    [r * x, r * y]
}

/// `out[i] = mean + std·z` for the normal numbers `z` of the key from element `start` on, in parallel.
pub(crate) fn fill<T: Compute<Acc = f32>>(key: Key, start: u64, out: &mut [T], mean: f32, std: f32) {
    key.fill_pairs(
        start,
        out,
        #[inline(always)]
        move |b| pair(b).map(|z| T::store(z.mul_add(std, mean))),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One number by itself, at the baseline's level.
    fn alone(key: Key, i: u64) -> f32 {
        pair(key.u32x4(i / 2))[(i % 2) as usize]
    }

    #[test]
    fn bulk_is_one_by_one_from_any_start() {
        let key = Key::new(5).fold(9);
        for start in [0u64, 1, 2, 3, 5, 64, (1 << 34) - 7] {
            for n in [0usize, 1, 3, 4, 65, 127, 128, 1000, (1 << 14) + 77] {
                let mut z = vec![0f32; n];
                fill(key, start, &mut z, 0.0, 1.0);
                for (j, z) in z.iter().enumerate() {
                    assert_eq!(z.to_bits(), alone(key, start.wrapping_add(j as u64)).to_bits(), "{start} {n} {j}");
                }
            }
        }
    }

    /// Against the same transform of the same block in f64.
    #[test]
    fn each_number_is_that_of_f64_to_rounding() {
        let key = Key::new(3);
        let words = [0, 1, 1 << 11, 1 << 30, (1 << 30) - 1, 1 << 31, u32::MAX, u32::MAX - 1, 0x4aff_ffff, 0x2555_5555];
        let edges = words.iter().flat_map(|&a| words.iter().flat_map(move |&b| words.map(|c| [a, b, a ^ c, c])));
        for b in edges.chain((0..100_000).map(|i| key.u32x4(i))) {
            let want = crate::rng::normal_pair(b);
            let radius = want[0].hypot(want[1]);
            for (got, want) in pair(b).map(f64::from).into_iter().zip(want) {
                assert!((got - want).abs() <= 3e-7 * (radius + want.abs()) && got.is_finite(), "{b:?}: {got}, should be {want}");
            }
        }
        assert!(radius(0, 0) > 8.57 && radius(0, 0) < 8.58 && radius(u32::MAX, u32::MAX) == 0.0);
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
