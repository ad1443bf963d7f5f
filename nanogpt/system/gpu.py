"""What keeps a GPU busy: compiled blocks, a step as a CUDA graph, checkpoints sent beside it."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from warnings import catch_warnings

import torch
from torch import Tensor, nn

from .devices import get_random_states, set_random_states

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets, each (B, T), to the mean loss ()."""


def compile_loss(
    loss: LossFunction,
    blocks: Sequence[nn.Module],
    example: tuple[Tensor, Tensor],
    say: Callable[[str], None],
) -> LossFunction | None:
    """A loss, the blocks of its model compiled; None, and a line why, if that fails.

    The blocks are alike, so one is compiled, which does for all: regional compilation, in a
    fraction of the time. Elsewhere they stay as they are. Compilation happens at the first use, so
    the loss is used once, forward and backward, with arguments of the shapes and strides that there
    will be: for others all would be compiled again. That leaves gradients behind, but no random
    numbers.
    """
    device = example[0].device
    states = get_random_states(device)
    forward = torch.compile(type(blocks[0]).forward)

    def fast(inputs: Tensor, targets: Tensor) -> Tensor:
        for block in blocks:
            vars(block)["forward"] = partial(forward, block)
        try:
            return loss(inputs, targets)
        finally:
            for block in blocks:
                del vars(block)["forward"]

    try:
        with catch_warnings(action="ignore"):  # what the compiler says is meant for its makers
            fast(*example).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say(f"The model cannot be compiled here, and trains slower without ({_one_line(error)}).")
        return None
    finally:
        set_random_states(states, device)
    return fast


class CannotCapture(RuntimeError):
    """Work that a CUDA graph cannot hold, as it waits for what the host decides."""


class CudaGraph:
    """Work on a CUDA device that is the same every time: captured once, then replayed as a whole.

    Launching the hundreds of kernels of a small model takes the host longer than they run. A CUDA
    graph of them is launched at once. Whatever the work reads and writes has to stay where it is,
    and what it does on the host is done only while it is captured.
    """

    def __init__(self, device: torch.device, warmup: int = 3) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # the default stream cannot be captured
        self.warmup = warmup
        """Calls left that do the work in the ordinary way: libraries get ready at their first."""
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Do work, always the same. Raises CannotCapture; CUDA is of little use after that."""
        with torch.cuda.device(self.device):
            outside = torch.cuda.current_stream()
            if self.warmup:
                self.warmup -= 1
                self.stream.wait_stream(outside)
                with torch.cuda.stream(self.stream):
                    work()
                outside.wait_stream(self.stream)
                return
            if self.graph is None:
                torch.cuda.synchronize()  # what went wrong before is no matter of the capture
                try:
                    self.graph = self._capture(work)
                finally:
                    torch.cuda.set_stream(outside)
            self.graph.replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph,
            stream=self.stream,
            capture_error_mode="thread_local",  # another thread may be saving a checkpoint
        )
        problem: RuntimeError | None = None
        try:
            with capture:
                try:
                    work()
                except RuntimeError as error:  # ending the capture fails, too, and says less
                    problem = error
        except RuntimeError as error:
            problem = problem or error
        if isinstance(problem, torch.OutOfMemoryError):
            raise problem
        if problem:
            raise CannotCapture(_one_line(problem)) from problem
        return graph


Snapshot = Callable[[], dict[str, Tensor]]
"""Tensors as they were, on the CPU, by name."""


def take_snapshot(tensors: Mapping[str, Tensor]) -> Snapshot:
    """Copies of tensors as they are now, each with memory of its own.

    From a CUDA device they are sent when they are first asked for, by another thread, beside what
    the device computes; until then they are kept there. Where it has no memory for that, they are
    sent at once.
    """
    try:
        copies = {name: _copy(t) for name, t in tensors.items()}
    except torch.OutOfMemoryError:
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
    device = next((t.device for t in copies.values() if t.is_cuda), None)
    if device is None:
        return lambda: copies
    copied = torch.cuda.current_stream(device).record_event()
    sent: dict[str, Tensor] = {}

    def send() -> dict[str, Tensor]:
        if copies:
            stream = torch.cuda.Stream(device)
            stream.wait_event(copied)
            with torch.cuda.stream(stream):
                sent.update({name: t.cpu() for name, t in copies.items()})
            copies.clear()
        return sent

    return send


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200]
