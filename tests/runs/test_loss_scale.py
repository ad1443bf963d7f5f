"""The loss scale changes like the scale of torch's GradScaler."""

import math

import pytest
import torch
from torch import nn

from nanogpt.runs.loss_scale import LossScale


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ((-1.0, 0), r"scale is -1\.0: it must be more than 0"),
        ((math.inf, 0), "scale is inf: it must be more than 0 and less than"),
        ((1.0, 2000), "steps is 2000: it must be at least 0 and less than 2000"),
    ],
)
def test_an_impossible_scale_is_refused(scale: tuple[float, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LossScale(*scale)


def test_the_loss_scale_equals_that_of_torch() -> None:
    """Of 4,100 steps, four overflow; all others have finite gradients."""
    (weight,) = parameters = [nn.Parameter(torch.ones(3))]
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu", enabled=True)
    sgd = torch.optim.SGD(parameters)
    overflows = {0, 5, 6, 2050}
    for step in range(4100):
        gradient = torch.randn(3)
        theirs.scale(torch.ones(()))  # torch creates its scale in the first call of scale()
        weight.grad = gradient * ours.scale * (math.inf if step in overflows else 1)
        theirs.unscale_(sgd)
        theirs.update()
        weight.grad = gradient * ours.scale
        ours.unscale(parameters)
        torch.testing.assert_close(weight.grad, gradient)
        ours.update(step in overflows)
        assert ours.scale == theirs.get_scale(), step
    assert ours.scale == 2.0**14
