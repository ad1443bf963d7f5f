"""The bigram model: a table that predicts the next token from the current token alone.

It is the baseline that every other model has to beat. The table can be computed directly, by
counting pairs of tokens, or trained by gradient descent, which approaches the counted table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cache import Cache


@dataclass(frozen=True)
class BigramConfig:
    """The configuration of a bigram model."""

    vocab_size: int = 65
    """Number of different tokens; a training run takes it from its tokenizer."""
    block_size: int = 64
    """Length of the training blocks; the model itself uses one token only."""

    def __post_init__(self) -> None:
        for field in ("vocab_size", "block_size"):
            if not 1 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} is {value}: it must be at least 1 and less than 2**31")
        if self.vocab_size > 16384:  # the table would be larger than 1 GiB
            raise ValueError(
                f"vocab_size is {self.vocab_size}, and the table of a bigram has vocab_size² "
                f"entries: use a tokenizer with at most 16384 tokens"
            )


class Bigram(nn.Module):
    """A table: row i holds the logits of the token that follows token i."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)
        nn.init.zeros_(self.table.weight)  # uniform probabilities: the loss starts at ln V

    lookup_tables = ("table.weight",)
    """Names of the tables in which the model only looks up rows, without a matrix product."""

    def matrices(self) -> dict[str, int]:
        """Return an empty dictionary: a bigram has no Transformer blocks."""
        return {}

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Map tokens (B, T) to logits (B, T, V). With a cache, return the last logits (B, 1, V)."""
        logits = self.table(tokens)
        return logits if cache is None else cache.select_last(logits)

    @classmethod
    def counted(cls, tokens: Tensor, config: BigramConfig, smoothing: float = 1.0) -> "Bigram":
        """Return the model whose logit (i, j) is log((count(i, j) + s) / (count(i) + s V)).

        count(i, j) is how often j follows i in `tokens` (N,); count(i) is the sum of count(i, j)
        over all j. With s = `smoothing` above 0, no pair has the probability 0 (Laplace smoothing).
        """
        V = config.vocab_size
        pairs = tokens[:-1] * V + tokens[1:]  # (N - 1,): each pair as one integer
        counts = torch.bincount(pairs, minlength=V * V).view(V, V) + smoothing
        model = cls(config)
        probabilities = counts.double() / counts.sum(dim=1, keepdim=True)
        model.table.weight.data = probabilities.log().float()
        return model
