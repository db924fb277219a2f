#!/usr/bin/env python3
"""Copies the op fixtures that the tests need into tests/fixtures/ops, or malformed files into tests/fixtures/malformed.

usage: scripts/update_fixtures.py FOLDER
       scripts/update_fixtures.py --malformed FOLDER
       scripts/update_fixtures.py --models FOLDER

FOLDER holds one safetensors file per op (PyTorch's numbers in float64, attributes in the metadata).
Cases with a tensor of more than 64 K elements are left out, so that the repository stays small;
COTANGENT_FIXTURES=FOLDER replays all of them.

With --malformed, FOLDER holds manifest.json (per format a list of files and verdicts) and the files in a folder per format.

With --models, FOLDER holds gguf/ (a small model in several precisions, digests of its dequantized tensors in index.json, blocks of
every quantised type) and tiny-*/config*.json. The smallest model is copied; COTANGENT_GGUF=FOLDER/gguf tests all of them.
"""
import json
import pathlib
import struct
import sys

LIMIT = 64 * 1024


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    cases = json.loads(metadata["cases"])

    def elements(entry):
        n = 1
        for extent in entry["shape"]:
            n *= extent
        return n

    def case_of(name):
        return name.rsplit(".", 2)[0]

    large = {case_of(name) for name, entry in header.items() if elements(entry) > LIMIT}
    metadata["cases"] = json.dumps({k: v for k, v in cases.items() if k not in large}, sort_keys=True)
    kept, body = {}, b""
    for name, entry in sorted(header.items()):
        if case_of(name) in large:
            continue
        start, end = entry["data_offsets"]
        kept[name] = dict(entry, data_offsets=[len(body), len(body) + end - start])
        body += data[8 + length + start : 8 + length + end]
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **kept}).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + body)
    print(f"{target.name}: {len(cases) - len(large)} of {len(cases)} cases, {target.stat().st_size} bytes")


def copy_malformed(source: pathlib.Path, target: pathlib.Path, format: str) -> None:
    """The files of a format, and their verdicts in one small list. Rows of `FORMAT_hparams` are files of that format too."""
    target = target / format
    target.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((source / "manifest.json").read_text())
    rows = manifest[format] + manifest.get(f"{format}_hparams", [])
    verdicts = {row["file"]: {"verdict": row["verdict"], "why": row["why"]} for row in rows}
    for name in verdicts:
        (target / name).write_bytes((source / format / name).read_bytes())
    (target / "verdicts.json").write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n")
    print(f"{format}: {len(verdicts)} files")


def copy_models(source: pathlib.Path, target: pathlib.Path) -> None:
    """The smallest GGUF model with its digests, the quantised blocks, and configurations."""
    (target / "gguf").mkdir(parents=True, exist_ok=True)
    model = "tiny-qwen2-Q4_0.gguf"
    for name in (model, model.replace(".gguf", ".expected.safetensors"), "quant_blocks.safetensors"):
        (target / "gguf" / name).write_bytes((source / "gguf" / name).read_bytes())
    tensors = json.loads((source / "gguf" / "index.json").read_text())[model]["tensors"]
    index = {model: {"tensors": tensors}}
    (target / "gguf" / "index.json").write_text(json.dumps(index, sort_keys=True) + "\n")
    for config in sorted(source.glob("tiny-*/*config*.json")):
        folder = target / "config" / config.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / config.name).write_bytes(config.read_bytes())


def main() -> None:
    fixtures = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
    if len(sys.argv) == 3 and sys.argv[1] == "--malformed":
        for format in ("safetensors", "gguf"):
            copy_malformed(pathlib.Path(sys.argv[2]), fixtures / "malformed", format)
        return
    if len(sys.argv) == 3 and sys.argv[1] == "--models":
        copy_models(pathlib.Path(sys.argv[2]), fixtures)
        return
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = fixtures / "ops"
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
        copy(source, target / source.name)


if __name__ == "__main__":
    main()
