//! The ops that training spends its time in, forward and backward, at the sizes of the comparison with PyTorch on the CPU.
//!
//! `cargo bench --bench table -- softmax` times by criterion; f32 unless `COTANGENT_BENCH_DTYPES` says another; threads are
//! rayon's (`RAYON_NUM_THREADS`). benches/peers/compare.py runs the same workloads (`COTANGENT_TURNS=softmax`) in turns with
//! PyTorch's (benches/peers/torch_table.py). `attention@2048` has another length, `linear@256` another number of rows,
//! `layer_norm@1024` another width, `select_loop@3200` another number of steps: its time is to be linear in them.
//!
//! `fma256` and `fma512` say what kind of machine it is: the same number of f32 multiply-adds in registers of 256 and of 512 bits,
//! on one thread. Where 512 bits take half the time AVX-512 is full-rate, where they take the same it is half-rate.

#[path = "common/turns.rs"]
mod turns;

use cotangent::nn::{Activation, Gpt, GptConfig, Pass, ResNet, ResNetConfig};
use cotangent::ops::{Conv1dOptions, Conv2dOptions};
use cotangent::optim::AdamW;
use cotangent::{DType, Error, F32, I64, Key, Result, Tape, Tensor, ops::CrossEntropyOptions, ops::SdpaOptions, value_and_grad};
use criterion::Criterion;
#[cfg(target_arch = "x86_64")]
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::time::Duration;
use turns::Work;

/// In the order of the table; the last ones are none of its ten.
const NAMES: [&str; 31] = [
    "attention",
    "layer_norm",
    "rms_norm",
    "softmax",
    "cross_entropy",
    "gelu",
    "swiglu",
    "embedding",
    "linear",
    "adamw",
    "adamw_checked",
    "gelu_tanh",
    "add",
    "mul",
    "linear_cross_entropy",
    "head_cross_entropy",
    "copy",
    "randn",
    "rand",
    "select_loop",
    "unbind_loop",
    "small_ops",
    "small_ops_untracked",
    "conv3x3",
    "conv3x3@128",
    "conv3x3@256",
    "conv3x3@512",
    "conv1x1",
    "depthwise",
    "conv1d",
    "resnet18",
];

/// GPT-2 with 124 M parameters, 256 tokens of context as in the training step.
pub fn gpt2() -> GptConfig {
    GptConfig {
        vocabulary: 50_257,
        context: 256,
        layers: 12,
        heads: 12,
        width: 768,
        bias: true,
        dropout: 0.0,
        activation: Activation::GeluTanh,
    }
}

/// Forward, and backward from random cotangents, to all float operands.
fn both(x: Vec<Tensor>, f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Result<Work> {
    let y = f(&x)?;
    let seed = Tensor::randn(y.shape().clone(), y.dtype(), Key::new(9))?;
    Ok(Box::new(move || {
        let tape = Tape::new();
        let x: Vec<Tensor> = x.iter().map(|t| if t.dtype().is_float() { tape.watch(t) } else { Ok(t.clone()) }).collect::<Result<_>>()?;
        let y = f(&x)?;
        black_box(tape.backward_from(&[(&y, seed.clone())])?);
        Ok(())
    }))
}

fn work(name: &str, dtype: DType) -> Result<Work> {
    let (name, size) = name.split_once('@').map_or((name, None), |(n, s)| (n, s.parse::<usize>().ok()));
    let random = |shape: &[usize], k| Tensor::randn(shape, dtype, Key::new(k));
    let indices = |n: usize, below: u64| -> Result<Tensor> {
        let ids: Vec<i64> = (0..n as u64).map(|i| Key::new(7).below(i, below) as i64).collect();
        Tensor::from_slice(&ids, [n])
    };
    let width = size.unwrap_or(768);
    match name {
        "attention" => {
            // Another length keeps the number of tokens above 512, and one sequence below.
            let time = size.unwrap_or(512);
            let shape = [if size.is_some() { 1 } else { 4 }, 12, time, 64];
            both(vec![random(&shape, 1)?, random(&shape, 2)?, random(&shape, 3)?], |x| {
                x[0].scaled_dot_product_attention(&x[1], &x[2], None, &SdpaOptions::causal())
            })
        }
        "layer_norm" => both(vec![random(&[4096, width], 1)?, random(&[width], 2)?, random(&[width], 3)?], |x| {
            x[0].layer_norm(1, Some(&x[1]), Some(&x[2]), 1e-5)
        }),
        "rms_norm" => both(vec![random(&[4096, width], 1)?, random(&[width], 2)?], |x| x[0].rms_norm(Some(&x[1]), 1e-5)),
        "softmax" => both(vec![random(&[4096, size.unwrap_or(1024)], 1)?], |x| x[0].softmax(-1)),
        "cross_entropy" => both(vec![random(&[1024, 50_257], 1)?, indices(1024, 50_257)?], |x| x[0].cross_entropy(&x[1])),
        "gelu" => both(vec![random(&[1024, 4096], 1)?], |x| x[0].gelu()),
        "gelu_tanh" => both(vec![random(&[1024, 4096], 1)?], |x| x[0].gelu_tanh()),
        "swiglu" => both(vec![random(&[1024, 4096], 1)?, random(&[1024, 4096], 2)?], |x| x[0].swiglu(&x[1])),
        "add" => both(vec![random(&[1024, 4096], 1)?, random(&[1024, 4096], 2)?], |x| x[0].add(&x[1])),
        "mul" => both(vec![random(&[1024, 4096], 1)?, random(&[1024, 4096], 2)?], |x| x[0].mul(&x[1])),
        "embedding" => both(vec![random(&[50_257, 768], 1)?, indices(8192, 50_257)?], |x| x[0].embedding(&x[1], None)),
        "linear" => both(vec![random(&[size.unwrap_or(1024), 768], 1)?, random(&[3072, 768], 2)?, random(&[3072], 3)?], |x| {
            x[0].linear(&x[1], Some(&x[2]))
        }),
        // The last layer and the loss of GPT-2, fused and as two ops.
        "linear_cross_entropy" => both(head(dtype)?, |x| x[0].linear_cross_entropy(&x[1], None, &x[2], &CrossEntropyOptions::default())),
        "head_cross_entropy" => both(head(dtype)?, |x| x[0].linear(&x[1], None)?.cross_entropy(&x[2])),
        // As PyTorch's, without a look at the gradients first; and as it is by default, with one.
        "adamw" | "adamw_checked" => {
            let mut model = Gpt::new(&gpt2(), dtype, Key::new(2))?;
            let ids = Tensor::arange(0.0, 8.0, 1.0, I64)?.reshape([1, 8])?;
            let (_, grads) = value_and_grad(&model, |m| m.loss(&ids, &ids, None))?;
            let mut adam = AdamW { lr: 1e-4, weight_decay: 0.1, skip_non_finite: name != "adamw", ..AdamW::default() };
            Ok(Box::new(move || adam.step(&mut model, &grads)))
        }
        // What the memory can do: 16 MiB read, as many written.
        "copy" => {
            let x = random(&[1024, 4096], 1)?;
            Ok(Box::new(move || x.mul_scalar(1.5).map(|y| drop(black_box(y)))))
        }
        "randn" | "rand" => {
            let (shape, draw) = ([size.unwrap_or(1 << 20)], if name == "randn" { Tensor::randn } else { Tensor::rand });
            let mut step = 0;
            Ok(Box::new(move || {
                step += 1;
                draw(shape, dtype, Key::new(1).fold(step)).map(|y| drop(black_box(y)))
            }))
        }
        // A recurrence's walk along time: the cotangents of all steps meet in one tensor.
        "select_loop" | "unbind_loop" => {
            let (time, select) = (size.unwrap_or(800), name == "select_loop");
            both(vec![random(&[16, time, 128], 1)?], move |x| {
                let steps = if select { (0..time as isize).map(|t| x[0].select(1, t)).collect::<Result<_>>()? } else { x[0].unbind(1)? };
                steps[1..].iter().try_fold(steps[0].clone(), |sum, x| sum.add(x))
            })
        }
        // The 3×3 layers of ResNet-50, by their channels (64 at 56×56 to 512 at 7×7).
        "conv3x3" => {
            let channels = size.unwrap_or(64);
            let side = 56 * 64 / channels;
            let padded = Conv2dOptions { padding: 1.into(), ..Conv2dOptions::default() };
            both(vec![random(&[8, channels, side, side], 1)?, random(&[channels, channels, 3, 3], 2)?], move |x| {
                x[0].conv2d(&x[1], None, &padded)
            })
        }
        "conv1x1" => {
            both(vec![random(&[8, 256, 56, 56], 1)?, random(&[64, 256, 1, 1], 2)?], |x| x[0].conv2d(&x[1], None, &Conv2dOptions::default()))
        }
        "depthwise" => {
            let options = Conv2dOptions { padding: 1.into(), groups: 144, ..Conv2dOptions::default() };
            both(vec![random(&[8, 144, 56, 56], 1)?, random(&[144, 1, 3, 3], 2)?], move |x| x[0].conv2d(&x[1], None, &options))
        }
        // A layer of wav2vec 2.0.
        "conv1d" => {
            let halving = Conv1dOptions { stride: [2], ..Conv1dOptions::default() };
            both(vec![random(&[4, 512, 800], 1)?, random(&[512, 512, 3], 2)?], move |x| x[0].conv1d(&x[1], None, &halving))
        }
        // Loss and gradients of a step of training.
        "resnet18" => {
            let net = ResNet::new(&ResNetConfig::resnet18(), dtype, Key::new(1))?;
            let (x, y) = (random(&[32, 3, 64, 64], 2)?, indices(32, 1000)?);
            Ok(Box::new(move || {
                let mut pass = Pass::train();
                value_and_grad(&net, |net| net.forward_in(&x, &mut pass)?.cross_entropy(&y)).map(|g| drop(black_box(g)))
            }))
        }
        // A thousand ops on a tensor of eight elements: what it costs to call an op, to record it and to sweep over it.
        "small_ops" => both(vec![random(&[8], 1)?, random(&[8], 2)?], |x| small_ops(&x[0], &x[1])),
        "small_ops_untracked" => {
            let (x, w) = (random(&[8], 1)?, random(&[8], 2)?);
            Ok(Box::new(move || small_ops(&x, &w).map(|y| drop(black_box(y)))))
        }
        #[cfg(target_arch = "x86_64")]
        "fma256" => pulp::x86::V3::try_new().map(fma).ok_or_else(|| Error::argument("no AVX2")),
        #[cfg(target_arch = "x86_64")]
        "fma512" => pulp::x86::V4::try_new().map(fma).ok_or_else(|| Error::argument("no AVX-512")),
        _ => Err(Error::argument(format!("no workload is named {name}"))),
    }
}

fn small_ops(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    (0..500).try_fold(x.clone(), |y, _| y.mul(w)?.tanh())
}

/// 201 million multiply-adds of f32.
#[cfg(target_arch = "x86_64")]
fn fma<S: Simd + 'static>(simd: S) -> Work {
    Box::new(move || {
        black_box(simd.vectorize(Fma));
        Ok(())
    })
}

#[cfg(target_arch = "x86_64")]
struct Fma;

#[cfg(target_arch = "x86_64")]
impl WithSimd for Fma {
    type Output = f32;

    /// Twelve independent sums hide the latency of two units.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(1.0)));
        let mut sums = [b; 12];
        for _ in 0..(16 << 20) / S::F32_LANES {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, a, b);
            }
        }
        sums.into_iter().map(|s| simd.reduce_sum_f32s(s)).sum()
    }
}

fn head(dtype: DType) -> Result<Vec<Tensor>> {
    let targets = Tensor::arange(0.0, 512.0, 1.0, I64)?;
    Ok(vec![Tensor::randn([512, 768], dtype, Key::new(1))?, Tensor::randn([50_257, 768], dtype, Key::new(2))?.mul_scalar(0.02)?, targets])
}

fn main() -> Result<()> {
    let dtype = match std::env::var("COTANGENT_BENCH_DTYPES") {
        Ok(name) => name.parse()?,
        Err(_) => F32,
    };
    if let Ok(name) = std::env::var("COTANGENT_TURNS") {
        return turns::serve(dtype, work(&name, dtype)?);
    }
    let mut c =
        Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).configure_from_args();
    for name in NAMES {
        let mut made = None;
        c.bench_function(&format!("table/{name} {dtype}"), |b| {
            if made.is_none() {
                made = work(name, dtype).ok();
            }
            if let Some(work) = &mut made {
                b.iter(|| work().expect("workload"));
            }
        });
    }
    c.final_summary();
    Ok(())
}
