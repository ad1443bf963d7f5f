"""Adam and AdamW, the learning-rate schedule, and weight averaging. Muon is in muon.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .models import Model
from .muon import Muon, collect_gradients


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer, the learning-rate schedule and weight averaging."""

    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """adamw: Adam with decoupled weight decay (arXiv:1711.05101). adam: Adam without weight decay
    (arXiv:1412.6980). muon: Muon for the matrices of the blocks, adam for all other parameters."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the learning-rate decay after the warm-up."""
    cooldown: float = 1.0
    """A linear schedule lowers the rate in this last fraction of the steps after the warm-up."""
    min_lr: float = 1e-4
    """Learning rate at the end of the schedule and after it. For Muon, it is multiplied by
    muon_lr / lr."""
    warmup: int = 100
    """Number of steps in which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Step at which the schedule ends; by default the last step."""
    beta1: float = 0.9
    """Decay of Adam's running mean of the gradients."""
    beta2: float = 0.99
    """Decay of Adam's running mean of the squared gradients."""
    momentum: float = 0.95
    """Decay of Muon's running mean of the gradients."""
    normalise_rows: bool = False
    """Let all rows of Muon's updates have about the same norm (NorMuon, arXiv:2510.05491)."""
    cautious_decay: bool = False
    """With Muon, only weights that the update moves towards 0 decay (arXiv:2510.12402)."""
    weight_decay: float = 0.1
    """Each step multiplies matrices and tables by 1 - learning rate × this value. Biases and norms
    do not decay. With muon, only the matrices of the blocks decay."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; larger gradients are scaled down. 0 turns this off."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights. The average is also evaluated, and
    saved in best/ if its loss is the lowest so far. 0 turns averaging off."""

    def __post_init__(self) -> None:
        for field in ("min_lr", "warmup", "weight_decay", "grad_clip"):
            if not 0 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 2**31")
        for field in ("lr", "muon_lr"):
            if not 0 < (value := getattr(self, field)) < math.inf:
                raise ValueError(f"{field} is {value}: it must be more than 0")
        if self.decay_steps is not None and not 1 <= self.decay_steps < 2**31:
            value = self.decay_steps
            raise ValueError(f"decay_steps is {value}: it must be between 1 and 2**31 - 1, or None")
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"cooldown is {self.cooldown}: it must be more than 0 and at most 1")
        for field in ("beta1", "beta2", "momentum", "ema"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 1")


class Adam:
    """Adam, or AdamW if weight_decay is not 0. A step moves each weight by about the learning rate.

    m = β₁m + (1 - β₁)g and v = β₂v + (1 - β₂)g² are running means of the gradient g and of g².
    weights -= rate · m̂ / (√v̂ + ε), where m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ) after t steps
    (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1). AdamW also subtracts rate · decay · weights
    from matrices and embedding tables (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    torch.optim.AdamW is not used: it imports the compiler of torch, which takes seconds.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.parameters: list[Tensor] = [*named.values()]
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.betas, self.eps = betas, eps
        self.steps = torch.zeros((), device=self.parameters[0].device)
        """Number of steps taken so far."""
        self.get_part: Callable[[Tensor], Tensor] = lambda tensor: tensor
        """Replaced if each process has only some rows; then it returns those of this process."""
        self._names = list(named)
        matrices = [i for i, p in enumerate(self.parameters) if p.dim() >= 2]
        vectors = [i for i, p in enumerate(self.parameters) if p.dim() < 2]
        self.groups = [(matrices, weight_decay), (vectors, 0.0)]
        """Groups of parameters: their indices and their weight decay."""

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """Update every parameter with the learning rate `rate`, a scalar tensor."""
        self.steps += 1
        lists = self.parameters, collect_gradients(self._names, self.parameters), self.m, self.v
        for indices, decay in self.groups:
            if indices:
                weights, g, m, v = ([self.get_part(each[i]) for i in indices] for each in lists)
                # This applies the equations in the docstring of Adam in one pass over each tensor.
                torch._fused_adamw_(
                    weights,
                    g,
                    m,
                    v,
                    [],  # this argument is for AMSGrad only
                    [self.steps] * len(indices),
                    lr=rate,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    weight_decay=decay,
                    eps=self.eps,
                    amsgrad=False,
                    maximize=False,
                )

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint, by name."""
        named_m = {f"{n}.m": m for n, m in zip(self._names, self.m, strict=True)}
        named_v = {f"{n}.v": v for n, v in zip(self._names, self.v, strict=True)}
        return {**named_m, **named_v, "steps": self.steps}


Optimizer = Adam | Muon


def build_optimizers(
    model: nn.Module, config: OptimConfig, precision: torch.dtype = torch.float32
) -> list[Optimizer]:
    """Build the optimizers for `config`; each trainable parameter is in exactly one of them.

    Muon gets the matrices in model.matrices(); `precision` is for the matrix products of Muon.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    betas = config.beta1, config.beta2
    if config.optimizer == "adamw":
        return [Adam(named, betas, config.weight_decay)]
    if config.optimizer == "adam":
        return [Adam(named, betas)]
    stacked = cast(Model, model).matrices()
    matrices = {name: named[name] for name in stacked if name in named}
    others = {name: p for name, p in named.items() if name not in matrices}
    adam = [Adam(others, betas)] if others else []
    options = config.normalise_rows, config.cautious_decay
    muon = Muon(matrices, config.momentum, config.weight_decay, precision, stacked, *options)
    return [*adam, muon] if matrices else [*adam]  # Muon needs matrices


def get_learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of `step` (from 0): a linear warm-up precedes the schedule."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    decaying_steps = max(1, (config.decay_steps or steps) - config.warmup)
    progress = min(1.0, (step - config.warmup) / decaying_steps)
    if config.schedule == "cosine":
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        remaining = min(1.0, (1 - progress) / config.cooldown)
    return config.min_lr + (config.lr - config.min_lr) * remaining


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down if their total norm exceeds max_norm. max_norm 0 turns this off.

    Returns the norms (P,) of the gradients of P parameters before clipping. This function replaces
    torch.nn.utils.clip_grad_norm_, which returns only the total norm.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # a single kernel on a GPU
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norms.norm())
    return norms


def get_ema_decay(step: int, config: OptimConfig) -> float:
    """Return the decay of the moving average of the weights in step `step`.

    The average covers about the last ninth of the steps so far, but at most 1 / (1 - ema) steps.
    """
    return min(config.ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(averages: Sequence[Tensor], weights: Sequence[Tensor], rate: Tensor) -> None:
    """Move each average towards its weight by the fraction `rate` of their difference."""
    differences = torch._foreach_sub(list(weights), list(averages))
    torch._foreach_mul_(differences, rate)
    torch._foreach_add_(list(averages), differences)
