"""The state that training changes; a resumed run restores it and continues as if uninterrupted.

It consists of the weights and their running means, the optimizers, the loss scale, the states of
the random generators, the counters, and the losses that are not yet in metrics.jsonl. The order of
the batches needs no state: the seed and the counter of tokens determine it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models import Model
from ..optim import Optimizer
from ..system import distributed
from ..system.devices import get_random_states, set_random_states
from .loss_scale import LossScale

GENERATORS = ("random.cuda", "random.mps")
"""Names of the generator states in State.tensors() that exist only on some devices."""


@dataclass
class State:
    """Everything that a training step changes."""

    model: Model
    optimizers: list[Optimizer]
    """Each optimizer updates its own parameters."""
    scale: LossScale | None = None
    """The loss scale of a float16 run."""
    average: list[Tensor] = field(default_factory=list)
    """The running mean of each parameter; empty in a run without weight averaging."""
    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Seconds of training, evaluations included."""
    gradient_norm: float = math.nan
    """Norm of the gradient of the last step, before clipping; NaN before the first step."""
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    """Losses (n,), on the device, of the n steps since the last line of metrics.jsonl."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state except the weights, by name."""
        states = get_random_states(self.device)
        generators = {f"random.{name}": state for name, state in states.items()}
        return {**generators, **self._get_fixed_tensors(), "losses": self.losses}

    def expected_tensors(self, losses: int) -> dict[str, Tensor]:
        """Return tensors with the same names, shapes and types as those that tensors() returns.

        `losses` is the number of losses since the last line of metrics.jsonl. The state of a
        GPU's generator is not included, because a checkpoint of a CPU run does not contain it.
        """
        return {
            "random.cpu": torch.get_rng_state(),
            **self._get_fixed_tensors(),
            "losses": torch.empty(losses, device="meta"),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state from `tensors`, the result of tensors().

        Raises RuntimeError if a generator rejects its state. If a run resumes on another type of
        device, the state of the old device's generator is ignored. The resumed run then differs
        from an uninterrupted run.
        """
        self.losses = tensors["losses"].to(self.device, copy=True)
        current = get_random_states(self.device)
        states = {name: tensors.get(f"random.{name}", current[name]).clone() for name in current}
        set_random_states(states, self.device)
        for name, tensor in self._get_fixed_tensors().items():
            distributed.fill(tensor, tensors[name])

    def _get_fixed_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that keep their memory address throughout training, by name."""
        tensors = {
            f"optimizer.{name}": tensor
            for optimizer in self.optimizers
            for name, tensor in optimizer.state().items()
        }
        for (name, _), mean in zip(self.model.named_parameters(), self.average, strict=False):
            tensors[f"average.{name}"] = mean
        return tensors

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Within this context, the weights of the model are replaced by their running means."""
        parameters = [*self.model.parameters()]
        weights = [p.detach().clone() for p in parameters]
        for parameter, mean in zip(parameters, self.average, strict=True):
            parameter.copy_(mean)
        try:
            yield
        finally:
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
