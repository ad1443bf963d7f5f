"""Soft targets: a model also learns from the probabilities of other models for the next token.

These models are trained runs, the teachers (Hinton et al. 2015, arXiv:1503.02531), counts of
n-grams, or the average of the model's own weights, a mean teacher (Tarvainen and Valpola 2017,
arXiv:1703.01780).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kneser_ney_tables import KneserNeyTables
from .models.ensemble import Ensemble
from .runs.run import Run


class SoftTargets:
    """Adds the cross-entropy with the probabilities of other models to the loss of a run."""

    def __init__(self, run: Run) -> None:
        settings = run.config.train
        self.sources: list[tuple[nn.Module, float, float]] = []
        """Each model, its weight in the loss, and its temperature."""
        if run.teachers:
            ensemble = Ensemble([teacher.model for teacher in run.teachers])
            weight, temperature = settings.teacher_weight, settings.teacher_temperature
            self.sources.append((ensemble, weight, temperature))
        if settings.ngram_weight:
            tables = KneserNeyTables(run.counted, run.device)
            self.sources.append((tables, settings.ngram_weight, 1.0))
        if settings.mean_teacher:
            average = share_weights(run.model, run.state.average)
            self.sources.append((average, settings.mean_teacher, 1.0))

    def add_to(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """Return (1 − Σ wᵢ) · loss + Σ wᵢ τᵢ² · lossᵢ, for each model i with temperature τᵢ.

        `loss` is the cross-entropy of `logits` (B, T, V) with the text as the target. lossᵢ is the
        cross-entropy of `logits` / τᵢ with the probabilities of model i at this temperature as the
        target, for the same inputs (B, T).
        """
        if not self.sources:
            return loss
        total = loss * (1 - sum(weight for _, weight, _ in self.sources))
        for model, weight, temperature in self.sources:
            with torch.no_grad():
                p = (model(inputs).float() / temperature).softmax(dim=-1)  # (B, T, V)
            soft = F.cross_entropy(logits.flatten(0, 1).float() / temperature, p.flatten(0, 1))
            # The gradients of `soft` shrink with 1 / temperature² (Hinton et al., section 2).
            total = total + weight * temperature**2 * soft
        return total

    def blocks(self) -> list[nn.Module]:
        """Return the Transformer blocks of all models."""
        modules = [module for model, _, _ in self.sources for module in model.modules()]
        return [block for m in modules if isinstance(m, nn.ModuleList) for block in m.children()]


def share_weights(model: nn.Module, weights: Sequence[Tensor]) -> nn.Module:
    """Return a copy of `model` in evaluation mode, whose parameters are the tensors `weights`.

    If these tensors change later, the copy changes with them.
    """
    shadow = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter, tensor in zip(shadow.parameters(), weights, strict=True):
        parameter.data = tensor
    return shadow
