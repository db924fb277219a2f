//! `tokenizer.json` against the reference's cases, streaming among them; the tokenizer that a GGUF file carries.

use cotangent::io::GgufFile;
use cotangent::models::TextStream;
use cotangent::train::{Tokenizer, TokenizerFile};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer")
}

fn cases(name: &str) -> Vec<(String, Vec<u32>, String)> {
    let own = folder().join(format!("{name}.json"));
    let file = if own.exists() { own } else { folder().join("cases.json") };
    let all: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    all[name]["cases"].as_array().unwrap().iter().map(|c| (text(&c["text"]), ids(&c["ids"]), text(&c["decoded"]))).collect()
}

fn check(tokenizer: &dyn Tokenizer, name: &str, size: usize) {
    let cases = cases(name);
    for (text, ids, decoded) in &cases {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
        assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{name}: {text:?}");
        // As a stream: the same text, whole characters only.
        let mut stream = TextStream::new(&[]);
        let mut parts: Vec<String> = ids.iter().map(|&t| stream.push(tokenizer, t).unwrap()).collect();
        parts.push(stream.finish(tokenizer).unwrap());
        assert_eq!(&parts.concat(), decoded, "{name}: {text:?}");
        if !decoded.contains('\u{fffd}') {
            assert!(parts.iter().all(|p| !p.contains('\u{fffd}')), "{name}: {parts:?}");
        }
    }
    assert!(cases.len() >= 30 && tokenizer.vocabulary() == size, "{} cases, {}", cases.len(), tokenizer.vocabulary());
}

#[test]
fn tokenizer_files_give_the_references_ids_and_texts() {
    for (name, size) in [("gpt2", 512), ("qwen2", 1000)] {
        check(&TokenizerFile::open(folder().join(format!("{name}.tokenizer.json"))).unwrap(), name, size);
    }
}

/// The tables in a GGUF file are the same tokenizer.
#[test]
fn the_tokenizer_of_a_gguf_file_gives_the_same() {
    let file = GgufFile::open(folder().join("../gguf/tiny-qwen2-Q4_0.gguf")).unwrap();
    let tables = file.tokenizer().unwrap().unwrap();
    check(&TokenizerFile::from_gguf(&tables).unwrap().unwrap(), "qwen2", 1000);
    let other = cotangent::io::GgufTokenizer { model: "bert".to_owned(), ..tables };
    assert!(TokenizerFile::from_gguf(&other).unwrap().is_none());
}

/// Tables with scores: the ids and texts of SentencePiece itself; prompts begin with the token that begins texts.
#[test]
fn scores_give_sentence_pieces_ids_and_texts() {
    let tables = GgufFile::open(folder().join("sentencepiece.gguf")).unwrap().tokenizer().unwrap().unwrap();
    let tokenizer = TokenizerFile::from_gguf(&tables).unwrap().unwrap();
    check(&tokenizer, "sentencepiece", 700);
    let (text, ids, _) = cases("sentencepiece").remove(1);
    assert_eq!(tokenizer.encode_prompt(&text).unwrap(), [&[1], &ids[..]].concat());
    let bare = cotangent::io::GgufTokenizer { add_bos: Some(false), add_space_prefix: Some(false), ..tables };
    let bare = TokenizerFile::from_gguf(&bare).unwrap().unwrap();
    let (ids, with_space) = (bare.encode_prompt("speak").unwrap(), bare.encode_prompt(" speak").unwrap());
    assert_eq!((bare.decode(&ids).unwrap(), bare.decode(&with_space).unwrap()), ("speak".to_owned(), " speak".to_owned()));
    assert_eq!(with_space, tokenizer.encode("speak").unwrap());
    // A text that goes on keeps the space before its first word.
    let mut stream = TextStream::new(&[]).after(&tokenizer, *ids.last().unwrap());
    assert_eq!(stream.push(&tokenizer, with_space[0]).unwrap(), bare.decode(&with_space[..1]).unwrap());
}
