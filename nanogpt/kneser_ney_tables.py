"""Kneser-Ney probabilities of all tokens at all positions of a batch, computed on any device.

The probabilities are those of text/kneser_ney.py, except for rounding to float16. For each length
of n-grams, a table has one row for each context, and a column for each token of the vocabulary.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .text.kneser_ney import KneserNey

MAX_VOCABULARY = 256
"""Largest vocabulary: the tables need two bytes for each context and each token."""
MAX_COUNTED_TOKENS = 10_000_000
"""Largest number of tokens to count. A text of this length has millions of contexts."""


class KneserNeyTables(nn.Module):
    """Maps tokens to the log-probabilities of the next token, given up to n - 1 previous tokens.

    n is the length of the longest n-grams of `model`.
    """

    def __init__(self, model: KneserNey, device: torch.device) -> None:
        super().__init__()
        self.vocab_size = V = model.vocab_size
        self.contexts: list[Tensor] = []
        """For each length, the codes of the contexts, in ascending order (text/ngrams.py)."""
        self.discounted: list[Tensor] = []
        """For each length, (count - discount) / total of each context and token (contexts, V)."""
        self.reserved: list[Tensor] = []
        """For each length, reserved / total of each context (contexts, 1)."""
        for order in model.orders:
            totals = order.totals.clip(min=1)
            rows = np.searchsorted(order.contexts, order.codes // V)
            values = (order.counts - order.discounts[order.counts.clip(max=3)]) / totals[rows]
            table = torch.zeros(len(order.contexts), V, dtype=torch.float16)
            places = torch.from_numpy(rows), torch.from_numpy(order.codes % V)
            table[places] = torch.from_numpy(values).half()
            self.contexts.append(torch.from_numpy(order.contexts).to(device))
            self.discounted.append(table.to(device))
            reserved = torch.from_numpy(order.reserved / totals).float()
            self.reserved.append(reserved[:, None].to(device))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to log-probabilities of the next token (B, T, V)."""
        V = self.vocab_size
        p = torch.full((*tokens.shape, V), 1 / V, device=tokens.device)
        code = torch.zeros_like(tokens)
        for k, contexts in enumerate(self.contexts):  # contexts of k tokens
            if k:
                earlier = nn.functional.pad(tokens, (k - 1, 0))[:, : tokens.shape[1]]
                code = code + earlier * V ** (k - 1)
            if not len(contexts):  # the training text is shorter than k + 1 tokens
                continue
            row = torch.searchsorted(contexts, code).clamp(max=len(contexts) - 1)
            is_known = contexts[row] == code
            is_known[:, : max(0, k - 1)] = False  # these positions have fewer than k tokens
            longer = self.discounted[k][row] + self.reserved[k][row] * p
            p = torch.where(is_known[..., None], longer, p)
        return p.log()
