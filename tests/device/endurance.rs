//! What only repetition shows, on a GPU where there is one, else in a small form on the emulated device: the same bits from run to
//! run, memory that stays flat, and a device that survives running out of memory.

use super::{alone, device};
use crate::ops::suite as ops;
use cotangent::backend::cuda;
use cotangent::nn::{Gpt, GptConfig};
use cotangent::optim::AdamW;
use cotangent::{BF16, DType, Device, F32, F64, Key, Module, Result, Tensor, value_and_grad};

/// A GPU where there is one; with `REQUIRE_GPU=1` there must be.
fn on_a_gpu() -> bool {
    device() != Device::CudaEmulated
}

fn model(width: usize, context: usize, dropout: f64) -> Result<Gpt> {
    let config = GptConfig { vocabulary: 65, context, layers: 2, heads: width / 16, width, dropout, bias: true, ..GptConfig::default() };
    Gpt::new(&config, F32, Key::new(1))?.to_device(device())
}

/// Tokens, and those that follow.
fn batch(rows: usize, context: usize, step: u64) -> Result<[Tensor; 2]> {
    let key = Key::new(3).fold(step);
    let ids: Vec<i64> = (0..(rows * context) as u64).map(|i| key.below(i, 65) as i64).collect();
    let x = Tensor::from_slice(&ids, [rows, context])?.to_device(device())?;
    let y = x.roll(&[-1], 1)?;
    Ok([x, y])
}

/// All bits of a loss and its gradients.
fn bits(gpt: &Gpt, dtype: DType, [x, y]: &[Tensor; 2]) -> Result<Vec<u64>> {
    let (loss, grads) = value_and_grad(gpt, |m| m.cast(dtype)?.loss(x, y, Some(Key::new(2))))?;
    let mut all = vec![loss.item()?.to_bits()];
    for (_, g) in grads.named() {
        all.extend(g.to_f64_vec()?.iter().map(|v| v.to_bits()));
    }
    Ok(all)
}

/// A model's gradients many times, and on a GPU the benchmark cases of every op, too: there, blocks run in another order each time.
#[test]
fn repeats_give_the_same_bits() {
    let (times, width, context, rows) = if on_a_gpu() { (50, 256, 256, 8) } else { (3, 32, 8, 2) };
    let gpt = model(width, context, 0.1).unwrap();
    let x = batch(rows, context, 0).unwrap();
    for dtype in [F32, BF16] {
        let first = bits(&gpt, dtype, &x).unwrap();
        for time in 1..times {
            assert!(bits(&gpt, dtype, &x).unwrap() == first, "{dtype}: run {time} gives other bits than the first");
        }
    }
    crate::say(&format!("a GPT's gradients on {}: {times} times the same bits in f32 and bf16", device()));
    if on_a_gpu() {
        let cases = every_op_repeats(times).unwrap();
        crate::say(&format!("{cases} cases on {}: {times} times the same values, and the same bits at the end", device()));
    }
}

/// Runs every op's benchmark cases `times` times; returns how many.
fn every_op_repeats(times: usize) -> Result<usize> {
    let mut count = 0;
    for entry in ops::entries() {
        for case in [F32, BF16].into_iter().flat_map(|d| entry.bench_on(d, device())) {
            let first = (case.forward)()?;
            // Elements that differ; a NaN differs from itself, every time.
            let differ = |y: &Tensor, x: &Tensor| y.ne(x)?.cast(F64)?.sum(..)?.item();
            for time in 1..times {
                for (y, first) in (case.forward)()?.iter().zip(&first) {
                    assert_eq!(differ(y, first)?, differ(first, first)?, "{}: run {time} differs", case.id);
                    if time + 1 == times {
                        let same = y.to_f64_vec()?.iter().zip(first.to_f64_vec()?).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{}: other bits", case.id);
                    }
                }
            }
            count += 1;
        }
    }
    Ok(count)
}

/// From its third step on a training loop holds the same memory and takes none from the device.
#[test]
fn memory_stays_flat_over_many_steps() {
    if !alone("endurance::memory_stays_flat_over_many_steps") {
        return;
    }
    let (steps, width, context, rows) = if on_a_gpu() { (10_000, 64, 64, 8) } else { (20, 16, 8, 2) };
    let mut gpt = model(width, context, 0.1).unwrap();
    let mut adam = AdamW { lr: 1e-3, ..AdamW::default() };
    let mut step = |i: u64| -> Result<f64> {
        let [x, y] = batch(rows, context, i)?;
        let (loss, mut grads) = value_and_grad(&gpt, |m| m.loss(&x, &y, Some(Key::new(2).fold(i))))?;
        grads.clip_global_norm(1.0)?;
        adam.step(&mut gpt, &grads)?;
        loss.item()
    };
    for i in 0..3 {
        step(i).unwrap();
    }
    let before = cuda::memory_stats(device()).unwrap();
    for i in 3..steps {
        let loss = step(i).unwrap();
        assert!(loss.is_finite(), "step {i}: {loss}");
    }
    let after = cuda::memory_stats(device()).unwrap();
    assert_eq!(before, after, "memory after 3 and after {steps} steps");
    crate::say(&format!("{steps} steps on {}: {} bytes held at most, {} blocks taken in all", device(), after.peak, after.fresh_blocks));
}

/// An allocation that fails is an error; what was computed before is intact, and the memory is there again once it is free.
#[test]
fn running_out_of_memory_is_survived() {
    if !alone("endurance::running_out_of_memory_is_survived") {
        return;
    }
    let one = Tensor::from_slice(&[2f32], [1]).unwrap().to_device(device()).unwrap();
    let kept = one.exp().unwrap();
    // More than any device has, and beyond the address space of 47 bits.
    for n in [1usize << 39, 1 << 46] {
        let e = one.expand([n]).unwrap().contiguous().unwrap_err();
        assert!(e.is_out_of_memory() && e.to_string().contains("contiguous"), "{e}");
    }
    let mut filled = 0;
    if on_a_gpu() {
        let large = || one.expand([1usize << 29])?.contiguous();
        for _ in 0..3 {
            let mut held = Vec::new();
            let e = loop {
                match large() {
                    Ok(t) => held.push(t),
                    Err(e) => break e,
                }
            };
            assert!(e.is_out_of_memory(), "{e}");
            assert!(held.len() > 1, "the device has room for {} tensors of 2 GiB", held.len());
            filled = held.len();
            // Other sizes do not fit either; as soon as one tensor is gone they do.
            held.pop();
            assert_eq!(
                one.expand([1usize << 20]).unwrap().add_scalar(1.0).unwrap().sum(..).unwrap().item().unwrap(),
                3.0 * (1 << 20) as f64
            );
            assert_eq!(held[0].narrow(0, (1 << 29) - 1, 1).unwrap().to_vec::<f32>().unwrap(), [2.0]);
        }
        // Blocks that wait do not stand in the way of another size.
        assert!(one.expand([(1usize << 30) + 5]).unwrap().contiguous().is_ok());
    }
    assert_eq!(kept.to_vec::<f32>().unwrap(), one.exp().unwrap().to_vec::<f32>().unwrap());
    let gpt = model(16, 8, 0.0).unwrap();
    let x = batch(2, 8, 0).unwrap();
    assert!(bits(&gpt, F32, &x).unwrap() == bits(&gpt, F32, &x).unwrap());
    crate::say(&format!("out of memory on {}: survived, after {filled} tensors of 2 GiB", device()));
}
