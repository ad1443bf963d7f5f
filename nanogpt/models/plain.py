"""GPT without layer norm, and as far as asked without feed-forward layers and residual connections.

The steps on the way to gpt.py, of which it is made, to measure what each buys (studies/ladder.py).
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from . import gpt
from .cache import Cache


@dataclass(frozen=True)
class PlainConfig(gpt.GPTConfig):
    """The shape of a GPT, and which of its parts there are."""

    feed_forward: bool = False
    """A feed-forward layer behind the attention of each block."""
    residual: bool = False
    """What goes into a part is added to what comes out."""


class Block(gpt.Block):
    """One part, or two, each of whose results replaces the stream, or is added to it."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.config = config
        self.norm1 = self.norm2 = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        a = self.attention(x, cache)
        x = x + a if self.config.residual else a
        if self.config.feed_forward:
            f = self.feed_forward(x)
            x = x + f if self.config.residual else f
        return x


class Plain(gpt.GPT):
    """A GPT of such blocks."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.norm = nn.Identity()  # type: ignore[assignment]
        blocks = [Block(config) for _ in range(config.n_layer)]
        self.blocks = nn.ModuleList(blocks)
        self.apply(self._initialise)
        for block in blocks:
            if not config.feed_forward:
                block.feed_forward = nn.Sequential()  # type: ignore[assignment]
            for module in block.modules():
                # Where nothing goes past a part, it must not make what goes through it smaller:
                # products keep the variance of their inputs (Glorot & Bengio 2010, section 4.2).
                if isinstance(module, nn.Linear) and not config.residual:
                    nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
