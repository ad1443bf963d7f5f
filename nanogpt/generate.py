"""Writing with a model: one token at a time, each drawn from what the model expects next."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import Stopped, UserError
from .models import Model


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise UserError unless these settings can be sampled with."""
    if not 0 <= temperature < math.inf:
        raise UserError(
            f"temperature is {temperature}: it must be 0 (always the likeliest token) or more"
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k is {top_k}: it must be at least 1, or left out")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top-p is {top_p}: it must be more than 0 and at most 1, or left out")


def probabilities(
    logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (B, V) to the probabilities (B, V) that a token is drawn from.

    Temperature comes first, then top-k, then top-p over what top-k left: the likeliest tokens, in
    order, until their probabilities add up to top_p (Holtzman et al. 2020, arXiv:1904.09751).
    Temperature 0 puts everything on the likeliest token.
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # Relative to the largest logit: nothing overflows, however low the temperature.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    p = logits.softmax(-1)
    if top_p is not None:
        sorted_p, order = p.sort(descending=True, stable=True)
        before = sorted_p.cumsum(-1) - sorted_p  # what the likelier tokens have already
        p = p.scatter(-1, order, sorted_p.masked_fill(before >= top_p, 0.0))
        p = p / p.sum(-1, keepdim=True)
    return p


@torch.no_grad()
def generate(
    model: Model,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue tokens (B, T), T at least 1; gives max_new_tokens times the next tokens (B,).

    Past block_size the context slides: the model sees the last block_size tokens. Tokens are drawn
    on the CPU from generator (a CPU generator), so the same seed means the same draws everywhere.
    Raises Stopped where logits are not finite.
    """
    check_sampling(temperature, top_k, top_p)
    model.eval()
    for _ in range(max_new_tokens):
        tokens = tokens[:, -model.config.block_size :]
        logits = model(tokens)[:, -1].float().cpu()  # (B, V): what follows the last token
        if not logits.isfinite().all():
            raise Stopped(
                "the model's logits are not finite, so there is nothing to choose from: its "
                "weights are damaged, or its training went wrong; sample another run"
            )
        p = probabilities(logits, temperature, top_k, top_p)
        next_tokens = torch.multinomial(p, 1, generator=generator)  # (B, 1)
        yield next_tokens[:, 0]
        tokens = torch.cat([tokens, next_tokens.to(tokens.device)], dim=1)
