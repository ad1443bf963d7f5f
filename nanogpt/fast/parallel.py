"""Training steps and evaluations that several processes share; the result is that of one process.

In each step, every process computes the gradient of its share of the batch. The processes add up
their gradients, and all of them make the same update. With the setting `shard`, each process only
updates its own rows of the weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain, count

import torch
from torch import Tensor, nn

from ..data import Split
from ..evaluate import Evaluation
from ..evaluate import evaluate as evaluate_alone
from ..models import Model, flops_per_token
from ..models.ensemble import Ensemble
from ..muon import Muon, orthogonalise
from ..optim import clip_gradients
from ..runs.run import Run
from ..step import LossFunction, Stepper, compute_gradients, update_weights
from ..system import distributed
from . import training

BUCKET_BYTES = 25 << 20
"""Minimum size of a bucket of gradients, except the last one: many small sums would be slower."""

SMALL_STEP = 5e10
"""Floating-point operations of a step. With fewer, we measured that two GPUs are at most 9% faster
than one, or even slower (docs/log/scale.md)."""


class GradientSums:
    """Adds up gradients of the processes while the backward pass computes the other gradients.

    As in Li et al. 2020 (arXiv:2006.15704), the gradients form buckets. The gradients of a bucket
    are added up together, as soon as all of them are computed.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.is_last = False
        """Whether this is the backward pass of the last part of the batch."""
        self.buckets: list[list[nn.Parameter]] = []
        self._ready: list[int] = []
        """The bucket of each gradient that has been computed so far."""
        self._started = 0
        """The number of buckets that are started. All processes start them in the same order."""
        self._sums: list[Callable[[], object]] = []
        size = BUCKET_BYTES
        for parameter in reversed(parameters):  # about the order of the backward pass
            if size >= BUCKET_BYTES:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(parameter)
            size += parameter.nbytes
            parameter.register_post_accumulate_grad_hook(partial(self._add, len(self.buckets) - 1))

    def _add(self, bucket: int, parameter: Tensor) -> None:
        if not self.is_last:
            return
        self._ready.append(bucket)
        for number, parameters in enumerate(self.buckets[self._started :], start=self._started):
            if self._ready.count(number) < len(parameters):
                break
            self._start()

    def finish(self, loss: Tensor) -> None:
        """Add up the loss, too, and wait until all sums are complete."""
        while self._started < len(self.buckets):  # some parameters have no gradient
            self._start()
        self._sums.append(distributed.start_adding([loss]))
        for wait in self._sums:
            wait()
        self._ready, self._started, self._sums, self.is_last = [], 0, [], False

    def _start(self) -> None:
        gradients = [p.grad for p in self.buckets[self._started] if p.grad is not None]
        if gradients:
            self._sums.append(distributed.start_adding(gradients))
        self._started += 1


class ParallelStepper(Stepper):
    """Takes steps on this process's share of each batch, and adds up the gradients."""

    def __init__(self, run: Run, mean_loss: LossFunction) -> None:
        distributed.connect_gpus(run.device)
        super().__init__(run, mean_loss)
        self.sums = GradientSums([] if run.config.train.shard else self.parameters)
        self.divisor = distributed.size()
        """The backward pass starts with the loss divided by this number."""
        if run.device.type == "cuda":  # on a CPU, communication in a step has a short time limit
            report_blocks(run.model)
        for optimizer in run.state.optimizers:
            if isinstance(optimizer, Muon):
                optimizer.orthogonalise = share_orthogonalisation

    def take(self, steps: int, should_stop: Callable[[], object]) -> Tensor:
        """Do the same as Stepper.take(), after waiting until all processes are ready."""
        distributed.gather_objects(None)  # the first process may still be writing a checkpoint
        return super().take(steps, should_stop)

    def draw_blocks(self, ahead: int, batches: int) -> Tensor:
        """Return this process's share of the blocks: (batches, B / N, T + 1) for N processes."""
        blocks = super().draw_blocks(ahead, batches)
        return blocks.chunk(distributed.size(), dim=1)[distributed.rank()]

    def count_step(self) -> None:
        """Do the same as Stepper.count_step(), and report the progress to the other processes."""
        super().count_step()
        distributed.report_progress()

    def update(self, inputs: Tensor, targets: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same as Stepper.update(), for the mean loss of the whole batch."""
        distributed.report_progress()
        config, parts = self.run.config, count(1)

        def backward(loss: Tensor) -> None:
            self.sums.is_last = next(parts) == config.train.accumulation
            (loss / self.divisor).backward()

        loss = compute_gradients(
            self.mean_loss, inputs, targets, config.train.accumulation, backward
        )
        loss /= distributed.size()
        self.sums.finish(loss)
        norms = clip_gradients(self.parameters, config.optim.grad_clip)
        update_weights(self.run.state.optimizers, rates.unbind())
        for parameter in self.parameters:
            parameter.grad = None
        return loss, norms


class ShardedStepper(ParallelStepper):
    """Takes steps when each process has only some rows of each parameter and its gradient."""

    def __init__(self, run: Run, mean_loss: LossFunction) -> None:
        super().__init__(run, mean_loss)
        self.divisor = 1  # the backward pass itself averages the gradients
        for optimizer in run.state.optimizers:
            if isinstance(optimizer, Muon):
                optimizer.whole = distributed.whole
            else:  # torch would allocate whole tensors in the first step
                optimizer.get_part = distributed.get_part

    def update(self, inputs: Tensor, targets: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same as ParallelStepper.update()."""
        with distributed.communicating():
            loss, norms = super().update(inputs, targets, rates)
            return loss, distributed.whole(norms)


class CapturedParallelStepper(ParallelStepper, training.CapturedStepper):
    """Captures its share of a step as a CUDA graph, with the communication between the GPUs."""

    def take(self, steps: int, should_stop: Callable[[], object]) -> Tensor:
        """Do the same as ParallelStepper.take(), but wait only after the batches are read."""
        return training.CapturedStepper.take(self, steps, should_stop)

    def _fill_rows(self, steps: int) -> None:
        super()._fill_rows(steps)
        distributed.gather_objects(None)


def make_stepper(run: Run, on_message: Callable[[str], None]) -> Stepper:
    """Do the same as training.make_stepper(), for any number of processes."""
    if distributed.size() == 1:
        return training.make_stepper(run, on_message)
    stepper = CapturedParallelStepper if training.can_capture(run) else ParallelStepper
    if run.config.train.shard:
        stepper = ShardedStepper
    messages = warn_of_small_steps(run)
    mean_loss = training.make_loss(run, messages.append)
    for message in dict.fromkeys(chain.from_iterable(distributed.gather_objects(messages))):
        on_message(message)  # also if only another process cannot compile the model
    return stepper(run, mean_loss)


def warn_of_small_steps(run: Run) -> list[str]:
    """Return a message if several GPUs save little or no time, because each step is short."""
    tokens = run.config.train.batch_size * run.config.model.block_size
    if run.device.type != "cuda" or flops_per_token(run.model) * tokens >= SMALL_STEP:
        return []
    return [
        "The steps of this run are so small that several GPUs are hardly faster than one GPU, or "
        "even slower; you can leave out torchrun."
    ]


def report_blocks(model: nn.Module) -> None:
    """Report the progress after the forward and before the backward pass of each block.

    A process can be ahead of its GPU by about a thousand kernels. If a step has more kernels, and
    another process hangs in it, this process cannot reach the end of the step.
    """

    def report(*_: object) -> None:
        distributed.report_progress()

    def report_both(block: nn.Module, inputs: object, output: Tensor) -> None:
        if output.requires_grad:  # not in evaluations, whose batches are shared unequally
            report()
            output.register_hook(report)

    for block in model.get_submodule("blocks").children() if hasattr(model, "blocks") else []:
        block.register_forward_hook(report_both)


def share_orthogonalisation(matrices: Tensor, precision: torch.dtype) -> Tensor:
    """Do the same as orthogonalise(); each process computes its share of the matrices."""
    distributed.report_progress()
    size, count = distributed.size(), len(matrices)
    share = -(-count // size)  # rounded up
    first = distributed.rank() * share
    mine = matrices[first : first + share]
    result = matrices.new_zeros(share, *matrices.shape[1:], dtype=precision)
    if len(mine):
        result[: len(mine)] = orthogonalise(mine, precision)
    return distributed.gather(result)[:count]


class _Share(Split):
    """The windows of a split that this process evaluates."""

    def __init__(self, split: Split) -> None:
        vars(self).update(vars(split))
        self.rest = 0
        """The number of processes that have one batch of windows more than the others."""

    def windows(self, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every N-th batch of windows, for N processes."""
        for number, window in enumerate(super().windows(batch_size, block_size)):
            self.rest = (number + 1) % distributed.size()
            if number % distributed.size() == distributed.rank():
                yield window


def evaluate(model: Model | Ensemble, split: Split) -> Evaluation:
    """Do the same as evaluate.evaluate(); each process evaluates its share of the windows."""
    if distributed.size() == 1:
        return evaluate_alone(model, split)
    share = _Share(split)
    is_sharded = any(map(distributed.is_sharded, model.parameters()))
    if is_sharded:
        distributed.gather_objects(None)  # the first process may still be writing a checkpoint
    with distributed.communicating() if is_sharded else nullcontext():
        try:
            own = evaluate_alone(model, share)
            nats, number = own.loss * own.tokens, own.tokens
        except ZeroDivisionError:  # fewer windows than processes
            nats, number = 0.0, 0
        if is_sharded and distributed.rank() >= share.rest > 0:
            with torch.no_grad():  # the others need the parameters of this process once more
                model(torch.zeros(1, 1, dtype=torch.long, device=split.device))
    sums = torch.tensor([nats, number], dtype=torch.float64)
    distributed.add_up([sums])
    total, tokens = sums.tolist()
    loss = total / tokens
    return Evaluation(loss, split.bits_per_byte(loss), int(tokens))
