"""Writes tests/fixtures/sentence: a small BERT with the settings of several models of sentences, and what sentence-transformers makes of it.

    python scripts/sentence_fixture.py

needs torch, transformers and sentence-transformers 5 or later. The numbers are float32 of seeded weights, so another version may write other
last digits; the test compares to 1e-5.
"""

import json
import os
import shutil
import warnings

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

warnings.filterwarnings("ignore")
OUT = os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures", "sentence")
WORK = os.path.join(OUT, "work")
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the quick brown fox jumps over lazy dog query : passage and other one a".split()
TEXTS = ["The quick brown fox", "dog", "the lazy dog jumps over the other quick brown fox and one lazy dog", ""]


def flags(*on):
    names = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    return {"word_embedding_dimension": 16, **{f"pooling_mode_{n}": n in on for n in names}}


def case(pooling, *stages, sentence=None, prompts=None, dense=None):
    """The files of a folder beside the encoder: modules.json and what it names, in the forms that published models have."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [(f"{i + 2}_{s}", s) for i, s in enumerate(stages)]
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": sentence or {"max_seq_length": 16, "do_lower_case": False},
    }
    if prompts:
        files["config_sentence_transformers.json"] = prompts
    for path, kind in modules:
        if kind == "Dense":
            files[f"{path}/config.json"] = dense
    return files


DENSE = {"in_features": 16, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
IDENTITY = {"in_features": 16, "out_features": 16, "bias": False, "activation_function": "torch.nn.modules.linear.Identity", "use_residual": True}
CASES = {
    "mean": case(flags("mean_tokens")),
    "mean_normalized": case(flags("mean_tokens"), "Normalize"),
    "cls_normalized": case(flags("cls_token"), "Normalize"),
    "max": case(flags("max_tokens")),
    "mean_sqrt_len": case(flags("mean_sqrt_len_tokens")),
    "weightedmean": case(flags("weightedmean_tokens"), "Normalize"),
    "lasttoken": case(flags("lasttoken")),
    "joined": case(flags("cls_token", "mean_tokens", "max_tokens")),
    "named": case({"embedding_dimension": 16, "pooling_mode": ["lasttoken", "cls"], "include_prompt": True}, "Normalize"),
    "dense": case(flags("mean_tokens"), "Dense", "Normalize", dense=DENSE),
    "dense_residual": case(flags("cls_token"), "Normalize", "Dense", dense=IDENTITY),
    "short": case(flags("mean_tokens"), "Normalize", sentence={"max_seq_length": 6, "do_lower_case": False}),
    "prompt": case(flags("mean_tokens"), prompts={"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}),
    "prompt_left_out": case(
        {**flags("mean_tokens"), "include_prompt": False},
        prompts={"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    ),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(WORK)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24
    )
    model = BertModel(config, add_pooling_layer=False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    model.save_pretrained(OUT)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    fast.save_pretrained(OUT)
    expected = {}
    for name, files in CASES.items():
        folder = os.path.join(WORK, name)
        shutil.copytree(OUT, folder, ignore=shutil.ignore_patterns("work"))
        for path, value in files.items():
            os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
            with open(os.path.join(folder, path), "w") as f:
                json.dump(value, f)
            if value is DENSE or value is IDENTITY:
                weights = {"linear.weight": torch.randn(value["out_features"], 16) * 0.3}
                if value["bias"]:
                    weights["linear.bias"] = torch.randn(value["out_features"])
                save_file(weights, os.path.join(folder, os.path.dirname(path), "model.safetensors"))
                os.makedirs(os.path.join(OUT, name), exist_ok=True)
                save_file(weights, os.path.join(OUT, name, "dense.safetensors"))
        s = SentenceTransformer(folder, device="cpu")
        expected[name] = {"files": files, "vectors": s.encode(TEXTS).tolist(), "max_seq_length": s.max_seq_length}
    shutil.rmtree(WORK)
    with open(os.path.join(OUT, "expected.json"), "w") as f:
        json.dump({"texts": TEXTS, "cases": expected}, f)
        f.write("\n")


main()
