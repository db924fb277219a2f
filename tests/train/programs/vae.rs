//! A variational autoencoder (Kingma & Welling 2014) on images of handwritten digits.

use cotangent::io::NpzFile;
use cotangent::nn::{Activation, Layer, Linear};
use cotangent::ops::Reduction;
use cotangent::optim::Adam;
use cotangent::train::{Order, Rows};
use cotangent::{F32, Key, Result, Rng, Tensor, module, value_and_grad};

#[derive(Clone)]
struct Vae {
    encoder: (Linear, Activation),
    mean: Linear,
    log_var: Linear,
    decoder: (Linear, Activation, Linear),
}
module!(Vae { encoder, mean, log_var, decoder });

impl Vae {
    fn new(pixels: usize, hidden: usize, latent: usize, rng: &mut Rng) -> Result<Self> {
        let mut linear = |inputs, outputs| Linear::new(inputs, outputs, F32, rng.next_key());
        Ok(Vae {
            encoder: (linear(pixels, hidden)?, Activation::Relu),
            mean: linear(hidden, latent)?,
            log_var: linear(hidden, latent)?,
            decoder: (linear(latent, hidden)?, Activation::Relu, linear(hidden, pixels)?),
        })
    }

    /// A lower bound of the log-likelihood of each image, in nats.
    fn elbo(&self, x: &Tensor, key: Key) -> Result<Tensor> {
        let h = self.encoder.call(x, None)?;
        let (mean, log_var) = (self.mean.forward(&h)?, self.log_var.forward(&h)?);
        let z = &mean + (&log_var / 2).exp()? * mean.randn_like(key)?;
        let reconstruction = -self.decoder.call(&z, None)?.bce_with_logits_with(x, &Reduction::None.into())?.sum(-1)?;
        let kl = (mean.square()? + log_var.exp()? - 1 - log_var).sum(-1)? / 2;
        Ok(reconstruction - kl)
    }

    fn sample(&self, count: usize, key: Key) -> Result<Tensor> {
        let latent = self.mean.weight.size(0)?;
        self.decoder.call(&Tensor::randn([count, latent], F32, key)?, None)?.sigmoid()
    }
}

/// Black and white images, each a row of pixels.
fn digits() -> Result<Tensor> {
    let images = NpzFile::open("examples/data/digits.npz")?.tensor("images")?;
    images.gt_scalar(7.0)?.cast(F32)?.flatten(1, -1)
}

fn train(epochs: u64, rng: &mut Rng) -> Result<(Vae, f64)> {
    let parts = digits()?.split(&[1500, 297], 0)?;
    let mut model = Vae::new(64, 64, 8, rng)?;
    let mut optimizer = Adam { lr: 4e-3, ..Adam::default() };
    let batches = Rows::new(parts[0].clone(), 50, Order::Shuffled, rng.next_key())?;
    for epoch in 0..epochs {
        for x in batches.iter_epoch(epoch) {
            let (_, grads) = value_and_grad(&model, |m| m.elbo(&x?, rng.next_key())?.mean(..)?.neg())?;
            optimizer.step(&mut model, &grads)?;
        }
    }
    let elbo = model.elbo(&parts[1], rng.next_key())?.mean(..)?.item()?;
    Ok((model, elbo))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log-likelihood that no fixed probability per pixel can beat: each pixel is white with its share of the very images that are
    /// judged.
    fn best_constant(images: &[u8]) -> f64 {
        let rows = images.len() / 64;
        let entropy = |pixel: usize| {
            let white = (0..rows).filter(|row| images[row * 64 + pixel] > 7).count() as f64 / rows as f64;
            let term = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
            term(white) + term(1.0 - white)
        };
        (0..64).map(entropy).sum()
    }

    /// In how many pixels an image differs from the most similar real one, on average.
    fn off_digits(images: &[bool], real: &[bool]) -> f64 {
        let differ = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a != b).count();
        let nearest = |image: &[bool]| real.chunks(64).map(|r| differ(image, r)).min().unwrap();
        images.chunks(64).map(nearest).sum::<usize>() as f64 / (images.len() / 64) as f64
    }

    /// The bound lies below the model's log-likelihood, so a bound above the baseline is a model above it.
    #[test]
    fn its_bound_beats_every_model_of_independent_pixels() -> Result<()> {
        let pixels = NpzFile::open("examples/data/digits.npz")?.tensor("images")?.to_vec::<u8>()?;
        let constant = best_constant(&pixels[1500 * 64..]);
        let (model, elbo) = train(12, &mut Rng::seed(1))?;
        println!("bound {elbo:.2}, best constant {constant:.2}");
        assert!(elbo > constant + 3.0, "bound {elbo:.2}, best constant {constant:.2}");
        // What it makes up looks like a digit: fewer pixels differ from the most similar real one than where each is drawn by itself.
        let real: Vec<bool> = pixels.iter().map(|p| *p > 7).collect();
        let key = Key::new(3);
        let alone = |i: usize| key.uniform_f64(i as u64) < (0..1797).filter(|row| real[row * 64 + i % 64]).count() as f64 / 1797.0;
        let alone: Vec<bool> = (0..6400).map(alone).collect();
        let made: Vec<bool> = model.sample(100, Key::new(2))?.to_vec::<f32>()?.iter().map(|p| *p > 0.5).collect();
        let (made, alone) = (off_digits(&made, &real), off_digits(&alone, &real));
        println!("{made:.1} pixels off a digit, drawn one by one {alone:.1}");
        assert!(made < 0.7 * alone, "{made:.1} pixels off a digit, drawn one by one {alone:.1}");
        Ok(())
    }
}
