"""Two processes that divide the weights compute the same gradients as one, with other layers."""

import subprocess
from pathlib import Path

import pytest

from tests.fast.test_parallel import torchrun

SHARDED = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from nanogpt.fast import float8, linear
from nanogpt.fast.training import compile_with, gelu
from nanogpt.models import GPTConfig, build
from nanogpt.models.gpt import FeedForward
from nanogpt.runs import config
from nanogpt.system import distributed
from nanogpt.system.gpu import compile_loss

config.SMALLEST_FLOAT8 = 0
faster = {nn.GELU: gelu, nn.Linear: float8.make_linear(64)}
if sys.argv[1] == "bfloat16":
    faster = {nn.Linear: linear.linear, FeedForward: linear.feed_forward}
with distributed.join():
    torch.manual_seed(0)
    model = build(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16))
    tokens = torch.randint(65, (4, 17))
    batch = tokens[:, :-1], tokens[:, 1:]

    def loss(inputs, targets):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())

    found = []
    for is_sharded in (False, True):
        torch._dynamo.reset()
        if is_sharded:
            distributed.shard(model, torch.device("cpu"))
        with distributed.communicating():
            wrap = lambda forward: compile_with(faster, forward)
            fast = compile_loss(loss, [*model.blocks], batch, sys.exit, wrap)
            for _ in range(2):  # the second time with compiled code
                model.zero_grad()
                total = fast(*batch)
                total.backward()
            gradients = [p.grad for p in model.parameters()]
            if is_sharded:
                gradients = [distributed.whole(g) for g in gradients]
        found.append([total.detach(), *(g.clone() for g in gradients)])
        model.zero_grad()
    for expected, result in zip(*found, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float8"])
def test_divided_weights_have_the_same_gradients(precision: str, tmp_path: Path) -> None:
    """Both processes have the same batch, so the gradients are those of a single process."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED, "utf-8")
    command = torchrun(2, program=[str(script), precision])
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
