"""Measures how fast a device computes matrix products and accesses memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


@dataclass(frozen=True)
class Rates:
    """The speed of a device for tensors of a given shape."""

    products: float
    """Operations per second in matrix products."""
    memory: float
    """Bytes that other operations read and write per second, measured with a layer norm."""


def measure_rates(device: torch.device, precision: torch.dtype, n: int, C: int) -> Rates:
    """Measure matrix products (n, C) × (C, 4C) and layer norms (n, 4C) for about half a second."""
    n = max(1, min(n, (1 << 28) // C))
    x = torch.randn(n, C, device=device, dtype=precision)
    w = torch.randn(C, 4 * C, device=device, dtype=precision)
    product = x @ w
    norm = partial(nn.functional.layer_norm, product, (4 * C,))
    return Rates(
        products=8 * n * C * C / _time_call(lambda: torch.mm(x, w, out=product), device),
        memory=2 * product.nbytes / _time_call(norm, device),
    )


def _time_call(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call: the minimum of eight measurements, or of two if it is slow."""

    def time_calls(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    time_calls(1)  # warm up
    calls = round(0.025 / max(time_calls(1), 1e-7))
    return min(time_calls(max(1, calls)) for _ in range(8 if calls else 2))


def get_workspace_bytes(device: torch.device) -> int:
    """Return the size of the buffer that cuBLAS allocates for each stream of a CUDA device."""
    return (32 << 20) if torch.cuda.get_device_capability(device)[0] == 9 else 8519680
