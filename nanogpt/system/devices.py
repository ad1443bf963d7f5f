"""Which device a run uses, at which precision, with how many threads, and what it can do."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from .cores import count_cores

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(name: str) -> torch.device:
    """The device called auto, cpu, cuda, cuda:N or mps; auto takes the fastest there is.

    Raises UserError where the machine has no such device.
    """
    if name == "cpu":
        return torch.device("cpu")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    here = ["cpu"] + ["cuda"] * cuda + ["mps"] * mps
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    parts = re.fullmatch(r"(cuda|mps)(:(\d{1,4}))?", name, re.ASCII)
    if not parts:
        raise UserError(f"there is no device {name!r}: use auto, {', '.join(here)}")
    kind, index = parts[1], int(parts[3] or 0)
    if kind not in here:
        raise UserError(f"this machine has no {kind} device: use --device {' or '.join(here)}")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if index >= count:
        raise UserError(f"there is no {name}: this machine's {kind} devices are 0 to {count - 1}")
    return torch.device(kind, index) if parts[2] else torch.device(kind)


def pick_precision(name: Precision, device: torch.device) -> torch.dtype:
    """The type of the matrix products; auto is bfloat16 where there are instructions for it.

    Weights, optimizer state and losses are float32 at every precision. Raises UserError where the
    device cannot.
    """
    if name == "auto":
        name = "bfloat16" if _is_fast(torch.bfloat16, device) else "float32"
    precision: torch.dtype = getattr(torch, name)
    if not _has(precision, device):
        raise UserError(f"{describe_device(device)} has no {name}: use --precision float32")
    return precision


def _has(precision: torch.dtype, device: torch.device) -> bool:
    """Whether the device computes with this type, itself and not through another."""
    if device.type == "cuda" and precision == torch.bfloat16:
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        square = torch.ones(2, 2, device=device, dtype=precision)
        return (square @ square).dtype == precision
    except (RuntimeError, TypeError):
        return False


def _is_fast(precision: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions for products of this type."""
    if device.type == "cpu" and precision == torch.bfloat16:
        capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 has none
        has = capabilities() if capabilities else {}
        return any(has.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return device.type == "cuda" and _has(precision, device)


@contextmanager
def autocast(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Within it, matrix products run at this precision."""
    if precision == torch.float32:
        yield
    elif device.type != "cpu":
        with torch.autocast(device.type, precision):
            yield
    else:
        # At less than float32, the fused attention of a CPU has a backward pass that takes four
        # times as long as that of the products one by one (docs/log.md).
        cuda = torch.backends.cuda  # its name notwithstanding, this one is the CPU's, too
        before = cuda.fp16_bf16_reduction_math_sdp_allowed()
        cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with torch.autocast("cpu", precision), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            cuda.allow_fp16_bf16_reduction_math_sdp(before)


def describe_device(device: torch.device) -> str:
    """The device in words, for people and for run.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    return device.type + threads


PEAKS = {
    r"A100": 312e12,
    r"H100 PCIe": 756e12,
    r"H[12]00 NVL": 835e12,
    r"H100 80GB HBM3": 989e12,
    r"H200": 989e12,
    r"B200": 2250e12,
    r"L4": 121e12,
    r"L40S": 362e12,
}
"""Dense operations a second in bfloat16 and float16, from NVIDIA's data sheets."""


def find_peak_flops(device: torch.device, precision: torch.dtype) -> float | None:
    """Operations a second that the device is said to reach at a precision; None if not known."""
    if device.type != "cuda" or precision == torch.float32:
        return None
    named = torch.cuda.get_device_name(device)
    if "MIG" in named:  # a part of a GPU
        return None
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", named)), None)


def use_deterministic(wanted: bool) -> None:
    """The same bits from the same run, on a GPU too: slower kernels, none chosen by timing."""
    if wanted != torch.are_deterministic_algorithms_enabled():  # it imports the compiler
        torch.use_deterministic_algorithms(wanted)
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only with it
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
        # Filling memory that is about to be written helps to find bugs, and nothing else.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def limit_threads() -> None:
    """As many threads as the process has cores, and what OMP_NUM_THREADS says where it is set.

    torch by itself counts the cores of the machine, also in a container that may use only some.
    It is only told where it has too many: being told costs 8% of a step (docs/log.md).
    """
    if "OMP_NUM_THREADS" not in os.environ and count_cores() < torch.get_num_threads():
        torch.set_num_threads(count_cores())


def free_token_memory(device: torch.device) -> int:
    """Bytes of a device that the tokens of a text may take: of a GPU's memory that is free, 1/4."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 1 << 62


def keep_freed_memory() -> None:
    """Keep freed memory for the next step instead of handing it back to the system.

    With glibc, large tensors otherwise come as new pages every time, each zeroed when it is first
    touched (docs/log.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    for size in (1 << 30, 32 << 20):  # the second is the most that an older glibc takes
        if mallopt and mallopt(M_MMAP_THRESHOLD, size):
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            return


def get_random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own random generators that a run on this device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on where random_states() was. Raises RuntimeError where a state is none."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def requested_memory(error: BaseException) -> str | None:
    """How much memory was asked for when there was not enough; None for any other error."""
    if isinstance(error, MemoryError):
        return "some bytes"
    if isinstance(error, torch.OutOfMemoryError):
        found = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        return found[1] if found else "more"
    if "Storage size calculation overflowed" in str(error):
        return "2**63 bytes"
    found = re.search(r"tried to allocate (\d+) bytes", str(error))  # on a CPU
    return f"{int(found[1]) / 2**30:.2f} GiB" if found else None
