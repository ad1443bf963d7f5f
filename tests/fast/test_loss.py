"""The kernel for the loss of a large vocabulary agrees with the plain definitions.

The tests need a CUDA GPU. With TRITON_INTERPRET=1, they run on a CPU if Triton is installed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.evaluate import cross_entropy
from nanogpt.fast.training import compile_end
from nanogpt.models import GPT, GPTConfig, Model, ModelConfig, ModernConfig, PlainConfig, build

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]  # of the compiler
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 48, "block_size": 16}
CONFIGS = [GPTConfig(**SHAPE), GPTConfig(**SHAPE, bias=False), ModernConfig(**SHAPE)]
CONFIGS += [PlainConfig(**SHAPE)]


def test_a_changed_output_layer_does_not_use_the_kernel() -> None:
    class Own(GPT):
        def unembed(self, x: Tensor) -> Tensor:
            return super().unembed(2 * x)

    from nanogpt.fast.loss import make_end  # needs Triton

    config = GPTConfig(**SHAPE, vocab_size=5000)
    assert make_end(GPT(config), torch.bfloat16)
    assert make_end(Own(config), torch.bfloat16) is None


def kernel(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    from nanogpt.fast.loss import linear_cross_entropy

    return linear_cross_entropy(x, weight, targets, cap)


def plain(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    logits = x @ weight.T
    return torch.nn.functional.cross_entropy(
        cap * torch.tanh(logits / cap) if cap else logits, targets
    )


def differentiate(
    loss: Callable[..., Tensor], x: Tensor, weight: Tensor, targets: Tensor, cap: float
) -> list[Tensor]:
    """Return the loss, and the gradients of x and of the weight for a third of the loss."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    result = loss(x, weight, targets, cap)
    (result / 3).backward()
    assert x.grad is not None
    assert weight.grad is not None
    return [result.detach(), x.grad, weight.grad]


def draw(vocab_size: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, a weight and targets; the logits have the standard deviation `scale`."""
    torch.manual_seed(0)
    x = torch.randn(70, 32, device=DEVICE)
    weight = torch.randn(vocab_size, 32, device=DEVICE) * scale / 32**0.5
    targets = torch.randint(vocab_size, (70,), device=DEVICE)
    targets[:2] = torch.tensor([0, vocab_size - 1])
    return x, weight, targets


@pytest.mark.parametrize("cap", [0, 15])
@pytest.mark.parametrize("scale", [0.1, 3, 30])
@pytest.mark.parametrize("vocab_size", [65, 4096, 4097, 9001])
def test_the_loss_and_its_gradients_equal_the_plain_ones(
    vocab_size: int, scale: float, cap: float
) -> None:
    x, weight, targets = draw(vocab_size, scale)
    exact = differentiate(plain, x.double(), weight.double(), targets, cap)
    for found, expected in zip(differentiate(kernel, x, weight, targets, cap), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2e-5 * expected.norm()


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter has no bfloat16")
@pytest.mark.parametrize("cap", [0, 15])
def test_bfloat16_is_as_exact_as_in_the_plain_definition(cap: float) -> None:
    x, weight, targets = draw(9001, 3)
    exact = differentiate(plain, x.double(), weight.double(), targets, cap)

    def in_half(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = torch.nn.functional.linear(x, weight).float()
        return cross_entropy(cap * torch.tanh(logits / cap) if cap else logits, targets)

    errors = []
    for loss, inputs in ((in_half, x), (kernel, x.to(torch.bfloat16))):
        results = differentiate(loss, inputs, weight, targets, cap)
        assert results[2].dtype == torch.float32
        errors.append([(a - b).norm() for a, b in zip(results, exact, strict=True)])
    for of_plain, of_kernel in zip(*errors, strict=True):
        assert of_kernel < 1.3 * of_plain + 1e-6


def test_padded_columns_do_not_change_the_gradients_of_low_logits() -> None:
    """The logits are about -300, but those of padded columns are 0."""
    x, weight, targets = draw(4097, 1)
    x[:, 0], weight[:, 0] = 10, -30
    exact = differentiate(plain, x.double(), weight.double(), targets, 0)
    for found, expected in zip(differentiate(kernel, x, weight, targets, 0), exact, strict=True):
        assert (found - expected).norm() < 2e-4 * expected.norm()


@pytest.mark.parametrize(("value", "cap"), [("nan", 0), ("inf", 0), ("nan", 15)])
def test_a_loss_that_is_not_finite_is_noticed(value: str, cap: float) -> None:
    """A run stops at such a loss. (The cap makes an infinite logit finite.)"""
    x, weight, targets = draw(5000, 1)
    x[3, 5] = float(value)
    assert not kernel(x, weight, targets, cap).isfinite()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("vocab_size", [4095, 4200])
def test_the_end_of_a_model_computes_the_loss_of_the_plain_model(
    config: ModelConfig, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, targets = build_with_tokens(config, vocab_size)
    calls = count_calls(monkeypatch)
    found = []
    torch._dynamo.utils.counters.clear()
    for mean_loss in (
        lambda x, y: cross_entropy(model(x), y),
        compile_end(model, torch.float16),
        compile_end(model, torch.float32),
    ):
        loss = mean_loss(inputs, targets)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
        assert not {"embed", "unembed"} & vars(model).keys()
    # Without the kernel, the end is compiled, once for both; with it, the norm and the embedding.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (3 if calls else 1)
    # Small vocabularies need no kernel, and it does not work in float16.
    assert calls == [torch.float32] * (vocab_size == 4200)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_under_autocast_the_end_of_a_model_uses_bfloat16(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, targets = build_with_tokens(config, 4200)
    calls = count_calls(monkeypatch, replacement=lambda x, *_: x.sum())
    with torch.autocast(DEVICE.type, torch.bfloat16):
        compile_end(model, torch.bfloat16)(inputs, targets)
    assert calls == [torch.bfloat16]


def build_with_tokens(config: ModelConfig, vocab_size: int) -> tuple[Model, Tensor, Tensor]:
    """Return a model without zeros, and inputs (4, 16) and targets (4, 16)."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = build(replace(config, vocab_size=vocab_size)).to(DEVICE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    tokens = torch.randint(vocab_size, (4, 17), device=DEVICE)
    return model, tokens[:, :-1], tokens[:, 1:]


def count_calls(
    monkeypatch: pytest.MonkeyPatch, replacement: Callable[..., Tensor] = kernel
) -> list[torch.dtype]:
    """Return a list that gets the dtype of x in each call of linear_cross_entropy()."""
    from nanogpt.fast import loss

    calls: list[torch.dtype] = []
    function = loss.linear_cross_entropy if replacement is kernel else replacement

    def count(x: Tensor, *args: Any) -> Tensor:
        calls.append(x.dtype)
        return function(x, *args)

    monkeypatch.setattr(loss, "linear_cross_entropy", count)
    return calls
