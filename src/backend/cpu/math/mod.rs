//! Elementary functions for inner loops.
//!
//! The f32 versions have no branches, tables of floats or calls, so a loop over them vectorises (inside
//! `simd::dispatch`). Polynomials were fitted for this file (weighted least squares on Chebyshev nodes,
//! reweighted towards the minimax solution, in 40 digits); reductions are the textbook ones (Cody & Waite, *Software Manual
//! for the Elementary Functions*; Muller, *Elementary Functions*). Bounds are tested in `tests.rs` over all exponents.
//! The f64 versions are the scalar functions of std and libm: f64 serves checks, not training.

/// Evaluates a polynomial by Horner's rule, lowest coefficient first: independent vectors overlap, so its chain costs nothing.
macro_rules! poly {
    ($x:expr, $c:expr) => { $c };
    ($x:expr, $c:expr, $($rest:expr),+) => { poly!($x, $($rest),+).mul_add($x, $c) };
}

mod circular;
mod compute;
mod half_types;
pub(crate) mod normal;
mod power;

use std::f64::consts as c64;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use circular::sin_cos_near_f32;
pub(crate) use circular::{cos_f32, sin_f32};
pub use compute::Compute;
pub(crate) use compute::Number;
pub(crate) use half_types::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// A type that kernels compute in: f32 or f64. Half types are stored, never computed in.
///
/// All methods are `#[inline(always)]` and meant for loops inside `simd::dispatch`.
pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Default
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// 1/2.
    const HALF: Self;
    /// +∞.
    const INFINITY: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// A quiet NaN.
    const NAN: Self;
    /// Up to here [`powi_small`](Self::powi_small) serves.
    const SMALL_POWER: u32;

    /// Nearest value.
    fn from_f64(x: f64) -> Self;
    /// The value, exactly.
    fn to_f64(self) -> f64;
    /// `self * a + b`, rounded once at every feature level: where the instruction is missing (x86 before 2013) it is a
    /// library call, slow but with the same bits.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Largest integer not above.
    fn floor(self) -> Self;
    /// Smallest integer not below.
    fn ceil(self) -> Self;
    /// Integer part.
    fn trunc(self) -> Self;
    /// Nearest integer, ties to even.
    fn round_ties_even(self) -> Self;
    /// This magnitude with another sign.
    fn copysign(self, sign: Self) -> Self;
    /// eˣ.
    fn exp(self) -> Self;
    /// eˣ − 1 without cancellation near 0.
    fn expm1(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// ln(1 + x) without cancellation near 0.
    fn ln_1p(self) -> Self;
    /// Sine, for arguments of any size.
    fn sin(self) -> Self;
    /// Cosine, for arguments of any size.
    fn cos(self) -> Self;
    /// Whether [`sin_near`](Self::sin_near) and [`cos_near`](Self::cos_near) serve for this angle. False for NaN.
    fn is_near_angle(self) -> bool;
    /// The sine of a near angle, without branches; garbage for others, never a trap.
    fn sin_near(self) -> Self;
    /// The cosine of a near angle.
    fn cos_near(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Φ(x), the standard normal distribution function, with full relative accuracy in the left tail.
    fn normal_cdf(self) -> Self;
    /// φ(x) = Φ′(x).
    fn normal_pdf(self) -> Self;
    /// `self` to a real power, special values as IEEE pow. In f64 the scalar std function, so it does not vectorise.
    fn powf(self, p: Self) -> Self;
    /// `self` to an f64 power, as f64: as precise as this type, with room beyond its range.
    fn powf_wide(self, p: f64) -> f64;

    /// `self` to an integer power: exact products for the small powers that models use, else through `powf`.
    fn powi(self, n: i32) -> Self;
    /// `self` to an integer power of at most [`SMALL_POWER`](Self::SMALL_POWER) + 1, as f64: as precise as this type, with room
    /// beyond its range. In f32 without branches.
    fn powi_small(self, n: i32) -> f64;

    /// 1/x.
    #[inline(always)]
    fn recip(self) -> Self {
        Self::ONE / self
    }

    /// Whether it is NaN.
    #[inline(always)]
    #[allow(clippy::eq_op, reason = "the definition of NaN, and it vectorises")]
    fn is_nan(self) -> bool {
        self != self
    }

    /// Whether it is neither NaN nor infinite.
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.abs() < Self::INFINITY
    }

    /// The larger one; NaN when either is, as torch.maximum (`f32::max` would drop it).
    #[inline(always)]
    fn max_nan(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }

    /// The smaller one; NaN when either is.
    #[inline(always)]
    fn min_nan(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }

    /// 1 / (1 + e⁻ˣ), computed from e^-|x| so that neither side overflows and the left tail keeps its relative accuracy.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let e = (-self.abs()).exp();
        let q = e / (Self::ONE + e);
        // e/(1+e) = e - e·q on the left and 1 - q on the right: the rounding of q then counts for little.
        if self < Self::ZERO { (-e).mul_add(q, e) } else { Self::ONE - q }
    }

    /// ln(1 + eˣ) without overflow.
    fn softplus(self) -> Self;
}

/// The first 16 bits of ln 2: its product with an exponent is exact.
const LN2_HI: f32 = 0.693_145_75;
/// ln 2 - LN2_HI.
const LN2_LO: f32 = 1.428_606_8e-6;
/// 1.5 · 2²³: adding it rounds to an integer (ties to even) and leaves that integer in the low mantissa bits.
const ROUND_F32: f32 = 12_582_912.0;

/// 2ⁿ for -126 ≤ n ≤ 127.
#[inline(always)]
fn pow2_f32(n: i32) -> f32 {
    f32::from_bits(((n.wrapping_add(127)) << 23) as u32)
}

/// x - lost = n ln 2 + r with |r| ≤ ln 2 / 2: Cody & Waite's reduction, whose first step is exact; `lost` is a rounding
/// error of x, taken in where it still counts. |x| must be below 106.
#[inline(always)]
fn reduce_exp_f32(x: f32, lost: f32) -> (i32, f32) {
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND_F32);
    let n = t - ROUND_F32;
    let r = n.mul_add(-LN2_HI, x);
    let r = r - n.mul_add(LN2_LO, lost);
    ((t.to_bits() as i32).wrapping_sub(ROUND_F32.to_bits() as i32), r)
}

/// (eʳ - 1 - r) / r² on the reduced interval; error 2⁻³² relative to eʳ - 1.
#[inline(always)]
fn exp_tail_f32(r: f32) -> f32 {
    poly!(r, 0.5, 0.166_666_67, 0.041_666_348, 0.008_333_287, 0.001_394_163_6, 0.000_199_058_43)
}

/// p · 2ⁿ for p near 1 and -151 ≤ n ≤ 129. Two factors reach the whole range: subnormal results are rounded once, by the
/// second product.
#[inline(always)]
fn scale_f32(p: f32, n: i32) -> f32 {
    let half = n >> 1;
    p * pow2_f32(half) * pow2_f32(n.wrapping_sub(half))
}

/// eˣ.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    // Beyond these e^x is 0 or infinite; the comparisons let NaN through, which then survives the arithmetic.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (n, r) = reduce_exp_f32(x, 0.0);
    let p = (r * r).mul_add(exp_tail_f32(r), r) + 1.0;
    scale_f32(p, n)
}

/// eˣ - 1, as 2ⁿ(eʳ - 1) + (2ⁿ - 1).
#[inline(always)]
pub(crate) fn expm1_f32(x: f32) -> f32 {
    let y = if x > 89.0 { 89.0 } else { x };
    let y = if y < -18.0 { -18.0 } else { y };
    let (n, r) = reduce_exp_f32(y, 0.0);
    let p = (r * r).mul_add(exp_tail_f32(r), r);
    // Computed at half scale, since n reaches 128.
    let half = pow2_f32(n.wrapping_sub(1));
    let y = p.mul_add(half, half - 0.5) * 2.0;
    // Here eˣ - 1 rounds to x, and the half scale would have dropped bits of subnormals and the sign of zero.
    if x.abs() < 2.9e-8 { x } else { y }
}

/// ln(m · (1 + f)) core: e ln 2 + ln(1 + f) for f in [√½ - 1, √2 - 1], after Cephes' logf in form: f - f²/2 + f³ P(f).
#[inline(always)]
pub(super) fn ln_core_f32(e: f32, f: f32) -> f32 {
    let p = poly!(
        f,
        0.333_333_1,
        -0.249_999_87,
        0.200_022_37,
        -0.166_692_5,
        0.142_184_26,
        -0.123_842_88,
        0.118_748_27,
        -0.117_908_05,
        0.069_119_826
    );
    let f2 = f * f;
    let tail = (f2 * f).mul_add(p, e * LN2_LO);
    let tail = f2.mul_add(-0.5, tail);
    e.mul_add(LN2_HI, f + tail)
}

/// Splits a positive normal number into (e, m) with x = 2ᵉ m and √½ ≤ m < √2.
#[inline(always)]
pub(super) fn split_f32(x: f32) -> (i32, f32) {
    // Adding the distance from √½ to 1 moves the mantissas above √2 to the next exponent.
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let shifted = x.to_bits().wrapping_sub(SQRT_HALF);
    let e = (shifted as i32) >> 23;
    (e, f32::from_bits((shifted & 0x007f_ffff).wrapping_add(SQRT_HALF)))
}

/// ln x.
#[inline(always)]
pub(crate) fn ln_f32(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let scaled = if subnormal { x * 8_388_608.0 } else { x };
    let (e, m) = split_f32(scaled);
    let e = if subnormal { e - 23 } else { e };
    let y = ln_core_f32(e as f32, m - 1.0);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // Also true for NaN.
    if x >= 0.0 { y } else { f32::NAN }
}

/// ln(1 + x): the rounding error of 1 + x is added back to the reduced argument, where it still counts.
#[inline(always)]
pub(crate) fn ln_1p_f32(x: f32) -> f32 {
    let u = 1.0 + x;
    // Knuth's two-sum residue; the order of subtraction follows the larger operand.
    let lost = if x.abs() < 1.0 { x - (u - 1.0) } else { 1.0 - (u - x) };
    let (e, m) = split_f32(u);
    // 2⁻ᵉ; beyond 2⁶⁴ what was lost is nothing, and the exponent must stay in range.
    let scale = pow2_f32(if e < 64 { -e } else { -64 });
    let f = lost.mul_add(scale, m - 1.0);
    let y = ln_core_f32(e as f32, f);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == -1.0 { f32::NEG_INFINITY } else { y };
    // ln(1 + x) rounds to x here; it also keeps -0 and subnormals.
    let y = if x.abs() < 2.9e-8 { x } else { y };
    if x >= -1.0 { y } else { f32::NAN }
}

/// ln(1 + eˣ) = max(x, 0) + ln(1 + u) with u = e^-|x| in (0, 1], where ln(1 + u) = u + u² P(u).
#[inline(always)]
pub(crate) fn softplus_f32(x: f32) -> f32 {
    let u = exp_f32(-x.abs());
    let p = poly!(
        u,
        -0.5,
        0.333_332_36,
        -0.249_967_6,
        0.199_567_08,
        -0.163_651_53,
        0.130_333_64,
        -0.091_394_14,
        0.049_309_973,
        -0.017_184_267,
        0.002_801_642
    );
    // max(x, 0) + u and what its rounding lost, by the larger of the two.
    let above = if x < 0.0 { 0.0 } else { x };
    let (large, small) = if above > u { (above, u) } else { (u, above) };
    let sum = large + small;
    let y = sum + (u * u).mul_add(p, small - (sum - large));
    // Infinity would be lost in its own rounding error. NaN passes by `y`.
    if x > 30.0 { x } else { y }
}

/// tanh x: an odd polynomial near zero, 1 - 2 / (e²ˣ + 1) beyond, where that form no longer cancels.
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    let a2 = a * a;
    let p = poly!(a2, -0.333_333_3, 0.133_332_1, -0.053_947_2, 0.021_702_932, -0.008_182_586, 0.002_147_462);
    let small = (a2 * a).mul_add(p, a);
    let large = 1.0 - 2.0 / (exp_f32(a + a) + 1.0);
    let y = if a < 0.625 { small } else { large };
    y.copysign(x)
}

/// erf x: an odd polynomial near zero, 1 - exp(Q(|x|)) beyond, Q being a fit of ln erfc.
#[inline(always)]
pub(crate) fn erf_f32(x: f32) -> f32 {
    let a = x.abs();
    let a2 = a * a;
    let p = poly!(a2, 0.128_379_17, -0.376_126_35, 0.112_837_03, -0.026_859_796, 0.005_201_953_5, -0.000_815_255_6, 8.409_640_6e-5);
    let small = p.mul_add(a, a);
    // erf is 1 to the last bit from 3.92 on; the fit ends a little later.
    let b = if a > 3.95 { 3.95 } else { a };
    let q = poly!(
        b,
        0.000_170_639_16,
        -1.129_495_6,
        -0.633_385_8,
        -0.108_237_624,
        0.025_092_172,
        -0.004_160_796_8,
        0.000_432_362_02,
        -2.091_500_8e-5
    );
    let large = 1.0 - exp_f32(q);
    let y = if a < 0.92 { small } else { large };
    y.copysign(x)
}

/// (n, p) with e^(-x²/2) = 2ⁿ (1 + p). The rounding error of the square is taken in: without it the tail loses x² ulps.
#[inline(always)]
fn gauss_f32(x: f32) -> (i32, f32) {
    // From 14.5 on the result is 0; the bound keeps the exponent in range, and NaN passes.
    let a = x.abs();
    let a = if a > 14.5 { 14.5 } else { a };
    let h = a * a * 0.5;
    let lost = (a * 0.5).mul_add(a, -h);
    let (n, r) = reduce_exp_f32(-h, lost);
    (n, (r * r).mul_add(exp_tail_f32(r), r))
}

/// Φ(x): ½ + x P(x²) near zero; beyond, the left tail e^(-x²/2) t Q(t) with t = 1 / (1 + |x|/2) (the form of Abramowitz &
/// Stegun 7.1.26 with a longer fit, relative error 2⁻²⁸), or one minus that on the right.
#[inline(always)]
pub(crate) fn normal_cdf_f32(x: f32) -> f32 {
    let x2 = x * x;
    let p = poly!(x2, 0.398_942_3, -0.066_490_375, 0.009_973_538, -0.001_187_246, 0.000_115_249_93, -9.217_998e-6, 5.199_410_7e-7);
    let small = x.mul_add(p, 0.5);

    let a = x.abs();
    let a = if a > 20.0 { 20.0 } else { a };
    let d = a.mul_add(0.5, 1.0);
    let t = 1.0 / d;
    // Relative error of t, and how much of it t Q(t) feels (between 1.1 and 1.6): taken out again below.
    let lost = a.mul_add(0.5, 1.0 - d);
    let error = (-t).mul_add(lost, (-t).mul_add(d, 1.0));
    let error = error * t.mul_add(0.9, 1.0);
    let q = poly!(
        t - 0.375,
        0.295_960_8,
        0.310_291_4,
        0.110_034_585,
        -0.126_363_02,
        -0.080_316_626,
        0.125_240_94,
        0.033_578_2,
        -0.155_333_43,
        0.036_944_736,
        0.121_535_66
    );
    let (n, p) = gauss_f32(x);
    let tq = t * q;
    let tail = scale_f32(tq.mul_add(p + error, tq), n);
    let large = if x > 0.0 { 1.0 - tail } else { tail };
    if a < 0.96 { small } else { large }
}

/// φ(x) = e^(-x²/2) / √2π.
#[inline(always)]
pub(crate) fn normal_pdf_f32(x: f32) -> f32 {
    const C: f32 = 0.398_942_3;
    let (n, p) = gauss_f32(x);
    scale_f32(C.mul_add(p, C), n)
}

macro_rules! real_common {
    ($t:ident) => {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const HALF: Self = 0.5;
        const INFINITY: Self = $t::INFINITY;
        const NEG_INFINITY: Self = $t::NEG_INFINITY;
        const NAN: Self = $t::NAN;

        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            $t::mul_add(self, a, b)
        }
        #[inline(always)]
        fn abs(self) -> Self {
            $t::abs(self)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            $t::sqrt(self)
        }
        #[inline(always)]
        fn floor(self) -> Self {
            $t::floor(self)
        }
        #[inline(always)]
        fn ceil(self) -> Self {
            $t::ceil(self)
        }
        #[inline(always)]
        fn trunc(self) -> Self {
            $t::trunc(self)
        }
        #[inline(always)]
        fn round_ties_even(self) -> Self {
            $t::round_ties_even(self)
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            $t::copysign(self, sign)
        }
    };
}

impl Real for f32 {
    real_common!(f32);
    const SMALL_POWER: u32 = 30;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }
    #[inline(always)]
    fn expm1(self) -> Self {
        expm1_f32(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        ln_f32(self)
    }
    #[inline(always)]
    fn ln_1p(self) -> Self {
        ln_1p_f32(self)
    }
    #[inline(always)]
    fn sin(self) -> Self {
        sin_f32(self)
    }
    #[inline(always)]
    fn cos(self) -> Self {
        cos_f32(self)
    }
    #[inline(always)]
    fn is_near_angle(self) -> bool {
        circular::is_near_f32(self)
    }
    #[inline(always)]
    fn sin_near(self) -> Self {
        circular::sin_near_f32(self)
    }
    #[inline(always)]
    fn cos_near(self) -> Self {
        circular::cos_near_f32(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        tanh_f32(self)
    }
    #[inline(always)]
    fn erf(self) -> Self {
        erf_f32(self)
    }
    #[inline(always)]
    fn normal_cdf(self) -> Self {
        normal_cdf_f32(self)
    }
    #[inline(always)]
    fn normal_pdf(self) -> Self {
        normal_pdf_f32(self)
    }
    #[inline(always)]
    fn powi(self, n: i32) -> Self {
        // Either is rounded once.
        (if n.unsigned_abs() <= Self::SMALL_POWER { self.powi_small(n) } else { self.powf_wide(n as f64) }) as f32
    }
    #[inline(always)]
    fn powi_small(self, n: i32) -> f64 {
        power::powi_small_f32(self, n)
    }
    #[inline(always)]
    fn powf(self, p: Self) -> Self {
        power::pow_wide_f32(self, p as f64) as f32
    }
    #[inline(always)]
    fn powf_wide(self, p: f64) -> f64 {
        power::pow_wide_f32(self, p)
    }
    #[inline(always)]
    fn softplus(self) -> Self {
        softplus_f32(self)
    }
}

impl Real for f64 {
    real_common!(f64);
    const SMALL_POWER: u32 = u32::MAX;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
    #[inline(always)]
    fn expm1(self) -> Self {
        f64::exp_m1(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }
    #[inline(always)]
    fn ln_1p(self) -> Self {
        f64::ln_1p(self)
    }
    #[inline(always)]
    fn sin(self) -> Self {
        f64::sin(self)
    }
    #[inline(always)]
    fn cos(self) -> Self {
        f64::cos(self)
    }
    #[inline(always)]
    fn is_near_angle(self) -> bool {
        true
    }
    #[inline(always)]
    fn sin_near(self) -> Self {
        f64::sin(self)
    }
    #[inline(always)]
    fn cos_near(self) -> Self {
        f64::cos(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    #[inline(always)]
    fn erf(self) -> Self {
        libm::erf(self)
    }
    /// ½ erfc(-x/√2), corrected to first order for the rounding of the argument, which the tail magnifies by x².
    #[inline(always)]
    fn normal_cdf(self) -> Self {
        // 1/√2 - FRAC_1_SQRT_2.
        const LO: f64 = -4.833_646_656_726_457e-17;
        let t = self * -c64::FRAC_1_SQRT_2;
        let lost = self.mul_add(-c64::FRAC_1_SQRT_2, -t) - self * LO;
        let y = 0.5 * libm::erfc(t);
        let slope = -0.5 * c64::FRAC_2_SQRT_PI * (-t * t).exp();
        let corrected = lost.mul_add(slope, y);
        // At ±∞ the correction is ∞ · 0.
        if self.abs() < 40.0 { corrected } else { y }
    }
    /// The square's rounding error is taken in, as in the f32 version.
    #[inline(always)]
    fn normal_pdf(self) -> Self {
        let a = self.abs();
        let a = if a > 60.0 { 60.0 } else { a };
        let h = a * a * 0.5;
        let lost = (a * 0.5).mul_add(a, -h);
        let e = (-h).exp();
        // 1/√2π
        (-lost).mul_add(e, e) * 0.398_942_280_401_432_7
    }
    #[inline(always)]
    fn powi(self, n: i32) -> Self {
        match n {
            -1 => 1.0 / self,
            0 => 1.0,
            1 => self,
            2 => self * self,
            3 => self * self * self,
            // i32 is exact in f64, and pow is rounded once where repeated products are not.
            _ => self.powf(n as f64),
        }
    }
    #[inline(always)]
    fn powi_small(self, n: i32) -> f64 {
        Real::powi(self, n)
    }
    #[inline(always)]
    fn powf(self, p: Self) -> Self {
        f64::powf(self, p)
    }
    #[inline(always)]
    fn powf_wide(self, p: f64) -> f64 {
        f64::powf(self, p)
    }
    #[inline(always)]
    fn softplus(self) -> Self {
        self.max_nan(0.0) + f64::ln_1p(f64::exp(-f64::abs(self)))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod denormal_tests;
#[cfg(test)]
mod tests;
