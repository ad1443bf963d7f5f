"""The device of a run: its choice, precision, threads, memory, peak speed, random states."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from . import launch
from .cores import count_cores
from .libc import find_c_function

Precision = Literal["auto", "float32", "bfloat16", "float16"]
TrainingPrecision = Literal["auto", "float32", "bfloat16", "float16", "float8"]


def pick_device(name: str) -> torch.device:
    """Return the device `name`: cpu, cuda, cuda:N, mps or auto.

    "auto" means the first available of cuda, mps and cpu. If torchrun started several processes,
    cuda is another GPU for each process of a machine. Raises UserError if the machine has no such
    device, or fewer GPUs than processes.
    """
    if name == "cpu":  # without a call of CUDA, which takes time
        return torch.device("cpu")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = ["cpu"] + ["cuda"] * cuda + ["mps"] * mps
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
        if name == "cpu":
            return torch.device("cpu")
    if name == "cuda" and cuda and launch.get_size() > 1:
        return torch.device("cuda", _pick_gpu(torch.cuda.device_count()))
    parts = re.fullmatch(r"(cuda|mps)(:(\d{1,4}))?", name, re.ASCII)
    if not parts:
        raise UserError(f"there is no device {name!r}: use auto, {', '.join(available)}")
    kind, index = parts[1], int(parts[3] or 0)
    if kind not in available:
        raise UserError(f"this machine has no {kind} device: use {' or '.join(available)}")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if index >= count:
        last = f"{kind}:{count - 1}"
        raise UserError(f"there is no {name}: the last {kind} device of this machine is {last}")
    return torch.device(kind, index) if parts[2] else torch.device(kind)


def _pick_gpu(count: int) -> int:
    """Return the number of the GPU of this process, one of several, on a machine with `count`."""
    number = launch.get_local_rank()
    if number >= count > 1:
        raise UserError(
            f"this machine has {count} GPUs, but torchrun started more processes: use "
            f"--nproc-per-node {count}, or --device cpu"
        )
    return number if count > 1 else 0  # each process may see only its own GPU


def pick_precision(name: TrainingPrecision, device: torch.device) -> torch.dtype:
    """Return the data type of matrix products, except those that fast/float8.py replaces.

    "auto" means bfloat16 if a CPU or CUDA GPU has instructions for it, and float32 otherwise. With
    "float8", everything that is not in float8 is in bfloat16. Weights, optimizer state and losses
    are float32 at every precision. Raises UserError if the device does not support the precision.
    """
    if name == "auto":
        name = "bfloat16" if _is_fast(torch.bfloat16, device) else "float32"
    if name == "float8":
        if not _has_float8(device):
            problem = f"{describe_device(device)} does not support float8"
            raise UserError(f"{problem}: use precision auto")
        name = "bfloat16"
    precision: torch.dtype = getattr(torch, name)
    if not _supports(precision, device):
        raise UserError(f"{describe_device(device)} does not support {name}: use precision float32")
    return precision


def name_precision(name: TrainingPrecision, precision: torch.dtype) -> str:
    """Return the precision that pick_precision() has chosen for `name`, for example "bfloat16"."""
    return name if name == "float8" else str(precision).removeprefix("torch.")


def _supports(precision: torch.dtype, device: torch.device) -> bool:
    """Return whether the device can compute in this data type without converting to another."""
    if device.type == "cuda" and precision == torch.bfloat16:
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        square = torch.ones(2, 2, device=device, dtype=precision)
        return (square @ square).dtype == precision
    except (RuntimeError, TypeError):
        return False


def _has_float8(device: torch.device) -> bool:
    """Return whether the device is an NVIDIA GPU with instructions for products in float8."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 9)


def _is_fast(precision: torch.dtype, device: torch.device) -> bool:
    """Return whether the device has instructions for matrix products of this data type."""
    if device.type == "cpu" and precision == torch.bfloat16:
        get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in torch 2.11
        capabilities = get_capabilities() if get_capabilities else {}
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return device.type == "cuda" and _supports(precision, device)


@contextmanager
def autocast(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Within this context, matrix products run at this precision.

    Weights in half precision are not kept: a model uses each of them once, so they would only
    need memory.
    """
    if precision == torch.float32:
        yield
    elif device.type != "cpu":
        with torch.autocast(device.type, precision, cache_enabled=False):
            yield
    else:
        # On a CPU, fused attention in bfloat16 is slow. Attention with separate matrix products and
        # without float32 copies takes a quarter of the time, forward + backward (docs/log/cpu.md).
        cuda = torch.backends.cuda  # the setting for float32 copies applies to CPUs too
        previous = cuda.fp16_bf16_reduction_math_sdp_allowed()
        cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with (
                torch.autocast("cpu", precision, cache_enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
        finally:
            cuda.allow_fp16_bf16_reduction_math_sdp(previous)


def describe_device(device: torch.device) -> str:
    """Return the name of the device; for a CPU, also the number of threads."""
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
"""Peak floating-point operations per second in bfloat16 and float16, by the name of the GPU. The
values are from NVIDIA's data sheets and hold for dense (not sparse) matrices."""


def find_peak_flops(device: torch.device, precision: torch.dtype) -> float | None:
    """Return the peak speed in floating-point operations per second; None if it is unknown."""
    if device.type != "cuda" or precision == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name:  # MIG: only a part of a GPU, so its peak is lower
        return None
    return next((peak for model, peak in PEAKS.items() if re.search(rf"\b{model}\b", name)), None)


def use_deterministic(wanted: bool) -> None:
    """If `wanted` is true, make runs on a GPU reproducible bit for bit, with slower kernels."""
    if wanted != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted)  # slow: imports a part of the compiler
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS needs this
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
        # torch would also fill new memory with NaN, which only helps to find bugs.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def limit_threads() -> None:
    """Use at most one CPU thread per available core. Do nothing if OMP_NUM_THREADS is set.

    torch counts all cores of the machine, even in a container that may use only some of them. This
    function sets the number of threads only if it is too large, because any call of
    torch.set_num_threads() makes training slower: by 9% in one measurement (docs/log/cpu.md).
    """
    if "OMP_NUM_THREADS" not in os.environ and count_cores() < torch.get_num_threads():
        torch.set_num_threads(count_cores())


def free_token_memory(device: torch.device) -> int:
    """Return how many bytes of device memory the tokens of a text may use.

    On a CUDA GPU, the result is a quarter of the free memory; on other devices, it is 2**62.
    """
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 1 << 62


def keep_freed_memory() -> None:
    """Keep freed memory for the next step instead of returning it to the operating system.

    Otherwise glibc requests new pages for every large tensor. The operating system fills each page
    with zeros at its first use, which takes time (docs/log/cpu.md). With other C libraries, this
    function does nothing.
    """
    mallopt = find_c_function("mallopt")
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    for size in (1 << 30, 32 << 20):  # older versions of glibc reject the first size
        if mallopt and mallopt(M_MMAP_THRESHOLD, size):
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            return


def get_random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global random generators, for a run on this device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states from get_random_states(). Raises RuntimeError for an invalid state."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def requested_memory(error: BaseException) -> str | None:
    """Return the size of a failed memory allocation, as text with a unit; None for other errors."""
    if isinstance(error, MemoryError):
        return "an unknown amount"
    if "Storage size calculation overflowed" in str(error):
        return "2**63 bytes"
    # Only CUDA has a class for this error. CPU and MPS raise a RuntimeError: search its message.
    match = re.search(r"[Tt]ried to allocate ([\d.]+) (\w+)", str(error))
    if not match:
        return "an unknown amount" if isinstance(error, torch.OutOfMemoryError) else None
    if match[2] == "bytes" and int(match[1]) >= 1 << 20:
        return f"{int(match[1]) / 2**30:.2f} GiB"
    return f"{match[1]} {match[2]}"
