//! GGUF files: exact values, names and layouts, hyper-parameters; and what strangers' files may hold.

use crate::files::Folder;
use crate::fuzz_entry::{self, read_everything};
use cotangent::io::{DecoderFamily, GgufArray, GgufFile, GgufType, GgufValue, ModelConfig, RopeScaling, TensorFile};
use cotangent::{BF16, Error, F16, F32, F64, I64, Result, Tensor, bf16};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A GGUF file, piece by piece.
#[derive(Clone, Default)]
pub struct Writer {
    pairs: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Writer {
    pub fn new(architecture: &str) -> Self {
        Writer::default().text("general.architecture", architecture)
    }

    pub fn raw(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.pairs.push((key.to_owned(), kind, bytes.to_vec()));
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(string(v)));
        self.raw(key, 9, &bytes)
    }

    /// A tensor of `shape`, outermost first, in the type with number `kind`.
    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), shape.iter().rev().copied().collect(), kind, bytes.to_vec()));
        self
    }

    pub fn floats(self, name: &str, shape: &[u64], values: impl Fn(usize) -> f32) -> Self {
        let n = shape.iter().product::<u64>() as usize;
        let bytes: Vec<u8> = (0..n).flat_map(|i| values(i).to_le_bytes()).collect();
        self.tensor(name, shape, 0, &bytes)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.pairs {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, extents, kind, data) in &self.tensors {
            out.extend(string(name));
            out.extend((extents.len() as u32).to_le_bytes());
            extents.iter().for_each(|e| out.extend(e.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }

    pub fn file(&self) -> Result<GgufFile> {
        GgufFile::from_bytes(self.bytes())
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

#[test]
fn every_tensor_of_a_model_has_the_values_of_the_reference() {
    let folder = std::env::var_os("COTANGENT_GGUF").map_or_else(|| fixtures().join("gguf"), PathBuf::from);
    let index: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let mut compared = 0;
    for (name, about) in index.iter().filter(|(name, _)| folder.join(name).exists()) {
        let file = GgufFile::open(folder.join(name)).unwrap();
        let tensors = about["tensors"].as_object().unwrap();
        assert_eq!(file.names().len(), tensors.len());
        for (tensor, about) in tensors {
            let t = file.tensor(tensor, F32).unwrap();
            let mut extents: Vec<u64> = about["ne"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
            extents.reverse();
            assert!(t.shape().iter().map(|&n| n as u64).eq(extents), "{name}: {tensor}");
            assert_eq!(file.kind(tensor).unwrap().name(), about["type"].as_str().unwrap());
            let bytes: Vec<u8> = t.to_vec::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
            let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(digest, about["sha256_f32"].as_str().unwrap(), "{name}: {tensor}");
            compared += 1;
        }
    }
    assert!(compared >= 38, "{compared}");
    crate::say(&format!("{compared} tensors have the reference's digest"));
}

#[test]
fn blocks_of_every_quantised_type_are_exact() {
    let blocks = TensorFile::open(fixtures().join("gguf/quant_blocks.safetensors")).unwrap();
    let names: Vec<&str> = blocks.names().collect();
    let kinds: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".bytes")).collect();
    assert!(kinds.len() >= 15, "{kinds:?}");
    for name in kinds {
        let kind = *GgufType::ALL.iter().find(|k| k.name() == name.trim_end_matches("_odd")).unwrap();
        let ids: BTreeMap<&str, u32> = [
            ("Q4_0", 2),
            ("Q4_1", 3),
            ("Q5_0", 6),
            ("Q5_1", 7),
            ("Q8_0", 8),
            ("Q2_K", 10),
            ("Q3_K", 11),
            ("Q4_K", 12),
            ("Q5_K", 13),
            ("Q6_K", 14),
            ("IQ4_NL", 20),
            ("IQ4_XS", 23),
            ("BF16", 30),
        ]
        .into();
        let bytes = blocks.tensor(&format!("{name}.bytes")).unwrap().to_vec::<u8>().unwrap();
        let want = blocks.tensor(&format!("{name}.dequant")).unwrap();
        let shape: Vec<u64> = want.shape().iter().map(|&n| n as u64).collect();
        let file = Writer::new("none").tensor("t", &shape, ids[kind.name()], &bytes).file().unwrap();
        let bits = |t: &Tensor| t.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(file.kind("t").unwrap(), kind);
        let got = file.tensor("t", F32).unwrap();
        assert_eq!(got.shape(), want.shape());
        assert!(bits(&got) == bits(&want), "{name} differs");
        // Other dtypes are the same values, rounded once.
        let rounded: Vec<bf16> = want.to_vec::<f32>().unwrap().into_iter().map(bf16::from_f32).collect();
        assert_eq!(file.tensor("t", BF16).unwrap().to_vec::<bf16>().unwrap(), rounded, "{name}");
        assert_eq!(file.tensor("t", F64).unwrap().to_f64_vec().unwrap(), want.to_f64_vec().unwrap(), "{name}");
        assert_eq!(file.tensor("t", F16).unwrap().dtype(), F16);
    }
}

#[test]
fn values_longer_than_a_stretch_and_short_tails_come_in_their_places() {
    // Several stretches of 2^20 elements, and a last piece that is not full.
    let n = (1 << 21) + 4096 + 32;
    let bytes: Vec<u8> =
        (0..n / 32).flat_map(|b: usize| [0x00, 0x3c].into_iter().chain((0..32).map(move |j| ((b * 7 + j) % 251) as u8))).collect();
    let writer = Writer::new("none").tensor("t", &[n as u64], 8, &bytes);
    let folder = Folder::new("gguf-long");
    std::fs::write(folder.join("long.gguf"), writer.bytes()).unwrap();
    for file in [writer.file().unwrap(), GgufFile::open(folder.join("long.gguf")).unwrap()] {
        let got = file.tensor("t", F32).unwrap().to_vec::<f32>().unwrap();
        assert!(got.iter().enumerate().all(|(i, &y)| y == f32::from(((i / 32 * 7 + i % 32) % 251) as u8 as i8)));
    }
}

#[test]
fn integers_doubles_and_what_is_not_decoded() {
    let file = Writer::new("none")
        .tensor("i8", &[2], 24, &[0xff, 1])
        .tensor("i32", &[1], 26, &(-5i32).to_le_bytes())
        .tensor("f64", &[1], 28, &0.1f64.to_le_bytes())
        .tensor("iq1", &[256], 19, &[0; 50])
        .floats("none", &[0, 3], |_| 0.0)
        .file()
        .unwrap();
    assert_eq!(file.tensor("i8", I64).unwrap().to_vec::<i64>().unwrap(), [-1, 1]);
    assert_eq!(file.tensor("i32", I64).unwrap().to_vec::<i64>().unwrap(), [-5]);
    assert_eq!(file.tensor("f64", F64).unwrap().to_vec::<f64>().unwrap(), [0.1]);
    assert_eq!(file.tensor("none", F32).unwrap().shape(), &[0, 3]);
    for (name, dtype) in [("i8", F32), ("f64", F32), ("iq1", F32), ("none", I64)] {
        let e = file.tensor(name, dtype).unwrap_err();
        assert!(e.is_dtype() && e.to_string().contains(&format!("`{name}`")), "{e}");
    }
    let e = file.tensor("gone", F32).unwrap_err();
    assert!(e.is_argument() && e.to_string().contains("no tensor `gone`; it has i8, i32"), "{e}");
}

#[test]
fn a_qwen2_file_has_its_names_hyper_parameters_and_tokenizer() {
    let file = GgufFile::open(fixtures().join("gguf/tiny-qwen2-Q4_0.gguf")).unwrap();
    assert_eq!((file.version(), file.metadata()["general.architecture"].as_str()), (3, Some("qwen2")));
    let ModelConfig::Decoder(own) = file.config().unwrap() else { panic!("not a decoder") };
    let ModelConfig::Decoder(mut hf) = ModelConfig::open(fixtures().join("config/tiny-qwen2")).unwrap() else { panic!("not a decoder") };
    hf.special.pad = own.special.pad;
    assert_eq!(own, hf);
    let names = file.hf_names().unwrap();
    assert_eq!(names.len(), 38);
    assert_eq!(names["model.layers.2.self_attn.k_proj.bias"], "blk.2.attn_k.bias");
    assert_eq!(names["model.layers.0.post_attention_layernorm.weight"], "blk.0.ffn_norm.weight");
    let all = file.hf_tensors(BF16).unwrap();
    assert_eq!(all["model.embed_tokens.weight"].shape(), &[1000, 224]);
    assert!(file.hf_tensor("lm_head.weight", F32).unwrap_err().is_argument());

    let tokenizer = file.tokenizer().unwrap().unwrap();
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_deref()), ("gpt2", Some("qwen2")));
    assert_eq!((tokenizer.tokens.len(), tokenizer.types.len(), tokenizer.types[999]), (1000, 1000, 3));
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.add_bos), (Some(998), Some(999), Some(false)));
    // Every merge makes a token.
    let known: std::collections::BTreeSet<&str> = tokenizer.tokens.iter().map(String::as_str).collect();
    assert!(tokenizer.merges.len() > 700 && tokenizer.merges.iter().all(|(a, b)| known.contains(format!("{a}{b}").as_str())));
}

/// A model of one block, whose tensors are numbered.
fn llama() -> Writer {
    let count = |i: usize| i as f32;
    let writer = Writer::new("llama")
        .u32("llama.block_count", 1)
        .u32("llama.embedding_length", 16)
        .u32("llama.feed_forward_length", 8)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.context_length", 64)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 5e5);
    let writer = [("token_embd", 5), ("output", 5), ("blk.0.attn_q", 16), ("blk.0.attn_k", 8), ("blk.0.attn_v", 8), ("blk.0.ffn_up", 8)]
        .iter()
        .fold(writer, |w, (name, rows)| w.floats(&format!("{name}.weight"), &[*rows, 16], count));
    writer.floats("blk.0.attn_q.bias", &[16], count)
}

#[test]
fn rows_of_llamas_queries_and_keys_go_back_to_their_places() {
    let file = llama().file().unwrap();
    let ModelConfig::Decoder(config) = file.config().unwrap() else { panic!("not a decoder") };
    assert_eq!((config.family, config.tied, config.qkv_bias, config.head_dim), (DecoderFamily::Llama, false, true, 8));
    assert_eq!((config.rope.theta, config.norm_eps), (500_000.0, 1e-5));
    // In a head of 8 rows, the file has 0 4 1 5 2 6 3 7 of Hugging Face's.
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let q = file.hf_tensor("model.layers.0.self_attn.q_proj.weight", F32).unwrap().to_vec::<f32>().unwrap();
    let rows: Vec<usize> = q.chunks(16).map(|r| r[0] as usize / 16).collect();
    assert!(rows.iter().enumerate().all(|(i, &r)| r == i / 8 * 8 + order[i % 8]), "{rows:?}");
    let bias = file.hf_tensor("model.layers.0.self_attn.q_proj.bias", F32).unwrap().to_vec::<f32>().unwrap();
    assert!(bias.iter().enumerate().all(|(i, &r)| r as usize == i / 8 * 8 + order[i % 8]), "{bias:?}");
    let k = file.hf_tensor("model.layers.0.self_attn.k_proj.weight", F32).unwrap().to_vec::<f32>().unwrap();
    assert!(k.chunks(16).enumerate().all(|(i, r)| r[0] as usize / 16 == order[i]));
    // Nothing else moves.
    for (hf, own) in [("self_attn.v_proj", "attn_v"), ("mlp.up_proj", "ffn_up")] {
        let moved = file.hf_tensor(&format!("model.layers.0.{hf}.weight"), F32).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(moved, file.tensor(&format!("blk.0.{own}.weight"), F32).unwrap().to_vec::<f32>().unwrap());
    }
}

#[test]
fn gpt2s_matrices_are_transposed_and_qwens_stay() {
    let count = |i: usize| i as f32;
    let writer = Writer::new("gpt2").floats("blk.3.attn_qkv.weight", &[6, 2], count).floats("blk.3.attn_qkv.bias", &[6], count);
    let file = writer.floats("token_embd.weight", &[3, 2], count).floats("position_embd.weight", &[4, 2], count).file().unwrap();
    let qkv = file.hf_tensor("transformer.h.3.attn.c_attn.weight", F32).unwrap();
    assert_eq!(qkv.shape(), &[2, 6]);
    assert_eq!(qkv.to_vec::<f32>().unwrap()[..3], [0.0, 2.0, 4.0]);
    assert_eq!(file.hf_tensor("transformer.wpe.weight", F32).unwrap().shape(), &[4, 2]);
    let qwen = Writer::new("qwen2").floats("blk.0.attn_q.weight", &[4, 2], count).file().unwrap();
    assert_eq!(qwen.hf_tensor("model.layers.0.self_attn.q_proj.weight", F32).unwrap().to_vec::<f32>().unwrap()[2], 2.0);
    let other = Writer::new("mamba").file().unwrap().hf_names().unwrap_err();
    assert!(other.is_argument() && other.to_string().contains("`mamba`"), "{other}");
}

#[test]
fn rotary_scaling_is_read_or_refused() {
    let scaling = |w: Writer| match w.file().unwrap().config() {
        Ok(ModelConfig::Decoder(c)) => Ok(c.rope.scaling),
        Ok(_) => panic!("not a decoder"),
        Err(e) => Err(e),
    };
    let linear = llama().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(scaling(linear).unwrap(), RopeScaling::Linear { factor: 4.0 });
    let yarn = llama()
        .text("llama.rope.scaling.type", "yarn")
        .f32("llama.rope.scaling.factor", 2.0)
        .u32("llama.rope.scaling.original_context_length", 32);
    assert!(matches!(scaling(yarn).unwrap(), RopeScaling::Yarn { factor: 2.0, original_positions: 32, .. }));
    let divided = llama().floats("rope_freqs.weight", &[4], |i| 1.0 + i as f32);
    assert_eq!(scaling(divided).unwrap(), RopeScaling::Divided { factors: vec![1.0, 2.0, 3.0, 4.0] });
    assert!(scaling(llama().text("llama.rope.scaling.type", "longrope")).unwrap_err().to_string().contains("`longrope`"));
    assert!(scaling(llama().floats("rope_freqs.weight", &[3], |_| 1.0)).unwrap_err().is_corrupt_file());
}

#[test]
fn malformed_files_get_their_verdict() {
    let folder = fixtures().join("malformed/gguf");
    let verdicts: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(folder.join("verdicts.json")).unwrap()).unwrap();
    assert!(verdicts.len() >= 39, "{}", verdicts.len());
    for (name, row) in &verdicts {
        let opened = GgufFile::open(folder.join(name));
        match row["verdict"].as_str().unwrap() {
            "accept" => {
                let file = opened.unwrap_or_else(|e| panic!("{name} is legal: {e}"));
                file.tensors(F32).unwrap();
            }
            "reject" => {
                let e = opened.expect_err(name);
                assert!(e.is_corrupt_file() && e.to_string().contains(name), "{name}: {e}");
            }
            "reject at model build" => {
                let e = opened.unwrap().config().expect_err(name);
                let field = match name.as_str() {
                    "hparam_head_count_3.gguf" => "`attention.head_count` is 3",
                    "hparam_kv_gt_q.gguf" => "`num_key_value_heads` is",
                    "hparam_block_count_max.gguf" => "`num_hidden_layers` is 4294967295",
                    "hparam_context_max.gguf" => "`max_position_embeddings` is 4294967295",
                    other => panic!("{other}: say what its message must name"),
                };
                assert!(e.is_corrupt_file() && e.to_string().contains(field), "{name}: {e}");
            }
            // Either is right; a panic is not.
            "lenient" => drop(opened.and_then(|f| read_everything(&f))),
            other => panic!("{name}: unknown verdict {other}"),
        }
    }
}

#[test]
fn messages_say_what_and_where() {
    let folder = fixtures().join("malformed/gguf");
    for (name, part) in [
        ("bad_magic", "does not begin with `GGUF`"),
        ("bad_version_4", "version 4 at byte 4"),
        ("bad_nkv_max", "announces 18446744073709551615 metadata values, beyond the 24 bytes of the file"),
        ("bad_ntensors_2_40", "announces 1099511627776 tensors"),
        ("bad_key_empty", "key 0 at byte 24 is empty"),
        ("bad_dup_key", "occurs twice"),
        ("bad_value_type_13", "unknown type 13"),
        ("bad_nested_array_deep", "nested deeper than 4"),
        ("bad_align_13", "`general.alignment` is 13, not a power of two"),
        ("bad_align_string", "is of the type String, not U32"),
        ("bad_ndims_5", "has 5 axes"),
        ("bad_overlap", "overlap at byte"),
        ("bad_dims_patched", "the file has 160 bytes"),
        ("bad_tensor_dup", "occurs twice"),
    ] {
        let e = GgufFile::open(folder.join(format!("{name}.gguf"))).unwrap_err().to_string();
        assert!(e.contains(part), "{name}: {e}");
    }
    assert!(GgufFile::open(folder.join("nowhere")).unwrap_err().is_io());
    assert!(GgufFile::open(&folder).unwrap_err().is_io());
    for (first, part) in
        [("version https://git-lfs", "Git LFS"), ("<!DOCTYPE html>", "web page"), ("FUGG", "big-endian"), ("PK\u{3}\u{4}", "zip")]
    {
        let e = GgufFile::from_bytes(first.as_bytes().to_vec()).unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains(part), "{e}");
    }
}

#[test]
fn texts_truth_values_and_sizes_are_checked() {
    let refused = |w: Writer, part: &str| {
        let e = w.file().expect_err(part);
        assert!(e.is_corrupt_file() && e.to_string().contains(part), "{e}");
    };
    let bad_text = [&3u64.to_le_bytes()[..], &[b'a', 0xff, b'b']].concat();
    refused(Writer::new("x").raw("k", 8, &bad_text), "the value of `k` is not UTF-8 at byte");
    let bytes = Writer::new("x").u32("kk", 1).bytes();
    let at = bytes.windows(2).position(|w| w == b"kk").unwrap();
    let mut bad_key = bytes;
    bad_key[at] = 0xc0;
    assert!(GgufFile::from_bytes(bad_key).unwrap_err().to_string().contains("key 1 of 2 is not UTF-8"));
    refused(Writer::new("x").raw("k", 7, &[2]), "is 2, no truth value");
    refused(Writer::new("x").tensor("t", &[2, 48], 2, &[0; 54]), "rows of 48 elements, which are not whole blocks of Q4_0");
    refused(Writer::new("x").tensor("t", &[1 << 31, 1 << 31, 4], 0, &[]), "more elements than can be");
    refused(Writer::new("x").tensor("t", &[1], 5, &[0; 4]), "unknown type 5");
    refused(Writer::new("x").tensor(&"n".repeat(65), &[1], 0, &[0; 4]), "65 bytes; 64 are allowed");
    // Lists of lists, up to the limit.
    let nested = [9u32, 1, 0, 4, 2, 0].iter().flat_map(|x| x.to_le_bytes()).chain([1, 0, 0, 0, 2, 0, 0, 0]).collect::<Vec<u8>>();
    let file = Writer::new("x").raw("k", 9, &nested).file().unwrap();
    assert_eq!(file.metadata()["k"], GgufValue::Array(GgufArray::Array(vec![GgufArray::U32(vec![1, 2])])));
}

#[test]
fn tokenizers_are_checked() {
    let base = || Writer::new("x").text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", &["a", "b", "ab"]);
    let good = base().texts("tokenizer.ggml.merges", &["a b"]).u32("tokenizer.ggml.eos_token_id", 2).file().unwrap();
    assert_eq!(good.tokenizer().unwrap().unwrap().merges, [("a".to_owned(), "b".to_owned())]);
    assert!(Writer::new("x").file().unwrap().tokenizer().unwrap().is_none());
    for (writer, part) in [
        (base().u32("tokenizer.ggml.eos_token_id", 3), "`tokenizer.ggml.eos_token_id` is 3; there are 3 tokens"),
        (base().texts("tokenizer.ggml.merges", &["ab"]), "`tokenizer.ggml.merges[0]`, \"ab\", is not a pair"),
        (base().text("tokenizer.ggml.token_type", "1"), "is of the type String"),
        (base().raw("tokenizer.ggml.scores", 9, &[6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "has 1 entries for 3 tokens"),
    ] {
        let e = writer.file().unwrap().tokenizer().unwrap_err();
        assert!(e.is_corrupt_file() && e.to_string().contains(part), "{e}");
    }
}

/// What is fuzzed, on the seeds of the fuzzer (scripts/fuzz_seeds) and on what each becomes when it is cut in two.
#[test]
fn entries_of_the_fuzzer_take_every_seed() {
    let mut taken = [0; 3];
    let entries: [(&str, &str, fn(&[u8]) -> Result<()>); 3] = [
        ("malformed/gguf", "gguf", fuzz_entry::gguf),
        ("malformed/safetensors", "safetensors", fuzz_entry::safetensors),
        ("config", "json", fuzz_entry::config),
    ];
    for (i, (folder, ending, entry)) in entries.into_iter().enumerate() {
        let mut folders = vec![fixtures().join(folder)];
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == ending) {
                    let bytes = std::fs::read(&path).unwrap();
                    drop(entry(&bytes));
                    assert!(entry(&bytes[..bytes.len() / 2]).is_err(), "half of {}", path.display());
                    taken[i] += 1;
                }
            }
        }
    }
    assert!(taken[0] >= 39 && taken[1] >= 38 && taken[2] >= 6, "{taken:?}");
}

/// Small files of every kind, to be damaged.
fn seeds() -> Vec<Vec<u8>> {
    let quantised =
        Writer::new("qwen2").tensor("a", &[2, 32], 2, &[7; 36]).tensor("b", &[1, 256], 12, &[7; 144]).tensor("c", &[3], 24, &[1, 2, 3]);
    let tokens = llama()
        .text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "c", "d"])
        .texts("tokenizer.ggml.merges", &["a b"]);
    vec![Writer::new("x").u32("general.alignment", 32).floats("t", &[2], |_| 1.0).bytes(), quantised.bytes(), tokens.bytes()]
}

#[test]
fn every_prefix_is_refused_and_no_changed_byte_panics() {
    for whole in seeds() {
        let last = whole.len() - 64;
        for n in 0..last {
            let e = GgufFile::from_bytes(whole[..n].to_vec()).expect_err("a cut file");
            assert!(e.is_corrupt_file(), "cut to {n} bytes: {e}");
        }
        for i in 0..whole.len().min(600) {
            for change in [1, 0x20, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[i] ^= change;
                drop(GgufFile::from_bytes(bytes).and_then(|f| read_everything(&f)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several changes at once, in place of counts, lengths and offsets above all: an error or values, never a panic, and in
    /// little memory (what is announced is far beyond what this machine has).
    #[test]
    fn damaged_files_are_errors_or_values(
        seed in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u64>(), 0usize..3), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = seeds().swap_remove(seed);
        let header = bytes.len().min(1200);
        for (at, byte, word, how) in changes {
            let at = at.index(header);
            match how {
                0 => bytes[at] = byte,
                1 if at + 8 <= bytes.len() => bytes[at..at + 8].copy_from_slice(&word.to_le_bytes()),
                _ if at + 4 <= bytes.len() => bytes[at..at + 4].copy_from_slice(&u32::from(byte % 16).to_le_bytes()),
                _ => {}
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Err(e) = GgufFile::from_bytes(bytes) {
            prop_assert!(Error::is_corrupt_file(&e), "{e}");
        }
    }
}
