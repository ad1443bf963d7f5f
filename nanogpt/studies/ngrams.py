"""The next token by counting: how often each one followed the n - 1 before it."""

import torch
from torch import Tensor


class NGrams:
    """p(x | the n - 1 before it) = (count + s) / (count of those before it + s V).

    Only what occurred takes memory. n = 1 counts tokens, n = 2 is models/bigram.py's table.
    """

    def __init__(self, tokens: Tensor, n: int, vocab_size: int, smoothing: float = 1.0) -> None:
        """Counts those of tokens (N,). n may be as large as vocab_sizeⁿ stays below 2⁶³."""
        self.n, self.V, self.smoothing = n, vocab_size, smoothing
        codes = self._codes(tokens)
        self.codes, self.times = codes.unique(return_counts=True)  # sorted
        self.firsts, self.first_times = (codes // vocab_size).unique(return_counts=True)

    def _codes(self, tokens: Tensor) -> Tensor:
        """Each n-gram as one number (N - n + 1,), the last token its last digit to the base V."""
        count = len(tokens) - self.n + 1
        codes = torch.zeros(count, dtype=torch.long)
        for i in range(self.n):
            codes = codes * self.V + tokens[i : i + count]
        return codes

    def loss(self, tokens: Tensor) -> float:
        """Nats per token of tokens (N,), all but the first n - 1."""
        codes = self._codes(tokens)
        times = _looked_up(codes, self.codes, self.times)
        before = _looked_up(codes // self.V, self.firsts, self.first_times)
        p = (times + self.smoothing).double() / (before + self.smoothing * self.V)
        return -p.log().mean().item()

    def sample(self, start: int, length: int, generator: torch.Generator) -> list[int]:
        """Tokens that follow start, each drawn by its chance."""
        text = [start] * max(1, self.n - 1)
        for _ in range(length):
            code = 0
            for token in text[len(text) - self.n + 1 :]:
                code = code * self.V + token
            followers = code * self.V + torch.arange(self.V)
            chances = _looked_up(followers, self.codes, self.times) + self.smoothing
            text.append(int(torch.multinomial(chances, 1, generator=generator)))
        return text[-length:]

    @property
    def parameters(self) -> int:
        """How many counts it keeps."""
        return len(self.codes)


def _looked_up(asked: Tensor, codes: Tensor, times: Tensor) -> Tensor:
    """How often each of asked (N,) is among codes (M,), which came times (M,)."""
    place = torch.searchsorted(codes, asked).clamp(max=len(codes) - 1)
    return torch.where(codes[place] == asked, times[place], 0)
