//! Replays a recorded PyTorch training run: nanoGPT's CPU configuration, 200 steps of AdamW with clipping.
//!
//! The recorded run is not chaotic: an error in the engine, the optimizer or an op shows as a drift of the loss long
//! before it reaches the tolerance by rounding alone (perturbing the initial weights by 1e-5 moves the loss by 6e-6).

use crate::models::folders;
use cotangent::nn::{Activation, Gpt, GptConfig};
use cotangent::optim::{AdamW, Schedule, WarmupCosine};
use cotangent::{DType, Device, F32, F64, Key, Module, Result, Tensor, value_and_grad};
use std::collections::BTreeMap;
use std::path::Path;

pub fn load(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.iter()
        .map(|(name, view)| {
            let shape = view.shape().to_vec();
            let d = view.data();
            let t = match view.dtype() {
                safetensors::Dtype::F64 => Tensor::from_slice(&chunks(d, f64::from_le_bytes), shape),
                safetensors::Dtype::F32 => Tensor::from_slice(&chunks(d, f32::from_le_bytes), shape),
                safetensors::Dtype::I64 => Tensor::from_slice(&chunks(d, i64::from_le_bytes), shape),
                safetensors::Dtype::I32 => Tensor::from_slice(&chunks(d, |b| i64::from(i32::from_le_bytes(b))), shape),
                safetensors::Dtype::U8 => Tensor::from_slice(&d.iter().map(|&b| i64::from(b)).collect::<Vec<_>>(), shape),
                other => panic!("{name}: {other:?}"),
            };
            (name.to_owned(), t.unwrap())
        })
        .collect()
}

fn chunks<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
}

struct Run {
    losses: Vec<f64>,
    norms: Vec<f64>,
    model: Gpt,
}

fn train(folder: &Path, dtype: DType, steps: usize) -> Result<Run> {
    train_on(folder, dtype, steps, Device::Cpu)
}

fn train_on(folder: &Path, dtype: DType, steps: usize, device: Device) -> Result<Run> {
    let init = load(&folder.join("init.safetensors"));
    let tokens = load(&folder.join("batches.safetensors"))["train_tokens"].clone();
    let (context, width) = (init["transformer.wpe.weight"].shape()[0], init["transformer.wpe.weight"].shape()[1]);
    let layers = init.keys().filter(|n| n.ends_with("ln_1.weight")).count();
    let vocabulary = init["transformer.wte.weight"].shape()[0];
    let config = GptConfig { vocabulary, context, layers, heads: 4, width, bias: false, dropout: 0.0, activation: Activation::Gelu };
    let mut model = Gpt::new(&config, dtype, Key::new(0))?;
    model.load_named(&init)?;
    let mut model = model.to_device(device)?;
    let mut adam = AdamW { betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.1, ..AdamW::default() };
    let schedule = WarmupCosine { peak: 1e-3, floor: 1e-4, warmup: 20, end: 200 };
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let batch = tokens.select(0, step as isize)?.to_device(device)?;
        let (x, y) = (batch.narrow(1, 0, context)?, batch.narrow(1, 1, context)?);
        let (loss, mut grads) = value_and_grad(&model, |m| m.loss(&x, &y, None))?;
        norms.push(grads.clip_global_norm(1.0)?.norm);
        adam.lr = schedule.at(step);
        adam.step(&mut model, &grads)?;
        losses.push(loss.item()?);
    }
    Ok(Run { losses, norms, model })
}

/// Losses and norms, step by step; returns the largest differences.
fn follow(folder: &Path, run: &Run, loss_tolerance: f64, norm_tolerance: f64) -> (f64, f64) {
    let expected = load(&folder.join("expected.safetensors"));
    let want = |name: &str| expected[name].to_f64_vec().unwrap();
    let (losses, norms) = (want("loss_f64"), want("grad_norm_f64"));
    let (mut loss, mut norm) = (0f64, 0f64);
    for step in 0..run.losses.len() {
        let (d, n) = (run.losses[step] - losses[step], run.norms[step] - norms[step]);
        assert!(d.abs() <= loss_tolerance, "step {step}: loss {} instead of {} ({d:e})", run.losses[step], losses[step]);
        assert!(n.abs() <= norm_tolerance * norms[step], "step {step}: gradient norm {} instead of {}", run.norms[step], norms[step]);
        (loss, norm) = (loss.max(d.abs()), norm.max(n.abs()));
    }
    (loss, norm)
}

fn compare(folder: &Path, run: &Run, loss_tolerance: f64, norm_tolerance: f64, weight_tolerance: f64) {
    follow(folder, run, loss_tolerance, norm_tolerance);
    let expected = load(&folder.join("expected.safetensors"));
    let mut compared = 0;
    for (name, t) in run.model.named_tensors() {
        let Some(e) = expected.get(&format!("final_f64.{name}")) else { continue };
        let (got, want) = (t.to_f64_vec().unwrap(), e.to_f64_vec().unwrap());
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d <= m { m } else { d });
        assert!(worst <= weight_tolerance, "{name}: final weights differ by {worst:e}");
        compared += 1;
    }
    assert!(compared > 0, "no final weights to compare with in {}", folder.display());
}

#[test]
fn nanogpt_f32_follows_pytorch() {
    for folder in folders("replay") {
        let run = train(&folder, F32, 200).unwrap();
        compare(&folder, &run, 1e-5, 1e-4, 1e-3);
    }
}

#[test]
fn nanogpt_f64_follows_pytorch() {
    for folder in folders("replay") {
        let run = train(&folder, F64, 200).unwrap();
        // The final weights are stored in f32.
        compare(&folder, &run, 1e-9, 1e-9, 1e-6);
    }
}

/// The whole backend at work: on a GPU all 200 steps against PyTorch's.
#[test]
fn nanogpt_on_the_gpu_follows_pytorch() {
    let gpu = match Device::cuda(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            assert!(e.is_device_unavailable(), "{e}");
            assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "{e}");
            crate::say(&format!("skipped: nanoGPT's replay on cuda:0 ({e})"));
            return;
        }
    };
    for folder in folders("replay") {
        let run = train_on(&folder, F32, 200, gpu).unwrap();
        compare(&folder, &run, 1e-5, 1e-4, 1e-3);
    }
}

/// Twenty of the steps: all 200 would take ten minutes.
#[test]
#[cfg(feature = "emulator")]
fn nanogpt_on_the_emulated_device_follows_pytorch() {
    for folder in folders("replay") {
        let started = std::time::Instant::now();
        let run = train_on(&folder, F32, 20, Device::cuda_emulated().unwrap()).unwrap();
        let (loss, norm) = follow(&folder, &run, 1e-5, 1e-4);
        crate::say(&format!(
            "nanoGPT on cuda-emulated, 20 steps: loss within {loss:.1e}, norm within {norm:.1e}; {:.1?}",
            started.elapsed()
        ));
    }
}

#[test]
fn training_is_bitwise_reproducible() {
    let folder = &folders("replay")[0];
    let bits = |run: &Run| -> Vec<Vec<u64>> {
        let weights = run.model.named_tensors().into_iter().map(|(_, t)| t.to_f64_vec().unwrap());
        weights.chain([run.losses.clone(), run.norms.clone()]).map(|v| v.into_iter().map(f64::to_bits).collect()).collect()
    };
    let first = bits(&train(folder, F32, 200).unwrap());
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| train(folder, F32, 200).unwrap());
        assert!(bits(&again) == first, "other bits with {threads} threads");
    }
}
