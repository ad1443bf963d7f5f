"""Matrix products of cuBLASLt equal those in float64, except for rounding."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.fast import cublas

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KINDS = ["none", "bias", "gelu", "gelu bias", "gelu gradient"]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has the library")
def test_there_is_no_library_without_cuda() -> None:
    assert cublas.load() is None


@pytest.fixture
def no_products() -> Iterator[None]:
    """There are no products of earlier tests."""
    cublas.products.clear()
    yield
    cublas.products.clear()


def draw(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, a transposed b, and memory for their product."""
    torch.manual_seed(0)
    a, b = (torch.randn(64, 128, device=device).bfloat16() for _ in range(2))
    return a, b, torch.zeros(64, 64, device=device, dtype=torch.bfloat16)


FUNCTIONS = ["MatmulDescCreate", "MatmulDescSetAttribute", "MatrixLayoutCreate"]
FUNCTIONS += ["MatmulPreferenceCreate", "MatmulPreferenceSetAttribute", "MatmulAlgoGetHeuristic"]


@pytest.mark.parametrize("failing", ["Create", *FUNCTIONS, "nothing"])
def test_a_library_that_fails_or_has_no_algorithm_computes_nothing(
    failing: str, no_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test needs no GPU: it replaces the library."""
    called: list[str] = []

    class Library:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return lambda *_: 15 if name == f"cublasLt{failing}" else 0

    monkeypatch.setattr("nanogpt.fast.cublas.load", Library)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    monkeypatch.setattr("nanogpt.fast.cublas.get_workspace_bytes", lambda _: 1024)
    monkeypatch.setattr("nanogpt.fast.cublas.ALIGNMENT", 64)  # that of torch on a CPU
    cublas.prepare.cache_clear()
    for _ in range(2):
        assert not cublas.multiply(*draw(CPU), transpose_b=True)
    cublas.prepare.cache_clear()
    last = "MatmulAlgoGetHeuristic" if failing == "nothing" else failing
    assert called.count(f"cublasLt{last}") == 1  # it is not tried again


def test_only_plain_matrices_in_bfloat16_are_given_to_the_library(
    no_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test needs no GPU."""
    given: list[Any] = []
    monkeypatch.setattr("nanogpt.fast.cublas.make_product", lambda *values: given.append(values))
    monkeypatch.setattr("nanogpt.fast.cublas.ALIGNMENT", 64)
    a, b, out = draw(CPU)
    shifted = torch.zeros(64 * 128 + 1, dtype=torch.bfloat16)[1:].view(64, 128)
    for wrong in (a.float(), a.half(), a.T.contiguous().T, shifted):
        assert not cublas.multiply(wrong, b, out, transpose_b=True)
        assert not cublas.multiply(a, wrong, out, transpose_b=True)
    assert not cublas.multiply(a, b, out.float(), transpose_b=True)
    assert not cublas.multiply(a, b, out, "bias", transpose_b=True, bias=torch.zeros(64))
    assert not cublas.multiply(a, b, out, "gelu", transpose_b=True, z=out.float())
    assert not given
    assert not cublas.multiply(a, b, out, transpose_b=True)
    assert len(given) == 1


def test_the_first_algorithm_that_works_is_used(
    no_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test needs no GPU: it replaces the products."""
    tried: list[int] = []
    failing: set[int] = set()

    def run(algorithm: int, matrices: cublas.Matrices) -> None:
        tried.append(algorithm)
        if algorithm in failing:
            raise cublas.Failed("status 15")

    product = SimpleNamespace(algorithms=[0, 1, 2], run=run)
    monkeypatch.setattr("nanogpt.fast.cublas.make_product", lambda *_: product)
    monkeypatch.setattr("nanogpt.fast.cublas.ALIGNMENT", 64)
    for number, works in ((0, True), (1, True), (2, False)):
        failing.add(number)
        for _ in range(2):
            assert cublas.multiply(*draw(CPU), transpose_b=True) == works
    assert tried == [0, 1, 1, 1, 2, 2, 2]


# Tests on a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("measured", [True, False])
def test_an_algorithm_that_fails_is_not_used(
    measured: bool, no_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: not measured)
    a, b, out = draw(CUDA)
    run, failing = cublas.Product.run, 2

    def fail(self: cublas.Product, algorithm: cublas.Algorithm, matrices: cublas.Matrices) -> None:
        if bytes(algorithm) in rejected:
            raise cublas.Failed("status 15")
        run(self, algorithm, matrices)

    example = cublas.Product(cublas.Matrices(a, b, out, None, None), "none", True)
    assert len(example.algorithms) > failing
    for count in (failing, len(example.algorithms)):
        rejected = [bytes(algorithm) for algorithm in example.algorithms[:count]]
        monkeypatch.setattr("nanogpt.fast.cublas.Product.run", fail)
        works = count == failing
        for _ in range(2):
            assert cublas.multiply(*draw(CUDA), transpose_b=True) == works
        cublas.products.clear()


@pytest.mark.gpu
def test_a_matrix_with_more_than_2_to_the_power_of_31_numbers(no_products: None) -> None:
    """The logits of 64 blocks of 1,024 tokens are so large."""
    torch.manual_seed(0)
    a = torch.randn(1 << 16, 64, device=CUDA).bfloat16()
    b = torch.randn(50_304, 64, device=CUDA).bfloat16()
    out = torch.full((len(a), len(b)), torch.nan, dtype=torch.bfloat16, device=CUDA)
    assert cublas.multiply(a, b, out, transpose_b=True)
    for rows in (slice(0, 300), slice(42_600, 42_800), slice(-300, None)):
        expected = a[rows].double() @ b.double().T
        assert (out[rows] - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transpose_b", [True, False])
@pytest.mark.parametrize("shape", [(64, 128, 256), (1000, 768, 2304), (4096, 104, 1032)])
@pytest.mark.parametrize("measured", [True, False])
def test_products_equal_those_in_float64(
    kind: str,
    transpose_b: bool,
    shape: tuple[int, int, int],
    measured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    i, k, j = shape
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: not measured)
    torch.manual_seed(0)
    a = torch.randn(i, k, device=CUDA).bfloat16()
    b = (torch.randn(k, j, device=CUDA) / k**0.5).bfloat16()
    bias = torch.randn(j, device=CUDA).bfloat16() if "bias" in kind else None
    z = torch.randn(i, j, device=CUDA).bfloat16() if "gelu" in kind else None
    expected = a.double() @ b.double() + (0 if bias is None else bias.double())
    expected_z = expected
    if kind == "gelu gradient":
        assert z is not None
        expected_z = z.double()
        slope: Any = torch.ops.aten.gelu_backward
        expected = slope(expected, expected_z, approximate="tanh")
    elif "gelu" in kind:
        expected = nn.functional.gelu(expected, approximate="tanh")
    for _ in range(2):  # the second call uses the algorithm that the first one has chosen
        out = torch.full((i, j), torch.nan, dtype=torch.bfloat16, device=CUDA)
        stored = b.T.contiguous() if transpose_b else b
        assert cublas.multiply(a, stored, out, kind, transpose_b=transpose_b, bias=bias, z=z)
        assert (out - expected).norm() <= 4e-3 * expected.norm()
        if z is not None:
            assert (z - expected_z).norm() <= 4e-3 * expected_z.norm()
