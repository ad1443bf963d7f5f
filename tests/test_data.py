"""Splits, batches and windows, compared with the text that they come from."""

import pytest
import torch

from nanogpt.data import BatchOrder, Data, OrderName, inputs_and_targets
from nanogpt.text.corpora import make_corpus
from nanogpt.text.tokenizers import CharTokenizer


def make_numbered_data(n: int) -> Data:
    """Make data in which the token at position i has the id i."""
    text = "".join(chr(256 + i) for i in range(n))
    return Data(make_corpus(text), CharTokenizer(text))


@pytest.mark.parametrize(
    ("n", "train"), [(100, 90), (1000, 900), (101, 90), (1_115_394, 1_003_854)]
)
def test_the_first_90_percent_are_the_training_split(n: int, train: int) -> None:
    text = "ab" * (n // 2) + "a" * (n % 2)
    data = Data(make_corpus(text), CharTokenizer("ab"))
    assert len(data.splits["train"].tokens) == train
    assert len(data.splits["val"].tokens) == n - train


def test_the_splits_keep_the_order_of_the_text() -> None:
    data = make_numbered_data(50)
    assert data.splits["train"].tokens.tolist() == list(range(45))
    assert data.splits["val"].tokens.tolist() == list(range(45, 50))


def test_targets_are_shifted_by_one_and_blocks_stay_in_their_split() -> None:
    data, order = make_numbered_data(100), BatchOrder("random", 90, 16, seed=0)
    seen = set()
    for step in range(200):
        blocks = data.splits["train"].blocks(order.starts(8 * step, 8), 16)
        inputs, targets = inputs_and_targets(blocks)
        assert inputs.shape == targets.shape == (8, 16)
        assert (targets == inputs + 1).all()  # in this text, the token after i is i + 1
        seen |= set(targets.flatten().tolist()) | set(inputs.flatten().tolist())
    assert seen == set(range(90))  # the blocks cover the whole split


def test_the_smallest_split_has_a_single_block() -> None:
    data = make_numbered_data(50)
    blocks = data.splits["val"].blocks(BatchOrder("random", 5, 4, seed=0).starts(0, 4), 4)
    inputs, targets = inputs_and_targets(blocks)
    assert inputs.tolist() == [[45, 46, 47, 48]] * 4
    assert targets.tolist() == [[46, 47, 48, 49]] * 4


ORDERS: list[OrderName] = ["random", "epochs"]


@pytest.mark.parametrize("name", ORDERS)
def test_a_batch_depends_on_the_seed_and_the_number_of_earlier_blocks(name: OrderName) -> None:
    order = BatchOrder(name, 1000, 8, seed=5)
    in_order = [order.starts(4 * step, 4).tolist() for step in range(100)]
    torch.rand(3)  # the global random generator has no effect
    again = BatchOrder(name, 1000, 8, seed=5)
    for step in (99, 3, 40, 41):
        assert again.starts(4 * step, 4).tolist() == in_order[step]
    for other in (BatchOrder(name, 1000, 8, seed=6), BatchOrder(name, 1000, 8, seed=4)):
        batches = [other.starts(4 * step, 4).tolist() for step in range(100)]
        # Two seeds have no batch in common, not even at different steps.
        assert not any(batch in in_order for batch in batches)


def test_random_blocks_start_anywhere_with_equal_probability() -> None:
    order = BatchOrder("random", 26, 16, seed=0)
    starts = torch.cat([order.starts(10 * step, 10) for step in range(1000)])
    counts = starts.bincount(minlength=10)
    assert len(counts) == 10  # starts 0 to 9; the block at 9 ends with target 25
    assert counts.min() > 850  # 1,000 expected, with a standard deviation of 30
    assert counts.max() < 1150


def test_an_epoch_has_every_block_once_and_starts_at_a_new_offset() -> None:
    order = BatchOrder("epochs", 1000, 8, seed=0)
    assert order.per_epoch == 124
    starts = torch.cat([order.starts(31 * step, 31) for step in range(40)])  # ten epochs
    epochs = starts.view(10, 124)
    for epoch in epochs:
        assert (epoch.sort().values.diff() == 8).all()
        assert not (epoch.diff() == 8).all()
        assert epoch.min() >= 0
        assert epoch.max() + 8 < 1000
    assert len(epochs.min(dim=1).values.unique()) > 3  # different offsets


@pytest.mark.parametrize("batch_size", [1, 7, 124, 300])
@pytest.mark.parametrize("earlier_blocks", [0, 100, 124, 299])
def test_a_batch_may_span_two_epochs(earlier_blocks: int, batch_size: int) -> None:
    single, order = (BatchOrder("epochs", 1000, 8, seed=0) for _ in range(2))
    in_order = torch.cat([single.starts(block, 1) for block in range(600)])
    expected = in_order[earlier_blocks : earlier_blocks + batch_size]
    assert torch.equal(order.starts(earlier_blocks, batch_size), expected)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(("tokens", "block_size"), [(5, 4), (2, 1), (9, 4), (8, 4), (7, 4)])
def test_blocks_stay_inside_the_smallest_splits(
    name: OrderName, tokens: int, block_size: int
) -> None:
    order = BatchOrder(name, tokens, block_size, seed=0)
    starts = torch.cat([order.starts(3 * step, 3) for step in range(50)])
    assert starts.min() == 0
    assert starts.max() == tokens - block_size - 1


@pytest.mark.parametrize("block_size", [1, 4, 7, 8, 49, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_windows_cover_every_target_once(block_size: int, batch_size: int) -> None:
    data = make_numbered_data(500)
    windows = list(data.splits["val"].windows(batch_size, block_size))
    for inputs, targets in windows:
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] <= block_size
        assert (targets == inputs + 1).all()
    covered = [t for _, targets in windows for t in targets.flatten().tolist()]
    assert covered == list(range(451, 500))


@pytest.mark.parametrize("extra_characters", [0, 30_000, 60_000, 100_000])
def test_ids_are_correct_for_small_and_large_vocabularies(extra_characters: int) -> None:
    """Vocabularies up to 65,536 tokens have 16-bit ids; larger vocabularies have 32-bit ids."""
    code_points = (i for i in range(0x3400, 0x3440 + extra_characters) if not 0xD800 <= i < 0xE000)
    alphabet = "".join(map(chr, code_points))
    tokenizer, text = CharTokenizer(alphabet), alphabet[-40:]
    data, size = Data(make_corpus(text), tokenizer, val_fraction=0.5), len(alphabet)
    assert data.splits["train"].tokens.element_size() == (2 if size <= 1 << 16 else 4)
    expected = list(range(size - 40, size - 20))
    inputs, targets = inputs_and_targets(data.splits["train"].blocks(torch.tensor([0, 1]), 15))
    assert inputs.tolist() == [expected[:15], expected[1:16]]
    assert targets.tolist() == [expected[1:16], expected[2:17]]
    seen = [x for _, targets in data.splits["train"].windows(1, 6) for x in targets[0].tolist()]
    assert seen == expected[1:]


def test_bytes_per_token_counts_utf8_bytes() -> None:
    data = Data(make_corpus("é" * 10), CharTokenizer("é"))
    assert data.splits["train"].bytes_per_token == 2
