"""Writes folders and GGUF files of a model with Qwen2.5-0.5B's shape and random weights, for benches/generation.rs.

    python random_qwen.py FOLDER        # FOLDER/f32, FOLDER/bf16, FOLDER/q8_0.gguf, FOLDER/q4_0.gguf: 4 GB

Needs torch, transformers and gguf.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    """The name in GGUF of one of Hugging Face's."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def write_gguf(path, config, weights, kind):
    """Matrices in blocks of `kind`, the rest in f32."""
    w = gguf.GGUFWriter(path, "qwen2")
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(1e6)
    for name, t in weights.items():
        a = t.float().numpy()
        if a.ndim == 1:
            w.add_tensor(gguf_name(name), a)
        else:
            w.add_tensor(gguf_name(name), gguf.quantize(a, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    folder = Path(sys.argv[1])
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder / "f32", max_shard_size="4GB")
    weights = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    for name, kind in [("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)]:
        write_gguf(folder / f"{name}.gguf", config, weights, kind)
    model.to(torch.bfloat16).save_pretrained(folder / "bf16", max_shard_size="4GB")


if __name__ == "__main__":
    main()
