"""MAML (Finn, Abbeel & Levine 2017): weights from which one step of descent learns any sine from ten points."""

import math
import random
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


class Sine:
    """One task."""

    def __init__(self):
        self.amplitude = random.uniform(0.1, 5.0)
        self.phase = random.uniform(0.0, math.pi)

    def points(self, count):
        x = torch.empty(count, 1).uniform_(-5.0, 5.0)
        return x, self.amplitude * torch.sin(x + self.phase)


net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def loss(params, points):
    x, y = points
    return F.mse_loss(functional_call(net, params, x), y)


def adapt(params, points, first_order):
    """One step of descent, which an outer gradient passes through."""
    grads = torch.autograd.grad(loss(params, points), params.values(), create_graph=not first_order)
    return {name: p - 0.05 * g for (name, p), g in zip(params.items(), grads)}


def meta_loss(params, tasks, first_order):
    """What is lost after a step on ten points of each task, on ten others."""
    losses = [loss(adapt(params, task.points(10), first_order), task.points(10)) for task in tasks]
    return torch.stack(losses).mean()


def train(steps, first_order):
    params = dict(net.named_parameters())
    optimizer = torch.optim.Adam(params.values(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        meta_loss(params, [Sine() for _ in range(4)], first_order).backward()
        optimizer.step()
    return params


if __name__ == "__main__":
    torch.manual_seed(1)
    random.seed(1)
    params = train(steps=600, first_order=False)
    tasks = [Sine() for _ in range(100)]
    before = sum(loss(params, task.points(10)).item() for task in tasks) / 100
    print(f"before a step {before:.3f}, after it {meta_loss(params, tasks, True).item():.3f}")
