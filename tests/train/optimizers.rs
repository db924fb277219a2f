//! Optimizers against PyTorch and against their own formulas.

use super::gradient_of;
use cotangent::optim::{AdamW, Schedule, Sgd, WarmupCosine};
use cotangent::{F32, Param, Tensor, grad, value_and_grad};

#[test]
fn sgd_with_momentum_follows_its_formula() {
    let mut w = Tensor::from_slice(&[1.0f64, -2.0], [2]).unwrap();
    let mut sgd = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov: true, ..Sgd::default() };
    let (mut p, mut v) = ([1.0f64, -2.0], [0.0f64; 2]);
    for step in 0..5 {
        let g = [0.3 + f64::from(step), -1.0];
        let t = Tensor::from_slice(&g, [2]).unwrap();
        let grads = gradient_of(&w, &t);
        sgd.step(&mut w, &grads).unwrap();
        for i in 0..2 {
            let d = g[i] + 0.01 * p[i];
            v[i] = if step == 0 { d } else { 0.9 * v[i] + d };
            p[i] -= 0.1 * (d + 0.9 * v[i]);
        }
    }
    for (a, b) in w.to_vec::<f64>().unwrap().iter().zip(p) {
        assert!((a - b).abs() < 1e-14, "{a} {b}");
    }
}

/// Fused and plain formulas agree for sizes around the vector width and the parallel piece, and for strided gradients.
#[test]
fn adamw_is_the_same_for_every_size_and_layout() {
    for n in [1usize, 15, 16, 17, 1000, 16 * 1024, 16 * 1024 + 3] {
        let value = |i: usize, k: usize| ((i * 37 + k * 11) % 101) as f32 / 50.0 - 1.0;
        let p0: Vec<f32> = (0..n).map(|i| value(i, 0)).collect();
        let mut w = Param::from(Tensor::from_slice(&p0, [n]).unwrap());
        let mut adam = AdamW { lr: 1e-2, betas: (0.9, 0.95), weight_decay: 0.1, decays: |_, _| true, ..AdamW::default() };
        let mut p: Vec<f64> = p0.iter().map(|&x| f64::from(x)).collect();
        let (mut m, mut v) = (vec![0f64; n], vec![0f64; n]);
        for t in 1..=3 {
            let g: Vec<f32> = (0..2 * n).map(|i| value(i, t)).collect();
            // Every second element: a gradient with stride 2.
            let strided = Tensor::from_slice(&g, [n, 2]).unwrap().select(1, 0).unwrap();
            let mut grads = grad(&w, |w| w.sum(..)).unwrap();
            grads
                .update(|_, x| {
                    *x = strided.clone();
                    Ok(())
                })
                .unwrap();
            adam.step(&mut w, &grads).unwrap();
            for i in 0..n {
                let g = f64::from(g[2 * i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                let (c1, c2) = (1.0 - 0.9f64.powi(t as i32), 1.0 - 0.95f64.powi(t as i32));
                p[i] = p[i] * (1.0 - 1e-2 * 0.1) - 1e-2 / c1 * m[i] / (v[i].sqrt() / c2.sqrt() + 1e-8);
            }
        }
        for (i, (a, b)) in w.to_vec::<f32>().unwrap().iter().zip(&p).enumerate() {
            assert!((f64::from(*a) - b).abs() < 2e-6, "n {n}, element {i}: {a} {b}");
        }
        assert_eq!(adam.steps(), 3);
    }
}

/// A norm of zero, infinity or NaN must neither divide by zero nor turn finite gradients into zeros or NaN [D28].
#[test]
fn clipping_survives_zero_infinite_and_nan_norms() {
    let x = Tensor::from_slice(&[1f32, 2.0, 3.0], [3]).unwrap();
    for (g, finite) in [([0f32, 0.0, 0.0], true), ([1.0, f32::INFINITY, 0.0], false), ([f32::NAN, 1.0, 1.0], false)] {
        let t = Tensor::from_slice(&g, [3]).unwrap();
        let mut grads = gradient_of(&x, &t);
        let c = grads.clip_global_norm(0.5).unwrap();
        assert_eq!((c.finite, c.clipped), (finite, false));
        let after = grads.to_vec::<f32>().unwrap();
        assert!(after.iter().zip(g).all(|(a, b)| a.to_bits() == b.to_bits()), "{after:?}");
    }
    assert!(gradient_of(&x, &x).clip_global_norm(-1.0).unwrap_err().is_argument());
    assert!(gradient_of(&x, &x).clip_global_norm(f64::NAN).unwrap_err().is_argument());
}

/// Squares of 1e30 overflow f32; the norm does not.
#[test]
fn the_norm_does_not_overflow() {
    let x = Tensor::from_slice(&[3e30f32, -4e30], [2]).unwrap();
    let n = gradient_of(&x, &x).global_norm().unwrap();
    assert!((n / 5e30 - 1.0).abs() < 1e-6, "{n}");
    let tiny = Tensor::from_slice(&[3e-30f32, -4e-30], [2]).unwrap();
    assert!((gradient_of(&tiny, &tiny).global_norm().unwrap() / 5e-30 - 1.0).abs() < 1e-6);
}

/// Bias corrections near 1 need f64; with f32 the first step of β₂ = 0.999 is off by 1e-5 [D29].
#[test]
fn adamw_first_step_is_the_learning_rate() {
    let mut w = Tensor::from_slice(&[0f32; 4], [4]).unwrap();
    let g = Tensor::from_slice(&[1e-3f32, -1e3, 1e-6, 5.0], [4]).unwrap();
    let grads = gradient_of(&w, &g);
    let mut adam = AdamW { lr: 1e-3, eps: 0.0, ..AdamW::default() };
    adam.step(&mut w, &grads).unwrap();
    for x in w.to_vec::<f32>().unwrap() {
        assert!((f64::from(x.abs()) / 1e-3 - 1.0).abs() < 1e-6, "{x}");
    }
}

#[test]
fn gradients_of_another_model_are_refused_and_nothing_changes() {
    let a = (Tensor::ones([2], F32).unwrap(), Tensor::ones([3], F32).unwrap());
    let grads = grad(&a, |(x, y)| x.sum(..)?.add(&y.sum(..)?)).unwrap();
    let mut b = (Tensor::ones([2], F32).unwrap(), Tensor::ones([4], F32).unwrap());
    let mut adam = AdamW::default();
    // Same type, other shapes: rebuild the tuple so that names match and one shape does not.
    let e = adam.step(&mut b, &grads).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("`1`"), "{e}");
    assert_eq!(b.0.to_vec::<f32>().unwrap(), [1.0, 1.0]);
    assert_eq!(adam.steps(), 0);
}

/// A parameter used twice gets the sum of both gradients and is stepped once.
#[test]
fn accumulated_microbatches_equal_the_full_batch() {
    let w = Tensor::from_slice(&[0.5f64, -1.5], [2]).unwrap();
    let data: Vec<Tensor> = (0..4).map(|i| Tensor::from_slice(&[f64::from(i), 1.0], [2]).unwrap()).collect();
    let loss = |w: &Tensor, x: &Tensor| w.mul(x)?.square()?.sum(..);
    let (_, full) = value_and_grad(&w, |w| {
        let mut sum = loss(w, &data[0])?;
        for x in &data[1..] {
            sum = sum.add(&loss(w, x)?)?;
        }
        Ok(sum)
    })
    .unwrap();
    let mut parts = grad(&w, |w| loss(w, &data[0])).unwrap();
    for x in &data[1..] {
        parts.accumulate(&grad(&w, |w| loss(w, x)).unwrap()).unwrap();
    }
    for (a, b) in full.to_vec::<f64>().unwrap().iter().zip(parts.to_vec::<f64>().unwrap()) {
        assert!((a - b).abs() < 1e-12);
    }
}

#[test]
fn schedules_are_schedules() {
    let s: &dyn Schedule = &WarmupCosine { peak: 1e-3, floor: 1e-4, warmup: 20, end: 200 };
    assert_eq!(s.at(19), 1e-3 * 20.0 / 21.0);
    assert_eq!(Schedule::at(&0.5f64, 7), 0.5);
}

/// PyTorch's AdamW (20 steps, with ε and AMSGrad), gradient clipping and nanoGPT's schedule, from the fixtures.
#[test]
fn the_optimizer_fixtures_replay() {
    let mut folders = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures").to_string()];
    folders.extend(std::env::var("COTANGENT_FIXTURES"));
    for folder in folders {
        let bytes = std::fs::read(std::path::Path::new(&folder).join("ops/adamw.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let cases: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
        let read = |name: &str| -> Tensor {
            let t = file.tensor(name).unwrap();
            let v: Vec<f64> = t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
            Tensor::from_slice(&v, t.shape()).unwrap()
        };
        let close = |what: &str, got: &[f64], want: &[f64]| {
            assert_eq!(got.len(), want.len(), "{what}");
            let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((g - w).abs() <= 1e-12 * largest, "{what}, element {i}: {g:e} instead of {w:e}");
            }
        };
        let mut replayed = 0;
        for (name, c) in cases.as_object().unwrap() {
            replayed += 1;
            let number = |key: &str| c[key].as_f64().unwrap();
            if name == "schedule" {
                let s = WarmupCosine { peak: number("lr"), floor: number("min_lr"), warmup: 20, end: 200 };
                let want = read("schedule.out.nanogpt").to_vec::<f64>().unwrap();
                close(name, &(0..want.len()).map(|i| s.at(i)).collect::<Vec<_>>(), &want);
            } else if name.starts_with("clip") {
                let g = [0, 1, 2].map(|i| read(&format!("{name}.in.g{i}")));
                let at = (g[0].zeros_like().unwrap(), g[1].zeros_like().unwrap(), g[2].zeros_like().unwrap());
                let term = |x: &Tensor, g: &Tensor| x.mul(g)?.sum(..);
                let mut grads = grad(&at, |(a, b, c)| term(a, &g[0])?.add(&term(b, &g[1])?)?.add(&term(c, &g[2])?)).unwrap();
                let norm = grads.clip_global_norm(number("max_norm")).unwrap().norm;
                close(&format!("{name}: norm"), &[norm], &read(&format!("{name}.out.norm")).to_vec().unwrap());
                for (i, t) in [&grads.0, &grads.1, &grads.2].into_iter().enumerate() {
                    close(&format!("{name}: g{i}"), &t.to_vec().unwrap(), &read(&format!("{name}.out.g{i}")).to_vec().unwrap());
                }
            } else {
                let betas = (c["betas"][0].as_f64().unwrap(), c["betas"][1].as_f64().unwrap());
                let amsgrad = c["amsgrad"].as_bool().unwrap();
                let mut adam = AdamW {
                    lr: number("lr"),
                    betas,
                    eps: number("eps"),
                    weight_decay: number("weight_decay"),
                    amsgrad,
                    ..AdamW::default()
                };
                let mut w = read(&format!("{name}.in.p0"));
                let (all, want) = (read(&format!("{name}.in.grads")), read(&format!("{name}.out.params")));
                for step in 0..all.shape()[0] {
                    let grads = gradient_of(&w, &all.select(0, step as isize).unwrap());
                    adam.step(&mut w, &grads).unwrap();
                    let want = want.select(0, step as isize).unwrap().to_vec::<f64>().unwrap();
                    close(&format!("{name}: step {step}"), &w.to_vec().unwrap(), &want);
                }
                let (first, second) = adam.moments("").unwrap();
                close(name, &first.to_vec().unwrap(), &read(&format!("{name}.out.exp_avg")).to_vec().unwrap());
                close(name, &second.to_vec().unwrap(), &read(&format!("{name}.out.exp_avg_sq")).to_vec().unwrap());
            }
        }
        assert!(replayed >= 8, "only {replayed} cases");
    }
}
