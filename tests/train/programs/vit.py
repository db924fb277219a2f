"""A Vision Transformer reads handwritten digits: patches, a class token, learned positions."""

from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Vit(nn.Module):
    def __init__(self, side, patch, width, heads, layers, classes):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2 + 1, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        b, h, w = images.shape
        p = self.patch
        patches = images.view(b, h // p, p, w // p, p).transpose(2, 3).reshape(b, -1, p * p)
        x = torch.cat([self.class_token.expand(b, -1, -1), self.embed(patches)], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(-1) == labels).float().mean().item()


def run(epochs):
    torch.manual_seed(1)
    digits = np.load(Path(__file__).parents[3] / "examples" / "data" / "digits.npz")
    images = torch.tensor(digits["images"]).float() / 16
    labels = torch.tensor(digits["labels"])
    order = torch.randperm(len(images))
    train, test = order[:-360], order[-360:]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images[train], labels[train]), batch_size=32, shuffle=True, drop_last=True
    )

    model = Vit(side=8, patch=4, width=32, heads=4, layers=2, classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=epochs * len(loader), cycle_momentum=False
    )
    for epoch in range(epochs):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: accuracy {accuracy(model, images[test], labels[test]):.3f}")
    return accuracy(model, images[test], labels[test])


if __name__ == "__main__":
    print(f"accuracy on images that training has not seen: {run(4):.3f}")
