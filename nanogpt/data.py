"""The tokens of a text: split in two, cut into blocks, drawn in batches.

Targets are inputs shifted by one: at every position the model has to guess the next token.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from .errors import UserError
from .tokenizers import CharTokenizer

SplitName = Literal["train", "val"]


class Split:
    """A stretch of text as tokens (N,), int64."""

    def __init__(self, text: str, tokenizer: CharTokenizer, device: torch.device) -> None:
        self.tokens = torch.tensor(tokenizer.encode(text), device=device)
        self.bytes_per_token = len(text.encode()) / max(1, len(self.tokens))


class Data:
    """The first 90% of the text to train on, the last 10% to measure with."""

    def __init__(
        self, text: str, tokenizer: CharTokenizer, device: torch.device | str = "cpu"
    ) -> None:
        cut = int(0.9 * len(text))
        device = torch.device(device)
        self.splits: dict[SplitName, Split] = {
            "train": Split(text[:cut], tokenizer, device),
            "val": Split(text[cut:], tokenizer, device),
        }

    def require(self, block_size: int) -> None:
        """Raise UserError unless both splits hold at least one block and its last target."""
        for name, split in self.splits.items():
            if (n := len(split.tokens)) <= block_size:
                raise UserError(
                    f"the text is too short: its {name} split has {n} tokens, and block_size "
                    f"{block_size} needs at least {block_size + 1}; give more text, or set "
                    f"--model.block-size to {n - 1} or less"
                    if n > 1
                    else f"the text is too short: its {name} split has {n} tokens; give more text"
                )

    def batch(
        self, split: SplitName, batch_size: int, block_size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (batch_size, block_size), from random places of a split.

        The places are drawn on the CPU from generator, so that they are the same on every device.
        """
        tokens = self.splits[split].tokens
        starts = torch.randint(len(tokens) - block_size, (batch_size, 1), generator=generator)
        places = (starts + torch.arange(block_size)).to(tokens.device)  # (B, T)
        return tokens[places], tokens[places + 1]

    def windows(
        self, split: SplitName, batch_size: int, block_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in order, in windows that do not overlap; the last may be shorter.

        Every token but the first is a target exactly once.
        """
        tokens = self.splits[split].tokens
        inputs, targets = tokens[:-1], tokens[1:]
        whole = len(targets) // block_size * block_size
        yield from zip(
            inputs[:whole].view(-1, block_size).split(batch_size),
            targets[:whole].view(-1, block_size).split(batch_size),
            strict=True,
        )
        if whole < len(targets):
            yield inputs[None, whole:], targets[None, whole:]
