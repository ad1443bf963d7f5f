"""Counts of parameters, memory and operations, compared with the counts of torch."""

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
from nanogpt.models import GPT as GPTModel
from nanogpt.models import BigramConfig, GPTConfig, ModelConfig, ModernConfig, build
from nanogpt.optim import OptimConfig, build_optimizers
from nanogpt.reports import explain
from nanogpt.reports.explain import (
    count_activations,
    count_memory,
    count_operations,
    count_parameters,
    explain_run,
)
from nanogpt.reports.rates import Rates
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.system.devices import pick_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GPT = GPTConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
MODERN = ModernConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
FAST = Rates(products=1e12, memory=1e11)


def make_config(model: ModelConfig, **training: Any) -> RunConfig:
    return RunConfig(model=model, train=TrainConfig(batch_size=16, **training))


def test_parameters_equal_those_of_the_model() -> None:
    models = (
        GPT,
        replace(GPT, bias=False),
        MODERN,
        BigramConfig(),
        *(preset.config.model for preset in PRESETS.values()),
    )
    for config in models:
        named = dict(build(config).named_parameters())
        parts = {line.part: line.value for line in count_parameters(make_config(config))}
        assert parts.pop("parameters") == sum(p.numel() for p in named.values())
        inside = {"attention": ".attention.", "feed-forward": ".feed_forward.", "norms": "norm"}
        for part, words in inside.items():
            expected = sum(p.numel() for name, p in named.items() if words in name)
            assert sum(value for name, value in parts.items() if part in name) == expected
        tables = {"token embedding": "token_e", "position embedding": "position", "table": "table"}
        for part, word in {**tables, "look-back": "look_back"}.items():
            expected = sum(p.numel() for name, p in named.items() if name.startswith(word))
            assert parts.get(part, 0) == expected


@pytest.mark.parametrize("config", [GPT, MODERN, replace(GPT, n_embd=128, vocab_size=300)])
def test_activations_equal_what_autograd_saves(config: GPTConfig | ModernConfig) -> None:
    model = build(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    tokens = torch.zeros(16, 32, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(tokens), tokens)
    assert loss.requires_grad
    lines = count_activations(make_config(config), CPU, torch.float32)
    computed = sum(line.value for line in lines if line.part != "gradients of activations")
    assert computed == pytest.approx(sum(saved.values()), rel=0.02)


@pytest.mark.parametrize("config", [GPT, MODERN])
def test_operations_equal_those_that_torch_counts(config: GPTConfig | ModernConfig) -> None:
    model, tokens = build(config), torch.zeros(16, 32, dtype=torch.long)
    # torch does not count the operations of fused attention on a CPU: use the math kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        cross_entropy(model(tokens), tokens).backward()
    per_token, per_step = (
        next(line.value for line in count_operations(make_config(config)) if line.part == part)
        for part in ("per token", "per step")
    )
    assert per_step == per_token * 512
    assert per_step == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )  # the formula also counts biases and gains of norms


def test_optimizer_memory_equals_that_of_the_optimizers() -> None:
    for optim in (OptimConfig(), OptimConfig(optimizer="adam"), OptimConfig(optimizer="muon")):
        config = replace(make_config(GPT), optim=optim)
        state = [o.state() for o in build_optimizers(build(GPT), optim)]
        held = sum(tensor.nbytes for named in state for tensor in named.values())
        lines = {line.part: line.value for line in count_memory(config, CPU, torch.float32)}
        # `held` also counts the step counters, which take at most 16 bytes.
        assert lines["optimizer"] == pytest.approx(held, abs=16)
        assert lines["gradients"] == lines["weights"] == 4 * count_parameters(config)[-1].value
        assert "averaged weights" not in lines
    averaged = replace(make_config(GPT), optim=OptimConfig(ema=0.9))
    lines = {line.part: line.value for line in count_memory(averaged, CPU, torch.float32)}
    assert lines["averaged weights"] == lines["weights"]


@pytest.mark.parametrize("config", [GPT, MODERN, replace(GPT, n_embd=128, vocab_size=300)])
def test_weights_in_half_precision_are_those_of_the_products_that_torch_counts(
    config: GPTConfig | ModernConfig,
) -> None:
    tokens = torch.zeros(16, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(config)(tokens)
    aten, counts = torch.ops.aten, counter.get_flop_counts()["Global"]
    flops = sum(counts.get(product, 0) for product in (aten.mm, aten.addmm))
    (weights, *_) = count_activations(make_config(config), CPU, torch.bfloat16)
    assert weights.part == "weights in half precision"
    assert weights.value == 2 * flops / (2 * tokens.numel())


def test_declared_lookup_tables_are_not_in_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    class GPTWithSegments(GPTModel):
        """A GPT with one more lookup table; each token reads one row of this table."""

        lookup_tables = (*GPTModel.lookup_tables, "segment_embedding.weight")  # type: ignore

        def __init__(self, config: GPTConfig) -> None:
            super().__init__(config)
            self.segment_embedding = torch.nn.Embedding(7, config.n_embd)

    config = make_config(GPT)
    expected = count_activations(config, CPU, torch.bfloat16), count_operations(config)
    monkeypatch.setattr(explain, "build", GPTWithSegments)
    assert (count_activations(config, CPU, torch.bfloat16), count_operations(config)) == expected


def test_accumulation_needs_less_memory_and_the_same_operations() -> None:
    whole, parts = make_config(GPT), make_config(GPT, accumulation=4)
    (a, *_), (b, *_) = (count_activations(each, CPU, torch.float32) for each in (whole, parts))
    assert a.value == 4 * b.value
    assert count_operations(whole) == count_operations(parts)
    times = (explain_run(each, CPU, torch.float32, FAST).time[2].value for each in (whole, parts))
    assert next(times) == pytest.approx(next(times))


def test_peak_is_the_sum_of_the_parts() -> None:
    for config in (
        make_config(GPT),
        make_config(BigramConfig()),
        replace(make_config(MODERN), optim=OptimConfig(ema=0.9)),
    ):
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
def test_memory_is_within_5_percent_of_the_measured_peak(
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
    # A new process, because memory and compiled code of an earlier run would also be counted.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        computed, measured = fresh.submit(compute_and_measure_peak, config).result()
    assert computed == pytest.approx(measured, rel=0.05)


def compute_and_measure_peak(config: RunConfig) -> tuple[float, int]:
    """Return the computed peak memory of a run on a GPU, and the peak measured in 3 steps."""
    run = prepare_run(config)
    stepper = make_stepper(run, print)
    torch.cuda.reset_peak_memory_stats()
    stepper.take(3, lambda: False)
    computed = count_memory(run.config, CUDA, pick_precision("auto", CUDA))[-1].value
    return computed, torch.cuda.max_memory_allocated()
