//! A GGUF file's tables of tokens as a `tokenizer.json`.

use crate::io::GgufTokenizer;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Characters of a token beyond which nobody asks which pairs make it: pieces of words are short, and every cut is looked at.
const LONGEST_PIECE: usize = 256;

/// Byte-level BPE with its merges: GPT-2, Qwen2, Llama 3.
pub(super) fn byte_level(t: &GgufTokenizer) -> Value {
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const LLAMA3: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]})
    };
    let (cut, normalizer) = match t.pre.as_deref() {
        Some("qwen2" | "deepseek-r1-qwen") => (split(QWEN2), json!({"type": "NFC"})),
        Some("llama-bpe" | "llama3" | "llama-v3") => (split(LLAMA3), Value::Null),
        _ => (json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}), Value::Null),
    };
    let merges: Vec<[&str; 2]> = t.merges.iter().map(|(a, b)| [a.as_str(), b.as_str()]).collect();
    json!({
        "version": "1.0",
        "added_tokens": added(t),
        "normalizer": normalizer,
        "pre_tokenizer": cut,
        "post_processor": beginning(t, false),
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary(t), "merges": merges, "ignore_merges": false},
    })
}

/// SentencePiece's BPE with bytes for what has no token: Llama 1 and 2, Mistral. Spaces are `▁`, one of them stands before a text, and
/// of two neighbours that make a token those are joined first whose token has the highest score.
pub(super) fn sentence_piece(t: &GgufTokenizer) -> Value {
    let prefix = t.add_space_prefix != Some(false);
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizers = if prefix { vec![json!({"type": "Prepend", "prepend": "▁"}), space] } else { vec![space] };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = t.unknown.or_else(|| t.types.iter().position(|k| *k == 2).map(|id| id as u32));
    json!({
        "version": "1.0",
        "added_tokens": added(t),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": beginning(t, true),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "vocab": vocabulary(t), "merges": merges_by_score(t), "fuse_unk": true, "byte_fallback": true,
            "unk_token": unknown.and_then(|id| t.tokens.get(id as usize)), "ignore_merges": false},
    })
}

fn vocabulary(t: &GgufTokenizer) -> Map<String, Value> {
    t.tokens.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect()
}

/// What is found in texts as it is: 2 is the unknown token, 3 a control token, 4 one that its users defined.
fn added(t: &GgufTokenizer) -> Vec<Value> {
    let token = |(id, text): (usize, &String)| {
        let kind = t.types.get(id).copied().unwrap_or(1);
        matches!(kind, 2..=4).then(|| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": kind != 4})
        })
    };
    t.tokens.iter().enumerate().filter_map(token).collect()
}

/// The token that prompts begin with, where the file asks for it, or does not say and it is usual.
fn beginning(t: &GgufTokenizer, usual: bool) -> Value {
    let bos = t.bos.filter(|_| t.add_bos.unwrap_or(usual)).and_then(|id| Some((id, t.tokens.get(id as usize)?)));
    bos.map_or(Value::Null, |(id, text)| {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}}})
    })
}

/// Every pair of tokens that makes a token, by the score of what it makes: what SentencePiece decides by, as a list of merges.
fn merges_by_score(t: &GgufTokenizer) -> Vec<[&str; 2]> {
    let ids: HashMap<&str, usize> = t.tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let mut pairs = Vec::new();
    for (id, text) in t.tokens.iter().enumerate() {
        let whole = !matches!(t.types.get(id).copied().unwrap_or(1), 1 | 4);
        if whole || text.len() > LONGEST_PIECE {
            continue;
        }
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                pairs.push((t.scores.get(id).copied().unwrap_or(0.0), id, *l, *r, [left, right]));
            }
        }
    }
    // Of equal scores the earlier token, as a list without scores would have it.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    pairs.into_iter().map(|p| p.4).collect()
}
