"""Attention and RMSNorm for training on a CPU give the values and gradients of torch's functions.

The references are torch's own functions in float64.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt.fast.cpu import QUERIES, CausalAttention, CpuKernels, RMSNorm
from nanogpt.models import GPT, GPTConfig, Modern, ModernConfig

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""The largest relative error."""
ROUNDING = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 1e-10}
"""The largest error of a gradient that is 0: torch's attention computes it as a difference."""


def compute(
    function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return the result of `function`, and the gradients of a loss for its inputs, in float64."""
    leaves = [x.detach().to(dtype).clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    assert y.dtype == dtype
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    y.backward(weights.to(dtype))
    gradients = [x.grad.double() for x in leaves if x.grad is not None]
    return [y.detach().double(), *gradients]


def check(function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Compare `function` within CpuKernels with `function` in float64 without it."""
    exact = [x.to(dtype).double() for x in inputs]
    expected = compute(function, exact, torch.float64)
    with CpuKernels():
        results = compute(function, exact, dtype)
    assert_close(results, expected, dtype)


def assert_close(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Compare the norms of the differences with the norms of the expected tensors."""
    for result, reference in zip(results, expected, strict=True):
        error = (result - reference).norm()
        assert error <= TOLERANCES[dtype] * reference.norm() + ROUNDING[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("T", [1, 5, QUERIES, QUERIES + 1, 2 * QUERIES + 40])
def test_causal_attention(T: int, dtype: torch.dtype) -> None:
    torch.manual_seed(T)
    inputs = [*torch.randn(3, 2, T, 3, 8).transpose(2, 3)]  # not contiguous, as in the models

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, None, 0.0, is_causal=True)

    check(attend, inputs, dtype)
    exact = [x.to(dtype).double() for x in inputs]
    expected = compute(attend, exact, torch.float64)
    results = compute(CausalAttention.apply, exact, dtype)
    assert_close(results, expected, dtype)


def test_attention_in_float32_is_torchs_own() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 4).unbind()
    expected = F.scaled_dot_product_attention(q, k, v, None, 0.0, is_causal=True)
    with CpuKernels():
        result = F.scaled_dot_product_attention(q, k, v, None, 0.0, is_causal=True)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_rms_norm(scale: float, eps: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 2, 12) * scale
    check(lambda x: F.rms_norm(x, x.shape[-1:], eps=eps), [x], dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_default_eps_is_that_of_torch(dtype: torch.dtype) -> None:
    x = torch.full((1, 4), 1e-4, dtype=dtype)
    expected = F.rms_norm(x, (4,))
    with CpuKernels():
        torch.testing.assert_close(F.rms_norm(x, (4,), eps=None), expected)


def test_a_vector_of_zeros_stays_zero() -> None:
    with CpuKernels():
        y, gradient = compute(
            lambda x: F.rms_norm(x, (4,), eps=None), [torch.zeros(2, 4)], torch.float32
        )
    assert not y.any()
    assert gradient.isfinite().all()


def attend(*shapes: tuple[int, ...], **settings: Any) -> Tensor:
    q, k, v = (draw(*shape) for shape in shapes)
    return F.scaled_dot_product_attention(q, k, v, **settings)


def draw(*shape: int) -> Tensor:
    """Return a tensor with the same random numbers in each call."""
    torch.manual_seed(1)
    return torch.randn(shape).bfloat16()


HEADS = (1, 2, 6, 4)
OTHER_CALLS: dict[str, Callable[[], Tensor]] = {
    "not causal": lambda: attend(HEADS, HEADS, HEADS),
    "a mask": lambda: attend(HEADS, HEADS, HEADS, attn_mask=torch.ones(6, 6).bool().tril(1)),
    "another scale": lambda: attend(HEADS, HEADS, HEADS, is_causal=True, scale=0.3),
    "dropout": lambda: attend(HEADS, HEADS, HEADS, dropout_p=0.5, is_causal=True),
    "dropout by position": lambda: F.scaled_dot_product_attention(
        draw(*HEADS), draw(*HEADS), draw(*HEADS), None, 0.5, is_causal=True
    ),
    "fewer heads of keys": lambda: F.scaled_dot_product_attention(
        draw(*HEADS), draw(1, 1, 6, 4), draw(1, 1, 6, 4), None, 0.0, is_causal=True, enable_gqa=True
    ),
    "keys that are broadcast": lambda: F.scaled_dot_product_attention(
        draw(*HEADS), draw(1, 1, 6, 4), draw(1, 1, 6, 4), None, 0.0, is_causal=True
    ),
    "fewer keys": lambda: F.scaled_dot_product_attention(
        draw(*HEADS), draw(1, 2, 5, 4), draw(1, 2, 5, 4), None, 0.0, is_causal=True
    ),
    "larger values": lambda: F.scaled_dot_product_attention(
        draw(*HEADS), draw(*HEADS), draw(1, 2, 6, 8), None, 0.0, is_causal=True
    ),
    "no heads": lambda: F.scaled_dot_product_attention(
        draw(2, 6, 4), draw(2, 6, 4), draw(2, 6, 4), None, 0.0, is_causal=True
    ),
    "a norm with gains": lambda: F.rms_norm(draw(2, 3, 4), (4,), draw(4), eps=0.1),
    "gains by name": lambda: F.rms_norm(draw(2, 3, 4), (4,), weight=draw(4), eps=0.1),
    "a norm of matrices": lambda: F.rms_norm(draw(2, 3, 4), (3, 4), eps=0.1),
    "a module": lambda: torch.nn.RMSNorm(4, eps=0.1).bfloat16()(draw(2, 3, 4)),
}


def test_the_calls_of_the_models_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for kind in (RMSNorm, CausalAttention):
        apply, name = kind.apply, kind.__name__

        def count(*args: Any, apply: Any = apply, name: str = name) -> Any:
            used.append(name)
            return apply(*args)

        monkeypatch.setattr(kind, "apply", count)
    config = ModernConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=11)
    with torch.autocast("cpu", torch.bfloat16), CpuKernels():
        Modern(config)(torch.zeros(2, 8, dtype=torch.long))
    # The norms of the embedding, of attention, of queries and keys, of feed-forward, and the last.
    assert sorted(used) == ["CausalAttention", *["RMSNorm"] * 5]


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_other_calls_are_torchs_own(name: str) -> None:
    """A reader who changes a model trains this model."""
    expected = OTHER_CALLS[name]()
    with CpuKernels():
        assert torch.equal(OTHER_CALLS[name](), expected)


@pytest.mark.parametrize(
    "model",
    [
        GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=QUERIES + 32, vocab_size=11)),
        Modern(
            ModernConfig(n_layer=2, n_head=2, n_embd=16, block_size=QUERIES + 32, vocab_size=11)
        ),
    ],
    ids=["GPT", "Modern"],
)
def test_models_have_the_same_gradients(model: GPT | Modern) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(11, (2, QUERIES + 32))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    expected = gradients()
    with CpuKernels():
        results = gradients()
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-3, atol=1e-6)
