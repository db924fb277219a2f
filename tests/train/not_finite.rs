//! What is not finite does not enter a model: losses, gradients, and squares of gradients.

use cotangent::optim::{Accumulator, Adam, AdamW, LossScaler, Muon, Optimizer, Sgd};
use cotangent::{F16, F32, F64, Grads, Key, Tensor, value_and_grad};

fn all() -> Vec<(&'static str, Box<dyn Optimizer<Tensor>>)> {
    vec![
        ("sgd", Box::new(Sgd::new(0.1))),
        ("adam", Box::new(Adam { lr: 0.1, ..Adam::default() })),
        ("adamw", Box::new(AdamW { lr: 0.1, ..AdamW::default() })),
        ("muon", Box::new(Muon { lr: 0.1, ..Muon::default() })),
    ]
}

/// `ln w` of a negative number is NaN, its derivative is 1/w.
fn of_a_nan_loss() -> (Tensor, Grads<Tensor>) {
    let w = Tensor::from_slice(&[-2f64, 3.0], [2]).unwrap();
    let (loss, g) = value_and_grad(&w, |w| w.log()?.sum(..)).unwrap();
    assert!(loss.item().unwrap().is_nan() && g.is_finite().unwrap() && !g.is_loss_finite().unwrap());
    (w, g)
}

#[test]
fn a_loss_that_is_not_finite_is_no_step() {
    for (name, mut optimizer) in all() {
        let (mut w, g) = of_a_nan_loss();
        let mut clipped = g.clone();
        clipped.clip_global_norm(0.1).unwrap();
        for g in [&g, &clipped] {
            optimizer.step(&mut w, g).unwrap();
        }
        assert_eq!((w.to_vec::<f64>().unwrap(), optimizer.skipped()), (vec![-2.0, 3.0], 2), "{name}");
        assert_eq!(optimizer.state().numbers[&format!("{name}.steps")], 0.0);
    }
    // Who wants the step takes it.
    let (mut w, g) = of_a_nan_loss();
    let mut sgd = Sgd { skip_non_finite: false, ..Sgd::new(1.0) };
    sgd.step(&mut w, &g).unwrap();
    assert_eq!(w.to_vec::<f64>().unwrap(), [-1.5, 3.0 - 1.0 / 3.0]);
}

#[test]
fn one_part_of_a_sum_is_enough() {
    let (w, bad) = of_a_nan_loss();
    let (_, good) = value_and_grad(&w, |w| w.square()?.sum(..)).unwrap();
    let mut sum = good.clone();
    sum.accumulate(&bad).unwrap();
    assert!(sum.is_finite().unwrap() && !sum.is_loss_finite().unwrap());
    let mut parts = Accumulator::new();
    parts.add(1.0, good.clone(), 2.0).unwrap();
    parts.add(f64::NAN, bad.clone(), 0.0).unwrap();
    assert!(parts.finish().unwrap().1.is_loss_finite().unwrap(), "a part of weight zero adds nothing");
    parts.add(f64::NAN, bad.clone(), 1.0).unwrap();
    parts.add(1.0, good, 2.0).unwrap();
    assert!(!parts.finish().unwrap().1.is_loss_finite().unwrap());
    // A scaled loss that overflows halves the scale, though its gradients are finite.
    let w = Tensor::from_slice(&[300f32], [1]).unwrap();
    let mut scaler = LossScaler { scale: 65_536.0, ..LossScaler::default() };
    let (loss, mut g) = value_and_grad(&w, |w| scaler.scale(&w.square()?.sum(..)?)).unwrap();
    assert!(loss.item().unwrap().is_finite() && scaler.unscale(&mut g).unwrap());
    let (loss, mut g) = value_and_grad(&w, |w| scaler.scale(&w.mul_scalar(1e32)?.sum(..)?)).unwrap();
    assert!(loss.item().unwrap().is_infinite() && !scaler.unscale(&mut g).unwrap());
    assert_eq!((scaler.scale, scaler.skipped), (32_768.0, 1));
}

/// The square of 1e25 is infinite in f32, and an infinite second moment never goes away.
#[test]
fn a_gradient_whose_square_is_infinite_is_no_step() {
    let gradient = |at: &Tensor, g: f64| value_and_grad(at, |w| w.mul_scalar(g)?.sum(..)).unwrap().1;
    for (name, mut optimizer) in all() {
        let mut w = Tensor::from_slice(&[1f32; 6], [2, 3]).unwrap();
        let g = gradient(&w, 1e25);
        assert!(g.is_finite().unwrap());
        if name == "sgd" {
            continue; // keeps no squares; its step would be as long as it was asked for
        }
        optimizer.step(&mut w, &g).unwrap();
        assert_eq!((w.to_vec::<f32>().unwrap(), optimizer.skipped()), (vec![1.0; 6], 1), "{name}");
        for _ in 0..20 {
            let g = gradient(&w, 0.1);
            optimizer.step(&mut w, &g).unwrap();
        }
        assert!(w.to_vec::<f32>().unwrap().iter().all(|w| *w < 0.9), "{name} moves on: {w:?}");
        // The last that fits does, clipped gradients do, and f64 has room.
        for huge in [1.8e19, -1.8e19] {
            let g = gradient(&w, huge);
            optimizer.step(&mut w, &g).unwrap();
        }
        let mut g = gradient(&w, 1e25);
        g.clip_global_norm(1.0).unwrap();
        optimizer.step(&mut w, &g).unwrap();
        assert_eq!(optimizer.skipped(), 1, "{name}");
        let finite = |t: &Tensor| t.to_f64_vec().unwrap().iter().all(|v| v.is_finite());
        assert!(finite(&w) && optimizer.state().tensors.values().all(finite), "{name}");
        for half in [F16, cotangent::BF16] {
            let mut w = Tensor::ones([2, 3], half).unwrap();
            let mut optimizer = all().into_iter().find(|o| o.0 == name).unwrap().1;
            let g = gradient(&w, if half == F16 { 1e4 } else { 1e25 });
            optimizer.step(&mut w, &g).unwrap();
            assert_eq!(optimizer.skipped(), u64::from(half != F16), "{name} {half}");
        }
    }
    let (mut w, mut adam) = (Tensor::ones([2], F64).unwrap(), AdamW::default());
    let g = gradient(&w, 1e25);
    adam.step(&mut w, &g).unwrap();
    let g = gradient(&w, 1e160);
    adam.step(&mut w, &g).unwrap();
    assert_eq!((adam.steps(), adam.skipped()), (1, 1));
}

#[cfg(feature = "emulator")]
#[test]
fn devices_skip_the_same_steps() {
    use cotangent::Module;
    let device = cotangent::Device::cuda_emulated().unwrap();
    let losses: [fn(&Tensor) -> cotangent::Result<Tensor>; 4] =
        [|w| w.log()?.sum(..), |w| w.square()?.sum(..), |w| w.mul_scalar(1e25)?.sum(..), |w| w.mul_scalar(1.8e19)?.sum(..)];
    for (name, mut optimizer) in all() {
        let host = Tensor::from_slice(&[-2f32, 3.0, 1.0, 0.5], [2, 2]).unwrap();
        let mut on_host = all().into_iter().find(|o| o.0 == name).unwrap().1;
        let (mut w, mut on_device) = (host.clone(), Module::to_device(&host, device).unwrap());
        let mut skipped = Vec::new();
        for loss in losses {
            let (_, g) = value_and_grad(&w, loss).unwrap();
            on_host.step(&mut w, &g).unwrap();
            let (_, g) = value_and_grad(&on_device, loss).unwrap();
            optimizer.step(&mut on_device, &g).unwrap();
            assert_eq!(optimizer.skipped(), on_host.skipped(), "{name}");
            skipped.push(optimizer.skipped());
        }
        // Plain descent follows the third gradient so far that the fourth loss leaves the range; the others refuse the third, whose
        // square does.
        let expected = if name == "sgd" { [1, 1, 1, 2] } else { [1, 1, 2, 2] };
        assert_eq!(skipped, expected, "{name}");
    }
}

/// The default learning rate of SGD trains, and the message about a reused optimizer names the parameter.
#[test]
fn defaults_train_and_messages_name_the_parameter() {
    let (mut w, mut sgd) = (Tensor::ones([2], F32).unwrap(), Sgd::default());
    let (_, g) = value_and_grad(&w, |w| w.square()?.sum(..)).unwrap();
    sgd.step(&mut w, &g).unwrap();
    assert_eq!(w.to_vec::<f32>().unwrap(), [0.998; 2]);
    let mut adam = AdamW::default();
    adam.step(&mut w, &g).unwrap();
    let mut other = Tensor::randn([3], F32, Key::new(1)).unwrap();
    let (_, g) = value_and_grad(&other, |w| w.square()?.sum(..)).unwrap();
    let e = adam.step(&mut other, &g).unwrap_err().to_string();
    assert!(e.contains("the parameter is f32 [3], its exp_avg f32 [2]: this optimizer has stepped another model"), "{e}");
}
