"""An LSTM learns to write from a text, by truncated back-propagation: the state goes on, its history does not."""

import torch
from torch import nn
from torch.nn import functional as F

STREAMS = 8
STEPS = 32


class CharLm(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.letters = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x, state=None):
        y, state = self.lstm(self.letters(x), state)
        return self.head(y), state

    def loss(self, x, y, state=None):
        logits, state = self(x, state)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten()), state

    @torch.no_grad()
    def write(self, start, count):
        tokens, x, state = [], start, None
        for _ in range(count):
            logits, state = self(x, state)
            x = torch.multinomial(logits[:, -1].softmax(-1), 1)
            tokens.append(x.item())
        return tokens


def train(text, epochs):
    """The model, the letters, and the loss on the last part of the text, which it never saw."""
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(c) for c in text])
    seen, held_out = ids[:-2000], ids[-2000:]
    seen = seen[: len(seen) // STREAMS * STREAMS].reshape(STREAMS, -1)
    model = CharLm(len(letters), width=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        state = None
        for i in range(0, seen.shape[1] - STEPS, STEPS):
            x, y = seen[:, i : i + STEPS], seen[:, i + 1 : i + STEPS + 1]
            loss, state = model.loss(x, y, state)
            state = tuple(s.detach() for s in state)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    with torch.no_grad():
        loss, _ = model.loss(held_out[None, :-1], held_out[None, 1:])
    return model, letters, loss.item()


if __name__ == "__main__":
    torch.manual_seed(1)
    with open("LICENSE-APACHE") as file:
        text = file.read()
    model, letters, loss = train(text, epochs=5)
    print(f"held out: {loss:.3f} nats per letter")
    print("".join(letters[i] for i in model.write(torch.tensor([[letters.index("\n")]]), 200)))
