"""What changes while a run goes on: saved and restored, it is the very run that it would have been.

Weights, optimizers and gradient scaler, every random generator, the counts, and the losses that no
line of metrics.jsonl has yet. The order of the batches is no state: it follows from the seed and
the tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .devices import random_states, set_random_states
from .models import Model
from .optim import remembered

GENERATORS = ("random.cuda", "random.mps")
"""Names in State.tensors() that depend on the device."""


@dataclass
class State:
    """Everything that a step changes."""

    model: Model
    optimizers: list[torch.optim.Optimizer]
    """Each for other parameters."""
    scaler: torch.amp.GradScaler
    average: list[Tensor] = field(default_factory=list)
    """The running mean of every parameter, in a run that makes one."""
    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Spent on training, evaluations included."""
    losses: list[Tensor] = field(default_factory=list)
    """Of the steps since the last line of metrics.jsonl, left on the device."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the weights that is a tensor, by name."""
        found = {f"random.{name}": state for name, state in random_states(self.device).items()}
        for optimizer in self.optimizers:
            moments = optimizer.state_dict()["state"]
            for index, (name, _) in enumerate(self._parameters(optimizer)):
                for key, tensor in moments.get(index, {}).items():
                    found[f"optimizer.{name}.{key}"] = tensor
        for (name, _), mean in zip(self.model.named_parameters(), self.average, strict=False):
            found[f"average.{name}"] = mean
        found["losses"] = torch.stack(self.losses) if self.losses else torch.empty(0)
        return found

    def expected(self, pending: int) -> dict[str, Tensor]:
        """Tensors of the shapes that tensors() has, with pending losses.

        But for the generators of a GPU, of which there may be one or none.
        """
        always = {
            "random.cpu": torch.get_rng_state(),
            "losses": torch.empty(pending, device="meta"),
        }
        moments = {
            f"optimizer.{name}.{key}": torch.empty(() if key == "step" else p.shape, device="meta")
            for optimizer in self.optimizers
            for name, p in self._parameters(optimizer)
            for key in remembered(optimizer)
        }
        means = {
            f"average.{name}": torch.empty(p.shape, device="meta")
            for name, p in self.model.named_parameters()
            if self.average
        }
        return always | means | moments

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from tensors(). Raises RuntimeError where a generator cannot have such a state.

        Generators of another device are left out: going on there is not the same to the bit.
        """
        self.losses = list(tensors["losses"].to(self.device, copy=True))
        here = random_states(self.device)
        set_random_states(
            {name: tensors.get(f"random.{name}", state).clone() for name, state in here.items()},
            self.device,
        )
        for (name, _), mean in zip(self.model.named_parameters(), self.average, strict=False):
            mean.copy_(tensors[f"average.{name}"])
        for optimizer in self.optimizers:
            moments = {
                index: {
                    key: tensors[f"optimizer.{name}.{key}"].clone() for key in remembered(optimizer)
                }
                for index, (name, _) in enumerate(self._parameters(optimizer))
            }
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})

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

    def _parameters(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
        """Names and parameters in the order in which an optimizer numbers them."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [(names[p], p) for group in optimizer.param_groups for p in group["params"]]
