"""Processes that train one model together agree on settings, signals and errors."""

import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import Stopped, UserError
from .distributed import gather_objects, size

if TYPE_CHECKING:  # every command imports this module, but importing torch is slow
    import torch


def require_equal(facts: dict[str, object]) -> None:
    """Raise UserError if a value of `facts` is not the same in all processes."""
    first, *others = gather_objects(facts)
    for number, other in enumerate(others, start=1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UserError(
                    f"{name} is {value} in process 0, but {other.get(name)} in process {number}: "
                    f"start all processes with the same command, text and version"
                )


def require_own_gpu(device: "torch.device") -> None:
    """Raise UserError if two processes use the same GPU; `device` is that of this process."""
    if size() == 1:
        return
    import torch

    own: tuple[str, str] | None = None
    if device.type == "cuda":
        own = platform.node(), str(torch.cuda.get_device_properties(device).uuid)
    gpus = gather_objects(own)
    for number, gpu in enumerate(gpus):
        if gpu and (first := gpus.index(gpu)) < number:
            raise UserError(
                f"processes {first} and {number} use the same GPU: use --device cuda and "
                f"one process for each GPU (without torchrun, set LOCAL_RANK, too), or --device cpu"
            )


def agree_on_signal(number: signal.Signals | None) -> signal.Signals | None:
    """Return a signal that one of the processes has received; None if there is none."""
    return next((found for found in gather_objects(number) if found), None)


@contextmanager
def agreement() -> Iterator[None]:
    """Within this context, an error in one process ends the context in all processes.

    The others raise UserError or Stopped, with the message of the error. All processes must enter
    this context. The body must not communicate.
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
