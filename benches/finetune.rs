//! What training costs in memory: every parameter, or changes of low rank beside the matrices of attention.
//!
//! `cargo bench --bench finetune -- FOLDER full` and `.. FOLDER lora`, a process each: three steps of AdamW in f32 on one window of
//! 128 random tokens. Prints MiB of weights, gradients and optimizer state, and the peak of what tensors held and of the process.

use cotangent::backend::cpu::memory_stats;
use cotangent::models::{LoadOptions, Lora, add_lora, load};
use cotangent::optim::AdamW;
use cotangent::{F32, Key, Module, Result, Tensor, value_and_grad};
use std::time::Instant;

const TIME: usize = 128;

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [path, mode] = &args[..] else {
        println!("give the folder of a model, and full or lora: benches/peers/random_qwen.py writes folders");
        return Ok(());
    };
    let mut model = load(path, LoadOptions::dtype(F32))?.model;
    if mode == "lora" {
        let n = add_lora(&mut model, Lora::default(), |name, t| t.rank() == 2 && name.contains("self_attn"))?;
        println!("changes of rank 8 beside {n} matrices");
    }
    let loaded = memory_stats().in_use;
    let id = |i: usize| Key::new(1).below(i as u64, model.vocabulary() as u64) as i64;
    let x = Tensor::from_vec((0..TIME).map(id).collect::<Vec<_>>(), [1, TIME])?;
    let y = Tensor::from_vec((1..=TIME).map(id).collect::<Vec<_>>(), [1, TIME])?;
    let mut adam = AdamW { lr: 1e-4, ..AdamW::default() };
    println!("mode,weights_mib,trained,gradients_mib,after_step_mib,peak_mib,step_s,loss");
    for _ in 0..3 {
        let started = Instant::now();
        let (loss, grads) = value_and_grad(&model, |m| m.forward(&x)?.cross_entropy(&y))?;
        let gradients: usize = grads.named().iter().map(|(_, g)| g.numel() * 4).sum();
        adam.step(&mut model, &grads)?;
        drop(grads);
        let (stats, trained) = (memory_stats(), model.trainable().iter().map(|(_, t)| t.numel()).sum::<usize>());
        println!(
            "{mode},{:.1},{trained},{:.1},{:.1},{:.1},{:.2},{:.4}",
            mib(loaded),
            mib(gradients),
            mib(stats.in_use),
            mib(stats.peak),
            started.elapsed().as_secs_f64(),
            loss.item()?
        );
    }
    Ok(())
}
