"""Linear layers with matrix products in float8, which some GPUs compute faster than in bfloat16.

As in Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv:2209.05433), inputs and
weights have the format E4M3 (3 bits for the fraction, at most 448), and gradients have the format
E5M2 (2 bits, at most 57,344). The results are in bfloat16.

Before the conversion, a value is multiplied by a factor, so that it is in the range of the format.
After a product, the result is multiplied by a scale, which undoes the factors. The factor of a
weight makes its largest absolute value 448. The factors of inputs and gradients are constants, as
in Narayan et al. 2025 (arXiv:2502.05967): to find the largest value of each input and gradient, the
GPU would have to read all of them once more, which takes a large part of the time that float8
saves.

Dimensions: n tokens, K inputs and N outputs of a layer. All of them must be multiples of 16. In
multiply(), the dimensions of the matrices have other names, i, j and k.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..runs.config import is_float8_layer

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INPUT_FACTOR = 1 / 4
"""Factor of the inputs of a layer. They may be up to 1,792, which becomes 448."""
GRADIENT_FACTOR = 1024
"""Factor of a gradient times the number of tokens. This product may be up to 56, which becomes
57,344. (The gradient of a mean over tokens is divided by their number.)"""

Linear = Callable[[nn.Linear, Tensor], Tensor]
"""A function that replaces nn.Linear.forward()."""
Multiply = Callable[[Tensor, Tensor], Tensor]
"""A function of x (n, K) and a weight (N, K) that returns x weightᵀ (n, N)."""


def to_float8(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round x to float8. Values beyond the largest number become this number.

    On a GPU, this is only true in compiled code, where the conversion does it.
    """
    if not x.is_cuda:
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit)
    return x.to(dtype)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight in E4M3, and its scale, a scalar."""
    weight = weight.float()
    scale = weight.abs().amax().clamp_min(1e-12) / torch.finfo(E4M3).max
    return to_float8(weight / scale, E4M3), scale


def multiply(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor | None = None, *, float32_sums: bool = False
) -> Tensor:
    """Return scale · a bᵀ + bias (i, j) in bfloat16, for a (i, k) and b (j, k) in float8.

    If `float32_sums` is false, an H100 or H200 adds up with fewer bits than float32 has, which is
    faster.
    """
    return torch._scaled_mm(
        a.contiguous(),
        b.contiguous().T,  # the GPU needs both in rows of length k
        scale_a=scale,
        scale_b=torch.ones_like(scale),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=not float32_sums,
    )


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradient_factor: float
    ) -> Tensor:
        x8, (weight8, scale) = to_float8(x.float() * INPUT_FACTOR, E4M3), quantise(weight)
        ctx.save_for_backward(x8, weight8, scale)  # the compiler may compute them again instead
        ctx.dtypes, ctx.gradient_factor = (x.dtype, weight.dtype), gradient_factor
        ctx.has_bias = bias is not None
        return multiply(x8, weight8, scale / INPUT_FACTOR, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x8, weight8, scale = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        gradient8 = to_float8(gradient.float() * ctx.gradient_factor, E5M2)
        inverse = torch.full_like(scale, 1 / (ctx.gradient_factor * INPUT_FACTOR))
        return (
            multiply(gradient8, weight8.T, scale / ctx.gradient_factor).to(of_x),
            # This is a sum over all tokens, so errors in the sums could become large.
            multiply(gradient8.T, x8.T, inverse, float32_sums=True).to(of_weight),
            gradient.sum(0).to(of_weight) if ctx.has_bias else None,
            None,
        )


def make_linear(tokens: int) -> Linear:
    """Return a function that replaces nn.Linear.forward() in compiled code.

    The products of large layers are in float8. Other layers, and code that is not compiled, stay
    the same. The gradients must be those of a loss that is a mean over `tokens` tokens.
    """

    def linear(module: nn.Linear, x: Tensor) -> Tensor:
        K, N = module.in_features, module.out_features
        if not torch.compiler.is_compiling() or not is_float8_layer(K, N):
            return F.linear(x, module.weight, module.bias)
        function: Callable[..., Tensor] = _Float8Linear.apply
        y = function(x.flatten(0, -2), module.weight, module.bias, tokens * GRADIENT_FACTOR)
        return y.view(*x.shape[:-1], N)

    return linear


def make_multiply() -> Multiply:
    """Return a function that computes x weightᵀ in float8, without gradients."""

    @torch.compile(dynamic=False)
    def prepare(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight8, scale = quantise(weight)
        return to_float8(x.float() * INPUT_FACTOR, E4M3), weight8, scale / INPUT_FACTOR

    return lambda x, weight: multiply(*prepare(x, weight))
