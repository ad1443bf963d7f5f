"""The key/value cache, from which generation reads the keys and values of earlier tokens."""

import torch
from torch import Tensor, nn


class Cache:
    """The keys and values of B texts, and other tensors that a model needs from earlier tokens.

    The keys and values of a token never change, since no token attends to later tokens. Each
    tensor has S slots for each text, and its shape and memory address never change. A mask hides
    the empty slots. So a decoding step can be captured as a CUDA graph and replayed.
    """

    def __init__(self, batch_size: int, size: int, device: torch.device) -> None:
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        """Number of cached tokens of each text (B,)."""
        self.input_lengths = torch.ones_like(self.lengths)
        """Number of tokens of each text in the next input (B,); the rest of a row is padding."""
        self.positions = torch.empty(0)
        """Position of each input token in its text (B, T)."""
        self._mask: Tensor | None = None
        # Attention kernels are faster with a multiple of 16 slots.
        self._slots = torch.arange(-(-size // 16) * 16, device=device)  # (S,)
        self._zero = torch.zeros((), device=device)
        self._memory: dict[nn.Module, Tensor] = {}

    def set_positions(self, T: int, dtype: torch.dtype) -> Tensor:
        """Set and return the positions (B, T) of the next T tokens.

        A model calls this method at the start of each forward pass. In decoding, T is 1. In a
        prefill, the T tokens are the first tokens of each text, with padding after shorter texts. A
        prefill with T = 1 is treated as decoding.
        """
        self.positions = self.lengths[:, None] + self._slots[:T]
        self._zero, self._mask = self._zero.to(dtype), None
        return self.positions

    @property
    def mask(self) -> Tensor | None:
        """Mask (B, 1, 1, S) to add to the scores in decoding; None in a prefill (see extend())."""
        if self._mask is None and self.positions.shape[-1] == 1:
            hidden = self._slots > self.positions[:, None, None]  # (B, 1, 1, S)
            self._mask = self._zero.masked_fill(hidden, -torch.inf)
        return self._mask

    def append(self, module: nn.Module, new: Tensor, offset: int = 0) -> Tensor:
        """Store a module's new tensor (..., T, D); return all its slots (..., offset + S, D).

        The leading dimensions are (B,) or (2, B, H). Position p is in slot p + offset. The first
        `offset` slots stay 0: they stand for positions before the text.
        """
        memory = self.reserve(module, new, offset)
        slots = (self.positions + offset)[:, :, None]  # (B, T, 1)
        if new.dim() == 5:
            slots = slots[:, None]
        return memory.scatter_(-2, slots.expand_as(new), new)

    def reserve(self, module: nn.Module, new: Tensor, offset: int = 0) -> Tensor:
        """Return a module's slots (..., offset + S, D), for tensors like `new` (..., T, D)."""
        if module not in self._memory:
            S = len(self._slots) + offset
            self._memory[module] = new.new_zeros(*new.shape[:-2], S, new.shape[-1])
        return self._memory[module]

    def extend(self, module: nn.Module, new: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the keys and values of the input (2, B, H, T, D); return keys, values and mask.

        In a prefill (T > 1), the result is the new keys and values, and None as the mask: the
        causal mask is enough. In decoding (T = 1), the result is the keys and values in all slots
        (B, H, S, D), and a mask that hides empty slots.
        """
        memory = self.append(module, new)
        k, v = new if self.mask is None else memory
        return k, v, self.mask

    def select_last(self, x: Tensor) -> Tensor:
        """Return the last vector (B, 1, C) of each row of x (B, T, C), ignoring padding."""
        if x.shape[1] == 1:
            return x
        return x.gather(1, (self.input_lengths - 1)[:, None, None].expand(-1, 1, x.shape[2]))

    def begin_prefill(self, lengths: list[int]) -> None:
        """Empty the cache, and set how many tokens each text has in the next input."""
        self.lengths.zero_()
        self.input_lengths.copy_(torch.tensor(lengths))

    def end_prefill(self) -> None:
        """Record that the prefill is cached. Each later input has one token per text."""
        self.lengths.copy_(self.input_lengths)
        self.input_lengths.fill_(1)

    def advance(self) -> None:
        """Record that one more token of each text is cached."""
        self.lengths += self.input_lengths
