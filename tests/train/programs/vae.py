"""A variational autoencoder (Kingma & Welling 2014) on images of handwritten digits."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


class Vae(nn.Module):
    def __init__(self, pixels, hidden, latent):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latent)
        self.log_var = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def elbo(self, x):
        """A lower bound of the log-likelihood of each image, in nats."""
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        reconstruction = -F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        kl = (mean.square() + log_var.exp() - 1 - log_var).sum(-1) / 2
        return reconstruction - kl

    def sample(self, count):
        z = torch.randn(count, self.mean.out_features)
        return self.decoder(z).sigmoid()


def digits():
    """Black and white images, each a row of pixels."""
    images = torch.from_numpy(np.load("examples/data/digits.npz")["images"])
    return (images > 7).float().flatten(1)


def train(epochs):
    seen, held_out = digits().split([1500, 297])
    model = Vae(pixels=64, hidden=64, latent=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(epochs):
        for x in DataLoader(seen, batch_size=50, shuffle=True):
            loss = -model.elbo(x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        elbo = model.elbo(held_out).mean().item()
    return model, elbo


if __name__ == "__main__":
    torch.manual_seed(1)
    model, elbo = train(epochs=12)
    print(f"held out: {elbo:.2f} nats per image")
    print((model.sample(1).reshape(8, 8) > 0.5).int())
