//! Known answers and statistics with fixed seeds.

use super::*;

#[test]
fn philox_known_answers() {
    // kat_vectors of the authors' Random123.
    assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    assert_eq!(
        philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
}

#[test]
fn bulk_equals_single_from_any_start() {
    let key = Key::new(5).fold(9);
    for start in [0u64, 1, 2, 3, 5, 64, (1 << 34) - 7] {
        for n in [0usize, 1, 3, 4, 65, 1000, CHUNK + 77] {
            let (mut u, mut b, mut d, mut z) = (vec![0f32; n], vec![0u8; n], vec![0f64; n], vec![0f64; n]);
            key.fill_uniform_f32(start, &mut u);
            key.fill_bernoulli(start, 0.3, &mut b);
            key.fill_uniform_f64(start, &mut d);
            key.fill_normal(start, &mut z);
            for j in 0..n {
                let i = start + j as u64;
                assert_eq!(u[j], key.uniform_f32(i), "{start} {n} {j}");
                assert_eq!(b[j] == 1, key.bernoulli(i, 0.3));
                assert_eq!(d[j], key.uniform_f64(i));
                assert_eq!(z[j], key.normal(i));
            }
        }
    }
}

/// Mean, variance and the largest distance from the distribution function, each within about 5 standard deviations.
fn look_like(mut x: Vec<f64>, mean: f64, var: f64, kurtosis: f64, cdf: impl Fn(f64) -> f64) {
    let n = x.len() as f64;
    let m = x.iter().sum::<f64>() / n;
    assert!((m - mean).abs() < 5.0 * (var / n).sqrt(), "mean {m}");
    let v = x.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / n;
    assert!((v / var - 1.0).abs() < 5.0 * ((kurtosis - 1.0) / n).sqrt(), "variance {v}");
    // Neighbours, and neighbours but one, two and three (the four words of a block).
    for lag in 1..=5 {
        let c = x.windows(lag + 1).map(|w| (w[0] - mean) * (w[lag] - mean)).sum::<f64>() / n / var;
        assert!(c.abs() < 5.0 / n.sqrt(), "correlation {c} at lag {lag}");
    }
    x.sort_by(f64::total_cmp);
    let d = x.iter().enumerate().map(|(i, &a)| (cdf(a) - (i as f64 + 0.5) / n).abs()).fold(0.0, f64::max);
    // Kolmogorov & Smirnov: P(D √n > 2.2) = 1e-4.
    assert!(d * n.sqrt() < 2.2, "KS distance {d}");
}

#[test]
fn distributions() {
    const N: u64 = 400_000;
    for seed in [0, 1, u64::MAX] {
        let key = Key::new(seed);
        look_like((0..N).map(|i| key.uniform_f32(i) as f64).collect(), 0.5, 1.0 / 12.0, 1.8, |x| x);
        look_like((0..N).map(|i| key.uniform_f64(i)).collect(), 0.5, 1.0 / 12.0, 1.8, |x| x);
        look_like((0..N).map(|i| key.normal(i)).collect(), 0.0, 1.0, 3.0, cdf);
        let (a, b) = (cdf(-2.0), cdf(2.0));
        look_like((0..N).map(|i| key.truncated_normal(i, -2.0, 2.0)).collect(), 0.0, 0.773_741_3, 2.06, |x| (cdf(x) - a) / (b - a));
        // Streams and seeds against each other: element 0 of many keys.
        look_like((0..N).map(|i| key.fold(i).uniform_f64(0)).collect(), 0.5, 1.0 / 12.0, 1.8, |x| x);
        look_like((0..N).map(|i| Key::new(seed.wrapping_add(i)).uniform_f64(0)).collect(), 0.5, 1.0 / 12.0, 1.8, |x| x);
    }
}

#[test]
fn integers_are_even() {
    let key = Key::new(3);
    for n in [1u64, 2, 3, 6, 10, 1000, (1 << 63) + 12345] {
        let bins = n.min(1000);
        let mut count = vec![0f64; bins as usize];
        const N: u64 = 200_000;
        for i in 0..N {
            let x = key.below(i, n);
            assert!(x < n);
            count[(x as u128 * bins as u128 / n as u128) as usize] += 1.0;
        }
        let want = N as f64 / bins as f64;
        let chi2: f64 = count.iter().map(|c| (c - want).powi(2) / want).sum();
        let dof = (bins - 1) as f64;
        assert!((chi2 - dof).abs() <= 5.0 * (2.0 * dof).sqrt(), "below({n}): χ² {chi2} for {dof}");
    }
}

#[test]
fn bernoulli_edges_and_rate() {
    let key = Key::new(8);
    for i in 0..10_000 {
        assert!(key.bernoulli(i, 1.0) && key.bernoulli(i, 7.0));
        assert!(!key.bernoulli(i, 0.0) && !key.bernoulli(i, -1.0) && !key.bernoulli(i, f64::NAN));
    }
    let kept = (0..1_000_000).filter(|&i| key.bernoulli(i, 0.9)).count() as f64;
    assert!((kept - 900_000.0).abs() < 5.0 * 300.0, "{kept}");
}

#[test]
fn truncated_tails() {
    let key = Key::new(4);
    for i in 0..2000 {
        let x = key.truncated_normal(i, 10.0, f64::INFINITY);
        assert!((10.0..12.5).contains(&x), "{x}");
        let x = key.truncated_normal(i, -31.0, -30.0);
        assert!((-31.0..=-30.0).contains(&x), "{x}");
        assert_eq!(key.truncated_normal(i, 60.0, 70.0), 60.0);
        assert_eq!(key.truncated_normal(i, 0.5, 0.5), 0.5);
    }
    // The tail beyond a falls like e^(-a (x - a)): its mean excess is about 1/a.
    let mean = (0..20_000).map(|i| key.truncated_normal(i, 10.0, f64::INFINITY) - 10.0).sum::<f64>() / 20_000.0;
    assert!((mean - 0.098_1).abs() < 0.004, "{mean}");
}

#[test]
fn quantile_inverts_the_distribution_function() {
    for e in 1..300 {
        let p = 10f64.powi(-e);
        assert!((cdf(quantile(p)) / p - 1.0).abs() < 1e-11, "{p}");
    }
    for i in 1..1000 {
        let p = i as f64 / 1000.0;
        assert!((cdf(quantile(p)) - p).abs() < 1e-15, "{p}");
    }
}

#[test]
fn keys_differ_and_states_return() {
    let key = Key::new(11);
    let mut seen = std::collections::HashSet::new();
    for i in 0..1000 {
        assert!(seen.insert(key.fold(i)));
        assert!(seen.insert(key.fold(i).fold(i)));
    }
    assert_ne!(key.fold(1).fold(2), key.fold(2).fold(1));
    let mut a = Rng::from_key(key);
    a.next_key();
    let mut b = Rng::from_state(a.state());
    assert_eq!(a.next_key(), b.next_key());
    assert_eq!(Key::from_parts(key.parts().0, key.parts().1), key);
}
