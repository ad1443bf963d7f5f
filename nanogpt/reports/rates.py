"""How fast a device is, measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


@dataclass(frozen=True)
class Rates:
    """How fast a device is at work of some shape."""

    products: float
    """Operations a second in matrix products."""
    memory: float
    """Bytes a second, read or written, by everything else."""


def measure_rates(device: torch.device, precision: torch.dtype, n: int, C: int) -> Rates:
    """Time products (n, C) × (C, 4C) and layer norms (n, 4C), for about half a second."""
    n = max(1, min(n, (1 << 28) // C))
    x = torch.randn(n, C, device=device, dtype=precision)
    w = torch.randn(C, 4 * C, device=device, dtype=precision)
    product = x @ w
    norm = partial(nn.functional.layer_norm, product, (4 * C,))
    return Rates(
        products=8 * n * C * C / _seconds(lambda: torch.mm(x, w, out=product), device),
        memory=2 * product.nbytes / _seconds(norm, device),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least time that work takes: of eight tries in a quarter of a second, or of two."""

    def once(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - began) / times

    once(1)
    times = round(0.025 / max(once(1), 1e-7))
    return min(once(max(1, times)) for _ in range(8 if times else 2))


def get_workspace_bytes(device: torch.device) -> int:
    """Bytes that cuBLAS works in on each stream of a CUDA device."""
    return (32 << 20) if torch.cuda.get_device_capability(device)[0] == 9 else 8519680
