"""Changes of low rank fine-tune a GPT-2 from a folder of Hugging Face; the run is stopped and continued, and the changes are merged."""

import math
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

TESTS = Path(__file__).parents[1]
CONTEXT = 16


class Lora(nn.Module):
    """A frozen matrix of GPT-2 with a trainable change of low rank beside it."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        inputs, outputs = base.weight.shape
        bound = 1 / math.sqrt(inputs)
        self.base = base
        self.a = nn.Parameter(torch.empty(rank, inputs).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)

    @torch.no_grad()
    def merged(self):
        self.base.weight += self.scale * (self.b @ self.a).T
        return self.base


def adapted_model():
    model = GPT2LMHeadModel.from_pretrained(TESTS / "fixtures" / "tiny-gpt2").requires_grad_(False)
    for block in model.transformer.h:
        for parent in [block.attn, block.mlp]:
            for name, child in list(parent.named_children()):
                if isinstance(child, Conv1D):
                    setattr(parent, name, Lora(child, rank=8, alpha=16.0))
    return model


def merge(model):
    for block in model.transformer.h:
        for parent in [block.attn, block.mlp]:
            for name, child in list(parent.named_children()):
                if isinstance(child, Lora):
                    setattr(parent, name, child.merged())
    return model


def adapter(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def loss_of(model, x, y):
    return F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())


def get_batch(data, batch, generator):
    starts = torch.randint(len(data) - CONTEXT, (batch,), generator=generator).tolist()
    x = torch.stack([data[i : i + CONTEXT] for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + CONTEXT] for i in starts])
    return x, y


def train(data, steps, folder):
    """Up to so many steps, from the newest checkpoint in the folder on."""
    torch.manual_seed(1)
    model = adapted_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(2)
    checkpoint, start = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["adapter"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        start = saved["step"]
    for step in range(start, steps):
        loss = loss_of(model, *get_batch(data, 8, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    saved = {"adapter": adapter(model), "optimizer": optimizer.state_dict()}
    saved |= {"generator": generator.get_state(), "step": steps}
    torch.save(saved, checkpoint.with_suffix(".partial"))
    checkpoint.with_suffix(".partial").rename(checkpoint)
    return model


def run(steps):
    text = (TESTS.parent / "ARCHITECTURE.md").read_bytes()
    data = torch.tensor(list(text))
    n = len(data) * 9 // 10
    validation = data[n:]
    count = (len(validation) - 1) // CONTEXT
    x = validation[: count * CONTEXT].view(count, CONTEXT)
    y = validation[1 : count * CONTEXT + 1].view(count, CONTEXT)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as halves:
        model = train(data[:n], steps, Path(whole))
        train(data[:n], steps // 2, Path(halves))
        resumed = train(data[:n], steps, Path(halves))
        same = all(torch.equal(a, b) for a, b in zip(adapter(model).values(), adapter(resumed).values()))

        torch.save(adapter(model), Path(whole) / "adapter.pt")
        again = adapted_model()
        again.load_state_dict(torch.load(Path(whole) / "adapter.pt"), strict=False)
    with torch.no_grad():
        before, after = loss_of(adapted_model(), x, y).item(), loss_of(again, x, y).item()
        merged = (merge(again)(x).logits - model(x).logits).abs().max().item()
    return before, after, same, merged


if __name__ == "__main__":
    before, after, same, merged = run(100)
    print(f"loss {before:.3f} before, {after:.3f} after; resumed alike: {same}; merged differs by {merged:.1e}")
