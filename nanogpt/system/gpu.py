"""Compilation, CUDA graphs and background copies: they keep a GPU busy during training."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from warnings import catch_warnings

import torch
from torch import Tensor, nn

from . import distributed
from .devices import get_random_states, set_random_states

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""A function of inputs (B, T) and targets (B, T) that returns their mean loss, a scalar ()."""


Forward = Callable[..., Tensor]
"""The method forward() of a class of modules; its first argument is the module."""


def replace_forward(
    loss: LossFunction, blocks: Sequence[nn.Module], forward: Forward
) -> LossFunction:
    """Return `loss` with the method forward() of the blocks replaced by `forward`."""

    def changed_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        for block in blocks:
            vars(block)["forward"] = partial(forward, block)
        try:
            return loss(inputs, targets)
        finally:
            for block in blocks:
                del vars(block)["forward"]

    return changed_loss


def compile_loss(
    loss: LossFunction,
    blocks: Sequence[nn.Module],
    example: tuple[Tensor, Tensor],
    say: Callable[[str], None],
    wrap: Callable[[Forward], Forward] = lambda forward: forward,
    shares_code: bool = True,
) -> LossFunction | None:
    """Return `loss` with compiled blocks. If they cannot be compiled, say() why and return None.

    The blocks have the same structure, so one compiled function serves all of them (regional
    compilation). This is much faster than compiling every block. wrap() is applied to the compiled
    function. Outside the returned function, the blocks are unchanged. Torch compiles at the first
    call, so compile_loss() runs one forward and one backward pass on `example`. `example` must have
    the shapes and strides of the batches; otherwise the blocks are compiled again. If `shares_code`
    is true, torch uses the compiled code of earlier calls in this process, also with another
    wrap(). The gradients of the example pass remain in the parameters; the random states are
    restored.
    """
    device = example[0].device
    states = get_random_states(device)
    # Blocks of other models, such as teachers, may have other sizes: compile each size by itself.
    function = type(blocks[0]).forward
    if not shares_code:  # torch finds compiled code by its code object, so copy this object
        code = function.__code__.replace()
        function = FunctionType(code, function.__globals__, argdefs=function.__defaults__)
    forward = torch.compile(function, dynamic=False)
    compiled_loss = replace_forward(loss, blocks, wrap(forward))
    try:
        with catch_warnings(action="ignore"):  # the warnings are for developers of the compiler
            compiled_loss(*example).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say(_one_line(error))
        return None
    finally:
        set_random_states(states, device)
    return compiled_loss


class CannotCompile(RuntimeError):
    """The model cannot be compiled, and cannot be trained without compilation any more."""


class CannotCapture(RuntimeError):
    """A CUDA graph cannot capture this work, for example because the host waits for a result."""


class CudaGraph:
    """A sequence of operations on a CUDA device, captured once and then replayed as one launch.

    For a small model, the host needs more time to launch the hundreds of kernels of a step than the
    device needs to run them. A replay uses the memory addresses of the capture, so all tensors
    must keep their storage. The Python code of the operations does not run in a replay.
    """

    def __init__(self, device: torch.device, warmup: int = 3) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # the default stream cannot be captured
        self.warmup = warmup
        """Number of remaining calls without a graph. During these calls, libraries initialise
        themselves."""
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Do the work, which must be the same in every call.

        Raises CannotCapture. After this error, the process should no longer use CUDA.
        """
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            if self.warmup:
                self.warmup -= 1
                self.stream.wait_stream(current)
                with torch.cuda.stream(self.stream):
                    work()
                current.wait_stream(self.stream)
                return
            if self.graph is None:
                torch.cuda.synchronize()  # errors of earlier GPU operations appear here, not below
                try:
                    self.graph = self._capture(work)
                finally:
                    torch.cuda.set_stream(current)
            self.graph.replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph,
            stream=self.stream,
            capture_error_mode="thread_local",  # lets another thread save a checkpoint
        )
        problem: RuntimeError | None = None
        try:
            with capture:
                try:
                    work()
                except RuntimeError as error:  # the end of the capture raises another error
                    problem = error
        except RuntimeError as error:
            problem = problem or error
        if isinstance(problem, torch.OutOfMemoryError):
            raise problem
        if problem:
            raise CannotCapture(_one_line(problem)) from problem
        return graph


Snapshot = Callable[[], dict[str, Tensor]]
"""A function that returns copies of tensors by name; the copies are in host memory."""


def take_snapshot(tensors: Mapping[str, Tensor]) -> Snapshot:
    """Return a function that returns copies of the current `tensors`; each copy has its own memory.

    If tensors are on a CUDA device, take_snapshot() copies them to other memory of this device. The
    first call of the returned function, in any thread, moves these copies to the host while the
    device continues to compute. If the device has too little memory, take_snapshot() itself copies
    the tensors to the host. If tensors are sharded, it collects them there in process 0.
    """
    if any(map(distributed.is_sharded, tensors.values())):
        collected = distributed.collect(tensors)
        return lambda: collected
    try:
        copies = {name: _copy(t) for name, t in tensors.items()}
    except torch.OutOfMemoryError:
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
    device = next((t.device for t in copies.values() if t.is_cuda), None)
    if device is None:
        return lambda: copies
    copies_ready = torch.cuda.current_stream(device).record_event()
    on_host: dict[str, Tensor] = {}

    def move_to_host() -> dict[str, Tensor]:
        if copies:
            stream = torch.cuda.Stream(device)
            stream.wait_event(copies_ready)
            with torch.cuda.stream(stream):
                on_host.update({name: t.cpu() for name, t in copies.items()})
            copies.clear()
        return on_host

    return move_to_host


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200]


def get_workspace_bytes(device: torch.device) -> int:
    """Return the size of the buffer that cuBLAS allocates for each stream of a CUDA device."""
    return (32 << 20) if torch.cuda.get_device_capability(device)[0] == 9 else 8519680
