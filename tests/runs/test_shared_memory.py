"""The computed memory of a process that shares a step with others, compared with the allocator."""

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from nanogpt.fast.parallel import make_stepper
from nanogpt.models import GPTConfig, ModernConfig
from nanogpt.optim import OptimConfig
from nanogpt.reports.explain import count_peaks
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.memory import BLOCK_BYTES, count_host_memory, count_memory
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.step import Stepper
from nanogpt.system import distributed
from tests.tensor_memory import measure_tensors

CPU = torch.device("cpu")
GPT = GPTConfig(n_layer=8, n_head=4, n_embd=256, block_size=64)
SHORT = replace(GPT, n_layer=12, block_size=16)
"""A model whose weights need more memory than its activations."""
MODERN = ModernConfig(n_layer=6, n_head=4, n_embd=256, block_size=16)
CASES = [
    (1, GPT, {}),
    (2, GPT, {}),
    (2, GPT, {"shard": True}),
    (2, GPT, {"shard": True, "recompute": True}),
    (2, GPT, {"shard": True, "accumulation": 2}),
    (4, replace(GPT, n_layer=6), {"shard": True}),
    (2, SHORT, {}),
    (2, SHORT, {"recompute": True}),
    (2, SHORT, {"shard": True}),
    (4, SHORT, {"shard": True, "recompute": True}),
    (1, MODERN, {}),
    (2, MODERN, {}),
    (2, MODERN, {"shard": True}),
    # 16 does not divide the numbers of matrices.
    (16, replace(MODERN, n_layer=3, block_size=8), {"shard": True}),
    (4, replace(MODERN, activation="swiglu", skips=True), {"shard": True, "recompute": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("processes", "model", "training"), CASES)
def test_memory_is_within_5_percent_of_the_measured_peak(
    processes: int,
    model: GPTConfig | ModernConfig,
    training: dict[str, Any],
    precision: Literal["float32", "bfloat16"],
    text_file: Path,
) -> None:
    settings = TrainConfig(batch_size=processes * 16, **training)
    optim = OptimConfig(optimizer="muon" if isinstance(model, ModernConfig) else "adamw")
    data = str(text_file)
    config = RunConfig(data=data, device="cpu", precision=precision, model=model, optim=optim)
    config = replace(config, train=settings)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        config, measured, most = fresh.submit(measure_peaks, config, processes).result()
    lines = count_memory(config, CPU, getattr(torch, precision), processes)
    assert lines[-1].value == pytest.approx(measured, rel=0.05)
    minimum = count_host_memory(config, CPU, getattr(torch, precision), processes)
    assert minimum - BLOCK_BYTES * model.n_layer <= 1.05 * most


def measure_peaks(config: RunConfig, processes: int) -> tuple[RunConfig, int, int]:
    """Return the settings of a run, the peak bytes of tensors in three steps, and the whole peak.

    Communication does nothing, because torch's profiler does not see memory that the threads of
    gloo free. The text is not counted.
    """
    torch.set_num_threads(1)
    if processes > 1:
        pretend_to_be_one_of(processes)
    steppers: list[Stepper] = []

    def prepare() -> None:
        steppers.append(make_stepper(prepare_run(config), print))

    before, during = measure_tensors(prepare, lambda: steppers[0].take(3, lambda: False))
    run = steppers[0].run
    text = sum(split.tokens.nbytes for split in run.data.splits.values())
    return run.config, during - text, max(before, during) - text


def pretend_to_be_one_of(processes: int) -> None:
    """Let this process be the first of several processes that do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ |= {"RANK": "0", "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    torch.distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    distributed._patient = distributed._prompt = torch.distributed.new_group()
    distributed.gather_objects = lambda value: [value] * processes


def test_peaks_are_those_of_the_settings() -> None:
    """Each setting needs less memory, and a run that uses them has the same peak."""
    config = RunConfig(model=GPT, train=TrainConfig(batch_size=32))
    both = replace(config, train=replace(config.train, shard=True, recompute=True))
    none, recompute, shard, most = count_peaks(both, CPU, torch.float32, 2)
    assert most.value == count_memory(both, CPU, torch.float32, 2)[-1].value
    assert none.value == count_memory(config, CPU, torch.float32, 2)[-1].value
    assert most.value < min(recompute.value, shard.value)
    assert max(recompute.value, shard.value) < none.value
    averaged = replace(config, optim=OptimConfig(ema=0.9))
    averaged = replace(averaged, train=replace(config.train, mean_teacher=0.5))
    assert len(count_peaks(averaged, CPU, torch.float32, 2)) == 2


def test_the_table_of_larger_models_has_the_computed_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table is in docs/scale.md, for one of 8 H200 GPUs."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")
    flags = dict(re.findall(r"^\| (GPT-2 \w+) \| [\d,]+ \| `(--model.+)` \|$", page, re.M))
    row = r"^\| (\S+|GPT-2 \w+) \|" + r" `([\d.]+)` GB \|" * 4 + "$"
    rows = re.findall(row, page, re.M)
    assert [name for name, *_ in rows] == ["`gpt2`", "`gpt2-fast`", *flags]
    for name, *shown in rows:
        config = PRESETS["gpt2-fast" if "fast" in name else "gpt2"].config
        sizes = dict(re.findall(r"--model\.(n-\w+) (\d+)", flags.get(name, "")))
        shape: Any = {key.replace("-", "_"): int(value) for key, value in sizes.items()}
        model = replace(config.model, vocab_size=50_257, **shape)
        for number, (both, accumulation) in enumerate(product((False, True), (2, 8))):
            settings: Any = {"accumulation": accumulation, "shard": both, "recompute": both}
            training = replace(config.train, **settings)
            changed = replace(config, model=model, train=training)
            peak = count_memory(changed, torch.device("cuda:0"), torch.bfloat16, 8)[-1].value
            assert f"{peak / 1e9:.1f}" == shown[number]
