"""How weights move: the optimizers, which parameters decay, and the learning rate over time."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every parameter once: matrices and tables, which decay; biases and gains, which do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizers(
    model: nn.Module, config: OptimConfig, precision: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimizers that config describes, over all of model's parameters, each in one of them.

    Muon's own products run at the precision of the model's.
    """
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        groups = parameter_groups(model, config.weight_decay)
        return [_ready(torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True))]
    if config.optimizer == "adam":
        return [_ready(torch.optim.Adam(model.parameters(), lr=config.lr, betas=betas, fused=True))]
    named = dict(model.named_parameters())
    matrices = {n: p for n, p in named.items() if n.startswith("blocks.") and p.dim() == 2}
    qkv = {n: matrices.pop(n) for n in list(matrices) if n.endswith("qkv.weight")}
    rest = [p for n, p in named.items() if n not in matrices | qkv]
    adam = torch.optim.Adam(rest, lr=config.lr, betas=betas, fused=True)
    groups = [{"params": [*matrices.values()]}, {"params": [*qkv.values()], "parts": 3}]
    muon = Muon(groups, config.muon_lr, config.momentum, config.weight_decay, precision)
    return [_ready(adam), _ready(muon)]


def _ready(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """With all that it will remember already there, as zeros: every checkpoint has the same."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            for key in remembered(optimizer):
                like = torch.zeros((), device=p.device) if key == "step" else torch.zeros_like(p)
                optimizer.state[p][key] = like
    return optimizer


def remembered(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer keeps of each parameter: step is a scalar, all else of its shape."""
    return ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every direction of a matrix moves equally far.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with Nesterov momentum, and with
    decoupled weight decay (Liu et al. 2025, arXiv:2502.16982). Only for matrices. Those of one
    shape are worked on together, as one stack. A parameter may be several matrices, one on top of
    the other, as those for queries, keys and values are: its group says so with "parts".
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        super().__init__(matrices, defaults)
        # float16 could overflow; bfloat16 is exact enough (Jordan et al.).
        self.precision = torch.float32 if precision == torch.float32 else torch.bfloat16

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            stacks = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    stacks[p.shape].append(p)
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
            for matrices in stacks.values():
                self._move(matrices, group)

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Move N parameters of one shape, each of which is parts of (rows, columns)."""
        lr, momentum, parts = group["lr"], group["momentum"], group["parts"]
        rows, columns = matrices[0].shape[0] // parts, matrices[0].shape[1]
        gradients = [p.grad for p in matrices if p.grad is not None]
        means = [self.state[p]["momentum"] for p in matrices]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum)  # Nesterov's look ahead
        stack = torch.stack(ahead).view(-1, rows, columns)  # (N parts, rows, columns)
        updates = orthogonalise(stack, self.precision).to(stack.dtype)
        # A tall matrix maps to more dimensions: with this, each of them moves as far.
        updates *= lr * math.sqrt(max(1, rows / columns))
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        torch._foreach_sub_(matrices, list(updates.reshape(-1, *matrices[0].shape).unbind()))


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
def follow(means: Sequence[Tensor], weights: Sequence[Tensor], decay: float, step: int) -> None:
    """Move the running means of weights after so many steps: an average over 1 / (1 - decay) steps.

    At the start over fewer, about a ninth of those taken: the first weights are soon forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(means), list(weights), 1 - decay)


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


def set_rates(
    optimizers: Sequence[torch.optim.Optimizer], rate: float, config: OptimConfig
) -> None:
    """Set the learning rate: Adam's is rate, Muon's as much of muon_lr as rate is of lr."""
    for optimizer in optimizers:
        muon = isinstance(optimizer, Muon)
        for group in optimizer.param_groups:
            group["lr"] = rate / config.lr * config.muon_lr if muon else rate
