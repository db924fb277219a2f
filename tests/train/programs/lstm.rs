//! An LSTM learns to write from a text, by truncated back-propagation: the state goes on, its history does not.

use cotangent::nn::{Embedding, Linear, Lstm, RecurrentConfig};
use cotangent::optim::Adam;
use cotangent::train::{Characters, Sampling, Tokenizer};
use cotangent::{F32, GradOptions, Key, Result, Rng, Tensor, module, value_and_grad_with_aux};

const STREAMS: usize = 8;
const STEPS: usize = 32;

#[derive(Clone)]
struct CharLm {
    letters: Embedding,
    lstm: Lstm,
    head: Linear,
}
module!(CharLm { letters, lstm, head });

type State = Option<(Tensor, Tensor)>;

impl CharLm {
    fn new(vocabulary: usize, width: usize, rng: &mut Rng) -> Result<Self> {
        let config = RecurrentConfig { inputs: width, hidden: width, ..RecurrentConfig::default() };
        Ok(CharLm {
            letters: Embedding::normal(vocabulary, width, 1.0, F32, rng.next_key())?,
            lstm: Lstm::new(&config, F32, rng.next_key())?,
            head: Linear::new(width, vocabulary, F32, rng.next_key())?,
        })
    }

    fn forward(&self, x: &Tensor, state: &State) -> Result<(Tensor, State)> {
        let (y, state) = self.lstm.forward(&self.letters.forward(x)?, state.as_ref().map(|(h, c)| (h, c)))?;
        Ok((self.head.forward(&y)?, Some(state)))
    }

    fn loss(&self, x: &Tensor, y: &Tensor, state: &State) -> Result<(Tensor, State)> {
        let (logits, state) = self.forward(x, state)?;
        Ok((logits.cross_entropy(y)?, state))
    }

    fn write(&self, start: &Tensor, count: usize, key: Key) -> Result<Vec<u32>> {
        let (mut tokens, mut x, mut state) = (Vec::new(), start.clone(), None);
        for i in 0..count {
            let (logits, next) = self.forward(&x, &state)?;
            let token = Sampling::default().draw(&logits.select(1, -1)?.to_f64_vec()?, key.uniform_f64(i as u64))?;
            (x, state) = (Tensor::full([1, 1], token as f64, x.dtype())?, next);
            tokens.push(token as u32);
        }
        Ok(tokens)
    }
}

/// The model, the letters, and the loss on the last part of the text, which it never saw.
fn train(text: &str, epochs: usize, rng: &mut Rng) -> Result<(CharLm, Characters, f64)> {
    let letters = Characters::of(text);
    let ids = letters.encode(text)?;
    let ids = Tensor::from_slice(&ids, [ids.len()])?;
    let (seen, held_out) = (ids.slice(0, ..-2000)?, ids.slice(0, -2000..)?.unsqueeze(0)?);
    let seen = seen.slice(0, ..seen.numel() / STREAMS * STREAMS)?.reshape((STREAMS, ()))?;
    let mut model = CharLm::new(letters.vocabulary(), 64, rng)?;
    let mut optimizer = Adam { lr: 1e-2, ..Adam::default() };
    for _ in 0..epochs {
        let mut state = None;
        for i in (0..seen.size(1)? - STEPS).step_by(STEPS) {
            let (x, y) = (seen.slice(1, i..i + STEPS)?, seen.slice(1, i + 1..i + STEPS + 1)?);
            // What comes back beside the loss has no history.
            let (_, next, mut grads) = value_and_grad_with_aux(&model, GradOptions::default(), |m| m.loss(&x, &y, &state))?;
            state = next;
            grads.clip_global_norm(1.0)?;
            optimizer.step(&mut model, &grads)?;
        }
    }
    let (loss, _) = model.loss(&held_out.slice(1, ..-1)?, &held_out.slice(1, 1..)?, &None)?;
    Ok((model, letters, loss.item()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Result<String> {
        Ok(std::fs::read_to_string("LICENSE-APACHE")?)
    }

    /// Nats per letter of the best guess that knows how often each letter of these occurs, and nothing of what stands before it.
    fn unigram_entropy(text: &str) -> f64 {
        let mut counts = std::collections::BTreeMap::new();
        text.chars().for_each(|c| *counts.entry(c).or_insert(0.0) += 1.0);
        let n: f64 = counts.values().sum();
        counts.values().map(|k: &f64| -k / n * (k / n).ln()).sum()
    }

    #[test]
    fn it_guesses_letters_by_those_before_them() -> Result<()> {
        let text = text()?;
        let (model, letters, loss) = train(&text, 5, &mut Rng::seed(1))?;
        // Of the last 1999 letters, which it is judged by: counts of the very text, that no model of single letters can beat.
        let judged: String = text.chars().skip(text.chars().count() - 1999).collect();
        let unigram = unigram_entropy(&judged);
        println!("{loss:.3} nats per letter, unigrams {unigram:.3}");
        assert!(loss < 0.8 * unigram, "{loss:.3} nats per letter, unigrams {unigram:.3}");
        let start = Tensor::from_slice(&letters.encode("\n")?, [1, 1])?;
        let made_up = letters.decode(&model.write(&start, 100, Key::new(2))?)?;
        println!("{made_up}");
        assert_eq!(made_up.chars().count(), 100);
        Ok(())
    }

    /// Two pieces with the state between them are the whole: logits, loss and the state at the end.
    #[test]
    fn a_carried_state_goes_on_where_it_was() -> Result<()> {
        let mut rng = Rng::seed(3);
        let model = CharLm::new(9, 16, &mut rng)?;
        let x = Tensor::randint([4, 20], 0..9, cotangent::I64, &mut rng)?;
        let y = Tensor::randint([4, 20], 0..9, cotangent::I64, &mut rng)?;
        let piece = |t: &Tensor, i: usize| t.slice(1, 10 * i..10 * i + 10);
        let (whole, end) = model.forward(&x, &None)?;
        let (first, state) = model.forward(&piece(&x, 0)?, &None)?;
        let (second, last) = model.forward(&piece(&x, 1)?, &state)?;
        assert_eq!(Tensor::concat(&[&first, &second], 1)?.to_vec::<f32>()?, whole.to_vec::<f32>()?);
        let (Some((h, c)), Some((h2, c2))) = (end, last) else { panic!("a state comes back") };
        assert_eq!((h.to_vec::<f32>()?, c.to_vec::<f32>()?), (h2.to_vec::<f32>()?, c2.to_vec::<f32>()?));
        // What a training step hands on is that state without history: the next step's gradient ends there.
        let (_, handed, _) = value_and_grad_with_aux(&model, GradOptions::default(), |m| m.loss(&piece(&x, 0)?, &piece(&y, 0)?, &None))?;
        let Some((h, c)) = &handed else { panic!("a state comes back") };
        assert!(!h.is_tracked() && !c.is_tracked());
        let (Some((h1, _)), next) = (state, model.loss(&piece(&x, 1)?, &piece(&y, 1)?, &handed)?.0) else { panic!("a state comes back") };
        assert_eq!(h.to_vec::<f32>()?, h1.to_vec::<f32>()?);
        let whole = model.loss(&x, &y, &None)?.0.item()?;
        let halves = (model.loss(&piece(&x, 0)?, &piece(&y, 0)?, &None)?.0.item()? + next.item()?) / 2.0;
        assert!((whole - halves).abs() < 1e-6, "{whole} and {halves}");
        Ok(())
    }
}
