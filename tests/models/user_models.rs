//! Models and generation as users have them: rows that end in their own way, side files with odd values, vectors of sentences.

use crate::models::folders;
use cotangent::io::{GenerationConfig, ModelConfig, TensorFile, save_safetensors};
use cotangent::models::{
    Completion, Finish, GenerateOptions, Generator, LanguageModel, LoadOptions, Pooling, PoolingMode, PoolingStage, load, load_encoder,
};
use cotangent::train::{self, Sampling, TokenRules, Tokenizer};
use cotangent::{BF16, DType, F16, F32, F64, I64, Key, Module, Result, Tensor, U8};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn gpt2() -> LanguageModel {
    load(folders("tiny-gpt2").remove(0), LoadOptions::dtype(F32)).unwrap().model
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

/// A copy of a folder's config.json and weights, for a test to write beside.
fn copy(of: &str, name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("cotangent-user-models-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(of).join(file), folder.join(file)).unwrap();
    }
    folder
}

/// A tokenizer that has no text for ids from a number on, and says so.
struct Strict(u32);
impl Tokenizer for Strict {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }
    fn decode(&self, tokens: &[u32]) -> Result<String> {
        match tokens.iter().find(|t| **t >= self.0) {
            Some(t) => Err(cotangent::Error::index(format!("token {t} has no text"))),
            None => Ok(tokens.iter().map(|t| char::from(b'a' + (t % 26) as u8)).collect()),
        }
    }
    fn vocabulary(&self) -> usize {
        self.0 as usize
    }
}

/// What goes wrong with one row ends that row, which keeps what it has; the others are as without it.
#[test]
fn one_row_takes_no_other_with_it() {
    let model = gpt2();
    let sampling = Sampling { temperature: 3.0, ..Sampling::default() };
    let o = GenerateOptions { sampling, key: Key::new(2), log_probs: true, ..options(30) };
    let prompts: Vec<Vec<u32>> = (0..5).map(|i| vec![i + 1; 3]).collect();
    let bare = Generator::new(&model, o.clone()).batch(&prompts).unwrap();
    let strict = Strict(505);
    let with = Generator::new(&model, o.clone()).with_tokenizer(&strict);
    let rows = with.batch(&prompts).unwrap();
    let mut failed = 0;
    for (row, bare) in rows.iter().zip(&bare) {
        match bare.tokens.iter().position(|&t| t >= 505) {
            Some(at) => {
                failed += 1;
                assert_eq!((&row.tokens[..], row.finish), (&bare.tokens[..=at], Finish::Failed));
                assert_eq!((row.text.len(), row.log_probs.len()), (at, at + 1));
                let why = row.error.as_deref().unwrap();
                assert!(why.contains(&format!("token {} has no text", bare.tokens[at])), "{why}");
            }
            None => {
                assert_eq!((&row.tokens, row.finish, &row.error), (&bare.tokens, bare.finish, &None));
                assert_eq!(row.text.len(), 30);
            }
        }
    }
    assert!((1..5).contains(&failed), "{failed} of 5 rows failed");
    // By itself: the tokens are there, and a stream gives the error behind them.
    let i = rows.iter().position(|r| r.finish == Finish::Failed).unwrap();
    let copies = with.batch(&vec![prompts[i].clone(); i + 1]).unwrap();
    assert_eq!((&copies[i].tokens, &copies[i].text, &copies[i].error), (&rows[i].tokens, &rows[i].text, &rows[i].error));
    let o = GenerateOptions { key: Key::new(2), ..o };
    let alone = Generator::new(&model, o.clone()).with_tokenizer(&Strict(250)).complete(&prompts[0]).unwrap();
    assert_eq!(alone.finish, Finish::Failed);
    let strict = Strict(250);
    let generator = Generator::new(&model, o).with_tokenizer(&strict);
    let mut stream = generator.stream(&prompts[0]).unwrap();
    let steps: Vec<_> = stream.by_ref().collect();
    let (last, before) = steps.split_last().unwrap();
    assert_eq!(before.iter().map(|s| s.as_ref().unwrap().token.unwrap()).collect::<Vec<_>>(), alone.tokens);
    assert!(last.as_ref().unwrap_err().is_index() && stream.next().is_none());
    assert_eq!((stream.finish(), stream.tokens().len()), (Some(Finish::Failed), 3 + alone.tokens.len()));
    // Nothing to keep: the error itself.
    let broken = model.map(|_, t| t.mul_scalar(f64::NAN)).unwrap();
    let e = Generator::new(&broken, options(3)).complete(&[1]).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("512 of the 512 logits are NaN"), "{e}");
    let none = TokenRules { suppress_tokens: (0..512).collect(), ..TokenRules::default() };
    let e = Generator::new(&model, GenerateOptions { rules: none, ..options(3) }).batch(&prompts).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("the rules forbid every one of the 512 tokens"), "{e}");
}

/// Rows of learned positions that reach the last of them, beside rows that go on.
#[test]
fn rows_end_at_the_last_position_alone() {
    let model = gpt2();
    let long = |n: usize| (0..n).map(|i| (i * 37 % 512) as u32).collect::<Vec<u32>>();
    let batches = [
        vec![long(60), vec![7]],
        vec![vec![7], long(60)],
        vec![vec![1], vec![1; 64]],
        vec![long(62), long(58), vec![3, 4], long(64), long(30)],
    ];
    for (n, prompts) in batches.iter().enumerate() {
        for sampling in [Sampling::GREEDY, Sampling { temperature: 0.8, ..Sampling::default() }] {
            let o = GenerateOptions { sampling, key: Key::new(5), log_probs: true, ..options(20) };
            let together = Generator::new(&model, o.clone()).batch(prompts).unwrap();
            for (i, p) in prompts.iter().enumerate() {
                let alone: Completion = Generator::new(&model, o.clone()).batch(&vec![p.clone(); i + 1]).unwrap().pop().unwrap();
                assert_eq!((&together[i].tokens, together[i].finish), (&alone.tokens, alone.finish), "batch {n}, row {i}");
                assert!(together[i].log_probs.iter().zip(&alone.log_probs).all(|(a, b)| (a - b).abs() < 1e-4), "batch {n}, row {i}");
                let room = 64 - p.len();
                assert_eq!(alone.finish, if room < 20 { Finish::Context } else { Finish::Length });
                assert_eq!(alone.tokens.len(), room.min(20));
            }
        }
    }
    // A prompt that cannot be is named before anything is computed.
    let e = Generator::new(&model, options(2)).batch(&[vec![1], vec![1; 65]]).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("prompt 1: the prompt has 65 tokens"), "{e}");
    // Beyond the positions there is nothing to compute.
    assert!(model.forward(&Tensor::zeros([1, 65], I64).unwrap()).unwrap_err().to_string().contains("65 tokens exceed the context of 64"));
}

/// Rotary positions go on beyond the context. Tokens are transformers', greedy, in f32.
#[test]
fn rotary_models_go_on_beyond_their_context() {
    let text = |n: u32| (0..n).map(|i| (7 * i + 3) % 32).collect::<Vec<u32>>();
    let run = |family: &str, prompt: u32, n: usize| {
        let model = load(fixture("families").join(family), LoadOptions::dtype(F32)).unwrap().model;
        assert_eq!((model.limit(), model.context()), (None, if family == "dynamic" { 32 } else { 64 }));
        let done = Generator::new(&model, options(n)).complete(&text(prompt)).unwrap();
        assert_eq!(done.finish, Finish::Length);
        done.tokens
    };
    let dynamic = [0, 23, 28, 16, 2, 29, 16, 28, 1, 2, 28, 23, 16, 28, 20, 28, 15, 23, 26, 28];
    assert_eq!(run("dynamic", 28, 20), dynamic);
    assert_eq!(run("dynamic", 40, 6), [1, 23, 28, 23, 28, 15]);
    for (family, want) in [
        ("dynamic", [3, 0, 29, 16, 2, 29, 16, 28, 7, 23, 1, 15]),
        ("linear", [0, 0, 0, 0, 0, 0, 18, 20, 18, 20, 18, 17]),
        ("yarn", [25, 18, 8, 3, 3, 9, 10, 3, 24, 15, 5, 8]),
        ("llama3", [16, 17, 16, 11, 16, 12, 13, 3, 28, 17, 17, 17]),
        ("mistral", [21, 5, 22, 22, 0, 20, 20, 20, 20, 5, 21, 5]),
        ("qwen3", [2, 3, 27, 7, 24, 18, 7, 19, 11, 10, 17, 18]),
    ] {
        assert_eq!(run(family, 60, 12), want, "{family}");
    }
}

/// One place draws tokens, with every option.
#[test]
fn both_generators_draw_in_one_way() {
    let logits = |x: &Tensor| Tensor::from_slice(&[3.0f64, 2.9, 2.8, 0.0], [1, 1, 4])?.expand([1, x.size(1)?, 4]);
    let stop = Default::default();
    let run = |s: Sampling| train::generate(&[3], 3, 8, s, Key::new(1), &stop, logits);
    assert_eq!(run(Sampling { repetition_penalty: 10.0, ..Sampling::GREEDY }).unwrap(), [0, 1, 2]);
    assert_eq!(run(Sampling::GREEDY).unwrap(), [0, 0, 0]);
    // What left the context still counts.
    let short = train::generate(&[3], 3, 1, Sampling { repetition_penalty: 10.0, ..Sampling::GREEDY }, Key::new(1), &stop, logits);
    assert_eq!(short.unwrap(), [0, 1, 2]);
    for bad in [Sampling { repetition_penalty: -1.0, ..Sampling::GREEDY }, Sampling { top_p: 1.5, ..Sampling::GREEDY }] {
        assert!(run(bad).unwrap_err().is_argument());
    }
    // The penalty is not passed over where it cannot be done.
    assert!(
        Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY }.draw(&[1.0, 2.0], 0.5).unwrap_err().to_string().contains("draw_after")
    );
    // The same tokens from both, of one model, by every option.
    let model = load(fixture("families/qwen3"), LoadOptions::dtype(F64)).unwrap().model;
    let free = Sampling { temperature: 1.3, ..Sampling::default() };
    for s in [
        Sampling { repetition_penalty: 1.7, ..free },
        Sampling { top_k: Some(5), ..free },
        Sampling { top_p: 0.6, ..free },
        Sampling { min_p: 0.2, repetition_penalty: 1.3, ..free },
        Sampling { repetition_penalty: 3.0, ..Sampling::GREEDY },
    ] {
        let o = GenerateOptions { sampling: s, key: Key::new(9), ..options(12) };
        let a = Generator::new(&model, o).complete(&[4, 5, 6]).unwrap().tokens;
        let b = train::generate(&[4, 5, 6], 12, 64, s, Key::new(9).fold(0), &stop, |x| model.forward(x)).unwrap();
        assert_eq!(a, b, "{s:?}");
    }
}

/// The rules on tokens. Tokens are transformers', greedy, of the tiny GPT-2.
#[test]
fn rules_are_transformers() {
    let model = gpt2();
    let run = |json: Value| {
        let config = GenerationConfig::parse(&json.to_string()).unwrap();
        assert!(config.wrong.is_empty() && config.passed_over.is_empty(), "{config:?}");
        let o = GenerateOptions::from(&config);
        let o = if json.get("max_length").is_some() { o } else { GenerateOptions { max_tokens: 12, ..o } };
        Generator::new(&model, o).complete(&[5, 9, 2, 7]).unwrap().tokens
    };
    let base = [140, 153, 245, 245, 502, 245, 297, 290, 245, 297, 290, 245];
    assert_eq!(run(json!({})), base);
    assert_eq!(run(json!({"suppress_tokens": [140, 153]})), [74, 500, 85, 290, 290, 290, 290, 290, 290, 290, 290, 290]);
    assert_eq!(run(json!({"begin_suppress_tokens": [140]})), [74, 140, 71, 166, 207, 374, 374, 374, 290, 290, 290, 290]);
    assert_eq!(run(json!({"bad_words_ids": [[245], [140, 153]]})), [140, 412, 85, 400, 197, 400, 197, 500, 290, 290, 290, 290]);
    assert_eq!(run(json!({"no_repeat_ngram_size": 2})), [140, 153, 245, 245, 502, 245, 297, 290, 245, 336, 245, 113]);
    assert_eq!(run(json!({"no_repeat_ngram_size": 1})), [140, 153, 245, 297, 290, 113, 190, 457, 431, 152, 207, 227]);
    assert_eq!(run(json!({"repetition_penalty": 5.0})), [140, 153, 245, 297, 290, 113, 190, 457, 431, 152, 207, 227]);
    let late = [140, 153, 290, 290, 290, 290, 290, 297, 290, 113, 290, 113];
    assert_eq!(run(json!({"min_new_tokens": 6, "eos_token_id": 245})), late);
    assert_eq!(run(json!({"min_length": 8, "eos_token_id": 245})), late);
    // A word that ends texts is no bad word, and transformers' texts have it at their end.
    assert_eq!(run(json!({"bad_words_ids": [[245]], "eos_token_id": 245})), base[..2]);
    assert_eq!(run(json!({"max_length": 9})), base[..5]);
    assert_eq!(run(json!({"forced_eos_token_id": [77]})), [&base[..11], &[77]].concat());
    let forced = GenerateOptions { rules: TokenRules { forced_first: Some(77), ..TokenRules::default() }, ..options(6) };
    assert_eq!(Generator::new(&model, forced).complete(&[5]).unwrap().tokens, [77, 71, 290, 101, 166, 400]);
    let outside = GenerateOptions { rules: TokenRules { suppress_tokens: vec![512], ..TokenRules::default() }, ..options(6) };
    assert!(Generator::new(&model, outside).complete(&[5]).unwrap_err().is_index());
}

/// Values that stand for "all" and "none"; what means nothing is said when generating, and by no other.
#[test]
fn odd_settings_do_not_refuse_the_model() {
    let sampling = |json: Value| GenerateOptions::from(&GenerationConfig::parse(&json.to_string()).unwrap());
    // The likeliest alone, a hundred times.
    let zero = sampling(json!({"do_sample": true, "top_p": 0.0})).sampling;
    assert!((0..100).all(|i| zero.draw(&[1.0, 1.1, 0.9], i as f64 / 100.0).unwrap() == 1));
    let greedy = sampling(json!({"do_sample": true, "temperature": 0.0})).sampling;
    assert!((0..100).all(|i| greedy.draw(&[1.0, 1.1, 0.9], i as f64 / 100.0).unwrap() == 1));
    for all in [json!({"do_sample": true, "top_k": -1}), json!({"do_sample": true, "top_k": 0})] {
        let o = sampling(all);
        assert_eq!((o.sampling, o.wrong), (Sampling::default(), vec![]));
    }
    let folder = copy("families/qwen3", "odd");
    let write = |text: &str| std::fs::write(folder.join("generation_config.json"), text).unwrap();
    for (text, part) in [
        (r#"{"top_p": 1.5}"#, "`top_p` is 1.5, expected 0 to 1"),
        (r#"{"do_sample": true, "top_k": -5}"#, "`top_k` is -5"),
        (r#"{"do_sample": true, "temperature": -1}"#, "`temperature` is -1"),
        (r#"{"repetition_penalty": 0}"#, "`repetition_penalty` is 0"),
        (r#"{"eos_token_id": "end"}"#, "`eos_token_id` is \"end\""),
        (r#"{"bad_words_ids": [3]}"#, "`bad_words_ids` is [3]"),
        (r#"{"stop_strings": 7}"#, "`stop_strings` is 7"),
        ("{", "is not JSON"),
        ("[]", "expected an object"),
    ] {
        write(text);
        let loaded = load(&folder, LoadOptions::default()).unwrap();
        assert!(loaded.report.notes.iter().any(|n| n.contains(part)), "{:?}", loaded.report.notes);
        assert!(loaded.report.to_string().contains(part));
        let mut generator = Generator::of(&loaded);
        let e = generator.complete(&[1, 2]).unwrap_err();
        assert!(e.is_argument() && e.to_string().contains(part) && e.to_string().contains("GenerateOptions::wrong"), "{e}");
        generator.options.wrong.clear();
        generator.options.max_tokens = 2;
        assert_eq!(generator.complete(&[1, 2]).unwrap().tokens.len(), 2);
    }
    write(r#"{"stop_strings": ["\n\n", "END"], "num_beams": 4, "typical_p": 0.9, "num_return_sequences": 1, "max_length": 30}"#);
    let loaded = load(&folder, LoadOptions::default()).unwrap();
    let o = GenerateOptions::from(&loaded.generation);
    assert_eq!((o.stop_texts, o.max_length, o.max_tokens), (vec!["\n\n".to_owned(), "END".to_owned()], Some(30), usize::MAX));
    assert_eq!(loaded.generation.passed_over, ["`num_beams` is 4", "`typical_p` is 0.9"]);
    assert!(loaded.report.to_string().contains("`num_beams` is 4: passed over"), "{}", loaded.report);
    assert_eq!(GenerateOptions::from(&GenerationConfig::parse(r#"{"stop_strings": "x"}"#).unwrap()).stop_texts, ["x"]);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Other files beside a model: damaged, they are said to be, and the model loads.
#[test]
fn no_side_file_takes_down_a_model() {
    let folder = copy("families/qwen3", "side");
    for (file, bytes) in [("tokenizer_config.json", &b"{"[..]), ("chat_template.jinja", b"\xff\xfe"), ("tokenizer.json", b"{}")] {
        std::fs::write(folder.join(file), bytes).unwrap();
        let loaded = load(&folder, LoadOptions::default()).unwrap();
        let said = |n: &String| n.contains(file) && n.starts_with("there is no ");
        let used = file != "tokenizer.json" || cfg!(feature = "tokenizers");
        assert_eq!(loaded.report.notes.iter().any(said), used, "{file}: {:?}", loaded.report.notes);
        if file == "tokenizer.json" && used {
            assert!(loaded.tokenizer.is_none() && loaded.tokenizer_refused.unwrap().contains("is not a tokenizer"));
        }
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// What the metadata name ends a text, and what they suppress is not drawn.
#[test]
fn a_gguf_files_ends_are_all_there() {
    let path = fixture("gguf/tiny-qwen2-Q4_0.gguf");
    let tables = cotangent::io::GgufFile::open(&path).unwrap().tokenizer().unwrap().unwrap();
    let mut steps = Vec::new();
    let mut progress = |done: usize, all: usize| steps.push((done, all));
    let loaded = load(&path, LoadOptions { packed: true, progress: Some(&mut progress), ..LoadOptions::default() }).unwrap();
    assert_eq!(loaded.generation.special.eos, tables.end_tokens());
    assert_eq!(loaded.model.special().eos, tables.end_tokens());
    // Tensors that stay packed are counted, too.
    assert_eq!(steps, (1..=steps.len()).map(|i| (i, steps.len())).collect::<Vec<_>>());
    assert_eq!(steps.len(), loaded.report.loaded.len());
}

/// Nothing was computed, so nothing was fast.
#[test]
fn rates_of_nothing_are_zero() {
    let model = gpt2();
    let generator = Generator::new(&model, options(0));
    let mut stream = generator.stream(&[1, 2, 3]).unwrap();
    assert!(stream.next().is_none());
    assert_eq!((stream.finish(), stream.speed().prefill_rate(), stream.speed().decode_rate()), (Some(Finish::Length), 0.0, 0.0));
    let one = Generator::new(&model, options(1));
    let mut stream = one.stream(&[1, 2, 3]).unwrap();
    assert_eq!(stream.by_ref().count(), 1);
    assert!(stream.speed().prefill_rate() > 0.0 && stream.speed().decode_rate() == 0.0);
}

fn sentence_folder(name: &str) -> (PathBuf, Value) {
    let all: Value = serde_json::from_slice(&std::fs::read(fixture("sentence/expected.json")).unwrap()).unwrap();
    let folder = copy("sentence", name);
    std::fs::copy(fixture("sentence/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let case = all["cases"][name].clone();
    for (path, value) in case["files"].as_object().into_iter().flatten() {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, value.to_string()).unwrap();
        let dense = fixture("sentence").join(name).join("dense.safetensors");
        if path.parent().unwrap().ends_with("2_Dense") || path.parent().unwrap().ends_with("3_Dense") {
            std::fs::copy(dense, path.with_file_name("model.safetensors")).unwrap();
        }
    }
    (folder, json!({"texts": all["texts"], "vectors": case["vectors"], "max_seq_length": case["max_seq_length"]}))
}

#[cfg(feature = "tokenizers")]
fn cases() -> Vec<String> {
    let all: Value = serde_json::from_slice(&std::fs::read(fixture("sentence/expected.json")).unwrap()).unwrap();
    all["cases"].as_object().unwrap().keys().cloned().collect()
}

/// The vectors of sentence-transformers for each kind of pooling, with its own files.
#[cfg(feature = "tokenizers")]
#[test]
fn sentences_have_the_declared_vectors() {
    let names = cases();
    assert!(names.len() >= 14);
    for name in names {
        let (folder, want) = sentence_folder(&name);
        let (bert, report) = load_encoder(&folder, LoadOptions::dtype(F32)).unwrap();
        assert!(report.notes.iter().any(|n| n.starts_with("`embed` as modules.json says")), "{name}: {:?}", report.notes);
        assert_eq!(bert.pooling().max_tokens, want["max_seq_length"].as_u64().map(|n| n as usize), "{name}");
        let tokenizer = train::TokenizerFile::open(folder.join("tokenizer.json")).unwrap();
        let texts: Vec<&str> = want["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let ours = bert.embed_texts(&tokenizer, &texts).unwrap();
        let flat: Vec<f64> =
            want["vectors"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect();
        let ours = ours.to_f64_vec().unwrap();
        assert_eq!(ours.len(), flat.len(), "{name}");
        let worst = ours.iter().zip(&flat).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{name}: {worst:e}");
        // Its matrices are part of the model, and go where it goes.
        assert_eq!(bert.names().iter().any(|n| n == "dense.0.linear.weight"), name.starts_with("dense"), "{name}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// What is not known is refused by name where it would be used, and the report says so. Values of tokens are right.
#[test]
fn poolings_that_are_not_known_are_refused_by_name() {
    let tokens = Tensor::from_slice(&[2i64, 7, 3], [1, 3]).unwrap();
    let of =
        |module: &str| json!([{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": module, "path": "1_Pooling"}]);
    let pooling = "sentence_transformers.models.Pooling";
    let mean = json!({"pooling_mode_mean_tokens": true});
    let cases = [
        (of("sentence_transformers.models.WeightedLayerPooling"), mean.clone(), "WeightedLayerPooling"),
        (of("my_code.Pooling"), mean.clone(), "my_code.Pooling"),
        (of(pooling), json!({"pooling_mode": "median"}), "`pooling_mode` is `median`"),
        (of(pooling), json!({"pooling_mode_median_tokens": true}), "`pooling_mode_median_tokens` is true"),
        (of(pooling), json!({"pooling_mode_cls_token": "yes"}), "`pooling_mode_cls_token` is \"yes\""),
        (json!([{"type": "sentence_transformers.models.Transformer", "path": ""}]), mean.clone(), "names no Pooling"),
        (json!([{"type": pooling, "path": "../1_Pooling"}]), mean.clone(), "leaves the folder"),
        (json!({}), mean, "is not a list"),
    ];
    let folder = copy("sentence", "refused");
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    for (modules, config, part) in cases {
        std::fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
        std::fs::write(folder.join("1_Pooling/config.json"), config.to_string()).unwrap();
        let (bert, report) = load_encoder(&folder, LoadOptions::default()).unwrap();
        assert!(report.notes.iter().any(|n| n.starts_with("`embed` is refused") && n.contains(part)), "{part}: {:?}", report.notes);
        let e = bert.embed(&tokens, None).unwrap_err();
        assert!(e.is_argument() && e.to_string().contains(part) && e.location().unwrap().file().ends_with("user_models.rs"), "{e}");
        let first = Pooling { modes: vec![PoolingMode::Cls], stages: Vec::new(), ..Pooling::default() };
        let by_hand = bert.forward(&tokens, None, None).unwrap().select(1, 0).unwrap();
        let ours = bert.with_pooling(first).embed(&tokens, None).unwrap();
        assert_eq!(ours.to_f64_vec().unwrap(), by_hand.to_f64_vec().unwrap());
    }
    // Without a word about it: the mean, of length one.
    let (bert, report) = load_encoder(fixture("sentence"), LoadOptions::default()).unwrap();
    assert_eq!(bert.pooling(), &Pooling::default());
    assert!(report.notes[0].contains("there is no modules.json"));
    std::fs::remove_dir_all(folder).unwrap();
}

/// A text without tokens is zero in every type, by every pooling, and so is its gradient.
#[test]
fn a_text_without_tokens_is_zero_in_every_type() {
    use PoolingMode::{Cls, LastToken, Max, Mean, MeanSqrtLen, WeightedMean};
    let tokens = Tensor::from_slice(&[2i64, 7, 3, 2, 9, 3], [2, 3]).unwrap();
    let mask = Tensor::from_slice(&[1u8, 1, 1, 0, 0, 0], [2, 3]).unwrap();
    for dtype in [F64, F32, BF16, F16] {
        let (bert, _) = load_encoder(fixture("sentence"), LoadOptions::dtype(dtype)).unwrap();
        for mode in [Mean, Cls, Max, MeanSqrtLen, WeightedMean, LastToken] {
            let bert =
                bert.clone().with_pooling(Pooling { modes: vec![mode], stages: vec![PoolingStage::Normalize], ..Pooling::default() });
            let e = bert.embed(&tokens, Some(&mask)).unwrap();
            assert_eq!(e.dtype(), dtype);
            let values = e.to_f64_vec().unwrap();
            let length = values[..16].iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((length - 1.0).abs() < 0.01 && values[16..].iter().all(|x| *x == 0.0), "{dtype} {mode:?}: {values:?}");
            let (_, grads) = cotangent::value_and_grad(&bert, |b| b.embed(&tokens, Some(&mask))?.select(1, 0)?.sum(..)).unwrap();
            let finite = grads.named().iter().all(|(_, g)| g.to_f64_vec().unwrap().iter().all(|x| x.is_finite()));
            assert!(finite, "{dtype} {mode:?}");
        }
    }
}

fn with_tensors(of: &str, name: &str, extra: &[&str]) -> PathBuf {
    let folder = copy(of, name);
    let file = TensorFile::open(fixture(of).join("model.safetensors")).unwrap();
    let mut all: Vec<(String, Tensor)> = file.names().map(|n| (n.to_owned(), file.tensor(n).unwrap())).collect();
    let extra = extra.iter().filter(|n| file.shape(n).is_err());
    all.extend(extra.map(|n| ((*n).to_owned(), Tensor::zeros([2, 3], F32).unwrap())));
    save_safetensors(folder.join("model.safetensors"), all.iter().map(|(n, t)| (n.as_str(), t)), &[]).unwrap();
    folder
}

/// Heads of other tasks and tables of old files are passed over, and named in the report; what stands in the model and is
/// not known is not.
#[test]
fn heads_of_other_tasks_are_passed_over() {
    let heads = [
        "classifier.weight",
        "classifier.bias",
        "qa_outputs.weight",
        "cls.predictions.bias",
        "pooler.dense.weight",
        "bert.pooler.dense.bias",
        "crf.transitions",
        "bert.embeddings.position_ids",
        "embeddings.token_type_ids",
    ];
    for of in ["families/bert", "sentence"] {
        let folder = with_tensors(of, &format!("heads-{}", of.len()), &heads);
        let (_, report) = load_encoder(&folder, LoadOptions::default()).unwrap();
        assert!(heads.iter().all(|h| report.ignored.iter().any(|n| n == h)), "{:?}", report.ignored);
        assert!(report.to_string().contains("; ignored: "), "{report}");
        std::fs::remove_dir_all(folder).unwrap();
    }
    let heads =
        ["score.weight", "v_head.summary.weight", "qa_outputs.bias", "model.layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"];
    for (of, buffer) in
        [("families/qwen3", "model.layers.1.self_attn.rotary_emb.cos_cached"), ("tiny-gpt2", "transformer.h.0.attn.masked_bias")]
    {
        let all: Vec<&str> = heads.iter().copied().chain([buffer]).collect();
        let folder = with_tensors(of, &format!("heads-{}", of.len()), &all);
        let report = load(&folder, LoadOptions::default()).unwrap().report;
        assert!(all.iter().all(|h| report.ignored.iter().any(|n| n == h)), "{:?}", report.ignored);
        std::fs::remove_dir_all(folder).unwrap();
    }
    for (of, name) in [
        ("families/qwen3", "model.layers.9.mlp.up_proj.weight"),
        ("families/qwen3", "lm_head.bias"),
        ("tiny-gpt2", "transformer.h.0.attn.c_attn.extra"),
        ("tiny-gpt2", "lm_head.bias"),
    ] {
        let folder = with_tensors(of, "unknown", &[name]);
        let e = load(&folder, LoadOptions::default()).unwrap_err();
        assert!(e.to_string().contains(&format!("unexpected in the file: {name}")), "{e}");
        std::fs::remove_dir_all(folder).unwrap();
    }
    let folder = with_tensors("families/bert", "unknown-bert", &["encoder.layer.9.output.dense.weight"]);
    assert!(load_encoder(&folder, LoadOptions::default()).unwrap_err().to_string().contains("encoder.layer.9"));
    std::fs::remove_dir_all(folder).unwrap();
    for dtype in [I64, U8] {
        assert!(load_encoder(fixture("sentence"), LoadOptions::dtype(dtype)).unwrap_err().is_dtype());
        assert!(load(fixture("families/qwen3"), LoadOptions::dtype(dtype)).unwrap_err().is_dtype());
    }
}

/// Fields that a file does not have are as in transformers' classes; `null` is none.
#[test]
fn windows_that_a_file_leaves_out_are_the_classes() {
    let base = |family: &str| {
        json!({"model_type": family, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 30,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64})
    };
    let windows = |family: &str, more: Value| {
        let mut v = base(family);
        v.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        match ModelConfig::parse(&v.to_string()).unwrap() {
            ModelConfig::Decoder(c) => c.windows,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(windows("mistral", json!({})), [Some(4096); 30]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 30]);
    assert_eq!(windows("mistral", json!({"sliding_window": 8})), [Some(8); 30]);
    assert_eq!(windows("llama", json!({})), [None; 30]);
    assert_eq!(windows("qwen2", json!({})), [None; 30]);
    for family in ["qwen2", "qwen3"] {
        let some = windows(family, json!({"use_sliding_window": true}));
        assert_eq!((&some[..28], &some[28..]), (&[None; 28][..], &[Some(4096); 2][..]));
    }
}

/// What the tests above cannot reach by a type they do not name.
#[test]
fn dtypes_of_encoders_are_the_files() {
    let (bert, report) = load_encoder(fixture("sentence"), LoadOptions::default()).unwrap();
    let dtypes: Vec<DType> = bert.named_tensors().iter().map(|(_, t)| t.dtype()).collect();
    assert!(dtypes.iter().all(|d| *d == F32) && report.converted.is_empty());
}
