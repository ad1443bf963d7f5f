"""Numbers that went wrong: the first that is not finite stops the run and is named."""

import math

import torch
from torch import Tensor

from ..data import inputs_and_targets
from ..errors import Stopped
from ..evaluate import cross_entropy
from ..optim import get_learning_rate
from .run import Run


class FiniteCheck:
    """Looks at every loss and gradient; at many steps at once, as it waits for the device."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.names = [name for name, _ in run.model.named_parameters()]

    def check(self, found: Tensor) -> None:
        """Raise Stopped if the loss or a gradient (steps, 1 + P) of the last steps is not finite.

        But for the gradients of a float16 run, where an overflow has left out the step.
        """
        state = self.run.state
        seen = found[:, :1] if state.scale else found
        bad = ~seen.isfinite()
        if bad.any():
            names = ["the loss", *(f"the gradient of {name}" for name in self.names)]
            row = int(bad.any(dim=1).nonzero()[0])
            # The backward pass comes from the last parameter to the first.
            column = 0 if bad[row, 0] else int(bad[row].nonzero()[-1])
            step = state.step - len(seen) + row
            raise self.stopped(step, names[column], seen[row, column].item())
        if state.scale and state.scale.scale < 1:
            raise self.stopped(
                state.step - 1, "the scale that the gradients need", state.scale.scale
            )

    @torch.no_grad()
    def check_model(self) -> None:
        """Raise Stopped if a weight is not finite, or what they make of a piece of the text."""
        model, step = self.run.model, self.run.state.step - 1
        norms = torch.stack(torch._foreach_norm(list(model.parameters())))
        if not norms.isfinite().all():
            worst = int((~norms.isfinite()).nonzero()[0])
            raise self.stopped(step, self.names[worst], norms[worst].item())
        start = torch.zeros(1, dtype=torch.long)
        block = self.run.data.splits["val"].blocks(start, model.config.block_size)
        tokens, targets = inputs_and_targets(block)
        model.eval()
        loss = cross_entropy(model(tokens), targets).item()
        model.train()
        if not math.isfinite(loss):
            raise self.stopped(step, "the validation loss", loss)

    def check_validation(self, loss: float) -> None:
        """Raise Stopped if the validation loss of this step is not finite."""
        if not math.isfinite(loss):
            raise self.stopped(self.run.state.step - 1, "the validation loss", loss)

    def stopped(self, step: int, name: str, value: float) -> Stopped:
        """The error that says what was not finite in the step after so many, and what to do."""
        run, optim = self.run, self.run.config.optim
        lr = get_learning_rate(max(0, step), run.config.train.steps, optim)
        rates = {"--optim.lr": optim.lr}
        if optim.optimizer == "muon":
            rates["--optim.muon-lr"] = optim.muon_lr
        helps = f"a lower {' and '.join(rates)} or a longer --optim.warmup"
        if not optim.grad_clip:
            helps += ", --optim.grad-clip 1"
        if run.precision == torch.float16:
            helps += ", --precision float32"
        return Stopped(
            f"{name} became {value:g} in step {step + 1:,}, at learning rate {lr:.3g}",
            f"; {run.out} is as its last checkpoint has it. What usually helps: {helps}; for "
            f"example: nanogpt train --resume {run.out} "
            + " ".join(f"{flag} {rate / 4:.2g}" for flag, rate in rates.items()),
        )
