//! Whole training steps: a transformer block, nanoGPT's CPU configuration, and a small GPT of 10.8 M parameters.
//!
//! The workloads are those of the comparison with other frameworks: f32, one step is forward, backward to all parameters,
//! clipping by the global norm and AdamW. `cargo bench --bench step -- gptbaby`; threads are rayon's (`RAYON_NUM_THREADS`).

use cotangent::nn::{Activation, Block, CausalSelfAttention, Gpt, GptConfig, LayerNorm, Linear, Mlp, NormOrder};
use cotangent::optim::AdamW;
use cotangent::{F32, Key, Result, Tensor, value_and_grad};
use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;

/// A pre-norm block, batch 4, time 128, width 256, 8 heads, tanh GELU: gradients of the input and of all weights.
fn block(c: &mut Criterion) -> Result<()> {
    let (batch, time, width, heads) = (4, 128, 256, 8);
    let key = Key::new(1);
    let linear = |i, o, k| Linear::normal(i, o, true, 0.02, F32, key.fold(k));
    let model = Block {
        ln_1: LayerNorm::new(width, true, F32)?,
        attn: CausalSelfAttention { c_attn: linear(width, 3 * width, 0)?, c_proj: linear(width, width, 1)?, heads, dropout: 0.0 },
        ln_2: LayerNorm::new(width, true, F32)?,
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
    let mut group = c.benchmark_group("block");
    group.throughput(Throughput::Elements((batch * time) as u64));
    group.bench_function("forward", |b| b.iter(|| black_box(both.0.forward(&both.1, None).expect("forward"))));
    group.bench_function("forward+backward", |b| {
        b.iter(|| black_box(value_and_grad(&both, |(m, x)| m.forward(x, None)?.mul(&weights)?.sum(..)).expect("gradient")));
    });
    group.finish();
    Ok(())
}

fn gpt(c: &mut Criterion, name: &str, config: &GptConfig, batch: usize) -> Result<()> {
    let key = Key::new(2);
    let mut model = Gpt::new(config, F32, key.fold(0))?;
    let draw = |k: u64| -> Result<Tensor> {
        let n = batch * config.context;
        let ids: Vec<i64> = (0..n as u64).map(|i| key.fold(k).below(i, config.vocabulary as u64) as i64).collect();
        Tensor::from_slice(&ids, [batch, config.context])
    };
    let (x, y) = (draw(1)?, draw(2)?);
    let mut adam = AdamW { lr: 1e-4, ..AdamW::default() };
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group.throughput(Throughput::Elements((batch * config.context) as u64));
    group.bench_function("forward", |b| b.iter(|| black_box(model.loss(&x, &y, None).expect("loss"))));
    group.bench_function("forward+backward", |b| b.iter(|| black_box(value_and_grad(&model, |m| m.loss(&x, &y, None)).expect("gradient"))));
    group.bench_function("step", |b| {
        b.iter(|| {
            let (loss, mut grads) = value_and_grad(&model, |m| m.loss(&x, &y, None)).expect("gradient");
            grads.clip_global_norm(1.0).expect("clip");
            adam.step(&mut model, &grads).expect("step");
            black_box(loss)
        });
    });
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut c = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5)).configure_from_args();
    block(&mut c)?;
    gpt(&mut c, "nanogpt", &GptConfig::default(), 12)?;
    let baby = GptConfig {
        vocabulary: 65,
        context: 256,
        layers: 6,
        heads: 6,
        width: 384,
        bias: true,
        dropout: 0.0,
        activation: Activation::GeluTanh,
    };
    gpt(&mut c, "gptbaby", &baby, 8)?;
    c.final_summary();
    Ok(())
}
