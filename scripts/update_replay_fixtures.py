#!/usr/bin/env python3
"""Regenerates tests/fixtures/replay from a folder of reference cases.

    python3 scripts/update_replay_fixtures.py FOLDER

FOLDER/replay holds a recorded PyTorch run (initial weights, token batches, losses, gradient norms, final weights).
Kept: the initial weights as they are, the training batches as bytes (the vocabulary has 65 characters), the curves, and
the final weights of a few tensors of different kinds. Needs nothing but Python.
"""
import json
import struct
import sys
from array import array
from pathlib import Path

FINAL = ["wpe.weight", "ln_f.weight", "h.0.attn.c_attn.weight", "h.3.mlp.c_proj.weight", "h.1.ln_2.weight"]


def read(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    return {n: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for n, t in header.items()}


def write(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in sorted(tensors.items(), key=lambda t: (-len(t[1][2]) % 8, t[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


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
