"""How weights move: the optimizers, which parameters decay, and the learning rate over time."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .models import Model


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """adamw: decoupled weight decay (arXiv:1711.05101). adam: as its paper has it, without decay
    (arXiv:1412.6980). muon: Muon for the matrices of the blocks, adam for the rest."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    muon_lr: float = 0.02
    """The same for what Muon moves."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the rate falls."""
    cooldown: float = 1.0
    """Part of the steps after the warm-up over which a linear schedule falls; constant before."""
    min_lr: float = 1e-4
    """Learning rate where the schedule ends, and after it; Muon's is in proportion."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Step at which the schedule ends; without it, the last one."""
    beta1: float = 0.9
    """Decay of the running mean of the gradients."""
    beta2: float = 0.99
    """Decay of the running mean of their squares."""
    momentum: float = 0.95
    """Decay of Muon's running mean of the gradients."""
    weight_decay: float = 0.1
    """How fast matrices shrink towards zero, times the learning rate; biases and norms do not, nor
    does with muon what adam moves."""
    grad_clip: float = 1.0
    """The gradient is scaled down to this norm when it is longer; 0 leaves it alone."""
    ema: float = 0.0
    """Decay of a running mean of the weights, which is measured beside them and kept as best/ where
    it is better; 0 makes none."""

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


class Optimizer(ABC):
    """Moves parameters by their gradients, with whatever it has to remember of these.

    Not one of torch.optim's: importing what those are made with takes longer than starting torch.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], remembered: Sequence[str]) -> None:
        self.parameters: list[Tensor] = [*named.values()]
        self.memory = {key: [torch.zeros_like(p) for p in self.parameters] for key in remembered}
        """Tensors like the parameters, by what they are; zeros at first."""
        self._names = list(named)

    @abstractmethod
    def step(self, rate: Tensor) -> None:
        """Move every parameter at this learning rate ()."""

    def state(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""
        return {
            f"{name}.{key}": tensor
            for key, tensors in self.memory.items()
            for name, tensor in zip(self._names, tensors, strict=True)
        }

    def gradients(self) -> list[Tensor]:
        """Those of the parameters, in their order; every one must have been computed."""
        found = [p.grad for p in self.parameters if p.grad is not None]
        assert len(found) == len(self.parameters)
        return found


class Adam(Optimizer):
    """Every number moves by about the rate, whatever the size of its gradient g.

    m = β₁m + (1 - β₁)g, v = β₂v + (1 - β₂)g², weights -= rate · m̂ / (√v̂ + ε), where m̂ and v̂ are
    m / (1 - β₁ᵗ) and v / (1 - β₂ᵗ) after t steps (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).
    With a decay it is AdamW: weights -= rate · decay · weights, for matrices and tables, not for
    biases and gains (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(named, ("m", "v"))
        self.betas = betas
        self.steps = torch.zeros((), device=self.parameters[0].device)
        """Taken so far."""
        matrices = [i for i, p in enumerate(self.parameters) if p.dim() >= 2]
        vectors = [i for i, p in enumerate(self.parameters) if p.dim() < 2]
        self.decays = [(matrices, weight_decay), (vectors, 0.0)]
        """Which parameters shrink, and how fast."""

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "steps": self.steps}

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        self.steps += 1
        gradients = self.gradients()
        for which, decay in self.decays:
            if which:
                every = self.parameters, gradients, self.memory["m"], self.memory["v"]
                weights, g, m, v = ([tensors[i] for i in which] for tensors in every)
                # All of the above in one pass over each tensor.
                torch._fused_adamw_(
                    weights,
                    g,
                    m,
                    v,
                    [],  # of AMSGrad
                    [self.steps] * len(which),
                    lr=rate,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    weight_decay=decay,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                )


class Muon(Optimizer):
    """Momentum, orthogonalised: every direction of a matrix moves equally far.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with Nesterov momentum, and with
    decoupled weight decay (Liu et al. 2025, arXiv:2502.16982). Only for matrices. Those of one
    shape are worked on together, as one stack. A parameter may be several matrices, one on top of
    the other, as those for queries and keys are: parts says of how many, by name.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.bfloat16,
        parts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(named, ("momentum",))
        self.momentum, self.weight_decay = momentum, weight_decay
        # float16 could overflow; bfloat16 is exact enough (Jordan et al.).
        self.precision = torch.float32 if precision == torch.float32 else torch.bfloat16
        self.stacks: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        """Of each shape (rows, columns), which parameters are how many such matrices."""
        for i, (name, p) in enumerate(named.items()):
            n = (parts or {}).get(name, 1)
            self.stacks[p.shape[0] // n, p.shape[1]][i] = n

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        gradients, means = self.gradients(), self.memory["momentum"]
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, means, self.momentum)  # Nesterov's look ahead
        torch._foreach_mul_(self.parameters, 1 - rate * self.weight_decay)
        for (rows, columns), which in self.stacks.items():
            stack = torch.cat([ahead[i].view(-1, rows, columns) for i in which])
            # A tall matrix maps to more dimensions: with this, each of them moves as far.
            far = rate * math.sqrt(max(1, rows / columns))
            updates = torch.mul(orthogonalise(stack, self.precision), far, out=stack)
            moves = updates.split(list(which.values()))
            torch._foreach_sub_(
                [self.parameters[i] for i in which], [m.reshape(-1, columns) for m in moves]
            )


def build_optimizers(
    model: nn.Module, config: OptimConfig, precision: torch.dtype = torch.float32
) -> list[Optimizer]:
    """The optimizers that config describes, over all of model's parameters, each in one of them.

    Muon's own products run at the precision of the model's.
    """
    named, betas = dict(model.named_parameters()), (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        return [Adam(named, betas, config.weight_decay)]
    if config.optimizer == "adam":
        return [Adam(named, betas)]
    parts = cast(Model, model).matrices()
    matrices = {name: named[name] for name in parts}
    return [
        Adam({n: p for n, p in named.items() if n not in matrices}, betas),
        Muon(matrices, config.momentum, config.weight_decay, precision, parts),
    ]


def orthogonalise(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """About U Vᵀ of each of matrices (N, rows, columns) = U Σ Vᵀ: all that is left of Σ is near 1.

    Newton-Schulz iteration, five steps of a quintic whose coefficients make small singular values
    grow as fast as can be; they end between 0.7 and 1.2 (Jordan et al. 2024).
    """
    X = matrices.to(precision)
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT  # the smaller product
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cA²
        X = torch.baddbmm(X, B, X, beta=a)  # aX + (bA + cA²)X
    return X.mT if tall else X


@torch.no_grad()
def update_average(means: Sequence[Tensor], weights: Sequence[Tensor], part: Tensor) -> None:
    """Move running means this part () of the way to weights."""
    off = torch._foreach_sub(list(weights), list(means))
    torch._foreach_mul_(off, part)
    torch._foreach_add_(list(means), off)


def get_ema_decay(step: int, config: OptimConfig) -> float:
    """How much of the running mean of the weights is kept in the step after so many.

    An average over 1 / (1 - ema) steps; at the start over fewer, about a ninth of those taken: the
    first weights are soon forgotten.
    """
    return min(config.ema, (1 + step) / (10 + step))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """The norm of each parameter's gradient (P,), before all are scaled down to max_norm.

    Together they get at most that norm, as torch.nn.utils.clip_grad_norm_ does it; 0 leaves them.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # in one kernel on a GPU
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norms.norm())
    return norms


def get_learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step 0 ... steps - 1: a linear rise, then down to min_lr as the schedule says."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    falling = max(1, (config.decay_steps or steps) - config.warmup)
    progress = min(1.0, (step - config.warmup) / falling)
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = min(1.0, (1 - progress) / config.cooldown)
    return config.min_lr + (config.lr - config.min_lr) * left


def scale_rates(optimizers: Sequence[Optimizer], rate: float, config: OptimConfig) -> list[float]:
    """The learning rate of each: Adam's is rate, Muon's as much of muon_lr as rate is of lr."""
    return [
        rate / config.lr * config.muon_lr if isinstance(optimizer, Muon) else rate
        for optimizer in optimizers
    ]


@dataclass
class LossScale:
    """How many times too large gradients are computed, so that float16 does not lose small ones.

    Half as much after a step in which one overflowed, twice as much after 2,000 in which none did
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
    """

    scale: float = 2.0**16
    steps: int = 0
    """Without an overflow, in a row."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < 2.0**127:
            raise ValueError(f"scale is {self.scale}: it must be more than 0 and less than 2**127")
        if not 0 <= self.steps < 2000:
            raise ValueError(f"steps is {self.steps}: it must be at least 0 and less than 2000")

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Bring the gradients of parameters to their own size."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.scale)

    def update(self, overflowed: bool) -> None:
        """Learn how the last step went."""
        self.steps = 0 if overflowed else self.steps + 1
        if overflowed:
            self.scale /= 2
        elif self.steps == 2000:
            self.scale, self.steps = min(2 * self.scale, 2.0**126), 0
