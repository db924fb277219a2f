//! Whole training steps: a transformer block, nanoGPT's CPU configuration, a small GPT of 10.8 M parameters, GPT-2 of 124 M.
//!
//! The workloads are those of the comparison with other frameworks: one step is forward, backward to all parameters,
//! clipping by the global norm (not for GPT-2) and AdamW. f32, or with `COTANGENT_BENCH_DTYPES=bf16` mixed precision: weights,
//! gradients and the optimizer in f32, the model cast inside the loss. `cargo bench --bench step -- gptbaby`; threads are rayon's
//! (`RAYON_NUM_THREADS`). benches/peers/compare.py runs them (`COTANGENT_TURNS=gpt2`) in turns with PyTorch's.

#[path = "common/turns.rs"]
mod turns;

use cotangent::nn::{Activation, Block, CausalSelfAttention, Gpt, GptConfig, Init, LayerNorm, Linear, LinearOptions, Mlp, NormOrder};
use cotangent::optim::AdamW;
use cotangent::{DType, Error, F32, Key, Module, Result, Tensor, value_and_grad};
use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;

/// A pre-norm block, batch 4, time 128, width 256, 8 heads, tanh GELU: gradients of the input and of all weights.
fn block() -> Result<((Block, Tensor), Tensor)> {
    let (batch, time, width, heads) = (4, 128, 256, 8);
    let key = Key::new(1);
    let linear = |i, o, k| Linear::with(i, o, F32, key.fold(k), &LinearOptions { bias: true, init: Init::Normal { std: 0.02 } });
    let model = Block {
        ln_1: LayerNorm::new(width, F32)?,
        attn: CausalSelfAttention { c_attn: linear(width, 3 * width, 0)?, c_proj: linear(width, width, 1)?, heads, dropout: 0.0 },
        ln_2: LayerNorm::new(width, F32)?,
        mlp: Mlp {
            c_fc: linear(width, 4 * width, 2)?,
            c_proj: linear(4 * width, width, 3)?,
            activation: Activation::GeluTanh,
            dropout: 0.0,
        },
        order: NormOrder::Pre,
    };
    let x = Tensor::randn([batch, time, width], F32, key.fold(4))?;
    let weights = Tensor::randn([batch, time, width], F32, key.fold(5))?;
    let both = (model, x);
    Ok((both, weights))
}

/// A model as it computes: cast where another dtype is asked for.
fn cast<M: Module + Clone>(model: &M, dtype: DType) -> Result<M> {
    if dtype == F32 { Ok(model.clone()) } else { model.cast(dtype) }
}

/// Gradients of the block's input and weights.
fn block_step((both, weights): &((Block, Tensor), Tensor), dtype: DType) -> Result<()> {
    black_box(value_and_grad(both, |both| {
        let (m, x) = cast(both, dtype)?;
        m.forward(&x, None)?.cast(F32)?.mul(weights)?.sum(..)
    })?);
    Ok(())
}

/// A model, what it trains on, and its optimizer.
struct Training {
    model: Gpt,
    tokens: Tensor,
    targets: Tensor,
    adam: AdamW,
    clips: bool,
    dtype: DType,
}

impl Training {
    fn new(config: &GptConfig, batch: usize, clips: bool, dtype: DType) -> Result<Self> {
        let key = Key::new(2);
        let draw = |k: u64| -> Result<Tensor> {
            let n = batch * config.context;
            let ids: Vec<i64> = (0..n as u64).map(|i| key.fold(k).below(i, config.vocabulary as u64) as i64).collect();
            Tensor::from_slice(&ids, [batch, config.context])
        };
        let adam = AdamW { lr: 1e-4, ..AdamW::default() };
        Ok(Training { model: Gpt::new(config, F32, key.fold(0))?, tokens: draw(1)?, targets: draw(2)?, adam, clips, dtype })
    }

    fn loss(&self, model: &Gpt) -> Result<Tensor> {
        cast(model, self.dtype)?.loss(&self.tokens, &self.targets, None)
    }

    fn step(&mut self) -> Result<()> {
        let (loss, mut grads) = value_and_grad(&self.model, |m| self.loss(m))?;
        if self.clips {
            grads.clip_global_norm(1.0)?;
        }
        self.adam.step(&mut self.model, &grads)?;
        black_box(loss.item()?);
        Ok(())
    }
}

/// Configuration, batch and whether gradients are clipped.
fn training(name: &str) -> Option<(GptConfig, usize, bool)> {
    let default = GptConfig { bias: true, activation: Activation::GeluTanh, ..GptConfig::default() };
    match name {
        "nanogpt" => Some((GptConfig::default(), 12, true)),
        "gptbaby" => Some((GptConfig { context: 256, layers: 6, heads: 6, width: 384, ..default }, 8, true)),
        "gpt2" => Some((GptConfig { vocabulary: 50_257, context: 256, layers: 12, heads: 12, width: 768, ..default }, 1, false)),
        _ => None,
    }
}

fn main() -> Result<()> {
    let dtype = match std::env::var("COTANGENT_BENCH_DTYPES") {
        Ok(name) => name.parse()?,
        Err(_) => F32,
    };
    if let Ok(name) = std::env::var("COTANGENT_TURNS") {
        if name == "block" {
            let parts = block()?;
            return turns::serve(dtype, Box::new(move || block_step(&parts, dtype)));
        }
        let (config, batch, clips) = training(&name).ok_or_else(|| Error::argument(format!("no workload is named {name}")))?;
        let mut training = Training::new(&config, batch, clips, dtype)?;
        return turns::serve(dtype, Box::new(move || training.step()));
    }
    let mut c = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5)).configure_from_args();
    let parts = block()?;
    let mut group = c.benchmark_group("block");
    group.bench_function("forward", |b| b.iter(|| black_box(parts.0.0.forward(&parts.0.1, None).expect("forward"))));
    group.bench_function("forward+backward", |b| b.iter(|| block_step(&parts, dtype).expect("gradient")));
    group.finish();
    for name in ["nanogpt", "gptbaby", "gpt2"] {
        let Some((config, batch, clips)) = training(name) else { continue };
        let make = || Training::new(&config, batch, clips, dtype).expect("model");
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        group.throughput(Throughput::Elements((batch * config.context) as u64));
        group.bench_function("forward", |b| {
            let t = make();
            b.iter(|| black_box(t.loss(&t.model).expect("loss")));
        });
        group.bench_function("forward+backward", |b| {
            let t = make();
            b.iter(|| black_box(value_and_grad(&t.model, |m| t.loss(m)).expect("gradient")));
        });
        group.bench_function("step", |b| {
            let mut t = make();
            b.iter(|| t.step().expect("step"));
        });
        group.finish();
    }
    c.final_summary();
    Ok(())
}
