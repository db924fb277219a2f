//! A GGUF file's tables of tokens as a `tokenizer.json`.

use super::pre_tokenizer;
use crate::error::Result;
use crate::io::GgufTokenizer;
use crate::memory;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Characters of a token beyond which nobody asks which pairs make it: pieces of words are short, and every cut is looked at.
const LONGEST_PIECE: usize = 256;

/// Byte-level BPE with its merges: GPT-2, Qwen2, Llama 3.
pub(super) fn byte_level(t: &GgufTokenizer) -> Result<Value> {
    let pre = pre_tokenizer::named(t.pre.as_deref())?;
    room_for(t, t.merges.len())?;
    let cut = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let mut cuts: Vec<Value> = pre.cut.iter().map(cut).collect();
    cuts.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}));
    let merges: Vec<[&str; 2]> = t.merges.iter().map(|(a, b)| [a.as_str(), b.as_str()]).collect();
    Ok(json!({
        "version": "1.0",
        "added_tokens": added(t),
        "normalizer": if pre.composed { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "post_processor": ends(t, t.bos, pre.add_bos),
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary(t), "merges": merges, "ignore_merges": pre.ignore_merges},
    }))
}

/// SentencePiece's BPE with bytes for what has no token: Llama 1 and 2, Mistral. Spaces are `▁`, one of them precedes a text, and
/// of two neighbours that make a token those are joined first whose token has the highest score.
pub(super) fn sentence_piece(t: &GgufTokenizer) -> Result<Value> {
    let merges = merges_by_score(t)?;
    room_for(t, merges.len())?;
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
    Ok(json!({
        "version": "1.0",
        "added_tokens": added(t),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        // What begins texts is token 1 where the file does not say, as in SentencePiece.
        "post_processor": ends(t, t.bos.or(Some(1)), true),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "vocab": vocabulary(t), "merges": merges, "fuse_unk": true, "byte_fallback": true,
            "unk_token": unknown.and_then(|id| t.tokens.get(id as usize)), "ignore_merges": false},
    }))
}

/// Error unless there is memory for the tables as JSON, as its text, and in the crate `tokenizers`, which ask for none: an entry has
/// places in maps of each, and a merge two texts.
fn room_for(t: &GgufTokenizer, merges: usize) -> Result<()> {
    let bytes: usize = t.tokens.iter().map(String::len).sum();
    memory::ensure(bytes.saturating_mul(8).saturating_add((t.tokens.len() + merges).saturating_mul(900)))
}

fn vocabulary(t: &GgufTokenizer) -> Map<String, Value> {
    t.tokens.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect()
}

/// What is found in texts as it is: 2 is the unknown token, 3 a control token, 4 one that its users defined. A token that ends texts is
/// a control token whatever the file calls it.
fn added(t: &GgufTokenizer) -> Vec<Value> {
    let ends = t.end_tokens();
    let token = |(id, text): (usize, &String)| {
        let kind = t.types.get(id).copied().unwrap_or(1);
        let kind = if ends.contains(&(id as u32)) && kind != 4 { 3 } else { kind };
        matches!(kind, 2..=4).then(|| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": kind != 4})
        })
    };
    t.tokens.iter().enumerate().filter_map(token).collect()
}

/// The tokens that prompts begin and end with, where the file asks for them; `usual` is whether they begin with one where it does not say.
fn ends(t: &GgufTokenizer, bos: Option<u32>, usual: bool) -> Value {
    let token = |id: Option<u32>, wanted: bool| id.filter(|_| wanted).and_then(|id| Some((id, t.tokens.get(id as usize)?)));
    let first = token(bos, t.add_bos.unwrap_or(usual));
    let last = token(t.eos, t.add_eos.unwrap_or(false));
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(u32, &String)>| token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": 0}}));
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = [special(first), Some(text), special(last)].into_iter().flatten().collect();
    let named = [first, last].into_iter().flatten();
    let tokens: Map<String, Value> = named.map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
    json!({"type": "TemplateProcessing",
        "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": tokens})
}

/// Every pair of tokens that makes a token, by the score of what it makes: what SentencePiece decides by, as a list of merges.
fn merges_by_score(t: &GgufTokenizer) -> Result<Vec<[&str; 2]>> {
    memory::ensure(t.tokens.len().saturating_mul(4 * size_of::<(&str, usize)>()))?;
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
                memory::push(&mut pairs, (t.scores.get(id).copied().unwrap_or(0.0), id, *l, *r, [left, right]))?;
            }
        }
    }
    // Of equal scores the earlier token, as a list without scores would have it.
    pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    memory::try_collect(pairs.into_iter().map(|p| p.4))
}
