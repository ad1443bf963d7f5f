"""Autoregressive generation: predict the next token, sample it, append it, repeat.

The model first processes the whole prompts (prefill), then only the newest token of each text; the
cache stores the keys and values of earlier tokens. Dimensions: B texts, V vocabulary.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import Stopped, UserError
from .models import Model
from .models.cache import Cache


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for choosing the next token from the logits, applied in the order of the fields."""

    repetition_penalty: float = 1.0
    """A value above 1 makes tokens that are already in the text less likely: it divides their
    positive logits and multiplies their negative ones (Keskar et al. 2019, arXiv:1909.05858)."""
    temperature: float = 1.0
    """Divides the logits: low values favour likely tokens; 0 selects the most likely token."""
    top_k: int | None = None
    """Sample from the k most likely tokens only."""
    top_p: float | None = None
    """Sample from the smallest set of most likely tokens with at least this total probability
    (Holtzman et al. 2020, arXiv:1904.09751)."""
    min_p: float | None = None
    """Sample from tokens whose probability is at least this fraction of the highest probability
    (Nguyen et al. 2024, arXiv:2407.01082)."""

    def __post_init__(self) -> None:
        """Raise UserError if a field has an invalid value; the message names the field."""
        if not 0 < (value := self.repetition_penalty) < math.inf:
            raise UserError(f"repetition_penalty is {value}: it must be above 0 (1 turns it off)")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}: it must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: it must be at least 1, or left out")
        for name in ("top_p", "min_p"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}: it must be more than 0 and at most 1")


def penalise_seen(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) of the tokens that are marked in `seen` (B, V, boolean)."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered.nan_to_num(0.0), logits)  # an extreme penalty gives ∞ or NaN


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature, top-k, top-p and min-p to logits (B, V); set removed tokens to -∞.

    The most likely token is always kept. If logits are equal, top-k and top-p prefer lower indices,
    so top-k keeps exactly k tokens. min-p also keeps tokens whose probability equals the threshold.
    """
    if sampling.temperature < torch.finfo(torch.float32).tiny:  # 0, or too small for float32
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter_(-1, best, 0.0)
    # Make the largest logit 0, so that no logit overflows to ∞ at a low temperature.
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        top = logits.topk(sampling.top_k, sorted=False).values  # (B, k)
        kth = top.amin(-1, keepdim=True)  # (B, 1)
        tied, places = logits == kth, (top == kth).sum(-1, keepdim=True)
        is_late = tied.cumsum(-1, dtype=torch.int32) > places  # tied tokens after the k-th place
        logits = logits.masked_fill(torch.where(tied, is_late, logits < kth), -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        p, order = logits.softmax(-1).sort(descending=True, stable=True)
        mass_before = p.cumsum(-1) - p  # total probability of the tokens before this one
        is_removed = mass_before >= sampling.top_p  # in the sorted order
        is_removed = is_removed.scatter(-1, order, is_removed)
        logits = logits.masked_fill(is_removed, -math.inf)
    if sampling.min_p is not None:  # the largest logit is 0, so p / p_max = exp(logit)
        logits = logits.masked_fill(logits < math.log(sampling.min_p), -math.inf)
    return logits


def sample_token(
    logits: Tensor, sampling: Sampling, uniform: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Sample token ids (B,) from logits (B, V), using uniform random numbers (B,) in [0, 1).

    The result is the first token whose cumulative probability exceeds the random number (inverse
    transform sampling). So the same random numbers normally give the same tokens on every device.
    """
    if seen is not None:
        logits = penalise_seen(logits, seen, sampling.repetition_penalty)
    p = filter_logits(logits, sampling).softmax(-1)
    cumulative = p.cumsum(-1)
    exceeds = (cumulative > uniform[:, None] * cumulative[:, -1:]) & (p > 0)
    return exceeds.view(torch.uint8).argmax(-1)  # argmax returns the first maximum


def prefill(model: Model, contexts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Empty the cache, fill it with B contexts, and return the logits (B, V) of the next tokens."""
    lengths = [len(context) for context in contexts]
    if 0 in lengths:
        raise UserError("a prompt has no tokens: add at least one, for example a line break")
    # No token of a text attends to the padding, which is on the right. New tokens overwrite it.
    rows = [[*context, *[0] * (max(lengths) - len(context))] for context in contexts]
    cache.begin_prefill(lengths)
    logits: Tensor = model(torch.tensor(rows, device=cache.lengths.device), cache)  # (B, 1, V)
    cache.end_prefill()
    return logits[:, -1].float()


def decode_one(model: Model, tokens: Tensor, cache: Cache) -> Tensor:
    """Add one token (B,) of each text to the cache; return the logits (B, V) of the next token."""
    logits: Tensor = model(tokens[:, None], cache)  # (B, 1, V)
    cache.advance()
    return logits[:, -1].float()


class NextTokens(NamedTuple):
    """One generated token for each of B texts."""

    tokens: list[int]
    logprobs: list[float] | None
    """Log-probability of each token in nats before `Sampling` is applied; None unless requested."""


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 1337,
    logprobs: bool = False,
) -> Iterator[NextTokens]:
    """Continue B prompts of token ids: yield one token for each prompt, `max_new_tokens` times.

    The model sees at most the last block_size tokens. Raises Stopped for a non-finite logit.
    """
    sampling = sampling or Sampling()
    device, block_size = next(model.parameters()).device, model.config.block_size
    model.eval()
    contexts = [list(prompt[-block_size:]) for prompt in prompts]
    seen = mark_seen(prompts, model.config.vocab_size, sampling, device)
    generators = make_generators(seed, len(prompts))
    cache = Cache(len(prompts), block_size, device)
    tokens: Tensor | None = None
    for _ in range(max_new_tokens if prompts else 0):
        if tokens is None or max(map(len, contexts)) > block_size:
            contexts = [drop_oldest(context, block_size) for context in contexts]
            logits = prefill(model, contexts, cache)
        else:
            logits = decode_one(model, tokens, cache)
        if not logits.isfinite().all():
            raise not_finite()
        uniform = torch.stack([torch.rand((), generator=g) for g in generators]).to(device)
        tokens = sample_token(logits, sampling, uniform, seen)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        for context, token in zip(contexts, ids := tokens.tolist(), strict=True):
            context.append(token)
        yield NextTokens(ids, select_logprobs(logits, tokens).tolist() if logprobs else None)


def drop_oldest(context: list[int], block_size: int) -> list[int]:
    """Return the context if it fits; otherwise return its newest 3/4 × block_size tokens."""
    # Dropping tokens shifts all positions, which needs a prefill. Dropping many makes this rare.
    return context if len(context) <= block_size else context[block_size // 4 - block_size :]


def mark_seen(
    prompts: Sequence[Sequence[int]], vocab_size: int, sampling: Sampling, device: torch.device
) -> Tensor | None:
    """Return a boolean mask (B, V) of the tokens in each prompt; None if the penalty is off."""
    if sampling.repetition_penalty == 1:
        return None
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen.to(device)


def select_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities (B,) of tokens (B,) under logits (B, V), in nats."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def make_generators(seed: int, count: int) -> list[torch.Generator]:
    """Return a random generator for each text, so that no text depends on the rest of the batch."""
    digests = [hashlib.sha256(f"{seed} {row}".encode()).digest() for row in range(count)]
    return [torch.Generator().manual_seed(int.from_bytes(d[:4], "little")) for d in digests]


def not_finite() -> Stopped:
    """Return the error for logits that are NaN or infinite."""
    reason = "its weights are damaged or its training diverged; use another run"
    return Stopped(f"the model's logits are not finite: {reason}")
