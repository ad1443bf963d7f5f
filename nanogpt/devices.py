"""Which device a run uses, at which precision, and what the device can do."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from .errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


def pick_device(name: str) -> torch.device:
    """The device called auto, cpu, cuda, cuda:N or mps; auto takes the fastest there is.

    Raises UserError where the machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    here = ["cpu"] + ["cuda"] * cuda + ["mps"] * mps
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise UserError(f"there is no device {name!r}: use auto, {', '.join(here)}")
    if kind not in here:
        raise UserError(f"this machine has no {kind} device: use --device {' or '.join(here)}")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if index and int(index) >= count:
        raise UserError(f"there is no {name}: this machine's {kind} devices are 0 to {count - 1}")
    return torch.device(name)


def pick_precision(name: Precision, device: torch.device) -> torch.dtype:
    """The type of the matrix products; auto is bfloat16 on a CUDA device that has it.

    Weights, optimizer state and losses are float32 at every precision.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Within it, matrix products run at this precision."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def describe(device: torch.device) -> str:
    """The device in words, for people and for run.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    return device.type + threads
