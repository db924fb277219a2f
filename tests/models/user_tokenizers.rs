//! Tokenizers as users have them: rules that a GGUF file implies by a name, state that a `tokenizer.json` keeps from training, ids
//! without a text.

use cotangent::io::GgufTokenizer;
use cotangent::train::{Tokenizer, TokenizerFile};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

fn bpe(pre: &str, tokens: &[&str], merges: &[(&str, &str)]) -> GgufTokenizer {
    GgufTokenizer {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: tokens.iter().map(|t| t.to_string()).collect(),
        types: tokens.iter().map(|t| if t.starts_with('<') { 3 } else { 1 }).collect(),
        merges: merges.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(),
        ..Default::default()
    }
}

fn of(tables: &GgufTokenizer) -> TokenizerFile {
    TokenizerFile::from_gguf(tables).unwrap().unwrap()
}

/// Names that imply `ignore_merges` and a token that begins prompts.
#[test]
fn names_imply_merges_and_the_beginning() {
    for pre in ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"] {
        let t = of(&bpe(pre, &["a", "b", "c", "ab", "abc", "Ġ"], &[("a", "b")]));
        assert_eq!(t.encode("abc").unwrap(), [4], "{pre}");
        let with_bos = GgufTokenizer { bos: Some(3), ..bpe(pre, &["a", "b", "ab", "<|begin_of_text|>"], &[("a", "b")]) };
        assert_eq!(of(&with_bos).encode_prompt("ab").unwrap(), [3, 2], "{pre}");
        // What the file says counts more.
        let told = GgufTokenizer { add_bos: Some(false), ..with_bos };
        assert_eq!(of(&told).encode_prompt("ab").unwrap(), [2], "{pre}");
    }
    for pre in ["gpt-2", "qwen2", "smollm", "smaug-bpe", "default"] {
        let t = of(&bpe(pre, &["a", "b", "c", "ab", "abc"], &[("a", "b")]));
        assert_eq!(t.encode("abc").unwrap(), [3, 2], "{pre}");
        let with_bos = GgufTokenizer { bos: Some(3), ..bpe(pre, &["a", "b", "ab", "<s>"], &[("a", "b")]) };
        assert_eq!(of(&with_bos).encode_prompt("ab").unwrap(), [2], "{pre}");
        let told = GgufTokenizer { add_bos: Some(true), ..with_bos };
        assert_eq!(of(&told).encode_prompt("ab").unwrap(), [3, 2], "{pre}");
    }
}

/// Each name cuts as its models do, and one that is not known is refused.
#[test]
fn names_cut_texts_in_their_own_way() {
    let ids = |pre, tokens: &[&str], merges: &[(&str, &str)], text| of(&bpe(pre, tokens, merges)).encode(text).unwrap();
    assert_eq!(ids("smollm", &["1", "2", "3", "12", "123"], &[("1", "2"), ("12", "3")], "123"), [0, 1, 2]);
    for pre in ["tekken", "gpt-4o"] {
        assert_eq!(ids(pre, &["a", "B", "aB"], &[("a", "B")], "aB"), [0, 1], "{pre}");
    }
    for pre in ["starcoder", "refact", "deepseek-coder", "deepseek-llm"] {
        assert_eq!(ids(pre, &["1", "2", "12"], &[("1", "2")], "12"), [0, 1], "{pre}");
    }
    // A file from before there were names: llama.cpp's default, which sets marks apart and takes digits by threes.
    let old = GgufTokenizer { pre: None, ..bpe("", &["1", "2", "!", "12", "1!"], &[("1", "2"), ("1", "!")]) };
    assert_eq!(of(&old).encode("121!").unwrap(), of(&GgufTokenizer { pre: Some("default".into()), ..old }).encode("121!").unwrap());
    for pre in ["nonsense", "", "GPT-2", "gemma4", "kimi-k2", "superbpe", "roberta-bpe"] {
        let e = TokenizerFile::from_gguf(&bpe(pre, &["a"], &[])).unwrap_err();
        assert!(e.is_argument() && e.to_string().contains(&format!("`tokenizer.ggml.pre` is `{pre}`")), "{e}");
        assert!(e.to_string().starts_with("tokenizer: ") && e.location().unwrap().file().ends_with("user_tokenizers.rs"), "{e}");
    }
}

/// The characters that stand for the bytes of a text in byte-level tables.
fn byte_level(text: &str) -> String {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let others: Vec<u8> = (0..=255).filter(|b| !printable(*b)).collect();
    let one = |b: u8| match others.iter().position(|o| *o == b) {
        Some(i) => char::from_u32(256 + i as u32).unwrap(),
        None => char::from(b),
    };
    text.bytes().map(one).collect()
}

/// The pieces that a text is cut into: every piece of it is a token, and all neighbours merge.
fn pieces(pre: &str, text: &str) -> Vec<String> {
    let shown: Vec<char> = byte_level(text).chars().collect();
    let part = |a: usize, b: usize| shown[a..b].iter().collect::<String>();
    let (mut tokens, mut merges) = (BTreeSet::new(), BTreeSet::new());
    for a in 0..shown.len() {
        for b in a + 1..=shown.len().min(a + 16) {
            tokens.insert(part(a, b));
            merges.extend((a + 1..b).map(|cut| (part(a, cut), part(cut, b))));
        }
    }
    let tokens: Vec<String> = tokens.into_iter().collect();
    let tables = GgufTokenizer { types: vec![1; tokens.len()], tokens, merges: merges.into_iter().collect(), ..bpe(pre, &[], &[]) };
    let t = of(&tables);
    let ids = t.encode(text).unwrap();
    // A piece may end within a character nowhere.
    ids.iter().map(|id| t.decode(&[*id]).unwrap()).collect()
}

/// Pieces by the patterns of llama.cpp, run by another engine (Python's `regex`).
#[test]
fn pieces_are_those_of_the_patterns() {
    const TEXT: &str = "It's 12345 fooBar(a,b) I'LL   x\n\n  1/2!\r\n né, 世界 don't+=7";
    let want: Value = serde_json::from_str(include_str!("../fixtures/tokenizer/pieces.json")).unwrap();
    let want = want.as_object().unwrap();
    assert!(want.len() >= 20);
    for (pre, pieces_of) in want {
        let want: Vec<&str> = pieces_of.as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        assert_eq!(pieces(pre, TEXT), want, "{pre}");
    }
    assert_eq!(pieces("deepseek-v3", "1234"), ["123", "4"]);
}

/// Names that share a rule, and those that nothing else here runs: all make a tokenizer.
#[test]
fn every_known_name_makes_a_tokenizer() {
    let e = TokenizerFile::from_gguf(&bpe("nonsense", &["a"], &[])).unwrap_err().to_string();
    let known: Vec<&str> = e.split("known are ").nth(1).unwrap().split(", ").map(|n| n.split(' ').next().unwrap()).collect();
    assert!(known.len() > 60 && known.contains(&"llama-bpe"), "{known:?}");
    for pre in known {
        let t = of(&bpe(pre, &["a", "b", "ab", "1"], &[("a", "b")]));
        assert_eq!(t.encode("ab1").unwrap().len(), 2, "{pre}");
    }
}

/// A token that ends prompts, where the file asks for it; by both algorithms.
#[test]
fn prompts_end_as_the_file_says() {
    let two = |model: &str| GgufTokenizer {
        model: model.into(),
        bos: Some(0),
        eos: Some(1),
        add_space_prefix: Some(false),
        scores: if model == "llama" { vec![0.0; 4] } else { Vec::new() },
        ..bpe("gpt-2", &["<s>", "</s>", "a", "b"], &[])
    };
    for model in ["gpt2", "llama"] {
        for (add_bos, add_eos, want) in [
            (Some(true), Some(true), vec![0, 2, 1]),
            (Some(false), Some(true), vec![2, 1]),
            (Some(true), Some(false), vec![0, 2]),
            (Some(true), None, vec![0, 2]),
            (Some(false), None, vec![2]),
        ] {
            let t = of(&GgufTokenizer { add_bos, add_eos, ..two(model) });
            assert_eq!(t.encode_prompt("a").unwrap(), want, "{model} {add_bos:?} {add_eos:?}");
            assert_eq!(t.encode("a").unwrap(), [2]);
        }
    }
    // SentencePiece's own numbers where the file has none.
    let bare = GgufTokenizer { bos: None, eos: None, ..two("llama") };
    assert_eq!((of(&bare).encode_prompt("a").unwrap(), bare.end_tokens()), (vec![1, 2], vec![2, 1]));
}

/// Every token that ends an answer, by key and by text.
#[test]
fn all_ends_are_ends() {
    let base = bpe("llama-bpe", &["a", "<e>", "<t>", "<m>", "b"], &[]);
    let keys = GgufTokenizer { eos: Some(1), eot: Some(2), eom: Some(3), ..base.clone() };
    assert_eq!(keys.end_tokens(), [1, 2, 3]);
    let texts = ["a", "<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "</s>"];
    assert_eq!(GgufTokenizer { eos: Some(5), ..bpe("qwen2", &texts, &[]) }.end_tokens(), [5, 1, 2, 3, 4, 6, 7]);
    // Of code: a file's border ends an answer.
    assert_eq!(bpe("qwen2", &["a", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"], &[]).end_tokens(), [1, 2, 3]);
    assert_eq!(GgufTokenizer { fill_in: [Some(4), None, None], ..base.clone() }.end_tokens(), [4]);
    // Where answers have parts, the end of one is no end.
    assert_eq!(bpe("gpt-4o", &["<|return|>", "<|call|>", "<|end|>"], &[]).end_tokens(), [0, 1]);
    assert_eq!(bpe("gpt-4o", &["<|flush|>", "<|calls|>", "<|end|>"], &[]).end_tokens(), [0, 1]);
    assert_eq!(bpe("gpt-4o", &["x", "<|call|>", "<|end|>"], &[]).end_tokens(), [1, 2]);
    assert_eq!(bpe("gpt-4o", &["<|tool_response>", "</s>"], &[]).end_tokens(), [0]);
    assert!(base.end_tokens().is_empty());
    // A text that ends an answer is one token, whatever type the file gives it.
    let plain = GgufTokenizer { types: vec![1; 3], ..bpe("qwen2", &["a", "<|im_end|>", "b"], &[]) };
    assert_eq!(of(&plain).encode("a<|im_end|>b").unwrap(), [0, 1, 2]);
}

fn qwen2() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/qwen2.tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn written(name: &str, value: &Value) -> TokenizerFile {
    let path = std::env::temp_dir().join(format!("cotangent-user-{name}-{}.json", std::process::id()));
    std::fs::write(&path, value.to_string()).unwrap();
    let t = TokenizerFile::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    t
}

/// What a `tokenizer.json` keeps from training does nothing here, as in transformers.
#[test]
fn nothing_is_kept_from_training() {
    let long = "the quick brown fox jumps over the lazy dog and the other one ".repeat(5);
    let truncation = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    let fixed = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let longest =
        json!({"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 64, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let plain = written("plain", &qwen2());
    let want = (plain.encode(&long).unwrap(), plain.encode("a").unwrap());
    assert_eq!((want.0.len(), want.1.len()), (116, 1));
    for (name, truncation, padding) in [
        ("both", truncation.clone(), fixed.clone()),
        ("truncation", truncation, Value::Null),
        ("fixed", Value::Null, fixed),
        ("multiple", Value::Null, longest),
    ] {
        let mut v = qwen2();
        (v["truncation"], v["padding"]) = (truncation, padding);
        let t = written(name, &v);
        assert_eq!((t.encode(&long).unwrap(), t.encode("a").unwrap()), want, "{name}");
        assert_eq!((t.encode_prompt(&long).unwrap(), t.encode_prompt("a").unwrap()), want, "{name}");
    }
    // Merges that are left out at random, a means of training: always the same tokens.
    let mut v = qwen2();
    v["model"]["dropout"] = json!(0.5);
    let t = written("dropout", &v);
    for _ in 0..4 {
        assert_eq!(t.encode(&long).unwrap(), want.0);
    }
}

/// An id without a text decodes to nothing, as in tokenizers.
#[test]
fn ids_without_a_text_decode_to_nothing() {
    let t = written("ids", &qwen2());
    let size = t.vocabulary() as u32;
    assert_eq!(t.decode(&[5, size + 5, 6]).unwrap(), t.decode(&[5, 6]).unwrap());
    assert_eq!(t.decode(&[size, u32::MAX]).unwrap(), "");
    assert_eq!(t.decode(&[u32::MAX, 5]).unwrap(), t.decode(&[5]).unwrap());
    // As a stream: nothing is held back by it, and nothing lost.
    let mut stream = cotangent::models::TextStream::new(&[]);
    let parts: Vec<String> = [5, size + 5, 6].iter().map(|&id| stream.push(&t, id).unwrap()).collect();
    assert_eq!(parts.concat() + &stream.finish(&t).unwrap(), t.decode(&[5, 6]).unwrap());
}
