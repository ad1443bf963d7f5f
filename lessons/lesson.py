"""What the lessons share: the text as numbers, a loop that trains, a loss that measures.

Lesson 1 builds the first of these step by step, lesson 8 the second. NANOGPT_FAST=1 makes all
trainings so short that a lesson takes seconds: its numbers mean nothing then.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.text import corpora

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
FAST = os.environ.get("NANOGPT_FAST") == "1"

text = corpora.load_corpus("tinyshakespeare").text()
alphabet = "".join(sorted(set(text)))
V = len(alphabet)
"""Size of the vocabulary."""
T = 32
"""Context: how many characters the lessons' models look back at, where nothing else is said."""


def encode(text: str) -> Tensor:
    """The number of each character: (N,)."""
    number = {character: i for i, character in enumerate(alphabet)}
    return torch.tensor([number[character] for character in text])


def decode(tokens: Iterable[int]) -> str:
    """The characters of numbers."""
    return "".join(alphabet[i] for i in tokens)


tokens = encode(text)  # (1115394,)
train, val = tokens.tensor_split([int(0.9 * len(tokens))])


def batch(tokens: Tensor, size: int, length: int = T) -> tuple[Tensor, Tensor]:
    """Blocks from random places of tokens, and the same one further: (size, length) both."""
    starts = torch.randint(len(tokens) - length, (size, 1))
    blocks = tokens[starts + torch.arange(length + 1)]
    return blocks[:, :-1], blocks[:, 1:]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of −ln p(target): logits (B, T, V), targets (B, T) to one number, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation(model: nn.Module, length: int = T, part: float = 1.0, text: Tensor = val) -> float:
    """Nats per character over the validation text, or the first part of it, block after block."""
    model.eval()
    blocks = int(part * (len(text) - 1)) // length
    inputs = text[: blocks * length].view(blocks, length)
    targets = text[1 : blocks * length + 1].view(blocks, length)
    losses = [
        cross_entropy(model(x), y).item() * len(x)
        for x, y in zip(inputs.split(64), targets.split(64), strict=True)
    ]
    model.train()
    return sum(losses) / blocks


def fit(
    model: nn.Module,
    steps: int = 1000,
    lr: float = 2e-3,
    size: int = 32,
    length: int = T,
    warmup: int = 0,
    text: Tensor = train,
    watch: Callable[[int, float], None] | None = None,
) -> float:
    """Train a model with Adam on batches of size blocks; gives its validation loss.

    The rate falls from lr to nothing, and for warmup steps it also rises. text is what batches come
    from; watch(step, loss) is told the loss of each.
    """
    steps = min(steps, 30) if FAST else steps
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    torch.manual_seed(0)  # the same batches for every model
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            lr * min(1, (step + 1) / (warmup + 1)) * (1 - step / steps)
        )
        inputs, targets = batch(text, size, length)
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch:
            watch(step, loss.item())
    return validation(model, length, part=0.1 if FAST else 1.0)


def measure(models: dict[str, Callable[[], nn.Module]], **how: int | float) -> dict[str, float]:
    """Make and fit each model from the same seed; print and give the validation losses."""
    found, width = {}, max(map(len, models))
    print(f"{'':{width}}  validation loss   parameters  seconds")
    for name, make in models.items():
        torch.manual_seed(1)
        model, began = make(), time.perf_counter()
        found[name] = fit(model, **how)  # type: ignore[arg-type]
        count = sum(p.numel() for p in model.parameters())
        seconds = time.perf_counter() - began
        print(f"{name:{width}}  {found[name]:15.3f}  {count:11,}  {seconds:7.0f}")
    return found


plt.rcParams.update(
    {
        "figure.figsize": (7, 3.6),
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "image.cmap": "gray_r",
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "lessons",
    }
)
