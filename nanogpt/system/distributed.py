"""Processes that train one model together. Each has a rank from 0 to N - 1.

torchrun, or the variables RANK and WORLD_SIZE, define the processes. Otherwise, there is one
process, of rank 0, which does not communicate. No other module calls torch.distributed.
"""

import os
import platform
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import Interrupted, Stopped, UserError, make_line
from . import launch
from .heartbeat import SEE_MESSAGE, Lost, Peers, make_lost, mark_outside

# Every command imports this module, but importing torch is slow.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONNECTING = timedelta(seconds=60)
"""How long the processes wait for each other to connect."""
PATIENCE = timedelta(minutes=30)
"""Timeout of communication outside training steps: a process may encode a text or write a file."""
TIMEOUT = timedelta(seconds=20)
"""Timeout of communication in a training step on CPUs. GPUs have PATIENCE, or none in a graph."""
T = TypeVar("T")
_patient: Any = None
"""The group of all processes, with PATIENCE; None without join()."""
_prompt: Any = None
"""The group of all processes, with TIMEOUT."""
_gpus: Any = None
"""The group of all processes, for tensors on GPUs; None without connect_gpus()."""
_peers: Peers | None = None
"""The other processes; None without join()."""


def size() -> int:
    """Return the number of processes within join(), and otherwise 1."""
    return launch.get_size() if _patient else 1


def rank() -> int:
    """Return the rank of this process within join(), and otherwise 0."""
    return launch.get_rank() if _patient else 0


@contextmanager
def join(task: str = "trains") -> Iterator[None]:
    """Within this context, the processes are connected.

    `task` says what this process does, such as "evaluates a run". Raises Stopped if the processes
    cannot connect, and UserError if another process has another task: it would communicate
    differently.
    """
    global _patient, _prompt, _peers
    if launch.get_size() == 1:
        yield
        return
    from torch import distributed

    try:
        store = _connect()
        _patient = distributed.new_group(timeout=PATIENCE)
        _prompt = distributed.new_group(timeout=TIMEOUT)
        own = platform.node(), os.getppid(), os.getpid()
        _peers = Peers(launch.get_rank(), gather_objects(own), store)
        first, *others = gather_objects(task)
        for number, other in enumerate(others, start=1):
            if other != first:
                raise UserError(
                    f"process 0 {first}, but process {number} {other}: start all processes with "
                    f"the same command"
                )
        yield
    finally:
        _patient = _prompt = _peers = None
        if not _gpus:  # NCCL would wait for captured graphs, and for processes that are lost
            with suppress(RuntimeError, AssertionError):  # there may be no group
                distributed.destroy_process_group()


def _connect() -> Any:
    """Connect the processes; return a connection to their store. Raises Stopped."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    own, count = launch.get_rank(), launch.get_size()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store = next(rendezvous("env://", timeout=CONNECTING))[0]
        store.set(f"rank {own} is here", "")
        _wait_for_all(store, count)
        distributed.init_process_group(
            "gloo",
            store=store,
            rank=own,
            world_size=count,
            timeout=CONNECTING / 10,  # gloo waits five times as long for the first connection
        )
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            address, int(port), is_master=False, timeout=CONNECTING
        )
        mark_outside(store, own)
        return store
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        problem = Stopped(
            f"the {count} processes cannot connect ({reason}): start all of them, with the same "
            f"WORLD_SIZE, MASTER_ADDR and MASTER_PORT (torchrun sets them); if the port is in use, "
            f"choose another one; if they are on several machines, name the network interface of "
            f"each machine in GLOO_SOCKET_IFNAME"
        )
        if own:  # process 0 prints its own error, if it has one
            # If the first process of a machine has failed, too, torchrun ends the others meanwhile.
            time.sleep(3 * bool(launch.get_local_rank()))
            print(f"nanogpt: process {own}: {make_line(problem)}", file=sys.stderr, flush=True)
        raise problem from None


def _wait_for_all(store: Any, count: int) -> None:
    """Wait until all processes are in the store. Raises TimeoutError.

    store.wait() would not let Python handle signals.
    """
    end = time.monotonic() + CONNECTING.total_seconds()
    missing = list(range(count))
    while missing := [number for number in missing if not store.check([f"rank {number} is here"])]:
        if time.monotonic() > end:
            waited = f"after {CONNECTING.total_seconds():.0f} s"
            raise TimeoutError(f"process {missing[0]} is missing {waited}")
        time.sleep(0.1)


def connect_gpus(device: "torch.device") -> None:
    """Connect the GPUs of the processes; `device` is the GPU of this process, or its CPU."""
    global _gpus
    if device.type != "cuda" or size() == 1 or _gpus:
        return
    from torch import distributed

    gather_objects(None)  # NCCL waits only a minute for the others
    with _communicating(PATIENCE, uses_gpus=True):
        _gpus = distributed.new_group(backend="nccl", timeout=PATIENCE, device_id=device)


@contextmanager
def exit_promptly() -> Iterator[None]:
    """At the end of this context, end a process whose GPU is connected to others.

    Otherwise Python would wait for NCCL, and NCCL for processes that may be lost.
    """
    status: object = 0
    try:
        yield
    except BaseException as error:
        if not _gpus:
            raise
        status = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            with suppress(Exception):
                traceback.print_exc()
    if _gpus:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # the stream may be closed
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


@contextmanager
def _communicating(
    timeout: timedelta, uses_gpus: bool = False, start: float | None = None
) -> Iterator[None]:
    """Within this context, an error of torch.distributed raises Lost.

    After `timeout`, counted from `start` or from the start of this context, one of the processes
    hangs, so the others of the same torchrun are killed. GPUs have no such timeout.
    """
    start = time.monotonic() if start is None else start
    try:
        yield
    except Stopped:
        raise
    except RuntimeError as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):  # in a buffer for the result
            raise
        if uses_gpus:
            reason = " ".join(str(error).split())[:200]
            raise Lost(
                f"the GPUs cannot communicate ({reason})", ": set NCCL_DEBUG=WARN to see more"
            ) from None
        if time.monotonic() - start > 0.9 * timeout.total_seconds():
            _end_siblings()
        raise make_lost() from None


def _end_siblings() -> None:
    """Kill the other processes of the same torchrun. It would wait 30 s for one that hangs."""
    if rank():
        time.sleep(5)  # the first process prints the message
    if _peers:
        _peers.kill(number for number in range(size()) if number != rank())


def watch(
    advice: str = SEE_MESSAGE, before_end: Callable[[], object] = lambda: None
) -> AbstractContextManager[None]:
    """Do the same as Peers.watch(). With a single process, do nothing."""
    return _peers.watch(advice, before_end) if _peers else nullcontext()


def report_progress() -> None:
    """Let the other processes know that this process has passed the next point of a step.

    All processes must call this at the same points.
    """
    if _peers:
        _peers.progress += 1


def is_first_failure() -> bool:
    """Return whether this process, which has failed by itself, is the one to print its message."""
    return not _peers or rank() == 0 or _peers.is_first_failure()


def end_together(error: BaseException | None) -> None:
    """If all processes end for the same reason, let each wait until the others are ready to end.

    30 s after the first process has ended, torchrun kills the others, which may be writing files.
    """
    if error is None or (isinstance(error, Stopped | Interrupted) and not isinstance(error, Lost)):
        with suppress(Lost):
            gather_objects(None)


def ignore_termination() -> None:
    """Ignore SIGTERM, which torchrun sends to all processes when one of them has ended.

    A process that is ending by itself can then still print its message.
    """
    if size() > 1:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def add_up(tensors: Sequence["Tensor"], in_step: bool = False) -> None:
    """Replace each tensor with its sum over all processes. All have the same dtype and device.

    In a training step, the timeout is TIMEOUT, otherwise PATIENCE.
    """
    start_adding(tensors, in_step)()


def start_adding(tensors: Sequence["Tensor"], in_step: bool = True) -> Callable[[], object]:
    """Start to do the same as add_up(). The returned function waits for the sums."""
    if size() == 1:
        return lambda: None
    from torch import distributed

    start, timeout = time.monotonic(), TIMEOUT if in_step else PATIENCE
    uses_gpus = tensors[0].is_cuda
    group = _gpus if uses_gpus else _prompt if in_step else _patient
    with _communicating(timeout, uses_gpus):
        launch_together = distributed._coalescing_manager  # type: ignore[attr-defined]
        # With a device, NCCL would get a second work, which keeps the tensors in memory longer.
        with launch_together(group, async_ops=True) as sums:
            for tensor in tensors:
                distributed.all_reduce(tensor, group=group)

    def wait() -> None:
        with _communicating(timeout, uses_gpus, start):
            sums.wait()

    return wait


def gather(tensor: "Tensor") -> "Tensor":
    """Return the tensors (n, ...) of all processes, concatenated in the order of the ranks.

    This function is for training steps; the timeout is TIMEOUT.
    """
    if size() == 1:
        return tensor
    import torch
    from torch import distributed

    parts = [torch.empty_like(tensor) for _ in range(size())]
    with _communicating(TIMEOUT, tensor.is_cuda):
        group = _gpus if tensor.is_cuda else _prompt
        distributed.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts)


def shard(model: "nn.Module", device: "torch.device") -> None:
    """Divide the rows of each parameter of a model between the processes (FSDP2).

    The model must be on the CPU. Each process gets its rows on `device`, as DTensors. A forward or
    backward pass collects the whole parameters of a block when it needs them, and then frees them.
    The backward pass averages the gradients. All processes must run the same passes. If `device` is
    a GPU, connect_gpus() comes first.
    """
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(_gpus or _prompt, device.type)
    lists = [module for module in model.children() if isinstance(module, nn.ModuleList)]
    for block in [block for blocks in lists for block in blocks]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # If the other parameters stayed whole after an evaluation, the next one would use old values.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(tensor: "Tensor") -> bool:
    """Return whether each process has only a part of a tensor."""
    if size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: "Tensor") -> "Tensor":
    """Return a tensor that is complete in each process. All processes must call this function."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def get_part(tensor: "Tensor") -> "Tensor":
    """Return the part of a tensor that this process has."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def collect(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return complete copies of tensors in host memory; if the rank is not 0, an empty dictionary.

    All processes must call this function. A device holds only one complete tensor at a time.
    """
    copies = {}
    with communicating():
        for name, tensor in tensors.items():
            complete = whole(tensor.detach())
            if rank() == 0:
                copies[name] = complete.to("cpu", copy=True)
    return copies


def fill(tensor: "Tensor", values: "Tensor") -> None:
    """Copy complete values into a tensor, which may be sharded."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        values = distribute_tensor(values.to(tensor.device), mesh, placements, src_data_rank=None)
    tensor.copy_(values)


@contextmanager
def communicating() -> Iterator[None]:
    """Within this context, tensors may be sharded; a complete tensor can be added to a sharded one.

    The timeout of communication is TIMEOUT.
    """
    if size() == 1:
        yield
        return
    from torch.distributed.tensor.experimental import implicit_replication

    other: RuntimeError | None = None
    with _communicating(TIMEOUT, bool(_gpus)), implicit_replication():
        try:
            yield
        except Stopped:
            raise
        except RuntimeError as error:
            if re.search("gloo|nccl", str(error), re.IGNORECASE):
                raise
            other = error
    if other:
        raise other


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in the order of the ranks."""
    if size() == 1:
        return [value]
    from torch import distributed

    values: list[T] = [value] * size()
    with _communicating(PATIENCE):
        distributed.all_gather_object(values, value, group=_patient)
    return values
