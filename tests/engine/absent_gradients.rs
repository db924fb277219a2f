//! Parameters that a loss does not reach have no gradient: optimizers leave them alone. Numbers are PyTorch
//! 2.15's, with `zero_grad()` as it is (`grad` is `None`) and with `set_to_none=False`.

use cotangent::optim::{Accumulator, Adam, AdamW, Ema, LossScaler, Muon, Optimizer, Sgd};
use cotangent::train::{Options, Trainer};
use cotangent::{BF16, F32, F64, GradOptions, Grads, Key, Module, Param, Result, Tensor, module, value_and_grad_with};

const ALLOW: GradOptions = GradOptions { allow_disconnected: true };

#[derive(Clone)]
struct Two {
    w1: Param,
    w2: Param,
}
module!(Two { w1, w2 });

fn two() -> Two {
    let column = |v: [f64; 2]| Tensor::from_slice(&v, [2, 1]).unwrap().into();
    Two { w1: column([1.0, 2.0]), w2: column([3.0, 4.0]) }
}

/// Loss 1 needs both, loss 2 the first, loss 3 the second.
fn loss(m: &Two, which: u64) -> Result<Tensor> {
    match which {
        1 => m.w1.mul(&m.w2)?.square()?.sum(..),
        2 => m.w1.square()?.sum(..),
        _ => m.w2.square()?.sum(..),
    }
}

fn grads_of(m: &Two, which: u64) -> Grads<Two> {
    value_and_grad_with(m, ALLOW, |m| loss(m, which)).unwrap().1
}

fn values(m: &Two) -> Vec<f64> {
    m.named_tensors().iter().flat_map(|(_, t)| t.to_f64_vec().unwrap()).collect()
}

fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < tolerance), "{found:?}\n{expected:?}");
}

const LOSSES: [u64; 9] = [1, 1, 1, 2, 2, 2, 3, 3, 1];

fn all() -> Vec<(&'static str, Box<dyn Optimizer<Two>>, [f64; 4], [f64; 4])> {
    let sgd = Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: true, ..Sgd::new(0.01) };
    let adam = Adam { lr: 0.1, weight_decay: 0.1, ..Adam::default() };
    let adamw = AdamW { lr: 0.1, weight_decay: 0.1, amsgrad: true, ..AdamW::default() };
    vec![
        (
            "sgd",
            Box::new(sgd),
            [-0.6513001512280349, -1.9783189785700654, 2.133998537176534, 1.4530976773047035],
            [-0.8855370254304099, -2.6229158452405974, 1.9531691099451072, 0.9206492412162695],
        ),
        (
            "adam",
            Box::new(adam),
            [0.41560928933428837, 1.4130613703141635, 2.4178007025688415, 3.447733723165288],
            [0.3237064600734093, 1.3216370792902414, 2.2678794528958246, 3.3116947471176026],
        ),
        (
            "adamw",
            Box::new(adamw),
            [0.3718520154941629, 1.300349866337855, 2.2615062418751015, 3.2324934173237034],
            [0.2747749146781363, 1.1853369445207813, 2.0626858593232655, 3.0074383807683205],
        ),
    ]
}

#[test]
fn alternating_losses_are_pytorchs() {
    for (name, mut optimizer, absent, zero) in all() {
        let mut m = two();
        for which in LOSSES {
            let before = values(&m);
            let g = grads_of(&m, which);
            optimizer.step(&mut m, &g).unwrap();
            // U14: what the loss does not reach keeps its bits.
            match which {
                2 => assert_eq!(before[2..], values(&m)[2..], "{name}"),
                3 => assert_eq!(before[..2], values(&m)[..2], "{name}"),
                _ => {}
            }
        }
        close(&values(&m), &absent, 1e-12);
        let counts = optimizer.state().numbers;
        let of = |what: &str| counts[&format!("{name}.steps{what}")];
        assert_eq!((of(""), of(".w1"), of(".w2")), (9.0, 7.0, 6.0), "{name}");
        // Absent as zero.
        let (_, mut optimizer, ..) = all().into_iter().find(|o| o.0 == name).unwrap();
        let mut m = two();
        for which in LOSSES {
            let mut g = grads_of(&m, which);
            g.absent_as_zero();
            optimizer.step(&mut m, &g).unwrap();
        }
        close(&values(&m), &zero, 1e-12);
        assert_eq!(optimizer.state().numbers[&format!("{name}.steps.w2")], 9.0);
    }
}

/// As reported: three steps with both, three that leave `w2` out, which stays at the third step's [2.620, 3.587].
#[test]
fn three_steps_without_a_parameter_leave_it() {
    for amsgrad in [false, true] {
        let (mut m, mut adam) = (two(), AdamW { lr: 0.1, weight_decay: 0.1, amsgrad, ..AdamW::default() });
        for which in [1, 1, 1, 2, 2, 2] {
            let g = grads_of(&m, which);
            adam.step(&mut m, &g).unwrap();
        }
        close(&values(&m)[2..], &[2.620, 3.587], 5e-4);
    }
}

#[test]
fn clipping_and_accumulation_are_pytorchs() {
    let new = || AdamW { lr: 0.1, weight_decay: 0.1, amsgrad: true, ..AdamW::default() };
    let (mut m, mut adam) = (two(), new());
    for which in LOSSES {
        let mut g = grads_of(&m, which);
        let c = g.clip_global_norm(1.0).unwrap();
        // An absent gradient counts as none in the norm.
        let of_reached: f64 = if which == 2 { g.w1.square().unwrap().sum(..).unwrap().item().unwrap().sqrt() } else { 1.0 };
        assert!(!c.clipped || (of_reached - 1.0).abs() < 1e-5);
        assert_eq!(g.disconnected().len(), usize::from(which != 1));
        adam.step(&mut m, &g).unwrap();
    }
    close(&values(&m), &[0.2591762505222147, 1.182948571103139, 2.31260116125711, 3.187825689884581], 1e-12);
    // Micro-batches of which one misses a parameter, or both: by hand, by the accumulator, in the trainer.
    let expected = [0.7281416855454607, 1.7074895498120801, 2.741439941242406, 3.738804823078434];
    let parts = [(1, 2), (2, 2), (2, 3)];
    for (first, second) in [(0, 1), (1, 0)] {
        let (mut by_hand, mut adam) = (two(), new());
        let (mut summed, mut other) = (two(), new());
        for part in parts {
            let part = [part.0, part.1];
            let mut g = grads_of(&by_hand, part[first]);
            g.accumulate(&grads_of(&by_hand, part[second])).unwrap();
            g.scale(0.5).unwrap();
            assert_eq!(g.disconnected(), if part == [2, 2] { &["w2"][..] } else { &[] }, "{part:?}");
            adam.step(&mut by_hand, &g).unwrap();
            let mut sum = Accumulator::new();
            for which in [part[first], part[second]] {
                sum.add(0.0, grads_of(&summed, which), 3.0).unwrap();
            }
            other.step(&mut summed, &sum.finish().unwrap().1).unwrap();
        }
        close(&values(&by_hand), &expected, 1e-12);
        close(&values(&summed), &expected, 1e-12);
        assert_eq!(adam.state().numbers["adamw.steps.w2"], 2.0);
    }
    let mut t = Trainer::new(two(), new());
    t.options = Options { steps: 3, accumulate: 2, gradients: ALLOW, ..Options::default() };
    let order = [1, 2, 2, 2, 2, 3];
    t.run(&|i: u64| Ok(order[i as usize]), |m, which, _| loss(m, *which)).unwrap();
    close(&values(&t.model), &expected, 1e-12);
}

/// U14's siblings: experts without tokens, one of two heads.
#[test]
fn an_idle_expert_keeps_its_weights_and_moments() {
    for muon in [false, true] {
        let mut experts: Vec<Param> = (0..3).map(|i| Tensor::randn([3, 2], F64, Key::new(i)).unwrap().into()).collect();
        let mut optimizer: Box<dyn Optimizer<Vec<Param>>> = if muon {
            Box::new(Muon { lr: 0.1, ..Muon::default() })
        } else {
            Box::new(AdamW { lr: 0.1, weight_decay: 0.1, ..AdamW::default() })
        };
        let x = Tensor::randn([5, 2], F64, Key::new(9)).unwrap();
        let step = |experts: &mut Vec<Param>, optimizer: &mut dyn Optimizer<Vec<Param>>, used: &[usize]| {
            let run = |m: &Vec<Param>| {
                let mut sum = Tensor::scalar(0f64)?;
                for &e in used {
                    sum = sum.add(&x.linear(&m[e], None)?.square()?.mean(..)?)?;
                }
                Ok(sum)
            };
            let (_, g) = value_and_grad_with(experts, ALLOW, run).unwrap();
            optimizer.step(experts, &g).unwrap();
        };
        step(&mut experts, &mut *optimizer, &[0, 1]);
        let (third, state) = (experts[2].to_vec::<f64>().unwrap(), optimizer.state());
        assert_eq!(third, Tensor::randn([3, 2], F64, Key::new(2)).unwrap().to_vec::<f64>().unwrap(), "never reached");
        let slots = state.tensors.keys().filter(|k| k.ends_with(".2")).count();
        assert_eq!(slots, 0, "no memory is spent on it");
        let second = experts[1].to_vec::<f64>().unwrap();
        step(&mut experts, &mut *optimizer, &[0]);
        assert_eq!(experts[1].to_vec::<f64>().unwrap(), second);
        for (name, t) in optimizer.state().tensors.iter().filter(|(n, _)| n.ends_with(".1")) {
            assert_eq!(t.to_vec::<f64>().unwrap(), state.tensors[name].to_vec::<f64>().unwrap(), "{name}");
        }
        // Back, its first step is a first step: corrected for its own count.
        let mut alone: Vec<Param> = vec![Tensor::randn([3, 2], F64, Key::new(2)).unwrap().into()];
        let mut fresh: Box<dyn Optimizer<Vec<Param>>> = if muon {
            Box::new(Muon { lr: 0.1, ..Muon::default() })
        } else {
            Box::new(AdamW { lr: 0.1, weight_decay: 0.1, ..AdamW::default() })
        };
        step(&mut alone, &mut *fresh, &[0]);
        step(&mut experts, &mut *optimizer, &[2]);
        assert_eq!(experts[2].to_vec::<f64>().unwrap(), alone[0].to_vec::<f64>().unwrap());
    }
}

/// Saved at any moment, also before some parameter was ever reached, and loaded into a new optimizer or back into an old one.
#[test]
fn a_resumed_state_continues_bitwise() {
    for at in 0..LOSSES.len() {
        let order: Vec<u64> = [3, 2, 2].into_iter().chain(LOSSES).collect();
        for (name, mut optimizer, ..) in all() {
            let mut m = two();
            for which in &order[..at] {
                let g = grads_of(&m, *which);
                optimizer.step(&mut m, &g).unwrap();
            }
            let (saved, state) = (m.clone(), optimizer.state());
            let finish = |mut m: Two, o: &mut Box<dyn Optimizer<Two>>| {
                for which in &order[at..] {
                    let g = grads_of(&m, *which);
                    o.step(&mut m, &g).unwrap();
                }
                values(&m)
            };
            let whole = finish(m, &mut optimizer);
            let (_, mut other, ..) = all().into_iter().find(|o| o.0 == name).unwrap();
            other.load_state(state.clone()).unwrap();
            assert_eq!(finish(saved.clone(), &mut other), whole, "{name} at {at}");
            if at > 0 {
                optimizer.load_state(state).unwrap();
                assert_eq!(finish(saved, &mut optimizer), whole, "{name} at {at}, back");
            }
        }
    }
}

#[test]
fn what_is_absent_changes_with_the_gradients() {
    let m = two();
    let mut g = grads_of(&m, 2);
    assert_eq!(g.disconnected(), ["w2"]);
    // Scaled by hand it is still absent.
    g.update(|_, g| {
        *g = g.mul_scalar(0.5)?;
        Ok(())
    })
    .unwrap();
    assert_eq!(g.disconnected(), ["w2"]);
    // A penalty by hand is a gradient.
    let w2 = m.w2.value().clone();
    g.update(|name, g| {
        if name == "w2" {
            *g = g.add(&w2.mul_scalar(0.1)?)?;
        }
        Ok(())
    })
    .unwrap();
    assert!(g.disconnected().is_empty());
    let mut moved = m.clone();
    Sgd::new(1.0).step(&mut moved, &g).unwrap();
    close(&values(&moved), &[0.0, 0.0, 2.7, 3.6], 1e-15);
    // And gradients that nobody wants are taken away.
    let mut g = grads_of(&m, 1);
    g.retain(|name| name == "w1").unwrap();
    assert_eq!((g.disconnected(), g.w2.to_vec::<f64>().unwrap()), (&["w2".to_owned()][..], vec![0.0; 2]));
    let mut moved = m.clone();
    AdamW::default().step(&mut moved, &g).unwrap();
    assert_eq!(values(&moved)[2..], [3.0, 4.0]);
}

/// An average follows the weights, also those that stay; a scaled loss of half precision leaves the master alone.
#[test]
fn averages_scalers_and_masters_agree() {
    let mut ema = Ema::new(&two(), 0.9).unwrap();
    let (mut m, mut sgd) = (two(), Sgd::new(0.1));
    for which in [1, 2] {
        let g = grads_of(&m, which);
        sgd.step(&mut m, &g).unwrap();
        ema.update(&m).unwrap();
    }
    // w2 stays at p after the first step: 0.9 · (0.9 · 3 + 0.1 · p) + 0.1 · p.
    let p = values(&m)[2];
    close(&[values(&ema.model(&m).unwrap())[2]], &[0.81 * 3.0 + 0.19 * p], 1e-12);

    let mut half = two().cast(F32).unwrap().cast(BF16).unwrap();
    let (mut adam, mut scaler) = (AdamW { lr: 1e-3, weight_decay: 0.1, ..AdamW::default() }, LossScaler::default());
    let mut kept = Vec::new();
    for which in [1, 2, 2, 2] {
        let run = |m: &Two| scaler.scale(&loss(m, which)?);
        let (_, mut g) = value_and_grad_with(&half, ALLOW, run).unwrap();
        assert!(scaler.unscale(&mut g).unwrap());
        adam.step(&mut half, &g).unwrap();
        kept.push((half.w2.to_f64_vec().unwrap(), adam.master("w2").unwrap().to_vec::<f32>().unwrap()));
    }
    assert!(kept.windows(2).all(|k| k[0] == k[1]), "{kept:?}");
    assert_ne!(half.w1.to_f64_vec().unwrap(), [1.0, 2.0]);
    // An accumulator in f32 with an absent part in half precision.
    let mut sum = Accumulator::new();
    for which in [2, 3] {
        sum.add(0.0, value_and_grad_with(&half, ALLOW, |m| loss(m, which)).unwrap().1, 1.0).unwrap();
    }
    let (_, g) = sum.finish().unwrap();
    assert!(g.disconnected().is_empty() && g.w2.dtype() == F32);
}

#[cfg(feature = "emulator")]
#[test]
fn devices_and_captured_steps_leave_the_same_alone() {
    let device = cotangent::Device::cuda_emulated().unwrap();
    let order = [1u64, 2, 2, 3, 1, 2];
    let new = || AdamW { lr: 0.1, weight_decay: 0.1, skip_non_finite: false, ..AdamW::default() };
    let (mut host, mut on_host) = (two(), new());
    let (mut there, mut on_device) = (two().to_device(device).unwrap(), new());
    for which in order {
        let (g, h) = (grads_of(&host, which), grads_of(&there, which));
        assert_eq!(g.disconnected(), h.disconnected());
        on_host.step(&mut host, &g).unwrap();
        on_device.step(&mut there, &h).unwrap();
    }
    close(&values(&there), &values(&host), 1e-12);
    // A step that misses w2, captured and replayed.
    let (mut state, mut plain) = ((there.clone().to_device(device).unwrap(), on_device.clone()), (there, on_device));
    let step = |(m, adam): &mut (Two, AdamW), _: &[Tensor], _: Key| {
        let (l, mut g) = value_and_grad_with(m, ALLOW, |m| loss(m, 2))?;
        g.clip_by_global_norm(0.5)?;
        adam.step(m, &g)?;
        Ok(vec![l])
    };
    for s in [&mut state, &mut plain] {
        step(s, &[], Key::new(0)).unwrap();
    }
    let mut graph = device.capture(&mut state, &[], Key::new(0), step).unwrap();
    for _ in 0..4 {
        graph.replay(&mut state, &[], Key::new(0)).unwrap();
        step(&mut plain, &[], Key::new(0)).unwrap();
    }
    assert_eq!(values(&state.0), values(&plain.0));
    assert_eq!(state.1.state().numbers, plain.1.state().numbers);
    // A captured step cannot look whether a replaced gradient is zero.
    let by_hand = |(m, adam): &mut (Two, AdamW), _: &[Tensor], _: Key| {
        let (l, mut g) = value_and_grad_with(m, ALLOW, |m| loss(m, 2))?;
        g.update(|_, g| {
            *g = g.mul_scalar(0.5)?;
            Ok(())
        })?;
        adam.step(m, &g)?;
        Ok(vec![l])
    };
    let e = device.capture(&mut state, &[], Key::new(0), by_hand).err().unwrap();
    assert!(e.is_capture() && e.to_string().contains("`w2` has no gradient"), "{e}");
}
