"""Optimizers: Adam and AdamW, the learning-rate schedule, weight averaging. Muon is in muon.py."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .models import Model
from .muon import Muon


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """adamw: Adam with decoupled weight decay (arXiv:1711.05101). adam: the original, without decay
    (arXiv:1412.6980). muon: Muon for the matrices of the blocks, adam for all other parameters."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay of the learning rate."""
    cooldown: float = 1.0
    """Fraction of the steps after the warm-up in which a linear schedule decays; the rate is
    constant before."""
    min_lr: float = 1e-4
    """Learning rate at the end of the schedule and after it; times muon_lr / lr for Muon."""
    warmup: int = 100
    """Steps in which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Step at which the schedule ends; by default the last step."""
    beta1: float = 0.9
    """Decay of Adam's running mean of the gradients."""
    beta2: float = 0.99
    """Decay of Adam's running mean of the squared gradients."""
    momentum: float = 0.95
    """Decay of Muon's running mean of the gradients."""
    weight_decay: float = 0.1
    """Each step multiplies matrices by 1 - learning rate × this. Biases and norms do not decay;
    with muon, the parameters that adam updates do not decay either."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; a larger one is scaled down. 0 turns clipping off."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights. The average is evaluated, too, and
    saved in best/ if it is the best so far. 0 turns it off."""

    def __post_init__(self) -> None:
        for field in ("min_lr", "warmup", "weight_decay", "grad_clip"):
            if not 0 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 2**31")
        for field in ("lr", "muon_lr"):
            if not 0 < (value := getattr(self, field)) < math.inf:
                raise ValueError(f"{field} is {value}: it must be more than 0")
        if self.decay_steps is not None and not 1 <= self.decay_steps < 2**31:
            raise ValueError(
                f"decay_steps is {self.decay_steps}: it must be at least 1 and less than 2**31, or "
                f"None"
            )
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"cooldown is {self.cooldown}: it must be more than 0 and at most 1")
        for field in ("beta1", "beta2", "momentum", "ema"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 0 and less than 1")


class Adam:
    """Adam, and with a weight decay AdamW: a step moves each weight by about the learning rate.

    m = β₁m + (1 - β₁)g and v = β₂v + (1 - β₂)g² are running means of the gradient g and its square.
    weights -= rate · m̂ / (√v̂ + ε), where m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ) after t steps
    (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1). AdamW adds weights -= rate · decay ·
    weights for matrices and tables (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    torch.optim.AdamW is not used: importing torch.optim takes longer than starting torch.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters: list[Tensor] = [*named.values()]
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.betas = betas
        self.steps = torch.zeros((), device=self.parameters[0].device)
        """Steps taken."""
        self._names = list(named)
        matrices = [i for i, p in enumerate(self.parameters) if p.dim() >= 2]
        vectors = [i for i, p in enumerate(self.parameters) if p.dim() < 2]
        self.groups = [(matrices, weight_decay), (vectors, 0.0)]
        """Groups of parameters, by index, with their weight decay."""

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """Update every parameter at this learning rate ()."""
        self.steps += 1
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        assert len(gradients) == len(self.parameters)
        for indices, decay in self.groups:
            if indices:
                lists = self.parameters, gradients, self.m, self.v
                weights, g, m, v = ([tensors[i] for i in indices] for tensors in lists)
                # The equations above, in one pass over each tensor.
                torch._fused_adamw_(
                    weights,
                    g,
                    m,
                    v,
                    [],  # only AMSGrad uses these
                    [self.steps] * len(indices),
                    lr=rate,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    weight_decay=decay,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                )

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint needs, by name."""
        named_m = {f"{n}.m": m for n, m in zip(self._names, self.m, strict=True)}
        named_v = {f"{n}.v": v for n, v in zip(self._names, self.v, strict=True)}
        return {**named_m, **named_v, "steps": self.steps}


Optimizer = Adam | Muon


def build_optimizers(
    model: nn.Module, config: OptimConfig, precision: torch.dtype = torch.float32
) -> list[Optimizer]:
    """The optimizers that config describes; each parameter of the model is in exactly one.

    Muon gets the matrices that model.matrices() names; its products run at `precision`.
    """
    named, betas = dict(model.named_parameters()), (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        return [Adam(named, betas, config.weight_decay)]
    if config.optimizer == "adam":
        return [Adam(named, betas)]
    stacked = cast(Model, model).matrices()
    matrices = {name: named[name] for name in stacked}
    others = {name: p for name, p in named.items() if name not in matrices}
    muon = Muon(matrices, config.momentum, config.weight_decay, precision, stacked)
    return [Adam(others, betas), muon]


def get_learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of a step in 0 ... steps - 1: a linear warm-up, then the schedule."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    decaying_steps = max(1, (config.decay_steps or steps) - config.warmup)
    progress = min(1.0, (step - config.warmup) / decaying_steps)
    if config.schedule == "cosine":
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        remaining = min(1.0, (1 - progress) / config.cooldown)
    return config.min_lr + (config.lr - config.min_lr) * remaining


def scale_rates(optimizers: Sequence[Optimizer], rate: float, config: OptimConfig) -> list[float]:
    """The learning rate of each optimizer: rate for Adam, rate · muon_lr / lr for Muon."""
    muon_rate = rate / config.lr * config.muon_lr
    return [muon_rate if isinstance(optimizer, Muon) else rate for optimizer in optimizers]


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down if their total norm exceeds max_norm; 0 leaves them unchanged.

    Returns the norm of each parameter's gradient (P,) before clipping. It does the same as
    torch.nn.utils.clip_grad_norm_, but that function returns only the total norm.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # one kernel on a GPU
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norms.norm())
    return norms


def get_ema_decay(step: int, config: OptimConfig) -> float:
    """The decay of the weight average in a step.

    The average covers about 1 / (1 - ema) steps; at first, the last ninth of the steps so far.
    """
    return min(config.ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(averages: Sequence[Tensor], weights: Sequence[Tensor], rate: Tensor) -> None:
    """Move the averages towards the weights, by a fraction `rate` () of the difference."""
    differences = torch._foreach_sub(list(weights), list(averages))
    torch._foreach_mul_(differences, rate)
    torch._foreach_add_(list(averages), differences)
