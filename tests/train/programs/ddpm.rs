//! Denoising diffusion (Ho, Jain & Abbeel 2020) of points on two moons.

use cotangent::nn::{Activation, Layer, Linear};
use cotangent::ops::Reduction::Mean;
use cotangent::optim::{Adam, WarmupCosine};
use cotangent::train::Trainer;
use cotangent::{F32, I64, Key, Result, Rng, Tensor, module};
use std::f64::consts::PI;

/// Points on two half circles that reach into each other, and a little noise.
fn two_moons(count: usize, key: Key) -> Result<Tensor> {
    let [angle, upper, noise] = key.split();
    let angle = Tensor::uniform([count], 0.0..PI, F32, angle)?;
    let upper = Tensor::bernoulli([count], 0.5, F32, upper)?;
    let x = &upper * angle.cos()? + (1 - &upper) * (1 - angle.cos()?);
    let y = &upper * angle.sin()? + (1 - &upper) * (0.5 - angle.sin()?);
    Ok(Tensor::stack(&[&(x - 0.5), &(y - 0.25)], -1)? * 1.5 + 0.05 * Tensor::randn([count, 2], F32, noise)?)
}

/// Sines and cosines of each number at several frequencies.
fn embed(x: &Tensor, width: usize) -> Result<Tensor> {
    let half = (width / 2) as f64;
    let frequencies = (Tensor::arange(0.0, half, 1.0, F32)? * (-1000f64.ln() / half)).exp()?;
    let angles = x.cast(F32)?.unsqueeze(-1)? * frequencies;
    Tensor::concat(&[&angles.sin()?, &angles.cos()?], -1)
}

/// Guesses the noise in a point, given how far the diffusion went.
#[derive(Clone)]
struct Denoiser {
    layers: (Linear, Activation, Linear, Activation, Linear),
}
module!(Denoiser { layers });

impl Denoiser {
    fn new(hidden: usize, key: Key) -> Result<Self> {
        let mut rng = Rng::from_key(key);
        let mut linear = |inputs, outputs| Linear::new(inputs, outputs, F32, rng.next_key());
        let layers = (linear(3 * 16, hidden)?, Activation::Gelu, linear(hidden, hidden)?, Activation::Gelu, linear(hidden, 2)?);
        Ok(Denoiser { layers })
    }

    fn forward(&self, x: &Tensor, t: &Tensor) -> Result<Tensor> {
        self.layers.call(&Tensor::concat(&[&embed(&(10 * x), 16)?.flatten(1, -1)?, &embed(t, 16)?], -1)?, None)
    }
}

struct Diffusion {
    steps: usize,
    betas: Tensor,
    kept: Tensor,
}

impl Diffusion {
    fn new(steps: usize) -> Result<Self> {
        let betas = Tensor::linspace(1e-3, 0.25, steps, F32)?;
        let kept = (1 - &betas).log()?.cumsum(0)?.exp()?;
        Ok(Diffusion { steps, betas, kept })
    }

    fn loss(&self, model: &Denoiser, x: &Tensor, key: Key) -> Result<Tensor> {
        let [time, noise] = key.split();
        let t = Tensor::randint([x.size(0)?], 0..self.steps as i64, I64, time)?;
        let noise = x.randn_like(noise)?;
        let kept = self.kept.index_select(0, &t)?.unsqueeze(-1)?;
        let noisy = kept.sqrt()? * x + (1 - kept).sqrt()? * &noise;
        model.forward(&noisy, &t)?.mse_loss_with(&noise, Mean)
    }

    fn sample(&self, model: &Denoiser, count: usize, key: Key) -> Result<Tensor> {
        let mut x = Tensor::randn([count, 2], F32, key)?;
        for t in (0..self.steps).rev() {
            let (beta, kept) = (self.betas.select(0, t)?, self.kept.select(0, t)?);
            let noise = model.forward(&x, &Tensor::full([count], t as f64, I64)?)?;
            x = (x - &beta / (1 - kept).sqrt()? * noise) / (1 - &beta).sqrt()?;
            if t > 0 {
                x = &x + beta.sqrt()? * x.randn_like(key.fold(t as u64))?;
            }
        }
        Ok(x)
    }
}

fn train(steps: usize, key: Key) -> Result<(Denoiser, Diffusion)> {
    let (model, diffusion) = (Denoiser::new(48, key)?, Diffusion::new(40)?);
    let mut trainer = Trainer::new(model, Adam::default());
    trainer.options.steps = steps;
    trainer.schedule = Some(Box::new(WarmupCosine { peak: 1e-2, floor: 0.0, warmup: 0, end: steps }));
    trainer.run(&|i| two_moons(128, key.fold(i)), |m, x, key| diffusion.loss(m, x, key))?;
    Ok((trainer.model, diffusion))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Point = [f64; 2];

    fn points(x: &Tensor) -> Result<Vec<Point>> {
        Ok(x.to_f64_vec()?.as_chunks().0.to_vec())
    }

    fn distances(a: &[Point], b: &[Point]) -> f64 {
        a.iter().flat_map(|p| b.iter().map(move |q| (p[0] - q[0]).hypot(p[1] - q[1]))).sum()
    }

    /// The energy distance of two distributions (Székely 2002), 0 for equal ones and no others, without bias from as many points of each.
    fn energy(a: &[Point], b: &[Point]) -> f64 {
        let n = a.len() as f64;
        2.0 * distances(a, b) / (n * n) - (distances(a, a) + distances(b, b)) / (n * (n - 1.0))
    }

    #[test]
    fn samples_are_near_the_data_where_noise_is_not() -> Result<()> {
        let (model, diffusion) = train(1000, Key::new(1))?;
        let [new, noise, samples] = Key::new(2).split();
        let data = points(&two_moons(500, new)?)?;
        let noise = energy(&points(&Tensor::randn([500, 2], F32, noise)?)?, &data);
        let samples = points(&diffusion.sample(&model, 500, samples)?)?;
        let near = energy(&samples, &data);
        println!("energy distance {near:.4}, of noise {noise:.4}");
        assert!(near < 0.15 * noise, "energy distance {near:.4}, of noise {noise:.4}");
        // On a moon, not between them: the distance from (1.5 cos, 1.5 sin) about the centre of the nearer half circle.
        let off = |[x, y]: [f64; 2]| {
            let (x, y) = (x / 1.5 + 0.5, y / 1.5 + 0.25);
            (x.hypot(y) - 1.0).abs().min(((x - 1.0).hypot(y - 0.5) - 1.0).abs())
        };
        let mean = samples.iter().map(|p| off(*p)).sum::<f64>() / 500.0;
        assert!(mean < 0.12, "{mean:.3} from the moons on average");
        Ok(())
    }
}
