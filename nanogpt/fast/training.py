"""Fast training steps: compiled models, CUDA graphs, and loss scaling for float16.

With a CUDA graph, no step waits for the host: the batch and the learning rates of a step are on the
device before the step starts, and the results of the step stay on the device. All steps do the same
work on the device, so one step is captured as a graph, which is replayed for the other steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..data import inputs_and_targets
from ..distillation import SoftTargets
from ..evaluate import cross_entropy
from ..models.gpt import FeedForward
from ..optim import clip_gradients
from ..runs.config import STEPS_AHEAD
from ..runs.run import Run
from ..runs.sharing import is_sharded
from ..step import LossFunction, Stepper, compute_gradients, update_weights
from ..system import distributed
from ..system.devices import autocast
from ..system.gpu import CannotCompile, CudaGraph, Forward, compile_loss, replace_forward
from . import cublas, float8
from .cpu import CpuKernels
from .linear import feed_forward, linear, multiply_by_transposed


def make_stepper(run: Run, on_message: Callable[[str], None]) -> Stepper:
    """Return the fastest stepper for a run; call `on_message` if the model cannot be compiled."""
    mean_loss = make_loss(run, on_message)
    if run.state.scale:
        return ScaledStepper(run, mean_loss)
    return (CapturedStepper if can_capture(run) else Stepper)(run, mean_loss)


def make_loss(run: Run, on_message: Callable[[str], None]) -> LossFunction:
    """Return a function that computes the loss at the precision of the run.

    On a CUDA GPU, the Transformer blocks are compiled if the setting `compile` is true. In this
    case, the output layer and the cross-entropy become one function: a large vocabulary has many
    logits, and every pass over them takes time. With the setting `recompute`, the activations
    inside the blocks are computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174).
    In bfloat16, cuBLASLt computes the outputs of linear layers in the blocks, and the logits of a
    large vocabulary. With the precision float8, large layers of the blocks, and these logits, are
    products in float8. Raises CannotCompile if the blocks cannot be compiled.
    """
    model, settings, device = run.model, run.config.train, run.device
    soft = SoftTargets(run)

    @contextmanager
    def precision() -> Iterator[None]:
        kernels = CpuKernels() if device.type == "cpu" else nullcontext()
        with autocast(device, run.precision), kernels:
            yield

    def score(mean_loss: LossFunction, inputs: Tensor, targets: Tensor) -> Tensor:
        with precision():
            logits = model(inputs)
            return soft.add_to(mean_loss(logits, targets), logits, inputs)

    def score_without_logits(mean_loss: LossFunction, inputs: Tensor, targets: Tensor) -> Tensor:
        with precision():
            return mean_loss(inputs, targets)

    def wrap(forward: Forward) -> Forward:
        if not settings.recompute:
            return forward
        return partial(
            checkpoint,  # in the backward pass, it calls `forward` again
            forward,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), precision()),
            preserve_rng_state=has_dropout(run),
        )

    loss = partial(score, cross_entropy)
    blocks = [*model.get_submodule("blocks").children()] if hasattr(model, "blocks") else []
    if not blocks:
        return loss
    forward = type(blocks[0]).forward  # a sharded block has its own class
    plain = replace_forward(loss, blocks, wrap(forward))
    if not settings.compile or device.type != "cuda":
        return plain if settings.recompute else loss
    blocks += [block for block in soft.blocks() if type(block).forward is forward]
    parts = settings.accumulation * distributed.size()
    starts = torch.zeros(settings.batch_size // parts, dtype=torch.long)
    example = inputs_and_targets(run.data.splits["train"].blocks(starts, model.config.block_size))
    uses_float8 = run.config.precision == "float8"
    faster: dict[type[nn.Module], Forward] = {nn.GELU: gelu}
    multiply: float8.Multiply = F.linear
    if uses_float8:
        # Without sharding, the stepper divides the loss by the number of processes.
        processes = 1 if is_sharded(run.config) else distributed.size()
        tokens = example[0].numel() * settings.accumulation * processes
        faster[nn.Linear] = float8.make_linear(tokens)
        multiply = float8.make_multiply()
    elif run.precision == torch.bfloat16 and cublas.load():
        faster[nn.Linear] = linear
        if FeedForward.forward is nn.Sequential.forward:  # a reader may have changed it
            faster[FeedForward] = feed_forward
        multiply = multiply_by_transposed
    if soft.sources:  # they need the logits
        compiled = partial(score, torch.compile(cross_entropy))
    else:
        compiled = partial(score_without_logits, compile_end(model, run.precision, multiply))

    def say(reason: str) -> None:
        # A failed pass leaves some weights of a sharded model whole. Without compilation, a run in
        # float8 would train in bfloat16.
        if is_sharded(run.config) or uses_float8:
            raise CannotCompile(reason)
        on_message(f"The model cannot be compiled on this machine and trains slower ({reason}).")

    fast = compile_loss(
        compiled,
        blocks,
        example,
        say,
        lambda forward: wrap(compile_with(faster, forward)),
        # At one precision, all runs of a process have the same functions, except in float8.
        shares_code=not uses_float8,
    )
    model.zero_grad()
    return fast or (plain if settings.recompute else loss)


def compile_end(
    model: nn.Module, precision: torch.dtype, multiply: float8.Multiply = F.linear
) -> LossFunction:
    """Return a function that maps inputs and targets (B, T) to the mean loss of a GPT, in nats.

    The output layer and the cross-entropy are compiled as one function, which reads and writes the
    logits less often. For a large vocabulary, except in float16, multiply() computes the logits,
    the cross-entropy is a Triton kernel, and the method embed() is compiled, too. During each call,
    these functions replace unembed() and embed(), so that they run within forward(): only there, a
    sharded model has whole weights.
    """
    unembed: Any = type(model).unembed  # type: ignore[attr-defined]

    @torch.compile(dynamic=False)
    def compiled(x: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(unembed(model, x), targets)

    end: LossFunction = compiled
    replaced = {}
    with suppress(ImportError):  # without Triton, torch cannot compile the model either
        from .loss import make_end

        if kernel := make_end(model, precision, multiply):
            end = kernel
            embed = torch.compile(type(model).embed, dynamic=False)  # type: ignore[attr-defined]
            replaced["embed"] = partial(embed, model)

    def mean_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        methods = {**replaced, "unembed": lambda x: end(x, targets)}
        vars(model).update(methods)
        try:
            loss: Tensor = model(inputs)
        finally:
            for name in methods:
                del vars(model)[name]
        return loss

    return mean_loss


def compile_with(faster: Mapping[type[nn.Module], Forward], forward: Forward) -> Forward:
    """Wrap `forward`, a result of torch.compile(), so that its code uses the `faster` functions.

    `faster` maps classes of modules to functions that replace their method forward(). torch traces
    `forward` in its first call, so the wrapper replaces the methods during each call, and restores
    them after it. Code that was compiled before, without the wrapper, stays the same. Only one
    thread at a time may call the result.
    """

    def changed(*args: Any) -> Any:
        originals = {kind: kind.forward for kind in faster}
        for kind, function in faster.items():
            kind.forward = function
        try:
            return forward(*args)
        finally:
            for kind, original in originals.items():
                kind.forward = original

    return changed


def gelu(module: nn.GELU, x: Tensor) -> Tensor:
    """Do the same as GELU.forward(), with another formula in compiled code.

    The tanh approximation of GELU is x (1 + tanh u) / 2 = x σ(2u), where σ is the sigmoid function,
    and u = √(2/π) (x + 0.044715 x³). Compiled for a GPU, σ is faster than tanh.
    """
    if module.approximate != "tanh" or not torch.compiler.is_compiling():
        return F.gelu(x, approximate=module.approximate)
    y = x.to(torch.promote_types(x.dtype, torch.float32))  # like GELU, also in half precision
    y = y * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))
    return y.to(x.dtype)


def has_dropout(run: Run) -> bool:
    """Return whether the model of a run has dropout."""
    return bool(getattr(run.config.model, "dropout", 0))


def can_capture(run: Run) -> bool:
    """Return whether a CUDA graph can capture a step of a run.

    In float16, the host checks for overflow before each update. If activations are computed again
    with the same dropout, the host sets the states of the random generators.
    """
    settings = run.config.train
    is_fixed = not run.state.scale and not (settings.recompute and has_dropout(run))
    return settings.cuda_graph and run.device.type == "cuda" and is_fixed


class CapturedStepper(Stepper):
    """Plans up to STEPS_AHEAD steps, and replays one captured step for each of them."""

    def __init__(self, run: Run, mean_loss: LossFunction) -> None:
        super().__init__(run, mean_loss)
        device, dtype = run.device, run.data.splits["train"].tokens.dtype
        # One row for each planned step: its batch, its rates, its loss and its gradient norms.
        shape = self.draw_blocks(0, 1).shape[1:]
        self.blocks = torch.zeros(STEPS_AHEAD, *shape, dtype=dtype, device=device)
        self.rates = torch.zeros(STEPS_AHEAD, len(run.state.optimizers), device=device)
        self.average_rates = torch.zeros(STEPS_AHEAD, 1, device=device)
        self.results = torch.zeros(STEPS_AHEAD, 1 + len(self.parameters), device=device)
        self.row_numbers = torch.arange(STEPS_AHEAD, device=device)[:, None]
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        is_cuda = device.type == "cuda"  # a test runs the same code on a CPU, without a graph
        self.graph = CudaGraph(device) if is_cuda else None

    def take(self, steps: int, should_stop: Callable[[], object]) -> Tensor:
        """Do the same as Stepper.take(), for at most STEPS_AHEAD steps. Raises CannotCapture."""
        self._fill_rows(steps)
        taken = 0
        while taken == 0 or (taken < steps and not should_stop()):
            if self.graph:
                self.graph.run(self._step_in_row)
            else:
                self._step_in_row()
            self.count_step()
            taken += 1
        return self.results[:taken].clone()

    def _fill_rows(self, steps: int) -> None:
        """Store the batches and rates of the next `steps` steps, one row for each step."""
        # Gather several batches at once, as long as their indices take at most 32 MiB.
        at_once = max(1, (1 << 22) // self.blocks[0].numel())
        for first in range(0, steps, at_once):
            rows = self.blocks[first : min(steps, first + at_once)]
            rows.copy_(self.draw_blocks(first, len(rows)))
        rates, average_rates = zip(*(self.plan(ahead) for ahead in range(steps)), strict=True)
        self.rates[:steps] = torch.tensor(rates)
        self.average_rates[:steps, 0] = torch.tensor(average_rates)
        self.row.zero_()

    def _step_in_row(self) -> None:
        """Take the step of the current row, and advance to the next row."""
        blocks, rates, average_rate = (
            table[self.row][0] for table in (self.blocks, self.rates, self.average_rates)
        )
        result = self.step(blocks, rates, average_rate[0])
        self.results.copy_(torch.where(self.row_numbers == self.row, result, self.results))
        self.row += 1


class ScaledStepper(Stepper):
    """Scales the loss, so that small gradients do not become 0 in float16; skips overflowing steps.

    The method is from Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2. The module
    runs/loss_scale.py adapts the scale.
    """

    def update(self, inputs: Tensor, targets: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same as Stepper.update(), but keep the weights unchanged after an overflow."""
        state, config, scale = self.run.state, self.run.config, self.run.state.scale
        assert scale is not None
        loss = compute_gradients(
            self.mean_loss,
            inputs,
            targets,
            config.train.accumulation,
            backward=lambda loss: (loss * scale.scale).backward(),
        )
        scale.unscale(self.parameters)
        norms = clip_gradients(self.parameters, config.optim.grad_clip)
        has_overflowed = not norms.isfinite().all()
        if not has_overflowed:
            update_weights(state.optimizers, rates.unbind())
        scale.update(has_overflowed)
        self.run.model.zero_grad()
        return loss, norms
