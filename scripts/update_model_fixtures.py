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
import math
import struct
import sys
from array import array
from pathlib import Path

from tensor_files import read, write

LIMIT = 2048
KEEP = ["input_ids", "targets", "logits", "loss_f64", "train.", "grad.", "adamw.", "hidden.", "l0.", "gen.", "leftpad.", "bf16.logits", "bf16.loss_f64"]


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
