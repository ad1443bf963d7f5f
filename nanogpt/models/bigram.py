"""The bigram: a table that guesses the next token from the last one alone.

The baseline that every other model has to beat, twice: learned by gradient descent like any
model, and in closed form by counting. Both reach the same table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cache import Cache


@dataclass(frozen=True)
class BigramConfig:
    """The size of the table."""

    vocab_size: int = 65
    """Different tokens; a training run takes this from its tokenizer."""
    block_size: int = 64
    """Length of the blocks it trains on; it looks at one token whatever this is."""

    def __post_init__(self) -> None:
        for field in ("vocab_size", "block_size"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} is {value}: it must be at least 1")
        if self.vocab_size > 16384:  # a gigabyte
            raise ValueError(
                f"vocab_size is {self.vocab_size}, and a bigram's table has the square of it: "
                f"take a tokenizer of at most 16384 tokens"
            )


def counted_loss(train: Tensor, val: Tensor, vocab_size: int, smoothing: float = 1.0) -> float:
    """Nats per token on val (M,) of Bigram.counted() on train (N,), without its table.

    Only the pairs that occur take memory, not all V² that could.
    """
    V = vocab_size
    pairs, counts = (train[:-1] * V + train[1:]).unique(return_counts=True)  # sorted
    firsts = torch.bincount(train[:-1], minlength=V)
    asked = val[:-1] * V + val[1:]  # (M - 1,)
    place = torch.searchsorted(pairs, asked).clamp(max=len(pairs) - 1)
    count = torch.where(pairs[place] == asked, counts[place], 0)
    p = (count + smoothing).double() / (firsts[val[:-1]] + smoothing * V)
    return -p.log().mean().item()


class Bigram(nn.Module):
    """Row i of the table holds the logits of the token that follows token i."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)
        nn.init.zeros_(self.table.weight)  # every follower equally likely: the loss starts at ln V

    lookup_tables = ("table.weight",)
    """Parameters of which a token reads one row and which no matrix product uses."""

    def matrices(self) -> dict[str, int]:
        """Empty: a bigram has no blocks."""
        return {}

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens (B, T) to logits (B, T, V); with a cache, of each row's last token (B, 1, V)."""
        logits: Tensor = self.table(tokens)
        return logits if cache is None else cache.last(logits)

    @classmethod
    def counted(cls, tokens: Tensor, config: BigramConfig, smoothing: float = 1.0) -> "Bigram":
        """The closed form: log((count(i, j) + s) / (count(i) + s V)), from tokens (N,).

        The maximum of the likelihood with s added to every count (Laplace smoothing), which keeps
        pairs that never occurred possible.
        """
        V = config.vocab_size
        pairs = tokens[:-1] * V + tokens[1:]  # (N - 1,): each pair as one number
        counts = torch.bincount(pairs, minlength=V * V).view(V, V) + smoothing
        model = cls(config)
        probabilities = counts.double() / counts.sum(dim=1, keepdim=True)
        model.table.weight.data = probabilities.log().float()
        return model
