#!/usr/bin/env python3
"""Regenerates tests/fixtures/replay from a folder of reference cases.

    python3 scripts/update_replay_fixtures.py FOLDER

FOLDER/replay holds a recorded PyTorch run (initial weights, token batches, losses, gradient norms, final weights).
Kept: the initial weights as they are, the training batches as bytes (the vocabulary has 65 characters), the curves, and
the final weights of a few tensors of different kinds. Needs nothing but Python.
"""
import sys
from array import array
from pathlib import Path

from tensor_files import read, write

FINAL = ["wpe.weight", "ln_f.weight", "h.0.attn.c_attn.weight", "h.3.mlp.c_proj.weight", "h.1.ln_2.weight"]


def main():
    source = Path(sys.argv[1]) / "replay"
    target = Path(__file__).resolve().parent.parent / "tests/fixtures/replay"
    target.mkdir(parents=True, exist_ok=True)
    write(target / "init.safetensors", read(source / "init.safetensors"))
    dtype, shape, raw = read(source / "batches.safetensors")["train_tokens"]
    assert dtype == "I32"
    write(target / "batches.safetensors", {"train_tokens": ("U8", shape, bytes(array("i", raw).tolist()))})
    expected = read(source / "expected.safetensors")
    keep = ["loss_f64", "grad_norm_f64"] + [f"final_f64.transformer.{n}" for n in FINAL]
    write(target / "expected.safetensors", {n: expected[n] for n in keep})


main()
