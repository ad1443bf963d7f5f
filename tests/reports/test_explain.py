"""The counts of operations agree with those of torch; the estimated time follows from the rates."""

import random
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.evaluate import cross_entropy
from nanogpt.models import GPTConfig, ModelConfig, ModernConfig, build, flops_per_token
from nanogpt.reports.explain import count_operations, explain_run
from nanogpt.reports.rates import Rates
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.memory import count_activations
from tests.runs.test_memory import draw_model

CPU = torch.device("cpu")
GPT = GPTConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
MODERN = ModernConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
FAST = Rates(products=1e12, memory=1e11)


def make_config(model: ModelConfig, **training: Any) -> RunConfig:
    return RunConfig(model=model, train=TrainConfig(batch_size=16, **training))


@pytest.mark.parametrize("config", [GPT, MODERN])
def test_operations_equal_those_that_torch_counts(config: GPTConfig | ModernConfig) -> None:
    model, tokens = build(config), torch.zeros(16, 32, dtype=torch.long)
    # Use the math kernel, because torch does not count fused attention on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        cross_entropy(model(tokens), tokens).backward()
    per_token, per_step = (
        next(line.value for line in count_operations(make_config(config)) if line.part == part)
        for part in ("per token", "per step")
    )
    assert per_step == per_token * 512
    # The tolerance is needed because only the formula counts biases and gains of norms.
    assert per_step == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("seed", range(60))
def test_operations_of_any_model_equal_those_of_the_built_model(seed: int) -> None:
    config = draw_model(random.Random(seed))
    lines = {line.part: line.value for line in count_operations(make_config(config))}
    assert lines["per token"] == flops_per_token(build(config))


def test_accumulation_needs_less_memory_and_the_same_operations() -> None:
    whole, parts = make_config(GPT), make_config(GPT, accumulation=4)
    (a, *_), (b, *_) = (count_activations(each, CPU, torch.float32) for each in (whole, parts))
    assert a.value == 4 * b.value
    assert count_operations(whole) == count_operations(parts)
    times = (explain_run(each, CPU, torch.float32, FAST).time[2].value for each in (whole, parts))
    assert next(times) == pytest.approx(next(times))


def test_time_follows_from_the_rates() -> None:
    slow, fast = (
        explain_run(make_config(GPT), CPU, torch.float32, Rates(products=p, memory=m)).time
        for p, m in ((1e9, 1e9), (2e9, 4e9))
    )
    products, rest, step, whole = (line.value for line in slow)
    assert step == products + rest
    assert whole == 5000 * step
    assert [line.value for line in fast][:2] == [products / 2, pytest.approx(rest / 4)]
    assert (
        products
        == explain_run(make_config(GPT), CPU, torch.float32, FAST).operations[-2].value / 1e9
    )
