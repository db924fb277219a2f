//! Generation on CUDA, with ordinary steps and with a captured one: the tokens of the CPU, on a GPU where there is one, else on the
//! emulated device.

use super::device;
use crate::models::{family, folders};
use cotangent::models::{GenerateOptions, Generator, LanguageModel, LoadOptions, load};
use cotangent::nn::KvCache;
use cotangent::{BF16, DType, F16, F32, F64, Key, Module, Tensor};
use std::path::PathBuf;

/// A GPU where there is one; with `REQUIRE_GPU=1` there must be.
fn model(path: &PathBuf, options: LoadOptions<'_>) -> LanguageModel {
    load(path, options).unwrap_or_else(|e| panic!("{e}")).model
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, log_probs: true, ..GenerateOptions::default() }
}

/// Greedy tokens of a batch on both devices, one row shorter than the other.
fn same_tokens(name: &str, path: &PathBuf, options_of: impl Fn() -> LoadOptions<'static>, dtype: DType, count: usize) {
    let tolerance = if dtype == F32 { 1e-4 } else { 0.05 };
    let cpu = model(path, options_of());
    let there = model(path, options_of()).to_device(device()).unwrap();
    let prompt: Vec<u32> = (0..9).map(|i| (i * 7 + 3) % cpu.vocabulary() as u32).collect();
    for prompts in [vec![prompt.clone()], vec![prompt.clone(), prompt[..4].to_vec()]] {
        let a = Generator::new(&cpu, options(count)).batch(&prompts).unwrap();
        for graph in [false, true] {
            let b = Generator::new(&there, GenerateOptions { graph, ..options(count) }).batch(&prompts).unwrap();
            for (row, (a, b)) in a.iter().zip(&b).enumerate() {
                for (i, (p, q)) in a.log_probs.iter().zip(&b.log_probs).enumerate() {
                    let close = (p - q).abs() < tolerance;
                    assert!(close, "{name}: row {row}, token {i}: log-probability {p} on the CPU, {q} on {}, graph: {graph}", device());
                }
                assert_eq!(a.tokens, b.tokens, "{name}: row {row} on {}, graph: {graph}", device());
                assert_eq!(a.tokens.len(), count, "{name}");
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    for name in ["tiny-qwen2", "tiny-gpt2"] {
        for folder in folders(name) {
            same_tokens(name, &folder, || LoadOptions::dtype(F32), F32, 32);
        }
    }
    crate::say(&format!("32 greedy tokens on {} are those of the CPU", device()));
}

#[test]
fn greedy_tokens_are_hugging_faces_on_the_device() {
    let folder = folders("tiny-qwen2").remove(0);
    let want = crate::train::pytorch_run::load(&folder.join("fixture.safetensors"));
    let ids = |name: &str| want[name].to_f64_vec().unwrap().iter().map(|&t| t as u32).collect::<Vec<_>>();
    let there = model(&folder, LoadOptions::dtype(F32)).to_device(device()).unwrap();
    let done = Generator::new(&there, options(32)).complete(&ids("gen.prompt")).unwrap();
    assert_eq!(done.tokens, ids("gen.tokens"));
    // As a stream by a captured step: memory for all positions is there from the first one on.
    let mut stream = Generator::new(&there, GenerateOptions { graph: true, ..options(32) }).stream(&ids("gen.prompt")).unwrap();
    let tokens: Vec<u32> = stream.by_ref().map(|s| s.unwrap().token.unwrap()).collect();
    assert_eq!((tokens, stream.cache_bytes()), (ids("gen.tokens"), 3 * 2 * 2 * 16 * (12 + 32) * 4));
    let scores = Generator::new(&there, options(1)).score(&ids("gen.tokens")).unwrap();
    assert!(scores.iter().all(|p| p.is_finite() && *p < 0.0));
}

/// On a device: rows that reach the last learned position end there, by ordinary and by captured steps.
#[test]
fn rows_end_at_the_last_position_on_the_device() {
    let cpu = model(&folders("tiny-gpt2").remove(0), LoadOptions::dtype(F32));
    let there = cpu.to_device(device()).unwrap();
    let prompts: Vec<Vec<u32>> = vec![(0..61).collect(), vec![7], (0..64).collect(), (100..158).collect()];
    let a = Generator::new(&cpu, options(9)).batch(&prompts).unwrap();
    assert_eq!(a.iter().map(|r| r.tokens.len()).collect::<Vec<_>>(), [3, 9, 0, 6]);
    for graph in [false, true] {
        let b = Generator::new(&there, GenerateOptions { graph, ..options(9) }).batch(&prompts).unwrap();
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.tokens, a.finish, &b.error), (&b.tokens, b.finish, &None), "graph: {graph}");
        }
    }
    // Memory is for what may be drawn, be it limited by the length alone.
    let o = GenerateOptions { max_tokens: usize::MAX, max_length: Some(12), graph: true, ..options(0) };
    assert_eq!(Generator::new(&there, o).complete(&[1, 2, 3]).unwrap().tokens.len(), 9);
}

/// Windows, scaled rotations, norms on heads.
#[test]
fn every_family_generates_on_the_device() {
    for name in ["llama3", "mistral", "qwen3", "yarn", "linear", "dynamic"] {
        same_tokens(name, &family(name), || LoadOptions::dtype(F32), F32, 8);
    }
}

/// Weights that stay in blocks of 4 bits, and half precision.
#[test]
fn blocks_and_half_precision_generate_on_the_device() {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/tiny-qwen2-Q4_0.gguf"));
    let packed = |dtype| LoadOptions { packed: true, ..LoadOptions::dtype(dtype) };
    let there = model(&file, packed(F32)).to_device(device()).unwrap();
    assert!(there.named_tensors().iter().any(|(_, t)| t.dtype() == cotangent::U8), "nothing stays in blocks");
    same_tokens("Q4_0", &file, || packed(F32), F32, 16);
    same_tokens("bf16", &folders("tiny-qwen2").remove(0), || LoadOptions::dtype(BF16), BF16, 4);
}

/// In place, by pieces of any length, whatever the layout of what is appended; cut off, and filled again.
#[test]
fn a_cache_on_the_device_is_the_concatenation() {
    for dtype in [F64, F32, F16, BF16] {
        let mut cache = KvCache::with_capacity(3);
        let mut all: Vec<Tensor> = Vec::new();
        for (i, time) in [2, 1, 130, 1, 3].into_iter().enumerate() {
            // Transposed in memory, as a projection leaves it.
            let new = Tensor::randn([2, time, 3, 5], dtype, Key::new(i as u64)).unwrap().to_device(device()).unwrap();
            let new = new.permute([0, 2, 1, 3]).unwrap();
            let (k, v) = cache.append(new.clone(), new.neg().unwrap()).unwrap();
            all.push(new);
            if i == 2 {
                cache.truncate(2).unwrap();
                all.truncate(1);
                continue;
            }
            let whole = Tensor::concat(&all.iter().collect::<Vec<_>>(), 2).unwrap();
            assert_eq!(k.to_f64_vec().unwrap(), whole.to_f64_vec().unwrap(), "{dtype}, piece {i}");
            assert_eq!(v.to_f64_vec().unwrap(), whole.neg().unwrap().to_f64_vec().unwrap(), "{dtype}, piece {i}");
        }
        assert_eq!(cache.len(), 6);
    }
    let mut cache = KvCache::default();
    let x = Tensor::ones([1, 1, 1, 2], F32).unwrap();
    cache.append(x.to_device(device()).unwrap(), x.to_device(device()).unwrap()).unwrap();
    let e = cache.append(x.clone(), x).unwrap_err();
    assert!(e.is_device() && e.to_string().starts_with("kv_cache: "), "{e}");
}
