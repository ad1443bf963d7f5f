"""Matrix products of cuBLASLt equal those in float64, except for rounding."""

from typing import Any

import pytest
import torch
from torch import nn

from nanogpt.fast import cublas

CUDA = torch.device("cuda")
KINDS = ["none", "bias", "gelu", "gelu bias", "gelu gradient"]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has the library")
def test_there_is_no_library_without_cuda() -> None:
    assert cublas.load() is None


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
        assert cublas.multiply(a, stored, out, kind, transpose_b, bias, z)
        assert (out - expected).norm() <= 4e-3 * expected.norm()
        if z is not None:
            assert (z - expected_z).norm() <= 4e-3 * expected_z.norm()
