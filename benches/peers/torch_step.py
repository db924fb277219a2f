#!/usr/bin/env python3
"""The workloads of benches/step.rs in PyTorch, served in turns: see compare.py.

    THREADS=2 DTYPE=f32|bf16 MODE=eager|compile python3 benches/peers/torch_step.py gptbaby

block: a pre-norm block (B 4, T 128, width 256, 8 heads), gradients of input and weights. nanogpt (4 layers, width 128, 4 heads, T 64,
B 12, vocabulary 65, no bias, erf GELU), gptbaby (6 layers, width 384, 6 heads, T 256, B 8, vocabulary 65, biases, tanh GELU) and
gpt2 (12 layers, width 768, 12 heads, T 256, B 1, vocabulary 50257, biases, tanh GELU): full steps with AdamW, the first two with
clipping. DTYPE=bf16: mixed precision by autocast.
"""
import os
import sys

THREADS = int(os.environ.get("THREADS", "2"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
import torch
import torch.nn as nn
import torch.nn.functional as F
from turns import pytorch, serve

torch.set_num_threads(THREADS)
torch.manual_seed(0)
MODE = os.environ.get("MODE", "eager")
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[os.environ.get("DTYPE", "f32")]
CONFIGS = {
    "nanogpt": dict(layers=4, width=128, heads=4, time=64, batch=12, vocab=65, bias=False, tanh=False),
    "gptbaby": dict(layers=6, width=384, heads=6, time=256, batch=8, vocab=65, bias=True, tanh=True),
    "gpt2": dict(layers=12, width=768, heads=12, time=256, batch=1, vocab=50257, bias=True, tanh=True, clips=False),
}


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        w, b = c["width"], c["bias"]
        self.heads, self.tanh = c["heads"], c["tanh"]
        self.ln_1, self.ln_2 = nn.LayerNorm(w, bias=b), nn.LayerNorm(w, bias=b)
        self.c_attn, self.proj = nn.Linear(w, 3 * w, bias=b), nn.Linear(w, w, bias=b)
        self.c_fc, self.c_proj = nn.Linear(w, 4 * w, bias=b), nn.Linear(4 * w, w, bias=b)

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = (z.view(n, t, self.heads, w // self.heads).transpose(1, 2) for z in self.c_attn(self.ln_1(x)).split(w, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, w))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh" if self.tanh else "none"))


class Gpt(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(c["vocab"], c["width"]), nn.Embedding(c["time"], c["width"])
        self.h = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.ln_f = nn.LayerNorm(c["width"], bias=c["bias"])
        for p in self.parameters():
            if p.dim() >= 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.t()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def mixed(f):
    """A function under autocast, where it is asked for."""

    def call(*x):
        with torch.autocast("cpu", torch.bfloat16, enabled=DTYPE == torch.bfloat16):
            return f(*x)

    return call


def block():
    model = Block(dict(width=256, heads=8, bias=True, tanh=True))
    x, weights = torch.randn(4, 128, 256, requires_grad=True), torch.randn(4, 128, 256)
    loss_of = lambda x: (model(x) * weights).sum()
    loss_of = mixed(torch.compile(loss_of) if MODE == "compile" else loss_of)

    def step():
        model.zero_grad(set_to_none=True)
        x.grad = None
        loss_of(x).backward()

    return step


def training(c):
    model = Gpt(c)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    loss_of = mixed(torch.compile(model) if MODE == "compile" else model)
    tokens = torch.randint(0, c["vocab"], (c["batch"], c["time"]))
    targets = torch.randint(0, c["vocab"], (c["batch"], c["time"]))

    def step():
        adam.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        if c.get("clips", True):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return loss.item()

    return step


if __name__ == "__main__":
    serve(block() if sys.argv[1] == "block" else training(CONFIGS[sys.argv[1]]), pytorch(DTYPE))
