//! A character GPT after nanoGPT: trains on a page of text, is evaluated on its last tenth, and writes.

use cotangent::nn::{Dropout, Embedding, Init, LayerNorm, Linear, LinearOptions};
use cotangent::ops::SdpaOptions;
use cotangent::optim::{AdamW, WarmupCosine};
use cotangent::train::{Batches, Characters, Console, Options, Order, Sampling, Tokenizer, Tokens, Trainer, Windows, generate, record};
use cotangent::{F32, Key, Result, Rng, Tensor, module};

/// Of weights in layers as narrow as these; GPT-2, 24 times as wide, has 0.02.
const STD: f64 = 0.1;

struct Config {
    vocabulary: usize,
    context: usize,
    layers: usize,
    heads: usize,
    width: usize,
    dropout: f64,
}

#[derive(Clone)]
struct Attention {
    qkv: Linear,
    out: Linear,
    heads: usize,
    dropout: f64,
}
module!(Attention { qkv, out } skip { heads, dropout });

impl Attention {
    fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        let [b, t, c] = x.dims()?;
        let qkv = self.qkv.forward(x)?.reshape([b, t, 3, self.heads, c / self.heads])?;
        let [q, k, v] = qkv.permute([2, 0, 3, 1, 4])?.unpack(0)?;
        let dropout = if key.is_some() { self.dropout } else { 0.0 };
        let y = q.scaled_dot_product_attention(&k, &v, None, &SdpaOptions { dropout, key, ..SdpaOptions::causal() })?;
        self.out.forward(&y.transpose(1, 2)?.reshape([b, t, c])?)
    }
}

#[derive(Clone)]
struct Block {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    dropout: Dropout,
}
module!(Block { norm1, attention, norm2, up, down } skip { dropout });

impl Block {
    fn new(c: &Config, rng: &mut Rng) -> Result<Self> {
        let mut linear = |i, o, init| Linear::with(i, o, F32, rng.next_key(), &LinearOptions { bias: true, init });
        let (inside, residual) = (Init::Normal { std: STD }, Init::Normal { std: STD / (2.0 * c.layers as f64).sqrt() });
        Ok(Block {
            norm1: LayerNorm::new(c.width, F32)?,
            attention: Attention {
                qkv: linear(c.width, 3 * c.width, inside)?,
                out: linear(c.width, c.width, residual)?,
                heads: c.heads,
                dropout: c.dropout,
            },
            norm2: LayerNorm::new(c.width, F32)?,
            up: linear(c.width, 4 * c.width, inside)?,
            down: linear(4 * c.width, c.width, residual)?,
            dropout: Dropout { p: c.dropout },
        })
    }

    fn forward(&self, x: &Tensor, key: Option<Key>) -> Result<Tensor> {
        let fold = |i| key.map(|k| k.fold(i));
        let mixed = self.attention.forward(&self.norm1.forward(x)?, fold(0))?;
        let x = x.add(&self.dropout.forward(&mixed, fold(1))?)?;
        let inner = self.up.forward(&self.norm2.forward(&x)?)?.gelu()?;
        x.add(&self.dropout.forward(&self.down.forward(&inner)?, fold(2))?)
    }
}

#[derive(Clone)]
struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}
module!(Gpt { tokens, positions, blocks, norm });

impl Gpt {
    fn new(c: &Config, rng: &mut Rng) -> Result<Self> {
        Ok(Gpt {
            tokens: Embedding::normal(c.vocabulary, c.width, STD, F32, rng.next_key())?,
            positions: Embedding::normal(c.context, c.width, STD, F32, rng.next_key())?,
            blocks: (0..c.layers).map(|_| Block::new(c, rng)).collect::<Result<_>>()?,
            norm: LayerNorm::new(c.width, F32)?,
        })
    }

    fn forward(&self, ids: &Tensor, key: Option<Key>) -> Result<Tensor> {
        let [_, time] = ids.dims()?;
        let mut x = self.tokens.forward(ids)?.add(&self.positions.weight.narrow(0, 0, time)?)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, key.map(|k| k.fold(i as u64)))?;
        }
        self.tokens.unembed(&self.norm.forward(&x)?)
    }

    fn loss(&self, ids: &Tensor, targets: &Tensor, key: Option<Key>) -> Result<Tensor> {
        self.forward(ids, key)?.cross_entropy(targets)
    }
}

/// The loss on text that training has not seen, and a sample.
pub fn run(steps: usize) -> Result<(f64, String)> {
    let text = include_str!("../../../ARCHITECTURE.md");
    let characters = Characters::of(text);
    let tokens = Tokens::from(characters.encode(text)?);
    let (train, validation) = tokens.split_at(tokens.len() * 9 / 10)?;

    let config = Config { vocabulary: characters.vocabulary(), context: 32, layers: 2, heads: 4, width: 32, dropout: 0.05 };
    let [weights, order, noise, sampler] = Key::new(1).split();
    let data = Windows::new(train, 8, config.context, Order::Random, order)?;
    let all = validation.len() / config.context;
    let (x, y) = Windows::new(validation, all, config.context, Order::Sequential, order)?.batch(0)?;
    let optimizer = AdamW { betas: (0.9, 0.99), weight_decay: 0.1, ..AdamW::default() };
    let mut trainer = Trainer::new(Gpt::new(&config, &mut Rng::from_key(weights))?, optimizer);
    trainer.key = noise;
    trainer.options = Options { steps, clip: Some(1.0), evaluate_every: 50, ..Options::default() };
    trainer.schedule = Some(Box::new(WarmupCosine { peak: 1e-2, floor: 5e-4, warmup: 10, end: steps }));
    trainer.evaluate_with(|m| m.loss(&x, &y, None)?.item());
    trainer.on(record(Console::every(50)));
    let outcome = trainer.run(&data, |m, (x, y), key| m.loss(x, y, Some(key)))?;
    let sampling = Sampling { temperature: 0.8, top_k: Some(20), ..Sampling::default() };
    let logits = |x: &Tensor| trainer.model.forward(x, None);
    let sample = generate(&characters.encode("\n")?, 100, config.context, sampling, sampler, &trainer.stop, logits)?;
    Ok((outcome.evaluation.unwrap_or(f64::NAN), characters.decode(&sample)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    /// Nats by character of a text after counting another: 1 is added to the count of each character.
    fn unigram_entropy(seen: &[char], text: &[char]) -> f64 {
        let mut counts: BTreeMap<char, f64> = seen.iter().chain(text).map(|&c| (c, 1.0)).collect();
        let kinds = counts.len() as f64;
        seen.iter().for_each(|c| *counts.entry(*c).or_default() += 1.0);
        -text.iter().map(|c| (counts[c] / (seen.len() as f64 + kinds)).ln()).sum::<f64>() / text.len() as f64
    }

    /// A model that only knows how often characters are is at the entropy of the counts. Pairs of characters, counted, are 0.7 nats below
    /// it: a model that is more than half of that below has learnt to look at what stands before.
    #[test]
    fn learns_more_than_how_often_characters_are() {
        let (loss, sample) = super::run(120).unwrap();
        let text: Vec<char> = include_str!("../../../ARCHITECTURE.md").chars().collect();
        let (seen, held_out) = text.split_at(text.len() * 9 / 10);
        let counted = unigram_entropy(seen, held_out);
        crate::say(&format!("nanogpt: {loss:.3} nats by character, counts alone {counted:.3}: {sample:?}"));
        assert!(loss < counted - 0.4, "{loss} with {counted} for the counts");
        assert_eq!(sample.chars().count(), 100);
        assert!(sample.chars().all(|c| text.contains(&c)));
    }
}
