//! Captured steps, of training and of generation, beside ordinary ones, on the device that `COTANGENT_BENCH_DEVICE` names (`cuda:0` if it names none):
//! `COTANGENT_BENCH_DEVICE=cuda:0 cargo bench --bench replay`. By the clock of the host, for the host's share is what a graph saves;
//! medians, the two forms taking turns.

use cotangent::backend::cuda;
use cotangent::io::ModelConfig;
use cotangent::models::{GenerateOptions, Generator, LanguageModel};
use cotangent::nn::{Gpt, GptConfig};
use cotangent::optim::AdamW;
use cotangent::{BF16, DType, Device, F32, Key, Module, Result, Tensor, value_and_grad};
use std::time::Instant;

type State = (Gpt, AdamW);

fn train((gpt, adam): &mut State, x: &[Tensor], key: Key) -> Result<Vec<Tensor>> {
    let (loss, mut grads) = value_and_grad(&*gpt, |m| m.loss(&x[0], &x[1], Some(key)))?;
    let norm = grads.clip_by_global_norm(1.0)?;
    adam.step(gpt, &grads)?;
    Ok(vec![loss, norm])
}

/// Seconds until all that `f` queued is done.
fn seconds(device: Device, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    cuda::synchronize(device)?;
    let start = Instant::now();
    f()?;
    cuda::synchronize(device)?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn training(device: Device, name: &str, config: &GptConfig, batch: usize, runs: usize) -> Result<()> {
    let gpt = Gpt::new(config, F32, Key::new(1))?.to_device(device)?;
    let mut state: State = (gpt, AdamW { lr: 1e-4, skip_non_finite: false, ..AdamW::default() });
    let draw = |k: u64| -> Result<Tensor> {
        let ids = (0..(batch * config.context) as u64).map(|i| Key::new(k).below(i, config.vocabulary as u64) as i64);
        Tensor::from_vec(ids.collect::<Vec<_>>(), [batch, config.context])?.to_device(device)
    };
    let x = [draw(2)?, draw(3)?];
    train(&mut state, &x, Key::new(4))?;
    let mut graph = device.capture(&mut state, &[&x[0], &x[1]], Key::new(4), train)?;
    let mut times = [Vec::new(), Vec::new()];
    for i in 0..runs as u64 {
        let key = Key::new(5).fold(i);
        times[0].push(seconds(device, || train(&mut state, &x, key).map(drop))?);
        times[1].push(seconds(device, || graph.replay(&mut state, &[&x[0], &x[1]], key).map(drop))?);
    }
    let [ordinary, replayed] = times.map(median);
    println!("{name:40} ordinary {:9.3} ms  replayed {:9.3} ms  {:.2}x", ordinary * 1e3, replayed * 1e3, ordinary / replayed);
    Ok(())
}

/// GPT-2's sizes, its steps of generation by themselves: a row, after a prompt.
fn generation(device: Device, name: &str, json: &str, dtype: DType, prompt: usize, count: usize) -> Result<()> {
    let model = LanguageModel::new(&ModelConfig::parse(json)?, dtype, Key::new(1))?.to_device(device)?;
    let prompt: Vec<u32> = (0..prompt).map(|i| (i * 7 % model.vocabulary()) as u32).collect();
    let rate = |graph| -> Result<f64> {
        let options = GenerateOptions { max_tokens: count, graph, ..GenerateOptions::default() };
        let stream = Generator::new(&model, options).stream(&prompt)?;
        let mut times = Vec::new();
        let mut last = Instant::now();
        for step in stream {
            step?;
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
        // The first is the prompt, the second takes the capture.
        Ok(median(times.split_off(2)))
    };
    let (ordinary, replayed) = (rate(false)?, rate(true)?);
    println!("{name:40} ordinary {:9.3} ms  replayed {:9.3} ms  {:.2}x", ordinary * 1e3, replayed * 1e3, ordinary / replayed);
    Ok(())
}

fn main() -> Result<()> {
    let device: Device = match std::env::var("COTANGENT_BENCH_DEVICE") {
        Ok(name) if !name.is_empty() => name.parse()?,
        _ => Device::cuda(0)?,
    };
    let small = GptConfig { vocabulary: 65, context: 64, layers: 4, heads: 4, width: 128, dropout: 0.1, ..GptConfig::default() };
    if device == Device::CudaEmulated {
        training(device, "one layer, width 16", &GptConfig { context: 8, layers: 1, heads: 2, width: 16, ..small }, 2, 3)?;
        let json = r#"{"model_type": "gpt2", "vocab_size": 65, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}"#;
        return generation(device, "generation, one layer, width 16", json, F32, 4, 6);
    }
    let json = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}"#;
    for dtype in [F32, BF16] {
        generation(device, &format!("generation gpt2 12x768 {dtype}, 128 + 200"), json, dtype, 128, 200)?;
    }
    training(device, "nanogpt 4x128, 12x64 tokens", &small, 12, 50)?;
    let baby = GptConfig { context: 256, layers: 6, heads: 6, width: 384, ..small.clone() };
    training(device, "gptbaby 6x384, 64x256 tokens", &baby, 64, 20)?;
    let gpt2 = GptConfig { vocabulary: 50_257, context: 1024, layers: 12, heads: 12, width: 768, bias: true, ..small };
    training(device, "gpt2 12x768, 4x1024 tokens", &gpt2, 4, 10)
}
