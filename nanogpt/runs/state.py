"""What changes while a run goes on: saved and restored, it is the very run that it would have been.

Weights, optimizers and the scale of the loss, every random generator, the counts, and the losses
that no line of metrics.jsonl has yet. The order of the batches is no state: it follows from the
seed and the tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models import Model
from ..optim import Optimizer
from ..system.devices import get_random_states, set_random_states
from .loss_scale import LossScale

GENERATORS = ("random.cuda", "random.mps")
"""Names in State.tensors() that depend on the device."""


@dataclass
class State:
    """Everything that a step changes."""

    model: Model
    optimizers: list[Optimizer]
    """Each for other parameters."""
    scale: LossScale | None = None
    """Of a float16 run."""
    average: list[Tensor] = field(default_factory=list)
    """The running mean of every parameter, in a run that makes one."""
    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Spent on training, evaluations included."""
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    """Of the steps since the last line of metrics.jsonl (n,), left on the device."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the weights that is a tensor, by name."""
        found = {f"random.{name}": state for name, state in get_random_states(self.device).items()}
        return {**found, **self._kept(), "losses": self.losses}

    def expected(self, pending: int) -> dict[str, Tensor]:
        """Tensors of the shapes that tensors() has, with pending losses.

        But for the generators of a GPU, of which there may be one or none.
        """
        losses = torch.empty(pending, device="meta")
        return {"random.cpu": torch.get_rng_state(), **self._kept(), "losses": losses}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from tensors(). Raises RuntimeError where a generator cannot have such a state.

        Generators of another device are left out: going on there is not the same to the bit.
        """
        self.losses = tensors["losses"].to(self.device, copy=True)
        here = get_random_states(self.device)
        set_random_states(
            {name: tensors.get(f"random.{name}", state).clone() for name, state in here.items()},
            self.device,
        )
        for name, tensor in self._kept().items():
            tensor.copy_(tensors[name])

    def _kept(self) -> dict[str, Tensor]:
        """What lies in one place from the first step to the last, beside the weights."""
        found = {
            f"optimizer.{name}": tensor
            for optimizer in self.optimizers
            for name, tensor in optimizer.state().items()
        }
        for (name, _), mean in zip(self.model.named_parameters(), self.average, strict=False):
            found[f"average.{name}"] = mean
        return found

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Within it, the model has the running means for weights."""
        weights: list[Tensor] = [*self.model.parameters()]
        kept = [p.detach().clone() for p in weights]
        torch._foreach_copy_(weights, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)
