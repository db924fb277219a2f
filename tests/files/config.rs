//! Configurations of models: both generations of files, defaults as Hugging Face has them, and what is refused.

use cotangent::io::{ConfigActivation, DecoderConfig, DecoderFamily, GenerationConfig, ModelConfig, RopeConfig, RopeScaling};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config")
}

fn llama() -> Value {
    json!({"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5})
}

/// The object with some fields replaced; `null` takes one away.
fn with(mut base: Value, change: Value) -> Value {
    for (k, v) in change.as_object().unwrap() {
        base[k] = v.clone();
    }
    base
}

fn decoder(config: &Value) -> DecoderConfig {
    match ModelConfig::parse(&config.to_string()).unwrap_or_else(|e| panic!("{e}")) {
        ModelConfig::Decoder(c) => c,
        other => panic!("{other:?}"),
    }
}

fn refused(config: &Value, part: &str) {
    let e = ModelConfig::parse(&config.to_string()).expect_err(part);
    assert!(e.is_corrupt_file() && e.to_string().contains(part), "expected {part}: {e}");
}

/// Fields of other families, which would change every number, are refused; at the value at which they do nothing they are not.
#[test]
fn fields_that_change_the_numbers_are_refused() {
    for field in [
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        json!({"clip_qkv": 8.0}),
        json!({"logit_softcapping": 30.0}),
        json!({"logit_scale": 0.5}),
        json!({"add_cross_attention": true}),
        json!({"num_local_experts": 8}),
    ] {
        let name = field.as_object().unwrap().keys().next().unwrap().clone();
        let e = ModelConfig::parse(&with(llama(), field).to_string()).unwrap_err();
        assert!(e.is_argument() && e.to_string().contains(&format!("`{name}` is ")), "{e}");
    }
    let idle =
        json!({"quantization_config": null, "logit_scale": 1.0, "add_cross_attention": false, "num_local_experts": 0, "pruned_heads": {}});
    assert_eq!(decoder(&with(llama(), idle)), decoder(&llama()));
}

#[test]
fn both_generations_of_files_say_the_same() {
    for model in ["tiny-gpt2", "tiny-qwen2"] {
        let folder = fixtures().join(model);
        let new = ModelConfig::open(&folder).unwrap();
        assert_eq!(new, ModelConfig::open(folder.join("config.v4.json")).unwrap());
        match new {
            ModelConfig::Gpt2(c) => {
                assert_eq!((c.vocabulary, c.context, c.width, c.hidden, c.layers, c.heads), (512, 64, 64, 256, 2, 4));
                assert_eq!(
                    (c.activation, c.norm_eps, c.tied, c.scaled, c.scaled_by_layer),
                    (ConfigActivation::GeluTanh, 1e-5, true, true, false)
                );
                assert_eq!((c.special.bos, c.special.eos), (Some(511), vec![511]));
            }
            ModelConfig::Decoder(c) => {
                assert_eq!((c.vocabulary, c.context, c.width, c.hidden, c.layers), (1000, 512, 224, 64, 3));
                assert_eq!((c.heads, c.kv_heads, c.head_dim, c.norm_eps, c.tied), (14, 2, 16, 1e-6, true));
                assert_eq!((c.rope.theta, &c.rope.scaling), (1e6, &RopeScaling::None));
                assert_eq!((c.qkv_bias, c.output_bias, c.qk_norm), (true, false, false));
            }
            other => panic!("{other:?}"),
        }
        let generation = GenerationConfig::open(&folder).unwrap();
        assert!(!generation.sample && generation.special.eos.len() == 1);
    }
}

#[test]
fn families_differ_where_they_should() {
    let old = decoder(&llama());
    assert_eq!((old.rope.theta, old.kv_heads, old.head_dim, old.tied, old.qkv_bias), (10_000.0, 2, 16, false, false));
    assert_eq!(decoder(&with(llama(), json!({"num_key_value_heads": null}))).kv_heads, 4);
    let biased = decoder(&with(llama(), json!({"attention_bias": true, "mlp_bias": true})));
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
    // Llama knows no window, Mistral has one, Qwen only where it is switched on.
    let window = json!({"sliding_window": 128, "max_window_layers": 1});
    assert_eq!(decoder(&with(llama(), window.clone())).windows, [None, None]);
    let of = |family: &str, more: Value| decoder(&with(with(with(llama(), json!({"model_type": family})), window.clone()), more));
    assert_eq!(of("mistral", json!({})).windows, [Some(128), Some(128)]);
    assert_eq!(of("qwen2", json!({})).windows, [None, None]);
    assert_eq!(of("qwen2", json!({"use_sliding_window": true})).windows, [None, Some(128)]);
    let types = json!({"use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(of("qwen2", types).windows, [Some(128), None]);
    let qwen3 = of("qwen3", json!({"head_dim": 128, "tie_word_embeddings": true}));
    assert_eq!((qwen3.family, qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias, qwen3.tied), (DecoderFamily::Qwen3, 128, true, false, true));
    // Several tokens may end a text.
    assert_eq!(decoder(&with(llama(), json!({"eos_token_id": [7, 9], "pad_token_id": -1}))).special.eos, [7, 9]);
    let bert = json!({"architectures": ["BertModel"], "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512, "hidden_act": "gelu"});
    let ModelConfig::Bert(c) = ModelConfig::parse(&bert.to_string()).unwrap() else { panic!("not BERT") };
    assert_eq!((c.segments, c.norm_eps, c.activation), (2, 1e-12, ConfigActivation::Gelu));
    refused(&with(bert, json!({"position_embedding_type": "relative_key"})), "`position_embedding_type` is `relative_key`");
}

#[test]
fn rotary_scaling_of_both_generations() {
    let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 2048});
    let want = RopeScaling::Llama3 { factor: 8.0, original_positions: 2048, low_freq_factor: 1.0, high_freq_factor: 4.0 };
    let old = with(llama(), json!({"rope_theta": 5e5, "rope_scaling": with(llama3.clone(), json!({"rope_type": "llama3"}))}));
    let new = with(llama(), json!({"rope_parameters": with(llama3, json!({"rope_type": "llama3", "rope_theta": 5e5}))}));
    assert_eq!(decoder(&old).rope, RopeConfig { theta: 5e5, scaling: want });
    assert_eq!(decoder(&old), decoder(&new));
    let scaling = |s: Value| decoder(&with(llama(), json!({"rope_scaling": s}))).rope.scaling;
    assert_eq!(scaling(json!({"type": "linear", "factor": 2})), RopeScaling::Linear { factor: 2.0 });
    assert_eq!(scaling(json!({"type": "dynamic", "factor": 2})), RopeScaling::Dynamic { factor: 2.0, original_positions: 4096 });
    let yarn = |factor: f64, attention_factor| RopeScaling::Yarn {
        factor,
        original_positions: 1024,
        attention_factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let about = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "finetuned": true});
    assert_eq!(scaling(about.clone()), yarn(4.0, 0.1 * 4f64.ln() + 1.0));
    assert_eq!(scaling(with(about.clone(), json!({"attention_factor": 1.5}))), yarn(4.0, 1.5));
    assert_eq!(scaling(with(about, json!({"mscale": 1.0, "mscale_all_dim": 1.0}))), yarn(4.0, 1.0));

    let bad = |s: Value, part: &str| refused(&with(llama(), json!({"rope_scaling": s})), part);
    bad(json!({"type": "longrope", "factor": 2}), "`rope_scaling.rope_type` is `longrope`");
    bad(json!({"type": "linear"}), "`rope_scaling.factor` is missing");
    bad(json!({"type": "linear", "factor": 0.5}), "is 0.5, expected at least 1");
    bad(json!({"type": "linear", "factor": "2"}), "`rope_scaling.factor` is \"2\", expected a number");
    bad(json!({"type": "linear", "factor": 2, "mrope_section": [1]}), "`rope_scaling.mrope_section` means nothing");
    bad(json!({"type": "linear", "rope_type": "yarn", "factor": 2}), "`rope_scaling.rope_type` is `yarn`, but");
    bad(json!("linear"), "`rope_scaling` is \"linear\", not an object");
    let bands = json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1, "original_max_position_embeddings": 8});
    bad(bands, "`high_freq_factor` is 1, expected more than `low_freq_factor`, 4");
    refused(
        &with(llama(), json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}})),
        "`rope_parameters.rope_theta` is 1000000, but `rope_theta` is 10000",
    );
    refused(&with(llama(), json!({"rope_theta": 0})), "`rope_theta` is 0");
    refused(&with(llama(), json!({"partial_rotary_factor": 0.5})), "`partial_rotary_factor` is 0.5");
}

/// Against the papers' formulas, at the ends of their ranges and between.
#[test]
fn frequencies_follow_their_rules() {
    let theta = 10_000f64;
    let plain = |i: usize, n: usize| theta.powf(-2.0 * i as f64 / n as f64);
    let of = |scaling, length| RopeConfig { theta, scaling }.frequencies(64, length).unwrap();
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} and {b}");
    // Short waves stay, long ones are divided, and between the two the rule is monotonous.
    let (f, factor) = of(RopeScaling::Llama3 { factor: 8.0, original_positions: 8192, low_freq_factor: 1.0, high_freq_factor: 4.0 }, 1);
    close(f[0], 1.0);
    close(f[31], plain(31, 64) / 8.0);
    assert!(factor == 1.0 && f.windows(2).all(|w| w[0] > w[1]));
    // Wavelength 4096: 8192 / 4096 = 2 turns, a third of the way from 1 to 4.
    let middle = RopeConfig {
        theta: (4096.0 / std::f64::consts::TAU).powi(2),
        scaling: RopeScaling::Llama3 { factor: 8.0, original_positions: 8192, low_freq_factor: 1.0, high_freq_factor: 4.0 },
    };
    let wave = std::f64::consts::TAU / 4096.0;
    close(middle.frequencies(4, 1).unwrap().0[1], 2.0 / 3.0 * wave / 8.0 + wave / 3.0);

    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_positions: 2048,
        attention_factor: 1.25,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    let (f, factor) = of(yarn, 1);
    assert!(factor == 1.25);
    close(f[0], 1.0);
    close(f[31], plain(31, 64) / 4.0);
    // The mixed range: 64·ln(2048/(2π·32))/(2·ln 10⁴) = 8.07 and 20.11, rounded to 8 and 21.
    close(f[8], plain(8, 64));
    close(f[21], plain(21, 64) / 4.0);
    close(f[12], plain(12, 64) * (1.0 - 4.0 / 13.0 + 4.0 / 13.0 / 4.0));

    let dynamic = RopeScaling::Dynamic { factor: 2.0, original_positions: 100 };
    close(of(dynamic.clone(), 50).0[7], plain(7, 64));
    let base = theta * 3f64.powf(64.0 / 62.0); // 2·200/100 − 1
    close(of(dynamic, 200).0[7], base.powf(-14.0 / 64.0));
    close(of(RopeScaling::Divided { factors: vec![2.0; 32] }, 1).0[3], plain(3, 64) / 2.0);
}

#[test]
fn sizes_that_cannot_be_are_named() {
    for (change, part) in [
        (json!({"vocab_size": 0}), "`vocab_size` is 0, expected 1 to"),
        (json!({"hidden_size": null}), "`hidden_size` is missing"),
        (json!({"hidden_size": -64}), "`hidden_size` is -64, expected a whole number"),
        (json!({"hidden_size": 64.5}), "`hidden_size` is 64.5"),
        (json!({"num_hidden_layers": u32::MAX}), "`num_hidden_layers` is 4294967295"),
        (json!({"num_attention_heads": 0}), "`num_attention_heads` is 0, which does not divide `hidden_size`, 64"),
        (json!({"num_attention_heads": 3}), "`num_attention_heads` is 3, which does not divide"),
        (json!({"num_key_value_heads": 0}), "`num_key_value_heads` is 0"),
        (json!({"num_key_value_heads": 8}), "`num_key_value_heads` is 8, which does not divide `num_attention_heads`, 4"),
        (json!({"head_dim": 15}), "`head_dim` is 15, expected an even number"),
        (json!({"max_position_embeddings": u32::MAX}), "`max_position_embeddings` is 4294967295"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0, expected a positive number"),
        (json!({"hidden_act": "mish"}), "`hidden_act` is `mish`"),
        (json!({"eos_token_id": 100}), "`eos_token_id` is 100, but `vocab_size` is 100"),
        (json!({"eos_token_id": [1, "2"]}), "`eos_token_id` is [1,\"2\"]"),
        (json!({"layer_types": ["full_attention"]}), "`layer_types` has 1 entries for 2 layers"),
        (json!({"tie_word_embeddings": "yes"}), "`tie_word_embeddings` is \"yes\", expected true or false"),
    ] {
        refused(&with(llama(), change), part);
    }
    let unknown = ModelConfig::parse(&with(llama(), json!({"model_type": "mamba"})).to_string()).unwrap_err();
    assert!(unknown.is_argument() && unknown.to_string().contains("`model_type` is `mamba`"), "{unknown}");
    assert!(ModelConfig::parse("{").unwrap_err().is_corrupt_file());
    assert!(ModelConfig::parse("[]").unwrap_err().is_corrupt_file());
    assert!(ModelConfig::parse(&"[".repeat(100_000)).unwrap_err().is_corrupt_file());
    assert!(ModelConfig::open(fixtures().join("nowhere")).unwrap_err().is_io());
    // A configuration made by hand is checked by the same rules.
    let mut own = decoder(&llama());
    own.kv_heads = 3;
    assert!(own.validate().unwrap_err().is_argument());
}

#[test]
fn settings_of_sampling() {
    let text = r#"{"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}"#;
    let g = GenerationConfig::parse(text).unwrap();
    assert_eq!(
        (g.special.eos, g.temperature, g.top_k, g.top_p, g.repetition_penalty),
        (vec![2, 3], Some(0.7), Some(20), Some(0.8), Some(1.05))
    );
    // Wrong values are said, and leave the rest as it is.
    for (text, part) in [
        (r#"{"temperature": -1, "do_sample": true}"#, "`temperature` is -1"),
        (r#"{"top_p": 1.5, "do_sample": true}"#, "`top_p` is 1.5, expected 0 to 1"),
        (r#"{"repetition_penalty": -1, "do_sample": true}"#, "`repetition_penalty` is -1"),
        (r#"{"top_k": -2, "do_sample": true}"#, "`top_k` is -2"),
    ] {
        let g = GenerationConfig::parse(text).unwrap();
        assert!(g.wrong.len() == 1 && g.wrong[0].contains(part), "{:?}", g.wrong);
        assert_eq!(GenerationConfig { wrong: Vec::new(), ..g }, GenerationConfig { sample: true, ..GenerationConfig::default() });
    }
    assert_eq!(GenerationConfig::parse(r#"{"temperature": 0}"#).unwrap().temperature, Some(0.0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any field with any number in it: an error, or a configuration that passes its own check.
    #[test]
    fn any_number_in_any_field_is_refused_or_valid(field in 0usize..14, number in any::<i64>(), small in any::<bool>()) {
        const FIELDS: [&str; 14] = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "head_dim", "rope_theta", "sliding_window", "eos_token_id",
            "max_window_layers", "rope_scaling"];
        let number = if small { number % 300 } else { number };
        let config = with(with(llama(), json!({"model_type": "qwen2", "use_sliding_window": true})), json!({FIELDS[field]: number}));
        match ModelConfig::parse(&config.to_string()) {
            Ok(ModelConfig::Decoder(c)) => prop_assert!(c.validate().is_ok()),
            Ok(_) => prop_assert!(false, "not a decoder"),
            Err(e) => prop_assert!(e.is_corrupt_file(), "{e}"),
        }
    }
}
