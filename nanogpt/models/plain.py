"""A GPT without layer norm, in which feed-forward layers and residual connections are optional.

These models lie between a bigram and the GPT in gpt.py. studies/ladder.py measures how each part of
a GPT changes the loss.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from . import gpt
from .cache import Cache


@dataclass(frozen=True)
class PlainConfig(gpt.GPTConfig):
    """The configuration of a plain GPT, with its optional parts."""

    feed_forward: bool = False
    """Use a feed-forward layer after the attention of each block."""
    residual: bool = False
    """Add the input of each sub-layer to its output."""


class Block(gpt.Block):
    """Attention and optional feed-forward; with `residual`, each adds its input to its output."""

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
    """A GPT of plain blocks, without the final norm."""

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
                # Without residual connections, the small weights of gpt.py would shrink the signal.
                # With this standard deviation, the output of a layer has about the same variance as
                # the input of the layer (Glorot & Bengio 2010, section 4.2).
                if isinstance(module, nn.Linear) and not config.residual:
                    nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
