"""How weights move: the optimizer, which parameters decay, and the learning rate over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw: decoupled weight decay (arXiv:1711.05101). adam: as its paper has it, without
    decay (arXiv:1412.6980)."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    min_lr: float = 1e-4
    """Learning rate where the cosine ends, and after it."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Step at which the cosine ends; without it, the last one."""
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
            if not 0 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 2**31")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}: it must be more than 0")
        if self.decay_steps is not None and not 1 <= self.decay_steps < 2**31:
            raise ValueError(
                f"decay_steps is {self.decay_steps}: it must be at least 1 and less than 2**31, or "
                f"None"
            )
        for field in ("beta1", "beta2"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 1")


ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter: steps taken (a scalar), the running means of the gradient and
of its square (of the parameter's shape)."""


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


def gradient_norms(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """The norm of each parameter's gradient (P,), before all are scaled down to max_norm.

    Together they get at most that norm, as torch.nn.utils.clip_grad_norm_ does it; 0 leaves them.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # in one kernel on a GPU
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norms.norm())
    return norms


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step 0 ... steps - 1: a linear rise, then a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    falling = max(1, (config.decay_steps or steps) - config.warmup)
    progress = min(1.0, (step - config.warmup) / falling)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
