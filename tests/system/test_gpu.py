"""Compilation, CUDA graphs and snapshots do not change results."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nanogpt.system.gpu import CudaGraph, compile_loss, take_snapshot

# Compilation.


class ModelWithDropout(torch.nn.Module):
    """A model with dropout; its three blocks have the same structure."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(3, 4)
        layers = [torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)]
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(*layers) for _ in range(3))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x)
        for block in self.blocks:
            h = block(h)
        loss: torch.Tensor = (h * self.embedding(y)).sum()
        return loss


@pytest.mark.parametrize("works", [True, False])
def test_one_block_is_compiled_for_all_blocks_or_one_line_gives_the_reason(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    calls, lines, compilations = list[object](), list[str](), list[object]()

    def compile(
        function: Callable[..., torch.Tensor], dynamic: bool | None = None
    ) -> Callable[..., torch.Tensor]:
        compilations.append(function)
        assert dynamic is not True

        def call(*args: torch.Tensor) -> torch.Tensor:
            if not calls:
                warnings.warn("for developers of the compiler", stacklevel=1)
            calls.append(args[0])
            if not works:
                raise RuntimeError("Failed to find C compiler.\n  Please specify via CC")
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    model, before = ModelWithDropout(), torch.get_rng_state()
    example = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])
    function = compile_loss(model.loss, [*model.blocks], example, lines.append)
    assert torch.equal(torch.get_rng_state(), before)
    expected = model.loss(*example)
    torch.set_rng_state(before)
    if function:
        assert torch.equal(function(*example), expected)
        assert calls == 2 * [*model.blocks]
    assert (function is not None) == works
    assert len(compilations) == 1
    assert not any("forward" in vars(block) for block in model.blocks)
    reason = "Failed to find C compiler. Please specify via CC"
    assert lines == ([] if works else [reason])


@pytest.mark.gpu
def test_a_missing_c_compiler_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import torch; from nanogpt.system.gpu import *; from nanogpt.models import *;"
        "model = build(GPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=8)).cuda();"
        "example = torch.zeros(1, 8, dtype=torch.long, device='cuda');"
        "loss = compile_loss(lambda x, y: model(x).sum(), [*model.blocks], (example,) * 2, print);"
        "print(loss)"
    )
    environment = {
        **os.environ,
        "CC": "/nowhere/cc",
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[^\n]+\nNone\n", done.stdout)


# CUDA graphs.


@pytest.mark.gpu
def test_every_replay_does_the_captured_work() -> None:
    """With the same seed, graph.run(work) draws the same random numbers as work(), call by call."""
    cuda, result, results = torch.device("cuda"), torch.zeros(4, device="cuda"), []

    def work() -> None:
        result.copy_(torch.rand(4, device=cuda))

    graph = CudaGraph(cuda)
    for function in (work, lambda: graph.run(work)):
        torch.manual_seed(5)
        for _ in range(7):
            function()
            results.append(result.clone())
    assert graph.graph
    assert torch.equal(torch.stack(results[:7]), torch.stack(results[7:]))
    assert len({tuple(result.tolist()) for result in results[:7]}) == 7


# Snapshots.


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_snapshot_has_the_values_at_its_time(device: str) -> None:
    """Another thread calls snapshot() after the tensors change; each copy has its own memory."""
    whole = torch.randn(512, 512, device=device)
    tensors = {"whole": whole, "part": whole[3:7].mT, "on the cpu": torch.randn(5)}
    expected = {name: t.cpu().clone() for name, t in tensors.items()}
    if device == "cuda":  # keep the device busy, so that the copies start later
        torch.cuda._sleep(10**9)
    snapshot = take_snapshot(tensors)
    for t in tensors.values():
        t.zero_()
    with ThreadPoolExecutor(1) as pool:
        copies = pool.submit(snapshot).result()
    for name, t in copies.items():
        assert torch.equal(t, expected[name])
        assert t.is_contiguous()
    assert len({t.untyped_storage().data_ptr() for t in copies.values()}) == 3
    assert snapshot() is copies


@pytest.mark.gpu
def test_a_snapshot_copied_to_the_host_frees_device_memory() -> None:
    whole = torch.ones(2**20, device="cuda")
    before = torch.cuda.memory_allocated()
    snapshot = take_snapshot({"whole": whole})
    assert torch.cuda.memory_allocated() > before
    snapshot()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_a_snapshot_without_device_memory_goes_to_the_host_at_once() -> None:
    large = torch.ones(2**30, dtype=torch.uint8, device="cuda")
    torch.cuda.empty_cache()
    _, whole = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / whole)
    before = torch.cuda.memory_allocated()
    try:
        snapshot = take_snapshot({"large": large})
        assert torch.cuda.memory_allocated() == before
        large.zero_()
        assert snapshot()["large"].sum() == 2**30
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
