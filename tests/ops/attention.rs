//! Attention where others failed: what samples of single calls cannot show. Each known bug of attention
//! (docs/known-bugs.md, A1 to A27) is in the notes of the samples in src/ops/attention/sdpa, or a test here.

use cotangent::nn::{Attend, AttentionConfig, KvCache, MultiHeadAttention};
use cotangent::ops::{RopeOptions, SdpaOptions};
use cotangent::{BF16, DType, F32, F64, Key, Result, Tape, Tensor, checkpoint, grad};
use std::time::{Duration, Instant};

fn randn(shape: &[usize], seed: u64) -> Tensor {
    Tensor::randn(shape, F64, Key::new(seed)).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

#[track_caller]
fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (values(a), values(b));
    let size = a.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "number {i}: {a} and {b}, largest {size}");
    }
}

/// Cotangents of q, k and v.
fn cotangents(q: &Tensor, k: &Tensor, v: &Tensor, g: &Tensor, f: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>) -> [Tensor; 3] {
    let tape = Tape::new();
    let [q, k, v] = [q, k, v].map(|t| tape.watch(t).unwrap());
    let y = f(&q, &k, &v).unwrap();
    let grads = tape.backward_from(&[(&y, g.clone())]).unwrap();
    [&q, &k, &v].map(|t| grads.get(t).unwrap().clone())
}

fn plain(options: SdpaOptions) -> impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> {
    move |q, k, v| q.scaled_dot_product_attention(k, v, None, &options)
}

/// Operands and cotangent in layouts of their own, k and v in one row that is repeated [A5, A6, A7, A18].
#[test]
fn operands_and_cotangent_lie_as_they_like() {
    let (q, k, v, g) = (randn(&[1, 2, 5, 8], 1), randn(&[1, 2, 33, 8], 2), randn(&[1, 2, 33, 8], 3), randn(&[1, 2, 5, 8], 4));
    let turned = |t: &Tensor| t.transpose(2, 3).unwrap().contiguous().unwrap().transpose(2, 3).unwrap();
    let padded = |t: &Tensor| {
        let rows = t.shape()[2];
        Tensor::concat(&[t, t], 3).unwrap().narrow(3, 8, 8).unwrap().narrow(2, 0, rows).unwrap()
    };
    let want = cotangents(&q, &k, &v, &g, plain(SdpaOptions::causal()));
    for (k, v, g) in [(turned(&k), v.clone(), g.clone()), (k.clone(), turned(&v), turned(&g)), (padded(&k), v.clone(), padded(&g))] {
        let found = cotangents(&q, &k, &v, &g, plain(SdpaOptions::causal()));
        want.iter().zip(&found).for_each(|(a, b)| assert_close(a, b, 1e-13));
    }
    let (row_k, row_v) = (k.narrow(2, 0, 1).unwrap(), v.narrow(2, 0, 1).unwrap());
    let spread = |t: &Tensor| t.expand([1, 2, 33, 8]).unwrap();
    let g1 = Tensor::ones([1, 2, 5, 8], F64).unwrap().narrow(3, 0, 1).unwrap().expand([1, 2, 5, 8]).unwrap();
    let found = cotangents(&q, &spread(&row_k), &spread(&row_v), &g1, plain(SdpaOptions::default()));
    let want = cotangents(
        &q,
        &spread(&row_k).contiguous().unwrap(),
        &spread(&row_v).contiguous().unwrap(),
        &g1.contiguous().unwrap(),
        plain(SdpaOptions::default()),
    );
    want.iter().zip(&found).for_each(|(a, b)| assert_close(a, b, 1e-13));
}

/// Shared key heads, fifty times, after an op that has just written the cotangent; and on 1, 2 and 3 threads [A8, A9, A10].
#[test]
fn fifty_repeats_give_the_same_bits() {
    let x = [1, 2, 3].map(|i| Tensor::randn(if i == 1 { [2, 6, 70, 8] } else { [2, 2, 70, 8] }, F32, Key::new(i)).unwrap());
    let run = || {
        let options = SdpaOptions { dropout: 0.2, key: Some(Key::new(9)), softcap: Some(3.0), ..SdpaOptions::sliding(40) };
        let g = grad(&x[0], |q| q.scaled_dot_product_attention(&x[1], &x[2], None, &options)?.square()?.sum(..)).unwrap();
        let h = grad(&x[1], |k| x[0].scaled_dot_product_attention(k, k, None, &options)?.square()?.sum(..)).unwrap();
        [g.to_vec::<f32>().unwrap(), h.to_vec::<f32>().unwrap()].concat().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    };
    let first = run();
    for _ in 0..50 {
        assert_eq!(run(), first);
    }
    for threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(run), first, "{threads} threads");
    }
}

/// 192 queries, a mask, and a log-sum-exp far below −88, in bf16 [A11].
#[test]
fn shifted_scores_in_half_precision_stay_finite() {
    for n in [63, 64, 65, 192] {
        let t = |i, s| Tensor::normal([1, 1, n, 16], 0.0, s, BF16, Key::new(i)).unwrap();
        let mask = Tensor::full([n, n], -128.0, BF16).unwrap();
        let found = cotangents(&t(1, 1.0), &t(2, 1.0), &t(3, 1.0), &t(4, 1.0), |q, k, v| {
            q.scaled_dot_product_attention(k, v, Some(&mask), &SdpaOptions::default())
        });
        let plain = cotangents(&t(1, 1.0), &t(2, 1.0), &t(3, 1.0), &t(4, 1.0), plain(SdpaOptions::default()));
        found.iter().zip(&plain).for_each(|(a, b)| assert_close(b, a, 2e-2));
    }
}

/// A query that sees nothing changes no bit of the others [A13]; the lowest finite number as a mask gives no NaN [A15].
#[test]
fn hidden_queries_leave_the_others_alone() {
    let n = 441;
    let [q, k, v, g] = [1, 2, 3, 4].map(|i| Tensor::randn([1, 1, n, 4], F32, Key::new(i)).unwrap());
    let open = Tensor::ones([n, 1], F32).unwrap().cast(cotangent::U8).unwrap();
    let some = Tensor::from_vec((0..n).map(|i| u8::from(i != 7)).collect::<Vec<u8>>(), [n, 1]).unwrap();
    let with =
        |mask: &Tensor| cotangents(&q, &k, &v, &g, |q, k, v| q.scaled_dot_product_attention(k, v, Some(mask), &SdpaOptions::default()));
    let (a, b) = (with(&open), with(&some));
    let (a, b) = (a[0].to_vec::<f32>().unwrap(), b[0].to_vec::<f32>().unwrap());
    for (i, (a, b)) in a.chunks(4).zip(b.chunks(4)).enumerate() {
        if i == 7 {
            assert_eq!(b, [0.0; 4]);
        } else {
            assert_eq!(a, b, "query {i}");
        }
    }
    let lowest = Tensor::full([n, n], f64::from(f32::MIN), F32).unwrap().triu(1).unwrap();
    let (masked, causal) = (with(&lowest), cotangents(&q, &k, &v, &g, plain(SdpaOptions::causal())));
    masked.iter().zip(&causal).for_each(|(a, b)| assert_close(a, b, 1e-5));
}

/// Odd extents survive a recomputation from saved operands in layouts of their own [A17].
#[test]
fn recomputed_attention_is_attention() {
    let (q, kv) = (randn(&[1, 2, 3, 4], 1), randn(&[1, 361, 2, 4], 2));
    let mask = randn(&[361], 3).expand([3, 361]).unwrap();
    let attend = move |q: &Tensor, kv: &Tensor| {
        let kv = kv.permute([0, 2, 1, 3])?;
        q.scaled_dot_product_attention(&kv, &kv, Some(&mask), &SdpaOptions::default())?.square()
    };
    let direct = grad(&kv, |kv| attend(&q, kv)?.sum(..)).unwrap();
    let again = grad(&kv, |kv| {
        let attend = attend.clone();
        checkpoint(&[&q, kv], move |x| Ok(vec![attend(&x[0], &x[1])?]))?[0].sum(..)
    })
    .unwrap();
    assert_eq!(values(&direct), values(&again));
}

/// Ordinary numbers, many times, in f32, with every combination of options [A19].
#[test]
fn ordinary_numbers_give_finite_gradients() {
    for seed in 0..60u64 {
        let at = |n: u64| Key::new(77).below(seed * 8 + n, 40) as usize + 1;
        let (tq, tk, d) = (at(0), at(1), at(2));
        let t = |rows, i| Tensor::randn([1, 2, rows, d], F32, Key::new(seed * 4 + i)).unwrap();
        let options = SdpaOptions {
            causal: seed % 2 == 0,
            window: (seed % 3 == 0).then(|| (at(3), at(4))),
            softcap: (seed % 5 == 0).then_some(2.0),
            ..SdpaOptions::default()
        };
        for x in cotangents(&t(tq, 0), &t(tk, 1), &t(tk, 2), &t(tq, 3), plain(options.clone())) {
            assert!(values(&x).iter().all(|x| x.is_finite()), "{options:?}, {tq} × {tk} × {d}");
        }
    }
}

/// A bias of another dtype is refused, not misread [A20]. A zero cotangent gives exact zeros [A24].
#[test]
fn foreign_biases_are_refused_and_zero_gives_zero() {
    let half = Tensor::randn([1, 2, 4], BF16, Key::new(1)).unwrap();
    let bias = Tensor::zeros([2, 2], F32).unwrap();
    let e = half.scaled_dot_product_attention(&half, &half, Some(&bias), &SdpaOptions::default()).unwrap_err();
    assert!(e.is_dtype() && e.to_string().contains("cast it"), "{e}");
    let [q, k, v] = [1, 2, 3].map(|i| randn(&[1, 5, 4], i));
    let zero = Tensor::zeros([1, 5, 4], F64).unwrap();
    let options = SdpaOptions { softcap: Some(1.0), ..SdpaOptions::sliding(2) };
    assert!(cotangents(&q, &k, &v, &zero, plain(options)).iter().all(|x| values(x).iter().all(|&x| x == 0.0)));
}

/// Capped scores are below the cap, so no key can take all the weight, and the slope is the cap's [A25].
#[test]
fn a_cap_caps() {
    let q = Tensor::from_slice(&[100f64], [1, 1, 1]).unwrap();
    let k = Tensor::from_slice(&[1f64, -1.0], [1, 2, 1]).unwrap();
    let v = Tensor::from_slice(&[1f64, 0.0], [1, 2, 1]).unwrap();
    let options = SdpaOptions { softcap: Some(1.0), ..SdpaOptions::default() };
    let weight = |options: SdpaOptions| q.scaled_dot_product_attention(&k, &v, None, &options).unwrap().item().unwrap();
    assert_eq!(weight(SdpaOptions::default()), 1.0);
    assert!((weight(options.clone()) - 1.0 / (1.0 + (-2f64).exp())).abs() < 1e-12);
    // At a product of 10 the slope is 4 e^−20 to ten digits, where 1 − tanh² has lost six.
    let q = Tensor::from_slice(&[10f64], [1, 1, 1]).unwrap();
    let g = grad(&q, |q| q.scaled_dot_product_attention(&k, &v, None, &options)?.sum(..)).unwrap().item().unwrap();
    let p = 1.0 / (1.0 + (-2f64).exp());
    let want = p * (1.0 - p) * 2.0 * 4.0 * (-20f64).exp();
    assert!((g / want - 1.0).abs() < 1e-7, "{g:e} instead of {want:e}");
}

/// Scores of 1e4 to 1e5 give wq and wk the gradient they have: in f32 nearly that of f64, and not 0.
#[test]
fn huge_scores_move_both_projections() {
    let run = |dtype: DType| {
        // The same numbers in both types.
        let cast = |t: Tensor| t.cast(F32).unwrap().cast(dtype).unwrap();
        // Queries and keys share a component of 200, so scores are huge; their differences are not.
        let x = (0..48).map(|i| if i % 8 == 0 { 1.0 } else { Key::new(1).normal(i) }).collect::<Vec<f64>>();
        let x = cast(Tensor::from_vec(x, [1, 6, 8]).unwrap());
        let weight = |key: u64| {
            let entry = |i: u64| match i {
                0 => 200.0,
                1..8 => 0.01 * Key::new(key).normal(i),
                _ => 0.3 * Key::new(key).normal(i),
            };
            cast(Tensor::from_vec((0..64).map(entry).collect::<Vec<f64>>(), [8, 8]).unwrap())
        };
        let (wq, wk, wv, g) = (weight(2), weight(3), cast(randn(&[8, 8], 4)), cast(randn(&[1, 6, 8], 5)));
        let loss = |wq: &Tensor, wk: &Tensor| {
            let (q, k, v) = (x.linear(wq, None)?, x.linear(wk, None)?, x.linear(&wv, None)?);
            q.scaled_dot_product_attention(&k, &v, None, &SdpaOptions::causal())?.mul(&g)?.sum(..)
        };
        let scores = x.linear(&wq, None).unwrap().matmul_nt(&x.linear(&wk, None).unwrap()).unwrap();
        let largest = scores.abs().unwrap().max(..).unwrap().item().unwrap();
        assert!((1e4..1e5).contains(&largest), "{largest}");
        [grad(&wq, |w| loss(w, &wk)).unwrap(), grad(&wk, |w| loss(&wq, w)).unwrap()]
    };
    let (exact, single) = (run(F64), run(F32));
    for (a, b) in exact.iter().zip(&single) {
        assert!(a.global_norm().unwrap() > 0.1);
        // Scores of 4e4 have an ulp of 0.004.
        assert_close(a, b, 0.02);
    }
}

/// Time with a window grows with the window, not with the square of the length.
#[test]
fn windows_skip_what_they_hide() {
    let t = |i| Tensor::randn([1, 1, 3000, 16], F32, Key::new(i)).unwrap();
    let (q, k, v, g) = (t(1), t(2), t(3), t(4));
    let time = |options: SdpaOptions| -> Duration {
        let once = || {
            let start = Instant::now();
            cotangents(&q, &k, &v, &g, plain(options.clone()));
            start.elapsed()
        };
        (0..3).map(|_| once()).min().unwrap()
    };
    let (whole, windowed) = (time(SdpaOptions::default()), time(SdpaOptions::sliding(32)));
    assert!(windowed * 3 < whole, "{windowed:?} with a window of 32 keys, {whole:?} with all 3000");
}

/// Each packed sequence gives what it gives alone.
#[test]
fn packed_sequences_are_apart() {
    let (of_q, of_k) = ([0usize, 3, 3, 8], [0usize, 5, 6, 8]);
    let offsets = |o: &[usize]| Tensor::from_vec(o.iter().map(|&i| i as i64).collect::<Vec<i64>>(), [o.len()]).unwrap();
    let (q, k, v, g) = (randn(&[1, 2, 8, 4], 1), randn(&[1, 1, 8, 4], 2), randn(&[1, 1, 8, 3], 3), randn(&[1, 2, 8, 3], 4));
    let options = SdpaOptions { softcap: Some(2.0), window: Some((2, 1)), ..SdpaOptions::default() };
    let packed =
        |q: &Tensor, k: &Tensor, v: &Tensor| q.scaled_dot_product_attention_packed(k, v, None, &offsets(&of_q), &offsets(&of_k), &options);
    let all = cotangents(&q, &k, &v, &g, packed);
    for s in 0..3 {
        let cut = |t: &Tensor, o: &[usize]| t.slice(2, o[s]..o[s + 1]).unwrap();
        let alone = cotangents(&cut(&q, &of_q), &cut(&k, &of_k), &cut(&v, &of_k), &cut(&g, &of_q), plain(options.clone()));
        assert_close(&alone[0], &cut(&all[0], &of_q), 1e-13);
        assert_close(&alone[1], &cut(&all[1], &of_k), 1e-13);
        assert_close(&alone[2], &cut(&all[2], &of_k), 1e-13);
    }
    let e = packed(&q.slice(2, 0..7).unwrap(), &k, &v).unwrap_err().to_string();
    assert!(e.contains("offsets of queries end at 8, but there are 7 rows"), "{e}");
}

/// A layer with a window gives token by token, from its cache, what it gives at once; and the window and the cap matter.
#[test]
fn layers_take_windows_and_caps() {
    let config = |window, softcap| AttentionConfig {
        width: 8,
        heads: 4,
        kv_heads: 2,
        head: 4,
        qkv_bias: false,
        rope: Some(RopeOptions::default()),
        causal: true,
        window,
        softcap,
        dropout: 0.0,
        ..AttentionConfig::default()
    };
    let layer = |window, softcap| MultiHeadAttention::new(&config(window, softcap), F64, Key::new(1)).unwrap();
    let x = randn(&[1, 7, 8], 2);
    let run = |window, softcap| layer(window, softcap).forward(&x, None).unwrap();
    let both = run(Some((2, 0)), Some(0.5));
    for other in [run(None, Some(0.5)), run(Some((2, 0)), None)] {
        assert!(both.sub(&other).unwrap().abs().unwrap().max(..).unwrap().item().unwrap() > 1e-4);
    }
    let attention = layer(Some((2, 0)), Some(0.5));
    let mut cache = KvCache::default();
    for t in 0..7 {
        let y = attention.forward_with(&x.narrow(1, t, 1).unwrap(), Attend { cache: Some(&mut cache), ..Attend::default() }).unwrap();
        assert_close(&y, &both.narrow(1, t, 1).unwrap(), 1e-12);
    }
}
