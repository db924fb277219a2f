//! Powers of f32, computed in f64: the exponent times the logarithm needs digits that f32 does not have.

use super::Real as _;

/// 1.5 · 2⁵²: adding it rounds to an integer and leaves that integer in the low mantissa bits.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;

/// log₂ a for a positive finite number, relative error 2⁻³⁷: e + 2/ln 2 · artanh s with s = (m − 1) / (m + 1).
#[inline(always)]
fn log2_of(a: f64) -> f64 {
    /// √½.
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let shifted = a.to_bits().wrapping_add(0x3ff0_0000_0000_0000 - SQRT_HALF);
    let m = f64::from_bits((shifted & 0x000f_ffff_ffff_ffff).wrapping_add(SQRT_HALF));
    // The biased exponent as the mantissa of 2⁵²: no conversion instruction, which AVX2 lacks.
    let e = f64::from_bits((shifted >> 52) | 0x4330_0000_0000_0000) - (4_503_599_627_370_496.0 + 1023.0);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let p = poly!(
        z,
        2.885_390_081_790_013_5,
        0.961_796_673_415_497_4,
        0.577_083_573_363_693_4,
        0.411_673_299_141_158_1,
        0.340_721_114_954_929_5
    );
    s.mul_add(p, e)
}

/// 2ᵗ, relative error 2⁻²⁸: 0 below 2⁻¹⁰²² and infinite from about 2¹⁰²³·⁵, far beyond f32. NaN stays.
#[inline(always)]
fn exp2_of(t: f64) -> f64 {
    let t = if t > 1024.0 { 1024.0 } else { t };
    let t = if t < -1023.0 { -1023.0 } else { t };
    let shifted = t + ROUND_F64;
    let f = t - (shifted - ROUND_F64);
    // The bits of 2¹⁰²⁴ and 2⁻¹⁰²³ so made are those of ∞ and 0.
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let p = poly!(
        f,
        1.0,
        0.693_147_206_702_832_6,
        0.240_226_509_222_887_58,
        0.055_503_272_266_703_02,
        0.009_618_056_678_524_638,
        0.001_340_042_817_761_583_8,
        0.000_154_614_446_985_691_3
    );
    p * scale
}

/// xᵖ, as f64: precise to f32, but with room beyond its range for the factors of a derivative. Special values as IEEE pow.
#[inline(always)]
pub(crate) fn pow_wide_f32(x: f32, p: f64) -> f64 {
    let a = x.abs() as f64;
    let log = log2_of(a);
    let log = if a == 0.0 { f64::NEG_INFINITY } else { log };
    // Also takes NaN over.
    let log = if a < f64::INFINITY { log } else { a };
    let y = exp2_of(p * log);
    let half = p * 0.5;
    let whole = p.trunc() == p;
    let odd = whole & (half.trunc() != half);
    let y = if (x < 0.0) & (a < f64::INFINITY) & !whole { f64::NAN } else { y };
    let y = if odd { y.copysign(x as f64) } else { y };
    // 1 to any power, −1 to ±∞, anything to the power 0: 1 even where the other operand is NaN.
    let one = (p == 0.0) | (x == 1.0) | ((x == -1.0) & (p.abs() == f64::INFINITY));
    if one { 1.0 } else { y }
}

/// xⁿ as f64 for −31 ≤ n ≤ 31, by squaring: exact or nearly so in f64. All steps are taken and the unwanted dropped, so that a
/// loop over x has no branch.
#[inline(always)]
pub(crate) fn powi_small_f32(x: f32, n: i32) -> f64 {
    let bits = n.unsigned_abs();
    let (mut product, mut square) = (1.0, x as f64);
    product = if bits & 1 != 0 { square } else { product };
    square *= square;
    product = if bits & 2 != 0 { product * square } else { product };
    square *= square;
    product = if bits & 4 != 0 { product * square } else { product };
    square *= square;
    product = if bits & 8 != 0 { product * square } else { product };
    square *= square;
    product = if bits & 16 != 0 { product * square } else { product };
    if n < 0 { 1.0 / product } else { product }
}
