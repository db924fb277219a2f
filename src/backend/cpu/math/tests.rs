//! Accuracy of `math.rs` against f64 over all exponents, special values, and the half conversions against the half crate.

use super::*;
use crate::backend::cpu::run::simd::dispatch;

/// Error of `got` in units of the last place of the f32 nearest to the exact value.
fn ulps(got: f32, exact: f64) -> f64 {
    if exact.is_nan() || got.is_nan() {
        return if exact.is_nan() && got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let nearest = exact as f32;
    if got.is_infinite() || nearest.is_infinite() {
        return if got == nearest { 0.0 } else { f64::INFINITY };
    }
    let exponent = ((nearest.to_bits() >> 23) & 0xff).max(1) as i32;
    (got as f64 - exact).abs() / 2f64.powi(exponent - 150)
}

/// Largest error of `f` over every 997th bit pattern and densely around the places where the methods switch.
fn worst(name: &str, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, bound: f64) {
    let mut worst = (0.0, 0f32);
    let mut see = |x: f32| {
        let e = ulps(f(x), exact(x as f64));
        if e > worst.0 {
            worst = (e, x);
        }
    };
    for bits in (0..=u32::MAX).step_by(997) {
        see(f32::from_bits(bits));
    }
    for centre in [0.0f32, 0.5, 0.625, 0.92, 1.0, 1.4, 2.0, 3.1, 3.92, 9.0, 14.0, 88.0, 103.0, 0.3466] {
        for i in -20_000i32..20_000 {
            let x = centre + i as f32 * 1.7e-5;
            see(x);
            see(-x);
        }
    }
    println!("{name}: {:.3} ulp at {:e}", worst.0, worst.1);
    assert!(worst.0 <= bound, "{name}: {} ulp at {:e}: {:e} instead of {:e}", worst.0, worst.1, f(worst.1), exact(worst.1 as f64));
}

fn cdf64(x: f64) -> f64 {
    x.normal_cdf()
}

#[test]
fn exponentials_within_bounds() {
    worst("exp", exp_f32, f64::exp, 1.0);
    worst("expm1", expm1_f32, f64::exp_m1, 1.5);
    worst("sigmoid", |x| x.sigmoid(), |x| x.sigmoid(), 2.0);
    worst("softplus", |x| x.softplus(), |x| x.softplus(), 2.0);
}

#[test]
fn logarithms_within_bounds() {
    worst("ln", ln_f32, f64::ln, 1.0);
    worst("ln_1p", ln_1p_f32, f64::ln_1p, 1.5);
}

#[test]
fn tanh_and_erf_within_bounds() {
    worst("tanh", tanh_f32, f64::tanh, 1.5);
    worst("erf", erf_f32, libm::erf, 1.5);
    worst("normal_cdf", normal_cdf_f32, cdf64, 2.6);
    worst("normal_pdf", normal_pdf_f32, |x| x.normal_pdf(), 2.0);
}

#[test]
fn circular_functions_within_bounds() {
    worst("sin", sin_f32, f64::sin, 1.0);
    worst("cos", cos_f32, f64::cos, 1.0);
}

#[test]
fn powers_within_bounds() {
    for p in [-2.5f32, -0.5, 0.3333, 0.5, 1.5, 2.0, 7.0] {
        worst("powf", |x| Real::powf(x, p), |x| x.powf(p as f64), 1.0);
    }
    for n in [-31, -17, -3, -2, -1, 0, 1, 2, 3, 4, 15, 40] {
        worst("powi", |x| Real::powi(x, n), |x| x.powf(n as f64), 1.0);
    }
}

/// IEEE 754-2019 §9.2.1, against std, which follows it.
#[test]
fn special_powers() {
    let xs = [0.0f32, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 1e-45, -1e-45, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let ps = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1e10, -1e10, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    for x in xs {
        for p in ps {
            let (got, exact) = (x.powf_wide(p) as f32, (x as f64).powf(p) as f32);
            assert!(got.to_bits() == exact.to_bits() || (got.is_nan() && exact.is_nan()), "{x}^{p} = {got}, not {exact}");
            let (got, exact) = (Real::powf(x, p as f32), x.powf(p as f32));
            assert!(got.to_bits() == exact.to_bits() || (got.is_nan() && exact.is_nan()), "{x}^{p} = {got}, not {exact}");
        }
        for n in [-30, -16, -3, -2, -1, 0, 1, 2, 3, 16, 17, -17, 30, 31, -31, i32::MAX, -i32::MAX] {
            let (got, exact) = (Real::powi(x, n), (x as f64).powf(n as f64) as f32);
            assert!(got.to_bits() == exact.to_bits() || (got.is_nan() && exact.is_nan()), "{x}^{n} = {got}, not {exact}");
        }
    }
}

/// Around multiples of π/2, where the reduction cancels, and at random, to where the near form ends and beyond.
#[test]
fn reduced_angles() {
    let check = |x: f32| {
        let (s, c) = (ulps(sin_f32(x), (x as f64).sin()), ulps(cos_f32(x), (x as f64).cos()));
        assert!(s <= 1.0 && c <= 1.0, "{x:e}: sin {s} ulp, cos {c} ulp");
    };
    for n in 0..45_000 {
        let x = (n as f64 * c64::FRAC_PI_2) as f32;
        for d in -3..=3 {
            check(f32::from_bits(x.to_bits().wrapping_add_signed(d)));
        }
        for t in 1..8 {
            check((x as f64 + t as f64 * 0.098_174_7) as f32);
        }
    }
}

#[test]
fn loops_give_the_bits_of_single_calls() {
    let xs: Vec<f32> = (0..4001).map(|i| (i - 2000) as f32 * 0.0517).chain([f32::NAN, f32::INFINITY, -0.0, 1e-41, 3e38, -3e9]).collect();
    type Case = (&'static str, fn(&[f32], &mut [f32]), fn(f32) -> f32);
    fn run(xs: &[f32], ys: &mut [f32], f: impl Fn(f32) -> f32) {
        dispatch(
            #[inline(always)]
            || {
                for (y, &x) in ys.iter_mut().zip(xs) {
                    *y = f(x);
                }
            },
        );
    }
    let cases: [Case; 10] = [
        ("exp", |a, b| run(a, b, exp_f32), exp_f32),
        ("expm1", |a, b| run(a, b, expm1_f32), expm1_f32),
        ("ln", |a, b| run(a, b, ln_f32), ln_f32),
        ("ln_1p", |a, b| run(a, b, ln_1p_f32), ln_1p_f32),
        ("tanh", |a, b| run(a, b, tanh_f32), tanh_f32),
        ("erf", |a, b| run(a, b, erf_f32), erf_f32),
        ("cdf", |a, b| run(a, b, normal_cdf_f32), normal_cdf_f32),
        ("sin", |a, b| run(a, b, sin_f32), sin_f32),
        ("cos", |a, b| run(a, b, cos_f32), cos_f32),
        (
            "sigmoid",
            |a, b| {
                run(
                    a,
                    b,
                    #[inline(always)]
                    |x: f32| x.sigmoid(),
                )
            },
            |x| x.sigmoid(),
        ),
    ];
    let mut ys = vec![0.0; xs.len()];
    for (name, vector, scalar) in cases {
        vector(&xs, &mut ys);
        for (&x, &y) in xs.iter().zip(&ys) {
            let s = scalar(x);
            assert!(y.to_bits() == s.to_bits() || (y.is_nan() && s.is_nan()), "{name}({x}): {y} in a loop, {s} alone");
        }
    }
}

#[test]
fn special_values() {
    const INF: f32 = f32::INFINITY;
    const TINY: f32 = 1e-45;
    type Case = (&'static str, fn(f32) -> f32, &'static [(f32, f32)]);
    let cases: [Case; 12] = [
        (
            "exp",
            exp_f32,
            &[
                (0.0, 1.0),
                (-0.0, 1.0),
                (INF, INF),
                (-INF, 0.0),
                (88.0, 1.651_636_3e38),
                (88.73, INF),
                (-104.0, 0.0),
                (-103.5, TINY),
                (TINY, 1.0),
            ],
        ),
        (
            "expm1",
            expm1_f32,
            &[(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (89.0, INF), (-30.0, -1.0), (TINY, TINY), (-TINY, -TINY), (1e-30, 1e-30)],
        ),
        ("ln", ln_f32, &[(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-1.0, f32::NAN), (-INF, f32::NAN), (TINY, -103.278_93)]),
        (
            "ln_1p",
            ln_1p_f32,
            &[(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-1.1, f32::NAN), (-INF, f32::NAN), (TINY, TINY), (-1e-30, -1e-30)],
        ),
        ("sin", sin_f32, &[(0.0, 0.0), (-0.0, -0.0), (INF, f32::NAN), (-INF, f32::NAN), (TINY, TINY)]),
        ("cos", cos_f32, &[(0.0, 1.0), (-0.0, 1.0), (INF, f32::NAN), (-INF, f32::NAN), (TINY, 1.0)]),
        ("tanh", tanh_f32, &[(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (TINY, TINY), (20.0, 1.0), (-20.0, -1.0)]),
        ("erf", erf_f32, &[(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (5.0, 1.0), (-5.0, -1.0)]),
        ("normal_cdf", normal_cdf_f32, &[(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (-20.0, 0.0), (20.0, 1.0)]),
        ("normal_pdf", normal_pdf_f32, &[(INF, 0.0), (-INF, 0.0), (0.0, 0.398_942_3)]),
        ("sigmoid", |x| x.sigmoid(), &[(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (-100.0, 3.78e-44), (100.0, 1.0)]),
        ("softplus", |x| x.softplus(), &[(INF, INF), (-INF, 0.0), (200.0, 200.0), (-100.0, 3.78e-44)]),
    ];
    for (name, f, table) in cases {
        for &(x, y) in table {
            let got = f(x);
            assert!(got.to_bits() == y.to_bits() || (got.is_nan() && y.is_nan()), "{name}({x:e}) = {got:e}, not {y:e}");
        }
        assert!(f(f32::NAN).is_nan(), "{name}(NaN) = {}", f(f32::NAN));
        assert!(f(-f32::NAN).is_nan(), "{name}(-NaN)");
    }
}

#[test]
fn huge_angles() {
    // glibc's f64 functions reduce exactly; these f32 include the worst cases of cancellation (Muller) and the largest number.
    for x in [16_777_216.0f32, 1.605_381_4e33, 5.422_778_6e27, 1e22, f32::MAX, 3.402_823e38, 12_345_679.0, 2.0e9] {
        for x in [x, -x, f32::from_bits(x.to_bits() - 1)] {
            assert!(ulps(sin_f32(x), (x as f64).sin()) <= 1.0, "sin {x:e}");
            assert!(ulps(cos_f32(x), (x as f64).cos()) <= 1.0, "cos {x:e}");
        }
    }
}

#[test]
fn tails_of_f64() {
    // mpmath, 30 digits.
    for (x, y) in TAILS {
        assert!((x.normal_cdf() / y - 1.0).abs() < 2e-15, "cdf({x}) = {:e}, not {y:e}", x.normal_cdf());
    }
    assert_eq!(f64::NEG_INFINITY.normal_cdf(), 0.0);
    assert_eq!(f64::INFINITY.normal_cdf(), 1.0);
    assert_eq!(f64::INFINITY.normal_pdf(), 0.0);
    assert!(f64::NAN.normal_cdf().is_nan() && f64::NAN.normal_pdf().is_nan());
    assert!(((-700.0f64).sigmoid() / (-700.0f64).exp() - 1.0).abs() < 1e-15);
    assert!(((-40.0f64).softplus() / (-40.0f64).exp() - 1.0).abs() < 1e-15);
}

#[test]
fn maximum_and_minimum_keep_nan() {
    for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::NAN)] {
        assert!(a.max_nan(b).is_nan() && a.min_nan(b).is_nan());
    }
    assert_eq!((1.0f32.max_nan(2.0), 1.0f32.min_nan(2.0)), (2.0, 1.0));
    assert_eq!((f32::INFINITY.max_nan(2.0), f32::NEG_INFINITY.min_nan(2.0)), (f32::INFINITY, f32::NEG_INFINITY));
    for (x, y) in [(0.5f32, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, -0.0), (-1.5, -2.0)] {
        assert_eq!(Real::round_ties_even(x).to_bits(), f32::to_bits(y));
    }
}

#[test]
fn half_types_to_f32_exhaustively() {
    for h in 0..=u16::MAX {
        assert_eq!(bf16_to_f32(h).to_bits(), half::bf16::from_bits(h).to_f32().to_bits(), "bf16 {h:#06x}");
        assert_eq!(f16_to_f32(h).to_bits(), half::f16::from_bits(h).to_f32().to_bits(), "f16 {h:#06x}");
    }
}

#[test]
fn f32_to_half_types() {
    let check = |x: f32| {
        assert_eq!(f32_to_bf16(x), half::bf16::from_f32(x).to_bits(), "bf16 of {x:e} {:#010x}", x.to_bits());
        assert_eq!(f32_to_f16(x), half::f16::from_f32(x).to_bits(), "f16 of {x:e} {:#010x}", x.to_bits());
    };
    for bits in (0..=u32::MAX).step_by(4093) {
        check(f32::from_bits(bits));
    }
    // Every value of the half types, every midpoint between neighbours, and what is next to both.
    for h in 0..u16::MAX {
        for at in [(h as u32) << 16, half::f16::from_bits(h).to_f32().to_bits()] {
            for step in [0u32, 0x8000, 0x1000, 0x2000] {
                for d in [-1i32, 0, 1] {
                    check(f32::from_bits(at.wrapping_add(step).wrapping_add_signed(d)));
                }
            }
        }
        let (a, b) = (half::f16::from_bits(h).to_f32(), half::f16::from_bits(h + 1).to_f32());
        let mid = ((a as f64 + b as f64) / 2.0) as f32;
        for d in [-1i32, 0, 1] {
            check(f32::from_bits(mid.to_bits().wrapping_add_signed(d)));
        }
    }
}

const TAILS: [(f64, f64); 9] = [
    (-37.5, 4.605353009581955e-308),
    (-30.1, 2.4226672179857586e-199),
    (-20.7, 1.7318518790197378e-95),
    (-10.3, 3.5230650789264124e-25),
    (-5.9, 1.8175078630994284e-09),
    (-3.3, 0.0004834241423837775),
    (-1.1, 0.13566606094638264),
    (-0.1, 0.460172162722971),
    (2.7, 0.9965330261969594),
];
