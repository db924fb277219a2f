#!/usr/bin/env python3
"""PyTorch's time of the ops that benches/ops.rs has timed on a device, on the same card.

    COTANGENT_BENCH_DEVICE=cuda:0 COTANGENT_BENCH_CSV=ops.csv cargo bench --bench ops
    python3 benches/peers/torch_ops.py ops.csv [--out peers.csv]

Reads op, shapes, dtype and direction of every line and times the same in PyTorch: CUDA events, the L2 cache flushed before each
run, random data, medians. Without a GPU it times the host's clock on the CPU, so that the script itself can be tried anywhere.
Lines whose op has no counterpart here are listed at the end, not left out silently. `ratio` is our time divided by PyTorch's.
"""
import argparse
import csv
import re
import statistics
import sys
import time

import torch
import torch.nn.functional as F

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
torch.backends.cuda.matmul.allow_tf32 = False  # ours computes f32 in f32
torch.backends.cudnn.allow_tf32 = False
torch.manual_seed(0)


def unary(f):
    return lambda x: f(x[0])


def binary(f):
    return lambda x: f(x[0], x[1])


def sdpa(x):
    return F.scaled_dot_product_attention(x[0], x[1], x[2], is_causal=True, enable_gqa=x[0].shape[-3] != x[1].shape[-3])


# Ops by our name; each takes the list of operands. The axis is the last one where an op has one, as in our samples.
OPS = {
    **{n: unary(getattr(torch, n)) for n in ("abs ceil cos erf exp expm1 floor log log1p neg round rsqrt sigmoid sign sin sqrt square tanh".split())},
    **{n: binary(getattr(torch, n)) for n in "add sub mul div maximum minimum pow".split()},
    "recip": unary(torch.reciprocal),
    "relu": unary(F.relu),
    "silu": unary(F.silu),
    "softplus": unary(F.softplus),
    "elu": unary(F.elu),
    "gelu": unary(F.gelu),
    "gelu_tanh": unary(lambda x: F.gelu(x, approximate="tanh")),
    "softmax": unary(lambda x: torch.softmax(x, -1)),
    "log_softmax": unary(lambda x: torch.log_softmax(x, -1)),
    "logsumexp": unary(lambda x: torch.logsumexp(x, -1)),
    "sum": unary(lambda x: x.sum(-1)),
    "cumsum": unary(lambda x: x.cumsum(-1)),
    "dropout": unary(lambda x: F.dropout(x, 0.1)),
    "layer_norm": lambda x: F.layer_norm(x[0], x[0].shape[-1:], *x[1:3]),
    "rms_norm": lambda x: F.rms_norm(x[0], x[0].shape[-1:], x[1] if len(x) > 1 else None),
    "matmul": binary(torch.matmul),
    "linear": lambda x: F.linear(*x),
    "scaled_dot_product_attention": sdpa,
    "embedding": lambda x: F.embedding(x[1], x[0]),
    "cross_entropy": lambda x: F.cross_entropy(x[0].reshape(-1, x[0].shape[-1]), x[1].reshape(-1)),
}
# Operands that hold indices, and below what.
INDICES = {"embedding": (1, lambda s: s[0][0]), "cross_entropy": (1, lambda s: s[0][-1])}


def operands(op, shapes, dtype, grad):
    out = []
    for i, shape in enumerate(shapes):
        if op in INDICES and INDICES[op][0] == i:
            out.append(torch.randint(0, INDICES[op][1](shapes), shape, device=DEVICE))
            continue
        x = torch.randn(shape, device=DEVICE, dtype=torch.float32)
        if op in ("log", "log1p", "sqrt", "rsqrt", "pow"):
            x = x.abs() + 0.1
        out.append(x.to(dtype).requires_grad_(grad))
    return out


def seconds(f, flush):
    f()
    times, start = [], time.perf_counter()
    while len(times) < 5 or (len(times) < 50 and time.perf_counter() - start < 0.5):
        flush.add_(1.0)
        if CUDA:
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            f()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b) / 1e3)
        else:
            t = time.perf_counter()
            f()
            times.append(time.perf_counter() - t)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", help="what benches/ops.rs wrote")
    parser.add_argument("--out", help="CSV to write; default: standard output")
    args = parser.parse_args()
    flush = torch.zeros((64 << 20) if CUDA else (1 << 20), device=DEVICE)
    name = torch.cuda.get_device_name(0) if CUDA else "cpu"
    sink = open(args.out, "w", newline="") if args.out else sys.stdout
    out = csv.writer(sink)
    out.writerow(["op", "shapes", "dtype", "direction", "ours_us", "torch_us", "ratio", "device", "torch"])
    missing = set()
    with open(args.csv, newline="") as lines:
        for row in csv.DictReader(lines):
            op, shapes = row["op"], [[int(n) for n in re.findall(r"\d+", s)] for s in re.findall(r"\[([^\]]*)\]", row["shapes"])]
            if op not in OPS or row["dtype"] not in DTYPES:
                missing.add(op)
                continue
            backward = row["direction"] != "forward"
            try:
                x = operands(op, shapes, DTYPES[row["dtype"]], backward)
                wrt = [t for t in x if t.requires_grad]
                y = OPS[op](x)
                bar = torch.randn_like(y)
                if backward:
                    f = lambda: torch.autograd.grad(OPS[op](x), wrt, bar, allow_unused=True)
                else:
                    f = lambda: OPS[op](x)
                t = seconds(f, flush)
            except Exception as e:  # noqa: BLE001 (one op must not end the run)
                missing.add(f"{op} ({type(e).__name__}: {str(e).splitlines()[0]})")
                continue
            ours = float(row["median_us"])
            out.writerow([op, row["shapes"], row["dtype"], row["direction"], f"{ours:.2f}", f"{1e6 * t:.2f}", f"{ours / (1e6 * t):.3f}", name, torch.__version__])
            sink.flush()
    if missing:
        print("no counterpart in this script: " + ", ".join(sorted(missing)), file=sys.stderr)


if __name__ == "__main__":
    main()
