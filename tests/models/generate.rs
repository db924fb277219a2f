//! Generation: caches, batches, stop tokens and texts, streams of whole characters, scores, sampling.

use crate::models::folders;
use cotangent::io::GenerationConfig;
use cotangent::models::{Completion, Finish, GenerateOptions, Generator, LanguageModel, LoadOptions, Past, TextStream, load};
use cotangent::train::{Bytes, Sampling, Tokenizer};
use cotangent::{F32, F64, Key, Result, Tensor};

fn qwen() -> LanguageModel {
    load(folders("tiny-qwen2").remove(0), LoadOptions::dtype(F32)).unwrap().model
}

fn prompt() -> Vec<u32> {
    let want = crate::train::pytorch_run::load(&folders("tiny-qwen2").remove(0).join("fixture.safetensors"));
    want["gen.prompt"].to_f64_vec().unwrap().iter().map(|&t| t as u32).collect()
}

fn hugging_faces_tokens() -> Vec<u32> {
    let want = crate::train::pytorch_run::load(&folders("tiny-qwen2").remove(0).join("fixture.safetensors"));
    want["gen.tokens"].to_f64_vec().unwrap().iter().map(|&t| t as u32).collect()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

#[test]
fn greedy_tokens_are_hugging_faces() {
    let model = qwen();
    let done = Generator::new(&model, options(32)).complete(&prompt()).unwrap();
    assert_eq!((done.tokens, done.finish), (hugging_faces_tokens(), Finish::Length));
    // As a stream, with its speed.
    let mut stream = Generator::new(&model, options(32)).stream(&prompt()).unwrap();
    let tokens: Vec<u32> = stream.by_ref().map(|s| s.unwrap().token.unwrap()).collect();
    assert_eq!((tokens, stream.finish()), (hugging_faces_tokens(), Some(Finish::Length)));
    let speed = stream.speed();
    assert_eq!((speed.prompt, speed.tokens), (12, 31));
    // 3 layers, keys and values, 2 heads of 16, 43 positions of f32.
    assert_eq!((stream.tokens().len(), stream.cache_bytes()), (44, 3 * 2 * 2 * 16 * 43 * 4));
}

#[test]
fn rows_of_a_batch_are_those_alone() {
    let model = qwen();
    let prompts: Vec<Vec<u32>> = vec![prompt(), prompt()[..5].to_vec(), vec![7]];
    let stop = hugging_faces_tokens()[3];
    for sampling in [Sampling::GREEDY, Sampling { temperature: 0.9, top_k: Some(50), ..Sampling::default() }] {
        let o = GenerateOptions { sampling, key: Key::new(3), stop_tokens: vec![stop], log_probs: true, ..options(12) };
        let together = Generator::new(&model, o.clone()).batch(&prompts).unwrap();
        for (i, p) in prompts.iter().enumerate() {
            // Alone, row 0 draws with fold 0 of the key: padded by copies of itself it stands in row i.
            let copies = vec![p.clone(); i + 1];
            let alone: Completion = Generator::new(&model, o.clone()).batch(&copies).unwrap().pop().unwrap();
            assert_eq!((&together[i].tokens, together[i].finish), (&alone.tokens, alone.finish), "row {i}");
            for (a, b) in together[i].log_probs.iter().zip(&alone.log_probs) {
                assert!((a - b).abs() < 1e-4, "row {i}: {a}, {b}");
            }
            assert!(!together[i].tokens.contains(&stop));
        }
    }
    let stopped = Generator::new(&model, GenerateOptions { stop_tokens: vec![stop], ..options(12) }).complete(&prompt()).unwrap();
    assert_eq!((stopped.tokens.as_slice(), stopped.finish), (&hugging_faces_tokens()[..3], Finish::StopToken));
}

/// A turn of a conversation continues the past: the same tokens and probabilities as from the beginning, of which only the new part
/// is computed.
#[test]
fn a_past_is_not_computed_again() {
    let model = load(folders("tiny-qwen2").remove(0), LoadOptions::dtype(F64)).unwrap().model;
    let generator = Generator::new(&model, GenerateOptions { log_probs: true, ..options(6) });
    let mut past = Past::default();
    // The second begins with all of the first and its answer, the third departs from it at the fifth token, the fourth is the third.
    let (first, mut texts) = (prompt(), Vec::new());
    let answer = generator.complete(&first).unwrap().tokens;
    texts.push((first.clone(), 12));
    texts.push(([&first[..], &answer[..], &[5, 6, 7]].concat(), 4));
    texts.push(([&first[..4], &[9, 8]].concat(), 2));
    texts.push((texts[2].0.clone(), 1));
    for (text, computed) in texts {
        let mut stream = generator.stream_after(std::mem::take(&mut past), &text).unwrap();
        let steps: Vec<_> = stream.by_ref().collect::<Result<_>>().unwrap();
        assert_eq!((stream.speed().prompt, stream.tokens().len()), (computed, text.len() + 6));
        let alone = generator.complete(&text).unwrap();
        assert_eq!(steps.iter().filter_map(|s| s.token).collect::<Vec<_>>(), alone.tokens);
        assert!(steps.iter().zip(&alone.log_probs).all(|(s, p)| (s.log_prob.unwrap() - p).abs() < 1e-10));
        past = stream.into_past();
        assert_eq!(past.tokens().len(), text.len() + 5);
    }
    // A past of another text is no past.
    let other = generator.stream_after(past, &[300, 301]).unwrap();
    assert_eq!(other.speed().prompt, 2);
}

/// Scores are the log-probabilities of the tokens that greedy generation drew, and of the whole sequence at once.
#[test]
fn scores_are_log_probabilities() {
    let model = load(folders("tiny-qwen2").remove(0), LoadOptions::dtype(F64)).unwrap().model;
    let done = Generator::new(&model, GenerateOptions { log_probs: true, ..options(32) }).complete(&prompt()).unwrap();
    let all: Vec<u32> = [prompt(), done.tokens].concat();
    let scores = Generator::new(&model, options(1)).score(&all).unwrap();
    assert_eq!((scores.len(), done.log_probs.len()), (43, 32));
    assert!(scores[11..].iter().zip(&done.log_probs).all(|(a, b)| (a - b).abs() < 1e-9));
    let ids = |t: &[u32]| Tensor::from_vec(t.iter().map(|&t| i64::from(t)).collect::<Vec<_>>(), [1, t.len()]).unwrap();
    let mean = model.forward(&ids(&all[..43])).unwrap().cross_entropy(&ids(&all[1..])).unwrap().item().unwrap();
    assert!((mean + scores.iter().sum::<f64>() / 43.0).abs() < 1e-9);
}

#[test]
fn the_context_ends_a_text() {
    let model = load(folders("tiny-gpt2").remove(0), LoadOptions::default()).unwrap().model;
    let generator = Generator::new(&model, options(100));
    let done = generator.complete(&[5; 60]).unwrap();
    assert_eq!((done.tokens.len(), done.finish), (4, Finish::Context));
    assert_eq!(generator.complete(&[5; 64]).unwrap().finish, Finish::Context);
    for (prompt, words) in [(vec![], "no token"), (vec![5; 65], "65 tokens, the model's context is 64"), (vec![512], "vocabulary of 512")] {
        for e in [generator.complete(&prompt).unwrap_err(), generator.stream(&prompt).map(|_| ()).unwrap_err()] {
            assert!(e.to_string().contains(words) && e.location().unwrap().file().ends_with("generate.rs"), "{e}");
        }
    }
    let stops = GenerateOptions { stop_texts: vec!["x".to_owned()], ..options(1) };
    assert!(Generator::new(&model, stops).complete(&[1]).unwrap_err().is_argument());
    let bad = GenerateOptions { sampling: Sampling { min_p: 2.0, ..Sampling::default() }, ..options(1) };
    assert!(Generator::new(&model, bad).complete(&[1]).unwrap_err().to_string().contains("min-p"));
    assert!(Generator::new(&model, options(0)).complete(&[1]).unwrap().tokens.is_empty());
}

/// Characters of one to four bytes, given byte by byte: each comes whole, at once when it is whole.
#[test]
fn text_never_splits_a_character() {
    let text = "aé€😀 ẞ\n";
    let mut stream = TextStream::new(&[]);
    let parts: Vec<String> = text.bytes().map(|b| stream.push(&Bytes, u32::from(b)).unwrap()).collect();
    assert_eq!(parts.concat(), text);
    assert!(parts.iter().all(|p| p.chars().count() <= 1 && !p.contains('\u{fffd}')));
    // Half a character at the end is given as what it is; bytes that never become a character do not pile up.
    let mut stream = TextStream::new(&[]);
    assert_eq!(stream.push(&Bytes, 0xe2).unwrap() + &stream.finish(&Bytes).unwrap(), "\u{fffd}");
    let mut stream = TextStream::new(&[]);
    let junk: String = (0..100).map(|_| stream.push(&Bytes, 0x80).unwrap()).collect();
    assert!(junk.chars().count() >= 90 && junk.chars().all(|c| c == '\u{fffd}'));
}

#[test]
fn stop_texts_end_a_text_before_them() {
    let run = |stops: &[&str], text: &str| {
        let mut stream = TextStream::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let mut out: String = text.bytes().map(|b| stream.push(&Bytes, u32::from(b)).unwrap()).collect();
        out += &stream.finish(&Bytes).unwrap();
        (out, stream.stopped())
    };
    assert_eq!(run(&["\nUser:"], "hello\nUs\nUser: x"), ("hello\nUs".to_owned(), true));
    assert_eq!(run(&["\nUser:"], "hello\nUse"), ("hello\nUse".to_owned(), false));
    assert_eq!(run(&["aab", "c"], "aaab"), ("a".to_owned(), true));
    assert_eq!(run(&["é"], "caféx"), ("caf".to_owned(), true));
    assert_eq!(run(&[""], "abc"), ("abc".to_owned(), false));
}

/// A tokenizer whose token `t` reads as the letter `a + t % 26`.
struct Letters;
impl Tokenizer for Letters {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(|b| u32::from(b - b'a')).collect())
    }
    fn decode(&self, tokens: &[u32]) -> Result<String> {
        Ok(tokens.iter().map(|t| char::from(b'a' + (t % 26) as u8)).collect())
    }
    fn vocabulary(&self) -> usize {
        1000
    }
}

/// What a stream gives, piece by piece, is the whole text, also where a stop token comes while text is held back.
#[test]
fn a_stream_gives_all_text() {
    let model = qwen();
    let whole = Letters.decode(&hugging_faces_tokens()).unwrap();
    let last = hugging_faces_tokens();
    let at = last.iter().position(|t| !last[..10].contains(t)).unwrap();
    // The text that would stop begins with the letter before the stop token, and never comes.
    let held = format!("{}?", &whole[at - 1..at]);
    let o = GenerateOptions { stop_tokens: vec![last[at]], stop_texts: vec![held], ..options(32) };
    let generator = Generator::new(&model, o).with_tokenizer(&Letters);
    let text: String = generator.stream(&prompt()).unwrap().map(|s| s.unwrap().text).collect();
    assert_eq!(text, whole[..at]);
    assert_eq!(generator.complete(&prompt()).unwrap().text, whole[..at]);
    let stops = GenerateOptions { stop_texts: vec![whole[4..7].to_owned()], ..options(32) };
    let done = Generator::new(&model, stops).with_tokenizer(&Letters).complete(&prompt()).unwrap();
    assert_eq!((done.text, done.finish), (whole[..whole.find(&whole[4..7]).unwrap()].to_owned(), Finish::StopText));
}

#[test]
fn sampling_follows_its_options_and_its_key() {
    let model = qwen();
    let draw = |sampling, key| {
        Generator::new(&model, GenerateOptions { sampling, key: Key::new(key), ..options(24) }).complete(&prompt()).unwrap().tokens
    };
    let free = Sampling { temperature: 1.5, ..Sampling::default() };
    assert_eq!(draw(free, 1), draw(free, 1));
    assert_ne!(draw(free, 1), draw(free, 2));
    // Each of these leaves the likeliest alone.
    for one in [Sampling { top_k: Some(1), ..free }, Sampling { top_p: 1e-9, ..free }, Sampling { min_p: 1.0, ..free }] {
        assert_eq!(draw(one, 5), hugging_faces_tokens()[..24]);
    }
    // Greedy repeats itself here; a strong penalty forbids it.
    let repeats = |tokens: &[u32]| tokens.windows(2).filter(|w| w[0] == w[1]).count();
    let strict = draw(Sampling { repetition_penalty: 50.0, ..Sampling::GREEDY }, 1);
    assert!(repeats(&hugging_faces_tokens()[..24]) > 0 && repeats(&strict) == 0, "{strict:?}");
    // min-p as a part of the likeliest: e^0 and e^-1 stay at 0.3, e^-2 does not.
    let weights = |u: f64| Sampling { min_p: 0.3, ..Sampling::default() }.draw(&[0.0, -1.0, -2.0], u).unwrap();
    assert_eq!([weights(0.0), weights(0.72), weights(0.74), weights(0.999)], [0, 0, 1, 1]);
}

#[test]
fn a_generation_config_says_how() {
    let text = r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "eos_token_id": [7, 9], "max_new_tokens": 5}"#;
    let o = GenerateOptions::from(&GenerationConfig::parse(text).unwrap());
    let sampling = Sampling { temperature: 0.7, top_k: Some(20), top_p: 0.8, min_p: 0.0, repetition_penalty: 1.1 };
    assert_eq!((o.sampling, o.stop_tokens, o.max_tokens), (sampling, vec![7, 9], 5));
    assert_eq!(GenerateOptions::from(&GenerationConfig::default()).sampling, Sampling::GREEDY);
}
