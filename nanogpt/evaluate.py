"""How good a model is: its loss over a whole split, one protocol everywhere.

Non-overlapping windows of block_size, every position counted, no dropout, float32: the number
depends on the model and the text alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Split
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


class Ensemble(nn.Module):
    """Several models of one context and vocabulary as one: the mean of their probabilities."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models, self.config = nn.ModuleList(models), models[0].config

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) to logits (B, T, V)."""
        each = torch.stack([model(tokens).float().log_softmax(dim=-1) for model in self.models])
        return each.logsumexp(dim=0) - math.log(len(each))


@torch.no_grad()
def evaluate(model: Model | Ensemble, split: Split) -> Evaluation:
    """The mean loss over every token of a split but the first, which nothing precedes."""
    block_size = model.config.block_size
    # Enough to keep a GPU busy; on a CPU what its caches hold.
    at_a_time = 2048 if split.device.type == "cpu" else 8192
    batch_size = max(1, at_a_time // block_size)
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for inputs, targets in split.windows(batch_size, block_size):
        total += cross_entropy(model(inputs), targets, reduction="sum").item()
        tokens += targets.numel()
    model.train(was_training)
    loss = total / tokens
    return Evaluation(loss, split.bits_per_byte(loss), tokens)
