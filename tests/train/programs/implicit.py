"""A deep equilibrium model (Bai, Kolter & Koltun 2019) reads digits: its layer is the fixed point of a cell."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def fixed_point(f, z):
    for _ in range(100):
        z, before = f(z), z
        if (z - before).abs().max() < 1e-6:
            break
    return z


class Cell(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.state = nn.Linear(width, width, bias=False)
        self.input = nn.Linear(inputs, width)

    def forward(self, z, x):
        return torch.tanh(self.state(z) + self.input(x))


class Equilibrium(nn.Module):
    def __init__(self, inputs, width, classes):
        super().__init__()
        self.cell = Cell(inputs, width)
        self.head = nn.Linear(width, classes)

    def equilibrium(self, x):
        """The solver is not recorded: the implicit function theorem gives the cotangent, u = z_bar + J^T u."""
        with torch.no_grad():
            z = fixed_point(lambda z: self.cell(z, x), x.new_zeros(len(x), self.head.in_features))
        z = self.cell(z, x)
        if z.requires_grad:
            at = z.detach().requires_grad_()
            again = self.cell(at, x)

            def solve(z_bar):
                return fixed_point(lambda u: z_bar + torch.autograd.grad(again, at, u, retain_graph=True)[0], z_bar)

            z.register_hook(solve)
        return z

    def forward(self, x):
        return self.head(self.equilibrium(x))


def digits():
    file = np.load("examples/data/digits.npz")
    images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    return images.flatten(1).float() / 16, labels


def train(epochs):
    x, y = digits()
    model = Equilibrium(inputs=64, width=32, classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for images, labels in DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=50, shuffle=True):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(x[1500:]).argmax(-1) == y[1500:]).float().mean().item()
    return model, accuracy


if __name__ == "__main__":
    torch.manual_seed(1)
    model, accuracy = train(epochs=5)
    print(f"held out: {accuracy:.3f} right")
