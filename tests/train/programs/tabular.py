"""From a table in a file to a classifier in a file: numbers with gaps, texts, batches, metrics, the best model kept."""

import copy
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

FOLDER = "tests/fixtures/programs"
NUMBERS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


class Classifier(nn.Module):
    def __init__(self, mean, std, islands, sexes, species):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.island = nn.Embedding(islands, 2)
        self.sex = nn.Embedding(sexes, 2)
        self.layers = nn.Sequential(nn.Linear(len(NUMBERS) + 4, 16), nn.ReLU(), nn.Linear(16, species))

    def forward(self, numbers, island, sex):
        numbers = torch.nan_to_num((numbers - self.mean) / self.std)
        return self.layers(torch.cat([numbers, self.island(island), self.sex(sex)], -1))


def read_table():
    """Numbers, island, sex and species of each row, and the names of the islands, sexes and species."""
    table = pd.read_csv(f"{FOLDER}/penguins.csv", keep_default_na=False, na_values={name: ["NA"] for name in NUMBERS})
    texts = [table[name].astype("category").cat for name in ["island", "sex", "species"]]
    codes = [torch.tensor(column.codes.to_numpy(), dtype=torch.long) for column in texts]
    numbers = torch.tensor(table[NUMBERS].to_numpy(), dtype=torch.float32)
    return [numbers, *codes], [list(column.categories) for column in texts]


def evaluate(model, batches):
    """Mean loss and accuracy."""
    loss, right, rows = 0.0, 0, 0
    with torch.no_grad():
        for numbers, island, sex, species in batches:
            scores = model(numbers, island, sex)
            loss += F.cross_entropy(scores, species, reduction="sum").item()
            right += (scores.argmax(-1) == species).sum().item()
            rows += len(species)
    return loss / rows, right / rows


def train(epochs, path):
    """Loss and accuracy of the best model on rows without a part in it, and the model in the file."""
    columns, names = read_table()
    split = np.load(f"{FOLDER}/penguins_split.npz")
    parts = [TensorDataset(*(c[split[part]] for c in columns)) for part in ["train", "validation", "test"]]
    seen, validation, test = (DataLoader(part, batch_size=32, shuffle=i == 0) for i, part in enumerate(parts))
    numbers = columns[0][split["train"]].numpy()
    mean, std = torch.tensor(np.nanmean(numbers, 0)), torch.tensor(np.nanstd(numbers, 0))
    model = Classifier(mean, std, *(len(n) for n in names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    best, best_loss = None, float("inf")
    for _ in range(epochs):
        for numbers, island, sex, species in seen:
            loss = F.cross_entropy(model(numbers, island, sex), species)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss, _ = evaluate(model, validation)
        if loss < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss
    model.load_state_dict(best)
    torch.save(model.state_dict(), path)
    return evaluate(model, test)


if __name__ == "__main__":
    torch.manual_seed(1)
    loss, accuracy = train(epochs=20, path="/tmp/penguins.pt")
    print(f"test: loss {loss:.3f}, accuracy {accuracy:.3f}")
