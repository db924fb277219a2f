//! What the trainer costs: nanoGPT's CPU configuration by hand, and through [`Trainer`] with a health report every ten steps.
//!
//! `cargo bench --bench trainer` runs both in turn, ten steps at a time, so that other load meets both alike, and prints the
//! median of the paired ratios, and the ratio of the fastest rounds, which other load disturbs least. `-- 60` sets the number of pairs (default 20). Both must end with the same weights.

use cotangent::diagnostics::HealthReport;
use cotangent::nn::{Gpt, GptConfig};
use cotangent::optim::AdamW;
use cotangent::train::{Batches, Event, Options, Order, Tokens, Trainer, Windows};
use cotangent::{F32, Key, Module, Result, value_and_grad};
use std::hint::black_box;
use std::time::Instant;

const ROUND: usize = 10;

fn main() -> Result<()> {
    let pairs = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(20usize).max(1);
    let (key, config) = (Key::new(1), GptConfig::default());
    let tokens: Vec<u32> = (0..100_000).map(|i| key.below(i, config.vocabulary as u64) as u32).collect();
    let data = Windows::new(Tokens::from(tokens), 12, config.context, Order::Random, key.fold(1))?;
    let (mut by_hand, mut adam) = (Gpt::new(&config, F32, key)?, AdamW::default());
    let mut trainer = Trainer::new(by_hand.clone(), AdamW::default());
    trainer.on(|event| {
        if let Event::Step { report, model, grads, .. } = event
            && report.step.is_multiple_of(10)
        {
            black_box(HealthReport::new(*model, grads)?);
        }
        Ok(())
    });
    let mut position = 0;
    let mut hand = || -> Result<f64> {
        let started = Instant::now();
        for _ in 0..ROUND {
            let (x, y) = data.batch(position)?;
            let (loss, mut grads) = value_and_grad(&by_hand, |m| m.loss(&x, &y, None))?;
            grads.clip_global_norm(1.0)?;
            adam.step(&mut by_hand, &grads)?;
            black_box(loss.item()?);
            position += 1;
        }
        Ok(started.elapsed().as_secs_f64())
    };
    let mut driven = || -> Result<f64> {
        let started = Instant::now();
        trainer.options = Options { steps: trainer.step() + ROUND, clip: Some(1.0), ..Options::default() };
        trainer.run(&data, |m, (x, y), _| m.loss(x, y, None))?;
        Ok(started.elapsed().as_secs_f64())
    };
    // Fills the store of recycled memory.
    hand()?;
    driven()?;
    let (mut ratios, mut best, mut best_driven) = (Vec::new(), f64::INFINITY, f64::INFINITY);
    for pair in 0..pairs {
        // Whoever comes second may find caches warm or the clock throttled: they take turns.
        let (h, d) = if pair % 2 == 0 { (hand()?, driven()?) } else { swap(driven()?, hand()?) };
        (best, best_driven) = (best.min(h), best_driven.min(d));
        ratios.push(d / h - 1.0);
    }
    ratios.sort_by(f64::total_cmp);
    let at = |q: f64| 100.0 * ratios[((ratios.len() - 1) as f64 * q) as usize];
    println!(
        "step by hand: {:.2} ms at best; trainer and health report: {:+.2} % (quartiles {:+.2} to {:+.2}, {pairs} pairs)",
        1e3 * best / ROUND as f64,
        at(0.5),
        at(0.25),
        at(0.75)
    );
    println!("fastest rounds: {:+.2} %", 100.0 * (best_driven / best - 1.0));
    let (x, y) = data.batch(0)?;
    let (_, grads) = value_and_grad(&by_hand, |m| m.loss(&x, &y, None))?;
    let mut report = f64::INFINITY;
    for _ in 0..pairs {
        let started = Instant::now();
        black_box(HealthReport::new(&by_hand, &grads)?);
        report = report.min(started.elapsed().as_secs_f64());
    }
    println!("one health report: {:.2} ms at best; every ten steps that is {:.2} % of a step", 1e3 * report, 100.0 * report / best);
    let same = by_hand
        .named_tensors()
        .iter()
        .zip(trainer.model.named_tensors())
        .all(|((_, a), (_, b))| a.to_f64_vec().ok() == b.to_f64_vec().ok());
    assert!(same, "the trainer took other steps than the loop by hand");
    Ok(())
}

fn swap(d: f64, h: f64) -> (f64, f64) {
    (h, d)
}
