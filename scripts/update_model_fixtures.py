#!/usr/bin/env python3
"""Regenerates tests/fixtures/tiny-* from a folder of reference cases.

    python3 scripts/update_model_fixtures.py FOLDER

FOLDER/tiny-gpt2 and FOLDER/tiny-qwen2 hold model.safetensors and configurations as Hugging Face writes them (with the other forms
that files on its hub have: model.*.safetensors, config.v4.json) and fixture.safetensors with the
numbers of its model in float64: logits, loss, gradients, an optimizer step, training losses, generation, modules' values; FOLDER/tokenizer a tokenizer.json of each with cases. Kept: the weights,
and of fixture.safetensors what the tests compare with. Gradients, stepped weights and the logits of weights in bf16, where
they have more than LIMIT elements, are thinned: every k-th element of the flat tensor (k beside it as NAME.stride) and the norm of all (NAME.norm).
COTANGENT_FIXTURES=FOLDER compares with all of them. Needs nothing but Python.
"""
import json
import math
import struct
import sys
from array import array
from pathlib import Path

LIMIT = 2048
KEEP = ["input_ids", "targets", "logits", "loss_f64", "train.", "grad.", "adamw.", "hidden.", "l0.", "gen.", "leftpad.", "bf16.logits", "bf16.loss_f64"]


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


def thin(name, tensor):
    dtype, shape, raw = tensor
    count = math.prod(shape)
    if dtype != "F32" or count <= LIMIT or not name.startswith(("grad.", "adamw.", "bf16.")):
        return {name: tensor}
    values = array("f", raw)
    stride = -(-count // LIMIT)
    # Every column is to be met.
    while math.gcd(stride, shape[-1]) != 1:
        stride += 1
    kept = values[::stride]
    return {
        name: ("F32", [len(kept)], kept.tobytes()),
        f"{name}.stride": ("I64", [], struct.pack("<q", stride)),
        f"{name}.norm": ("F64", [], struct.pack("<d", math.sqrt(math.fsum(v * v for v in values)))),
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name in ["tiny-gpt2", "tiny-qwen2"]:
        source = Path(sys.argv[1]) / name
        target = Path(__file__).resolve().parent.parent / "tests/fixtures" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.glob("model*.safetensors")) + sorted(source.glob("config*.json")):
            (target / file.name).write_bytes(file.read_bytes())
        kept = {}
        for tensor, value in read(source / "fixture.safetensors").items():
            if tensor.startswith(tuple(KEEP)):
                kept.update(thin(tensor, value))
        write(target / "fixture.safetensors", kept)
        print(f"{name}: {sum(f.stat().st_size for f in target.iterdir())} bytes")
    target = Path(__file__).resolve().parent.parent / "tests/fixtures/tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted((Path(sys.argv[1]) / "tokenizer").glob("*.json")):
        (target / file.name).write_bytes(file.read_bytes())


main()
