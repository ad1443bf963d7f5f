"""One optimizer step: forward, loss, backward, clip, update.

fast/training.py runs the same step faster: it compiles the model and captures the step as a CUDA
graph. It also scales the loss of float16 runs.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .data import BatchOrder, inputs_and_targets
from .muon import Muon
from .optim import Optimizer, clip_gradients, get_ema_decay, get_learning_rate, update_average
from .runs.run import Run

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps inputs and targets, each (B, T), to the mean loss in nats per token, a scalar."""


def compute_gradients(
    mean_loss: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    accumulation: int = 1,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Add the gradient of a batch's mean loss to `.grad` of the parameters, and return the loss.

    The batch is processed in `accumulation` equal parts, one after the other. More parts need less
    memory for activations. Without dropout, the result is the same, except for rounding.
    """
    total = torch.zeros((), device=inputs.device)
    for x, y in zip(inputs.chunk(accumulation), targets.chunk(accumulation), strict=True):
        loss = mean_loss(x, y) / accumulation
        backward(loss)
        total += loss.detach()
    return total


def update_weights(optimizers: Sequence[Optimizer], rates: Sequence[Tensor]) -> None:
    """Let each optimizer update its parameters with its learning rate."""
    for optimizer, rate in zip(optimizers, rates, strict=True):
        optimizer.step(rate)


def train_step(
    parameters: Sequence[nn.Parameter],
    optimizers: Sequence[Optimizer],
    mean_loss: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    rates: Sequence[Tensor],
    grad_clip: float = 0.0,
    accumulation: int = 1,
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step on a batch of inputs (B, T) and targets (B, T).

    Returns the mean loss, a scalar, and the norm of each parameter's gradient (P,) before clipping.
    """
    loss = compute_gradients(mean_loss, inputs, targets, accumulation)
    norms = clip_gradients(parameters, grad_clip)
    update_weights(optimizers, rates)
    for parameter in parameters:
        parameter.grad = None
    return loss, norms


class Stepper:
    """Takes the optimizer steps of a run, one after the other."""

    def __init__(self, run: Run, mean_loss: LossFunction) -> None:
        self.run, self.mean_loss = run, mean_loss
        self.parameters = list(run.model.parameters())
        self.batch_size = run.config.train.batch_size
        self.block_size = run.model.config.block_size
        extra = run.config.transfer_blocks
        self.texts = [(run.data.splits["train"], self.batch_size - extra)]
        """Each text, and the number of its blocks in each batch."""
        if run.transfer:
            self.texts.append((run.transfer, extra))
        self.orders = [
            BatchOrder(run.config.train.order, len(split.tokens), self.block_size, seed)
            for seed, (split, _) in enumerate(self.texts, start=run.config.seed)
        ]

    def take(self, steps: int, should_stop: Callable[[], object]) -> Tensor:
        """Take `steps` steps. Stop early, after at least one step, if should_stop() is true.

        Returns a tensor (steps taken, 1 + P): the loss and the P gradient norms of each step.
        """
        results: list[Tensor] = []
        while not results or (len(results) < steps and not should_stop()):
            blocks = self.draw_blocks(0, 1)[0]
            rates, average_rate = (torch.tensor(x, device=self.run.device) for x in self.plan(0))
            results.append(self.step(blocks, rates, average_rate))
            self.count_step()
        return torch.stack(results)

    def step(self, blocks: Tensor, rates: Tensor, average_rate: Tensor) -> Tensor:
        """Take one step on blocks (B, T + 1). Return the loss and the P gradient norms (1 + P,)."""
        loss, norms = self.update(*inputs_and_targets(blocks), rates)
        if self.run.state.average:
            update_average(self.run.state.average, self.parameters, average_rate)
        return torch.cat([loss[None], norms])

    def update(self, inputs: Tensor, targets: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Call train_step() with the settings of the run."""
        optimizers, config = self.run.state.optimizers, self.run.config
        return train_step(
            self.parameters,
            optimizers,
            self.mean_loss,
            inputs,
            targets,
            rates.unbind(),
            config.optim.grad_clip,
            config.train.accumulation,
        )

    def draw_blocks(self, ahead: int, batches: int) -> Tensor:
        """Return the blocks (batches, B, T + 1) of batches; `ahead` is 0 for the next batch."""
        T, parts = self.block_size, []
        drawn = self.run.state.tokens // T
        for (split, blocks), order in zip(self.texts, self.orders, strict=True):
            earlier = [
                (drawn + i * self.batch_size) * blocks // self.batch_size
                for i in range(ahead, ahead + batches)
            ]
            starts = torch.cat([order.starts(number, blocks) for number in earlier])
            parts.append(split.blocks(starts, T).view(batches, blocks, T + 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def plan(self, ahead: int) -> tuple[list[float], float]:
        """Return the learning rates and the rate of averaging; `ahead` is 0 for the next step."""
        config, state = self.run.config, self.run.state
        step = state.step + ahead
        rate = get_learning_rate(step, config.train.steps, config.optim)
        muon_rate = rate / config.optim.lr * config.optim.muon_lr
        rates = [muon_rate if isinstance(each, Muon) else rate for each in state.optimizers]
        return rates, 1 - get_ema_decay(step, config.optim)

    def count_step(self) -> None:
        """Add one step and its tokens to the counters of the run."""
        self.run.state.step += 1
        self.run.state.tokens += self.batch_size * self.block_size
