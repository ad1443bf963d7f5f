import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.evaluate import cross_entropy
from nanogpt.fast.training import make_stepper
from nanogpt.models import BigramConfig, GPTConfig, ModelConfig, ModernConfig, build
from nanogpt.optim import OptimConfig, build_optimizers
from nanogpt.reports.explain import (
    count_activations,
    count_memory,
    count_operations,
    count_parameters,
    explain_run,
)
from nanogpt.reports.rates import Rates, measure_rates
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.system.devices import pick_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GPT = GPTConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
MODERN = ModernConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
FAST = Rates(products=1e12, memory=1e11)


def run(model: ModelConfig, **training: Any) -> RunConfig:
    return RunConfig(model=model, train=TrainConfig(batch_size=16, **training))


def test_parameters_are_those_of_the_model() -> None:
    models = (
        GPT,
        replace(GPT, bias=False),
        MODERN,
        BigramConfig(),
        *(preset.config.model for preset in PRESETS.values()),
    )
    for config in models:
        named = dict(build(config).named_parameters())
        parts = {line.part: line.value for line in count_parameters(run(config))}
        assert parts.pop("parameters") == sum(p.numel() for p in named.values())
        inside = {"attention": ".attention.", "feed-forward": ".feed_forward.", "norms": "norm"}
        for part, words in inside.items():
            found = sum(p.numel() for name, p in named.items() if words in name)
            assert sum(value for name, value in parts.items() if part in name) == found
        tables = {"token embedding": "token_e", "position embedding": "position", "table": "table"}
        for part, word in {**tables, "look-back": "look_back"}.items():
            kept = sum(p.numel() for name, p in named.items() if name.startswith(word))
            assert parts.get(part, 0) == kept


@pytest.mark.parametrize("config", [GPT, MODERN, replace(GPT, n_embd=128, vocab_size=300)])
def test_activations_are_what_autograd_keeps(config: GPTConfig | ModernConfig) -> None:
    model = build(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    tokens = torch.zeros(16, 32, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(tokens), tokens)
    assert loss.requires_grad
    lines = count_activations(run(config), CPU, torch.float32)
    said = sum(line.value for line in lines if line.part != "on the way back")
    assert said == pytest.approx(sum(kept.values()), rel=0.02)


@pytest.mark.parametrize("config", [GPT, MODERN])
def test_operations_are_those_that_torch_counts(config: GPTConfig | ModernConfig) -> None:
    model, tokens = build(config), torch.zeros(16, 32, dtype=torch.long)
    # Its attention for a CPU is nothing that torch counts, so written out.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        cross_entropy(model(tokens), tokens).backward()
    each, a_step = (
        next(line.value for line in count_operations(run(config)) if line.part == part)
        for part in ("a token", "a step")
    )
    assert a_step == each * 512
    assert a_step == pytest.approx(counter.get_total_flops(), rel=0.02)  # biases, as everybody does


def test_the_kept_memory_is_that_of_the_optimizers() -> None:
    for optim in (OptimConfig(), OptimConfig(optimizer="adam"), OptimConfig(optimizer="muon")):
        config = replace(run(GPT), optim=optim)
        state = [o.state() for o in build_optimizers(build(GPT), optim)]
        held = sum(tensor.nbytes for named in state for tensor in named.values())
        lines = {line.part: line.value for line in count_memory(config, CPU, torch.float32)}
        assert lines["optimizer"] == pytest.approx(held, abs=16)  # and the count of steps
        assert lines["gradients"] == lines["weights"] == 4 * count_parameters(config)[-1].value
        assert "averaged weights" not in lines
    averaged = replace(run(GPT), optim=OptimConfig(ema=0.9))
    lines = {line.part: line.value for line in count_memory(averaged, CPU, torch.float32)}
    assert lines["averaged weights"] == lines["weights"]


def test_parts_of_a_batch_take_less_memory_and_no_fewer_operations() -> None:
    whole, parts = run(GPT), run(GPT, accumulation=4)
    (a, *_), (b, *_) = (count_activations(each, CPU, torch.float32) for each in (whole, parts))
    assert a.value == 4 * b.value
    assert count_operations(whole) == count_operations(parts)
    times = (explain_run(each, CPU, torch.float32, FAST).time[2].value for each in (whole, parts))
    assert next(times) == pytest.approx(next(times))


def test_most_at_a_time_is_the_sum() -> None:
    for config in (run(GPT), run(BigramConfig()), replace(run(MODERN), optim=OptimConfig(ema=0.9))):
        *lines, most = count_memory(config, CPU, torch.bfloat16)
        parts = [line.part for line in lines]
        at = parts.index("gradients")
        rest, gradients = sum(line.value for line in lines[:at]), lines[at].value
        activations = sum(line.value for line in lines[at + 1 :])
        assert most.value == rest + max(gradients, activations)
        in_parts = replace(config, train=replace(config.train, accumulation=4))
        *_, most = count_memory(in_parts, CPU, torch.bfloat16)
        several = sum(line.value for line in count_activations(in_parts, CPU, torch.bfloat16))
        assert most.value == rest + gradients + several


def test_time_follows_from_the_rates() -> None:
    slow, fast = (
        explain_run(run(GPT), CPU, torch.float32, Rates(products=p, memory=m)).time
        for p, m in ((1e9, 1e9), (2e9, 4e9))
    )
    products, rest, step, whole = (line.value for line in slow)
    assert step == products + rest
    assert whole == 5000 * step
    assert [line.value for line in fast][:2] == [products / 2, pytest.approx(rest / 4)]
    assert products == explain_run(run(GPT), CPU, torch.float32, FAST).operations[-2].value / 1e9


def test_rates_are_of_this_machine() -> None:
    rates = measure_rates(CPU, torch.float32, 256, 128)
    assert 1e8 < rates.products < 1e15
    assert 1e7 < rates.memory < 1e14


CASES = [
    ("baby", {}, {}),
    ("baby", {"dropout": 0.0}, {"compile": False}),
    ("baby", {"n_embd": 768, "n_head": 12}, {"batch_size": 16}),
    ("baby-fast", {}, {}),
    ("baby-fast", {"n_layer": 12}, {"accumulation": 2}),
    ("best", {}, {"compile": False}),
    ("best", {}, {}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("preset", "model", "training"), CASES)
def test_memory_is_within_5_percent_of_what_a_gpu_needs(
    preset: str, model: dict[str, Any], training: dict[str, Any], text_file: Path
) -> None:
    config = PRESETS[preset].config
    config = replace(
        config,
        data=str(text_file),
        device="cuda",
        model=replace(config.model, **model),
        train=replace(config.train, **training),
    )
    # What a run before it left in memory, or compiled for another shape, would be measured, too.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        said, most = fresh.submit(said_and_measured, config).result()
    assert said == pytest.approx(most, rel=0.05)


def said_and_measured(config: RunConfig) -> tuple[float, int]:
    """The bytes that a run is said to need on a GPU, and the most that its first steps did need."""
    made = prepare_run(config)
    stepper = make_stepper(made, print)
    torch.cuda.reset_peak_memory_stats()
    stepper.take(3, lambda: False)
    said = count_memory(made.config, CUDA, pick_precision("auto", CUDA))[-1].value
    return said, torch.cuda.max_memory_allocated()
