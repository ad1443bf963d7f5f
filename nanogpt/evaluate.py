"""How good a model is: its loss over a whole split, one protocol everywhere.

Non-overlapping windows of block_size, every position counted, no dropout, float32: the number
depends on the model and the text alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Data, SplitName
from .models import Model


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """-log p(target) in nats, from logits (B, T, V) and targets (B, T), in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


@dataclass(frozen=True)
class Evaluation:
    """What evaluate() found."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per byte of UTF-8 text: comparable between tokenizers."""
    tokens: int
    """How many tokens were predicted."""


@torch.no_grad()
def evaluate(model: Model, data: Data, split: SplitName = "val") -> Evaluation:
    """The mean loss over every token of a split but the first, which nothing precedes."""
    block_size = model.config.block_size
    # Enough to keep a GPU busy; on a CPU what its caches hold.
    at_a_time = 2048 if data.splits[split].tokens.device.type == "cpu" else 8192
    batch_size = max(1, at_a_time // block_size)
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for inputs, targets in data.windows(split, batch_size, block_size):
        total += cross_entropy(model(inputs), targets, reduction="sum").item()
        tokens += targets.numel()
    model.train(was_training)
    loss = total / tokens
    return Evaluation(loss, loss / math.log(2) / data.splits[split].bytes_per_token, tokens)
