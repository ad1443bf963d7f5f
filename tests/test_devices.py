"""Devices: what is there is found, what is not is refused with a reason."""

import pytest
import torch

from nanogpt.devices import autocast, describe, pick_device, pick_precision
from nanogpt.errors import UserError

HERE = {
    "cpu": True,
    "cuda": torch.cuda.is_available(),
    "mps": torch.backends.mps.is_available(),
}


def test_auto_takes_what_is_there() -> None:
    assert HERE[pick_device("auto").type]
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    kind = name.partition(":")[0]
    if HERE[kind]:
        pytest.skip("this machine has it")
    with pytest.raises(UserError, match=f"this machine has no {kind} device: use --device cpu"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "CPU"])
def test_a_device_that_nobody_has_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"there is no device '{name}': use auto, cpu"):
        pick_device(name)


@pytest.mark.gpu
def test_a_gpu_too_many_is_refused() -> None:
    with pytest.raises(UserError, match="there is no cuda:99: this machine's cuda devices are"):
        pick_device("cuda:99")


def test_the_cpu_computes_in_float32_unless_told() -> None:
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == torch.float32
    assert pick_precision("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_products_run_at_the_precision(precision: torch.dtype) -> None:
    a = torch.randn(4, 4)
    with autocast(torch.device("cpu"), precision):
        assert (a @ a).dtype == precision
    assert (a @ a).dtype == torch.float32


def test_a_device_is_described() -> None:
    assert describe(torch.device("cpu")) == f"cpu ({torch.get_num_threads()} threads)"
