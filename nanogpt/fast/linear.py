"""Linear layers and feed-forward networks in bfloat16, with matrix products of cuBLASLt.

On a CUDA GPU, they replace the plain layers in compiled code. They compute the same values, except
for rounding. The library computes outputs, and the gradient of GELU. In a training step, its
fastest algorithms for other gradients were not faster than those of torch (docs/log/gpt2.md).

Dimensions: n tokens, K inputs and N outputs of a layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .cublas import multiply

# For the compiler, each of these three operations is a single node. If the library cannot compute
# one of them (on a CPU, for example), torch computes it.


@torch.library.custom_op("nanogpt::linear", mutates_args=())
def linear_in_half(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weightᵀ + bias (n, N), for x (n, K) and a weight (N, K)."""
    y = x.new_empty(len(x), len(weight))
    if x.is_cuda and multiply(x, weight, y, "none" if bias is None else "bias", True, bias):
        return y
    return F.linear(x, weight, bias)


@torch.library.custom_op("nanogpt::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return z = x weightᵀ + bias (n, N) and gelu(z), for x (n, K) and a weight (N, K)."""
    z, y = (x.new_empty(len(x), len(weight)) for _ in range(2))
    kind = "gelu" if bias is None else "gelu bias"
    if x.is_cuda and multiply(x, weight, y, kind, True, bias, z):
        return z, y
    z = F.linear(x, weight, bias)
    return z, F.gelu(z, approximate="tanh")


@torch.library.custom_op("nanogpt::gelu_gradient", mutates_args=())
def gelu_gradient(gradient: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    """Return the gradient of z (n, K), for that of gelu(z) weightᵀ (n, N) and a weight (N, K)."""
    of_z = torch.empty_like(z)
    if z.is_cuda and multiply(gradient, weight, of_z, "gelu gradient", z=z):
        return of_z
    of_gelu: Any = torch.ops.aten.gelu_backward
    return of_gelu(gradient @ weight, z, approximate="tanh")  # type: ignore[no-any-return]


@linear_in_half.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(weight)), x.new_empty(len(x), len(weight))


@gelu_gradient.register_fake
def _(gradient: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    return torch.empty_like(z)


def multiply_by_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """Return x weightᵀ (n, N) for x (n, K) and a weight (N, K), both in bfloat16."""
    y: Tensor = linear_in_half(x, weight, None)
    return y


def to_half(*tensors: Tensor | None) -> Any:
    """Return contiguous tensors in bfloat16; None stays None."""
    return [None if tensor is None else tensor.bfloat16().contiguous() for tensor in tensors]


def differentiate(
    ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of the inputs and parameters of a layer, for that of its outputs."""
    of_bias = gradient.sum(0, dtype=torch.float32).to(ctx.dtype) if ctx.has_bias else None
    return gradient @ weight, (gradient.T @ x).to(ctx.dtype), of_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtype, ctx.has_bias = weight.dtype, bias is not None
        x, weight, bias = to_half(x, weight, bias)
        ctx.save_for_backward(x, weight)
        y: Tensor = linear_in_half(x, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return differentiate(ctx, gradient, *ctx.saved_tensors)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
    ) -> Tensor:
        ctx.dtype, ctx.has_bias = up.dtype, up_bias is not None
        x, up, up_bias, down, down_bias = to_half(x, up, up_bias, down, down_bias)
        z, y = linear_gelu(x, up, up_bias)
        ctx.save_for_backward(x, up, down, z, y)
        result: Tensor = linear_in_half(y, down, down_bias)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, z, y = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_z: Tensor = gelu_gradient(gradient, down, z)
        # The compiler removes the product for the first gradient, which is not used.
        _, *of_down = differentiate(ctx, gradient, y, down)
        return *differentiate(ctx, of_z, x, up), *of_down


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Replace Linear.forward() in compiled code."""
    if not torch.compiler.is_compiling() or not has_aligned_rows(module):
        return F.linear(x, module.weight, module.bias)
    function: Any = _Linear.apply
    y: Tensor = function(x.flatten(0, -2), module.weight, module.bias)
    return y.view(*x.shape[:-1], module.out_features)


def feed_forward(module: nn.Sequential, x: Tensor) -> Tensor:
    """Replace FeedForward.forward() of a GPT in compiled code."""
    up, gelu, down, dropout = module
    if not torch.compiler.is_compiling() or not has_aligned_rows(up):
        return dropout(down(gelu(up(x))))  # type: ignore[no-any-return]
    function: Any = _FeedForward.apply
    y: Tensor = function(x.flatten(0, -2), up.weight, up.bias, down.weight, down.bias)
    return dropout(y.view(x.shape))  # type: ignore[no-any-return]


def has_aligned_rows(module: nn.Module) -> bool:
    """Return whether the rows of all matrices of a linear layer take a multiple of 16 bytes."""
    assert isinstance(module, nn.Linear)
    return module.in_features % 8 == 0 and module.out_features % 8 == 0
