//! The CUDA backend: every op against its definition on the emulated device (feature `emulator`) and on a GPU when there
//! is one. `REQUIRE_GPU=1` turns a missing GPU into a failure.

use crate::ops::suite as ops;
use cotangent::testing::{Config, Report};
use cotangent::{Device, Tensor};
#[cfg(feature = "emulator")]
use cotangent::{
    F32, Grads, Key, Module, Result,
    diagnostics::{HealthReport, Verdict},
    grad,
    nn::{Gpt, GptConfig},
    optim::{AdamW, Sgd},
    value_and_grad,
};

/// Kernels that no op launches: optimizers, clipping and health, which have tests of their own below, and caches, which have theirs in
/// tests/device/generation.rs.
#[cfg(feature = "emulator")]
const ELSEWHERE: &[&str] = &["adamw_", "sgd_", "muon_", "moments_", "indexing_put"];

/// The suite on one device; prints its counts.
fn suite(device: Device, rounds: &[(u64, usize)]) {
    let entries = ops::entries();
    let (report, mut times) = ops::for_all(&entries, |e| {
        let mut all = Report::default();
        for &(seed, limit) in rounds {
            e.check(&Config { seed, limit, quick: true, device }, &mut all);
            if !all.failures.is_empty() {
                break;
            }
        }
        all
    });
    times.sort();
    let slowest: Vec<String> = times.iter().rev().take(8).map(|(t, n)| format!("{n} {t:.1?}")).collect();
    crate::say(&format!("{device}: {} checks of {} ops; slowest: {}", report.total(), entries.len(), slowest.join(", ")));
    // An op without a kernel answers with an error, which is a failure.
    assert!(report.failures.is_empty(), "{}", ops::show(&report.failures));
}

#[test]
#[cfg(feature = "emulator")]
fn every_op_on_the_emulated_device() {
    suite(Device::cuda_emulated().unwrap(), &[(0, 3), (1, 7)]);
    if std::env::var_os("COTANGENT_OP").is_none() {
        super::long_lines::check();
        let elsewhere = |k: &str| ELSEWHERE.iter().any(|stem| k.starts_with(stem));
        let idle: Vec<&str> = cotangent::backend::cuda::idle_kernels().into_iter().filter(|k| !elsewhere(k)).collect();
        assert!(idle.is_empty(), "{} kernels were never launched: {}", idle.len(), idle.join(", "));
    }
}

#[test]
#[cfg(not(feature = "emulator"))]
fn the_emulated_device_needs_its_feature() {
    let e = Device::cuda_emulated().unwrap_err();
    assert!(e.is_device_unavailable() && e.to_string().contains("emulator"), "{e}");
    crate::say("skipped: the suite on cuda-emulated; run the tests with --features emulator");
}

#[test]
fn every_op_on_the_gpu() {
    match Device::cuda(0) {
        // Under compute-sanitizer, which is slow: small shapes.
        Ok(gpu) if std::env::var_os("COTANGENT_QUICK").is_some() => suite(gpu, &[(0, 3)]),
        Ok(gpu) => suite(gpu, &[(0, 3), (1, 7), (2, 17)]),
        Err(e) => {
            assert!(e.is_device_unavailable(), "{e}");
            assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "{e}");
            crate::say(&format!("skipped: the suite on cuda:0 ({e})"));
        }
    }
}

#[test]
fn unusable_devices_are_errors() {
    let e = Device::cuda(4096).unwrap_err();
    assert!(e.is_device_unavailable(), "{e}");
    let x = Tensor::from_slice(&[1f32], [1]).unwrap();
    let e = x.to_device(Device::Cuda(4096)).unwrap_err();
    assert!(e.is_device_unavailable() && e.to_string().starts_with("to_device: "), "{e}");
    assert_eq!("cuda:3".parse::<Device>().unwrap(), Device::Cuda(3));
    let e = "gpu".parse::<Device>().unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("cuda:N"), "{e}");
}

/// Losses of a few steps of training, and the norm of the last gradients.
#[cfg(feature = "emulator")]
fn train(device: Device) -> Result<(Vec<f64>, f64)> {
    let config = GptConfig { vocabulary: 11, context: 8, layers: 1, heads: 2, width: 16, dropout: 0.1, bias: true, ..GptConfig::default() };
    let mut gpt = Gpt::new(&config, F32, Key::new(1))?.to_device(device)?;
    let tokens = Tensor::from_slice(&(0..16).map(|i| i * 7 % 11).collect::<Vec<i64>>(), [2, 8])?.to_device(device)?;
    let targets = Tensor::from_slice(&(0..16).map(|i| (i * 7 + 3) % 11).collect::<Vec<i64>>(), [2, 8])?.to_device(device)?;
    let mut adam = AdamW { lr: 1e-2, weight_decay: 0.1, ..AdamW::default() };
    let (mut losses, mut norm) = (Vec::new(), 0.0);
    for step in 0..3 {
        let (loss, mut grads) = value_and_grad(&gpt, |m| m.loss(&tokens, &targets, Some(Key::new(2).fold(step))))?;
        norm = grads.clip_global_norm(1.0)?.norm;
        adam.step(&mut gpt, &grads)?;
        losses.push(loss.item()?);
    }
    assert!(gpt.named_tensors().iter().all(|(_, t)| t.device() == device));
    Ok((losses, norm))
}

#[test]
#[cfg(feature = "emulator")]
fn training_a_gpt_on_the_emulated_device_is_training_it_on_the_cpu() {
    let (cpu, cpu_norm) = train(Device::Cpu).unwrap();
    let (cuda, cuda_norm) = train(Device::cuda_emulated().unwrap()).unwrap();
    assert!(cpu[2] < cpu[0], "{cpu:?}");
    for (a, b) in cpu.iter().zip(&cuda) {
        assert!((a - b).abs() < 1e-5, "{cpu:?}\n{cuda:?}");
    }
    assert!((cpu_norm - cuda_norm).abs() < 1e-4 * cpu_norm, "{cpu_norm} {cuda_norm}");
    // The device's own bits repeat.
    assert_eq!(train(Device::cuda_emulated().unwrap()).unwrap(), (cuda, cuda_norm));
}

/// Gradients with given values, as a linear function has them.
#[cfg(feature = "emulator")]
fn gradient_of(at: &Tensor, g: &Tensor) -> Grads<Tensor> {
    let mut grads = grad(at, |x| x.add(x)?.sum(..)).unwrap();
    grads
        .update(|_, x| {
            *x = g.clone();
            Ok(())
        })
        .unwrap();
    grads
}

#[test]
#[cfg(feature = "emulator")]
fn optimizers_step_on_the_emulated_device() {
    let device = Device::cuda_emulated().unwrap();
    for n in [1usize, 3, 4, 1000, 2051] {
        let value = |k: usize| {
            Tensor::from_slice(&(0..2 * n).map(|i| ((i * 37 + k * 11) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>(), [n, 2]).unwrap()
        };
        for variant in 0..5 {
            let run = |device: Device| {
                let mut w = value(0).to_device(device).unwrap();
                let (before, kept) = (w.clone(), w.to_vec::<f32>().unwrap());
                let mut adam = AdamW { lr: 1e-2, weight_decay: 0.1, amsgrad: variant == 1, ..AdamW::default() };
                let momentum = if variant == 2 { 0.0 } else { 0.9 };
                let mut sgd = Sgd { lr: 0.1, momentum, weight_decay: 0.01, nesterov: variant == 4, ..Sgd::default() };
                for t in 1..=3 {
                    // A gradient that lies transposed in memory.
                    let g = value(t).reshape([2, n]).unwrap().to_device(device).unwrap().permute([1, 0]).unwrap();
                    let g = gradient_of(&w, &g);
                    if variant < 2 { adam.step(&mut w, &g).unwrap() } else { sgd.step(&mut w, &g).unwrap() }
                }
                assert_eq!(w.device(), device);
                assert_eq!(before.to_vec::<f32>().unwrap(), kept, "another tensor saw the step");
                w.to_vec::<f32>().unwrap()
            };
            for (a, b) in run(Device::Cpu).into_iter().zip(run(device)) {
                assert!((a - b).abs() < 1e-6, "variant {variant} of {n}: {a} {b}");
            }
        }
    }
}

#[test]
#[cfg(feature = "emulator")]
fn norms_and_health_on_the_emulated_device() {
    let device = Device::cuda_emulated().unwrap();
    let on = |v: &[f64], device| Tensor::from_slice(v, [v.len()]).unwrap().to_device(device).unwrap();
    let many: Vec<f64> = (0..5000).map(|i| f64::from(i % 17) - 8.0).collect();
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for v in [&[3.0, 4.0][..], &[3e200, 4e200], &[3e-200, -4e-200], &[1e300, 1.0, 1e-300], &[0.0; 3], &[], &many, &[1.0, inf], &[nan, 1.0]]
    {
        let both = [Device::Cpu, device].map(|d| {
            let x = on(&vec![1.0; v.len()], d);
            let mut grads = gradient_of(&x, &on(v, d));
            let norm = grads.global_norm().unwrap();
            let health = HealthReport::new(&x, &grads).unwrap().rows.remove(0);
            let clipped = grads.clip_global_norm(0.5).unwrap();
            assert!(clipped.norm.to_bits() == norm.to_bits() && clipped.finite == norm.is_finite());
            (norm, health)
        });
        let [(a, h), (b, k)] = &both;
        let near = |a: f64, b: f64| a == b || (a - b).abs() <= 1e-13 * a.abs() || (!a.is_finite() && !b.is_finite());
        assert!(near(*a, *b), "{v:?}: {a} {b}");
        assert_eq!((h.count, h.verdict, h.zeros), (k.count, k.verdict, k.zeros), "{v:?}");
        assert!(near(h.max, k.max) && near(h.std, k.std) && (near(h.mean, k.mean) || (h.mean - k.mean).abs() < 1e-13), "{h:?} {k:?}");
    }
    let x = on(&[1.0, 1.0], device);
    let report = HealthReport::new(&x, &gradient_of(&x, &on(&[inf, 0.0], device))).unwrap();
    assert_eq!(report.rows[0].verdict, Verdict::NonFinite);
}

#[test]
#[cfg(feature = "emulator")]
fn targets_out_of_range_are_errors_on_the_emulated_device() {
    let device = Device::cuda_emulated().unwrap();
    let x = Tensor::from_slice(&[0.5f32; 15], [3, 5]).unwrap().to_device(device).unwrap();
    for bad in [[0i64, 5, 9], [4, -1, 0], [0, -100, 5]] {
        let host = Tensor::from_slice(&bad, [3]).unwrap();
        let there = host.to_device(device).unwrap();
        let expected = x.to_device(Device::Cpu).unwrap().cross_entropy(&host).unwrap_err();
        let e = x.cross_entropy(&there).unwrap_err();
        assert!(e.is_index() && e.to_string().split(" (at ").next() == expected.to_string().split(" (at ").next(), "{e}\n{expected}");
        assert!(x.nll_loss(&there).unwrap_err().is_index());
    }
}
