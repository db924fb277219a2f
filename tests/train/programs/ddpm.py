"""Denoising diffusion (Ho, Jain & Abbeel 2020) of points on two moons."""

import math
import torch
from torch import nn
from torch.nn import functional as F


def two_moons(count):
    """Points on two half circles that reach into each other, and a little noise."""
    angle = math.pi * torch.rand(count)
    upper = (torch.rand(count) < 0.5).float()
    x = upper * angle.cos() + (1 - upper) * (1 - angle.cos())
    y = upper * angle.sin() + (1 - upper) * (0.5 - angle.sin())
    return torch.stack([x - 0.5, y - 0.25], -1) * 1.5 + 0.05 * torch.randn(count, 2)


def embed(x, width):
    """Sines and cosines of each number at several frequencies."""
    frequencies = torch.exp(torch.arange(width // 2) * (-math.log(1000) / (width // 2)))
    angles = x.unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class Denoiser(nn.Module):
    """Guesses the noise in a point, given how far the diffusion went."""

    def __init__(self, hidden):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * 16, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 2)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([embed(10 * x, 16).flatten(1), embed(t, 16)], -1))


class Diffusion:
    def __init__(self, steps):
        self.steps = steps
        self.betas = torch.linspace(1e-3, 0.25, steps)
        self.kept = torch.cumprod(1 - self.betas, 0)

    def loss(self, model, x):
        t = torch.randint(0, self.steps, (len(x),))
        noise = torch.randn_like(x)
        kept = self.kept[t].unsqueeze(-1)
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        return F.mse_loss(model(noisy, t), noise)

    @torch.no_grad()
    def sample(self, model, count):
        x = torch.randn(count, 2)
        for t in reversed(range(self.steps)):
            beta, kept = self.betas[t], self.kept[t]
            noise = model(x, torch.full((count,), t))
            x = (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()
            if t > 0:
                x = x + beta.sqrt() * torch.randn_like(x)
        return x


def train(steps):
    model, diffusion = Denoiser(hidden=48), Diffusion(steps=40)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = diffusion.loss(model, two_moons(128))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, diffusion


if __name__ == "__main__":
    torch.manual_seed(1)
    model, diffusion = train(steps=1000)
    nearest = torch.cdist(diffusion.sample(model, 500), two_moons(2000)).amin(1)
    print(f"from a sample to the next point of the data: {nearest.mean():.3f}")
