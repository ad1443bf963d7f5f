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
from nanogpt.models import GPTConfig, ModelConfig, ModernConfig, PlainConfig, build

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]  # of the compiler
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 48, "block_size": 16}
CONFIGS = [GPTConfig(**SHAPE), GPTConfig(**SHAPE, bias=False), ModernConfig(**SHAPE)]
CONFIGS += [PlainConfig(**SHAPE)]


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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_in_the_plain_definition(
    dtype: torch.dtype, cap: float
) -> None:
    x, weight, targets = draw(9001, 3)
    exact = differentiate(plain, x.double(), weight.double(), targets, cap)

    def in_half(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        with torch.autocast("cuda", dtype):
            logits = torch.nn.functional.linear(x, weight).float()
        return cross_entropy(cap * torch.tanh(logits / cap) if cap else logits, targets)

    errors = []
    for loss, inputs in ((in_half, x), (kernel, x.to(dtype))):
        results = differentiate(loss, inputs, weight, targets, cap)
        assert results[2].dtype == torch.float32
        errors.append([(a - b).norm() for a, b in zip(results, exact, strict=True)])
    for of_plain, of_kernel in zip(*errors, strict=True):
        assert of_kernel < 1.2 * of_plain + 1e-6


def test_a_sum_over_many_tokens_is_not_too_large_for_float16() -> None:
    x, weight, _ = draw(4096, 0.01)
    x = (200 + x).repeat(5, 1)
    targets = torch.full((len(x),), 7, device=DEVICE)
    exact = differentiate(plain, x.double(), weight.double(), targets, 0)
    assert exact[2].abs().max() * 3 * len(x) > torch.finfo(torch.float16).max
    found = differentiate(kernel, x.half(), weight, targets, 0)
    assert (found[2] - exact[2]).norm() < 0.01 * exact[2].norm()


@pytest.mark.parametrize(("value", "cap"), [("nan", 0), ("inf", 0), ("nan", 15)])
def test_a_loss_that_is_not_finite_is_noticed(value: str, cap: float) -> None:
    """A run stops at such a loss. (The cap makes an infinite logit finite.)"""
    x, weight, targets = draw(5000, 1)
    x[3, 5] = float(value)
    assert not kernel(x, weight, targets, cap).isfinite()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("vocab_size", [4095, 4200])
def test_the_end_of_a_model_computes_the_loss_of_the_plain_model(
    config: ModelConfig, vocab_size: int
) -> None:
    from nanogpt.fast.loss import make_end

    torch._dynamo.reset()
    torch.manual_seed(3)
    model = build(replace(config, vocab_size=vocab_size)).to(DEVICE)
    for p in model.parameters():  # no zeros at the start
        torch.nn.init.normal_(p, std=0.3)
    assert (make_end(model) is not None) == (vocab_size == 4200)  # small ones need no kernel
    tokens = torch.randint(vocab_size, (4, 17), device=DEVICE)
    found = []
    for mean_loss in (lambda x, y: cross_entropy(model(x), y), compile_end(model)):
        loss = mean_loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
