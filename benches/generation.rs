//! How fast a language model is read, and how fast it writes: load time, tokens per second of a prompt and after it, peak
//! memory, and beside them what the memory of this machine gives when two threads only read it.
//!
//! `cargo bench --bench generation -- FOLDER_OR_GGUF [PROMPT [TOKENS [ROUNDS]]]` with `PACKED=1` for matrices that stay in blocks;
//! the threads are rayon's (`RAYON_NUM_THREADS=2`). Prints a line of CSV a round; `benches/peers/torch_generation.py` prints the same.

use cotangent::models::{Cache, Input, LoadOptions, load};
use cotangent::{Key, Module, Result, Tensor};
use std::hint::black_box;
use std::time::Instant;

/// Reads memory with all of rayon's threads, in GB/s: the best of a few passes over 512 MB.
fn bandwidth() -> f64 {
    let data = vec![1u64; 1 << 26];
    let pass = || {
        let started = Instant::now();
        let sum = std::thread::scope(|s| {
            let threads: Vec<_> = data.chunks(data.len().div_ceil(2)).map(|part| s.spawn(move || sum(part))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or(0)).fold(0, u64::wrapping_add)
        });
        black_box(sum);
        data.len() as f64 * 8e-9 / started.elapsed().as_secs_f64()
    };
    (0..6).map(|_| pass()).fold(0.0, f64::max)
}

/// Independent lanes, so that only memory limits.
fn sum(part: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    for chunk in part.as_chunks::<32>().0 {
        for (l, x) in lanes.iter_mut().zip(chunk) {
            *l = l.wrapping_add(*x);
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// The process's largest resident set so far, in MiB; 0 where the system does not say.
fn peak() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmHWM"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let Some(path) = args.next() else {
        println!("give the folder of a model: benches/peers/random_qwen.py writes some");
        return Ok(());
    };
    let mut number = |or: usize| args.next().and_then(|a| a.parse().ok()).unwrap_or(or);
    let (prompt, count, rounds) = (number(512), number(64), number(3));
    let started = Instant::now();
    let options = LoadOptions { packed: std::env::var_os("PACKED").is_some(), ..LoadOptions::default() };
    let model = load(&path, options)?.model;
    let loaded = started.elapsed().as_secs_f64();
    let weights: usize = model.named_tensors().iter().map(|(_, t)| t.numel() * t.dtype().size()).sum();
    let after_load = peak();
    let ids: Vec<i64> = (0..prompt).map(|i| Key::new(1).below(i as u64, model.vocabulary() as u64) as i64).collect();
    let tokens = Tensor::from_vec(ids, [1, prompt])?;
    println!("load_s,weights_mib,peak_after_load_mib,prompt,prefill_tokens_s,decode_tokens_s,cache_mib,peak_mib,checksum");
    for _ in 0..rounds {
        let mut cache = Cache::new(model.layers(), prompt + count)?;
        let started = Instant::now();
        let mut next = likeliest(&model.forward_with(Input { cache: Some(&mut cache), last: true, ..Input::new(&tokens) })?)?;
        let prefill = prompt as f64 / started.elapsed().as_secs_f64();
        let (started, mut checksum) = (Instant::now(), next);
        for _ in 0..count {
            let x = Tensor::from_slice(&[next], [1, 1])?;
            next = likeliest(&model.forward_with(Input { cache: Some(&mut cache), last: true, ..Input::new(&x) })?)?;
            checksum = (checksum * 31 + next) % 1_000_000_007;
        }
        let decode = count as f64 / started.elapsed().as_secs_f64();
        let bytes = |t: &Tensor| t.numel() * t.dtype().size();
        let kept: usize = cache.layers().iter().filter_map(|l| l.get().ok().flatten()).map(|(k, v)| bytes(&k) + bytes(&v)).sum();
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        println!(
            "{loaded:.3},{:.0},{after_load:.0},{prompt},{prefill:.1},{decode:.2},{:.1},{:.0},{checksum}",
            mib(weights),
            mib(kept),
            peak()
        );
    }
    drop(model);
    println!("read bandwidth of two threads: {:.1} GB/s", bandwidth());
    Ok(())
}

fn likeliest(logits: &Tensor) -> Result<i64> {
    logits.flatten(0, -1)?.argmax(0)?.item().map(|i| i as i64)
}
