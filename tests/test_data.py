"""The split, the batches and the windows, against the text that they come from."""

import pytest
import torch

from nanogpt.data import Data
from nanogpt.errors import UserError
from nanogpt.tokenizers import CharTokenizer


def numbered(n: int) -> Data:
    """A text whose token at place i has the id i."""
    text = "".join(chr(256 + i) for i in range(n))
    return Data(text, CharTokenizer(text))


@pytest.mark.parametrize(
    ("n", "train"), [(100, 90), (1000, 900), (101, 90), (1_115_394, 1_003_854)]
)
def test_the_split_is_exactly_90_to_10(n: int, train: int) -> None:
    data = Data("ab" * (n // 2) + "a" * (n % 2), CharTokenizer("ab"))
    assert len(data.splits["train"].tokens) == train
    assert len(data.splits["val"].tokens) == n - train


def test_the_split_is_in_order() -> None:
    data = numbered(50)
    assert data.splits["train"].tokens.tolist() == list(range(45))
    assert data.splits["val"].tokens.tolist() == list(range(45, 50))


def test_targets_are_inputs_shifted_by_one_and_blocks_stay_in_their_split() -> None:
    data, order = numbered(100), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        inputs, targets = data.batch("train", 8, 16, order)
        assert inputs.shape == targets.shape == (8, 16)
        assert (targets == inputs + 1).all()  # in this text, what follows i is i + 1
        seen |= set(targets.flatten().tolist()) | set(inputs.flatten().tolist())
    assert seen == set(range(90))  # all of the split, the first and the last token too


def test_the_smallest_split_has_one_block() -> None:
    data = numbered(50)
    inputs, targets = data.batch("val", 4, 4, torch.Generator())
    assert inputs.tolist() == [[45, 46, 47, 48]] * 4
    assert targets.tolist() == [[46, 47, 48, 49]] * 4


def test_the_order_of_the_batches_is_the_generators_alone() -> None:
    data = numbered(100)

    def draw() -> list[int]:
        torch.rand(3)  # other random numbers drawn meanwhile change nothing
        inputs, _ = data.batch("train", 4, 8, torch.Generator().manual_seed(5))
        return inputs.flatten().tolist()

    assert draw() == draw()


@pytest.mark.parametrize("block_size", [1, 4, 7, 8, 49, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_windows_cover_every_target_once(block_size: int, batch_size: int) -> None:
    data = numbered(500)
    windows = list(data.windows("val", batch_size, block_size))
    for inputs, targets in windows:
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] <= block_size
        assert (targets == inputs + 1).all()
    covered = [t for _, targets in windows for t in targets.flatten().tolist()]
    assert covered == list(range(451, 500))


def test_a_text_too_short_says_which_split_and_what_to_do() -> None:
    data = numbered(100)
    data.require(9)
    with pytest.raises(
        UserError, match="its val split has 10 tokens, and block_size 10 needs at"
    ) as e:
        data.require(10)
    assert "--model.block-size to 9 or less" in str(e.value)
    with pytest.raises(UserError, match="too short: its val split has 1 tokens; give more text"):
        numbered(3).require(1)


def test_bytes_per_token() -> None:
    data = Data("é" * 10, CharTokenizer("é"))
    assert data.splits["train"].bytes_per_token == 2
