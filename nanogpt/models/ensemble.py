"""Several models as one model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import Model


class Ensemble(nn.Module):
    """Combines several models into one model, which averages their probabilities.

    The models must have the same vocabulary and the same block_size.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models, self.config = nn.ModuleList(models), models[0].config

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to logits (B, T, V): log((p₁ + … + pₙ) / n) for n models."""
        log_p = torch.stack([model(tokens).float().log_softmax(dim=-1) for model in self.models])
        return log_p.logsumexp(dim=0) - math.log(len(log_p))
