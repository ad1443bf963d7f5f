"""Computes the loss of a model over a whole split. All evaluations use this module.

An evaluation uses non-overlapping windows of block_size tokens, averages over all positions, and
runs in float32 without dropout. So the loss depends only on the model and the text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Split
from .models import Model
from .models.ensemble import Ensemble


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean (or sum) of -ln p(target), in float32; logits (..., V), targets (...)."""
    logits = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(logits, targets.flatten(), reduction=reduction)


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluate()."""

    loss: float
    """Mean loss in nats per token."""
    bits_per_byte: float | None
    """Loss in bits per byte of UTF-8 text; None if Split.bits_per_byte() cannot compute it."""
    tokens: int
    """Number of predicted tokens."""


@torch.no_grad()
def evaluate(model: Model | Ensemble, split: Split) -> Evaluation:
    """Return the mean loss over all tokens of a split except the first, which has no context."""
    block_size = model.config.block_size
    # Large batches keep a GPU busy; small batches fit into the caches of a CPU.
    tokens_per_batch = 2048 if split.device.type == "cpu" else 8192
    batch_size = max(1, tokens_per_batch // block_size)
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for inputs, targets in split.windows(batch_size, block_size):
        total += cross_entropy(model(inputs), targets, reduction="sum").item()
        tokens += targets.numel()
    model.train(was_training)
    loss = total / tokens
    return Evaluation(loss, split.bits_per_byte(loss), tokens)
