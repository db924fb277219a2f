//! Models of `cotangent::models` against Hugging Face: files under their names, logits, loss, every gradient, a step of AdamW, ten steps
//! of training, generation with a cache; folders that are damaged.

use crate::train::pytorch_run::load as tensors_of;
use cotangent::io::{ModuleFile, TensorFile, save_safetensors};
use cotangent::models::{Cache, Input, LanguageModel, LoadOptions, load, load_encoder, verify, verify_model};
use cotangent::nn::{Activation, Gpt, GptConfig};
use cotangent::optim::AdamW;
use cotangent::{BF16, DType, F16, F32, F64, Grads, I64, Key, Module, Result, Tensor, value_and_grad};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, Tensor>;

/// The stored fixtures, and the complete ones where `COTANGENT_FIXTURES` names their folder.
pub fn folders(model: &str) -> Vec<PathBuf> {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let all = [Some(own), std::env::var_os("COTANGENT_FIXTURES").map(PathBuf::from)];
    all.into_iter().flatten().map(|f| f.join(model)).filter(|f| f.is_dir()).collect()
}

/// A folder of its own for a test that writes one.
pub fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("cotangent-models-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

struct Case {
    want: Tensors,
    tokens: Tensor,
    targets: Tensor,
}

impl Case {
    fn number(&self, name: &str) -> f64 {
        self.want[name].item().unwrap()
    }

    fn loss(&self, m: &LanguageModel) -> Result<Tensor> {
        m.forward(&self.tokens)?.cross_entropy(&self.targets)
    }
}

fn open(folder: &Path, dtype: DType) -> (LanguageModel, Case) {
    let model = load(folder, LoadOptions::dtype(dtype)).unwrap().model;
    let want = tensors_of(&folder.join("fixture.safetensors"));
    let (tokens, targets) = (want["input_ids"].clone(), want["targets"].clone());
    (model, Case { want, tokens, targets })
}

/// The same elements of a tensor of ours and of the fixture's: all, or every k-th; and k.
fn thinned(case: &Case, key: &str, got: &[f64]) -> (Vec<f64>, Vec<f64>, usize) {
    let want = case.want[key].to_f64_vec().unwrap();
    let stride = case.want.get(&format!("{key}.stride")).map_or(1, |t| t.item().unwrap() as usize);
    assert_eq!(want.len(), got.len().div_ceil(stride), "{key}");
    (got.iter().step_by(stride).copied().collect(), want, stride)
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The largest difference; NaN if one is.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

/// Compares tensors by name with `PREFIX.NAME`, relative to each tensor's norm; says how many it found, and the worst error.
fn compare(prefix: &str, named: Vec<(String, Tensor)>, case: &Case, tolerance: f64) -> (usize, f64) {
    let (mut found, mut worst) = (0, 0f64);
    for (name, t) in named {
        let key = format!("{prefix}.{name}");
        if !case.want.contains_key(&key) {
            continue;
        }
        let (kept, want, _) = thinned(case, &key, &values(&t.contiguous().unwrap()));
        let difference: Vec<f64> = kept.iter().zip(&want).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(&want);
        assert!(error <= tolerance, "{key}: relative error {error:e}");
        (found, worst) = (found + 1, worst.max(error));
    }
    (found, worst)
}

/// What `--example verify_model` runs, in `f32`; and in `f64`, where what remains is the rounding of the stored numbers.
fn as_hugging_face(name: &str, checks: usize) {
    for folder in folders(name) {
        let report = verify(&folder).unwrap();
        crate::say(&format!("{name}\n{report}"));
        assert!(report.passed() && report.checks.len() >= checks, "{} checks\n{report}", report.checks.len());
        let (model, case) = open(&folder, F64);
        let logits = apart(&values(&model.forward(&case.tokens).unwrap()), &values(&case.want["logits"]));
        let (loss, grads) = value_and_grad(&model, |m| case.loss(m)).unwrap();
        let loss = (loss.item().unwrap() - case.number("loss_f64")).abs();
        let norm = (grads.global_norm().unwrap() / case.number("adamw.grad_norm_f64") - 1.0).abs();
        let (found, worst) = compare("grad", grads.named(), &case, 1e-7);
        crate::say(&format!("{name} in f64: logits {logits:.1e}, loss {loss:.1e}, gradients {worst:.1e} of {found} tensors"));
        assert!(logits <= 1e-6 && loss <= 1e-12 && norm <= 1e-7, "logits {logits:e}, loss {loss:e}, gradient norm {norm:e}");
        assert_eq!(found, model.names().len(), "gradients that were compared");
    }
}

#[test]
fn gpt2_gives_hugging_faces_logits_loss_and_gradients() {
    as_hugging_face("tiny-gpt2", 14);
}

#[test]
fn qwen2_gives_hugging_faces_logits_loss_and_gradients() {
    as_hugging_face("tiny-qwen2", 14);
}

/// Present where `COTANGENT_FIXTURES` has it.
#[test]
fn any_other_folder_of_a_language_model_passes_too() {
    for folder in folders("tiny-llama") {
        let report = verify(&folder).unwrap();
        crate::say(&format!("tiny-llama\n{report}"));
        assert!(report.passed(), "{report}");
    }
}

/// What differs is rounding: a cache changes nothing, whether tokens come in pieces or one by one. In f32 the logits with a cache are
/// within 1e-5 of exact ones (nearer than those without), of which the largest is 11.
#[test]
fn a_cache_changes_no_logits() {
    for name in ["tiny-gpt2", "tiny-qwen2"] {
        let exact = open(&folders(name).remove(0), F64);
        let exact = values(&exact.0.forward(&exact.1.tokens.narrow(0, 0, 1).unwrap()).unwrap());
        for (dtype, bound, exactly) in [(F64, 1e-11, 1e-11), (F32, 1.5e-5, 1e-5)] {
            let (model, case) = open(&folders(name).remove(0), dtype);
            let tokens = case.tokens.narrow(0, 0, 1).unwrap();
            let all = model.forward(&tokens).unwrap();
            for pieces in [vec![5, 1, 1, 8, 1], vec![1; 16]] {
                let (mut cache, mut at, mut parts) = (Cache::new(model.layers(), 4).unwrap(), 0, Vec::new());
                for n in pieces {
                    let part = tokens.narrow(1, at, n).unwrap();
                    let y = model.forward_with(Input { cache: Some(&mut cache), ..Input::new(&part) }).unwrap();
                    parts.extend(values(&y));
                    at += n;
                }
                let all = &values(&all)[..parts.len()];
                let (worst, own, whole) = (apart(&parts, all), apart(&parts, &exact[..parts.len()]), apart(all, &exact[..parts.len()]));
                crate::say(&format!("{name} {dtype}: apart {worst:e}; from f64 {own:e} with a cache, {whole:e} without"));
                assert!(worst < bound && own < exactly && cache.len() == at, "{name}: {worst:e}, {own:e}");
            }
        }
    }
}

#[test]
fn ten_steps_of_training_follow_pytorch() {
    for name in ["tiny-gpt2", "tiny-qwen2"] {
        for folder in folders(name) {
            let (mut model, case) = open(&folder, F64);
            let (losses, norms) = (values(&case.want["train.losses_f64"]), values(&case.want["train.grad_norms_f64"]));
            let mut adam = AdamW { lr: 1e-3, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, ..AdamW::default() };
            for (i, (want, want_norm)) in losses.iter().zip(norms).enumerate() {
                let (loss, mut grads): (Tensor, Grads<_>) = value_and_grad(&model, |m| case.loss(m)).unwrap();
                let norm = grads.clip_global_norm(1.0).unwrap().norm;
                adam.step(&mut model, &grads).unwrap();
                let error = ((loss.item().unwrap() - want).abs()).max((norm / want_norm - 1.0).abs());
                assert!(error <= 1e-11, "step {i}: loss {loss} instead of {want}, gradient norm {norm} instead of {want_norm}");
            }
            assert_eq!(losses.len(), 11);
        }
    }
}

/// Forward and backward in half precision, the parameters in f32: the error is no larger than Hugging Face's own in the same
/// dtype (in bf16 against exact logits of the rounded weights).
fn half_precision(name: &str, dtype: DType, rms: f64, median: f64) {
    for folder in folders(name) {
        let (model, case) = open(&folder, F32);
        let exact = if dtype == BF16 { "bf16.logits" } else { "logits" };
        let logits = values(&model.cast(dtype).unwrap().forward(&case.tokens).unwrap());
        let (got, want, _) = thinned(&case, exact, &logits);
        let difference: Vec<f64> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / (want.len() as f64).sqrt();
        let (_, grads) = value_and_grad(&model, |m| case.loss(&m.cast(dtype)?)).unwrap();
        let mut errors: Vec<f64> = Vec::new();
        for (name, g) in grads.named() {
            assert_eq!(g.dtype(), F32);
            let (got, want, _) = thinned(&case, &format!("grad.{name}"), &values(&g.contiguous().unwrap()));
            errors.push(norm(&got.iter().zip(&want).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(&want));
        }
        errors.sort_by(f64::total_cmp);
        let middle = errors[errors.len() / 2];
        crate::say(&format!("{name} {dtype}: logits {error:.1e} (Hugging Face {rms:.1e}), gradients {middle:.1e} ({median:.1e})"));
        assert!(error <= 1.1 * rms && middle <= 1.1 * median, "logits {error:e}, gradients {middle:e}");
    }
}

#[test]
fn half_precision_errs_no_more_than_hugging_face() {
    half_precision("tiny-gpt2", BF16, 2.17e-2, 1.62e-2);
    half_precision("tiny-gpt2", F16, 3.54e-3, 1.77e-3);
    half_precision("tiny-qwen2", BF16, 2.73e-2, 2.49e-2);
    half_precision("tiny-qwen2", F16, 4.43e-3, 3.27e-3);
}

/// The trainable GPT of `nn` is GPT-2 with its matrices the other way round.
#[test]
fn gpt_of_nn_is_gpt2() {
    for folder in folders("tiny-gpt2") {
        let (model, case) = open(&folder, F64);
        let sizes = GptConfig {
            vocabulary: 512,
            context: 64,
            layers: 2,
            heads: 4,
            width: 64,
            bias: true,
            dropout: 0.0,
            activation: Activation::GeluTanh,
        };
        let mut gpt = Gpt::new(&sizes, F64, Key::new(0)).unwrap();
        let turned = |name: &str| [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end));
        let all = model.named_tensors().into_iter().map(|(n, t)| if turned(&n) { (n, t.t().unwrap()) } else { (n, t) }).collect();
        gpt.load_named(&all).unwrap();
        let (a, b) = (gpt.forward(&case.tokens, None).unwrap(), model.forward(&case.tokens).unwrap());
        assert!(apart(&values(&a), &values(&b)) < 1e-12);
    }
}

pub fn family(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/families")).join(name)
}

/// Llama with each scaling of its rotary frequencies, Qwen3 and Mistral, computed by Hugging Face in f32.
#[test]
fn every_family_gives_hugging_faces_logits_gradients_and_tokens() {
    for name in ["llama3", "linear", "dynamic", "yarn", "qwen3", "mistral"] {
        let folder = family(name);
        let model = load(&folder, LoadOptions::dtype(F64)).unwrap().model;
        let want = tensors_of(&folder.join("expected.safetensors"));
        let (tokens, targets) = (want["input_ids"].clone(), want["targets"].clone());
        let logits = apart(&values(&model.forward(&tokens).unwrap()), &values(&want["logits"]));
        let (loss, grads) = value_and_grad(&model, |m| m.forward(&tokens)?.cross_entropy(&targets)).unwrap();
        let case = Case { tokens, targets, want };
        let (found, worst) = compare("grad", grads.named(), &case, 2e-5);
        let loss = (loss.item().unwrap() - case.number("loss")).abs();
        crate::say(&format!("{name}: logits {logits:.1e}, loss {loss:.1e}, gradients {worst:.1e} of {found} tensors"));
        // What the reference's own arithmetic in f32 leaves.
        assert!(logits < 5e-5 && loss < 2e-6 && found == model.names().len(), "{name}: logits {logits:e}, loss {loss:e}, {found}");
        // Greedy tokens, one by one from the cache.
        let mut cache = Cache::new(model.layers(), 0).unwrap();
        let (mut next, mut drawn) = (case.want["gen.prompt"].clone(), Vec::new());
        for _ in 0..case.want["gen.tokens"].numel() {
            let last = model.forward_with(Input { cache: Some(&mut cache), last: true, ..Input::new(&next) }).unwrap();
            next = last.select(1, -1).unwrap().argmax(-1).unwrap().cast(I64).unwrap().reshape([1, 1]).unwrap();
            drawn.push(next.item().unwrap());
        }
        assert_eq!(drawn, values(&case.want["gen.tokens"]), "{name}");
    }
}

#[test]
fn bert_gives_hugging_faces_values_with_padding() {
    let (bert, report) = load_encoder(family("bert"), LoadOptions::dtype(F64)).unwrap();
    assert_eq!(report.ignored, ["pooler.dense.bias", "pooler.dense.weight"]);
    let want = tensors_of(&family("bert").join("expected.safetensors"));
    let mask = want["attention_mask"].cast(cotangent::U8).unwrap();
    let y = bert.forward(&want["input_ids"], Some(&mask), Some(&want["token_type_ids"])).unwrap();
    let error = apart(&values(&y), &values(&want["last_hidden_state"]));
    let e = bert.embed(&want["input_ids"], Some(&mask)).unwrap();
    let embedding = apart(&values(&e), &values(&want["embedding"]));
    crate::say(&format!("bert: values {error:.1e}, embedding {embedding:.1e}"));
    assert!(error < 1e-5 && embedding < 1e-6, "{error:e}, {embedding:e}");
    // It trains: every parameter gets a gradient, when segments are given.
    let (_, grads) =
        value_and_grad(&bert, |m| m.forward(&want["input_ids"], Some(&mask), Some(&want["token_type_ids"]))?.square()?.mean(..)).unwrap();
    assert_eq!(grads.named().len(), bert.names().len());
    assert!(load(family("bert"), LoadOptions::default()).unwrap_err().to_string().contains("load_encoder"));
    assert!(load_encoder(family("qwen3"), LoadOptions::default()).unwrap_err().is_argument());
}

/// Left padding, windows, and sequences in pieces: rows of a batch are what each is alone.
#[test]
fn padded_rows_in_pieces_are_the_rows_alone() {
    for name in ["llama3", "qwen3", "mistral"] {
        let model = load(family(name), LoadOptions::dtype(F64)).unwrap().model;
        let ids: Vec<i64> = (0..20).map(|i| 3 + (i * 7) % 29).collect();
        let (short, long) = (&ids[..9], &ids[..14]);
        let row = |ids: &[i64]| Tensor::from_slice(ids, [1, ids.len()]).unwrap();
        let alone = |ids: &[i64]| values(&model.forward(&row(ids)).unwrap().select(1, -1).unwrap());
        let mut padded = vec![0i64; 5];
        padded.extend(short);
        padded.extend(long);
        let batch = Tensor::from_slice(&padded, [2, 14]).unwrap();
        for pieces in [vec![14], vec![8, 6], vec![13, 1], vec![3; 4]] {
            let mut cache = Cache::new(model.layers(), 0).unwrap();
            let (mut at, mut last) = (0, None);
            for n in pieces.iter().chain(std::iter::once(&(14 - pieces.iter().sum::<usize>()))).filter(|n| **n > 0) {
                let tokens = batch.narrow(1, at, *n).unwrap();
                let input = Input { cache: Some(&mut cache), pads: &[5, 0], last: true, ..Input::new(&tokens) };
                last = Some(model.forward_with(input).unwrap());
                at += n;
            }
            let last = last.unwrap().select(1, -1).unwrap();
            for (i, ids) in [short, long].into_iter().enumerate() {
                let error = apart(&values(&last.select(0, i as isize).unwrap()), &alone(ids));
                assert!(error < 1e-10, "{name}, row {i} in {pieces:?}: {error:e}");
            }
        }
    }
}

/// Whatever is loaded is saved under the same names, and loads again: whole, and in shards.
#[test]
fn what_is_saved_loads_again() {
    for name in ["tiny-gpt2", "tiny-qwen2"] {
        let own = folders(name).remove(0);
        let (model, case) = open(&own, F32);
        let folder = scratch(name);
        std::fs::copy(own.join("config.v4.json"), folder.join("config.json")).unwrap();
        model.save(folder.join("model.safetensors")).unwrap();
        let again = load(&folder, LoadOptions::default()).unwrap().model;
        assert_eq!(values(&again.forward(&case.tokens).unwrap()), values(&model.forward(&case.tokens).unwrap()));
        shard(&folder, 3);
        let mut seen = 0;
        let mut progress = |done: usize, all: usize| {
            assert_eq!((done, all), (seen + 1, model.names().len()));
            seen = done;
        };
        let sharded = load(&folder, LoadOptions { progress: Some(&mut progress), ..LoadOptions::default() }).unwrap();
        assert_eq!(values(&sharded.model.forward(&case.tokens).unwrap()), values(&model.forward(&case.tokens).unwrap()));
        assert_eq!(sharded.report.loaded.len(), seen);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Splits `model.safetensors` into shards with an index.
fn shard(folder: &Path, shards: usize) {
    let all = TensorFile::open(folder.join("model.safetensors")).unwrap().tensors().unwrap();
    let mut map = serde_json::Map::new();
    for i in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        let part: Vec<(&str, &Tensor)> = all.iter().skip(i).step_by(shards).map(|(n, t)| (n.as_str(), t)).collect();
        save_safetensors(folder.join(&file), part.iter().copied(), &[("format", "pt")]).unwrap();
        map.extend(part.iter().map(|(n, _)| ((*n).to_owned(), file.clone().into())));
    }
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// What is wrong with a folder is an error that names file and tensor.
#[test]
fn damaged_folders_are_refused_by_name() {
    let own = folders("tiny-qwen2").remove(0);
    let fresh = |name: &str| {
        let folder = scratch(name);
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(own.join(file), folder.join(file)).unwrap();
        }
        folder
    };
    let refused = |folder: &Path, kind: fn(&cotangent::Error) -> bool, words: &[&str]| {
        let e = load(folder, LoadOptions::default()).unwrap_err();
        crate::say(&e.to_string());
        assert!(kind(&e), "{e:?}");
        words.iter().for_each(|w| assert!(e.to_string().contains(w), "{e} does not say {w}"));
        assert!(e.location().unwrap().file().ends_with("hugging_face.rs"), "{e}");
    };
    let edit = |folder: &Path, field: &str, value: serde_json::Value| {
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[field] = value;
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    };
    // Shards: one missing, one cut short, a tensor in the wrong one, a name outside the folder.
    let folder = fresh("shards");
    shard(&folder, 3);
    let second = folder.join("model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    refused(&folder, |e| e.is_io(), &["model-00002-of-00003.safetensors is missing", "model-00001-of-00003.safetensors"]);
    std::fs::write(&second, &bytes[..bytes.len() - 10]).unwrap();
    refused(&folder, |e| e.is_corrupt_file(), &["model-00002-of-00003.safetensors", "cut short"]);
    std::fs::write(&second, &bytes).unwrap();
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replacen("model-00001", "model-00003", 1)).unwrap();
    refused(&folder, |e| e.is_corrupt_file(), &["is said to be in model-00003", "which does not have it"]);
    std::fs::write(&index, text.replacen("model-00001", "../model-00001", 1)).unwrap();
    refused(&folder, |e| e.is_corrupt_file(), &["`../model-00001", "not a name in the folder"]);
    std::fs::write(&index, "{}").unwrap();
    refused(&folder, |e| e.is_corrupt_file(), &["weight_map"]);
    // One file: cut short, a pointer of Git LFS, none at all, pickled instead.
    let folder = fresh("file");
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    refused(&folder, |e| e.is_corrupt_file(), &["model.safetensors", "cut short"]);
    std::fs::write(&weights, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
    refused(&folder, |e| e.is_corrupt_file(), &["Git LFS pointer"]);
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(folder.join("pytorch_model.bin"), "PK").unwrap();
    refused(&folder, |e| e.is_io(), &["neither model.safetensors nor", "pytorch_model.bin", "convert them"]);
    // Configurations that are not the weights'.
    let folder = fresh("config");
    edit(&folder, "intermediate_size", 80.into());
    refused(&folder, |e| e.is_shape(), &["`model.layers.0.mlp.gate_proj.weight` is [64, 224] in the file, [80, 224] in the model"]);
    let folder = fresh("layers");
    edit(&folder, "num_hidden_layers", 4.into());
    edit(&folder, "layer_types", serde_json::Value::Null);
    refused(&folder, |e| e.is_corrupt_file(), &["missing in the file: model.layers.3."]);
    let folder = fresh("tied");
    edit(&folder, "tie_word_embeddings", false.into());
    refused(&folder, |e| e.is_corrupt_file(), &["lm_head.weight", "tie_word_embeddings"]);
    let folder = fresh("family");
    edit(&folder, "model_type", "llama".into());
    refused(&folder, |e| e.is_corrupt_file(), &["unexpected in the file: model.layers.0.self_attn.k_proj.bias"]);
    edit(&folder, "model_type", "mamba".into());
    refused(&folder, |e| e.is_argument(), &["`mamba`"]);
    std::fs::remove_file(folder.join("config.json")).unwrap();
    refused(&folder, |e| e.is_io(), &["config.json"]);
    refused(&folder.join("model.safetensors"), |e| e.is_argument(), &["give the folder"]);
    refused(&folder.join("nowhere.gguf"), |e| e.is_io(), &["nowhere.gguf does not exist"]);
    for name in ["shards", "file", "config", "layers", "tied", "family"] {
        let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("cotangent-models-{name}-{}", std::process::id())));
    }
    // A redundant output matrix of a tied model is taken for what it is.
    let folder = fresh("redundant");
    let mut all = TensorFile::open(folder.join("model.safetensors")).unwrap().tensors().unwrap();
    let table = all["model.embed_tokens.weight"].clone();
    all.insert("lm_head.weight".to_owned(), table);
    save_safetensors(folder.join("model.safetensors"), all.iter().map(|(n, t)| (n.as_str(), t)), &[]).unwrap();
    assert_eq!(load(&folder, LoadOptions::default()).unwrap().report.ignored, ["lm_head.weight"]);
    std::fs::remove_dir_all(folder).unwrap();
}

/// GGUF files, quantised ones too, give the logits and tokens of exact arithmetic on their weights.
#[test]
fn gguf_files_give_the_expected_logits_and_tokens() {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf"));
    let all = [Some(own), std::env::var_os("COTANGENT_GGUF").map(PathBuf::from)];
    let mut found = 0;
    for folder in all.into_iter().flatten() {
        for path in std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "gguf")) {
            let expected = path.with_extension("expected.safetensors");
            if !expected.exists() {
                continue;
            }
            let want = tensors_of(&expected);
            let loaded = load(&path, LoadOptions::dtype(F32)).unwrap();
            let error = apart(&values(&loaded.model.forward(&want["input_ids"]).unwrap()), &values(&want["logits"]));
            crate::say(&format!("{}: logits {error:.1e}", path.file_name().unwrap().to_string_lossy()));
            assert!(error < 1e-4, "{}: {error:e}", path.display());
            // Matrices kept in their blocks give the same, in less memory.
            let packed = load(&path, LoadOptions { packed: true, ..LoadOptions::dtype(F32) }).unwrap().model;
            let error = apart(&values(&packed.forward(&want["input_ids"]).unwrap()), &values(&want["logits"]));
            let bytes = |m: &LanguageModel| m.named_tensors().iter().map(|(_, t)| t.numel() * t.dtype().size()).sum::<usize>();
            crate::say(&format!("in blocks: logits {error:.1e}, {} of {} bytes", bytes(&packed), bytes(&loaded.model)));
            assert!(error < 1e-4, "{}, in blocks: {error:e}", path.display());
            let quantised = ["Q8_0", "Q4_0"].iter().any(|q| path.to_string_lossy().contains(q));
            assert_eq!(bytes(&packed) * 3 < bytes(&loaded.model), quantised);
            let mut cache = Cache::new(loaded.model.layers(), 0).unwrap();
            let (mut next, mut drawn) = (want["gen.prompt"].clone(), Vec::new());
            for _ in 0..want["gen.tokens"].numel() {
                let last = loaded.model.forward_with(Input { cache: Some(&mut cache), last: true, ..Input::new(&next) }).unwrap();
                next = last.select(1, -1).unwrap().argmax(-1).unwrap().cast(I64).unwrap().reshape([1, 1]).unwrap();
                drawn.push(next.item().unwrap());
            }
            assert_eq!(drawn, values(&want["gen.tokens"]));
            found += 1;
        }
    }
    assert!(found > 0);
}

/// A wrong weight, and a wrong number in the fixture, are found: the checks can fail, and the module is named.
#[test]
fn verification_names_the_first_module_that_differs() {
    let folder = folders("tiny-qwen2").remove(0);
    let (model, _) = open(&folder, F32);
    let fixture = folder.join("fixture.safetensors");
    let broken =
        model.map(|name, t| if name == "model.layers.0.mlp.down_proj.weight" { t.mul_scalar(1.001) } else { Ok(t.clone()) }).unwrap();
    let report = verify_model(&broken, &fixture).unwrap();
    assert!(!report.passed());
    assert!(report.first_difference.as_deref().unwrap().contains("`model.layers.0.mlp.down_proj`"), "{report}");
    assert!(report.to_string().contains("FAIL logits"), "{report}");
}
