"""Writing with a model: one token at a time, each drawn from what the model expects next.

The prompts are read at once, then every token goes through the model once: what came before is in
a cache (models/cache.py). On a GPU a step is captured once, and replayed.

When a text has filled the model's context, its oldest quarter is forgotten and the rest read anew.
Positions are counted from the start of what the model sees, so that no shorter way would be exact;
and this way it happens seldom. Until then, greedy tokens are those of the model without a cache.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import Stopped, UserError
from .models import Model
from .models.cache import Cache
from .system.gpu import CannotCapture, CudaGraph

READING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention for contexts: cuDNN's take a tenth of a second for every new length."""
DECODE_AHEAD = 16
"""Steps that a GPU takes before anybody looks at the tokens; drawn numbers come in as many, too."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The filters come in this order."""

    repetition_penalty: float = 1.0
    """Makes tokens that the text has already less likely: logits above 0 are divided by it, those
    below multiplied (Keskar et al. 2019, arXiv:1909.05858)."""
    temperature: float = 1.0
    """Below 1 safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability (Holtzman et al. 2020,
    arXiv:1904.09751)."""
    min_p: float | None = None
    """Draw from tokens with at least this part of the likeliest one's probability (Nguyen et al.
    2024, arXiv:2407.01082)."""

    def __post_init__(self) -> None:
        """Raise UserError where nothing can be sampled so."""
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"repetition-penalty is {self.repetition_penalty}: it must be more than 0, and is "
                f"none at 1"
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}: it must be 0 (always the likeliest token) or "
                f"more"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}: it must be at least 1, or left out")
        for name in ("top_p", "min_p"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise UserError(
                    f"{name.replace('_', '-')} is {value}: it must be more than 0 and at most 1, "
                    f"or left out"
                )


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), those of the tokens that were seen (B, V) moved down by a penalty."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) to the probabilities (B, V) that a token is drawn from.

    Temperature comes first, then top-k, then top-p over what top-k left, in order, until it is
    reached, then min-p. The likeliest token always stays; temperature 0 puts everything on it.
    """
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # Relative to the largest logit: nothing overflows, however low the temperature.
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[..., -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    p = logits.softmax(-1)
    if sampling.top_p is not None:
        sorted_p, order = p.sort(descending=True, stable=True)
        before = sorted_p.cumsum(-1) - sorted_p  # what the likelier tokens have already
        p = p.scatter(-1, order, sorted_p.masked_fill(before >= sampling.top_p, 0.0))
    if sampling.min_p is not None:
        p = p.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), 0.0)
    filtered = sampling.top_k or sampling.top_p or sampling.min_p
    return p / p.sum(-1, keepdim=True) if filtered else p


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """The token (B,) at which the sum of the probabilities (B, V) passes a number of [0, 1) (B,).

    The same numbers draw the same tokens on every device.
    """
    total = p.cumsum(-1)
    passed = (total > uniform[:, None] * total[:, -1:]) & (p > 0)
    return passed.view(torch.uint8).argmax(-1)  # the first


def generators(seed: int, rows: int) -> list[torch.Generator]:
    """One for each row, so that no text depends on those that are written beside it."""
    mixed = [hashlib.sha256(f"{seed} {row}".encode()).digest() for row in range(rows)]
    return [torch.Generator().manual_seed(int.from_bytes(m[:4], "little")) for m in mixed]


@dataclass(frozen=True)
class _Drawn:
    """The tokens of some steps on their way from the device."""

    tokens: Tensor
    """(steps, B)."""
    logprobs: Tensor
    """The same."""
    finite: Tensor
    """0 if all logits were, up to here: ()."""
    sent: torch.cuda.Event | None
    """When they are here, if it is not now."""


class Sampler:
    """Writes on with B texts at once. What a step needs and finds stays on the device."""

    def __init__(
        self,
        model: Model,
        texts: Sequence[Sequence[int]],
        sampling: Sampling,
        numbers: Sequence[torch.Generator],
        logprobs: bool = False,
        cuda_graph: bool = True,
    ) -> None:
        """Texts as tokens, each with the generator of its own numbers; none of them empty."""
        B, V = len(texts), model.config.vocab_size
        self.model, self.sampling, self.numbers = model.eval(), sampling, numbers
        self.block_size = model.config.block_size
        self.contexts = [list(text[-self.block_size :]) for text in texts]
        """What the model sees of each text. The last token of each may not be in the cache yet."""
        device = next(model.parameters()).device
        self.cache = Cache(B, self.block_size, device)
        self.tokens = torch.zeros(B, 1, dtype=torch.long, device=device)
        # A row for each step ahead: the numbers to draw with; the tokens, and their logprobs.
        self.uniform = torch.zeros(DECODE_AHEAD, B, device=device)
        self.drawn = torch.zeros(DECODE_AHEAD, B, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(DECODE_AHEAD, B, device=device)
        self.asks_logprobs = logprobs
        self.finite = torch.zeros((), device=device)
        """0, and NaN since a logit was not finite."""
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.place = DECODE_AHEAD
        """The same on the host."""
        self.seen = torch.empty(0)
        """The tokens that each text has (B, V), where there is a penalty for it."""
        if sampling.repetition_penalty != 1:
            seen = torch.zeros(B, V, dtype=torch.bool)
            for row, text in zip(seen, texts, strict=True):
                row[list(text)] = True
            self.seen = seen.to(device)
        captures = cuda_graph and device.type == "cuda"
        self.graph = CudaGraph(device, warmup=1) if captures else None
        self.in_flight = 0
        """Tokens of each text that are on their way from the device to the contexts."""
        self.is_read = False
        """Whether all of each context but its last token is in the cache."""

    def take(self, steps: int) -> Iterator[tuple[list[int], list[float] | None]]:
        """Write so many tokens; gives the next token of each text, and its logprob if asked for.

        A logprob is the model's own, before the filters, in nats. Raises Stopped where logits are
        not finite. Only if all of it is taken can more be taken later.
        """
        coming: _Drawn | None = None  # a GPU does the next steps while these are looked at
        while steps > 0 or coming:
            left = self.block_size - max(map(len, self.contexts)) - self.in_flight
            drawn, coming = coming, None
            if steps > 0 and self.is_read and left >= 0:
                coming = self._launch(min(steps, DECODE_AHEAD if self.graph else 1, left + 1))
            elif steps > 0 and not drawn:  # all that is to be read is here
                coming = self._launch(1, self._read)
            if coming:
                steps -= len(coming.tokens)
            if coming and not self.graph:  # each token is shown as it comes
                drawn, coming = coming, None
            if drawn:
                yield from self._arrived(drawn)

    def _launch(self, steps: int, work: Callable[[], None] | None = None) -> "_Drawn":
        """Begin with some steps, or with other work that draws one token of each text."""
        if self.place == DECODE_AHEAD:
            numbers = torch.stack(
                [torch.rand(DECODE_AHEAD, generator=each) for each in self.numbers], 1
            )
            if self.tokens.is_cuda:
                numbers = numbers.pin_memory()  # nobody waits for the copy
            self.uniform.copy_(numbers, non_blocking=True)
            self.row.zero_()
            self.place = 0
        first, self.place = self.place, min(DECODE_AHEAD, self.place + steps)
        for _ in range(first, self.place):
            (work or self._take_one)()
        self.in_flight += self.place - first
        device, rows = self.tokens.device, slice(first, self.place)
        beside = device.type == "cuda"  # the copies are on their way while more is asked for
        tokens, logprobs, finite = (
            x.to("cpu", non_blocking=beside, copy=True)
            for x in (self.drawn[rows], self.logprobs[rows], self.finite)
        )
        sent = torch.cuda.current_stream(device).record_event() if beside else None
        return _Drawn(tokens, logprobs, finite, sent)

    def _arrived(self, drawn: "_Drawn") -> Iterator[tuple[list[int], list[float] | None]]:
        """The tokens that were drawn, when they are here."""
        if drawn.sent:
            drawn.sent.synchronize()
        if drawn.finite != 0:
            raise Stopped(
                "the model's logits are not finite, so there is nothing to choose from: its "
                "weights are damaged, or its training went wrong; sample another run"
            )
        tokens, logprobs = drawn.tokens.tolist(), drawn.logprobs.tolist()
        self.in_flight -= len(tokens)
        for of_step in tokens:
            for context, token in zip(self.contexts, of_step, strict=True):
                context.append(token)
        for i, of_step in enumerate(tokens):
            yield of_step, logprobs[i] if self.asks_logprobs else None

    @torch.no_grad()
    def _read(self) -> None:
        """Read the contexts from their start, and choose what follows."""
        keep = self.block_size - self.block_size // 4
        self.contexts = [c if len(c) <= self.block_size else c[-keep:] for c in self.contexts]
        counts = [len(context) for context in self.contexts]
        rows = [c + [0] * (max(counts) - len(c)) for c in self.contexts]  # no text: not looked at
        self.cache.length.zero_()
        self.cache.coming.copy_(torch.tensor(counts))
        with sdpa_kernel(READING):
            logits = self.model(torch.tensor(rows, device=self.tokens.device), self.cache)
        self.cache.advance()
        self.cache.coming.fill_(1)
        self._choose(logits)
        self.is_read = True

    @torch.no_grad()
    def _step(self) -> None:
        """Read the last token of each text, and choose what follows."""
        logits = self.model(self.tokens, self.cache)
        self.cache.advance()
        self._choose(logits)

    def _take_one(self) -> None:
        if self.graph is None:
            self._step()
            return
        try:
            self.graph.run(self._step)
        except CannotCapture as error:
            raise Stopped(
                f"writing cannot be captured in a CUDA graph ({error}); without, it is slower: "
                f"nanogpt sample --no-cuda-graph"
            ) from None

    def _choose(self, logits: Tensor) -> None:
        """Draw the tokens that follow, from logits (B, 1, V)."""
        logits = logits[:, -1].float()  # (B, V)
        self.finite.add_(logits.sum(), alpha=0)  # 0 × NaN and 0 × ∞ are NaN
        penalty = self.sampling.repetition_penalty
        allowed = penalised(logits, self.seen, penalty) if penalty != 1 else logits
        p = probabilities(allowed, self.sampling)
        tokens = draw(p, self.uniform.index_select(0, self.row)[0])  # (B,)
        self.tokens.copy_(tokens[:, None])
        self.drawn.index_copy_(0, self.row, tokens[None])
        if self.asks_logprobs:
            of_each = logits.log_softmax(-1).gather(-1, tokens[:, None])  # (B, 1)
            self.logprobs.index_copy_(0, self.row, of_each.T)
        if penalty != 1:
            self.seen.scatter_(1, tokens[:, None], True)
        self.row += 1


def generate(
    model: Model,
    texts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 1337,
) -> Iterator[list[int]]:
    """Continue texts, given as tokens; gives max_new_tokens times the next token of each."""
    sampler = Sampler(model, texts, sampling or Sampling(), generators(seed, len(texts)))
    return (tokens for tokens, _ in sampler.take(max_new_tokens))
