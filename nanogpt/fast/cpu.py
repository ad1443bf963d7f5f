"""Faster attention and RMSNorm for training on a CPU; the code of the models does not change.

In half precision, torch computes causal attention on a CPU with all scores, also those of later
positions. It computes an RMSNorm with many small operations, which are slow in bfloat16. The
functions here give the same results, except for rounding, with fewer operations (docs/log/cpu.md).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

QUERIES = 128
"""Number of positions whose scores are computed at once."""


class CpuKernels(TorchFunctionMode):
    """Within this context, attention and RMSNorm on a CPU use the functions of this module."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Readers change the models: only the calls of models/ are replaced, and no similar ones.
        if func is F.scaled_dot_product_attention and len(args) == 5:
            q, k, v, mask, dropout = args
            is_plain = mask is None and dropout == 0 and kwargs == {"is_causal": True}
            is_plain = is_plain and q.ndim == 4 and q.shape == k.shape == v.shape
            # In float32, torch's fused attention stores no scores, so it needs less memory.
            if is_plain and q.dtype in (torch.bfloat16, torch.float16):
                return CausalAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        if func is F.rms_norm and len(args) == 2 and kwargs.get("weight") is None:
            x, shape = args
            if tuple(shape) == x.shape[-1:]:  # one norm for each vector, without gains
                return RMSNorm.apply(x, kwargs.get("eps"))  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


class CausalAttention(torch.autograd.Function):
    """softmax(q kᵀ / √D) v for q, k and v (B, H, T, D), where k and v are not later than q.

    Processes QUERIES positions of q at a time, with the keys and values up to the last of them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, H, T, D = ctx.shape = q.shape
        q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
        size = min(T, QUERIES)
        later = torch.full((size, size), -math.inf, dtype=q.dtype).triu_(1)
        y, weights = torch.empty_like(v), []
        for first in range(0, T, size):
            last = min(T, first + size)
            scores = torch.bmm(q[:, first:last], k[:, :last].mT).mul_(1 / math.sqrt(D))
            scores[:, :, first:] += later[: last - first, : last - first]
            weights.append(scores.softmax(dim=-1))
            y[:, first:last] = torch.bmm(weights[-1], v[:, :last])
        ctx.save_for_backward(q, k, v, *weights)
        return y.view(B, H, T, D)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *weights = ctx.saved_tensors
        B, H, T, D = ctx.shape
        gradient = gradient.reshape(B * H, T, D)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        first = 0
        for p in weights:
            last = first + p.shape[1]
            g = gradient[:, first:last]
            dv[:, :last].baddbmm_(p.mT, g)
            dp = torch.bmm(g, v[:, :last].mT)
            scores = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, first:last] = torch.bmm(scores, k[:, :last])
            dk[:, :last].baddbmm_(scores.mT, q[:, first:last])
            first = last
        scale = 1 / math.sqrt(D)
        return dq.mul_(scale).view(ctx.shape), dk.mul_(scale).view(ctx.shape), dv.view(ctx.shape)


class RMSNorm(torch.autograd.Function):
    """y = x / √(mean(x²) + eps) for vectors x (..., n).

    With r = 1 / √(mean(x²) + eps), the gradient for x is r · (g - y · mean(g · y)). All of this is
    computed in at least float32, because torch's operations on bfloat16 with broadcasting are slow.
    As in torch, the default eps is the distance from 1 to the next number of this precision.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float | None) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        eps = torch.finfo(wide.dtype).eps if eps is None else eps
        r = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y: Tensor = (wide * r).to(x.dtype)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        y, r = ctx.saved_tensors
        g, wide = gradient.to(r.dtype), y.to(r.dtype)
        mean = (g * wide).sum(dim=-1, keepdim=True) / y.shape[-1]
        return torch.addcmul(g, wide, mean, value=-1).mul_(r).to(y.dtype), None
