"""What a model remembers while it writes, so that every token goes through it only once."""

import torch
from torch import Tensor, nn


class Cache:
    """What B texts have been to a model so far, in memory that stays where it is.

    The keys and values of attention, above all: those of a token never change, as no token looks
    ahead. Shapes are always the same, S places for each text, of which the mask hides those that
    are not used yet; so the work of a step can be captured once and replayed.
    """

    def __init__(self, batch_size: int, size: int, device: torch.device) -> None:
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        """Tokens of each text that are in here (B,)."""
        self.input_lengths = torch.ones_like(self.lengths)
        """How many come next (B,). A row of tokens may be longer, to be as long as the others."""
        self.positions = torch.empty(0)
        self.mask: Tensor | None = None
        """Added to scores (B, 1, 1, S). None while a text is read from its start: nothing is hidden
        but the future."""
        self._slots = torch.arange(-(-size // 16) * 16, device=device)  # kernels like a round S
        self._zero = torch.zeros((), device=device)
        self._memory: dict[nn.Module, Tensor] = {}

    def set_positions(self, T: int, dtype: torch.dtype) -> Tensor:
        """Where the next T tokens of each text stand (B, T). The model begins with this.

        There is one, or there are all from the start of the text.
        """
        self.positions = self.lengths[:, None] + self._slots[:T]
        self.mask = None
        if T == 1:
            hidden = self._slots > self.positions[:, None, None]  # (B, 1, 1, S)
            self._zero = self._zero.to(dtype)
            self.mask = self._zero.masked_fill(hidden, -torch.inf)
        return self.positions

    def append(self, part: nn.Module, new: Tensor, before: int = 0) -> Tensor:
        """What a part of the model has to remember: new (…, T, D) to all there is (…, S, D).

        … is B, or 2, B, H. The place of position p is p + before; what comes before all is zero.
        """
        if part not in self._memory:
            S = len(self._slots) + before
            self._memory[part] = new.new_zeros(*new.shape[:-2], S, new.shape[-1])
        places = (self.positions + before)[:, :, None]  # (B, T, 1)
        if new.dim() == 5:
            places = places[:, None]
        self._memory[part].scatter_(-2, places.expand_as(new), new)
        return self._memory[part]

    def select_last(self, x: Tensor) -> Tensor:
        """Of x (B, T, C) the last token that came in each row (B, 1, C): what follows is asked."""
        if x.shape[1] == 1:
            return x
        return x.gather(1, (self.input_lengths - 1)[:, None, None].expand(-1, 1, x.shape[2]))

    def begin_prefill(self, lengths: list[int]) -> None:
        """Empty the cache and expect this many tokens of each text."""
        self.lengths.zero_()
        self.input_lengths.copy_(torch.tensor(lengths))

    def end_prefill(self) -> None:
        """Count the tokens of the prefill, and expect one token at a time from now on."""
        self.lengths.copy_(self.input_lengths)
        self.input_lengths.fill_(1)

    def advance(self) -> None:
        """Count the token of each text that the model has just read."""
        self.lengths += self.input_lengths
