//! What a GPU refuses and an ordinary host does not: the limits of cuBLASLt, memory that its driver takes for itself, captures of other
//! threads. The emulated device refuses the same; the rules themselves have their planted faults beside them
//! (src/backend/cuda/driver).

use super::{alone, device};
use cotangent::backend::cuda;
use cotangent::nn::{Gpt, GptConfig};
use cotangent::ops::cross_entropy::CrossEntropyOptions;
use cotangent::optim::AdamW;
use cotangent::{BF16, Device, F16, F32, F64, Key, Module, Param, Result, Tape, Tensor, value_and_grad};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Both in order, with differences up to `tolerance` times the largest number.
fn near(found: &Tensor, want: &Tensor, tolerance: f64, what: &str) {
    let (found, want) = (found.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    assert_eq!(found.len(), want.len(), "{what}");
    let largest = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(&want).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{what}: {a} at {i}, expected {b}");
    }
}

/// Matrices of one row or column, as they lie or transposed: the library demands a leading dimension as long as a line, which their
/// strides are not.
#[test]
fn matrices_of_one_line_have_a_leading_dimension() {
    let value = |shape: [usize; 2], seed| Tensor::randn(shape, F32, Key::new(seed)).unwrap();
    for (m, k, n) in [(1, 7, 5), (5, 7, 1), (5, 1, 7), (1, 7, 1), (1, 1, 7), (7, 1, 1), (1, 1, 1)] {
        for turned in [[false, false], [true, false], [false, true], [true, true]] {
            let part = |shape: [usize; 2], turned: bool, seed: u64, on: Device| -> Result<Tensor> {
                let x = value(if turned { [shape[1], shape[0]] } else { shape }, seed).to_device(on)?;
                if turned { x.transpose(0, 1) } else { Ok(x) }
            };
            let run = |on: Device| part([m, k], turned[0], 1, on)?.matmul(&part([k, n], turned[1], 2, on)?);
            near(&run(device()).unwrap(), &run(Device::Cpu).unwrap(), 1e-6, &format!("{m} x {k} x {n}, {turned:?}"));
        }
    }
}

/// A head with one class, and one with rows and weights of one element.
#[test]
fn heads_of_one_class() {
    for (rows, width, classes) in [(5, 4, 1), (5, 1, 3), (1, 4, 3), (1, 1, 1)] {
        for dtype in [F32, F64] {
            let run = |on: Device| -> Result<[Tensor; 4]> {
                let tape = Tape::new();
                let of =
                    |shape: &[usize], seed| -> Result<Tensor> { tape.watch(&Tensor::randn(shape, dtype, Key::new(seed))?.to_device(on)?) };
                let (x, w, b) = (of(&[rows, width], 1)?, of(&[classes, width], 2)?, of(&[classes], 3)?);
                let targets: Vec<i64> = (0..rows).map(|i| (i % classes) as i64).collect();
                let loss = x.linear_cross_entropy(
                    &w,
                    Some(&b),
                    &Tensor::from_slice(&targets, [rows])?.to_device(on)?,
                    &CrossEntropyOptions::default(),
                )?;
                let grads = tape.backward(&loss)?;
                Ok([loss.detach(), grads.get(&x)?.clone(), grads.get(&w)?.clone(), grads.get(&b)?.clone()])
            };
            let (found, want) = (run(device()).unwrap(), run(Device::Cpu).unwrap());
            for (found, want) in found.iter().zip(&want) {
                near(found, want, 1e-5, &format!("{rows} rows of {width}, {classes} classes, {dtype}"));
            }
        }
    }
}

/// More matrices than the library takes in one call.
#[test]
fn seventy_thousand_tiny_matrices() {
    let n = 70_000;
    let run = |on: Device| -> Result<Tensor> {
        let of = |seed| Tensor::randn([n, 2, 2], F32, Key::new(seed))?.to_device(on);
        of(1)?.matmul(&of(2)?)
    };
    near(&run(device()).unwrap(), &run(Device::Cpu).unwrap(), 1e-6, "70 000 matrices");
    // One of them for all.
    let run = |on: Device| -> Result<Tensor> {
        let of = |shape: [usize; 3], seed| Tensor::randn(shape, F32, Key::new(seed))?.to_device(on);
        of([1, 2, 3], 1)?.matmul(&of([n, 3, 2], 2)?)
    };
    near(&run(device()).unwrap(), &run(Device::Cpu).unwrap(), 1e-6, "one with 70 000 matrices");
}

/// Where the library has no algorithm that adds a bias, the bias is what the product is added to.
#[test]
fn a_bias_that_no_epilogue_adds() {
    if !alone("limits::a_bias_that_no_epilogue_adds") {
        return;
    }
    for dtype in [F32, BF16, F16, F64] {
        for (rows, width, out) in [(7, 5, 1), (7, 1, 3), (1, 5, 9), (70, 33, 20)] {
            let run = || -> Result<Tensor> {
                let of = |shape: &[usize], seed| Tensor::randn(shape, dtype, Key::new(seed))?.to_device(emulated());
                of(&[rows, width], 1)?.linear(&of(&[out, width], 2)?, Some(&of(&[out], 3)?))
            };
            cuda::refuse_emulated_epilogues(false);
            let with = run().unwrap();
            cuda::refuse_emulated_epilogues(true);
            near(&run().unwrap(), &with, 2.0 * dtype.epsilon(), &format!("{rows} x {width} x {out} in {dtype}"));
        }
    }
}

/// The device whose driver can be told what to refuse, also where there is a GPU.
fn emulated() -> Device {
    Device::cuda_emulated().unwrap()
}

/// All bits of a few captured steps.
fn steps_of_a_gpt() -> Result<Vec<u64>> {
    let config = GptConfig { vocabulary: 11, context: 8, layers: 1, heads: 2, width: 16, dropout: 0.1, bias: true, ..GptConfig::default() };
    let mut state =
        (Gpt::new(&config, F32, Key::new(1))?.to_device(emulated())?, AdamW { lr: 1e-2, skip_non_finite: false, ..AdamW::default() });
    let tokens = |shift: i64| Tensor::from_slice(&(0..16).map(|i| (i * 7 + shift) % 11).collect::<Vec<i64>>(), [2, 8]);
    let (x, y) = (tokens(0)?, tokens(3)?);
    let step = |(gpt, adam): &mut (Gpt, AdamW), x: &[Tensor], key: Key| -> Result<Vec<Tensor>> {
        let (loss, grads) = value_and_grad(&*gpt, |m| m.loss(&x[0], &x[1], Some(key)))?;
        adam.step(gpt, &grads)?;
        Ok(vec![loss])
    };
    step(&mut state, &[x.to_device(emulated())?, y.to_device(emulated())?], Key::new(0))?;
    let mut graph = emulated().capture(&mut state, &[&x, &y], Key::new(0), step)?;
    let mut bits = Vec::new();
    for i in 1..3 {
        bits.push(graph.replay(&mut state, &[&x, &y], Key::new(0).fold(i))?[0].item()?.to_bits());
    }
    for (_, t) in state.0.named_tensors() {
        bits.extend(t.to_f64_vec()?.iter().map(|v| v.to_bits()));
    }
    Ok(bits)
}

/// The driver takes memory for tensors, for every module that it loads, for the first product and for a graph. Each of these finds a
/// full device once: what waits for reuse is given back, and the step goes on as if nothing had been.
#[test]
fn every_allocation_of_the_driver_is_tried_again() {
    if !alone("limits::every_allocation_of_the_driver_is_tried_again") {
        return;
    }
    cuda::refuse_emulated_allocations(0, 0);
    let expected = steps_of_a_gpt().unwrap();
    let all = cuda::emulated_allocations();
    assert!(all > 40, "{all} allocations");
    // What is loaded stays so: later rounds have fewer of them. The first is one of everything.
    let mut seen = 0;
    for n in 1.. {
        cuda::release_cached_memory(emulated()).unwrap();
        cuda::refuse_emulated_allocations(n, 1);
        let found = steps_of_a_gpt().unwrap_or_else(|e| panic!("allocation {n}: {e}"));
        assert!(found == expected, "other bits when allocation {n} fails");
        if cuda::emulated_allocations() < n {
            break;
        }
        seen += 1;
    }
    cuda::refuse_emulated_allocations(0, 0);
    crate::say(&format!("each of {seen} allocations on {} refused once", emulated()));
}

/// From the n-th allocation of the driver on there is no memory, whoever wants it.
#[test]
fn a_full_device_says_so_wherever_it_is_noticed() {
    if !alone("limits::a_full_device_says_so_wherever_it_is_noticed") {
        return;
    }
    const FEW: u64 = 60;
    for n in 2..FEW {
        cuda::refuse_emulated_allocations(n, u64::MAX);
        match steps_of_a_gpt() {
            Err(e) => assert!(e.is_out_of_memory(), "allocation {n}: {e}"),
            Ok(_) => assert!(cuda::emulated_allocations() < n, "allocation {n} of {} failed unnoticed", cuda::emulated_allocations()),
        }
        cuda::refuse_emulated_allocations(0, 0);
        let one = Tensor::from_slice(&[2f32], [1]).unwrap().to_device(emulated()).unwrap();
        assert_eq!(one.square().unwrap().item().unwrap(), 4.0, "the device is usable after allocation {n} failed");
    }
    assert_eq!(steps_of_a_gpt().unwrap(), steps_of_a_gpt().unwrap());
}

/// AdamW has three numbers for each parameter that change from replay to replay: for these more than 4096 words.
#[test]
fn a_captured_step_of_two_thousand_parameters() {
    let count = 2000;
    let fresh = || -> (Vec<Param>, AdamW) {
        let one = |i: usize| Tensor::from_slice(&[i as f32 / 7.0], [1]).unwrap().to_device(device()).unwrap().into();
        ((0..count).map(one).collect(), AdamW { lr: 0.1, skip_non_finite: false, ..AdamW::default() })
    };
    let step = |(w, adam): &mut (Vec<Param>, AdamW), x: &[Tensor], _: Key| -> Result<Vec<Tensor>> {
        let (loss, grads) = value_and_grad(&*w, |w| Tensor::concat(w, 0)?.square()?.mul(&x[0])?.sum(..))?;
        adam.step(w, &grads)?;
        Ok(vec![loss])
    };
    let x = Tensor::from_slice(&vec![0.5f32; count], [count]).unwrap();
    let there = x.to_device(device()).unwrap();
    let (mut plain, mut state) = (fresh(), fresh());
    for s in [&mut plain, &mut state] {
        step(s, std::slice::from_ref(&there), Key::new(0)).unwrap();
    }
    let mut graph = device().capture(&mut state, &[&x], Key::new(0), step).unwrap();
    for i in 1..3 {
        plain.1.lr = 0.1 / f64::from(i);
        state.1.lr = plain.1.lr;
        let want = step(&mut plain, std::slice::from_ref(&there), Key::new(0)).unwrap();
        let found = graph.replay(&mut state, &[&x], Key::new(0)).unwrap();
        assert_eq!(found[0].to_vec::<f32>().unwrap(), want[0].to_vec::<f32>().unwrap());
    }
    let values = |s: &(Vec<Param>, AdamW)| s.0.iter().map(|p| p.item().unwrap()).collect::<Vec<_>>();
    assert!(values(&plain) == values(&state));
}

/// A time that is taken waits for a capture of another thread: its marks would be part of that, and never be passed.
#[test]
fn times_are_not_taken_inside_of_a_capture() {
    let stop = AtomicBool::new(false);
    let here = |v: &[f32]| Tensor::from_slice(v, [v.len()]).unwrap().to_device(device()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let x = here(&[3.0]);
            while !stop.load(Relaxed) {
                let seconds = cuda::time(device(), || x.square().map(drop)).unwrap();
                assert!(seconds >= 0.0);
            }
        });
        for _ in 0..50 {
            let state = &mut here(&[0.0, 1.0]);
            let mut graph = device()
                .capture(state, &[], Key::new(0), |s, _, _| {
                    std::thread::yield_now();
                    Ok(vec![s.exp()?.add_scalar(1.0)?])
                })
                .unwrap();
            graph.replay(state, &[], Key::new(0)).unwrap();
        }
        stop.store(true, Relaxed);
    });
}
