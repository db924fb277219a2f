//! Attention on tensor cores, on the emulated device: around the edges of tiles, against the CPU in double precision. (The suite
//! checks small problems against the definition; this checks that tiles fit together.)

use super::alone;
use cotangent::backend::cuda;
use cotangent::ops::sdpa::SdpaOptions;
use cotangent::{BF16, DType, Device, F16, F64, Key, Result, Tape, Tensor};

/// Query heads, key heads, queries, keys, D, Dv.
type Size = [usize; 6];

/// Value and the cotangents of q, k and v, for a given one of the value.
fn run(x: &[Tensor; 4], device: Device, options: &SdpaOptions) -> Result<[Tensor; 4]> {
    let tape = Tape::new();
    let [q, k, v, g] = x.each_ref().map(|t| t.to_device(device));
    let (q, k, v) = (tape.watch(&q?)?, tape.watch(&k?)?, tape.watch(&v?)?);
    let y = q.scaled_dot_product_attention(&k, &v, None, options)?;
    let grads = tape.backward_from(&[(&y, g?)])?;
    Ok([y.detach(), grads.get(&q)?.clone(), grads.get(&k)?.clone(), grads.get(&v)?.clone()])
}

fn operands([hq, hkv, tq, tk, d, dv]: Size, dtype: DType) -> Result<[Tensor; 4]> {
    let random = |shape: [usize; 3], key| Tensor::randn(shape, dtype, Key::new(key));
    Ok([random([hq, tq, d], 1)?, random([hkv, tk, d], 2)?, random([hkv, tk, dv], 3)?, random([hq, tq, dv], 4)?])
}

/// The largest difference of two tensors, relative to the larger of 1 and the largest number in the first; infinite where one of
/// two numbers is NaN.
fn distance(want: &Tensor, found: &Tensor) -> Result<f64> {
    let (want, found) = (want.to_f64_vec()?, found.to_f64_vec()?);
    assert_eq!(want.len(), found.len());
    let largest = want.iter().filter(|x| x.is_finite()).fold(1f64, |m, x| m.max(x.abs()));
    let apart = |(a, b): (&f64, &f64)| if a.is_nan() != b.is_nan() { f64::INFINITY } else { (a - b).abs() / largest };
    Ok(want.iter().zip(&found).map(apart).fold(0.0, f64::max))
}

/// What rounding weights and results to a half type may do to the largest number: a unit for each, and some where weights cancel.
fn allowed(dtype: DType) -> f64 {
    4.0 * dtype.epsilon() / 2.0
}

fn check(x: &[Tensor; 4], dtype: DType, options: &SdpaOptions, what: &str) {
    let wide = x.each_ref().map(|t| t.cast(F64).unwrap());
    let want = run(&wide, Device::Cpu, options).unwrap();
    let found = run(x, Device::cuda_emulated().unwrap(), options).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (name, (want, found)) in ["y", "dq", "dk", "dv"].iter().zip(want.iter().zip(&found)) {
        let error = distance(want, found).unwrap();
        assert!(error <= allowed(dtype), "{what} in {dtype}: {name} is {error:e} off");
    }
}

#[test]
fn tiles_fit_together() {
    let sizes: [Size; 14] = [
        [1, 1, 63, 63, 64, 64],
        [2, 2, 64, 64, 64, 64],
        [2, 1, 65, 65, 64, 64],
        [1, 1, 127, 127, 128, 128],
        [4, 1, 129, 129, 64, 64],
        [1, 1, 128, 128, 80, 80],
        [7, 1, 65, 129, 128, 128],
        [4, 2, 129, 63, 80, 80],
        [1, 1, 1, 130, 128, 128],
        [1, 1, 130, 1, 64, 64],
        [2, 1, 65, 33, 64, 128],
        [2, 1, 33, 95, 128, 32],
        [2, 1, 129, 97, 32, 32],
        [1, 1, 257, 31, 16, 96],
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        let dtype = [BF16, F16][i % 2];
        let x = operands(size, dtype).unwrap();
        check(&x, dtype, &SdpaOptions::causal(), &format!("causal {size:?}"));
        if i % 3 == 0 {
            check(&x, dtype, &SdpaOptions { scale: Some(0.3), ..SdpaOptions::default() }, &format!("{size:?}"));
        }
    }
}

/// All scores are the same, the first half of the values is 1 and the second -1: the result is 0, unless what was summed first is
/// rescaled by a factor that is not exactly 1 at each of 256 tiles. (A maximum that is a power of two would hide it.)
#[test]
fn early_and_late_keys_have_the_same_weight() {
    let (queries, keys, d) = (33, 1 << 14, 8);
    let device = Device::cuda_emulated().unwrap();
    for (i, scale) in [0.3, 0.7, 1.0, 1.3].into_iter().enumerate() {
        let dtype = [BF16, F16][i % 2];
        let constant = |x: f64, rows: usize| Tensor::full_on([1, rows, d], x, dtype, device).unwrap().contiguous().unwrap();
        let v = Tensor::concat(&[constant(1.0, keys / 2), constant(-1.0, keys / 2)], 1).unwrap();
        let options = SdpaOptions { scale: Some(scale), ..SdpaOptions::default() };
        let y = constant(1.0, queries).scaled_dot_product_attention(&constant(11.0, keys), &v, None, &options).unwrap();
        let most = y.to_f64_vec().unwrap().into_iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        assert!(most <= 1e-6, "scale {scale} in {dtype}: {most:e}");
    }
}

/// Cotangents as they are when a loss is scaled for f16: those of scores are beyond 256, and would overflow if they were all
/// multiplied by one number. What is computed again by the plain kernels is right as well, and counted.
#[test]
fn scaled_losses_stay_on_the_tensor_cores() {
    if !alone("tensor_cores::scaled_losses_stay_on_the_tensor_cores") {
        return;
    }
    let left_out = || cuda::rows_left_out(Device::cuda_emulated().unwrap()).unwrap();
    assert_eq!(left_out(), 0);
    for size in [[2, 1, 65, 130, 64, 64], [1, 1, 129, 129, 32, 32], [4, 2, 33, 70, 128, 96]] {
        let [q, k, v, g] = operands(size, F16).unwrap();
        for factor in [2000.0, 300.0, 1e-3] {
            let g = g.mul_scalar(factor).unwrap();
            let [_, dq, dk, dv] = run(&[q.clone(), k.clone(), v.clone(), g.clone()], Device::Cpu, &SdpaOptions::causal()).unwrap();
            assert!([dq, dk, dv].iter().all(|x| x.to_f64_vec().unwrap().iter().all(|x| x.is_finite())), "the test overflows itself");
            check(&[q.clone(), k.clone(), v.clone(), g], F16, &SdpaOptions::causal(), &format!("{size:?} times {factor}"));
        }
    }
    assert_eq!(left_out(), 0, "rows were computed again");
    // One cotangent that is infinite: its row, and all keys that it meets in a tile, for 0 times infinity is not finite.
    let [q, k, v, g] = operands([1, 1, 65, 70, 64, 64], F16).unwrap();
    let mut data = g.to_f64_vec().unwrap();
    data[40 * 64] = f64::INFINITY;
    let g = Tensor::from_slice(&data, g.shape().clone()).unwrap().cast(F16).unwrap();
    check(&[q, k, v, g], F16, &SdpaOptions::causal(), "an infinite cotangent");
    // Of 16 rows each: the one of query 40, and the five of 70 keys.
    assert_eq!(left_out(), 1 + 5);
}

#[test]
fn operands_may_lie_in_one_tensor() {
    // [B, T, 3, H, D], as one product gives them: rows of 16 bytes, heads between them.
    let all = Tensor::randn([2, 70, 3, 2, 64], BF16, Key::new(7)).unwrap();
    let part = |i: usize| all.narrow(2, i, 1).unwrap().reshape([2, 70, 2, 64]).unwrap().permute([0, 2, 1, 3]).unwrap();
    let g = Tensor::randn([2, 2, 70, 64], BF16, Key::new(8)).unwrap();
    check(&[part(0), part(1), part(2), g], BF16, &SdpaOptions::causal(), "parts of one tensor");
}

#[test]
fn keys_without_query_heads_have_zero_cotangents() {
    for dtype in [BF16, F64] {
        let x = operands([0, 2, 3, 5, 8, 8], dtype).unwrap();
        let [_, _, dk, dv] = run(&x, Device::cuda_emulated().unwrap(), &SdpaOptions::default()).unwrap();
        for bar in [dk, dv] {
            assert_eq!(bar.to_f64_vec().unwrap(), vec![0.0; 2 * 5 * 8]);
        }
    }
}

#[test]
fn what_no_query_sees_may_hold_anything() {
    let size @ [_, _, tq, tk, d, _] = [1, 1, 70, 66, 64, 64];
    let [q, k, v, g] = operands(size, BF16).unwrap();
    // Of 70 queries and 66 keys the first 4 queries see nothing, and the last key is seen by the last query only.
    let with = |x: &Tensor, at: usize, value: f64| {
        let mut data = x.to_f64_vec().unwrap();
        data[at] = value;
        Tensor::from_slice(&data, x.shape().clone()).unwrap().cast(BF16).unwrap()
    };
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let x = [with(&q, 3, value), k.clone(), v.clone(), with(&g, d + 5, value)];
        check(&x, BF16, &SdpaOptions::causal(), &format!("{value} in a query without keys, and in its cotangent"));
        let x = [q.clone(), k.clone(), with(&v, (tk - 1) * d + 1, value), g.clone()];
        let found = run(&x, Device::cuda_emulated().unwrap(), &SdpaOptions::causal()).unwrap()[0].to_f64_vec().unwrap();
        let odd: Vec<usize> = (0..tq * d).filter(|&i| !found[i].is_finite()).collect();
        assert_eq!(odd, [(tq - 1) * d + 1], "{value} in the last value");
    }
}
