"""A character GPT after nanoGPT: trains on a page of text, is evaluated on its last tenth, and writes."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

STD = 0.1  # of layers as narrow as these; GPT-2, 24 times as wide, has 0.02


@dataclass
class Config:
    vocabulary: int
    context: int = 32
    layers: int = 2
    heads: int = 4
    width: int = 32
    dropout: float = 0.05


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.dropout = c.heads, c.dropout
        self.qkv = nn.Linear(c.width, 3 * c.width)
        self.out = nn.Linear(c.width, c.width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = nn.LayerNorm(c.width)
        self.attention = Attention(c)
        self.norm2 = nn.LayerNorm(c.width)
        self.up = nn.Linear(c.width, 4 * c.width)
        self.down = nn.Linear(4 * c.width, c.width)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class Gpt(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.context = c.context
        self.tokens = nn.Embedding(c.vocabulary, c.width)
        self.positions = nn.Embedding(c.context, c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(p, std=STD / math.sqrt(2 * c.layers))
            elif p.dim() >= 2:
                nn.init.normal_(p, std=STD)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids, targets=None):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.tokens.weight.T
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, ids, count, temperature, top_k):
        self.eval()
        for _ in range(count):
            logits = self(ids[:, -self.context :])[:, -1] / temperature
            smallest = logits.topk(top_k).values[:, -1:]
            probabilities = logits.masked_fill(logits < smallest, float("-inf")).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
        return ids


def get_batch(data, batch, context):
    starts = torch.randint(len(data) - context, (batch,)).tolist()
    x = torch.stack([data[i : i + context] for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + context] for i in starts])
    return x, y


@torch.no_grad()
def evaluate(model, data, context):
    model.eval()
    n = (len(data) - 1) // context
    x = data[: n * context].view(n, context)
    y = data[1 : n * context + 1].view(n, context)
    return model(x, y).item()


def learning_rate(step, peak, floor, warmup, end):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / (end - warmup), 1.0)
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)


def run(steps):
    torch.manual_seed(1)
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    characters = sorted(set(text))
    ids = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([ids[c] for c in text])
    n = len(data) * 9 // 10
    train, validation = data[:n], data[n:]

    config = Config(vocabulary=len(characters))
    model = Gpt(config)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step in range(steps):
        if step % 50 == 0:
            print(f"{step:>4} steps: validation loss {evaluate(model, validation, config.context):.3f}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 1e-2, 5e-4, 10, steps)
        model.train()
        x, y = get_batch(train, 8, config.context)
        optimizer.zero_grad()
        model(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    start = torch.tensor([[ids["\n"]]])
    sample = model.generate(start, 100, temperature=0.8, top_k=20)[0, 1:].tolist()
    return evaluate(model, validation, config.context), "".join(characters[i] for i in sample)


if __name__ == "__main__":
    loss, sample = run(120)
    print(f"validation loss {loss:.3f}\n{sample}")
