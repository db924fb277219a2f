//! GPT-2 and Qwen2 from this crate's layers against Hugging Face: weights under their names, logits, loss, every
//! gradient, a step of AdamW, ten steps of training, generation with a cache.

use crate::replay::load;
use cotangent::nn::{
    Activation, Attend, AttentionConfig, DecoderLayer, Embedding, GatedMlp, Gpt, GptConfig, KvCache, MultiHeadAttention, NormOrder, RmsNorm,
};
use cotangent::ops::Rotary;
use cotangent::optim::AdamW;
use cotangent::{BF16, DType, F16, F32, F64, Grads, Key, Module, ModuleExt, Result, Tensor, module, value_and_grad};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Tensors = BTreeMap<String, Tensor>;

/// The stored fixtures, and the complete ones where `COTANGENT_FIXTURES` names their folder.
fn folders(model: &str) -> Vec<PathBuf> {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let all = [Some(own), std::env::var_os("COTANGENT_FIXTURES").map(PathBuf::from)];
    all.into_iter().flatten().map(|f| f.join(model)).filter(|f| f.is_dir()).collect()
}

trait LanguageModel: Module + Clone {
    fn build(dtype: DType) -> Result<Self>;
    /// Weights of a file, in this model's layout.
    fn convert(tensors: Tensors) -> Result<Tensors>;
    fn logits(&self, tokens: &Tensor) -> Result<Tensor>;
}

/// GPT-2 is [`Gpt`] with biases; its files store the weights of linear layers as `[in, out]`.
impl LanguageModel for Gpt {
    fn build(dtype: DType) -> Result<Self> {
        let config = GptConfig {
            vocabulary: 512,
            context: 64,
            layers: 2,
            heads: 4,
            width: 64,
            bias: true,
            dropout: 0.0,
            activation: Activation::GeluTanh,
        };
        Gpt::new(&config, dtype, Key::new(0))
    }

    fn convert(mut tensors: Tensors) -> Result<Tensors> {
        for (name, t) in &mut tensors {
            if t.rank() == 2 && [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end)) {
                *t = t.t()?;
            }
        }
        Ok(tensors)
    }

    fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward(tokens, None)
    }
}

/// Sizes of a [`Qwen2`].
struct Qwen2Config {
    vocabulary: usize,
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    hidden: usize,
    rope_base: f64,
    eps: f64,
}

#[derive(Clone)]
struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
}
module!(Decoder { embed_tokens, layers, norm });

/// Qwen2 with its head tied to the embedding.
#[derive(Clone)]
struct Qwen2 {
    model: Decoder,
}
module!(Qwen2 { model });

impl Qwen2 {
    fn new(c: &Qwen2Config, dtype: DType, key: Key) -> Result<Self> {
        let attention = AttentionConfig {
            width: c.width,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head: c.head,
            qkv_bias: true,
            rope: Some(Rotary { base: c.rope_base, ..Rotary::default() }),
            causal: true,
            window: None,
            softcap: None,
            dropout: 0.0,
        };
        let layer = |k: Key| {
            Ok(DecoderLayer {
                self_attn: MultiHeadAttention::new(&attention, dtype, k.fold(0))?,
                mlp: GatedMlp::new(c.width, c.hidden, Activation::Silu, dtype, k.fold(1))?,
                input_layernorm: RmsNorm::new(c.width, c.eps, dtype)?,
                post_attention_layernorm: RmsNorm::new(c.width, c.eps, dtype)?,
                order: NormOrder::Pre,
            })
        };
        Ok(Qwen2 {
            model: Decoder {
                embed_tokens: Embedding::normal(c.vocabulary, c.width, 0.02, dtype, key.fold(0))?,
                layers: (0..c.layers).map(|l| layer(key.fold(1).fold(l as u64))).collect::<Result<_>>()?,
                norm: RmsNorm::new(c.width, c.eps, dtype)?,
            },
        })
    }

    /// Token ids `[batch, time]` to logits; with one cache for each layer these tokens follow those before.
    fn forward(
        &self,
        tokens: &Tensor,
        caches: Option<&mut [KvCache]>,
        positions: Option<&Tensor>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let m = &self.model;
        let mut x = m.embed_tokens.forward(tokens)?;
        let mut caches = caches.into_iter().flatten();
        for layer in &m.layers {
            x = layer.forward_with(&x, Attend { mask, positions, cache: caches.next(), key: None })?;
        }
        m.embed_tokens.unembed(&m.norm.forward(&x)?)
    }
}

impl LanguageModel for Qwen2 {
    fn build(dtype: DType) -> Result<Self> {
        let config = Qwen2Config {
            vocabulary: 1000,
            width: 224,
            layers: 3,
            heads: 14,
            kv_heads: 2,
            head: 16,
            hidden: 64,
            rope_base: 1e6,
            eps: 1e-6,
        };
        Qwen2::new(&config, dtype, Key::new(0))
    }

    fn convert(tensors: Tensors) -> Result<Tensors> {
        Ok(tensors)
    }

    fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward(tokens, None, None, None)
    }
}

/// The same elements of a tensor of ours and of the fixture's: all, or every k-th; and k.
fn thinned(case: &Case, key: &str, got: &[f64]) -> (Vec<f64>, Vec<f64>, usize) {
    let want = case.want[key].to_f64_vec().unwrap();
    let stride = case.want.get(&format!("{key}.stride")).map_or(1, |t| t.item().unwrap() as usize);
    assert_eq!(want.len(), got.len().div_ceil(stride), "{key}");
    (got.iter().step_by(stride).copied().collect(), want, stride)
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

    fn loss<M: LanguageModel>(&self, m: &M) -> Result<Tensor> {
        m.logits(&self.tokens)?.cross_entropy(&self.targets)
    }
}

fn open<M: LanguageModel>(folder: &std::path::Path, dtype: DType) -> (M, Case) {
    let mut model = M::build(dtype).unwrap();
    // Loading compares all names and shapes: these are Hugging Face's.
    model.load_named(&M::convert(load(&folder.join("model.safetensors"))).unwrap()).unwrap();
    let want = load(&folder.join("fixture.safetensors"));
    let (tokens, targets) = (want["input_ids"].clone(), want["targets"].clone());
    (model, Case { want, tokens, targets })
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Compares tensors by name with `PREFIX.NAME` of the fixture, relative to each tensor's norm; thinned ones by what is there.
/// Says how many it found, and the worst error.
fn compare<M: LanguageModel>(
    prefix: &str,
    named: Vec<(String, Tensor)>,
    case: &Case,
    tolerance: f64,
    skip: impl Fn(&str, usize) -> bool,
) -> (usize, f64) {
    let (mut found, mut worst) = (0, 0f64);
    // In the layout of the file.
    for (name, t) in M::convert(named.into_iter().collect()).unwrap() {
        let key = format!("{prefix}.{name}");
        if !case.want.contains_key(&key) {
            continue;
        }
        let got = t.contiguous().unwrap().to_f64_vec().unwrap();
        let (kept, want, stride) = thinned(case, &key, &got);
        let difference: Vec<f64> =
            kept.iter().zip(&want).enumerate().filter(|(i, _)| !skip(&name, i * stride)).map(|(_, (a, b))| a - b).collect();
        let error = norm(&difference) / norm(&want);
        assert!(error <= tolerance, "{key}: relative error {error:e}");
        if let Some(all) = case.want.get(&format!("{key}.norm")) {
            let error = (norm(&got) / all.item().unwrap() - 1.0).abs();
            assert!(error <= tolerance, "{key}: its norm is off by {error:e}");
        }
        (found, worst) = (found + 1, worst.max(error));
    }
    (found, worst)
}

fn logits_loss_and_gradients<M: LanguageModel>(name: &str, dtype: DType, tolerances: [f64; 3]) {
    for folder in folders(name) {
        let (model, case) = open::<M>(&folder, dtype);
        let logits = model.logits(&case.tokens).unwrap();
        let pairs = logits.to_f64_vec().unwrap().into_iter().zip(case.want["logits"].to_f64_vec().unwrap());
        let logit_error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d <= m { m } else { d });
        let (loss, grads) = value_and_grad(&model, |m| case.loss(m)).unwrap();
        let loss_error = (loss.item().unwrap() - case.number("loss_f64")).abs();
        let norm_error = (grads.norm().unwrap() / case.number("adamw.grad_norm_f64") - 1.0).abs();
        let all = model.names().len();
        let (found, worst) = compare::<M>("grad", grads.named(), &case, tolerances[2], |_, _| false);
        crate::say(&format!("{name} {dtype}: logits {logit_error:.1e}, loss {loss_error:.1e}, gradients {worst:.1e} of {found} tensors"));
        assert!(logit_error <= tolerances[0], "logits differ by {logit_error:e}");
        assert!(loss_error <= tolerances[1] && norm_error <= tolerances[2], "loss {loss_error:e}, gradient norm {norm_error:e}");
        assert_eq!(found, all, "gradients that were compared");
    }
}

fn step<M: LanguageModel>(model: &mut M, adam: &mut AdamW, mut grads: Grads<M>) -> f64 {
    let clipped = grads.clip_global_norm(1.0).unwrap();
    adam.step(model, &grads).unwrap();
    clipped.norm
}

fn adam() -> AdamW {
    AdamW { lr: 1e-3, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, ..AdamW::default() }
}

/// Whether an element of GPT-2's biases is a key's: its gradient is zero but for rounding, which Adam blows up.
fn key_bias(name: &str, element: usize) -> bool {
    name.ends_with("c_attn.bias") && (64..128).contains(&element)
}

/// The stored step is computed from gradients in f32, so the comparison's precision is theirs.
fn one_step<M: LanguageModel>(name: &str, at_least: usize) {
    for folder in folders(name) {
        let (mut model, case) = open::<M>(&folder, F64);
        let grads = value_and_grad(&model, |m| case.loss(m)).unwrap().1;
        step(&mut model, &mut adam(), grads);
        let (found, worst) = compare::<M>("adamw", model.named_tensors(), &case, 1e-7, key_bias);
        crate::say(&format!("{name}: one AdamW step {worst:.1e} of {found} tensors"));
        assert!(found >= at_least, "{found} tensors compared");
    }
}

fn ten_steps<M: LanguageModel>(name: &str, dtype: DType, tolerance: f64) {
    for folder in folders(name) {
        let (mut model, case) = open::<M>(&folder, dtype);
        let (losses, norms) =
            (case.want["train.losses_f64"].to_f64_vec().unwrap(), case.want["train.grad_norms_f64"].to_f64_vec().unwrap());
        let (mut adam, mut worst) = (adam(), 0f64);
        for (i, (want, want_norm)) in losses.iter().zip(norms).enumerate() {
            let (loss, grads) = value_and_grad(&model, |m| case.loss(m)).unwrap();
            let norm = step(&mut model, &mut adam, grads);
            let error = ((loss.item().unwrap() - want).abs()).max((norm / want_norm - 1.0).abs());
            assert!(error <= tolerance, "step {i}: loss {loss} instead of {want}, gradient norm {norm} instead of {want_norm}");
            worst = worst.max(error);
        }
        crate::say(&format!("{name} {dtype}: ten steps {worst:.1e}"));
        assert_eq!(losses.len(), 11);
    }
}

#[test]
fn gpt2_gives_hugging_faces_logits_loss_and_gradients() {
    logits_loss_and_gradients::<Gpt>("tiny-gpt2", F32, [1e-4, 1e-5, 2e-5]);
    // In f64 what remains is the rounding of the stored numbers.
    logits_loss_and_gradients::<Gpt>("tiny-gpt2", F64, [1e-6, 1e-12, 1e-7]);
}

#[test]
fn qwen2_gives_hugging_faces_logits_loss_and_gradients() {
    logits_loss_and_gradients::<Qwen2>("tiny-qwen2", F32, [1e-4, 1e-5, 2e-5]);
    logits_loss_and_gradients::<Qwen2>("tiny-qwen2", F64, [1e-6, 1e-12, 1e-7]);
}

#[test]
fn one_step_of_adamw_is_pytorchs() {
    one_step::<Gpt>("tiny-gpt2", 28);
    one_step::<Qwen2>("tiny-qwen2", 14);
}

#[test]
fn ten_steps_of_training_follow_pytorch() {
    ten_steps::<Gpt>("tiny-gpt2", F64, 1e-11);
    ten_steps::<Gpt>("tiny-gpt2", F32, 1e-4);
    ten_steps::<Qwen2>("tiny-qwen2", F64, 1e-11);
    ten_steps::<Qwen2>("tiny-qwen2", F32, 1e-4);
}

/// Greedy generation: the prompt at once, then token by token from the cache.
#[test]
fn qwen2_generates_hugging_faces_tokens_from_its_cache() {
    for folder in folders("tiny-qwen2") {
        let (model, case) = open::<Qwen2>(&folder, F32);
        let mut caches = vec![KvCache::default(); model.model.layers.len()];
        let (mut next, mut tokens) = (case.want["gen.prompt"].clone(), Vec::new());
        for _ in 0..case.want["gen.tokens"].numel() {
            let logits = model.forward(&next, Some(&mut caches), None, None).unwrap();
            let last = logits.select(1, -1).unwrap();
            next = last.argmax(-1).unwrap().cast(cotangent::I64).unwrap().reshape([1, 1]).unwrap();
            tokens.push(next.item().unwrap());
        }
        assert_eq!(tokens, case.want["gen.tokens"].to_f64_vec().unwrap());
        assert_eq!(caches[0].len(), case.want["gen.prompt"].numel() + tokens.len() - 1);
    }
}

/// A batch padded on the left, with a mask and positions of its own.
#[test]
fn qwen2_reads_a_padded_batch() {
    for folder in folders("tiny-qwen2") {
        let (model, case) = open::<Qwen2>(&folder, F32);
        let mask = case.want["leftpad.attention_mask"].cast(cotangent::U8).unwrap();
        let (batch, time) = (mask.shape()[0], mask.shape()[1]);
        let mask = mask.reshape([batch, 1, 1, time]).unwrap();
        let logits = model.forward(&case.want["leftpad.input_ids"], None, Some(&case.want["leftpad.position_ids"]), Some(&mask)).unwrap();
        let (got, want) = (logits.select(1, -1).unwrap().to_f64_vec().unwrap(), case.want["leftpad.last_logits"].to_f64_vec().unwrap());
        assert_eq!(got.len(), want.len());
        assert!(
            got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-4),
            "row {:?} differs",
            got.iter().zip(want).position(|(a, b)| (a - b).abs() > 1e-4)
        );
    }
}

/// Forward and backward in half precision, the parameters in f32: the error is no larger than Hugging Face's own in the same
/// dtype (in bf16 against exact logits of the rounded weights).
fn half_precision<M: LanguageModel>(name: &str, dtype: DType, rms: f64, median: f64) {
    for folder in folders(name) {
        let (model, case) = open::<M>(&folder, F32);
        let exact = if dtype == BF16 { "bf16.logits" } else { "logits" };
        let logits = model.cast(dtype).unwrap().logits(&case.tokens).unwrap().to_f64_vec().unwrap();
        let (got, want, _) = thinned(&case, exact, &logits);
        let difference: Vec<f64> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / (want.len() as f64).sqrt();
        let (_, grads) = value_and_grad(&model, |m| case.loss(&m.cast(dtype)?)).unwrap();
        let mut errors: Vec<f64> = Vec::new();
        for (name, g) in M::convert(grads.named().into_iter().collect()).unwrap() {
            assert_eq!(g.dtype(), F32);
            let (got, want, _) = thinned(&case, &format!("grad.{name}"), &g.contiguous().unwrap().to_f64_vec().unwrap());
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
    half_precision::<Gpt>("tiny-gpt2", BF16, 2.17e-2, 1.62e-2);
    half_precision::<Gpt>("tiny-gpt2", F16, 3.54e-3, 1.77e-3);
    half_precision::<Qwen2>("tiny-qwen2", BF16, 2.73e-2, 2.49e-2);
    half_precision::<Qwen2>("tiny-qwen2", F16, 4.43e-3, 3.27e-3);
}
