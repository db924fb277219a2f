//! The lists of files and keys in docs/book/load.md: each key is tried, and does what the page says of it.

use cotangent::io::{GenerationConfig, ModelConfig};
use cotangent::models::{GenerateOptions, LoadOptions, load_encoder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rows under a heading: each key with its verdict.
fn listed(heading: &str) -> BTreeMap<String, String> {
    let page = include_str!("../../docs/book/load.md");
    let rest = page.split_once(&format!("### {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let section = rest.split("\n### ").next().unwrap();
    let mut out = BTreeMap::new();
    for row in section.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        for key in cells[0].split('`').skip(1).step_by(2) {
            assert!(out.insert(key.to_owned(), cells[1].to_owned()).is_none(), "{heading}: `{key}` is listed twice");
        }
    }
    assert!(out.values().all(|v| ["honoured", "refused", "said", "passed over"].contains(&v.as_str())), "{out:?}");
    out
}

/// Values that some key or other takes.
fn candidates() -> Vec<Value> {
    let mut all = vec![
        json!(true),
        json!(false),
        json!(0.5),
        json!("text"),
        json!("relu"),
        json!("gpt2"),
        json!("llama"),
        json!([]),
        json!({"a": 1}),
    ];
    all.extend([0, 1, 2, 3, 4, 7, 8, 12, 40, 64].map(|n| json!(n)));
    all.push(json!({"type": "linear", "factor": 2.0}));
    all.push(json!({"rope_type": "linear", "factor": 2.0}));
    all.push(json!(["full_attention", "sliding_attention"]));
    all.push(json!([[1, 2], [3]]));
    all.push(json!(["GPT2LMHeadModel"]));
    all.push(json!(["BertModel"]));
    all.push(json!(["LlamaForCausalLM"]));
    all
}

/// What a key does by these bases: whether a value changes what is read, whether one is refused by the key's name, whether one is only
/// noted.
#[derive(Default, Debug)]
struct Seen {
    changes: bool,
    refused: bool,
    said: bool,
}

fn verdict(seen: &Seen) -> &'static str {
    match seen {
        Seen { changes: true, .. } => "honoured",
        Seen { refused: true, .. } => "refused",
        Seen { said: true, .. } => "said",
        _ => "passed over",
    }
}

fn check_config(heading: &str, bases: &[Value]) {
    let rows = listed(heading);
    for (key, want) in &rows {
        let mut seen = Seen::default();
        for base in bases {
            let of = |v: &Value| ModelConfig::parse(&v.to_string()).map_err(|e| e.to_string());
            let plain = of(base);
            for value in candidates() {
                let mut with = base.clone();
                with[key] = value.clone();
                match (&plain, of(&with)) {
                    (Ok(a), Ok(b)) => seen.changes |= *a != b,
                    (Err(_), Ok(_)) => seen.changes = true,
                    (Ok(_), Err(e)) => seen.refused |= e.contains(&format!("`{key}`")),
                    (Err(_), Err(_)) => {}
                }
            }
        }
        assert_eq!(verdict(&seen), want, "{heading}: `{key}`: {seen:?}");
    }
    assert!(rows.len() > 20);
}

fn decoder(family: &str, more: Value) -> Value {
    let mut v = json!({"model_type": family, "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64});
    v.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    v
}

/// `base` without a key.
fn without(mut base: Value, key: &str) -> Value {
    base.as_object_mut().unwrap().remove(key);
    base
}

#[test]
fn keys_of_decoders_do_what_the_page_says() {
    let sliding = json!({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 0});
    check_config(
        "config.json of Llama, Mistral, Qwen2 and Qwen3",
        &[
            decoder("llama", json!({"rope_scaling": {"type": "yarn", "factor": 2.0}})),
            decoder("llama", json!({})),
            decoder("mistral", sliding.clone()),
            decoder("qwen3", sliding),
            without(decoder("llama", json!({})), "model_type"),
        ],
    );
}

#[test]
fn keys_of_gpt2_do_what_the_page_says() {
    let base = json!({"model_type": "gpt2", "vocab_size": 64, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4});
    check_config("config.json of GPT-2", &[base.clone(), without(base.clone(), "n_positions"), without(base, "model_type")]);
}

#[test]
fn keys_of_bert_do_what_the_page_says() {
    let base = json!({"model_type": "bert", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64});
    check_config("config.json of BERT", &[base.clone(), without(base, "model_type")]);
}

/// Every attribute of transformers' GenerationConfig, 5.24.
const GENERATION: &str = "max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams use_mtp use_cache
    cache_implementation cache_config max_cache_len temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids renormalize_logits forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias token_healing guidance_scale
    watermarking_config num_return_sequences output_attentions output_hidden_states output_scores output_logits return_dict_in_generate pad_token_id
    bos_token_id eos_token_id encoder_no_repeat_ngram_size decoder_start_token_id is_assistant num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type compile_config disable_compile continuous_batching_config low_memory penalty_alpha dola_layers
    diversity_penalty num_beam_groups constraints force_words_ids prefill_chunk_size transformers_version";

#[test]
fn keys_of_generation_do_what_the_page_says() {
    let rows = listed("generation_config.json");
    let all: BTreeSet<&str> = GENERATION.split_whitespace().collect();
    assert_eq!(rows.keys().map(String::as_str).collect::<BTreeSet<_>>(), all);
    let of = |v: &Value| GenerationConfig::parse(&v.to_string()).unwrap();
    let bases = [json!({"do_sample": true}), json!({})];
    for (key, want) in &rows {
        let mut seen = Seen::default();
        for base in &bases {
            let plain = format!("{:?} {:?}", GenerateOptions::from(&of(base)), of(base).special);
            for value in candidates() {
                let mut with = base.clone();
                with[key] = value;
                let c = of(&with);
                seen.said |= c.passed_over.iter().any(|p| p.starts_with(&format!("`{key}` is ")));
                seen.refused |= !c.wrong.is_empty();
                seen.changes |= c.wrong.is_empty() && format!("{:?} {:?}", GenerateOptions::from(&c), c.special) != plain;
            }
        }
        assert_eq!(verdict(&seen), want, "`{key}`: {seen:?}");
    }
}

#[test]
fn keys_of_sentences_do_what_the_page_says() {
    let rows = listed("Files of sentence-transformers");
    let folder = std::env::temp_dir().join(format!("cotangent-load-page-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentence").join(file), folder.join(file)).unwrap();
    }
    let kinds = ["Transformer", "Pooling", "Normalize"].map(|k| format!("sentence_transformers.models.{k}"));
    let modules =
        json!([{"type": kinds[0], "path": ""}, {"type": kinds[1], "path": "1_Pooling"}, {"type": kinds[2], "path": "2_Normalize"}]);
    let base: BTreeMap<&str, Value> = [
        ("modules.json", modules),
        ("1_Pooling/config.json", json!({"pooling_mode_lasttoken": true})),
        ("sentence_bert_config.json", json!({})),
        ("tokenizer_config.json", json!({})),
        ("config_sentence_transformers.json", json!({"prompts": {"text": "before: ", "x": "y"}})),
    ]
    .into();
    let read = |files: &BTreeMap<&str, Value>| {
        files.iter().for_each(|(name, value)| std::fs::write(folder.join(name), value.to_string()).unwrap());
        let (bert, report) = load_encoder(&folder, LoadOptions::default()).unwrap();
        let refused = report.notes.iter().find(|n| n.starts_with("`embed` is refused")).cloned();
        (format!("{:?}", bert.pooling()), refused)
    };
    let plain = read(&base);
    assert_eq!(plain.1, None);
    let mut values = candidates();
    values.extend([
        json!("cls"),
        json!("query"),
        json!("1_Other"),
        json!("sentence_transformers.models.Dropout"),
        json!({"text": "other: "}),
    ]);
    for (row, want) in &rows {
        let (file, key) = row.split_once(": ").unwrap();
        let mut seen = Seen::default();
        // A default prompt has its text among the prompts.
        let mut bases = vec![base.clone()];
        let mut named = base.clone();
        named.get_mut("config_sentence_transformers.json").unwrap()["default_prompt_name"] = json!("text");
        bases.push(named);
        for base in &bases {
            let plain = read(base);
            for value in &values {
                let mut with = base.clone();
                let target = with.get_mut(file).unwrap();
                if file == "modules.json" {
                    target[2][key] = value.clone()
                } else {
                    target[key] = value.clone()
                }
                // The place of a module is where its settings are read from.
                if row == "modules.json: path" {
                    with.get_mut(file).unwrap()[1][key] = value.clone();
                    with.get_mut(file).unwrap()[2][key] = json!("2_Normalize");
                }
                let (pooling, refused) = read(&with);
                match refused {
                    Some(why) => seen.refused |= why.contains(&format!("`{key}`")),
                    None => seen.changes |= pooling != plain.0,
                }
            }
        }
        assert_eq!(verdict(&seen), want, "`{row}`: {seen:?}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Of GGUF files the source is asked: every key that it reads is on the page as read, and no other.
#[test]
fn keys_of_gguf_files_are_those_of_the_source() {
    let rows = listed("Metadata of GGUF files");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/io/gguf");
    let text: String = ["hyper.rs", "vocabulary.rs", "names.rs", "header.rs", "mod.rs"]
        .map(|f| std::fs::read_to_string(folder.join(f)).unwrap())
        .iter()
        .flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut read = BTreeSet::new();
    for call in [
        "self.size(\"",
        "self.optional(\"",
        "self.float(\"",
        "self.get(\"",
        "self.head_count(\"",
        "(\"attention.value_length",
        "(\"rope.dimension",
    ] {
        for rest in text.split(call).skip(1) {
            let start = if call.starts_with("self") { "" } else { &call[2..] };
            read.insert(format!("{start}{}", rest.split('"').next().unwrap()));
        }
    }
    for rest in text.split("let eps = \"").skip(1) {
        read.insert(rest.split('"').next().unwrap().to_owned());
    }
    for call in ["self.part(\"", "id(\""] {
        for rest in text.split(call).skip(1) {
            let key = rest.split('"').next().unwrap();
            read.insert(if key.contains('.') { key.to_owned() } else { format!("tokenizer.ggml.{key}") });
        }
    }
    for rest in text.split("\"").skip(1).step_by(2) {
        let whole = rest.starts_with("tokenizer.") || rest.starts_with("general.");
        if whole && !rest.contains(['{', ' ']) {
            read.insert(rest.to_owned());
        }
    }
    let used: BTreeSet<String> = rows.iter().filter(|(_, v)| *v != "passed over").map(|(k, _)| k.clone()).collect();
    let missing: Vec<_> = read.difference(&used).collect();
    let invented: Vec<_> = used.difference(&read).collect();
    assert!(missing.is_empty() && invented.is_empty(), "read and not on the page: {missing:?}; on the page and not read: {invented:?}");
    assert!(used.len() > 40);
}
