//! Update rules against their formulas, half precision, groups, averages, loss scaling, accumulation.

use super::gradient_of;
use cotangent::ops::CrossEntropyOptions;
use cotangent::optim::{Accumulator, Adam, AdamW, Ema, Group, LossScaler, Muon, MuonScale, Sgd, norms_and_biases};
use cotangent::{BF16, DType, F16, F32, F64, Key, Param, Tensor, grad, value_and_grad};

fn f64s(v: &[f64]) -> Tensor {
    Tensor::from_slice(v, [v.len()]).unwrap()
}

fn close(a: &Tensor, b: &[f64], tolerance: f64) {
    let a = a.to_f64_vec().unwrap();
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance), "{a:?}\n{b:?}");
}

#[test]
fn adam_adds_its_penalty_to_the_gradient() {
    let (mut w, mut p, mut m, mut v) = (f64s(&[1.0, -2.0]), [1.0, -2.0], [0f64; 2], [0f64; 2]);
    let mut adam = Adam { lr: 0.1, weight_decay: 0.3, ..Adam::default() };
    for t in 1..=4 {
        let g = [0.3 * f64::from(t), -0.01];
        let grads = gradient_of(&w, &f64s(&g));
        adam.step(&mut w, &grads).unwrap();
        for i in 0..2 {
            let g = g[i] + 0.3 * p[i];
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (c1, c2) = (1.0 - 0.9f64.powi(t), 1.0 - 0.999f64.powi(t));
            p[i] -= 0.1 * (m[i] / c1) / ((v[i] / c2).sqrt() + 1e-8);
        }
    }
    close(&w, &p, 1e-12);
}

/// PyTorch's rule: the first momentum is the gradient itself, undamped.
#[test]
fn sgd_dampens_all_gradients_but_the_first() {
    let (mut w, mut p, mut b) = (f64s(&[1.0]), 1.0, 0.0);
    let mut sgd = Sgd { momentum: 0.9, dampening: 0.25, weight_decay: 0.1, ..Sgd::new(0.1) };
    for t in 0..4 {
        let grads = gradient_of(&w, &f64s(&[1.0 + f64::from(t)]));
        sgd.step(&mut w, &grads).unwrap();
        let g = 1.0 + f64::from(t) + 0.1 * p;
        b = if t == 0 { g } else { 0.9 * b + 0.75 * g };
        p -= 0.1 * b;
    }
    close(&w, &[p], 1e-14);
    let grads = gradient_of(&w, &f64s(&[1.0]));
    for mut bad in [Sgd { nesterov: true, ..sgd.clone() }, Sgd { nesterov: true, ..Sgd::new(0.1) }, Sgd { momentum: -0.1, ..Sgd::new(0.1) }]
    {
        assert!(bad.step(&mut w, &grads).unwrap_err().is_argument());
    }
    close(&w, &[p], 1e-14);
}

/// Muon's step on `U·diag(s)·Vᵀ` goes along `U·diag(f(s))·Vᵀ` with Newton–Schulz's polynomial, iterated on numbers.
#[test]
fn muon_steps_along_the_orthogonal_factor() {
    let (c, s) = (0.6f64, 0.8f64);
    let sigma = [3.0f64, 0.4];
    // U a rotation of the plane, V one within three axes.
    let u = [[c, -s], [s, c]];
    let v = [[1.0, 0.0, 0.0], [0.0, s, c]];
    let compose = |d: [f64; 2]| {
        let at = |i: usize, j: usize| (0..2).map(|k| u[i][k] * d[k] * v[k][j]).sum::<f64>();
        (0..2).flat_map(|i| (0..3).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect::<Vec<f64>>()
    };
    let norm = sigma[0].hypot(sigma[1]);
    let factor = sigma.map(|x| (0..5).fold(x / norm, |x: f64, _| 3.4445 * x - 4.7750 * x.powi(3) + 2.0315 * x.powi(5)));
    assert!(factor.iter().all(|f| (0.65..1.25).contains(f)), "{factor:?}");
    for (scale, length, tall) in [
        (MuonScale::Original, 1.0, false),
        (MuonScale::Original, 1.5f64.sqrt(), true),
        (MuonScale::MatchAdamW, 0.2 * 3f64.sqrt(), false),
        (MuonScale::MatchAdamW, 0.2 * 3f64.sqrt(), true),
    ] {
        let turn = |t: Tensor| if tall { t.t().unwrap() } else { t };
        let g = turn(Tensor::from_slice(&compose(sigma), [2, 3]).unwrap());
        let mut w = g.ones_like().unwrap();
        let mut muon = Muon { lr: 0.1, weight_decay: 0.5, scale, ..Muon::default() };
        let grads = gradient_of(&w, &g);
        muon.step(&mut w, &grads).unwrap();
        let want = turn(Tensor::from_slice(&compose(factor), [2, 3]).unwrap()).to_f64_vec().unwrap();
        close(&w, &want.iter().map(|f| 1.0 - 0.1 * 0.5 - 0.1 * length * f).collect::<Vec<_>>(), 1e-12);
    }
}

/// What is no matrix is AdamW's, in the same bits; a zero gradient does not become NaN.
#[test]
fn muon_leaves_the_rest_to_adamw() {
    let x = |k| Tensor::randn([6], F32, Key::new(k)).unwrap();
    let (mut a, mut b) = (x(0), x(0));
    let mut muon = Muon { lr: 1e-2, ..Muon::default() };
    let mut adam = AdamW { lr: 1e-2, betas: (0.9, 0.95), weight_decay: 0.1, ..AdamW::default() };
    for k in 1..4 {
        let (ga, gb) = (gradient_of(&a, &x(k)), gradient_of(&b, &x(k)));
        muon.step(&mut a, &ga).unwrap();
        adam.step(&mut b, &gb).unwrap();
    }
    assert_eq!(a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
    let mut w = Tensor::ones([3, 2], F32).unwrap();
    let zero = gradient_of(&w, &Tensor::zeros([3, 2], F32).unwrap());
    Muon { weight_decay: 0.0, ..Muon::default() }.step(&mut w, &zero).unwrap();
    assert_eq!(w.to_vec::<f32>().unwrap(), [1.0; 6]);
}

/// The first group that matches counts; its decay overrides the default rule.
#[test]
fn groups_change_rate_and_decay() {
    let start = || (Tensor::ones([1, 1], F64).unwrap(), Tensor::ones([1], F64).unwrap(), Tensor::ones([1], F64).unwrap());
    let model = start();
    let zero = grad(&model, |(a, b, c)| a.sum(..)?.add(&b.sum(..)?)?.add(&c.sum(..)?)?.mul_scalar(0.0)).unwrap();
    let groups = vec![
        Group::new(|name, _| name == "1").lr(0.5).weight_decay(0.2),
        Group::new(|name, _| name == "1").lr(100.0),
        Group::new(|name, _| name == "0").lr(2.0),
    ];
    let mut m = start();
    AdamW { lr: 0.1, weight_decay: 0.3, groups: groups.clone(), ..AdamW::default() }.step(&mut m, &zero).unwrap();
    let items = |m: &(Tensor, Tensor, Tensor)| [&m.0, &m.1, &m.2].map(|t| t.item().unwrap());
    assert_eq!(items(&m), [1.0 - 0.2 * 0.3, 1.0 - 0.05 * 0.2, 1.0]);
    let mut m = start();
    Sgd { weight_decay: 0.5, groups, ..Sgd::new(0.1) }.step(&mut m, &zero).unwrap();
    assert_eq!(items(&m), [1.0 - 0.2 * 0.5, 1.0 - 0.05 * 0.2, 1.0 - 0.1 * 0.5]);
    let mut m = start();
    Sgd { weight_decay: 0.5, groups: vec![Group::new(norms_and_biases).weight_decay(0.0)], ..Sgd::new(0.1) }.step(&mut m, &zero).unwrap();
    assert_eq!(items(&m), [1.0 - 0.1 * 0.5, 1.0, 1.0]);
    let bad = vec![Group::new(|_, _| false).lr(f64::NAN)];
    assert!(Sgd { groups: bad, ..Sgd::new(0.1) }.step(&mut m, &zero).unwrap_err().is_argument());
}

/// Steps far below a half type's resolution add up in the master, and the model holds its rounded value.
#[test]
fn half_parameters_have_masters() {
    for dtype in [BF16, F16] {
        let value = |d: DType| Tensor::from_slice(&[1f32, -3.0, 0.5, 100.0], [4]).unwrap().cast(d).unwrap();
        let g = Tensor::from_slice(&[1f32, -2.0, 0.25, 3.0], [4]).unwrap();
        let (mut half, mut single) = (value(dtype), value(F32));
        let (mut a, mut b) = (AdamW { lr: 1e-4, ..AdamW::default() }, AdamW { lr: 1e-4, ..AdamW::default() });
        for step in 0..100 {
            let gh = gradient_of(&half, &g.cast(dtype).unwrap());
            a.step(&mut half, &gh).unwrap();
            let gs = gradient_of(&single, &g);
            b.step(&mut single, &gs).unwrap();
            assert_eq!(half.to_f64_vec().unwrap(), single.cast(dtype).unwrap().to_f64_vec().unwrap(), "{dtype}, step {step}");
        }
        assert_eq!(half.dtype(), dtype);
        assert_eq!(a.master("").unwrap().to_vec::<f32>().unwrap(), single.to_vec::<f32>().unwrap());
        assert!((half.to_f64_vec().unwrap()[0] - 0.99).abs() < 0.005, "{half}");
        // Someone else sets the weights: the master follows instead of undoing it.
        half = value(dtype).mul_scalar(2.0).unwrap();
        let gh = gradient_of(&half, &g.cast(dtype).unwrap());
        a.step(&mut half, &gh).unwrap();
        assert!((half.to_f64_vec().unwrap()[0] - 2.0).abs() < 0.01, "{half}");
        // The other optimizers have the same walk.
        let mut w = value(dtype);
        let mut sgd = Sgd { momentum: 0.9, ..Sgd::new(1e-4) };
        for _ in 0..100 {
            let g = gradient_of(&w, &g.cast(dtype).unwrap());
            sgd.step(&mut w, &g).unwrap();
        }
        assert!(w.to_f64_vec().unwrap()[0] < 0.95, "{w}");
    }
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_counted() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut w, mut adam) = (Tensor::ones([3], F32).unwrap(), AdamW::default());
        let good = gradient_of(&w, &Tensor::ones([3], F32).unwrap());
        adam.step(&mut w, &good).unwrap();
        let (before, moment) = (w.to_vec::<f32>().unwrap(), adam.moments("").unwrap().0.to_vec::<f32>().unwrap());
        let mut grads = gradient_of(&w, &Tensor::from_slice(&[1.0, bad, 1.0], [3]).unwrap());
        adam.step(&mut w, &grads).unwrap();
        // Clipping notices it, and does not hide it.
        assert!(!grads.clip_global_norm(1.0).unwrap().finite);
        adam.step(&mut w, &grads).unwrap();
        assert_eq!((adam.steps(), adam.skipped()), (1, 2));
        assert_eq!(w.to_vec::<f32>().unwrap(), before);
        assert_eq!(adam.moments("").unwrap().0.to_vec::<f32>().unwrap(), moment);
        AdamW { skip_non_finite: false, ..adam.clone() }.step(&mut w, &grads).unwrap();
        assert!(!w.to_vec::<f32>().unwrap()[1].is_finite(), "skipped although it should not be");
    }
    // What clipping has found finite stays so only until the gradients change.
    let mut w = Tensor::ones([2], F32).unwrap();
    let mut grads = gradient_of(&w, &w);
    assert!(grads.clip_global_norm(1.0).unwrap().finite);
    grads
        .update(|_, g| {
            *g = g.mul_scalar(f64::INFINITY)?;
            Ok(())
        })
        .unwrap();
    let mut sgd = Sgd::new(0.1);
    sgd.step(&mut w, &grads).unwrap();
    assert_eq!(sgd.skipped(), 1);
}

/// PyTorch's rule: halve at an overflow, double after a run without one.
#[test]
fn the_loss_scale_follows_overflows() {
    let w = Tensor::ones([2], F32).unwrap();
    let mut scaler = LossScaler { interval: 3, ..LossScaler::default() };
    let (good, bad) = (Tensor::ones([2], F32).unwrap(), Tensor::from_slice(&[f32::INFINITY, 1.0], [2]).unwrap());
    let mut scales = Vec::new();
    for overflow in [false, false, true, false, false, false, false, true, true] {
        let mut grads = gradient_of(&w, if overflow { &bad } else { &good });
        let before = scaler.scale;
        assert_eq!(scaler.unscale(&mut grads).unwrap(), !overflow);
        if !overflow {
            assert_eq!(grads.to_vec::<f32>().unwrap(), [1.0 / before as f32; 2]);
        }
        scales.push(scaler.scale);
    }
    let s = 65_536.0;
    assert_eq!(scales, [s, s, s / 2.0, s / 2.0, s / 2.0, s, s, s / 2.0, s / 4.0]);
    assert_eq!(scaler.skipped, 3);
    let mut other = LossScaler { interval: 3, ..LossScaler::default() };
    other.load_state(&scaler.state()).unwrap();
    assert_eq!(other, scaler);
    assert!(other.load_state(&Sgd::new(0.1).state()).unwrap_err().to_string().contains("`loss_scaler.good`"));
    // Overflows without end do not reach zero.
    for _ in 0..100 {
        scaler.unscale(&mut gradient_of(&w, &bad)).unwrap();
    }
    assert!(scaler.scale > 0.0 && scaler.scale(&w).is_ok());
    assert!(LossScaler { scale: 0.0, ..scaler }.scale(&w).unwrap_err().is_argument());
}

/// Gradients below f16's smallest number arrive, and f16 parameters learn from them through their masters.
#[test]
fn small_gradients_survive_f16() {
    let w = Tensor::from_slice(&[1f32], [1]).unwrap().cast(F16).unwrap();
    let loss = |w: &Tensor| w.mul_scalar(1e-4)?.square()?.sum(..);
    let (_, plain) = value_and_grad(&w, loss).unwrap();
    assert!((plain.to_f64_vec().unwrap()[0] / 2e-8 - 1.0).abs() > 0.3, "f16 holds it by itself");
    // 1e-4² vanishes in the value too, so only the gradient is looked at.
    let mut scaler = LossScaler { scale: 16_384.0, ..LossScaler::default() };
    let (_, mut grads) = value_and_grad(&w, |w| scaler.scale(&loss(w)?)).unwrap();
    assert!(scaler.unscale(&mut grads).unwrap());
    assert_eq!(grads.dtype(), F32);
    assert!((grads.to_f64_vec().unwrap()[0] / 2e-8 - 1.0).abs() < 1e-2, "{grads:?}");
    let mut w = w;
    let mut adam = AdamW { lr: 0.25, eps: 0.0, ..AdamW::default() };
    adam.step(&mut w, &grads).unwrap();
    assert_eq!(w.to_f64_vec().unwrap(), [0.75]);
}

#[test]
fn averages_follow_their_formula() {
    let value = |x: f64, d: DType| (Tensor::full([2], x, d).unwrap(), Tensor::from_slice(&[x as i64], [1]).unwrap());
    for (dtype, warm_up) in [(F64, false), (F64, true), (BF16, false)] {
        let mut ema = Ema::new(&value(1.0, dtype), 0.99).unwrap();
        ema.warm_up = warm_up;
        let mut want = 1f64;
        for step in 0..20u32 {
            let x = if step < 10 { 2.0 } else { -1.0 };
            ema.update(&value(x, dtype)).unwrap();
            let n = f64::from(step);
            let d = if warm_up { 0.99f64.min((1.0 + n) / (10.0 + n)) } else { 0.99 };
            want = d * want + (1.0 - d) * x;
        }
        let averaged = ema.model(&value(0.0, dtype)).unwrap();
        assert_eq!((averaged.0.dtype(), averaged.1.to_vec::<i64>().unwrap()), (dtype, vec![-1]));
        close(&averaged.0, &[want; 2], if dtype == F64 { 1e-14 } else { 4e-3 });
        let kept = &ema.state().tensors["ema.average.0"];
        close(kept, &[want; 2], if dtype == F64 { 1e-14 } else { 1e-6 });
        // Saved and loaded; of another model refused by name.
        let mut other = Ema::new(&value(7.0, dtype), 0.99).unwrap();
        other.load_state(&ema.state()).unwrap();
        assert_eq!((other.steps(), other.state().tensors["ema.average.0"].to_f64_vec().unwrap()), (20, kept.to_f64_vec().unwrap()));
        let e = other.update(&(value(0.0, dtype).0, f64s(&[1.0, 2.0]))).unwrap_err();
        assert!(e.is_shape() && e.to_string().contains("`1`"), "{e}");
        let e = Ema::new(&value(0.0, F32), 0.9).unwrap().load_state(&Ema::new(&value(0.0, F64), 0.9).unwrap().state()).unwrap_err();
        assert!(e.is_dtype() && e.to_string().contains("`0`"), "{e}");
        assert!(ema.update(&Param::from(f64s(&[0.0]))).unwrap_err().to_string().contains("`0`"));
    }
    assert!(Ema::new(&f64s(&[1.0]), 1.5).unwrap_err().is_argument());
}

/// Parts with unequal numbers of counted targets give the gradient of the whole batch, not the mean of means [C12].
#[test]
fn accumulation_equals_the_full_batch_for_unequal_token_counts() {
    for dtype in [F64, BF16] {
        let w = Tensor::randn([5, 4], dtype, Key::new(1)).unwrap();
        let x = Tensor::randn([7, 4], dtype, Key::new(2)).unwrap();
        let targets = [0i64, 3, -100, 2, -100, -100, 4];
        let y = Tensor::from_slice(&targets, [7]).unwrap();
        let ignoring = CrossEntropyOptions { ignore_index: Some(-100), ..CrossEntropyOptions::default() };
        let mean = |from: usize, len: usize| {
            let (x, y) = (x.narrow(0, from, len).unwrap(), y.narrow(0, from, len).unwrap());
            value_and_grad(&w, |w| x.linear(w, None)?.cross_entropy_with(&y, &ignoring)).unwrap()
        };
        let (loss, full) = mean(0, 7);
        let mut sum = Accumulator::new();
        for (from, len) in [(0, 2), (2, 2), (4, 2), (6, 1)] {
            let counted = targets[from..from + len].iter().filter(|t| **t >= 0).count();
            let (loss, grads) = mean(from, len);
            sum.add(loss.item().unwrap(), grads, counted as f64).unwrap();
        }
        assert_eq!(sum.weight(), 4.0);
        let (mean_loss, grads) = sum.finish().unwrap();
        let tolerance = if dtype == F64 { 1e-14 } else { 1e-2 };
        assert!((mean_loss - loss.item().unwrap()).abs() < tolerance);
        close(&grads, &full.to_f64_vec().unwrap(), tolerance);
        assert_eq!(grads.dtype(), if dtype == F64 { F64 } else { F32 });
        // Empty again; a weight that is none is refused.
        assert!(sum.finish().unwrap_err().is_argument());
        assert!(sum.add(0.0, grads, f64::NAN).unwrap_err().is_argument());
    }
}

/// Every rule, mask and master on the emulated device is what it is on the CPU; state follows its parameter there.
#[test]
#[cfg(feature = "emulator")]
fn every_rule_on_the_emulated_device() {
    use cotangent::Device;
    use cotangent::optim::Optimizer;
    let device = Device::cuda_emulated().unwrap();
    type Make = fn() -> Box<dyn Optimizer<Tensor>>;
    let all: [Make; 5] = [
        || Box::new(Adam { lr: 1e-2, weight_decay: 0.1, ..Adam::default() }),
        || Box::new(Sgd { momentum: 0.9, dampening: 0.3, weight_decay: 0.1, ..Sgd::new(0.05) }),
        || Box::new(Muon { lr: 1e-2, ..Muon::default() }),
        || Box::new(Muon { lr: 1e-2, matrices: |_, _| false, ..Muon::default() }),
        || Box::new(AdamW { lr: 1e-2, ..AdamW::default() }),
    ];
    let value = |k, dtype| Tensor::randn([6, 5], F32, Key::new(k)).unwrap().cast(dtype).unwrap();
    for (i, make) in all.into_iter().enumerate() {
        for dtype in [F32, BF16] {
            let run = |places: [Device; 4]| {
                let (mut w, mut o) = (value(0, dtype), make());
                let mut ema = Ema::new(&w, 0.5).unwrap();
                for (k, place) in places.into_iter().enumerate() {
                    w = w.to_device(place).unwrap();
                    let g = gradient_of(&w, &value(k as u64 + 1, dtype).to_device(place).unwrap());
                    o.step(&mut w, &g).unwrap();
                    ema.update(&w).unwrap();
                }
                assert_eq!(w.device(), places[3]);
                let average = ema.model(&w).unwrap();
                [w, average].map(|t| t.to_f64_vec().unwrap())
            };
            let cpu = run([Device::Cpu; 4]);
            for places in [[device; 4], [Device::Cpu, Device::Cpu, device, device], [device, device, Device::Cpu, Device::Cpu]] {
                for (a, b) in cpu.iter().flatten().zip(run(places).iter().flatten()) {
                    // One step of bf16 where the rounded master falls on the other side.
                    let tolerance = if dtype == BF16 { 8e-3 * a.abs() + 1e-5 } else { 2e-6 };
                    assert!((a - b).abs() <= tolerance, "optimizer {i} in {dtype} on {places:?}: {a} {b}");
                }
            }
        }
    }
    let w = Tensor::ones([2], F32).unwrap().to_device(device).unwrap();
    let bad = Tensor::from_slice(&[f32::NAN, 1.0], [2]).unwrap().to_device(device).unwrap();
    let mut grads = gradient_of(&w, &bad);
    let (mut scaler, mut sgd, mut stepped) = (LossScaler::default(), Sgd::new(0.1), w.clone());
    assert!(!scaler.unscale(&mut grads).unwrap());
    sgd.step(&mut stepped, &grads).unwrap();
    assert_eq!((sgd.skipped(), stepped.to_vec::<f32>().unwrap()), (1, vec![1.0; 2]));
}
