//! A physics-informed network (Raissi, Perdikaris & Karniadakis 2019) solves the heat equation uₜ = k uₓₓ on a rod.

use cotangent::nn::{Activation, Layer, Linear};
use cotangent::optim::{Adam, OneCycleLr};
use cotangent::train::Trainer;
use cotangent::{F32, Key, Result, Rng, Tensor, grad, module};
use std::f64::consts::PI;

const DIFFUSIVITY: f64 = 0.2;

#[derive(Clone)]
struct Temperature {
    layers: (Linear, Activation, Linear, Activation, Linear),
}
module!(Temperature { layers });

impl Temperature {
    fn new(width: usize, rng: &mut Rng) -> Result<Self> {
        let mut linear = |inputs, outputs| Linear::new(inputs, outputs, F32, rng.next_key());
        Ok(Temperature { layers: (linear(2, width)?, Activation::Tanh, linear(width, width)?, Activation::Tanh, linear(width, 1)?) })
    }

    fn forward(&self, x: &Tensor, t: &Tensor) -> Result<Tensor> {
        self.layers.call(&Tensor::concat(&[x, t], -1)?, None)
    }

    /// What is left of the equation at each point.
    fn residual(&self, x: &Tensor, t: &Tensor) -> Result<Tensor> {
        let u_t = grad(t, |t| self.forward(x, t)?.sum(..))?;
        let u_xx = grad(x, |x| grad(x, |x| self.forward(x, t)?.sum(..))?.sum(..))?;
        Ok(u_t - DIFFUSIVITY * u_xx)
    }

    fn loss(&self, points: usize, key: Key) -> Result<Tensor> {
        let [x, t] = key.split();
        let (x, t) = (Tensor::rand([points, 1], F32, x)?, Tensor::rand([points, 1], F32, t)?);
        let equation = self.residual(&x, &t)?.square()?.mean(..)?;
        let start = (self.forward(&x, &t.zeros_like()?)? - (PI * &x).sin()?).square()?.mean(..)?;
        let ends = self.forward(&x.zeros_like()?, &t)?.square()?.mean(..)? + self.forward(&x.ones_like()?, &t)?.square()?.mean(..)?;
        Ok(equation + 10 * (start + ends))
    }
}

fn train(steps: usize, rng: &mut Rng) -> Result<Temperature> {
    let mut trainer = Trainer::new(Temperature::new(20, rng)?, Adam::default());
    trainer.options.steps = steps;
    trainer.schedule = Some(Box::new(OneCycleLr::new(4e-2, steps)));
    trainer.run(&|_| Ok(()), |m, (), key| m.loss(64, key))?;
    Ok(trainer.model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cotangent::{F64, Module};

    /// e^(−k π² t) sin πx solves the equation with these ends: it is compared on a grid, also where nothing was trained (x, t are drawn).
    #[test]
    fn it_agrees_with_the_exact_solution() -> Result<()> {
        let model = train(700, &mut Rng::seed(1))?;
        let (mut worst, mut largest) = (0f64, 0f64);
        for i in 0..=10 {
            let t = f64::from(i) / 10.0;
            let xs: Vec<f64> = (0..=20).map(|j| f64::from(j) / 20.0).collect();
            let x = Tensor::from_slice(&xs, [21, 1])?.cast(F32)?;
            let u = model.forward(&x, &Tensor::full([21, 1], t, F32)?)?.to_f64_vec()?;
            for (x, u) in xs.iter().zip(u) {
                let exact = (-DIFFUSIVITY * PI * PI * t).exp() * (PI * x).sin();
                worst = worst.max((u - exact).abs());
                largest = largest.max(exact);
            }
        }
        println!("off by at most {worst:.4}, of temperatures up to {largest}");
        assert!(worst < 0.03, "off by {worst:.4}");
        Ok(())
    }

    /// Derivatives of the network by differences of its values.
    #[test]
    fn the_residual_is_that_of_differences() -> Result<()> {
        let model = Temperature::new(8, &mut Rng::seed(2))?.cast(F64)?;
        let (x, t) = (Tensor::rand([5, 1], F64, Key::new(3))?, Tensor::rand([5, 1], F64, Key::new(4))?);
        let h = 1e-4;
        let u = |dx: f64, dt: f64| model.forward(&(&x + dx), &(&t + dt));
        let u_t = (u(0.0, h)? - u(0.0, -h)?) / (2.0 * h);
        let u_xx = (u(h, 0.0)? + u(-h, 0.0)? - 2.0 * u(0.0, 0.0)?) / (h * h);
        let off = (model.residual(&x, &t)? - (u_t - DIFFUSIVITY * u_xx)).abs()?.max(..)?.item()?;
        assert!(off < 1e-6, "off by {off}");
        Ok(())
    }
}
