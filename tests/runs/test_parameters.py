"""Which layers are in float8; the other formulas are tested in test_memory.py."""

from dataclasses import replace

import pytest
import torch

from nanogpt.models import GPTConfig, ModernConfig
from nanogpt.reports.explain import count_operations, estimate_time
from nanogpt.reports.rates import Rates
from nanogpt.runs.config import RunConfig, TrainConfig, is_float8_layer
from nanogpt.runs.memory import count_activations, require_run_memory
from nanogpt.runs.parameters import count_float8_weights

CUDA = torch.device("cuda")


def test_layers_of_models_with_at_least_512_channels_are_in_float8() -> None:
    for kind in (GPTConfig, ModernConfig):
        for C, has_any in ((496, False), (512, True)):
            assert (count_float8_weights(kind(n_embd=C, n_head=8)) > 0) == has_any
    assert is_float8_layer(768, 2304)
    assert not is_float8_layer(768, 768)
    # Only the projections of attention are too small in GPT-2's shape.
    gpt2 = GPTConfig(n_layer=12, n_head=12, n_embd=768)
    assert count_float8_weights(gpt2) == 12 * 11 * 768**2
    swiglu = ModernConfig(n_layer=1, n_head=8, n_embd=1024, activation="swiglu")
    assert count_float8_weights(swiglu) == 4 * 1024**2 + 3 * 1024 * swiglu.n_hidden


def test_layers_with_sizes_that_a_gpu_cannot_multiply_are_not_in_float8() -> None:
    """For example, those of a teacher."""
    for K, N in ((1000, 4000), (4000, 1000), (1008, 4001)):
        assert not is_float8_layer(K, N)
    assert is_float8_layer(1008, 4000)


def count_bytes(model: GPTConfig | ModernConfig, in_float8: bool) -> float:
    """Return the bytes of the activations of the blocks per token, block and channel."""
    config = RunConfig(model=model, train=TrainConfig(batch_size=1))
    if in_float8:
        config = replace(config, precision="float8")
    lines = count_activations(config, CUDA, torch.bfloat16)
    value = next(line.value for line in lines if line.part == "activations of the blocks")
    return value / (model.block_size * model.n_layer * model.n_embd)


def test_inputs_of_layers_in_float8_are_not_stored() -> None:
    """A value has 2 bytes. Per channel, the feed-forward layers have 5 such values."""
    for kind, C, values in (
        (GPTConfig, 512, 5),
        (GPTConfig, 768, 6),
        (ModernConfig, 768, 5),  # the layer for values is small, and needs the output of the norm
        (ModernConfig, 1024, 6),
    ):
        model = kind(n_embd=C, n_head=8)
        assert count_bytes(model, False) - count_bytes(model, True) == pytest.approx(2 * values)


def test_the_estimated_time_counts_the_products_in_float8() -> None:
    config = RunConfig(
        model=GPTConfig(n_layer=2, n_head=12, n_embd=768, block_size=64), precision="float8"
    )
    rates = Rates(products=1e12, memory=1e12, float8=2e12)
    lines = estimate_time(config, CUDA, torch.bfloat16, count_operations(config), rates)
    seconds = {line.part: line.value for line in lines}
    tokens = config.train.batch_size * 64
    expected = 6 * 2 * 11 * 768**2 * tokens / 2e12
    assert seconds["products in float8"] == expected
    plain = estimate_time(
        config, CUDA, torch.bfloat16, count_operations(config), replace(rates, float8=0.0)
    )
    products = {line.part: line.value for line in plain}["matrix products"]
    assert seconds["other products"] + 2 * expected == products


def test_the_memory_of_a_run_in_float8_can_be_checked() -> None:
    config = RunConfig(model=GPTConfig(n_layer=1, n_head=8, n_embd=512), precision="float8")
    require_run_memory(config, torch.device("cpu"), torch.bfloat16)
