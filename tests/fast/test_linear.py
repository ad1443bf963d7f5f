"""Linear layers with products of cuBLASLt equal the plain layers, except for rounding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.fast import cublas, linear
from nanogpt.fast.training import compile_with, make_loss, make_stepper
from nanogpt.models import GPTConfig, ModelConfig, ModernConfig
from nanogpt.models.gpt import FeedForward
from nanogpt.optim import OptimConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.start import prepare_run
from nanogpt.system.devices import autocast, use_deterministic

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICES = [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)]
LAYERS = [(nn.Linear, linear.linear), (FeedForward, linear.feed_forward)]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler


def make_layer(kind: type[nn.Module], bias: bool, K: int = 64) -> nn.Module:
    torch.manual_seed(0)
    config = GPTConfig(n_embd=K, n_head=1, bias=bias)
    layer = nn.Linear(K, 3 * K, bias) if kind is nn.Linear else FeedForward(config)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=2 / K**0.5)
    return layer


def differentiate(forward: Callable[..., Tensor], layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the outputs of a layer, and the gradients of its inputs and parameters."""
    x = x.detach().requires_grad_()
    y = forward(layer, x)
    torch.manual_seed(1)
    gradient = torch.randn(y.shape).bfloat16().to(y)  # the same in each precision
    inputs = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad(y, inputs, gradient)]


def call(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def compile_with_backend(
    kind: type[nn.Module], function: Any, backend: str
) -> Callable[..., Tensor]:
    """Return call(), compiled. The backend "eager" traces the code, and runs it as it is."""
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=False, backend=backend)
    return compile_with({kind: function}, compiled)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "function"), LAYERS)
def test_a_layer_and_its_gradients_are_as_exact_as_in_autocast(
    kind: type[nn.Module], function: Any, bias: bool, device: torch.device, backend: str
) -> None:
    """The reference has the same inputs and weights, but computes in float64."""
    layer = make_layer(kind, bias).to(device)
    x = torch.randn(2, 24, 64, device=device).bfloat16().float()
    for parameter in layer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    found = differentiate(compile_with_backend(kind, function, backend), layer, x)
    with autocast(device, torch.bfloat16):
        usual = differentiate(call, layer, x)
    layer.double()
    exact = differentiate(call, layer, x.double())
    dtypes = [torch.bfloat16, *[torch.float32] * (len(found) - 1)]
    assert [result.dtype for result in found] == dtypes
    for result, other, reference in zip(found, usual, exact, strict=True):
        error, usual_error = ((a - reference).norm() for a in (result, other))
        assert error <= 1.2 * usual_error + 1e-6 * reference.norm()
        assert error <= 0.01 * reference.norm()


@pytest.mark.parametrize(("kind", "function"), LAYERS)
def test_only_compiled_code_with_aligned_rows_is_replaced(
    kind: type[nn.Module], function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.fast.linear._Linear.apply", pytest.fail)
    monkeypatch.setattr("nanogpt.fast.linear._FeedForward.apply", pytest.fail)
    layer, x = make_layer(kind, True), torch.randn(2, 24, 64)
    assert torch.equal(function(layer, x), layer(x))
    layer, x = make_layer(kind, True, 60), torch.randn(2, 24, 60)
    assert torch.equal(compile_with_backend(kind, function, "eager")(layer, x), layer(x))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Dropout(0)),
        (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.Dropout(0)),
        (nn.Linear(64, 256), nn.GELU("tanh"), nn.Linear(256, 64), nn.LayerNorm(64)),
        (nn.Linear(64, 256), nn.GELU("tanh"), nn.Linear(256, 60), nn.Dropout(0)),
        (nn.Linear(64, 256), nn.GELU("tanh"), nn.Linear(256, 64)),
    ],
)
def test_an_altered_feed_forward_network_is_not_replaced(
    layers: tuple[nn.Module, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers change the models, and must not train another model than the one they wrote."""
    monkeypatch.setattr("nanogpt.fast.linear._FeedForward.apply", pytest.fail)
    layer, x = make_layer(FeedForward, True), torch.randn(2, 24, 64)
    layer._modules.clear()
    for number, part in enumerate(layers):
        layer.add_module(str(number), part)
    found = compile_with_backend(FeedForward, linear.feed_forward, "eager")(layer, x)
    assert torch.equal(found, nn.Sequential(*layers)(x))


def test_a_network_with_its_own_forward_is_not_replaced(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model=GPTConfig(n_layer=1, n_head=1, n_embd=64, block_size=16))
    config = replace(config, data=str(text_file), out=tmp_path / "run", val_fraction=0.5)
    run = prepare_run(replace(config, device="cpu", precision="float32"))
    run.lock.release()
    found: list[Any] = []

    def record(*arguments: Any, shares_code: bool) -> None:
        found.append(arguments[4](lambda: FeedForward.forward)())

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return x

    monkeypatch.setattr("nanogpt.fast.training.compile_loss", record)
    monkeypatch.setattr("nanogpt.fast.training.compile_end", lambda *_: None)
    monkeypatch.setattr("nanogpt.fast.cublas.load", lambda: True)
    monkeypatch.setattr(FeedForward, "forward", forward)
    make_loss(replace(run, device=CUDA, precision=torch.bfloat16), lambda _: None)
    assert found == [forward]


def test_dropout_follows_a_feed_forward_network() -> None:
    layer, x = make_layer(FeedForward, True), torch.randn(2, 24, 64)
    dropout = layer.get_submodule("3")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.5
    torch.manual_seed(3)
    found = compile_with_backend(FeedForward, linear.feed_forward, "eager")(layer, x)
    torch.manual_seed(3)
    expected = layer(x)
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() <= 0.01 * expected.norm()
    assert 0.4 < (found == 0).float().mean() < 0.6


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("exists", [True, False])
def test_only_a_run_in_bfloat16_with_the_library_uses_it(
    precision: str, exists: bool, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test needs no GPU."""
    config = RunConfig(model=GPTConfig(n_layer=1, n_head=1, n_embd=64, block_size=16))
    config = replace(config, data=str(text_file), out=tmp_path / "run", val_fraction=0.5)
    run = prepare_run(replace(config, device="cpu", precision="float32"))
    run.lock.release()
    run = replace(run, device=CUDA, precision=getattr(torch, precision))
    found: list[Any] = []

    def fail(*arguments: Any, shares_code: bool) -> None:
        found.extend(arguments[4](lambda: (nn.Linear.forward, FeedForward.forward))())

    def make_end(model: nn.Module, precision: torch.dtype, product: Any) -> None:
        found.append(product)

    monkeypatch.setattr("nanogpt.fast.training.compile_loss", fail)
    monkeypatch.setattr("nanogpt.fast.training.compile_end", make_end)
    monkeypatch.setattr("nanogpt.fast.cublas.load", lambda: exists)
    make_loss(run, lambda _: None)
    used = exists and precision == "bfloat16"
    assert (found[0] is linear.multiply_by_transposed) == used
    assert (found[1] is linear.linear) == used
    assert (found[2] is linear.feed_forward) == used


# Tests on a GPU.


@pytest.mark.gpu
def test_a_product_that_the_library_cannot_compute_is_computed_by_torch() -> None:
    """The rows of z must be multiples of 16 bytes."""
    x, weight = torch.randn(32, 64, device=CUDA).bfloat16(), torch.randn(37, 64, device=CUDA)
    z, y = linear.linear_gelu(x, weight.bfloat16(), None)
    expected = x.double() @ weight.bfloat16().double().T
    assert (z - expected).norm() <= 4e-3 * expected.norm()
    expected = nn.functional.gelu(expected, approximate="tanh")
    assert (y - expected).norm() <= 4e-3 * expected.norm()


WIDE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 256, "block_size": 64}


@pytest.mark.gpu
@pytest.mark.parametrize(("parts", "recompute"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    "model",
    [
        GPTConfig(**WIDE),
        GPTConfig(**WIDE, bias=False),
        ModernConfig(**WIDE),
        ModernConfig(**WIDE, activation="swiglu"),
    ],
)
def test_a_run_has_the_losses_of_a_run_without_the_library(
    model: ModelConfig,
    parts: int,
    recompute: bool,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text_file.write_text(2 * "".join(map(chr, range(0x10000, 0x10000 + 6000))), "utf-8")
    config = RunConfig(
        model=model,
        optim=OptimConfig(lr=1e-3, warmup=0),
        train=TrainConfig(steps=40, batch_size=16, accumulation=parts, recompute=recompute),
        data=str(text_file),
        tokenizer="char",
        val_fraction=0.5,
        device="cuda",
        precision="bfloat16",
    )
    found, load = [], cublas.load
    for exists in (True, False):
        torch._dynamo.reset()
        cublas.products.clear()
        monkeypatch.setattr("nanogpt.fast.cublas.load", load if exists else lambda: None)
        run = prepare_run(replace(config, out=tmp_path / str(exists)))
        run.lock.release()
        found.append(make_stepper(run, pytest.fail).take(40, lambda: False)[:, 0])
        kinds = {key[2] for key, product in cublas.products.items() if product}
        expected = {"none"}
        if isinstance(model, GPTConfig):
            expected |= {"bias", "gelu bias"} if model.bias else {"gelu"}
            expected.add("gelu gradient")
        assert kinds == (expected if exists else set())
    assert found[0][-1] < 0.95 * found[0][0]
    torch.testing.assert_close(*found, rtol=2e-3, atol=0)


@pytest.mark.gpu
def test_deterministic_runs_measure_nothing_and_are_identical(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # use_deterministic() sets these variables; monkeypatch restores their old values.
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("nanogpt.fast.cublas.Product.choose", pytest.fail)
    config = RunConfig(model=GPTConfig(**WIDE), data=str(text_file), val_fraction=0.5)
    config = replace(config, device="cuda", precision="bfloat16", deterministic=True)
    found = []
    try:
        for name in "ab":
            torch._dynamo.reset()
            cublas.products.clear()
            run = prepare_run(replace(config, out=tmp_path / name))
            run.lock.release()
            found.append(make_stepper(run, pytest.fail).take(20, lambda: False)[:, 0])
            assert cublas.products
    finally:
        use_deterministic(False)
    assert torch.equal(*found)
