"""What changes while a run goes on: saved and restored, it is the very run that it would have been.

Weights, optimizer and gradient scaler, every random generator, the counts, and the losses that no
line of metrics.jsonl has yet.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .devices import random_states, set_random_states
from .models import Model
from .optim import ADAM_STATE

GENERATORS = ("random.cuda", "random.mps")
"""Names in State.tensors() that depend on the device."""


@dataclass
class State:
    """Everything that a step changes."""

    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    order: torch.Generator
    """Draws the batches, and nothing else."""
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
        random = {"order": self.order.get_state(), **random_states(self.device)}
        moments = self.optimizer.state_dict()["state"]
        found = {f"random.{name}": state for name, state in random.items()} | {
            f"optimizer.{name}.{key}": tensor
            for index, (name, _) in enumerate(self._parameters())
            for key, tensor in moments.get(index, {}).items()
        }
        found["losses"] = torch.stack(self.losses) if self.losses else torch.empty(0)
        return found

    def expected(self, pending: int) -> dict[str, Tensor]:
        """Tensors of the shapes that tensors() has after so many steps, with pending losses.

        But for the generators of a GPU, of which there may be one or none.
        """
        always = {
            "random.order": self.order.get_state(),
            "random.cpu": torch.get_rng_state(),
            "losses": torch.empty(pending, device="meta"),
        }
        moments = {
            f"optimizer.{name}.{key}": torch.empty(() if key == "step" else p.shape, device="meta")
            for name, p in self._parameters()
            for key in ADAM_STATE
        }
        return always | (moments if self.step else {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from tensors(). Raises RuntimeError where a generator cannot have such a state.

        Generators of another device are left out: going on there is not the same to the bit.
        """
        self.losses = list(tensors["losses"].to(self.device, copy=True))
        self.order.set_state(tensors["random.order"].clone())
        here = random_states(self.device)
        set_random_states(
            {name: tensors.get(f"random.{name}", state).clone() for name, state in here.items()},
            self.device,
        )
        moments = {
            index: {key: tensors[f"optimizer.{name}.{key}"].clone() for key in ADAM_STATE}
            for index, (name, _) in enumerate(self._parameters())
            if self.step
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _parameters(self) -> list[tuple[str, Tensor]]:
        """Names and parameters in the order in which the optimizer numbers them."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = self.optimizer.param_groups
        return [(names[p], p) for group in groups for p in group["params"]]
