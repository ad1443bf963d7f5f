"""How weights move: the optimizer, which parameters decay, and the learning rate over time."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw: decoupled weight decay (arXiv:1711.05101). adam: as its paper has it, without
    decay (arXiv:1412.6980)."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    min_lr: float = 1e-4
    """Learning rate at the last step, where the cosine ends."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    beta1: float = 0.9
    """Decay of the running mean of the gradients."""
    beta2: float = 0.99
    """Decay of the running mean of their squares."""
    weight_decay: float = 0.1
    """How fast matrices shrink towards zero, times the learning rate; biases and norms do not."""
    grad_clip: float = 1.0
    """The gradient is scaled down to this norm when it is longer; 0 leaves it alone."""

    def __post_init__(self) -> None:
        for field in ("min_lr", "warmup", "weight_decay", "grad_clip"):
            if not 0 <= (value := getattr(self, field)) < math.inf:
                raise ValueError(f"{field} is {value}: it must be 0 or more")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}: it must be more than 0")
        for field in ("beta1", "beta2"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 1")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every parameter once: matrices and tables, which decay; biases and gains, which do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that config describes, over all of model's parameters."""
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, betas=betas, fused=True)
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step 0 ... steps - 1: a linear rise, then a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
