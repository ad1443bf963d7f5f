"""The tokens of a text: split in two, cut into blocks, drawn in batches.

Targets are inputs shifted by one: at every position the model has to guess the next token.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from .errors import UserError
from .system.devices import free_token_memory
from .text.corpora import SPLITS, Corpus
from .text.encoding import Tokens, encode
from .text.readers import Progress, quiet
from .text.tokenizers import Tokenizer

OrderName = Literal["random", "epochs"]


class Split:
    """A stretch of text as tokens (N,), on the device that they are for if it has room for them."""

    def __init__(self, tokens: Tokens, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # torch does little with numbers without a sign: widened() takes the sign away again.
        ids = torch.from_numpy(tokens.ids.view(f"<i{tokens.ids.itemsize}"))
        self.tokens = ids.to(device) if ids.nbytes < free_token_memory(self.device) else ids
        self.bytes_per_token = tokens.bytes / max(1, len(self.tokens))

    def bits_per_byte(self, loss: float) -> float:
        """A loss in nats per token as bits per byte of text: comparable between tokenizers."""
        return loss / math.log(2) / self.bytes_per_token

    def require(self, block_size: int, name: str) -> None:
        """Raise UserError, with the split's name, unless it holds a block and its last target."""
        if (n := len(self.tokens)) <= block_size:
            raise UserError(
                f"the text is too short: its {name} split has {n} tokens, and block_size "
                f"{block_size} needs at least {block_size + 1}; give more text, or set "
                f"--model.block-size to {n - 1} or less"
                if n > 1
                else f"the text is too short: its {name} split has {n} tokens; give more text"
            )

    def blocks(self, starts: Tensor, block_size: int) -> Tensor:
        """The blocks that start at starts (B,), each with what follows it: (B, block_size + 1)."""
        places = torch.arange(block_size + 1, device=self.tokens.device)
        return self.tokens[starts.to(self.tokens.device)[:, None] + places].to(self.device)

    def windows(self, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in order, in windows that do not overlap; the last may be shorter.

        Every token but the first is a target exactly once.
        """
        inputs, targets = self.tokens[:-1], self.tokens[1:]
        whole = len(targets) // block_size * block_size
        for x, y in zip(
            inputs[:whole].view(-1, block_size).split(batch_size),
            targets[:whole].view(-1, block_size).split(batch_size),
            strict=True,
        ):
            yield to_int64(x.to(self.device)), to_int64(y.to(self.device))
        if whole < len(targets):
            rest = self.tokens[None, whole:].to(self.device)
            yield inputs_and_targets(rest)


def to_int64(tokens: Tensor) -> Tensor:
    """Tokens of 16 or 32 bits as the 64 that an embedding takes."""
    return tokens.long() & 0xFFFF if tokens.dtype == torch.int16 else tokens.long()


def inputs_and_targets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of blocks (B, T + 1) all but the last, and all but the first of each: (B, T) both."""
    blocks = to_int64(blocks)
    return blocks[:, :-1], blocks[:, 1:]


class Data:
    """A text's two splits."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        val_fraction: float = 0.1,
        progress: Progress = quiet,
    ) -> None:
        self.splits = {
            name: Split(encode(corpus, tokenizer, name, val_fraction, progress), device)
            for name in SPLITS
        }

    def require(self, block_size: int) -> None:
        """Raise UserError unless both splits hold at least one block and its last target."""
        for name, split in self.splits.items():
            split.require(block_size, name)


class BatchOrder:
    """Where the blocks of each batch start: it follows from the seed and how many were drawn.

    random: anywhere, as if no block had been drawn before. epochs: the text is cut into blocks, and
    each is drawn once, in random order, before the text is cut anew at other places.
    """

    def __init__(self, name: OrderName, tokens: int, block_size: int, seed: int) -> None:
        """For a split of so many tokens, at least block_size + 1."""
        self.name, self.block_size, self.seed = name, block_size, seed
        self.places = tokens - block_size
        """Of all blocks, with the target of their last token."""
        self.per_epoch = max(1, self.places // block_size)
        self._epoch = -1
        self._blocks = torch.empty(0)

    def starts(self, drawn: int, batch_size: int) -> Tensor:
        """The starts (batch_size,) of the batch after so many blocks."""
        if self.name == "random":
            return torch.randint(self.places, (batch_size,), generator=self._generator(drawn))
        end, parts = drawn + batch_size, []
        while drawn < end:
            epoch, place = divmod(drawn, self.per_epoch)
            parts.append(self._shuffled(epoch)[place : place + end - drawn])
            drawn += len(parts[-1])
        return torch.cat(parts)

    def _shuffled(self, epoch: int) -> Tensor:
        """The starts (per_epoch,) of all blocks in the order of an epoch."""
        if epoch != self._epoch:
            generator = self._generator(epoch)
            left_over = self.places - (self.per_epoch - 1) * self.block_size
            cut = torch.randint(left_over, (1,), generator=generator)
            order = torch.randperm(self.per_epoch, generator=generator)
            self._epoch, self._blocks = epoch, cut + self.block_size * order
        return self._blocks

    def _generator(self, number: int) -> torch.Generator:
        """One of its own for every batch or epoch of every seed."""
        mixed = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
