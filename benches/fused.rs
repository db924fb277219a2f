//! Fused ops beside the compositions they replace, forward and backward: `cargo bench --bench fused`, on the CPU or on the device that
//! `COTANGENT_BENCH_DEVICE` names, there by its own clock. Times are the smallest of several runs, the two forms taking turns.

use cotangent::backend::cuda;
use cotangent::{BF16, Device, F32, I64, Key, Result, Tape, Tensor, ops::CrossEntropyOptions};
use std::time::Instant;

/// Forward, and backward from a random cotangent, of all inputs.
fn step(x: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>, seed: &mut Option<Tensor>) -> Result<f64> {
    let device = x[0].device();
    if device == Device::Cpu {
        let start = Instant::now();
        run(x, f, seed)?;
        return Ok(start.elapsed().as_secs_f64());
    }
    if seed.is_none() {
        run(x, f, seed)?;
    }
    cuda::time(device, || run(x, f, seed))
}

fn run(x: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>, seed: &mut Option<Tensor>) -> Result<()> {
    let tape = Tape::new();
    let x: Vec<Tensor> = x.iter().map(|t| if t.dtype().is_float() { tape.watch(t) } else { Ok(t.clone()) }).collect::<Result<_>>()?;
    let y = f(&x)?;
    if seed.is_none() {
        *seed = Some(Tensor::randn(y.shape().clone(), y.dtype(), Key::new(9))?.to_device(y.device())?);
    }
    let Some(s) = seed else { return Ok(()) };
    tape.backward_from(&[(&y, s.clone())])?;
    Ok(())
}

fn compare(
    name: &str,
    runs: usize,
    x: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let mut best = [f64::INFINITY; 2];
    let mut seed = None;
    for _ in 0..runs {
        best[0] = best[0].min(step(x, &fused, &mut seed)?);
        best[1] = best[1].min(step(x, &composed, &mut seed)?);
    }
    println!("{name:40} fused {:8.2} ms  composed {:8.2} ms  {:.2}x", best[0] * 1e3, best[1] * 1e3, best[1] / best[0]);
    Ok(())
}

fn main() -> Result<()> {
    let device: Device = match std::env::var("COTANGENT_BENCH_DEVICE") {
        Ok(name) if !name.is_empty() => name.parse()?,
        _ => Device::Cpu,
    };
    // The emulated device only shows that this runs: a row or two of everything.
    let rows = |n: usize| if device == Device::CudaEmulated { 2 } else { n };
    let random = |shape: &[usize], dtype, k| Tensor::randn(shape, dtype, Key::new(k))?.to_device(device);
    for dtype in [F32, BF16] {
        let pair = [random(&[rows(1024), 4096], dtype, 1)?, random(&[rows(1024), 4096], dtype, 2)?];
        compare(&format!("swiglu 1024x4096 {dtype}"), 9, &pair, |x| x[0].swiglu(&x[1]), |x| x[0].silu()?.mul(&x[1]))?;
        compare(&format!("geglu 1024x4096 {dtype}"), 9, &pair, |x| x[0].geglu(&x[1]), |x| x[0].gelu()?.mul(&x[1]))?;
        compare(&format!("relu_squared 1024x4096 {dtype}"), 9, &pair[..1], |x| x[0].relu_squared(), |x| x[0].relu()?.square())?;
        let rows = [random(&[rows(4096), 768], dtype, 1)?, random(&[rows(4096), 768], dtype, 2)?, random(&[768], dtype, 3)?];
        compare(
            &format!("add_rms_norm 4096x768 {dtype}"),
            9,
            &rows,
            |x| x[0].add_rms_norm(&x[1], Some(&x[2]), 1e-5).and_then(|(y, s)| y.add(&s)),
            |x| {
                let s = x[0].add(&x[1])?;
                s.rms_norm(Some(&x[2]), 1e-5)?.add(&s)
            },
        )?;
    }
    // What fusing GELU into the product that feeds it could save: the activation's share of the two.
    let dense = [random(&[rows(1024), 768], F32, 1)?, random(&[3072, 768], F32, 2)?, random(&[3072], F32, 3)?];
    compare(
        "linear 1024x768x3072, without and with gelu",
        9,
        &dense,
        |x| x[0].linear(&x[1], Some(&x[2])),
        |x| x[0].linear(&x[1], Some(&x[2]))?.gelu(),
    )?;
    for (n, width, classes) in [(1024, 384, 8192), (512, 768, 50_257)] {
        let n = rows(n);
        let targets = Tensor::arange(0.0, n as f64, 1.0, I64)?.to_device(device)?;
        let x = [random(&[n, width], F32, 1)?, random(&[classes, width], F32, 2)?.mul_scalar(0.02)?, targets];
        compare(
            &format!("linear_cross_entropy {n}x{width}x{classes}"),
            4,
            &x,
            |x| x[0].linear_cross_entropy(&x[1], None, &x[2], &CrossEntropyOptions::default()),
            |x| x[0].linear(&x[1], None)?.cross_entropy(&x[2]),
        )?;
    }
    Ok(())
}
