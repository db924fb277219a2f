//! Products against a plain definition in f64, the same bits for 1, 2 and 3 threads, and odd sizes.

use half::{bf16, f16};

use super::*;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Runs `f` in a pool of `threads`.
fn pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool").install(f)
}

/// The same for 1, 2 and 3 threads, bit for bit.
fn same_bits<T: GemmFloat>(what: &str, f: impl Fn() -> Vec<T> + Sync) -> Vec<T> {
    let one = pool(1, &f);
    for threads in [2, 3, 2] {
        let many = pool(threads, &f);
        let differs = one.iter().zip(&many).position(|(a, b)| a.to_f64().to_bits() != b.to_f64().to_bits());
        assert_eq!(differs, None, "{what}: {threads} threads give other bits");
    }
    one
}

fn check<T: GemmFloat>(m: usize, n: usize, k: usize, ta: bool, tb: bool, eps: f64) {
    let what = format!("{m}×{k} · {k}×{n}, transposed {ta} {tb}");
    let a: Vec<T> = noise(m * k, 1).into_iter().map(|x| T::from_f64(x as f64)).collect();
    let b: Vec<T> = noise(k * n, 2).into_iter().map(|x| T::from_f64(x as f64)).collect();
    let ma = if ta { Mat::new(&a, m, k, 1, m.max(1)) } else { Mat::new(&a, m, k, k.max(1), 1) };
    let mb = if tb { Mat::new(&b, k, n, 1, k.max(1)) } else { Mat::new(&b, k, n, n.max(1), 1) };
    let rs = n + 3;
    let c0: Vec<T> = noise(m * rs, 3).into_iter().map(|x| T::from_f64(x as f64)).collect();
    let (alpha, beta) = (T::from_f64(0.75), T::from_f64(-0.5));
    let run = |beta: T| {
        let mut c = c0.clone();
        gemm(alpha, ma, mb, beta, &mut c, rs).unwrap();
        c
    };
    let zero = same_bits(&what, || run(T::ZERO));
    let acc = same_bits(&what, || run(beta));
    // All of small results, a sample of large ones.
    let step = (m * n * k / 20_000_000).max(1) | 1;
    for i in (0..m * n).step_by(step) {
        let (r, s) = (i / n, i % n);
        let (mut exact, mut size) = (0f64, 0f64);
        for p in 0..k {
            let x = a[r * ma.row_stride + p * ma.col_stride].to_f64() * b[p * mb.row_stride + s * mb.col_stride].to_f64();
            exact += x;
            size += x.abs();
        }
        let old = c0[r * rs + s].to_f64();
        let bound = eps * (size + 1.0) * (8.0 + (k as f64).sqrt() / 4.0);
        assert!((zero[r * rs + s].to_f64() - 0.75 * exact).abs() <= bound, "{what} at {r},{s}");
        assert!((acc[r * rs + s].to_f64() - (0.75 * exact - 0.5 * old)).abs() <= bound, "{what} at {r},{s} with beta");
    }
    // The gaps between rows stay as they were.
    for r in 0..m {
        for s in n..rs {
            assert!(zero[r * rs + s] == c0[r * rs + s] && acc[r * rs + s] == c0[r * rs + s]);
        }
    }
}

#[test]
fn small_shapes_all_layouts() {
    let sizes = [0, 1, 2, 3, 7, 16, 17, 33, 65];
    for m in sizes {
        for n in sizes {
            for k in [0, 1, 2, 3, 31, 32, 100] {
                for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                    check::<f32>(m, n, k, ta, tb, 6e-8);
                }
            }
        }
    }
}

#[test]
fn training_shapes_same_bits() {
    let shapes = [
        (768, 384, 128),
        (1, 3000, 700),
        (3000, 1, 700),
        (1, 1, 100_003),
        (5, 7, 60_000),
        (64, 128, 12_000),
        (513, 259, 301),
        (300, 900, 1030),
        (1000, 8, 999),
        (8, 1000, 999),
        (2, 5000, 130),
    ];
    for (m, n, k) in shapes {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            check::<f32>(m, n, k, ta, tb, 6e-8);
        }
        check::<f64>(m, n, k, false, true, 1.2e-16);
    }
}

#[test]
fn batches_broadcast_and_keep_bits() {
    for (batch, m, n, k) in
        [(1, 4, 4, 4), (6, 5, 9, 3), (48, 32, 64, 16), (3, 200, 150, 170), (2000, 2, 3, 4), (9, 1, 64, 40), (9, 4, 0, 3), (5, 3, 2, 0)]
    {
        let a = noise(batch * m * k, 4);
        let b = noise(2 * k * n, 5);
        let ao: Vec<usize> = (0..batch).map(|i| i * m * k).collect();
        let bo: Vec<usize> = (0..batch).map(|i| i % 2 * k * n).collect();
        let co: Vec<usize> = (0..batch).map(|i| i * (m * n + 1)).collect();
        let ba = Batch { data: &a, offsets: &ao, rows: m, cols: k, row_stride: k, col_stride: 1 };
        let bb = Batch { data: &b, offsets: &bo, rows: k, cols: n, row_stride: n, col_stride: 1 };
        let got = same_bits("batch", || {
            let mut c = vec![7f32; batch * (m * n + 1)];
            batched(1.0, ba, bb, 0.0, &mut c, &co, n).unwrap();
            c
        });
        let mut want = vec![7f64; batch * (m * n + 1)];
        for i in 0..batch {
            for r in 0..m {
                for s in 0..n {
                    want[co[i] + r * n + s] = (0..k).map(|p| a[ao[i] + r * k + p] as f64 * b[bo[i] + p * n + s] as f64).sum();
                }
            }
        }
        for (g, w) in got.iter().zip(&want) {
            assert!((*g as f64 - w).abs() < 1e-5 * (1.0 + k as f64).sqrt(), "batch {batch} {m} {n} {k}: {g} {w}");
        }
        let ha: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
        let hb: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
        let ba = Batch { data: &ha, offsets: &ao, rows: m, cols: k, row_stride: k, col_stride: 1 };
        let bb = Batch { data: &hb, offsets: &bo, rows: k, cols: n, row_stride: n, col_stride: 1 };
        let got = same_bits("half batch", || {
            let mut c = vec![bf16::ONE; batch * (m * n + 1)];
            batched_half(1.0, ba, bb, 0.0, &mut c, &co, n).unwrap();
            c.into_iter().map(f32::from).collect()
        });
        for i in 0..batch {
            for r in 0..m {
                for s in 0..n {
                    let w: f64 = (0..k).map(|p| ha[ao[i] + r * k + p].to_f64() * hb[bo[i] + p * n + s].to_f64()).sum();
                    assert!((got[co[i] + r * n + s] as f64 - w).abs() <= 0.004 * w.abs() + 1e-5);
                }
            }
        }
    }
}

#[test]
fn half_products_round_once() {
    for (m, n, k) in [(3, 4, 5), (1100, 70, 90), (70, 300, 1000)] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let a: Vec<f16> = noise(m * k, 6).into_iter().map(f16::from_f32).collect();
            let b: Vec<f16> = noise(n * k, 7).into_iter().map(f16::from_f32).collect();
            let ma = if ta { Mat::new(&a, m, k, 1, m) } else { Mat::row_major(&a, m, k) };
            let mb = if tb { Mat::new(&b, k, n, 1, k) } else { Mat::row_major(&b, k, n) };
            let got = same_bits("half", || {
                let mut c = vec![f16::NAN; m * (n + 2)];
                gemm_half(1.0, ma, mb, 0.0, &mut c, n + 2).unwrap();
                c.chunks(n + 2).flat_map(|r| r[..n].iter().map(|&x| f32::from(x))).collect()
            });
            for i in (0..m * n).step_by(37) {
                let w: f64 = (0..k)
                    .map(|p| a[i / n * ma.row_stride + p * ma.col_stride].to_f64() * b[p * mb.row_stride + i % n * mb.col_stride].to_f64())
                    .sum();
                assert!((got[i] as f64 - w).abs() <= w.abs() * 4.9e-4 + 1e-4, "{m} {n} {k} {ta} {tb} at {i}: {} {w}", got[i]);
            }
        }
    }
}

#[test]
fn zero_stride_broadcasts_an_operand() {
    let (row, ones) = ([1f32, 2.0, 3.0], [1f32]);
    let mut c = [f32::NAN; 6];
    gemm(1.0, Mat::new(&ones, 2, 3, 0, 0), Mat::new(&row, 3, 3, 0, 1), 0.0, &mut c, 3).unwrap();
    assert_eq!(c, [3.0, 6.0, 9.0, 3.0, 6.0, 9.0]);
}

#[test]
#[should_panic(expected = "does not fit")]
fn a_matrix_beyond_its_data_is_refused() {
    Mat::new(&[0f32; 11], 3, 4, 4, 1);
}

#[test]
#[should_panic(expected = "does not fit")]
fn a_short_result_is_refused() {
    let x = [0f32; 16];
    gemm(1.0, Mat::row_major(&x, 4, 4), Mat::row_major(&x, 4, 4), 0.0, &mut [0f32; 15], 4).unwrap();
}

#[test]
#[should_panic(expected = "not overlap")]
fn overlapping_results_are_refused() {
    let x = [0f32; 16];
    let b = Batch { data: &x, offsets: &[0, 0], rows: 4, cols: 4, row_stride: 4, col_stride: 1 };
    batched(1.0, b, b, 0.0, &mut [0f32; 32], &[0, 15], 4).unwrap();
}
