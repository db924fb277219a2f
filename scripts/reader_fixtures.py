#!/usr/bin/env python3
"""Writes tests/fixtures/readers: files of NumPy, PyTorch and Pillow, with what is in them as JSON.

Needs numpy, torch and pillow: `pip install numpy torch pillow`, then `scripts/reader_fixtures.py`.
"""

import collections
import json
import pathlib

import numpy as np
import torch
from PIL import Image

out = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/readers"
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(7)
expected = {}


def note(name, array):
    array = np.asarray(array)
    # Floats as texts: readers of JSON may round a number in the last place.
    values = array.astype(np.float64 if array.dtype.kind == "f" else object).reshape(-1).tolist()
    expected[name] = {"shape": list(array.shape), "values": [int(v) if isinstance(v, (bool, int)) else repr(v) for v in values]}


# NumPy: every type, both byte orders, both memory orders, every header version, odd shapes.
ints = np.array([[1, -2, 3], [4, -5, 6]])
arrays = {}
for t in ["f8", "f4", "f2", "i1", "i2", "i4", "i8"]:
    arrays[t] = ints.astype("<" + t)
for t in ["u1", "u2", "u4", "u8"]:
    arrays[t] = np.abs(ints).astype("<" + t)
arrays["bool"] = ints > 0
arrays["big_f4"] = rng.standard_normal((3, 2)).astype(">f4")
arrays["big_i8"] = (ints * 2**40).astype(">i8")
arrays["fortran"] = np.asfortranarray(rng.standard_normal((2, 3, 4)).astype("<f4"))
arrays["scalar"] = np.float32(2.5)
arrays["empty"] = np.zeros((0, 3), np.float64)
arrays["one_axis"] = np.arange(5, dtype=np.int64)
for name, array in arrays.items():
    np.save(out / f"{name}.npy", array)
    note(f"{name}.npy", array)
with open(out / "version2.npy", "wb") as f:
    np.lib.format.write_array(f, ints.astype("<f4"), version=(2, 0))
with open(out / "version3.npy", "wb") as f:
    np.lib.format.write_array(f, ints.astype("<f4"), version=(3, 0))
for v in (2, 3):
    note(f"version{v}.npy", ints.astype("<f4"))
np.save(out / "refused_complex.npy", np.array([1 + 2j]))
np.save(out / "refused_text.npy", np.array(["a", "bc"]))
np.save(out / "refused_object.npy", np.array([{}, None]), allow_pickle=True)
np.save(out / "refused_record.npy", np.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", "<f4")]))
np.save(out / "refused_u64.npy", np.array([2**63], dtype=np.uint64))
np.savez(out / "stored.npz", x=arrays["f4"], y=arrays["u1"])
np.savez_compressed(out / "packed.npz", x=arrays["f4"], zeros=np.zeros(1000, np.float32))
note("packed.npz/zeros", np.zeros(1000, np.float32))

# PyTorch: a nested checkpoint with shared, strided and odd tensors; a whole module; other protocols; what is refused.
torch.manual_seed(3)
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2, bias=False))
base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
checkpoint = {
    "model": net.state_dict(),
    "step": 7,
    "lr": 1e-3,
    "name": "run",
    "views": [base, base.t(), base[1:3, ::2], base[2].expand(2, 6)],
    "types": {str(t).removeprefix("torch."): torch.tensor([1, 0, 3]).to(t)
              for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32,
                        torch.int64, torch.uint8, torch.bool, torch.uint16)},
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    "complex": torch.tensor([1 + 2j]),
    "sparse": torch.eye(2).to_sparse(),
    "ordered": collections.OrderedDict(a=torch.tensor([5])),
    4: torch.tensor([4.0]),
}
torch.save(checkpoint, out / "checkpoint.pt")
torch.save(net, out / "module.pt")
torch.save(net.state_dict(), out / "protocol4.pt", pickle_protocol=4)
torch.save(net.state_dict(), out / "legacy.pt", _use_new_zipfile_serialization=False)


def tensors(prefix, value):
    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_complex():
            return
        value = value.detach().contiguous()
        note(prefix, (value.float() if value.dtype == torch.bfloat16 else value).numpy())
    elif isinstance(value, dict):
        for k, v in value.items():
            tensors(f"{prefix}{'' if prefix.endswith('/') else '.'}{k}", v)
    elif isinstance(value, list):
        for i, v in enumerate(value):
            tensors(f"{prefix}.{i}", v)


tensors("checkpoint.pt/", checkpoint)
tensors("module.pt/", net.state_dict())
tensors("protocol4.pt/", net.state_dict())

# Images by Pillow.
picture = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
for name, mode, array in [("rgb.png", "RGB", picture[..., :3]), ("gray.png", "L", picture[..., 0]), ("rgba.png", "RGBA", picture),
                          ("rgb.bmp", "RGB", picture[..., :3]), ("gray.pgm", "L", picture[..., 0])]:
    Image.fromarray(np.ascontiguousarray(array), mode).save(out / name)
    note(name, array if array.ndim == 3 else array[..., None])
smooth = np.stack([np.add.outer(np.arange(16) * 8, np.arange(24) * 4)] * 3, -1).astype(np.uint8)
Image.fromarray(smooth, "RGB").save(out / "smooth.jpg", quality=95)
note("smooth.jpg", np.asarray(Image.open(out / "smooth.jpg")))
Image.fromarray(picture[..., 0], "L").save(out / "first.gif")
note("first.gif", np.asarray(Image.open(out / "first.gif").convert("RGB")))

(out / "expected.json").write_text(json.dumps(expected) + "\n")
print(sum(f.stat().st_size for f in out.iterdir()), "bytes in", len(list(out.iterdir())), "files")
