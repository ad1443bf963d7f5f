"""One step of training after the other, from the draw of a batch to the moved weights.

What a step needs is on the device before it begins, and what it finds stays there, so that no step
waits for the host, nor the host for a step, but in float16.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .data import Order
from .devices import at_precision, compiled
from .evaluate import cross_entropy
from .optim import LossScale, ema_decay, follow, gradient_norms, learning_rate, rate_of_each
from .start import Run

AHEAD = 100
"""The most steps that are planned at once, and taken before anybody looks at what they found."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets, each (B, T), to the mean loss ()."""


def loss_of(run: Run, say: Callable[[str], None]) -> Loss:
    """What a run's model is to make small, at its precision, and compiled where that pays."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(run.model(inputs), targets)

    settings, device = run.config.train, run.device
    if not settings.compile or device.type != "cuda":
        return at_precision(loss, device, run.precision)
    shape = settings.batch_size // settings.accumulation, run.model.config.block_size
    fast = compiled(loss, run.precision, torch.zeros(shape, dtype=torch.long, device=device), say)
    run.model.zero_grad()
    return fast


class Stepper:
    """Takes the steps of a run."""

    def __init__(self, run: Run, loss: Loss) -> None:
        self.run, self.loss = run, loss
        self.parameters = list(run.model.parameters())
        settings, device = run.config.train, run.device
        block_size, tokens = run.model.config.block_size, len(run.data.splits["train"].tokens)
        self.order = Order(settings.order, tokens, block_size, run.config.seed)
        # A row for each of the steps ahead: where its blocks start, the rate of each optimizer, how
        # much of the mean of the weights it keeps; and the loss and the norms that it finds.
        self.starts = torch.zeros(AHEAD, settings.batch_size, dtype=torch.long, device=device)
        self.rates = torch.zeros(AHEAD, len(run.state.optimizers), device=device)
        self.decays = torch.zeros(AHEAD, 1, device=device)
        self.found = torch.zeros(AHEAD, 1 + len(self.parameters), device=device)
        self.row = torch.zeros(1, dtype=torch.long, device=device)

    def take(self, steps: int, stop: Callable[[], object]) -> Tensor:
        """Take steps, at most AHEAD, and fewer if stop() is true after one of them.

        Gives the loss of each, and the norm of each parameter's gradient: (taken, 1 + P).
        """
        self._plan(steps)
        state, taken = self.run.state, 0
        while taken == 0 or (taken < steps and not stop()):
            self._step()
            taken += 1
            state.step += 1
            state.tokens += self.starts.shape[1] * self.run.model.config.block_size
        return self.found[:taken].clone()

    def _plan(self, steps: int) -> None:
        """Fill the rows of the coming steps."""
        config, state = self.run.config, self.run.state
        batch_size, coming = config.train.batch_size, range(state.step, state.step + steps)
        drawn = state.tokens // self.run.model.config.block_size
        starts = [self.order.starts(drawn + i * batch_size, batch_size) for i in range(steps)]
        planned = [learning_rate(step, config.train.steps, config.optim) for step in coming]
        decays = [[ema_decay(step, config.optim)] for step in coming]
        self.starts[:steps] = torch.stack(starts)
        self.rates[:steps] = torch.tensor(
            [rate_of_each(state.optimizers, r, config.optim) for r in planned]
        )
        self.decays[:steps] = torch.tensor(decays)
        self.row.zero_()

    def _step(self) -> None:
        """Take the step that row has come to."""
        run, state, optim = self.run, self.run.state, self.run.config.optim
        starts, rates, decays = (
            table.index_select(0, self.row)[0] for table in (self.starts, self.rates, self.decays)
        )
        inputs, targets = run.data.splits["train"].blocks(starts, run.model.config.block_size)
        parts = run.config.train.accumulation
        loss = gradients(self.loss, inputs, targets, parts, state.scale)
        if state.scale:
            state.scale.unscale(self.parameters)
        norms = gradient_norms(self.parameters, optim.grad_clip)
        self.found.index_copy_(0, self.row, torch.cat([loss[None], norms])[None])
        # Scaled gradients may overflow: then no optimizer takes the step, and the scale is lowered.
        overflowed = state.scale is not None and not norms.isfinite().all()
        if not overflowed:
            for optimizer, rate in zip(state.optimizers, rates, strict=True):
                optimizer.step(rate)
        if state.scale:
            state.scale.update(overflowed)
        run.model.zero_grad()
        if state.average:
            follow(state.average, self.parameters, decays[0])
        self.row += 1


def gradients(
    mean_loss: Loss,
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
