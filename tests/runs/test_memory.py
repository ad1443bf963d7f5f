"""Counts of parameters and memory, compared with real models and with the counts of torch."""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.data import inputs_and_targets
from nanogpt.errors import UserError
from nanogpt.evaluate import cross_entropy
from nanogpt.fast.training import make_stepper
from nanogpt.models import BigramConfig, GPTConfig, ModelConfig, ModernConfig, PlainConfig, build
from nanogpt.optim import OptimConfig, build_optimizers
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.memory import (
    BLOCK_BYTES,
    count_activations,
    count_host_memory,
    count_memory,
    require_run_memory,
)
from nanogpt.runs.parameters import count_matrix_weights, count_parameters
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.step import train_step
from tests.tensor_memory import measure_tensors

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GPT = GPTConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
MODERN = ModernConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
PLAIN = PlainConfig(n_layer=3, n_head=4, n_embd=64, block_size=32)
GPTS = [GPT, replace(GPT, n_embd=128, vocab_size=300), MODERN, PLAIN]
GPTS += [replace(PLAIN, feed_forward=True, residual=True)]
GPTS += [
    replace(MODERN, look_back=False),
    replace(MODERN, skips=True),
    replace(MODERN, n_layer=4, skips=True, activation="swiglu"),
]


def make_config(model: ModelConfig, **training: Any) -> RunConfig:
    return RunConfig(model=model, train=TrainConfig(batch_size=16, **training))


def draw_model(draw: random.Random) -> ModelConfig:
    """Return the configuration of a random small model of any kind."""
    n_head = draw.randint(1, 3)
    sizes = {"block_size": draw.randint(1, 40), "vocab_size": draw.randint(1, 90)}
    if (kind := draw.choice([GPTConfig, ModernConfig, PlainConfig, BigramConfig])) is BigramConfig:
        return BigramConfig(**sizes)
    sizes |= {"n_layer": draw.randint(1, 4), "n_head": n_head}
    model: ModelConfig = kind(n_embd=2 * n_head * draw.randint(1, 6), **sizes)
    if isinstance(model, GPTConfig):
        model = replace(model, bias=draw.random() < 0.5)
    if isinstance(model, ModernConfig):
        activation = draw.choice(get_args(ModernConfig.__annotations__["activation"]))
        model = replace(model, activation=activation, skips=draw.random() < 0.5)
    if isinstance(model, PlainConfig):
        model = replace(model, feed_forward=draw.random() < 0.5)
    return model


@pytest.mark.parametrize("seed", range(60))
def test_parameters_of_any_model_equal_those_of_the_built_model(seed: int) -> None:
    config = draw_model(random.Random(seed))
    model = build(config)
    assert count_parameters(config)[-1].value == sum(p.numel() for p in model.parameters())
    matrices = [model.get_parameter(name).numel() for name in model.matrices()]
    assert count_matrix_weights(config) == sum(matrices)


def test_parameters_equal_those_of_the_model() -> None:
    models = (
        GPT,
        replace(GPT, bias=False),
        MODERN,
        replace(MODERN, activation="swiglu", skips=True),
        replace(MODERN, look_back=False),
        BigramConfig(),
        PLAIN,
        replace(PLAIN, feed_forward=True),
        *(preset.config.model for preset in PRESETS.values()),
    )
    for config in models:
        named = dict(build(config).named_parameters())
        parts = {line.part: line.value for line in count_parameters(config)}
        assert parts.pop("parameters") == sum(p.numel() for p in named.values())
        inside = {"attention": ".attention.", "feed-forward": ".feed_forward.", "norms": "norm"}
        for part, words in inside.items():
            expected = sum(p.numel() for name, p in named.items() if words in name)
            assert sum(value for name, value in parts.items() if part in name) == expected
        tables = {"token embedding": "token_e", "position embedding": "position", "table": "table"}
        for part, word in {**tables, "look-back": "look_back"}.items():
            expected = sum(p.numel() for name, p in named.items() if name.startswith(word))
            assert parts.get(part, 0) == expected


@pytest.mark.parametrize("config", GPTS)
def test_activations_equal_what_autograd_saves(config: ModelConfig) -> None:
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


def test_optimizer_memory_equals_that_of_the_optimizers() -> None:
    for optim in (OptimConfig(), OptimConfig(optimizer="adam"), OptimConfig(optimizer="muon")):
        config = replace(make_config(GPT), optim=optim)
        state = [o.state() for o in build_optimizers(build(GPT), optim)]
        held = sum(tensor.nbytes for named in state for tensor in named.values())
        lines = {line.part: line.value for line in count_memory(config, CPU, torch.float32)}
        # `held` also includes the optimizers' step counters, which need at most 16 bytes.
        assert lines["optimizer"] == pytest.approx(held, abs=16)
        assert (
            lines["gradients"] == lines["weights"] == 4 * count_parameters(config.model)[-1].value
        )
        assert "averaged weights" not in lines
    averaged = replace(make_config(GPT), optim=OptimConfig(ema=0.9))
    lines = {line.part: line.value for line in count_memory(averaged, CPU, torch.float32)}
    assert lines["averaged weights"] == lines["weights"]


@pytest.mark.parametrize("config", GPTS)
def test_weights_in_half_precision_are_those_of_the_matrix_products(
    config: ModelConfig,
) -> None:
    tokens = torch.zeros(16, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(config)(tokens)
    aten, counts = torch.ops.aten, counter.get_flop_counts()["Global"]
    flops = sum(counts.get(product, 0) for product in (aten.mm, aten.addmm))
    (weights, *_) = count_activations(make_config(config), CPU, torch.bfloat16)
    assert weights.part == "weights in half precision"
    assert weights.value == 2 * flops / (2 * tokens.numel())


def test_peak_counts_gradients_and_activations_together_only_with_accumulation() -> None:
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


def test_recomputation_needs_the_activations_of_one_block() -> None:
    model = replace(GPT, vocab_size=60)  # the gradients of a block need more memory than the logits
    stored, recomputed = (
        count_activations(make_config(model, recompute=recompute), CPU, torch.float32)
        for recompute in (False, True)
    )
    all_blocks, inputs, block = stored[0].value, recomputed[0].value, recomputed[-1].value
    assert stored[1] == recomputed[1]
    n, C = 16 * 32, GPT.n_embd
    assert inputs == GPT.n_layer * 4 * n * C
    assert block == all_blocks / GPT.n_layer + stored[-1].value


CASES = [
    ("baby", {}, {}),
    ("baby", {"dropout": 0.0}, {"compile": False}),
    ("baby", {"n_embd": 768, "n_head": 12}, {"batch_size": 16}),
    ("baby-fast", {}, {}),
    ("baby-fast", {"n_layer": 12}, {"accumulation": 2}),
    ("best", {}, {"compile": False}),
    ("best", {}, {}),
    ("baby", {"dropout": 0.0}, {"recompute": True}),
    ("baby-fast", {"n_layer": 12}, {"recompute": True, "accumulation": 2}),
    ("baby", {"n_embd": 1024, "n_head": 16, "n_layer": 24}, {"recompute": True, "batch_size": 8}),
    ("gpt2", {"n_layer": 4}, {"batch_size": 16, "accumulation": 1}),
    ("gpt2", {"n_layer": 4}, {"batch_size": 16, "accumulation": 2, "recompute": True}),
    ("gpt2-fast", {"n_layer": 4}, {"batch_size": 16, "accumulation": 1}),
]
CASES_IN_FLOAT8 = [
    ("gpt2", {"n_layer": 8}, {"batch_size": 16, "accumulation": 1}),
    ("gpt2", {"n_layer": 8, "n_embd": 1024, "n_head": 16}, {"batch_size": 16, "accumulation": 2}),
    ("gpt2-fast", {"n_layer": 8}, {"batch_size": 16, "accumulation": 1}),
]


def make_case(
    preset: str, model: dict[str, Any], training: dict[str, Any], text_file: Path
) -> RunConfig:
    """Return the settings of one of CASES; the presets of GPT-2's size get a large vocabulary."""
    config = PRESETS[preset].config
    if preset.startswith("gpt2"):
        characters = "".join(map(chr, range(0x10000, 0x10000 + 30_000)))
        text_file.write_text(2 * characters, "utf-8")
    return replace(
        config,
        data=str(text_file),
        tokenizer="char",
        val_fraction=0.1,
        device="cuda",
        model=replace(config.model, **model),
        train=replace(config.train, **training),
    )


ON_GPU = [(*case, "auto") for case in CASES] + [(*case, "float8") for case in CASES_IN_FLOAT8]


@pytest.mark.parametrize(("preset", "model", "training", "precision"), ON_GPU)
def test_the_cases_for_a_gpu_are_valid(
    preset: str, model: dict[str, Any], training: dict[str, Any], precision: Any, text_file: Path
) -> None:
    """Most machines have no GPU, and so do not run the next test."""
    assert replace(make_case(preset, model, training, text_file), precision=precision)


@pytest.mark.gpu
@pytest.mark.parametrize(("preset", "model", "training", "precision"), ON_GPU)
def test_memory_is_within_5_percent_of_the_measured_peak(
    preset: str, model: dict[str, Any], training: dict[str, Any], precision: Any, text_file: Path
) -> None:
    config = replace(make_case(preset, model, training, text_file), precision=precision)
    # In a new process, the peak excludes memory and compiled code of an earlier run.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        computed, measured = fresh.submit(compute_and_measure_peak, config).result()
    assert computed == pytest.approx(measured, rel=0.05)


def compute_and_measure_peak(config: RunConfig) -> tuple[float, int]:
    """Return the computed peak memory of a run on a GPU, and the peak measured in 3 steps."""
    run = prepare_run(config)
    stepper = make_stepper(run, print)
    torch.cuda.reset_peak_memory_stats()
    stepper.take(3, lambda: False)
    computed = count_memory(run.config, CUDA, run.precision)[-1].value
    return computed, torch.cuda.max_memory_allocated()


SHARDED, BOTH = {"shard": True}, {"shard": True, "recompute": True}
XL = {"n_layer": 48, "n_head": 25, "n_embd": 1600}
MEASURED = [  # on H200 GPUs, in bfloat16, with a vocabulary of 50,304 (docs/log)
    ("gpt2", {}, {"batch_size": 32}, 1, 15_310),
    ("gpt2", {"bias": False}, {"batch_size": 64}, 1, 28_346),
    ("gpt2-fast", {}, {"batch_size": 32}, 1, 16_737),
    ("gpt2", {}, {"batch_size": 64}, 2, 15_310),
    ("gpt2", {}, {"batch_size": 64, "recompute": True}, 2, 6_001),
    ("gpt2", {}, {"batch_size": 64, **SHARDED}, 2, 14_693),
    ("gpt2", {}, {"batch_size": 64, **BOTH}, 2, 5_434),
    ("gpt2", XL, {"batch_size": 16, **BOTH}, 2, 14_325),
    ("gpt2-fast", {}, {"batch_size": 64}, 2, 16_737),
    ("gpt2-fast", {}, {"batch_size": 64, "recompute": True}, 2, 6_212),
    ("gpt2-fast", {}, {"batch_size": 64, **SHARDED}, 2, 16_367),
    ("gpt2-fast", {}, {"batch_size": 64, **BOTH}, 2, 5_891),
    ("baby", {"vocab_size": 65}, {}, 1, 1_666),
    ("best", {"vocab_size": 65}, {"compile": False}, 1, 2_702),
]


@pytest.mark.parametrize(("preset", "model", "training", "processes", "megabytes"), MEASURED)
def test_memory_is_within_5_percent_of_earlier_measurements(
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    model: dict[str, Any],
    training: dict[str, Any],
    processes: int,
    megabytes: int,
) -> None:
    """This test needs no GPU."""
    monkeypatch.setattr("nanogpt.runs.memory.get_workspace_bytes", lambda _: 32 << 20)
    config = PRESETS[preset].config
    config = replace(
        config,
        model=replace(config.model, **{"vocab_size": 50_304} | model),
        train=replace(config.train, **{"accumulation": 1} | training),
    )
    peak = count_memory(config, CUDA, torch.bfloat16, processes)[-1].value
    assert peak == pytest.approx(megabytes * 1e6, rel=0.05)


FITTING = [
    *GPTS,
    replace(GPT, dropout=0.1),
    replace(MODERN, dropout=0.1, vocab_size=5000),
    BigramConfig(vocab_size=1000, block_size=32),
]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 16])
@pytest.mark.parametrize("model", FITTING)
def test_a_run_on_a_cpu_needs_at_least_the_computed_memory(
    model: ModelConfig, accumulation: int
) -> None:
    """If a run needed less memory than this, require_run_memory() would refuse runs that fit."""
    config = make_config(model, accumulation=accumulation)
    config = replace(config, train=replace(config.train, batch_size=256))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        measured = fresh.submit(measure_run_on_cpu, config).result()
    objects = 0 if isinstance(model, BigramConfig) else BLOCK_BYTES * model.n_layer
    assert count_host_memory(config, CPU, torch.float32) - objects <= 1.03 * measured


def measure_run_on_cpu(config: RunConfig) -> int:
    """Return the peak bytes of tensors when a model is built and takes two steps."""
    torch.set_num_threads(1)
    return measure_tensors(lambda: train_on_random_tokens(config))[0]


def train_on_random_tokens(config: RunConfig) -> None:
    """Build a model, and take two steps, each on a random batch."""
    model, settings = build(config.model), config.train
    parameters, optimizers = [*model.parameters()], build_optimizers(model, config.optim)
    shape = settings.batch_size, config.model.block_size + 1
    for _ in range(2):
        batch = inputs_and_targets(torch.randint(config.model.vocab_size, shape))
        rates = [torch.tensor(0.001)] * len(optimizers)
        train_step(
            parameters,
            optimizers,
            lambda x, y: cross_entropy(model(x), y),
            *batch,
            rates,
            accumulation=settings.accumulation,
        )


@pytest.mark.parametrize(
    "model",
    [GPT, MODERN, *(replace(MODERN, skips=True, activation=a) for a in ("relu2", "swiglu"))],
)
def test_the_forward_pass_of_a_mean_teacher_needs_the_computed_memory(
    model: ModelConfig, text_file: Path
) -> None:
    def measure(weight: float) -> tuple[float, float]:
        config = RunConfig(
            model=model,
            optim=OptimConfig(ema=0.9),
            train=TrainConfig(batch_size=32, mean_teacher=weight),
            data=str(text_file),
            val_fraction=0.5,
            device="cpu",
            precision="float32",
        )
        run = prepare_run(config)
        stepper = make_stepper(run, pytest.fail)
        peaks = measure_tensors(lambda: stepper.take(1, bool), lambda: stepper.take(1, bool))
        return count_memory(run.config, CPU, torch.float32)[-1].value, peaks[1]

    (computed, measured), (without, measured_without) = measure(0.3), measure(0.0)
    assert computed - without == pytest.approx(measured - measured_without, rel=0.3)


def test_small_models_and_small_presets_may_run() -> None:
    for seed in range(60):
        require_run_memory(make_config(draw_model(random.Random(seed))), CPU, torch.float32)
    for preset in ("tiny", "tiny-fast", "bigram"):
        require_run_memory(PRESETS[preset].config, CPU, torch.float32)


@pytest.mark.parametrize("device", [CPU, torch.device("mps")])
@pytest.mark.parametrize("kind", [GPTConfig, ModernConfig, PlainConfig])
def test_an_enormous_model_of_any_kind_is_refused(kind: Any, device: torch.device) -> None:
    for sizes in ({"n_layer": 2**31 - 1}, {"n_embd": 2**31 - 8}, {"n_layer": 10**8, "n_embd": 12}):
        config = make_config(kind(**sizes))
        with pytest.raises(UserError, match=r"parameters needs at least [\d.]+ .?B of memory"):
            require_run_memory(config, device, torch.float32)
