#!/usr/bin/env python3
"""Trains a tiny SentencePiece model on Shakespeare (public domain) and writes its tables as a GGUF file, and what
SentencePiece itself makes of some texts: tests/fixtures/tokenizer/sentencepiece.{gguf,json}.

    python scripts/sentencepiece_fixture.py TEXT        # needs sentencepiece and gguf
"""

import json
import sys
import tempfile
from pathlib import Path

import gguf
import sentencepiece as spm

OUT = Path(__file__).parent.parent / "tests/fixtures/tokenizer"
TEXTS = [
    "First Citizen:", "Before we proceed any further, hear me speak.", "hello world", "hello  world", "   three spaces before",
    "after   ", " ", "  ", "", "a", "A", "\n", "\n\n", "\t tab", "line one\nline two\r\nline three", "don't we'll they've", "naïve café",
    "Grüße aus Köln", "日本語のテキスト", "Привет, мир", "🙂", "🙂🙃 emoji 👩‍👩‍👧", "1234567890", "3.14159 and -2e-7", "x=y+z; // code",
    "if (a < b) { return a[i]; }", "ALL CAPITALS", "MiXeD cAsE", "the the the the", "supercalifragilisticexpialidocious",
    "▁ itself", "a▁b", "\u00a0no-break", "e\u0301 combining", "tail\u200b", "What say you, my lord? I pray thee, speak.",
    "zzzzzzzzzzzzzzzzzzzz", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "To be, or not to be: that is the question", "\u0000 nul", "½ ¼ ≠ ∞",
]


def main():
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "m")
        spm.SentencePieceTrainer.train(
            input=sys.argv[1], model_prefix=prefix, vocab_size=700, model_type="bpe", byte_fallback=True, character_coverage=0.9995,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
            allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2,
        )
        model = spm.SentencePieceProcessor(model_file=prefix + ".model")
    tokens, scores, types = [], [], []
    for i in range(model.vocab_size()):
        kind = 1
        if model.is_unknown(i):
            kind = 2
        elif model.is_control(i):
            kind = 3
        elif model.is_unused(i):
            kind = 5
        elif model.is_byte(i):
            kind = 6
        tokens.append(model.id_to_piece(i))
        scores.append(model.get_score(i))
        types.append(kind)
    w = gguf.GGUFWriter(OUT / "sentencepiece.gguf", "llama")
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(model.bos_id())
    w.add_eos_token_id(model.eos_id())
    w.add_unk_token_id(model.unk_id())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    cases = [{"text": t, "ids": model.encode(t), "decoded": model.decode(model.encode(t))} for t in TEXTS]
    text = json.dumps({"sentencepiece": {"cases": cases}}, ensure_ascii=True, indent=1)
    (OUT / "sentencepiece.json").write_text(text + "\n")


main()
