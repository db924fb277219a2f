//! A Vision Transformer reads handwritten digits: patches, a class token, learned positions.

use cotangent::io::NpzFile;
use cotangent::nn::{Activation, Layer, LayerNorm, Linear, NormOrder, TransformerConfig, TransformerEncoderLayer};
use cotangent::optim::{Adam, OneCycleLr};
use cotangent::train::{Console, Options, Order, Rows, Trainer, hold_out, record};
use cotangent::{F32, Param, Result, Rng, Tensor, module};

#[derive(Clone)]
struct Vit {
    embed: Linear,
    class_token: Param,
    positions: Param,
    layers: Vec<TransformerEncoderLayer>,
    norm: LayerNorm,
    head: Linear,
    patch: usize,
}
module!(Vit { embed, class_token, positions, layers, norm, head } skip { patch });

impl Vit {
    fn new(side: usize, patch: usize, layers: usize, config: &TransformerConfig, classes: usize, rng: &mut Rng) -> Result<Self> {
        let (width, patches) = (config.width, (side / patch).pow(2));
        Ok(Vit {
            embed: Linear::new(patch * patch, width, F32, rng.next_key())?,
            class_token: Tensor::normal([1, 1, width], 0.0, 0.02, F32, rng.next_key())?.into(),
            positions: Tensor::normal([patches + 1, width], 0.0, 0.02, F32, rng.next_key())?.into(),
            layers: (0..layers).map(|_| TransformerEncoderLayer::new(config, F32, rng.next_key())).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, F32)?,
            head: Linear::new(width, classes, F32, rng.next_key())?,
            patch,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let [b, h, w] = images.dims()?;
        let p = self.patch;
        let patches = images.reshape([b, h / p, p, w / p, p])?.transpose(2, 3)?.reshape((b, (), p * p))?;
        let patches = self.embed.forward(&patches)?;
        let class = self.class_token.expand([b, 1, patches.size(-1)?])?;
        let x = Tensor::concat(&[&class, &patches], 1)?.add(&self.positions)?;
        let x = self.layers.call(&x, None)?;
        self.head.forward(&self.norm.forward(&x.select(1, 0)?)?)
    }

    fn accuracy(&self, images: &Tensor, labels: &Tensor) -> Result<f64> {
        self.forward(images)?.argmax(-1)?.eq(labels)?.cast(F32)?.mean(..)?.item()
    }
}

/// The part of the images it has not seen that the trained model names.
pub fn run(epochs: usize) -> Result<f64> {
    let mut rng = Rng::seed(1);
    let digits = NpzFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.npz"))?;
    let images = digits.tensor("images")?.cast(F32)?.div_scalar(16.0)?;
    let labels = digits.tensor("labels")?;
    let (train, (x, y)) = hold_out((images, labels), 360, rng.next_key())?;
    let train = Rows::new(train, 32, Order::Shuffled, rng.next_key())?;

    let (width, activation, norms) = (32, Activation::Gelu, NormOrder::Pre);
    let config = TransformerConfig { width, heads: 4, hidden: 2 * width, activation, order: norms, ..TransformerConfig::default() };
    let model = Vit::new(8, 4, 2, &config, 10, &mut rng)?;
    let mut trainer = Trainer::new(model, Adam::default());
    let steps = epochs * train.epoch();
    trainer.options = Options { steps, clip: Some(1.0), evaluate_every: train.epoch(), ..Options::default() };
    trainer.schedule = Some(Box::new(OneCycleLr::new(4e-3, steps)));
    trainer.evaluate_with(|m| Ok((m.forward(&x)?.cross_entropy(&y)?.item()?, [("accuracy", m.accuracy(&x, &y)?)])));
    trainer.on(record(Console::every(0)));
    trainer.run(&train, |m, (x, y), _| m.forward(x)?.cross_entropy(y))?;
    trainer.model.accuracy(&x, &y)
}

#[cfg(test)]
mod tests {
    /// Guessing names a tenth; the twin reads nine tenths after as many epochs.
    #[test]
    fn reads_images_it_has_not_seen() {
        let accuracy = super::run(4).unwrap();
        crate::say(&format!("vit: accuracy {accuracy:.3} on 360 images"));
        assert!(accuracy > 0.93, "{accuracy}");
    }
}
