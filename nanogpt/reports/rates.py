"""Measures how fast a device computes matrix products and accesses memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..fast.float8 import E4M3, multiply


@dataclass(frozen=True)
class Rates:
    """The speed of a device for tensors of a given shape."""

    products: float
    """Operations per second in matrix products."""
    memory: float
    """Bytes that other operations read and write per second, measured with a layer norm."""
    float8: float = 0.0
    """Operations per second in matrix products in float8; 0 if they are not measured."""


def measure_rates(
    device: torch.device, precision: torch.dtype, n: int, C: int, with_float8: bool = False
) -> Rates:
    """Measure the rates of matrix products (n, C) × (C, 4C) and layer norms (n, 4C).

    The measurement takes about half a second. If C and n are too large, they are reduced. On a
    CPU, C is at most 1024, and a tensor has at most 2**24 values. On a GPU, the limits are 4096 and
    2**28. If a product would need more than 0.1 s, n is reduced further. For larger tensors, the
    rates are almost the same.
    """
    C, values = (min(C, 1024), 1 << 22) if device.type == "cpu" else (min(C, 4096), 1 << 26)
    n = max(1, min(n, values // C))
    x = torch.randn(n, C, device=device, dtype=precision)
    w = torch.randn(C, 4 * C, device=device, dtype=precision)
    few = max(1, n // 256)
    seconds_per_row = min(_time_calls(lambda: x[:few] @ w, 1, device) for _ in range(2)) / few
    x = x[: max(1, int(0.1 / seconds_per_row))]
    product = x @ w
    norm = partial(nn.functional.layer_norm, product, (4 * C,))
    operations, float8 = 8 * x.numel() * C, 0.0
    if with_float8:
        x8, w8 = x.to(E4M3), w.T.contiguous().to(E4M3)
        scale = torch.ones((), device=device)
        float8 = operations / _time_call(lambda: multiply(x8, w8, scale), device)
    return Rates(
        products=operations / _time_call(lambda: torch.mm(x, w, out=product), device),
        memory=2 * product.nbytes / _time_call(norm, device),
        float8=float8,
    )


def _time_call(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call: the minimum of eight measurements (two if the call is slow)."""
    _time_calls(function, 1, device)  # warm up
    calls = round(0.025 / _time_calls(function, 1, device))
    return min(_time_calls(function, max(1, calls), device) for _ in range(8 if calls else 2))


def _time_calls(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the mean seconds per call. The result is at least 0.1 µs, so it is never 0."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(1e-7, (time.perf_counter() - start) / calls)
