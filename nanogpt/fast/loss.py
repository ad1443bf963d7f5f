"""The loss of a large vocabulary: the output layer, and a cross-entropy kernel written in Triton.

With 50,304 tokens and 32 blocks of 1,024 tokens, the logits of one step take 3.3 GB in bfloat16, so
each pass over them takes time. The kernel reads them twice, the second time partly from the cache
of the GPU, and writes their gradient to the same memory (docs/log/gpt2.md).

Dimensions: B batch, T positions, C channels, V vocabulary, n = B T.
"""

# Triton compiles the functions with the decorator `jit`, so they have no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..models import GPT, Modern
from ..models.modern import SOFT_CAP, norm
from .definitions import are_unchanged
from .float8 import Multiply

SMALLEST_VOCABULARY = 4096
"""With fewer tokens, the loss takes little time, and few of the columns would be used."""
COLUMNS = 2048
"""Logits that an instance of the kernel loads at once."""
WARPS = 16
"""Groups of 32 threads in an instance. Other values of COLUMNS and WARPS were slower."""
LOG2_E = tl.constexpr(math.log2(math.e))
"""GPUs have an instruction for powers of 2: exp(x) is 2 to the power of x · LOG2_E."""


@triton.jit
def _cap(x, CAP: tl.constexpr):
    """Return z · LOG2_E and the slope dz/dx; z is CAP · tanh(x / CAP), or x if CAP is 0."""
    z = x * LOG2_E
    slope = 1.0
    if CAP > 0:
        r = tl.rsqrt(tl.exp2(x * (2 * LOG2_E / CAP)) + 1)  # faster than a division
        tanh = 1 - 2 * r * r
        z = CAP * LOG2_E * tanh
        slope = 1 - tanh * tanh
    return z, slope


@triton.jit
def _load(LOGITS, at, STRIDE: tl.constexpr, V: tl.constexpr, CAP: tl.constexpr):
    """Return z · LOG2_E in the columns `at`, and -1e30 outside of the vocabulary."""
    x = tl.load(LOGITS + at, at < STRIDE, -1e30, eviction_policy="evict_last").to(tl.float32)
    z, _ = _cap(x, CAP)
    if V < STRIDE or CAP > 0:
        z = tl.where(at < V, z, -1e30)
    return z


@triton.jit
def _cross_entropy(
    LOGITS, TARGETS, LOSSES,
    STRIDE: tl.constexpr, V: tl.constexpr, CAP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write -ln p(target) of a row to LOSSES; replace the row of logits with its gradient.

    The gradient with respect to z is softmax(z), minus 1 at the target. In this function, z and all
    other exponents are in base 2.
    """
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * STRIDE
    target = tl.load(TARGETS + row)
    z, slope = _cap(tl.load(LOGITS + target).to(tl.float32), CAP)
    column = tl.arange(0, COLUMNS)
    # Each of the COLUMNS elements adds up the exponentials of its columns, relative to the highest
    # one so far.
    highest = tl.full((COLUMNS,), -1e30, tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, V, 4 * COLUMNS):
        a = _load(LOGITS, first + column, STRIDE, V, CAP)
        b = _load(LOGITS, first + COLUMNS + column, STRIDE, V, CAP)
        c = _load(LOGITS, first + 2 * COLUMNS + column, STRIDE, V, CAP)
        d = _load(LOGITS, first + 3 * COLUMNS + column, STRIDE, V, CAP)
        higher = tl.maximum(highest, tl.maximum(tl.maximum(a, b), tl.maximum(c, d)))
        total = total * tl.exp2(highest - higher) + tl.exp2(a - higher) + tl.exp2(b - higher)
        total += tl.exp2(c - higher) + tl.exp2(d - higher)
        highest = higher
    top = tl.max(highest, 0)
    log_sum = top + tl.log2(tl.sum(total * tl.exp2(highest - top), 0))
    tl.store(LOSSES + row, (log_sum - z) / LOG2_E)
    COUNT: tl.constexpr = (V + COLUMNS - 1) // COLUMNS
    for number in range(COUNT):  # backwards: the last columns are still in the cache
        at = (COUNT - 1 - number) * COLUMNS + column
        x = tl.load(LOGITS + at, at < STRIDE, 0.0, eviction_policy="evict_first").to(tl.float32)
        other, other_slope = _cap(x, CAP)
        gradient = tl.exp2(other - log_sum) * other_slope
        if V < STRIDE:  # a logit of 0 outside of the vocabulary can be much higher than the others
            gradient = tl.where(at < V, gradient, 0.0)
        tl.store(LOGITS + at, gradient, at < STRIDE, eviction_policy="evict_first")
    tl.debug_barrier()  # all threads have stored their columns, one of them that of the target
    tl.store(LOGITS + target, (tl.exp2(z - log_sum) - 1) * slope)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, cap: float, multiply: Multiply
    ) -> Tensor:
        V, ctx.dtype = len(weight), weight.dtype
        # Products with a multiple of 64 tokens are faster, and the rows of logits are aligned.
        padded = weight.to(x.dtype)
        if V % 64:
            padded = F.pad(padded, (0, 0, 0, -V % 64))
        logits = multiply(x, padded)
        losses = x.new_empty(len(x), dtype=torch.float32)
        with torch.cuda.device_of(logits):  # Triton uses the current device
            _cross_entropy[len(x),](
                logits,
                targets,
                losses,
                STRIDE=len(padded),
                V=V,
                CAP=cap,
                COLUMNS=COLUMNS,
                num_warps=WARPS,
            )
        ctx.save_for_backward(x, padded)
        ctx.V, ctx.of_logits = V, logits  # the kernel has replaced the logits
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, padded = ctx.saved_tensors
        gradient = gradient / len(x)  # the loss is a mean
        of_x = (ctx.of_logits @ padded).mul_(gradient)
        # Scaling x usually moves fewer bytes than scaling the gradient of the weight in float32.
        of_weight = (ctx.of_logits.T @ (x * gradient))[: ctx.V]
        # Frees its memory now, and not at the end. So there can be only one backward pass.
        ctx.of_logits = None
        return of_x, of_weight.to(ctx.dtype), None, None, None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, cap: float = 0, multiply: Multiply = F.linear
) -> Tensor:
    """Return the mean of -ln p(target) for x (n, C), a weight (V, C) and targets (n,): a scalar.

    The plain definition is `cross_entropy(z, targets)`, where the logits are x weightᵀ, and
    z = cap · tanh(logits / cap), or z = logits if the cap is 0. The products have the dtype of x,
    which must not be float16: its range is too small for probabilities and for sums over tokens.
    In the forward pass, multiply() computes x weightᵀ.
    """
    function: Any = _LinearCrossEntropy.apply
    loss: Tensor = function(x, weight, targets, float(cap), multiply)
    return loss


def make_end(
    model: nn.Module, precision: torch.dtype, multiply: Multiply = F.linear
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the end of a model: a function of the final residual stream (B, T, C) and the targets.

    This function returns the same loss as the model's method unembed() and cross_entropy(). If the
    vocabulary is small, in float16, for other kinds of models, or if a reader has changed
    unembed(), make_end() returns None.
    """
    normalise: Callable[[Tensor], Tensor]
    if isinstance(model, Modern):
        normalise, layer, cap = norm, "head", SOFT_CAP
    elif isinstance(model, GPT):
        normalise, layer, cap = model.norm, "token_embedding", 0
    else:
        return None
    if not are_unchanged(type(model).unembed):
        return None
    if model.config.vocab_size < SMALLEST_VOCABULARY or precision == torch.float16:
        return None

    @torch.compile(dynamic=False)
    def prepare(x: Tensor) -> Tensor:
        # With autocast, the norm may be in float32, but x is in half precision.
        return normalise(x).flatten(0, 1).to(x.dtype)

    def end(x: Tensor, targets: Tensor) -> Tensor:
        weight = model.get_parameter(f"{layer}.weight")  # whole only within forward()
        return linear_cross_entropy(prepare(x), weight, targets.flatten(), cap, multiply)

    return end
