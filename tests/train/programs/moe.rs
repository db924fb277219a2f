//! A mixture of experts reads handwritten digits: a router sends each image to two of eight experts.

use cotangent::io::NpzFile;
use cotangent::nn::{Activation, Layer, LayerNorm, Linear, LinearOptions};
use cotangent::optim::Adam;
use cotangent::train::{Console, Options, Order, Rows, Trainer, hold_out, record};
use cotangent::{F32, GradOptions, Result, Rng, Tensor, module};

#[derive(Clone)]
struct Moe {
    router: Linear,
    experts: Vec<(Linear, Activation, Linear)>,
    top_k: usize,
}
module!(Moe { router, experts } skip { top_k });

impl Moe {
    fn new(width: usize, hidden: usize, experts: usize, top_k: usize, rng: &mut Rng) -> Result<Self> {
        let mut linear = |i, o, bias| Linear::with(i, o, F32, rng.next_key(), &LinearOptions { bias, ..LinearOptions::default() });
        let router = linear(width, experts, false)?;
        let mut expert = |_| Ok((linear(width, hidden, true)?, Activation::Gelu, linear(hidden, width, true)?));
        Ok(Moe { router, experts: (0..experts).map(&mut expert).collect::<Result<_>>()?, top_k })
    }

    /// Rows to rows, and the load balancing loss: 1 where all experts are used alike.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let probabilities = self.router.forward(x)?.softmax(-1)?;
        let (weights, chosen) = probabilities.topk(self.top_k, -1)?;
        let weights = weights.div(&weights.sum_keepdim(-1)?)?;
        let mut y = x.zeros_like()?;
        for (e, expert) in self.experts.iter().enumerate() {
            let [rows, places] = chosen.eq_scalar(e as f64)?.nonzero()?.unpack(1)?;
            if rows.numel() > 0 {
                let weight = weights.index_select(0, &rows)?.gather(1, &places.unsqueeze(1)?)?;
                let out = expert.call(&x.index_select(0, &rows)?, None)?;
                y = y.index_add(0, &rows, &out.mul(&weight)?)?;
            }
        }
        let count = self.experts.len();
        let used = chosen.one_hot(count, F32)?.mean([0, 1])?;
        let balance = used.dot(&probabilities.mean(0)?)?.mul_scalar(count as f64)?;
        Ok((y, balance))
    }
}

#[derive(Clone)]
struct Classifier {
    embed: Linear,
    moe: Moe,
    norm: LayerNorm,
    head: Linear,
}
module!(Classifier { embed, moe, norm, head });

impl Classifier {
    fn forward(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let (y, balance) = self.moe.forward(&self.embed.forward(&images.flatten(1, 2)?)?)?;
        Ok((self.head.forward(&self.norm.forward(&y)?)?, balance))
    }
}

/// The part of the images it has not seen that the trained model names, its load balancing loss there, and the model.
fn run(steps: usize) -> Result<(f64, f64, Classifier)> {
    let mut rng = Rng::seed(1);
    let digits = NpzFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.npz"))?;
    let images = digits.tensor("images")?.cast(F32)?.div_scalar(16.0)?;
    let labels = digits.tensor("labels")?;
    let (train, (x, y)) = hold_out((images, labels), 360, rng.next_key())?;
    let train = Rows::new(train, 64, Order::Random, rng.next_key())?;

    let model = Classifier {
        embed: Linear::new(64, 32, F32, &mut rng)?,
        moe: Moe::new(32, 32, 8, 2, &mut rng)?,
        norm: LayerNorm::new(32, F32)?,
        head: Linear::new(32, 10, F32, &mut rng)?,
    };
    let mut trainer = Trainer::new(model, Adam { lr: 5e-3, ..Adam::default() });
    // An expert without rows takes no part in a loss: it stays as it is.
    trainer.options = Options { steps, gradients: GradOptions { allow_disconnected: true }, ..Options::default() };
    trainer.on(record(Console::every(50)));
    trainer.run(&train, |m, (x, y), _| {
        let (scores, balance) = m.forward(x)?;
        let loss = scores.cross_entropy(y)?.add(&balance.mul_scalar(0.01)?)?;
        Ok((loss, [("balance", balance)]))
    })?;
    let (scores, balance) = trainer.model.forward(&x)?;
    let accuracy = scores.argmax(-1)?.eq(&y)?.cast(F32)?.mean(..)?.item()?;
    Ok((accuracy, balance.item()?, trainer.model))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cotangent::optim::AdamW;
    use cotangent::{Key, Module, value_and_grad_with};

    /// All that the head sees comes from experts: guessing names a tenth. The balance is 8 where one expert gets everything.
    #[test]
    fn experts_read_images_they_have_not_seen() {
        let (accuracy, balance, mut model) = run(200).unwrap();
        crate::say(&format!("moe: accuracy {accuracy:.3} on 360 images, balance {balance:.3}"));
        assert!(accuracy > 0.9 && balance < 1.3, "{accuracy} {balance}");

        // One image goes to two experts; the others keep their weights to the bit, decay and momentum included.
        let before = model.clone();
        let mut adam = AdamW { lr: 0.1, weight_decay: 0.5, ..AdamW::default() };
        for seed in 0..2 {
            let image = Tensor::rand([1, 8, 8], F32, Key::new(seed)).unwrap();
            let options = GradOptions { allow_disconnected: true };
            let idle_before = model.clone();
            let loss = |m: &Classifier| m.forward(&image)?.0.square()?.sum(..);
            let (_, grads) = value_and_grad_with(&model, options, loss).unwrap();
            adam.step(&mut model, &grads).unwrap();
            let same = |e: usize, of: &Classifier| {
                let bits =
                    |m: &Classifier| m.moe.experts[e].named_tensors().iter().map(|(_, t)| t.to_f64_vec().unwrap()).collect::<Vec<_>>();
                bits(&model) == bits(of)
            };
            let idle = (0..8).filter(|&e| same(e, &idle_before)).count();
            assert_eq!(idle, 6, "step {seed}");
            assert_eq!(grads.disconnected().iter().filter(|n| n.starts_with("moe.experts.")).count(), 6 * 4);
        }
        assert_ne!(before.embed.weight.to_f64_vec().unwrap(), model.embed.weight.to_f64_vec().unwrap());
    }
}
