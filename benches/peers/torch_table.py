#!/usr/bin/env python3
"""The workloads of benches/table.rs in PyTorch, served in turns: see compare.py.

    THREADS=2 DTYPE=f32 MODE=eager|compile python3 benches/peers/torch_table.py softmax
"""
import os
import sys

THREADS = int(os.environ.get("THREADS", "2"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
import torch
import torch.nn.functional as F
from turns import pytorch, serve

torch.set_num_threads(THREADS)
torch.manual_seed(0)
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[os.environ.get("DTYPE", "f32")]
MODE = os.environ.get("MODE", "eager")


def r(*shape):
    return torch.randn(*shape).to(DTYPE).requires_grad_()


def both(f, *x):
    """Forward, and backward from random cotangents, to all float operands."""
    if MODE == "compile":
        f = torch.compile(f)
    seed = torch.randn_like(f(*x))
    wrt = [t for t in x if t.requires_grad]

    def run():
        for t in wrt:
            t.grad = None
        f(*x).backward(seed)

    return run


def adamw():
    """GPT-2's parameters and gradients: only the optimizer's step is timed."""
    c = 768
    shapes = [(50257, c), (256, c)] + 12 * [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,)] + [(c,), (c,)]
    p = [torch.randn(s).mul_(0.02).requires_grad_() for s in shapes]
    for t in p:
        t.grad = torch.randn_like(t) * 1e-3
    groups = [{"params": [t for t in p if t.dim() >= 2], "weight_decay": 0.1}, {"params": [t for t in p if t.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, fused=True).step


def workload(name):
    name, _, size = name.partition("@")
    size = int(size) if size else None
    width = size or 768
    if name == "attention":
        shape = (1 if size else 4, 12, size or 512, 64)
        return both(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), r(*shape), r(*shape), r(*shape))
    if name == "layer_norm":
        return both(lambda x, w, b: F.layer_norm(x, (width,), w, b), r(4096, width), r(width), r(width))
    if name == "rms_norm":
        return both(lambda x, w: F.rms_norm(x, (width,), w, 1e-5), r(4096, width), r(width))
    if name == "softmax":
        return both(lambda x: F.softmax(x, -1), r(4096, size or 1024))
    if name == "cross_entropy":
        return both(F.cross_entropy, r(1024, 50257), torch.randint(0, 50257, (1024,)))
    if name == "gelu":
        return both(F.gelu, r(1024, 4096))
    if name == "gelu_tanh":
        return both(lambda x: F.gelu(x, approximate="tanh"), r(1024, 4096))
    if name == "swiglu":
        return both(lambda a, b: F.silu(a) * b, r(1024, 4096), r(1024, 4096))
    if name == "add":
        return both(torch.add, r(1024, 4096), r(1024, 4096))
    if name == "mul":
        return both(torch.mul, r(1024, 4096), r(1024, 4096))
    if name == "embedding":
        return both(lambda w, i: F.embedding(i, w), r(50257, 768), torch.randint(0, 50257, (8192,)))
    if name == "linear":
        return both(F.linear, r(size or 1024, 768), r(3072, 768), r(3072))
    if name in ("linear_cross_entropy", "head_cross_entropy"):
        w = (r(50257, 768).detach() * 0.02).requires_grad_()
        return both(lambda x, w, t: F.cross_entropy(F.linear(x, w), t), r(512, 768), w, torch.arange(512))
    if name in ("adamw", "adamw_checked"):
        return adamw()
    if name in ("randn", "rand"):
        draw, n = getattr(torch, name), size or 1 << 20
        return lambda: draw(n, dtype=DTYPE)
    if name in ("select_loop", "unbind_loop"):
        time = size or 800
        parts = (lambda x: [x[:, t] for t in range(time)]) if name == "select_loop" else (lambda x: x.unbind(1))

        def along(x):
            total, *rest = parts(x)
            for part in rest:
                total = total + part
            return total

        return both(along, r(16, time, 128))
    if name == "conv3x3":
        channels = size or 64
        side = 56 * 64 // channels
        return both(lambda x, w: F.conv2d(x, w, padding=1), r(8, channels, side, side), r(channels, channels, 3, 3))
    if name == "conv1x1":
        return both(F.conv2d, r(8, 256, 56, 56), r(64, 256, 1, 1))
    if name == "depthwise":
        return both(lambda x, w: F.conv2d(x, w, padding=1, groups=144), r(8, 144, 56, 56), r(144, 1, 3, 3))
    if name == "conv1d":
        return both(lambda x, w: F.conv1d(x, w, stride=2), r(4, 512, 800), r(512, 512, 3))
    if name == "resnet18":
        from torchvision.models import resnet18

        net = resnet18().to(DTYPE).train()
        x, y = r(32, 3, 64, 64).detach(), torch.randint(0, 1000, (32,))

        def run():
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()

        return run
    if name.startswith("small_ops"):

        def chain(x, w):
            for _ in range(500):
                x = (x * w).tanh()
            return x

        if name == "small_ops":
            return both(chain, r(8), r(8))
        x, w = r(8).detach(), r(8).detach()
        return lambda: chain(x, w)
    raise SystemExit(f"no workload is named {name}")


if __name__ == "__main__":
    serve(workload(sys.argv[1]), pytorch(DTYPE))
