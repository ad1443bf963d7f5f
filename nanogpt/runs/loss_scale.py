"""The loss scale of a float16 run: it prevents small gradients from underflowing to 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

GROWTH_INTERVAL = 2000
"""The scale doubles after this many steps without an overflow."""


@dataclass
class LossScale:
    """A factor that multiplies the loss, and therefore every gradient.

    It halves after a step in which a gradient overflowed, and doubles after GROWTH_INTERVAL steps
    without an overflow (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
    """

    scale: float = 2.0**16
    steps: int = 0
    """Steps without an overflow since the last change of `scale`."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < 2.0**127:
            raise ValueError(f"scale is {self.scale}: it must be more than 0 and less than 2**127")
        if not 0 <= self.steps < GROWTH_INTERVAL:
            raise ValueError(
                f"steps is {self.steps}: it must be at least 0 and less than {GROWTH_INTERVAL}"
            )

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divide the gradients of `parameters` by the scale."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.scale)

    def update(self, has_overflowed: bool) -> None:
        """Halve or double the scale after a step, if necessary."""
        self.steps = 0 if has_overflowed else self.steps + 1
        if has_overflowed:
            self.scale /= 2
        elif self.steps == GROWTH_INTERVAL:
            self.scale, self.steps = min(2 * self.scale, 2.0**126), 0
