"""Processes that train one model together. torchrun starts them; each has a rank from 0 to N - 1.

No other module calls torch.distributed. Without torchrun, there is one process, of rank 0, and all
functions return at once.
"""

import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import Stopped, UserError

# Every command imports this module, but importing torch is slow.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONNECTING = timedelta(seconds=60)
"""How long the processes wait for each other to connect."""
PATIENCE = timedelta(minutes=30)
"""How long the processes wait for each other before the first step. One of them may encode a large
text, or compile the model."""
TIMEOUT = timedelta(seconds=20)
"""During the training, a process that does not answer for this time is regarded as dead."""
T = TypeVar("T")
_group: Any = None
"""The group of all processes, with the current timeout."""
_processes: list[tuple[str, int]] = []
"""The host and the process ID of each process."""


def rank() -> int:
    """Return the rank of this process."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def size() -> int:
    """Return the number of processes."""
    is_launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if is_launched else 1


def local_rank() -> int:
    """Return the rank of this process among the processes of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0


@contextmanager
def join(device: "torch.device") -> Iterator[None]:
    """Within this context, the processes are connected. `device` is the device of this process."""
    global _group
    if size() == 1:
        yield
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=CONNECTING
        )
        _group = distributed.new_group(timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Stopped(
            f"the {size()} processes cannot connect ({reason}): start all of them with torchrun, "
            f"with the same address and port"
        ) from None
    try:
        _processes[:] = gather_objects((platform.node(), os.getpid()))
        yield
    finally:
        _group = None
        with suppress(RuntimeError):
            distributed.destroy_process_group()


def expect_answers() -> None:
    """From now on, regard a process that does not answer for TIMEOUT as dead."""
    global _group
    if size() > 1:
        from torch import distributed

        gather_objects(None)  # wait until all processes are here
        _group = distributed.new_group(timeout=TIMEOUT)


class Lost(Stopped):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def _communicating() -> Iterator[None]:
    """Within this context, an error of torch.distributed raises Lost."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError:
        if time.monotonic() - start > 0.9 * TIMEOUT.total_seconds():
            _end_others()
        raise Lost(
            "another process of this run has ended, or does not answer", ": see its message"
        ) from None


def _end_others() -> None:
    """Kill the other processes on this machine: torchrun would wait 30 s for one that hangs."""
    if rank():
        time.sleep(5)  # the first process prints the message
    for host, pid in _processes:
        if host == platform.node() and pid != os.getpid():
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def ignore_termination() -> None:
    """Ignore SIGTERM, which torchrun sends to all processes when one of them has ended.

    A process that is ending by itself can then still print its message.
    """
    if size() > 1:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def add_up(tensors: Sequence["Tensor"]) -> None:
    """Replace each tensor by its sum over all processes. The tensors have one type and device."""
    if size() == 1:
        return
    import torch
    from torch import distributed

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _communicating():
        distributed.all_reduce(flat, group=_group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def gather(tensor: "Tensor") -> "Tensor":
    """Return the tensors (n, ...) of all processes, concatenated in the order of the ranks."""
    if size() == 1:
        return tensor
    import torch
    from torch import distributed

    parts = [torch.empty_like(tensor) for _ in range(size())]
    with _communicating():
        distributed.all_gather(parts, tensor.contiguous(), group=_group)
    return torch.cat(parts)


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in the order of the ranks."""
    if size() == 1:
        return [value]
    from torch import distributed

    values: list[T] = [value] * size()
    with _communicating():
        distributed.all_gather_object(values, value, group=_group)
    return values


def agree_on_signal(number: signal.Signals | None) -> signal.Signals | None:
    """Return a signal that one of the processes has received; None if there is none."""
    return next((found for found in gather_objects(number) if found), None)


@contextmanager
def agreement() -> Iterator[None]:
    """Run the body in all processes; if it fails in one of them, raise that error in all of them.

    All processes must enter this context. The body must not communicate.
    """
    if size() == 1:
        yield
        return
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    problems = gather_objects(problem and (isinstance(problem, UserError), str(problem)))
    if problem:
        raise problem
    for number, found in enumerate(problems):
        if found:
            is_mistake, message = found
            if is_mistake:
                raise UserError(f"process {number}: {message}")
            raise Stopped(f"process {number}: {message}")
