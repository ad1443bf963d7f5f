"""Linear layers in float8 agree with written-out formulas, and with the plain layers."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.data import inputs_and_targets
from nanogpt.errors import Stopped
from nanogpt.evaluate import cross_entropy
from nanogpt.fast import float8
from nanogpt.fast.training import compile_with, gelu, make_loss, make_stepper
from nanogpt.models import GPTConfig, ModelConfig, ModernConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs import memory
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.failures import explain_failures
from nanogpt.runs.run import Run
from nanogpt.runs.start import prepare_run
from nanogpt.step import LossFunction, Stepper
from nanogpt.system.devices import autocast
from nanogpt.system.gpu import CannotCompile, compile_loss, replace_forward

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
MODELS: list[ModelConfig] = [
    GPTConfig(**SHAPE),
    GPTConfig(**SHAPE, bias=False),
    ModernConfig(**SHAPE),
    ModernConfig(**SHAPE, activation="swiglu"),
]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler


@pytest.fixture
def small_layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers of every size are in float8."""
    monkeypatch.setattr("nanogpt.runs.config.SMALLEST_FLOAT8", 0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions for compiled code run without the compiler."""
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)


def draw(bias: bool, tokens: int = 48) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return a layer, inputs (2, tokens / 2, 32), and the gradient of a mean over the tokens."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 64, bias)
    x = torch.randn(2, tokens // 2, 32, requires_grad=True)
    return layer, x, torch.randn(2, tokens // 2, 64) / tokens


def differentiate(forward: Any, layer: nn.Linear, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the outputs of a layer, and the gradients of its inputs and parameters."""
    y = forward(layer, x)
    inputs = [x, *layer.parameters()]
    gradients = torch.autograd.grad(y, inputs, gradient.to(y.dtype))
    assert [g.dtype for g in gradients] == [p.dtype for p in inputs]
    return [y.detach().float(), *gradients]


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_multiplies_rounded_values(
    bias: bool, small_layers: None, compiling: None
) -> None:
    """The reference rounds the same values, and multiplies them in float64."""
    layer, x, gradient = draw(bias)
    found = differentiate(float8.make_linear(48), layer, x, gradient)

    scale = layer.weight.abs().max().double() / 448
    x8 = (x.detach() / 4).to(torch.float8_e4m3fn).double().flatten(0, 1) * 4
    weight8 = (layer.weight.detach() / scale.float()).to(torch.float8_e4m3fn).double() * scale
    factor = 48 * 1024
    gradient = gradient.bfloat16().flatten(0, 1)
    gradient8 = (gradient.float() * factor).to(torch.float8_e5m2).double() / factor
    y = x8 @ weight8.T + (layer.bias.double() if bias else 0)
    expected = [y, gradient8 @ weight8, gradient8.T @ x8, gradient.double().sum(0)]
    for result, reference in zip(found, expected[: 3 + bias], strict=True):
        reference = reference.view(result.shape).float()
        torch.testing.assert_close(result, reference, rtol=0.02, atol=1e-3 * reference.std().item())


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_in_float8_is_close_to_the_plain_layer(
    bias: bool, small_layers: None, compiling: None
) -> None:
    """E4M3 rounds by up to 1/16, and E5M2 by up to 1/8; a sum of many terms is more exact."""
    layer, x, gradient = draw(bias)
    found = differentiate(float8.make_linear(48), layer, x, gradient)
    expected = differentiate(nn.Linear.forward, layer, x, gradient)
    for result, reference in zip(found, expected, strict=True):
        assert not torch.equal(result, reference)
        assert (result - reference).norm() <= 0.08 * reference.norm()


def test_small_layers_and_code_that_is_not_compiled_are_not_in_float8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x, gradient = draw(True)
    expected = differentiate(nn.Linear.forward, layer, x, gradient)
    for compiling, size in ((True, 400), (False, 0)):
        monkeypatch.setattr("nanogpt.runs.config.SMALLEST_FLOAT8", size)
        monkeypatch.setattr("torch.compiler.is_compiling", partial(bool, compiling))
        found = differentiate(float8.make_linear(48), layer, x, gradient)
        for result, reference in zip(found, expected, strict=True):
            assert torch.equal(result, reference)


def test_large_inputs_and_gradients_become_the_largest_number(
    small_layers: None, compiling: None
) -> None:
    layer, x, gradient = draw(False)
    linear = float8.make_linear(48)
    limits = differentiate(linear, layer, x.detach().sign().mul(1792).requires_grad_(), gradient)
    larger = differentiate(linear, layer, x.detach().sign().mul(1e30).requires_grad_(), gradient)
    for a, b in zip(limits, larger, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    limits = differentiate(linear, layer, x, gradient.sign() * 57344 / (48 * 1024))
    larger = differentiate(linear, layer, x, gradient.sign() * 1e30)
    for a, b in zip(limits, larger, strict=True):
        assert torch.equal(a, b)


def test_nan_stays_nan(small_layers: None, compiling: None) -> None:
    """So a run with a loss that is not finite still ends with an error."""
    layer, x, gradient = draw(False)
    for invalid in (x.detach().clone(), gradient.clone()):
        invalid[0, 0, 0] = torch.nan
        is_input = invalid.shape == x.shape
        inputs = invalid.requires_grad_() if is_input else x
        found = differentiate(
            float8.make_linear(48), layer, inputs, gradient if is_input else invalid
        )
        assert found[2].isnan().any()


@pytest.mark.parametrize("tokens", [16, 1 << 14])
def test_small_gradients_do_not_become_0(tokens: int, small_layers: None, compiling: None) -> None:
    """The gradient of a mean over many tokens is small, but has the same relative errors."""
    layer, x, gradient = draw(False, tokens)
    for size in (1e-5, 1.0, 10.0):
        found = differentiate(float8.make_linear(tokens), layer, x, size * gradient)
        expected = differentiate(nn.Linear.forward, layer, x, size * gradient)
        for result, reference in zip(found[1:], expected[1:], strict=True):
            assert (result - reference).norm() <= 0.08 * reference.norm()


def test_a_weight_of_zeros_has_finite_products(small_layers: None, compiling: None) -> None:
    layer, x, gradient = draw(True)
    nn.init.zeros_(layer.weight)
    found = differentiate(float8.make_linear(48), layer, x, gradient)
    expected = differentiate(nn.Linear.forward, layer, x, gradient)
    for result, reference in zip(found, expected, strict=True):
        assert (result - reference).norm() <= 0.08 * reference.norm()


@pytest.mark.slow
def test_the_product_of_the_output_layer_is_close_to_the_plain_product() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, weight = torch.randn(48, 32).bfloat16(), 0.02 * torch.randn(64, 32).bfloat16()
    found, expected = float8.make_multiply()(x, weight).float(), (x @ weight.T).float()
    assert found.shape == expected.shape
    assert 0 < (found - expected).norm() <= 0.06 * expected.norm()


def compile_blocks(run: Run, in_float8: bool = True) -> LossFunction:
    """Return the loss of a run with compiled blocks, as make_loss() does on a GPU."""
    blocks = [*run.model.get_submodule("blocks").children()]
    tokens = run.config.train.batch_size * run.model.config.block_size
    faster: dict[type[nn.Module], Any] = {nn.GELU: gelu}
    if in_float8:
        faster[nn.Linear] = float8.make_linear(tokens)
    compiled = compile_with(faster, torch.compile(type(blocks[0]).forward, dynamic=False))

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(CPU, torch.bfloat16):
            return cross_entropy(run.model(inputs), targets)

    return replace_forward(loss, blocks, compiled)


def make_run(model: ModelConfig, text_file: Path, out: Path) -> Run:
    optim = OptimConfig(lr=2e-3, warmup=0)
    train = TrainConfig(steps=100, batch_size=4)  # products in float8 are slow on a CPU
    config = RunConfig(model=model, optim=optim, train=train, data=str(text_file), val_fraction=0.5)
    run = prepare_run(replace(config, device="cpu", precision="bfloat16", out=out))
    run.lock.release()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_training_in_float8_has_almost_the_same_losses(
    model: ModelConfig, text_file: Path, tmp_path: Path, small_layers: None
) -> None:
    first, second = (make_run(model, text_file, tmp_path / name) for name in "ab")
    expected = make_stepper(first, pytest.fail).take(60, lambda: False)[:, 0]
    found = Stepper(second, compile_blocks(second)).take(60, lambda: False)[:, 0]
    assert expected[-1] < 0.9 * expected[0]
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)


@pytest.mark.slow
def test_blocks_in_float8_do_not_use_code_that_was_compiled_in_bfloat16(
    text_file: Path, tmp_path: Path, small_layers: None
) -> None:
    run, losses = make_run(MODELS[0], text_file, tmp_path / "run"), []
    batch = inputs_and_targets(torch.zeros(4, 17, dtype=torch.long))
    blocks = [*run.model.get_submodule("blocks").children()]

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(CPU, torch.bfloat16):
            return cross_entropy(run.model(inputs), targets)

    for in_float8 in (False, True, False, True):
        faster: dict[type[nn.Module], Any] = (
            {nn.Linear: float8.make_linear(64)} if in_float8 else {}
        )
        wrap = partial(compile_with, faster)
        compiled = compile_loss(loss, blocks, batch, pytest.fail, wrap, shares_code=not in_float8)
        assert compiled is not None
        losses.append(compiled(*batch).item())
    assert losses[0] == losses[2] != losses[1] == losses[3]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_compiled_blocks_in_float8_store_fewer_activations_by_the_computed_number_of_bytes(
    model: ModelConfig, text_file: Path, tmp_path: Path, small_layers: None
) -> None:
    stored, computed = [], []
    for in_float8 in (False, True):
        torch._dynamo.reset()
        run = make_run(model, text_file, tmp_path / str(in_float8))
        weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
        saved: dict[int, int] = {}

        def pack(
            tensor: Tensor, saved: dict[int, int] = saved, weights: set[int] = weights
        ) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        loss, batch = compile_blocks(run, in_float8), torch.zeros(4, 17, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            assert loss(*inputs_and_targets(batch)).requires_grad
        stored.append(sum(saved.values()))
        config = as_float8(run.config) if in_float8 else run.config
        lines = memory.count_activations(config, CUDA, torch.bfloat16)
        parts = "activations of the blocks", "weights in half precision"
        computed.append(sum(line.value for line in lines if line.part in parts))
    assert stored[0] - stored[1] == pytest.approx(computed[0] - computed[1], rel=0.05)


def as_float8(config: RunConfig) -> RunConfig:
    """Return the settings with the precision float8, also for a small model."""
    object.__setattr__(config, "precision", "float8")
    return config


def test_a_model_in_float8_that_cannot_be_compiled_has_advice(
    text_file: Path, tmp_path: Path
) -> None:
    run = make_run(MODELS[0], text_file, tmp_path / "run")
    as_float8(run.config)
    says = "to train without float8, which is slower: nanogpt train --resume .* --precision auto$"
    assert run.describe()["precision"] == "float8"
    with pytest.raises(Stopped, match=says), explain_failures(run):
        raise CannotCompile("no C compiler")


@pytest.mark.parametrize("parts", [1, 2])
def test_only_a_run_in_float8_replaces_linear_layers(
    parts: int, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test needs no GPU."""
    run = make_run(MODELS[0], text_file, tmp_path / "run")
    run = replace(run, device=CUDA)
    object.__setattr__(run.config.train, "accumulation", parts)
    found: list[Any] = []

    def fail(*arguments: Any, shares_code: bool) -> None:
        found.append((arguments[4](lambda: nn.Linear.forward)(), shares_code))
        arguments[3]("no C compiler")

    monkeypatch.setattr("nanogpt.fast.training.compile_loss", fail)
    monkeypatch.setattr("nanogpt.fast.float8.make_linear", lambda tokens: tokens)
    make_loss(run, lambda _: None)
    as_float8(run.config)
    with pytest.raises(CannotCompile, match="no C compiler"):
        make_loss(run, pytest.fail)
    assert found == [(nn.Linear.forward, True), (4 * 16, False)]


# Tests on a GPU.

WIDE: dict[str, Any] = {"n_layer": 2, "n_head": 8, "n_embd": 1024, "block_size": 64}


@pytest.mark.gpu
@pytest.mark.parametrize("model", [GPTConfig(**WIDE), ModernConfig(**WIDE)])
@pytest.mark.parametrize(("parts", "recompute"), [(1, False), (2, True)])
def test_a_run_in_float8_on_a_gpu_has_almost_the_same_losses(
    model: ModelConfig, parts: int, recompute: bool, text_file: Path, tmp_path: Path
) -> None:
    text_file.write_text(2 * "".join(map(chr, range(0x10000, 0x10000 + 6000))), "utf-8")
    train = TrainConfig(steps=40, batch_size=16, accumulation=parts, recompute=recompute)
    config = RunConfig(
        model=model,
        optim=OptimConfig(lr=1e-3, warmup=0),
        train=train,
        data=str(text_file),
        tokenizer="char",
        val_fraction=0.5,
        device="cuda",
    )
    found = []
    for precision in ("bfloat16", "float8"):
        torch._dynamo.reset()
        run = prepare_run(replace(config, precision=precision, out=tmp_path / precision))
        run.lock.release()
        assert run.precision_name == precision
        found.append(make_stepper(run, pytest.fail).take(40, lambda: False)[:, 0])
    assert found[0][-1] < 0.95 * found[0][0]
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_blocks_are_in_float8_after_a_run_in_bfloat16_on_a_gpu(
    text_file: Path, tmp_path: Path
) -> None:
    """The vocabulary is small, so the logits are in bfloat16."""
    config = RunConfig(model=GPTConfig(**WIDE), data=str(text_file), val_fraction=0.5)
    config = replace(config, device="cuda", train=TrainConfig(steps=3, batch_size=16))
    found = []
    for precision in ("bfloat16", "float8"):  # without a reset of the compiler
        run = prepare_run(replace(config, precision=precision, out=tmp_path / precision))
        run.lock.release()
        found.append(make_stepper(run, pytest.fail).take(3, lambda: False)[:, 0])
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_large_values_become_the_largest_number_in_compiled_code_on_a_gpu() -> None:
    torch._dynamo.reset()
    x = torch.tensor([1e30, -1e30, 500, 448, 1, float("nan")], device=CUDA)
    for dtype in (float8.E4M3, float8.E5M2):
        found = torch.compile(float8.to_float8, dynamic=False)(x, dtype).float().cpu()
        expected = float8.to_float8(x.cpu(), dtype).float()
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
def test_a_compiled_layer_on_a_gpu_equals_the_layer_on_a_cpu(
    bias: bool, small_layers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, gradient = draw(bias)

    def forward(module: nn.Linear, inputs: Tensor) -> Any:
        return module(inputs)

    faster: dict[type[nn.Module], Any] = {nn.Linear: float8.make_linear(48)}
    compiled = compile_with(faster, torch.compile(forward, dynamic=False))
    found = differentiate(
        compiled, layer.to(CUDA), x.detach().to(CUDA).requires_grad_(), gradient.to(CUDA)
    )
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    layer = layer.to(CPU)
    expected = differentiate(float8.make_linear(48), layer, x, gradient)
    for result, reference in zip(found, expected, strict=True):
        tolerance = 0.01 * reference.std().item()
        torch.testing.assert_close(result.cpu(), reference, rtol=0.02, atol=tolerance)
