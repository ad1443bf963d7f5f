"""The error for unequal shares of a batch gives values that work."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.models import GPTConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.sharing import require_equal_shares

CPU = torch.device("cpu")


def make_config(batch: int, parts: int) -> RunConfig:
    training = TrainConfig(batch_size=batch, accumulation=parts)
    return replace(RunConfig(model=GPTConfig()), train=training)


@given(st.integers(1, 600), st.integers(1, 20), st.integers(1, 12))
def test_the_advice_works(share: int, parts: int, size: int) -> None:
    batch = share * parts  # accumulation always divides the batch
    assume(batch % (size * parts))
    with pytest.raises(UserError) as raised:
        require_equal_shares(make_config(batch, parts), CPU, torch.float32, size)
    advice = str(raised.value).partition("; use ")[2]
    sizes = re.search(r"--train\.batch-size (\d+)(?: or (\d+))?", advice)
    assert sizes
    for value in filter(None, sizes.groups()):
        require_equal_shares(make_config(int(value), parts), CPU, torch.float32, size)
    other = re.search(r"--train\.accumulation (\d+)", advice)
    assert (other is not None) == (batch % size == 0)
    if other:
        assert int(other[1]) < parts
        require_equal_shares(make_config(batch, int(other[1])), CPU, torch.float32, size)


def test_the_error_is_that_of_the_page() -> None:
    with pytest.raises(UserError) as raised:
        require_equal_shares(make_config(24, 8), CPU, torch.float32, 2)
    assert str(raised.value) == (
        "--train.batch-size is 24: 2 processes with --train.accumulation 8 need a multiple of 16; "
        "use --train.batch-size 16 or 32, or --train.accumulation 6"
    )


def test_too_many_processes_cannot_share_a_batch() -> None:
    with pytest.raises(UserError, match=r"; use fewer processes$"):
        require_equal_shares(make_config(24, 8), CPU, torch.float32, 2**31)
