//! A two-layer classifier learns three interleaved spirals.
//!
//! `cargo run --release --example mlp` takes a second or two and prints the accuracy.

use cotangent::diagnostics::HealthReport;
use cotangent::nn::Linear;
use cotangent::optim::{AdamW, Schedule, WarmupCosine};
use cotangent::{F32, Key, Module, Result, Tensor, module, value_and_grad};
use std::f64::consts::TAU;

#[derive(Clone)]
struct Classifier {
    hidden: Linear,
    out: Linear,
}
module!(Classifier { hidden, out });

impl Classifier {
    fn new(width: usize, classes: usize, key: Key) -> Result<Self> {
        Ok(Classifier { hidden: Linear::new(2, width, F32, key.fold(0))?, out: Linear::new(width, classes, F32, key.fold(1))? })
    }

    /// Points `[n, 2]` to logits `[n, classes]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&self.hidden.forward(x)?.relu()?)
    }

    fn accuracy(&self, x: &Tensor, classes: &Tensor) -> Result<f64> {
        self.forward(x)?.argmax(-1)?.eq(classes)?.cast(F32)?.mean(..)?.item()
    }
}

/// `per_arm` points on each of three arms, with a little noise; and the arm of each.
fn spirals(per_arm: usize, key: Key) -> Result<(Tensor, Tensor)> {
    let (mut points, mut classes) = (Vec::new(), Vec::new());
    for arm in 0..3 {
        for i in 0..per_arm {
            let t = i as f64 / per_arm as f64;
            let noise = 0.15 * key.normal(classes.len() as u64);
            let angle = TAU * (f64::from(arm) / 3.0 + 0.75 * t) + noise;
            points.extend([(t * angle.cos()) as f32, (t * angle.sin()) as f32]);
            classes.push(i64::from(arm));
        }
    }
    let n = classes.len();
    Ok((Tensor::from_slice(&points, [n, 2])?, Tensor::from_slice(&classes, [n])?))
}

fn main() -> Result<()> {
    let key = Key::new(7);
    let (x, classes) = spirals(200, key.fold(0))?;
    let (x_new, classes_new) = spirals(100, key.fold(1))?;
    let mut net = Classifier::new(64, 3, key.fold(2))?;
    println!("{} parameters: {}", net.num_params(), net.names().join(", "));

    let steps = 1000;
    let schedule = WarmupCosine { peak: 2e-2, floor: 1e-4, warmup: 20, end: steps };
    let mut adam = AdamW { weight_decay: 1e-3, ..AdamW::default() };
    for step in 0..steps {
        let (loss, grads) = value_and_grad(&net, |n| n.forward(&x)?.cross_entropy(&classes))?;
        adam.lr = schedule.at(step);
        adam.step(&mut net, &grads)?;
        if step % 200 == 0 {
            println!("step {step:>4}  loss {:.4}  accuracy {:.3}", loss.item()?, net.accuracy(&x, &classes)?);
        }
        if step + 1 == steps {
            println!("{}", HealthReport::new(&net, &grads)?);
        }
    }
    let accuracy = net.accuracy(&x_new, &classes_new)?;
    println!("accuracy on new points {accuracy:.3}");
    assert!(accuracy > 0.9, "the classifier should separate the spirals");
    Ok(())
}
