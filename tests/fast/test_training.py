"""Fast training steps give the same results as plain steps."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.data import inputs_and_targets
from nanogpt.errors import Stopped
from nanogpt.evaluate import cross_entropy
from nanogpt.fast.training import (
    CapturedStepper,
    compile_end,
    compile_with,
    gelu,
    make_loss,
    make_stepper,
)
from nanogpt.models import ModelConfig, ModernConfig, PlainConfig, build
from nanogpt.models.gpt import Block
from nanogpt.runs.config import RunConfig
from nanogpt.runs.failures import explain_failures
from nanogpt.runs.run import Run
from nanogpt.runs.start import prepare_run
from nanogpt.step import LossFunction
from nanogpt.system.devices import Precision, use_deterministic
from tests.small import SMALL
from tests.test_step import build_stepper, never
from tests.test_step import muon_config as muon_config  # a fixture

SWIGLU = ModernConfig(
    n_layer=3,
    n_head=2,
    n_embd=32,
    block_size=16,
    dropout=0.1,
    skips=True,
    activation="swiglu",
)
PLAIN = PlainConfig(n_layer=2, n_head=2, n_embd=16, block_size=16)


@pytest.mark.parametrize("counts", [(10,), (1, 4, 5)])
def test_planned_steps_equal_plain_steps(muon_config: RunConfig, counts: tuple[int, ...]) -> None:
    """On a CPU, CapturedStepper uses no CUDA graph. The results are equal bit for bit."""
    (one, plain), (other, planned) = (
        build_stepper(muon_config),
        build_stepper(muon_config, CapturedStepper),
    )
    torch.manual_seed(3)
    expected = plain.take(10, never)
    torch.manual_seed(3)
    results = torch.cat([planned.take(n, never) for n in counts])
    assert torch.equal(results, expected)
    first, second = one.state.tensors(), other.state.tensors()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_the_compiled_loss_is_used_if_there_is_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Without a compiled loss, the plain loss is used."""

    def fast(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(7.0)

    def compile_loss(*arguments: Any, shares_code: bool) -> LossFunction | None:
        assert shares_code
        wrapped = arguments[4](lambda: torch.nn.GELU.forward)
        assert wrapped() is gelu
        return fast if works else None

    monkeypatch.setattr("nanogpt.fast.training.compile_loss", compile_loss)
    run, _ = build_stepper(config)
    run.model.eval()  # no dropout
    loss = make_loss(replace(run, device=torch.device("cuda")), pytest.fail)
    inputs, targets = inputs_and_targets(run.data.splits["train"].blocks(torch.tensor([0]), 16))
    if works:
        assert loss(inputs, targets) == 7
    else:
        loss = make_loss(run, pytest.fail)
        torch.testing.assert_close(loss(inputs, targets), cross_entropy(run.model(inputs), targets))


def test_a_divided_model_that_cannot_be_compiled_does_not_train(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed pass has left some weights whole, so the plain loss cannot be used."""

    def fail(*arguments: Any, **_: bool) -> None:
        arguments[3]("no C compiler")

    monkeypatch.setattr("nanogpt.fast.training.compile_loss", fail)
    run, _ = build_stepper(config)
    lines: list[str] = []
    gpu = replace(run, device=torch.device("cuda"))
    make_loss(gpu, lines.append)
    assert lines == [
        "The model cannot be compiled on this machine and trains slower (no C compiler)."
    ]
    monkeypatch.setattr("nanogpt.fast.training.is_sharded", lambda _: True)
    message = r"^the model cannot be compiled .* \(no C compiler\); .*--train.no-compile$"
    with pytest.raises(Stopped, match=message), explain_failures(run):
        make_loss(gpu, pytest.fail)


@pytest.mark.parametrize("model", [SMALL, SWIGLU], ids=["gpt", "modern"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputed_activations_give_equal_steps(
    config: RunConfig, model: ModelConfig, precision: Precision
) -> None:
    """The results are equal bit for bit, even with dropout; each block runs twice in a step."""
    steps, calls = [], []
    for recompute in (False, True):
        settings = replace(config.train, recompute=recompute, accumulation=2)
        _, stepper = build_stepper(
            replace(config, precision=precision, model=model, train=settings)
        )
        block = stepper.run.model.get_submodule("blocks.0.feed_forward")
        calls.append(0)
        block.register_forward_pre_hook(lambda *_: calls.append(calls.pop() + 1))
        torch.manual_seed(3)
        steps.append(stepper.take(5, never))
    assert torch.equal(*steps)
    assert calls == [10, 20]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's warnings are for its developers
@pytest.mark.parametrize("config", [SMALL, PLAIN, SWIGLU], ids=["gpt", "plain", "modern"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_compiled_end_of_a_model_computes_the_same_loss(
    config: ModelConfig, precision: torch.dtype
) -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = build(config).eval()  # no dropout
    for p in model.parameters():  # no zeros at the start
        torch.nn.init.normal_(p, std=0.3)
    tokens = torch.randint(config.vocab_size, (4, 17))
    found = []
    for mean_loss in (lambda x, y: cross_entropy(model(x), y), compile_end(model, precision)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = mean_loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    tolerance = 1e-5 if precision == torch.float32 else 0.02
    for expected, result in zip(*found, strict=True):
        assert (result - expected).norm() <= tolerance * expected.norm()
    assert not {"embed", "unembed"} & vars(model).keys()


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_fast_gelu_equals_gelu(
    approximate: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch.nn.GELU(approximate)
    x = torch.cat([torch.linspace(-12, 12, 1000), torch.tensor([-1e4, -50, -0.0, 1e-30, 50, 1e4])])
    x = x.to(dtype).requires_grad_()
    expected = module(x)
    assert torch.equal(gelu(module, x), expected)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    found = gelu(module, x)
    accuracy = 1e-13 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=accuracy, atol=accuracy)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=accuracy, atol=accuracy)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's warnings are for its developers
def test_compiled_blocks_share_one_function_with_fast_gelu() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    torch.manual_seed(3)
    blocks = [Block(SMALL) for _ in range(3)]
    x = torch.randn(2, 8, SMALL.n_embd, requires_grad=True)
    counter = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(Block.forward, backend=counter, dynamic=False)
    compiled = compile_with({torch.nn.GELU: gelu}, forward)
    found, expected = (
        forward(blocks[2].eval(), forward(blocks[1].eval(), forward(blocks[0].eval(), x)))
        for forward in (compiled, Block.forward)
    )
    torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1
    code = counter.graphs[0].code
    assert "sigmoid" in code
    assert "gelu" not in code
    assert torch.nn.GELU.forward is not gelu


# Tests on a GPU.


def take_steps_on_gpu(config: RunConfig, captures: bool, compile: bool) -> tuple[Run, Tensor]:
    """Take 50 steps; return the run and a tensor with the loss and gradient norms of each step."""
    settings = replace(config.train, steps=50, cuda_graph=captures, compile=compile)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run = prepare_run(replace(config, device="cuda", train=settings))
        run.lock.release()
        steps = make_stepper(run, pytest.fail)
        assert all(p.grad is None for p in run.model.parameters())
        torch.manual_seed(3)
        found = torch.cat([steps.take(n, never) for n in (1, 2, 2, 45)])
    assert isinstance(steps, CapturedStepper) == captures
    if isinstance(steps, CapturedStepper):
        assert steps.graph is not None
        assert steps.graph.graph is not None
    # torch compiles one graph that all blocks share, and a second graph for the cross-entropy.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * compile
    return run, found


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_captured_steps_equal_plain_steps(
    muon_config: RunConfig, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With deterministic kernels, the results are equal bit for bit, even with dropout."""
    # use_deterministic() sets these variables; monkeypatch restores their old values.
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    muon_config = replace(muon_config, deterministic=True)
    try:
        (eager, expected), (captured, found) = (
            take_steps_on_gpu(muon_config, captures, compile) for captures in (False, True)
        )
    finally:
        use_deterministic(False)
    assert torch.equal(found, expected)
    first, second = eager.state.tensors(), captured.state.tensors()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for p, q in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.gpu
@pytest.mark.parametrize(("parts", "recompute"), [(1, False), (2, False), (2, True)])
def test_compiled_and_captured_steps_have_about_the_same_losses(
    muon_config: RunConfig, parts: int, recompute: bool
) -> None:
    """Compiled code adds numbers in a different order, so the losses differ slightly."""
    assert isinstance(muon_config.model, ModernConfig)
    muon_config = replace(
        muon_config,
        model=replace(muon_config.model, dropout=0.0),
        train=replace(muon_config.train, accumulation=parts, recompute=recompute),
    )
    (_, expected), (_, found) = (
        take_steps_on_gpu(muon_config, False, False),
        take_steps_on_gpu(muon_config, True, True),
    )
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-3, atol=0)


@pytest.mark.gpu
def test_a_step_that_waits_for_the_host_is_not_captured(text_file: Path, small: list[str]) -> None:
    """The error is one line; it contains a command that resumes the run without a CUDA graph."""
    flags = ["train", "tiny", "--data", str(text_file), "--out", "mine", *small]
    flags += ["--device", "cuda", "--train.no-compile"]
    code = """
import sys
from nanogpt.cli.main import main
from nanogpt.models import GPT
original = GPT.forward
def forward(self, tokens, *cache):
    tokens.sum().item()
    return original(self, tokens, *cache)
GPT.forward = forward
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    says = re.fullmatch(
        r"nanogpt: a step cannot be captured as a CUDA graph \(.+\); "
        r"to run without a graph, which is slower: "
        r"nanogpt (train --resume mine --train.no-cuda-graph)\n",
        done.stderr,
    )
    assert says, done.stderr
    assert done.returncode == 1
    done = subprocess.run([*command, *says[1].split()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    written = ["sample", "mine", "--prompt", "a", "--device", "cuda"]
    done = subprocess.run([*command, *written], capture_output=True, text=True)
    assert re.fullmatch(
        r"nanogpt: generation cannot be captured as a CUDA graph \(.+\); "
        r"to run without a graph, which is slower: "
        r"nanogpt sample --no-cuda-graph\n",
        done.stderr,
    ), done.stderr
    done = subprocess.run([*command, *written, "--no-cuda-graph"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
