"""One step of training after the other, from the draw of a batch to the moved weights.

What a step needs is on the device before it begins, and what it finds stays there, so that no step
waits for the host, nor the host for a step, but in float16. To the device every step is the same
work, then: on a GPU it is captured once, and replayed.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .data import BatchOrder, inputs_and_targets
from .evaluate import cross_entropy
from .optim import (
    LossScale,
    clip_gradients,
    get_ema_decay,
    get_learning_rate,
    scale_rates,
    update_average,
)
from .runs.run import Run
from .system.devices import autocast
from .system.gpu import CudaGraph, LossFunction, compiled

STEPS_AHEAD = 100
"""The most steps that are planned at once, and taken before anybody looks at what they found."""


def make_loss(run: Run, say: Callable[[str], None]) -> LossFunction:
    """The mean loss () of inputs and targets, each (B, T), that a run's model is to make small.

    At the run's precision. On a GPU the blocks are compiled, and what follows the logits: with a
    large vocabulary there are many, and each operation by itself would read and write them all.
    """
    model, settings, device = run.model, run.config.train, run.device

    def score(mean_loss: LossFunction, inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(device, run.precision):
            return mean_loss(model(inputs), targets)

    loss = partial(score, cross_entropy)
    blocks = [*model.get_submodule("blocks").children()] if hasattr(model, "blocks") else []
    if not settings.compile or device.type != "cuda" or not blocks:
        return loss
    starts = torch.zeros(settings.batch_size // settings.accumulation, dtype=torch.long)
    blocks_of_text = run.data.splits["train"].blocks(starts, model.config.block_size)
    example = inputs_and_targets(blocks_of_text)
    fast = compiled(partial(score, torch.compile(cross_entropy)), blocks, example, say)
    model.zero_grad()
    return fast or loss


class Stepper:
    """Takes the steps of a run."""

    def __init__(self, run: Run, loss: LossFunction) -> None:
        self.run, self.loss = run, loss
        self.parameters = list(run.model.parameters())
        settings, device = run.config.train, run.device
        block_size, tokens = run.model.config.block_size, run.data.splits["train"].tokens
        self.order = BatchOrder(settings.order, len(tokens), block_size, run.config.seed)
        # A row for each of the steps ahead: its blocks, the rate of each optimizer, how far the
        # mean of the weights moves; and the loss and the norms of gradients that it finds.
        shape = STEPS_AHEAD, settings.batch_size, block_size + 1
        self.blocks = torch.zeros(shape, dtype=tokens.dtype, device=device)
        self.rates = torch.zeros(STEPS_AHEAD, len(run.state.optimizers), device=device)
        self.moves = torch.zeros(STEPS_AHEAD, 1, device=device)
        self.found = torch.zeros(STEPS_AHEAD, 1 + len(self.parameters), device=device)
        self.numbers = torch.arange(STEPS_AHEAD, device=device)[:, None]
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        # In float16 the host decides whether to take a step, and a graph holds no decisions.
        captures = settings.cuda_graph and device.type == "cuda" and not run.state.scale
        self.graph = CudaGraph(device) if captures else None

    def take(self, steps: int, stop: Callable[[], object]) -> Tensor:
        """Take steps, at most AHEAD, and fewer if stop() is true after one of them.

        Gives the loss of each, and the norm of each parameter's gradient: (taken, 1 + P).
        """
        self._plan(steps)
        state, taken = self.run.state, 0
        while taken == 0 or (taken < steps and not stop()):
            if self.graph:
                self.graph.run(self._step)
            else:
                self._step()
            taken += 1
            state.step += 1
            state.tokens += self.run.config.train.batch_size * self.run.model.config.block_size
        return self.found[:taken].clone()

    def _plan(self, steps: int) -> None:
        """Fill the rows of the coming steps."""
        config, state = self.run.config, self.run.state
        batch_size, block_size = config.train.batch_size, self.run.model.config.block_size
        coming, split = range(state.step, state.step + steps), self.run.data.splits["train"]
        drawn = state.tokens // block_size
        starts = [self.order.starts(drawn + i * batch_size, batch_size) for i in range(steps)]
        # Of several steps at once, up to so many tokens that their places take 32 MB.
        at_once = max(1, (1 << 22) // self.blocks[0].numel())
        for first in range(0, steps, at_once):
            some = torch.cat(starts[first : first + at_once])
            rows = self.blocks[first : first + len(some) // batch_size]
            rows.copy_(split.blocks(some, block_size).view_as(rows))
        planned = [get_learning_rate(step, config.train.steps, config.optim) for step in coming]
        moves = [[1 - get_ema_decay(step, config.optim)] for step in coming]
        self.rates[:steps] = torch.tensor(
            [scale_rates(state.optimizers, r, config.optim) for r in planned]
        )
        self.moves[:steps] = torch.tensor(moves)
        self.row.zero_()

    def _step(self) -> None:
        """Take the step that row has come to."""
        run, state, optim = self.run, self.run.state, self.run.config.optim
        blocks, rates, move = (
            table[self.row][0] for table in (self.blocks, self.rates, self.moves)
        )
        inputs, targets = inputs_and_targets(blocks)
        parts = run.config.train.accumulation
        loss = gradients(self.loss, inputs, targets, parts, state.scale)
        if state.scale:
            state.scale.unscale(self.parameters)
        norms = clip_gradients(self.parameters, optim.grad_clip)
        row = torch.cat([loss[None], norms])
        self.found.copy_(torch.where(self.numbers == self.row, row, self.found))
        # Scaled gradients may overflow: then no optimizer takes the step, and the scale is lowered.
        overflowed = state.scale is not None and not norms.isfinite().all()
        if not overflowed:
            for optimizer, rate in zip(state.optimizers, rates, strict=True):
                optimizer.step(rate)
        if state.scale:
            state.scale.update(overflowed)
        run.model.zero_grad()
        if state.average:
            update_average(state.average, self.parameters, move[0])
        self.row += 1


def gradients(
    mean_loss: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    parts: int = 1,
    scale: LossScale | None = None,
) -> Tensor:
    """Add the gradient of the mean loss over a batch to the parameters; gives that loss.

    The batch is worked through in equal parts, one after the other, which changes the memory that
    it takes and nothing else. With a scale, the gradients are as many times larger as it says.
    """
    total = torch.zeros((), device=inputs.device)
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        loss = mean_loss(x, y) / parts
        (loss * scale.scale if scale else loss).backward()
        total += loss.detach()
    return total
