//! A bigram model, as a small MLP, learns which letter follows which in a table of names, and makes up new ones.
//!
//! `cargo run --release --example names` takes a second or two.

use cotangent::nn::{Embedding, Linear};
use cotangent::optim::AdamW;
use cotangent::train::{Characters, Console, Options, Order, Sampling, Tokenizer, Tokens, Trainer, Windows, generate, record};
use cotangent::{F32, Key, Result, Tensor, module};

#[derive(Clone)]
struct Bigram {
    letters: Embedding,
    hidden: Linear,
    out: Linear,
}
module!(Bigram { letters, hidden, out });

impl Bigram {
    /// Letters `[batch, time]` to logits of the next one, `[batch, time, vocabulary]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&self.hidden.forward(&self.letters.forward(x)?)?.tanh()?)
    }
}

fn main() -> Result<()> {
    let table = include_str!("data/names.csv");
    // The first column; a line break begins and ends each name.
    let text: String = table.lines().skip(1).filter_map(|row| row.split(',').next()).flat_map(|name| ["\n", name]).collect();
    let letters = Characters::of(&text);
    let tokens = Tokens::from(letters.encode(&text)?);
    let (n, key) = (letters.vocabulary(), Key::new(1));
    let model = Bigram {
        letters: Embedding::normal(n, 16, 1.0, F32, key.fold(0))?,
        hidden: Linear::new(16, 64, F32, key.fold(1))?,
        out: Linear::new(64, n, F32, key.fold(2))?,
    };
    let data = Windows::new(tokens, 16, 16, Order::Shuffled, key.fold(3))?;
    let mut trainer = Trainer::new(model, AdamW { lr: 0.01, ..AdamW::default() });
    trainer.options = Options { steps: 500, ..Options::default() };
    trainer.on(record(Console::every(100)));
    trainer.run(&data, |m, (x, y), _| m.forward(x)?.cross_entropy(y))?;
    let start = letters.encode("\n")?;
    let made_up = generate(&start, 80, 1, Sampling { temperature: 0.8, ..Sampling::default() }, key.fold(4), &trainer.stop, |x| {
        trainer.model.forward(x)
    })?;
    println!("{}", letters.decode(&made_up)?);
    Ok(())
}
