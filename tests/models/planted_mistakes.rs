//! The mistakes that make a decoder print garbage, each planted in tiny-qwen2, and each named by the comparison of two traces: the healthy
//! model's is the reference.

use crate::models::folders;
use crate::say;
use cotangent::diagnostics::{Comparison, Trace};
use cotangent::io::{DecoderConfig, ModelConfig};
use cotangent::models::{Cache, Decoder, Input, LanguageModel, LoadOptions, load};
use cotangent::ops::{RopeOptions, SdpaOptions};
use cotangent::{F32, Key, Module, Result, Tensor};
use std::collections::BTreeMap;

fn healthy() -> Decoder {
    match load(folders("tiny-qwen2").remove(0), LoadOptions::dtype(F32)).unwrap().model {
        LanguageModel::Decoder(m) => m,
        other => panic!("{:?}", other.config()),
    }
}

fn tokens() -> Tensor {
    crate::train::pytorch_run::load(&folders("tiny-qwen2").remove(0).join("fixture.safetensors"))["input_ids"].narrow(0, 0, 1).unwrap()
}

/// The same weights in a model of another configuration.
fn with_config(change: impl FnOnce(&mut DecoderConfig)) -> Decoder {
    let good = healthy();
    let mut config = good.config().clone();
    change(&mut config);
    let mut model = Decoder::new(&config, F32, Key::new(1)).unwrap();
    let all: BTreeMap<String, Tensor> = good.named_tensors().into_iter().collect();
    let own = model.names();
    model.load_named(&all.into_iter().filter(|(n, _)| own.contains(n)).collect()).unwrap();
    model
}

fn compare(broken: &Decoder, run: impl Fn(&Decoder) -> Result<Tensor>, reference: impl Fn(&Decoder) -> Result<Tensor>) -> Comparison {
    let (good, want) = Trace::of(&healthy(), reference).unwrap();
    let (bad, trace) = Trace::of(broken, run).unwrap();
    let last = |t: &Tensor| t.select(1, -1).unwrap();
    let apart = last(&good).sub(&last(&bad)).unwrap().abs().unwrap().max(..).unwrap().item().unwrap();
    assert!(apart > 0.1, "the mistake does not show in the logits: {apart:e}");
    let found = trace.compare(&want, 1e-4).unwrap();
    say(&found.verdict().unwrap_or_else(|| "agrees".to_owned()));
    found
}

fn whole(m: &Decoder) -> Result<Tensor> {
    m.forward(&tokens())
}

#[test]
fn without_a_mistake_nothing_is_named() {
    let (_, want) = Trace::of(&healthy(), whole).unwrap();
    let (_, trace) = Trace::of(&with_config(|_| ()), whole).unwrap();
    let found = trace.compare(&want, 1e-6).unwrap();
    assert!(found.first().is_none() && found.rows.len() > 60, "{found}");
}

#[test]
fn a_transposed_weight_is_named() {
    let name = "model.layers.1.self_attn.q_proj.weight";
    // Square, so that no shape tells.
    let broken = healthy().map(|n, t| if n == name { t.t()?.contiguous() } else { Ok(t.clone()) }).unwrap();
    let found = compare(&broken, whole, whole);
    assert_eq!(found.first().unwrap().name, "model.layers.1.self_attn.q_proj");
    assert!(found.verdict().unwrap().contains("is given the same input and gives another output"), "{found}");
}

/// The decoder written out, with a layer in which query head j reads key head j mod 2 instead of j / 7: `tile` where it should repeat.
fn by_hand(m: &Decoder, mistaken: Option<usize>) -> Result<Tensor> {
    let mut x = m.model.embed_tokens.forward(&tokens())?;
    let [batch, time] = [1, tokens().size(1)?];
    for (i, layer) in m.model.layers.iter().enumerate() {
        let (a, h) = (&layer.self_attn, layer.input_layernorm.forward(&x)?);
        let heads = |t: Tensor, n: usize| t.reshape([batch, time, n, 16])?.permute([0, 2, 1, 3]);
        let rope = RopeOptions { base: 1e6, ..RopeOptions::default() };
        let q = heads(a.q_proj.forward(&h)?, 14)?.rope(&rope)?;
        let of: Vec<i64> = (0..14).map(|j| if mistaken == Some(i) { j % 2 } else { j / 7 }).collect();
        let of = Tensor::from_vec(of, [14])?;
        let k = heads(a.k_proj.forward(&h)?, 2)?.rope(&rope)?.index_select(1, &of)?;
        let v = heads(a.v_proj.forward(&h)?, 2)?.index_select(1, &of)?;
        let y = q.scaled_dot_product_attention(&k, &v, None, &SdpaOptions::causal())?.permute([0, 2, 1, 3])?.flatten(2, 3)?;
        let (normed, sum) = layer.post_attention_layernorm.forward_sum(&x, &a.o_proj.forward(&y)?)?;
        x = sum.add(&layer.mlp.forward(&normed)?)?;
    }
    m.model.embed_tokens.unembed(&m.model.norm.forward(&x)?)
}

#[test]
fn a_swapped_head_mapping_is_named() {
    let found = compare(&healthy(), |m| by_hand(m, Some(1)), whole);
    assert_eq!(found.first().unwrap().name, "model.layers.1.self_attn.o_proj:input", "{found}");
    assert!(
        found.verdict().unwrap().contains("between `model.layers.1.self_attn.v_proj` and `model.layers.1.self_attn.o_proj`"),
        "{found}"
    );
    let (_, want) = Trace::of(&healthy(), whole).unwrap();
    let (_, trace) = Trace::of(&healthy(), |m| by_hand(m, None)).unwrap();
    assert!(trace.compare(&want, 1e-5).unwrap().first().is_none());
    // The same in the weights: the two key heads have changed places.
    let swap = Tensor::from_slice(&[1i64, 0], [2]).unwrap();
    let broken = healthy()
        .map(|n, t| match n {
            "model.layers.1.self_attn.k_proj.weight" => t.reshape([2, 16, 224])?.index_select(0, &swap)?.reshape([32, 224]),
            "model.layers.1.self_attn.k_proj.bias" => t.reshape([2, 16])?.index_select(0, &swap)?.reshape([32]),
            _ => Ok(t.clone()),
        })
        .unwrap();
    assert_eq!(compare(&broken, whole, whole).first().unwrap().name, "model.layers.1.self_attn.k_proj");
}

#[test]
fn a_wrong_rope_base_is_named() {
    // What a reader of the other generation of configurations falls back to.
    let found = compare(&with_config(|c| c.rope.theta = 10_000.0), whole, whole);
    assert_eq!(found.first().unwrap().name, "model.layers.0.self_attn.q", "{found}");
    let hint = found.first().unwrap().hint.clone().unwrap_or_default();
    assert!(hint.contains("look at what depends on the position"), "{hint}");
}

/// The cache is one position short: the next token stands, and looks, one place too early.
#[test]
fn an_off_by_one_cache_position_is_named() {
    let in_two = |m: &Decoder, forget: usize| {
        let mut cache = Cache::new(3, 0).unwrap();
        m.forward_with(Input { cache: Some(&mut cache), ..Input::new(&tokens().narrow(1, 0, 12)?) })?;
        cache.truncate(12 - forget)?;
        m.forward_with(Input { cache: Some(&mut cache), ..Input::new(&tokens().narrow(1, 12, 1)?) })
    };
    let found = compare(&healthy(), |m| in_two(m, 1), |m| in_two(m, 0));
    // All of the first pass agrees; in the second, projections do, and the rotation does not.
    assert_eq!(found.first().unwrap().name, "model.layers.0.self_attn.q#1", "{found}");
    assert!(found.rows.iter().any(|r| r.name == "model.layers.0.self_attn.v_proj#1" && r.ok));
}

#[test]
fn a_missing_bias_is_named() {
    let found = compare(&with_config(|c| c.qkv_bias = false), whole, whole);
    assert_eq!(found.first().unwrap().name, "model.layers.0.self_attn.q_proj", "{found}");
    assert!(found.verdict().unwrap().contains("a bias is missing or wrong"), "{found}");
}

/// The configuration that a careless reader takes: each mistake is one that the real reader does not make.
#[test]
fn the_reader_makes_none_of_them() {
    for name in ["config.json", "config.v4.json"] {
        let ModelConfig::Decoder(c) = ModelConfig::open(folders("tiny-qwen2").remove(0).join(name)).unwrap() else { panic!("{name}") };
        assert_eq!((c.rope.theta, c.qkv_bias, c.kv_heads, c.heads, c.tied), (1e6, true, 2, 14, true));
    }
}
