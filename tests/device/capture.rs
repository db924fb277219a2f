//! Captured steps: replays give the bits of ordinary steps, what cannot be replayed is refused with op
//! and line, and the device and the state survive it.

use super::device;
use cotangent::backend::cuda;
use cotangent::nn::{Gpt, GptConfig};
use cotangent::optim::{AdamW, Sgd};
use cotangent::{Device, Error, F32, I64, Key, Module, Result, Tensor, value_and_grad};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// A GPU where there is one.
fn here(v: &[f32]) -> Tensor {
    Tensor::from_slice(v, [v.len()]).unwrap().to_device(device()).unwrap()
}

type State = (Gpt, AdamW);

fn fresh() -> State {
    let config = GptConfig { vocabulary: 11, context: 8, layers: 1, heads: 2, width: 16, dropout: 0.2, bias: true, ..GptConfig::default() };
    let gpt = Gpt::new(&config, F32, Key::new(1)).unwrap().to_device(device()).unwrap();
    (gpt, AdamW { lr: 1e-2, weight_decay: 0.1, skip_non_finite: false, ..AdamW::default() })
}

fn batch(step: u64) -> [Tensor; 2] {
    let tokens = |shift: u64| (0..16).map(|i| ((i * 7 + 5 * step + shift) % 11) as i64).collect::<Vec<_>>();
    [tokens(0), tokens(3 + step)].map(|t| Tensor::from_slice(&t, [2, 8]).unwrap())
}

/// Forward, backward, clipping, AdamW: loss and norm as tensors.
fn train((gpt, adam): &mut State, x: &[Tensor], key: Key) -> Result<Vec<Tensor>> {
    let (loss, mut grads) = value_and_grad(&*gpt, |m| m.loss(&x[0], &x[1], Some(key)))?;
    let norm = grads.clip_by_global_norm(0.8)?;
    adam.step(gpt, &grads)?;
    Ok(vec![loss, norm])
}

fn ordinary(state: &mut State, step: u64) -> Vec<u64> {
    let x = batch(step).map(|t| t.to_device(device()).unwrap());
    state.1.lr = 1e-2 / (step + 1) as f64;
    let key = Key::new(2).fold(step);
    let (loss, mut grads) = value_and_grad(&state.0, |m| m.loss(&x[0], &x[1], Some(key))).unwrap();
    let norm = grads.clip_global_norm(0.8).unwrap().norm;
    state.1.step(&mut state.0, &grads).unwrap();
    bits(state, loss.item().unwrap(), norm)
}

fn bits(state: &State, loss: f64, norm: f64) -> Vec<u64> {
    let mut all = vec![loss.to_bits(), norm.to_bits(), state.1.steps()];
    for (_, t) in state.0.named_tensors().into_iter().chain(state.1.named_tensors()) {
        all.extend(t.to_f64_vec().unwrap().iter().map(|v| v.to_bits()));
    }
    all
}

#[test]
fn a_captured_training_step_gives_the_bits_of_ordinary_steps() {
    let (mut plain, mut state) = (fresh(), fresh());
    assert_eq!(ordinary(&mut plain, 0), ordinary(&mut state, 0));
    let [x, y] = batch(0);
    let mut graph = device().capture(&mut state, &[&x, &y], Key::new(77), train).unwrap();
    assert_eq!(state.1.steps(), 1, "a capture takes no step");
    for step in 1..8 {
        let expected = ordinary(&mut plain, step);
        let [x, y] = batch(step);
        state.1.lr = 1e-2 / (step + 1) as f64;
        let out = graph.replay(&mut state, &[&x, &y], Key::new(2).fold(step)).unwrap();
        let found = bits(&state, out[0].item().unwrap(), out[1].item().unwrap());
        assert!(found == expected, "step {step}");
        if step == 5 {
            // An ordinary step between replays moves the state; the next replay brings it back.
            let expected = ordinary(&mut plain, 100);
            assert!(ordinary(&mut state, 100) == expected);
        }
    }
    // Index errors are seen after the replay, with the op and the line of the captured step.
    let [x, y] = batch(1);
    let bad = Tensor::from_slice(&[11i64; 16], [2, 8]).unwrap();
    let e = graph.replay(&mut state, &[&bad, &y], Key::new(0)).unwrap_err();
    assert!(e.is_index() && e.to_string().starts_with("embedding: index 11 at position [0, 0] is outside 0..11"), "{e}");
    let e = graph.replay(&mut state, &[&x, &bad], Key::new(0)).unwrap_err();
    assert!(e.is_index() && e.to_string().starts_with("linear_cross_entropy: target 11 at position 0"), "{e}");
    assert!(e.to_string().contains(".rs:"), "{e}");
    assert!(graph.replay(&mut state, &[&x, &y], Key::new(0)).unwrap()[0].item().unwrap().is_finite());
    // What is part of the graph may not change; shapes neither.
    state.1.eps = 1e-3;
    assert!(graph.replay(&mut state, &[&x, &y], Key::new(0)).unwrap_err().is_capture());
    state.1.eps = 1e-8;
    assert!(graph.replay(&mut state, &[&x], Key::new(0)).unwrap_err().is_argument());
    assert!(graph.replay(&mut state, &[&x.narrow(0, 0, 1).unwrap(), &y], Key::new(0)).unwrap_err().is_shape());
    // A tensor that shares the state's memory must not change behind its holder's back.
    let kept = state.0.clone();
    let before = kept.transformer.wte.weight.to_vec::<f32>().unwrap();
    let e = graph.replay(&mut state, &[&x, &y], Key::new(0)).unwrap_err();
    assert!(e.is_capture() && e.to_string().contains("wte.weight"), "{e}");
    assert_eq!(kept.transformer.wte.weight.to_vec::<f32>().unwrap(), before);
    drop(kept);
    graph.replay(&mut state, &[&x, &y], Key::new(0)).unwrap();
    // Another model in the same state: its weights are taken over.
    state.0 = fresh().0;
    let mut plain = (fresh().0, state.1.clone());
    let expected = {
        let x = batch(3).map(|t| t.to_device(device()).unwrap());
        let out = train(&mut plain, &x, Key::new(5)).unwrap();
        bits(&plain, out[0].item().unwrap(), out[1].item().unwrap())
    };
    drop(plain);
    let [x, y] = batch(3);
    let out = graph.replay(&mut state, &[&x, &y], Key::new(5)).unwrap();
    assert!(bits(&state, out[0].item().unwrap(), out[1].item().unwrap()) == expected);
}

/// What a capture of `step` refuses; the device and the state are as before.
fn refused<S: cotangent::Module + Clone>(
    state: &mut S,
    x: &Tensor,
    step: impl FnOnce(&mut S, &[Tensor], Key) -> Result<Vec<Tensor>>,
) -> Error {
    let values = |s: &S| s.named_tensors().into_iter().map(|(n, t)| (n, t.to_f64_vec().unwrap())).collect::<Vec<_>>();
    let before = values(state);
    let e = device().capture(state, &[x], Key::new(1), step).unwrap_err();
    assert!(values(state) == before, "{e}");
    assert_eq!(here(&[1.0, 2.0]).exp().unwrap().numel(), 2);
    assert_eq!(here(&[1.0, 2.0]).square().unwrap().to_vec::<f32>().unwrap(), [1.0, 4.0]);
    e
}

/// The error names this op and a line of this file.
fn named(e: &Error, op: &str) {
    let text = e.to_string();
    assert!(e.is_capture(), "{e:?}");
    assert!(text.starts_with(&format!("{op}: ")) && text.contains("tests/device/capture.rs:"), "{text}");
}

#[test]
fn what_cannot_be_replayed_is_refused_with_op_and_line() {
    let x = here(&[1.0, 2.0, 3.0]);
    let s = &mut here(&[0.5, 0.5, 0.5]);
    named(&refused(s, &x, |_, x, _| Ok(vec![Tensor::from_slice(&x[0].exp()?.to_vec::<f32>()?, [3])?])), "to_vec");
    named(&refused(s, &x, |_, x, _| x[0].mul_scalar(x[0].sum(..)?.item()?).map(|y| vec![y])), "item");
    named(&refused(s, &x, |_, x, _| x[0].repeat_interleave(&x[0].cast(I64)?, 0).map(|y| vec![y])), "repeat_interleave");
    named(&refused(s, &x, |_, x, _| x[0].add(&Tensor::scalar(1f32)?.to_device(device())?).map(|y| vec![y])), "to_device");
    named(&refused(s, &x, |_, x, _| x[0].to_device(Device::Cpu).map(|y| vec![y])), "to_device");
    named(&refused(s, &x, |_, x, _| cuda::synchronize(device()).and_then(|()| Ok(vec![x[0].exp()?]))), "synchronize");
    named(&refused(s, &x, |_, x, _| x[0].dropout(0.5, Key::new(3)).map(|y| vec![y])), "capture");
    named(&refused(s, &x, |_, _, _| Ok(vec![Tensor::scalar(1f32)?])), "capture");
    named(
        &refused(s, &x, |s, x, _| {
            let (_, mut g) = value_and_grad(&*s, |s| s.mul(&x[0])?.sum(..))?;
            g.clip_global_norm(1.0)?;
            Ok(vec![])
        }),
        "clip_global_norm",
    );
    named(
        &refused(s, &x, |s, x, _| {
            let (_, g) = value_and_grad(&*s, |s| s.mul(&x[0])?.sum(..))?;
            Sgd::new(0.1).step(s, &g)?;
            Ok(vec![])
        }),
        "sgd",
    );
    named(
        &refused(s, &x, |s, x, _| {
            let (_, g) = value_and_grad(&*s, |s| s.mul(&x[0])?.sum(..))?;
            AdamW { skip_non_finite: false, ..AdamW::default() }.step(s, &g)?;
            Ok(vec![])
        }),
        "adamw",
    );
    let with_adam = &mut (s.clone(), AdamW { skip_non_finite: false, ..AdamW::default() });
    let e = refused(with_adam, &x, |(s, adam), x, _| {
        let (_, g) = value_and_grad(&*s, |s| s.mul(&x[0])?.sum(..))?;
        adam.step(s, &g)?;
        Ok(vec![])
    });
    named(&e, "adamw");
    assert!(e.to_string().contains("take one step before"), "{e}");
    // Inside one another; a tensor that outlives the step; a state that changes its shape, or grows.
    named(&refused(s, &x, |_, x, k| device().capture(&mut x[0].clone(), &[], k, |_, _, _| Ok(vec![])).map(|_| vec![])), "capture");
    let mut leaked = None;
    let e = refused(s, &x, |_, x, _| {
        leaked = Some(x[0].exp()?);
        Ok(vec![])
    });
    named(&e, "capture");
    named(&refused(s, &x, |s, _, _| s.narrow(0, 0, 2).and_then(|t| t.exp()).map(|t| *s = t).map(|()| vec![])), "capture");
    let mut many = vec![here(&[0.5, 0.25])];
    named(
        &device().capture(&mut many, &[&x], Key::new(1), |s, x, _| x[0].exp().map(|t| s.push(t)).map(|()| vec![])).unwrap_err(),
        "capture",
    );
    assert_eq!(many[0].to_vec::<f32>().unwrap(), [0.5, 0.25]);
    // Errors of the step itself come through; a CPU tensor in the state, and the CPU, are no place for a capture.
    assert!(refused(s, &x, |_, x, _| x[0].reshape([7]).map(|y| vec![y])).is_shape());
    let cpu = &mut Tensor::scalar(1f32).unwrap();
    assert!(device().capture(cpu, &[], Key::new(0), |_, _, _| Ok(vec![])).unwrap_err().is_device());
    assert!(Device::Cpu.capture(cpu, &[], Key::new(0), |_, _, _| Ok(vec![])).unwrap_err().is_device());
}

#[test]
fn state_may_be_replaced_swapped_and_shifted_in_a_captured_step() {
    let step = |s: &mut Vec<Tensor>, x: &[Tensor], _: Key| {
        s.swap(0, 1);
        // A cache that drops its first element and takes the newest.
        s[2] = Tensor::concat(&[&s[2].narrow(0, 1, 2)?, &x[0].sum(..)?.reshape([1])?], 0)?;
        s[0] = s[0].add(&s[2].sum(..)?)?;
        Ok(vec![s[0].clone(), x[0].clone(), s[2].mul_scalar(2.0)?])
    };
    let fresh = || vec![here(&[1.0, 2.0]), here(&[10.0, 20.0]), here(&[0.0, 0.0, 0.0])];
    let (mut plain, mut state) = (fresh(), fresh());
    let mut graph = device().capture(&mut state, &[&here(&[0.0, 0.0])], Key::new(0), step).unwrap();
    for i in 1..6 {
        let x = here(&[i as f32, 0.5]);
        let expected = step(&mut plain, std::slice::from_ref(&x), Key::new(0)).unwrap();
        let found = graph.replay(&mut state, &[&x], Key::new(0)).unwrap();
        let values = |t: &[Tensor]| t.iter().map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>();
        assert_eq!(values(&found), values(&expected));
        assert_eq!(values(&state), values(&plain));
    }
}

#[test]
fn a_graph_keeps_the_memory_it_uses_and_gives_it_back() {
    let held = || cuda::memory_stats(device()).unwrap();
    let n = 3001;
    let constant = here(&vec![3.0; n]);
    let state = &mut here(&vec![0.0; n]);
    let captured = constant.clone();
    let mut graph = device()
        .capture(state, &[&constant], Key::new(0), move |s, x, _| {
            *s = s.add(&captured)?.mul_scalar(1.0)?.exp()?.log()?;
            Ok(vec![s.add(&x[0])?])
        })
        .unwrap();
    drop(constant);
    assert!(graph.memory() > 4 * n);
    // Memory of the graph and of its constant is not handed out, whatever else is computed.
    for i in 1..4 {
        let others: Vec<Tensor> = (0..20).map(|k| here(&vec![k as f32; n]).exp().unwrap()).collect();
        let out = graph.replay(state, &[&here(&vec![i as f32; n])], Key::new(0)).unwrap();
        let (found, s) = (out[0].to_vec::<f32>().unwrap(), state.to_vec::<f32>().unwrap());
        assert!(s.iter().all(|v| (v - 3.0 * i as f32).abs() < 1e-4) && found.iter().all(|v| (v - 4.0 * i as f32).abs() < 1e-4));
        assert!(others.iter().enumerate().all(|(k, t)| t.to_vec::<f32>().unwrap()[n - 1] == (k as f32).exp()));
    }
    drop(graph);
    assert!(held().reserved >= held().allocated);
    // The blocks are handed out again: the same step takes none from the device.
    let again = |state: &mut Tensor| {
        device().capture(state, &[], Key::new(0), |s, _, _| Ok(vec![s.exp()?.exp()?])).unwrap();
    };
    again(state);
    again(state);
}

#[test]
fn other_threads_wait_for_a_capture() {
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let x = here(&[1.0, 2.0]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                assert_eq!(here(&[3.0]).square().unwrap().to_vec::<f32>().unwrap(), [9.0]);
                rounds.fetch_add(1, Relaxed);
            }
        });
        let mut i = 0f32;
        while i < 20.0 || rounds.load(Relaxed) < 20 {
            i += 1.0;
            let state = &mut here(&[0.0, 1.0]);
            let mut graph = device().capture(state, &[&x], Key::new(0), |s, x, _| Ok(vec![s.add(&x[0])?.exp()?])).unwrap();
            let out = graph.replay(state, &[&here(&[1.0 / i, 0.0])], Key::new(0)).unwrap();
            assert_eq!(out[0].to_vec::<f32>().unwrap(), here(&[1.0 / i, 1.0]).exp().unwrap().to_vec::<f32>().unwrap());
        }
        stop.store(true, Relaxed);
    });
}

#[test]
fn memory_is_counted_by_op() {
    cuda::record_memory_by_op(device(), true).unwrap();
    let x = here(&[0.5; 1000]);
    let y = x.normal_cdf().unwrap();
    drop(x.normal_cdf().unwrap());
    let of = cuda::memory_by_op(device()).unwrap()["normal_cdf"];
    assert!(of.held >= 4000, "{of:?}");
    assert_eq!((of.taken, of.peak, of.blocks), (2 * of.held, 2 * of.held, 2));
    drop(y);
    assert_eq!(cuda::memory_by_op(device()).unwrap()["normal_cdf"].held, 0);
    cuda::record_memory_by_op(device(), false).unwrap();
    assert!(cuda::memory_by_op(device()).unwrap().is_empty());
}
