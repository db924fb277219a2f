"""A mixture of experts reads handwritten digits: a router sends each image to two of eight experts."""

from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Moe(nn.Module):
    def __init__(self, width, hidden, experts, top_k):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )

    def forward(self, x):
        """Rows to rows, and the load balancing loss: 1 where all experts are used alike."""
        probabilities = self.router(x).softmax(-1)
        weights, chosen = probabilities.topk(self.top_k)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == e)
            if len(rows) > 0:
                y = y.index_add(0, rows, weights[rows, places, None] * expert(x[rows]))
        count = len(self.experts)
        used = F.one_hot(chosen, count).float().mean((0, 1))
        balance = count * (used * probabilities.mean(0)).sum()
        return y, balance


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 32)
        self.moe = Moe(width=32, hidden=32, experts=8, top_k=2)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        y, balance = self.moe(self.embed(images.flatten(1)))
        return self.head(self.norm(y)), balance


def run(steps):
    torch.manual_seed(1)
    digits = np.load(Path(__file__).parents[3] / "examples" / "data" / "digits.npz")
    images = torch.tensor(digits["images"]).float() / 16
    labels = torch.tensor(digits["labels"])
    order = torch.randperm(len(images))
    train, test = order[:-360], order[-360:]

    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        rows = train[torch.randint(len(train), (64,))]
        scores, balance = model(images[rows])
        loss = F.cross_entropy(scores, labels[rows]) + 0.01 * balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, balance {balance.item():.3f}")
    with torch.no_grad():
        scores, balance = model(images[test])
    return (scores.argmax(-1) == labels[test]).float().mean().item(), balance.item()


if __name__ == "__main__":
    accuracy, balance = run(300)
    print(f"accuracy {accuracy:.3f}, balance {balance:.3f}")
