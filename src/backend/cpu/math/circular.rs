//! Sine and cosine.

use super::Real as _;
use std::f64::consts as c64;

/// π/2 in three parts of 24 bits.
const FRAC_PI_2: [f32; 3] = [1.570_796_4, -4.371_139e-8, -1.715_124_5e-15];

/// Whether the vectorised forms serve: beyond, Cody & Waite's reduction runs out of digits. False for NaN.
#[inline(always)]
pub(crate) fn is_near_f32(x: f32) -> bool {
    x.abs() < 65_536.0
}

/// x = n π/2 + w + lost with |w| ≤ 0.79: Cody & Waite's reduction, whose first step is exact and whose third makes up for the
/// roundings of the second (Knuth's two-sum: near a multiple of π/2 either of its operands may be the larger).
#[inline(always)]
fn reduce_near_f32(x: f32) -> (u32, f32, f32) {
    let t = x.mul_add(std::f32::consts::FRAC_2_PI, super::ROUND_F32);
    let n = t - super::ROUND_F32;
    let a = n.mul_add(-FRAC_PI_2[0], x);
    let b = n * -FRAC_PI_2[1];
    let w = a + b;
    let from_b = w - a;
    let lost = (a - (w - from_b)) + (b - from_b);
    let lost = lost + n.mul_add(-FRAC_PI_2[1], -b);
    let lost = n.mul_add(-FRAC_PI_2[2], lost);
    (t.to_bits(), w, lost)
}

/// sin(w + lost) and cos(w + lost). What a square or a first subtraction loses is taken in: each result is rounded about once.
#[inline(always)]
pub(crate) fn sin_cos_near_f32(w: f32, lost: f32) -> (f32, f32) {
    let z = w * w;
    let p = poly!(z, -0.166_666_67, 0.008_333_332, -0.000_198_399_57, 2.723_350_2e-6);
    let s = w + (z * w).mul_add(p, lost);
    let q = poly!(z, 0.041_666_664, -0.001_388_823_9, 2.453_438_6e-5);
    let u = z.mul_add(-0.5, 1.0);
    let residue = z.mul_add(-0.5, 1.0 - u);
    // Half the rounding error of z, and the slope of the cosine times what the reduction lost.
    let square = w.mul_add(w, -z);
    let tail = w.mul_add(-lost, square.mul_add(-0.5, residue));
    (s, u + (z * z).mul_add(q, tail))
}

/// sin x for [near](is_near_f32) x.
#[inline(always)]
pub(crate) fn sin_near_f32(x: f32) -> f32 {
    let (n, w, lost) = reduce_near_f32(x);
    let (s, c) = sin_cos_near_f32(w, lost);
    let y = if n & 1 == 0 { s } else { c };
    let y = f32::from_bits(y.to_bits() ^ ((n & 2) << 30));
    // Keeps -0.
    if x == 0.0 { x } else { y }
}

/// cos x for [near](is_near_f32) x.
#[inline(always)]
pub(crate) fn cos_near_f32(x: f32) -> f32 {
    let (n, w, lost) = reduce_near_f32(x);
    let (s, c) = sin_cos_near_f32(w, lost);
    let y = if n & 1 == 0 { c } else { s };
    f32::from_bits(y.to_bits() ^ ((n.wrapping_add(1) & 2) << 30))
}

/// sin x, for every f32. Loops over many angles take [`sin_near_f32`] and mend the few far ones.
#[inline(always)]
pub(crate) fn sin_f32(x: f32) -> f32 {
    if is_near_f32(x) { sin_near_f32(x) } else { sin_far_f32(x) }
}

/// cos x, for every f32.
#[inline(always)]
pub(crate) fn cos_f32(x: f32) -> f32 {
    if is_near_f32(x) { cos_near_f32(x) } else { cos_far_f32(x) }
}

/// The first 256 bits of 2/π.
const TWO_OVER_PI: [u64; 4] = [0xa2f9_836e_4e44_1529, 0xfc27_57d1_f534_ddc0, 0xdb62_9599_3c43_9041, 0xfe51_63ab_debb_c561];

/// `TURN[k]` is 2ᵏ · 2/π modulo 4 in two parts: 29 leading bits, so that a 24-bit integer times it is exact in f64, and the
/// next 53. This is Payne & Hanek's reduction for the one case of f32, computed by the compiler.
static TURN: [[f64; 2]; 128] = {
    const fn bits(from: i32, count: i32) -> u64 {
        let mut v = 0;
        let mut i = from;
        while i < from + count {
            // Negative positions stand before the binary point, where 2/π has no bits.
            let bit = if i < 0 { 0 } else { (TWO_OVER_PI[(i / 64) as usize] >> (63 - i % 64)) & 1 };
            v = (v << 1) | bit;
            i += 1;
        }
        v
    }
    let mut table = [[0.0; 2]; 128];
    let mut k = 0;
    while k < 128 {
        // Bit 0 weighs ½; after the shift by k, bits from k - 2 weigh less than 4.
        table[k][0] = bits(k as i32 - 2, 29) as f64 / (1u64 << 27) as f64;
        table[k][1] = bits(k as i32 + 27, 53) as f64 / (1u64 << 40) as f64 / (1u64 << 40) as f64;
        k += 1;
    }
    table
};

/// x = (quadrant + r) · π/2: the quadrant modulo 4 and r · π/2 with |r| ≤ 0.57, in f64, exact enough for every finite f32.
#[inline(always)]
fn reduce_turn_f32(x: f32) -> (u64, f64) {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵², as ROUND_F32
    let a = x.abs();
    // |x| = m · 2ᵏ with m < 2²⁴; numbers below 2²⁴ stay what they are, with k = 0.
    let big = a >= 16_777_216.0;
    let k = if big { (a.to_bits() >> 23).wrapping_sub(150) } else { 0 } & 127;
    let m = f32::from_bits(if big { (a.to_bits() & 0x007f_ffff) | 0x4b00_0000 } else { a.to_bits() }) as f64;
    let [hi, lo] = TURN[k as usize];
    // For k = 0 and a fractional m the product still fits: 24 + 29 bits.
    let turns = m * hi;
    let rounded = turns + ROUND;
    let r = m.mul_add(lo, turns - (rounded - ROUND));
    (rounded.to_bits(), r * c64::FRAC_PI_2)
}

/// sin and cos of a reduced angle by Taylor's series in f64, where its error (3e-11 at 0.9) is far below an f32 ulp.
#[inline(always)]
fn sin_cos_poly(r: f64) -> (f64, f64) {
    let r2 = r * r;
    let s = poly!(r2, 1.0, -1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0) * r;
    let c = poly!(r2, 1.0, -0.5, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0, 1.0 / 479_001_600.0);
    (s, c)
}

/// sin x by [`reduce_turn_f32`]: right for every finite f32. Its table keeps loops from vectorising.
#[inline(always)]
fn sin_far_f32(x: f32) -> f32 {
    let (q, r) = reduce_turn_f32(x);
    let (s, c) = sin_cos_poly(r);
    let y = if q & 1 == 0 { s } else { c };
    let y = if q & 2 == 0 { y } else { -y };
    let y = if x < 0.0 { -y } else { y } as f32;
    // Keeps -0, and subnormals, for which the product with π/2 in f64 is harmless but pointless.
    let y = if x.abs() < 1e-5 { x } else { y };
    if x.abs() < f32::INFINITY { y } else { f32::NAN }
}

/// cos x by [`reduce_turn_f32`].
#[inline(always)]
fn cos_far_f32(x: f32) -> f32 {
    let (q, r) = reduce_turn_f32(x);
    let (s, c) = sin_cos_poly(r);
    let y = if q & 1 == 0 { c } else { s };
    let y = if (q.wrapping_add(1)) & 2 == 0 { y } else { -y } as f32;
    if x.abs() < f32::INFINITY { y } else { f32::NAN }
}
