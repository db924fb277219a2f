"""A physics-informed network (Raissi, Perdikaris & Karniadakis 2019) solves the heat equation u_t = k u_xx on a rod."""

import math
import torch
from torch import nn

DIFFUSIVITY = 0.2


class Temperature(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t], -1))

    def residual(self, x, t):
        """What is left of the equation at each point."""
        x.requires_grad_()
        t.requires_grad_()
        u_x, u_t = torch.autograd.grad(self(x, t).sum(), (x, t), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        return u_t - DIFFUSIVITY * u_xx

    def loss(self, points):
        x, t = torch.rand(points, 1), torch.rand(points, 1)
        equation = self.residual(x, t).square().mean()
        start = (self(x, torch.zeros_like(t)) - torch.sin(math.pi * x)).square().mean()
        ends = self(torch.zeros_like(x), t).square().mean() + self(torch.ones_like(x), t).square().mean()
        return equation + 10 * (start + ends)


def train(steps):
    model = Temperature(width=20)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-2, total_steps=steps)
    for _ in range(steps):
        loss = model.loss(points=64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


if __name__ == "__main__":
    torch.manual_seed(1)
    model = train(steps=700)
    x, t = torch.rand(1000, 1), torch.rand(1000, 1)
    exact = torch.exp(-DIFFUSIVITY * math.pi**2 * t) * torch.sin(math.pi * x)
    print(f"off by at most {(model(x, t) - exact).abs().max():.4f}")
