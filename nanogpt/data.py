"""Turns tokens into batches: makes two splits, cuts blocks of fixed length, orders the blocks.

The targets are the inputs shifted by one: at each position, the model predicts the next token.

Dimensions: B blocks, T block_size, N tokens.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from .system.devices import free_token_memory
from .text.corpora import SPLITS, Corpus
from .text.encoding import Tokens, encode_corpus
from .text.readers import Progress, no_progress
from .text.tokenizers import Tokenizer

OrderName = Literal["random", "epochs"]


class Split:
    """A part of a text as tokens (N,), stored on `device` if they fit, otherwise in host memory."""

    def __init__(self, tokens: Tokens | Tensor, device: torch.device | str = "cpu") -> None:
        """`tokens` is a Tokens object, or a tensor of token ids (N,) whose text is not known."""
        self.device = torch.device(device)
        self.bytes_per_token = 0.0
        """Mean number of bytes of text per token; 0 if the text is not known."""
        self.lost = 0.0
        """Fraction of the text that the tokens do not reproduce."""
        if isinstance(tokens, Tokens):
            self.bytes_per_token = tokens.bytes / max(1, len(tokens.ids))
            self.lost = tokens.lost_bytes / max(1, tokens.bytes)
            # Use signed ids: torch has few operations for unsigned ones. to_int64() restores them.
            tokens = torch.from_numpy(tokens.ids.view(f"<i{tokens.ids.itemsize}"))
        fits = tokens.nbytes < free_token_memory(self.device)
        self.tokens = tokens.to(device) if fits else tokens

    def bits_per_byte(self, loss: float) -> float | None:
        """Convert nats per token to bits per byte, which can be compared between tokenizers.

        Returns None if the text is not known. Also returns None if the tokens do not reproduce the
        whole text: the model does not predict the lost part, so the result would be too low.
        """
        is_known = self.bytes_per_token and not self.lost
        return loss / math.log(2) / self.bytes_per_token if is_known else None

    def blocks(self, starts: Tensor, block_size: int) -> Tensor:
        """Return the blocks (B, T + 1) at `starts` (B,): T tokens and the token after them."""
        offsets = torch.arange(block_size + 1, device=self.tokens.device)
        return self.tokens[starts.to(self.tokens.device)[:, None] + offsets].to(self.device)

    def windows(self, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs (B, T) and targets (B, T) of non-overlapping windows of the whole split.

        Every token except the first is a target exactly once; the last window may be shorter.
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
            yield inputs_and_targets(self.tokens[None, whole:].to(self.device))


def to_int64(tokens: Tensor) -> Tensor:
    """Convert token ids from 16 or 32 bits to the 64-bit integers that the loss function needs."""
    return tokens.long() & 0xFFFF if tokens.dtype == torch.int16 else tokens.long()


def inputs_and_targets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Split blocks (B, T + 1) into inputs (B, T) and targets (B, T), the inputs shifted by one."""
    blocks = to_int64(blocks)
    return blocks[:, :-1], blocks[:, 1:]


class Data:
    """The training and validation splits of a text: by default its first 90% and its last 10%."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        val_fraction: float = 0.1,
        progress: Progress = no_progress,
    ) -> None:
        self.splits = {
            name: Split(encode_corpus(corpus, tokenizer, name, val_fraction, progress), device)
            for name in SPLITS
        }


class BatchOrder:
    """Chooses where the blocks of a batch start, given the seed and the number of earlier blocks.

    `random`: each block starts at a random position. `epochs`: each epoch cuts the text into
    blocks, starting at a random offset, and uses each block once, in random order.
    """

    def __init__(self, name: OrderName, tokens: int, block_size: int, seed: int) -> None:
        """`tokens` is the number of tokens in the split, at least block_size + 1."""
        self.name, self.block_size, self.seed = name, block_size, seed
        self.places = tokens - block_size
        """Number of positions at which a block can start."""
        self.per_epoch = max(1, self.places // block_size)
        self._epoch = -1
        self._blocks = torch.empty(0)

    def starts(self, blocks_so_far: int, batch_size: int) -> Tensor:
        """Return the starts (B,) of the blocks in the next batch, after `blocks_so_far` blocks."""
        if self.name == "random":
            generator = self._generator(blocks_so_far)
            return torch.randint(self.places, (batch_size,), generator=generator)
        end, parts = blocks_so_far + batch_size, []
        while blocks_so_far < end:
            epoch, i = divmod(blocks_so_far, self.per_epoch)
            parts.append(self._shuffled(epoch)[i : i + end - blocks_so_far])
            blocks_so_far += len(parts[-1])
        return torch.cat(parts)

    def _shuffled(self, epoch: int) -> Tensor:
        """Return the starts (per_epoch,) of all blocks of an epoch, in the order of their use."""
        if epoch != self._epoch:
            generator = self._generator(epoch)
            spare = self.places - (self.per_epoch - 1) * self.block_size
            offset = torch.randint(spare, (1,), generator=generator)
            order = torch.randperm(self.per_epoch, generator=generator)
            self._epoch, self._blocks = epoch, offset + self.block_size * order
        return self._blocks

    def _generator(self, number: int) -> torch.Generator:
        """Return a random generator for one batch or epoch, seeded with `number` and the seed."""
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
