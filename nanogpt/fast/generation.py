"""Fast generation on a CUDA device: the functions of generate.py, captured as a CUDA graph.

A decoding step of a small model runs hundreds of kernels (GPU functions) that take longer to launch
than to run. So the step is captured once: a graph records the kernels of the step. The graph is
replayed up to STEPS_AHEAD times before the host reads the tokens. The tokens are copied to the host
while the next steps run. generate.py generates the same tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import Stopped, UserError
from ..generate import (
    NextTokens,
    Sampling,
    decode_one,
    drop_oldest,
    make_generators,
    mark_seen,
    not_finite,
    prefill,
    sample_token,
    select_logprobs,
)
from ..models import Model
from ..models.cache import Cache
from ..system.gpu import CannotCapture, CudaGraph

STEPS_AHEAD = 16
"""Largest number of decoding steps before the host reads their tokens."""
PREFILL_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels for the prefill. The kernel of cuDNN is not among them, because its
preparation takes about 0.1 s for each new prompt length."""


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 1337,
    logprobs: bool = False,
    compile: bool = False,
) -> Iterator[NextTokens]:
    """Do the same as nanogpt.generate.generate(), but faster, for a model on a CUDA device.

    If `compile` is true, decoding uses the kernels of kernels.py; compiling them takes about a
    second. Raises Stopped if a logit is not finite, or if the step cannot be captured. Raises
    UserError if the kernels need Triton, which is missing.
    """
    if not prompts:
        return iter(())
    decoder = CapturedDecoder(model, prompts, sampling or Sampling(), seed, logprobs, compile)
    return decoder.run(max_new_tokens)


def import_fuse() -> Callable[[Model], AbstractContextManager[None]]:
    """Return kernels.fuse(). Raises UserError if Triton is missing."""
    try:
        from .kernels import fuse
    except ImportError as error:
        raise UserError(
            f"compile needs Triton, which is part of torch for CUDA on Linux, but importing it "
            f"failed ({error}): leave the option out"
        ) from None
    return fuse


@dataclass(frozen=True)
class InFlight:
    """The results of some steps while they are copied from the device to the host."""

    tokens: Tensor
    """Sampled tokens (steps, B)."""
    logprobs: Tensor
    """Log-probabilities of the tokens (steps, B)."""
    finite: Tensor
    """A scalar: 0 if all logits so far were finite, otherwise NaN."""
    arrived: torch.cuda.Event | None
    """Event recorded after the copies to host memory; None on a CPU, where the copies are already
    complete."""


class CapturedDecoder:
    """Generates tokens for B texts. All steps use the same device memory for inputs and outputs."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        logprobs: bool,
        compile: bool = False,
    ) -> None:
        """`prompts` are lists of token ids; no prompt is empty."""
        B, device = len(prompts), next(model.parameters()).device
        self.model, self.sampling, self.device = model.eval(), sampling, device
        self.block_size = model.config.block_size
        self.contexts = [list(prompt[-self.block_size :]) for prompt in prompts]
        """For each text, the newest tokens that the host knows; the cache may lack the last one."""
        self.cache = Cache(B, self.block_size, device)
        self.generators = make_generators(seed, B)
        self.seen = mark_seen(prompts, model.config.vocab_size, sampling, device)
        self.wants_logprobs = logprobs
        self.is_compiled = compile
        self.fuse = import_fuse() if compile else nullcontext
        self.tokens = torch.zeros(B, dtype=torch.long, device=device)
        # One row for each planned step: random numbers, sampled tokens and log-probabilities.
        self.uniform = torch.zeros(STEPS_AHEAD, B, device=device)
        self.sampled = torch.zeros(STEPS_AHEAD, B, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(STEPS_AHEAD, B, device=device)
        self.finite = torch.zeros((), device=device)
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.host_row = STEPS_AHEAD
        """A copy of `row` on the host, which the host can read without waiting for the device."""
        self.steps_in_flight = 0
        is_cuda = device.type == "cuda"  # a test runs the same code on a CPU, without a graph
        self.graph = CudaGraph(device, warmup=1) if is_cuda else None

    def run(self, max_new_tokens: int) -> Iterator[NextTokens]:
        """Yield the next token of each text, max_new_tokens times."""
        remaining, is_prefilled = max_new_tokens, False
        running: InFlight | None = None
        while remaining > 0 or running:
            finished, running = running, None
            # A prefill needs all earlier tokens on the host; decoding needs only room in the cache.
            room = self.block_size - max(map(len, self.contexts)) - self.steps_in_flight
            if remaining > 0 and is_prefilled and room >= 0:
                running = self._launch(min(remaining, STEPS_AHEAD, room + 1), self._replay)
            elif remaining > 0 and not finished:
                running, is_prefilled = self._launch(1, self._prefill), True
            if running:
                remaining -= len(running.tokens)
            if finished:
                yield from self._collect(finished)

    def _launch(self, steps: int, work: Callable[[], None]) -> InFlight:
        """Start at most `steps` steps, and start to copy their tokens to the host."""
        if self.host_row == STEPS_AHEAD:  # all rows are used: refill the random numbers
            columns = [torch.rand(STEPS_AHEAD, generator=g) for g in self.generators]
            numbers = torch.stack(columns, 1)
            if self.device.type == "cuda":
                numbers = numbers.pin_memory()  # so that the host does not wait for the copy
            self.uniform.copy_(numbers, non_blocking=True)
            self.row.zero_()
            self.host_row = 0
        first, self.host_row = self.host_row, min(STEPS_AHEAD, self.host_row + steps)
        for _ in range(first, self.host_row):
            work()
        self.steps_in_flight += self.host_row - first
        rows, is_cuda = slice(first, self.host_row), self.device.type == "cuda"
        tokens, logprobs, finite = (
            tensor.to("cpu", non_blocking=is_cuda, copy=True)
            for tensor in (self.sampled[rows], self.logprobs[rows], self.finite)
        )
        arrived = torch.cuda.current_stream(self.device).record_event() if is_cuda else None
        return InFlight(tokens, logprobs, finite, arrived)

    def _collect(self, finished: InFlight) -> Iterator[NextTokens]:
        """Wait for the tokens of some steps and yield them."""
        if finished.arrived:
            finished.arrived.synchronize()
        if finished.finite != 0:
            raise not_finite()
        steps, logprobs = finished.tokens.tolist(), finished.logprobs.tolist()
        self.steps_in_flight -= len(steps)
        for tokens in steps:
            for context, token in zip(self.contexts, tokens, strict=True):
                context.append(token)
        for i, tokens in enumerate(steps):
            yield NextTokens(tokens, logprobs[i] if self.wants_logprobs else None)

    @torch.no_grad()
    def _prefill(self) -> None:
        self.contexts = [drop_oldest(context, self.block_size) for context in self.contexts]
        with sdpa_kernel(PREFILL_KERNELS):
            logits = prefill(self.model, self.contexts, self.cache)
        self._sample(logits)

    @torch.no_grad()
    def _decode(self) -> None:
        with self.fuse(self.model):
            logits = decode_one(self.model, self.tokens, self.cache)
        self._sample(logits)

    def _replay(self) -> None:
        if self.graph is None:
            self._decode()
            return
        try:
            self.graph.run(self._decode)
        except CannotCapture as error:
            raise Stopped(
                f"generation cannot be captured as a CUDA graph ({error}); to run without a graph, "
                f"which is slower: nanogpt sample --no-cuda-graph"
            ) from None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.is_compiled:
                raise
            reason = " ".join(str(error).split())[:200]
            raise Stopped(
                f"the kernels cannot be compiled ({reason}): leave out --compile"
            ) from None

    def _sample(self, logits: Tensor) -> None:
        """Sample a token for each text from logits (B, V), and store it in the current row."""
        self.finite.add_(logits.sum(), alpha=0)  # 0 × NaN and 0 × ∞ are NaN
        uniform = self.uniform.index_select(0, self.row)[0]  # (B,)
        tokens = sample_token(logits, self.sampling, uniform, self.seen)
        self.tokens.copy_(tokens)
        self.sampled.index_copy_(0, self.row, tokens[None])
        if self.wants_logprobs:
            self.logprobs.index_copy_(0, self.row, select_logprobs(logits, tokens)[None])
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        self.row += 1
