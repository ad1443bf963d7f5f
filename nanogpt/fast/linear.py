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
def linear_in_bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weightᵀ + bias (n, N), for x (n, K) and a weight (N, K)."""
    y = x.new_empty(len(x), len(weight))
    kind = "none" if bias is None else "bias"
    if x.is_cuda and multiply(x, weight, y, kind, transpose_b=True, bias=bias):
        return y
    del y  # torch allocates its own result
    return F.linear(x, weight, bias)


@torch.library.custom_op("nanogpt::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return z = x weightᵀ + bias (n, N) and gelu(z), for x (n, K) and a weight (N, K)."""
    z, y = (x.new_empty(len(x), len(weight)) for _ in range(2))
    kind = "gelu" if bias is None else "gelu bias"
    if x.is_cuda and multiply(x, weight, y, kind, transpose_b=True, bias=bias, z=z):
        return z, y
    del z, y
    z = F.linear(x, weight, bias)
    return z, F.gelu(z, approximate="tanh")


@torch.library.custom_op("nanogpt::gelu_gradient", mutates_args=())
def gelu_gradient(gradient: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    """Return the gradient of z (n, K), for that of gelu(z) weightᵀ (n, N) and a weight (N, K)."""
    of_z = torch.empty_like(z)
    if z.is_cuda and multiply(gradient, weight, of_z, "gelu gradient", z=z):
        return of_z
    del of_z
    gelu_backward: Any = torch.ops.aten.gelu_backward
    return gelu_backward(gradient @ weight, z, approximate="tanh")  # type: ignore[no-any-return]


@linear_in_bfloat16.register_fake
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
    y: Tensor = linear_in_bfloat16(x, weight, None)
    return y


def to_bfloat16(*tensors: Tensor | None) -> Any:
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
        x, weight, bias = to_bfloat16(x, weight, bias)
        ctx.save_for_backward(x, weight)
        y: Tensor = linear_in_bfloat16(x, weight, bias)
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
        x, up, up_bias, down, down_bias = to_bfloat16(x, up, up_bias, down, down_bias)
        z, y = linear_gelu(x, up, up_bias)
        ctx.save_for_backward(x, up, down, z, y)
        result: Tensor = linear_in_bfloat16(y, down, down_bias)
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
    """Return the outputs (..., N) of a linear layer for x (..., K), in bfloat16 if possible.

    It replaces Linear.forward(). Code that is not compiled, and layers with other numbers of inputs
    or outputs than multiples of 8, stay the same.
    """
    if not torch.compiler.is_compiling() or not has_aligned_rows(module):
        return F.linear(x, module.weight, module.bias)
    function: Any = _Linear.apply
    y: Tensor = function(x.flatten(0, -2), module.weight, module.bias)
    return y.view(*x.shape[:-1], module.out_features)


def feed_forward(module: nn.Sequential, x: Tensor) -> Tensor:
    """Return the outputs (..., K) of a feed-forward network of a GPT, in bfloat16 if possible.

    It replaces FeedForward.forward(), with the same exceptions as linear(). A network with other
    layers, or with another form of GELU, also stays the same.
    """
    if not torch.compiler.is_compiling() or not has_usual_layers(module):
        for layer in module:
            x = layer(x)
        return x
    up, _, down, dropout = module
    function: Any = _FeedForward.apply
    y: Tensor = function(x.flatten(0, -2), up.weight, up.bias, down.weight, down.bias)
    return dropout(y.view(x.shape))  # type: ignore[no-any-return]


def has_usual_layers(module: nn.Sequential) -> bool:
    """Return whether a feed-forward network has the layers that _FeedForward computes."""
    if [type(layer) for layer in module] != [nn.Linear, nn.GELU, nn.Linear, nn.Dropout]:
        return False
    up, gelu, down, _ = module
    return gelu.approximate == "tanh" and has_aligned_rows(up) and has_aligned_rows(down)


def has_aligned_rows(module: nn.Module) -> bool:
    """Return whether the rows of all matrices of a linear layer take a multiple of 16 bytes."""
    assert isinstance(module, nn.Linear)
    return module.in_features % 8 == 0 and module.out_features % 8 == 0
