#!/usr/bin/env python3
"""Regenerates tests/fixtures/layers.safetensors: PyTorch's recurrent layers, attention over a memory and transformer layers in float64.

    python3 scripts/update_layer_fixtures.py

Needs torch. Each case CASE holds `CASE.param.NAME` under PyTorch's names, `CASE.in.NAME`, `CASE.out.NAME`, `CASE.weight.NAME` (the loss is the
sum of each output times its weight) and `CASE.grad.NAME` for every parameter and float input.
"""
import struct
from pathlib import Path

import torch
from tensor_files import write
from torch import nn

torch.manual_seed(11)
torch.set_default_dtype(torch.float64)
FILE = {}


def store(name, t):
    t = t.detach().contiguous()
    kind, code = {torch.float64: ("F64", "d"), torch.int64: ("I64", "q"), torch.uint8: ("U8", "B")}[t.dtype]
    values = t.flatten().tolist()
    FILE[name] = (kind, list(t.shape), struct.pack(f"<{len(values)}{code}", *values))


def case(name, module, inputs, run, kept=()):
    """`inputs` get gradients; `kept` are integers and masks. `run` gives the outputs by name."""
    inputs = {n: t.requires_grad_() for n, t in inputs.items()}
    for p in module.parameters():
        # Biases that start at 0 and norms that start at 1 would hide a missing one.
        with torch.no_grad():
            p.add_(0.1 * torch.randn_like(p))
    outputs = run(module, **inputs)
    loss = 0
    for n, y in outputs.items():
        w = torch.randn_like(y)
        store(f"{name}.out.{n}", y)
        store(f"{name}.weight.{n}", w)
        loss = loss + (y * w).sum()
    loss.backward()
    for n, p in module.named_parameters():
        store(f"{name}.param.{n}", p)
        store(f"{name}.grad.{n}", p.grad)
    for n, t in inputs.items():
        store(f"{name}.in.{n}", t)
        store(f"{name}.grad.in.{n}", t.grad)
    for n, t in dict(kept).items():
        store(f"{name}.in.{n}", t)


B, T, I, H = 3, 5, 4, 3
LENGTHS = torch.tensor([5, 2, 3])


def packed(m, x, *state):
    seq = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    y, last = m(seq, *state)
    return nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], last


for layers, two in [(1, False), (2, False), (2, True)]:
    shape = (layers * (1 + two), B, H)
    options = dict(num_layers=layers, bidirectional=two, batch_first=True)
    tag = f"{layers}{'b' if two else ''}"

    def lstm(m, x, h=None, c=None, lengths=False):
        state = () if h is None else ((h, c),)
        y, (h, c) = packed(m, x, *state) if lengths else m(x, *state)
        return {"y": y, "h": h, "c": c}

    def gru(m, x, h=None, lengths=False):
        state = () if h is None else (h,)
        y, h = packed(m, x, *state) if lengths else m(x, *state)
        return {"y": y, "h": h}

    x = lambda: torch.randn(B, T, I)
    h = lambda: torch.randn(shape)
    case(f"lstm{tag}", nn.LSTM(I, H, **options), {"x": x(), "h": h(), "c": h()}, lstm)
    case(f"gru{tag}", nn.GRU(I, H, **options), {"x": x(), "h": h()}, gru)
    case(f"rnn{tag}", nn.RNN(I, H, **options), {"x": x(), "h": h()}, gru)
    case(f"lstm{tag}zero", nn.LSTM(I, H, **options), {"x": x()}, lstm)
    kept = {"lengths": LENGTHS}
    case(f"lstm{tag}packed", nn.LSTM(I, H, **options), {"x": x(), "h": h(), "c": h()}, lambda m, **k: lstm(m, **k, lengths=True), kept)
    case(f"gru{tag}packed", nn.GRU(I, H, **options), {"x": x(), "h": h()}, lambda m, **k: gru(m, **k, lengths=True), kept)

E_, HEADS, S = 8, 2, 4
PADDING = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.uint8)  # 1: a key
MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.uint8)  # 1: attend


def cross(m, x, memory, **options):
    return {"y": m(x, memory, memory, need_weights=False, **options)[0]}


x, memory = (lambda: torch.randn(B, T, E_)), (lambda width=E_: torch.randn(B, S, width))
case("cross", nn.MultiheadAttention(E_, HEADS, batch_first=True), {"x": x(), "memory": memory()}, cross)
case("cross_narrow", nn.MultiheadAttention(E_, HEADS, batch_first=True, kdim=6, vdim=6, bias=False), {"x": x(), "memory": memory(6)}, cross)
case(
    "cross_masked",
    nn.MultiheadAttention(E_, HEADS, batch_first=True),
    {"x": x(), "memory": memory()},
    lambda m, **k: cross(m, **k, key_padding_mask=PADDING == 0, attn_mask=MASK == 0),
    {"padding": PADDING, "mask": MASK},
)
OWN = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.uint8)
CAUSAL = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
for first in [False, True]:
    tag = "pre" if first else "post"
    options = dict(dim_feedforward=12, dropout=0.0, batch_first=True, norm_first=first)
    case(
        f"encoder_{tag}",
        nn.TransformerEncoderLayer(E_, HEADS, activation="gelu" if first else "relu", **options),
        {"x": x()},
        lambda m, x: {"y": m(x, src_key_padding_mask=OWN == 0)},
        {"padding": OWN},
    )
    case(
        f"decoder_{tag}",
        nn.TransformerDecoderLayer(E_, HEADS, **options),
        {"x": x(), "memory": memory()},
        lambda m, x, memory: {"y": m(x, memory, tgt_mask=CAUSAL, memory_key_padding_mask=PADDING == 0)},
        {"padding": PADDING},
    )

target = Path(__file__).resolve().parent.parent / "tests/fixtures/layers.safetensors"
write(target, FILE)
print(f"{target.name}: {len(FILE)} tensors, {target.stat().st_size} bytes")
