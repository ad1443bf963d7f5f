"""Stops a run if a loss, gradient or weight is not finite, and names this value in the error."""

import math

import torch
from torch import Tensor

from ..data import inputs_and_targets
from ..errors import Stopped, resume_command
from ..evaluate import cross_entropy
from ..optim import get_learning_rate
from ..system import distributed
from .run import Run
from .sharing import is_sharded


class FiniteCheck:
    """Checks the results of many steps together, because each check waits for the device."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.names = [name for name, _ in run.model.named_parameters()]

    def check(self, results: Tensor) -> None:
        """Raise Stopped if a loss or a gradient norm of the last steps is not finite.

        `results` (steps, 1 + P) has, for each step, the loss and the norms of the gradients of P
        parameters. In a float16 run, only the losses are checked: a step whose gradients overflow
        is skipped, and the loss scale decreases. If the scale falls below 1, this method raises
        Stopped, too.
        """
        state = self.run.state
        checked = results[:, :1] if state.scale else results
        is_bad = ~checked.isfinite()
        if is_bad.any():
            names = ["the loss", *(f"the gradient of {name}" for name in self.names)]
            row = int(is_bad.any(dim=1).nonzero()[0])
            # The backward pass goes from the last parameter to the first. So if several gradients
            # are not finite, the gradient with the largest index was the first of them.
            column = 0 if is_bad[row, 0] else int(is_bad[row].nonzero()[-1])
            step = state.step - len(checked) + row
            raise self.stopped(step, names[column], checked[row, column].item())
        if state.scale and state.scale.scale < 1:
            raise self.stopped(state.step - 1, "the loss scale", state.scale.scale)

    @torch.no_grad()
    @distributed.communicating()
    def check_model(self) -> None:
        """Raise Stopped if a weight, or the loss of one block of held-out text, is not finite."""
        model, step = self.run.model, self.run.state.step - 1
        if is_sharded(self.run.config):
            distributed.gather_objects(None)  # the first process may still be writing a checkpoint
        norms = distributed.whole(torch.stack(torch._foreach_norm(list(model.parameters()))))
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
        """Return the error for a value that failed a check in step `step`, counted from 0."""
        run, optim = self.run, self.run.config.optim
        lr = get_learning_rate(max(0, step), run.config.train.steps, optim)
        rates = {"--optim.lr": optim.lr}
        if optim.optimizer == "muon":
            rates["--optim.muon-lr"] = optim.muon_lr
        remedies = f"a lower {' and '.join(rates)} or a longer --optim.warmup"
        if not optim.grad_clip:
            remedies += ", --optim.grad-clip 1"
        if run.precision == torch.float16:
            remedies += ", --precision float32"
        lower = [word for flag, rate in rates.items() for word in (flag, f"{rate / 4:.2g}")]
        return Stopped(
            f"{name} became {value:g} in step {step + 1:,}, at learning rate {lr:.3g}",
            f"; the last checkpoint in {run.out} is intact. Try {remedies}, for example: "
            f"{resume_command(run.out, *lower)}",
        )
