//! MAML (Finn, Abbeel & Levine 2017): weights from which one step of descent learns any sine from ten points.

use cotangent::nn::{Activation, Layer, Linear};
use cotangent::ops::Reduction::Mean;
use cotangent::optim::Adam;
use cotangent::{F32, Key, Module, Result, Rng, Tensor, grad};
use std::f64::consts::PI;

/// One task.
struct Sine {
    amplitude: f64,
    phase: f64,
}

impl Sine {
    fn new(key: Key) -> Self {
        Sine { amplitude: 0.1 + 4.9 * key.uniform_f64(0), phase: PI * key.uniform_f64(1) }
    }

    fn points(&self, count: usize, key: Key) -> Result<(Tensor, Tensor)> {
        let x = Tensor::uniform([count, 1], -5.0..5.0, F32, key)?;
        let y = self.amplitude * (&x + self.phase).sin()?;
        Ok((x, y))
    }
}

type Net = (Linear, Activation, Linear, Activation, Linear);

fn net(rng: &mut Rng) -> Result<Net> {
    let mut linear = |inputs, outputs| Linear::new(inputs, outputs, F32, rng.next_key());
    Ok((linear(1, 40)?, Activation::Tanh, linear(40, 40)?, Activation::Tanh, linear(40, 1)?))
}

fn loss(net: &Net, (x, y): &(Tensor, Tensor)) -> Result<Tensor> {
    net.call(x, None)?.mse_loss_with(y, Mean)
}

/// One step of descent, which an outer gradient passes through.
fn adapt(net: &Net, points: &(Tensor, Tensor), first_order: bool) -> Result<Net> {
    let grads = grad(net, |net| loss(net, points))?;
    net.zip_map(&grads, |_, w, g| Ok(w - 0.05 * if first_order { g.detach() } else { g.clone() }))
}

/// What is lost after a step on ten points of each task, on ten others.
fn meta_loss(net: &Net, tasks: &[Sine], first_order: bool, rng: &mut Rng) -> Result<Tensor> {
    let mut total = Tensor::scalar(0f32)?;
    for task in tasks {
        let adapted = adapt(net, &task.points(10, rng.next_key())?, first_order)?;
        total = total + loss(&adapted, &task.points(10, rng.next_key())?)?;
    }
    Ok(total / tasks.len())
}

fn train(steps: usize, first_order: bool, rng: &mut Rng) -> Result<Net> {
    let mut net = net(rng)?;
    let mut optimizer = Adam { lr: 5e-3, ..Adam::default() };
    for _ in 0..steps {
        let tasks: Vec<Sine> = (0..4).map(|_| Sine::new(rng.next_key())).collect();
        let grads = grad(&net, |net| meta_loss(net, &tasks, first_order, rng))?;
        optimizer.step(&mut net, &grads)?;
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cotangent::F64;

    fn tasks(count: usize, rng: &mut Rng) -> Vec<Sine> {
        (0..count).map(|_| Sine::new(rng.next_key())).collect()
    }

    /// Mean loss on new points of new tasks, before and after the step.
    fn before_and_after(net: &Net) -> Result<(f64, f64)> {
        let mut rng = Rng::seed(99);
        let tasks = tasks(50, &mut rng);
        let mut before = 0.0;
        for task in &tasks {
            before += loss(net, &task.points(10, rng.next_key())?)?.item()? / 50.0;
        }
        Ok((before, meta_loss(net, &tasks, true, &mut rng)?.item()?))
    }

    #[test]
    fn one_step_learns_a_new_sine() -> Result<()> {
        let trained = before_and_after(&train(600, false, &mut Rng::seed(1))?)?;
        let untrained = before_and_after(&net(&mut Rng::seed(1))?)?;
        println!("loss before and after a step: {trained:.3?}, of weights that were not trained for it {untrained:.3?}");
        assert!(trained.1 < 0.4 * trained.0, "{trained:?}");
        assert!(trained.1 < 0.4 * untrained.1, "{trained:?}, {untrained:?}");
        // Without second derivatives it learns to adapt, too; the paper finds the same.
        let first = before_and_after(&train(600, true, &mut Rng::seed(1))?)?;
        println!("first order: {first:.3?}");
        assert!(first.1 < 0.6 * first.0, "{first:?}");
        Ok(())
    }

    /// The gradient of the loss after a step, against differences of that loss; the first-order one leaves a term out.
    #[test]
    fn the_gradient_passes_through_the_step() -> Result<()> {
        let mut rng = Rng::seed(3);
        let net = net(&mut rng)?.cast(F64)?;
        let task = Sine { amplitude: 3.0, phase: 1.0 };
        let wide = |(x, y): (Tensor, Tensor)| Ok::<_, cotangent::Error>((x.cast(F64)?, y.cast(F64)?));
        let (seen, new) = (wide(task.points(10, rng.next_key())?)?, wide(task.points(10, rng.next_key())?)?);
        let after = |net: &Net, first_order| loss(&adapt(net, &seen, first_order)?, &new);
        let direction = net.map(|_, w| w.randn_like(rng.next_key()))?;
        let moved = |by: f64| after(&net.zip_map(&direction, |_, w, d| Ok(w + by * d))?, true)?.item();
        let slope = (moved(1e-5)? - moved(-1e-5)?) / 2e-5;
        let along = |first_order| -> Result<f64> {
            let products = grad(&net, |net| after(net, first_order))?.zip_map(&direction, |_, g, d| (g * d).sum(..))?;
            products.named_tensors().iter().map(|(_, t)| t.item()).sum()
        };
        let (second, first) = (along(false)?, along(true)?);
        println!("differences {slope:.6}, second order {second:.6}, first order {first:.6}");
        assert!((second - slope).abs() < 1e-6 * slope.abs(), "{second} instead of {slope}");
        assert!((first - slope).abs() > 1e-2 * slope.abs(), "{first}: nothing is left out");
        Ok(())
    }
}
