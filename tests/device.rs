//! The CUDA backend: every op against its definition on the emulated device (feature `emulator`) and on a GPU when there
//! is one. `REQUIRE_GPU=1` turns a missing GPU into a failure.

use crate::ops;
use cotangent::testing::{Config, Report};
use cotangent::{Device, Tensor};
#[cfg(feature = "emulator")]
use cotangent::{F32, F64, Key, Result, Tape};

/// Ops that compute on the CPU only so far: their operands must be moved. Taking one off this list is the proof that
/// its kernels pass.
const WITHOUT_KERNELS: &[&str] = &[];

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
    let lacks = |f: &&String| f.contains("has no CUDA kernel");
    let mut missing: Vec<&str> = report.failures.iter().filter(lacks).filter_map(|f| f.split(':').next()).collect();
    missing.sort_unstable();
    missing.dedup();
    crate::say(&format!(
        "{device}: {} checks of {} ops, {} without kernels; slowest: {}",
        report.total(),
        entries.len() - missing.len(),
        missing.len(),
        slowest.join(", ")
    ));
    let wrong: Vec<String> = report.failures.iter().filter(|f| !lacks(f)).cloned().collect();
    assert!(wrong.is_empty(), "{}", ops::show(&wrong));
    let known: Vec<&str> = missing.iter().copied().filter(|n| entries.iter().any(|e| e.name == *n)).collect();
    if std::env::var_os("COTANGENT_OP").is_none() {
        assert_eq!(known, WITHOUT_KERNELS, "ops without CUDA kernels");
    }
}

#[test]
#[cfg(feature = "emulator")]
fn every_op_on_the_emulated_device() {
    suite(Device::cuda_emulated().unwrap(), &[(0, 3), (1, 7)]);
}

/// Value and gradient on the emulated device against the CPU's, for lines so long that kernels cut them or read them twice.
#[cfg(feature = "emulator")]
fn agrees(what: &str, shape: &[usize], f: impl Fn(&Tensor) -> Result<Tensor>) {
    let run = |x: &Tensor, device: Device| -> Result<[Vec<f64>; 2]> {
        let tape = Tape::new();
        let x = tape.watch(&x.to_device(device)?)?;
        let y = f(&x)?;
        let seed = Tensor::randn(y.shape().clone(), x.dtype(), Key::new(2))?.to_device(device)?;
        let g = tape.backward_from(&[(&y, seed)])?;
        Ok([y.to_f64_vec()?, g.get(&x)?.to_f64_vec()?])
    };
    for (dtype, tolerance) in [(F32, 1e-4), (F64, 1e-11)] {
        let x = Tensor::randn(shape, dtype, Key::new(1)).unwrap();
        let want = run(&x, Device::Cpu).unwrap();
        let found = run(&x, Device::cuda_emulated().unwrap()).unwrap_or_else(|e| panic!("{what}: {e}"));
        for (k, (a, b)) in want.iter().flatten().zip(found.iter().flatten()).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + a.abs()), "{what} in {dtype}, number {k}: {b} instead of {a}");
        }
    }
}

#[test]
#[cfg(feature = "emulator")]
fn long_lines_on_the_emulated_device() {
    for (shape, axis) in [(&[2usize, 40_000][..], -1), (&[9000, 3][..], 0), (&[5000, 8][..], 0)] {
        agrees("sum", shape, |x| x.sum(axis));
        agrees("max", shape, |x| x.max(axis));
        agrees("min", shape, |x| x.min(axis));
        agrees("logsumexp", shape, |x| x.logsumexp(axis));
        agrees("var", shape, |x| x.var(axis, 1));
        agrees("std", shape, |x| x.std(axis, 0));
        agrees("norm", shape, |x| x.norm(axis));
        agrees("prod", shape, |x| x.mul_scalar(1e-3)?.add_scalar(1.0)?.prod(axis));
        agrees("softmax", shape, |x| x.softmax(axis));
        agrees("log_softmax", shape, |x| x.log_softmax(axis));
        let x = Tensor::randn(shape, F32, Key::new(3)).unwrap();
        let there = x.to_device(Device::cuda_emulated().unwrap()).unwrap();
        for (a, b) in [(x.argmax(axis), there.argmax(axis)), (x.argmin(axis), there.argmin(axis))] {
            assert_eq!(a.unwrap().to_vec::<i64>().unwrap(), b.unwrap().to_vec::<i64>().unwrap());
        }
        for k in [7, 3000] {
            let (a, b) = (x.topk(k, axis, true).unwrap(), there.topk(k, axis, true).unwrap());
            assert_eq!(a.0.to_vec::<f32>().unwrap(), b.0.to_vec::<f32>().unwrap());
            assert_eq!(a.1.to_vec::<i64>().unwrap(), b.1.to_vec::<i64>().unwrap());
        }
    }
    let parameter = |x: &Tensor, seed| Tensor::randn(x.shape()[1..].to_vec(), x.dtype(), Key::new(seed))?.to_device(x.device());
    for n in [600, 2000, 9001, 9008] {
        agrees("layer_norm", &[3, n], |x| x.layer_norm(1, Some(&parameter(x, 4)?), Some(&parameter(x, 5)?), 1e-5));
        agrees("rms_norm", &[3, n], |x| x.rms_norm(Some(&parameter(x, 4)?), 1e-5));
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
    assert!("gpu".parse::<Device>().unwrap_err().to_string().contains("cuda:N"));
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
