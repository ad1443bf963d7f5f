"""The tables give the probabilities of KneserNey, for every token at every position."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.kneser_ney_tables import KneserNeyTables
from nanogpt.text.kneser_ney import KneserNey

CPU = torch.device("cpu")


@given(
    ids=st.lists(st.integers(0, 3), min_size=5, max_size=200),
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    n=st.integers(1, 5),
)
def test_the_probabilities_are_those_of_kneser_ney(
    ids: list[int], tokens: list[int], n: int
) -> None:
    """Token 4 is not in the training text."""
    model = KneserNey(np.array(ids), n, 5)
    rows = torch.tensor([tokens, tokens[::-1]])
    p = KneserNeyTables(model, CPU)(rows).exp()
    for row, found in zip(rows.tolist(), p, strict=True):
        for i in range(len(row)):
            expected = torch.from_numpy(model.next_probabilities(row[: i + 1]))
            torch.testing.assert_close(found[i].double(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones_like(p[..., 0]), rtol=2e-3, atol=0)


def test_the_loss_is_that_of_kneser_ney() -> None:
    ids = np.random.default_rng(0).integers(0, 9, 3000) % 7
    model = KneserNey(ids[:2000], 3, 9)
    tokens = torch.from_numpy(ids[2000:])
    log_p = KneserNeyTables(model, CPU)(tokens[None, :-1])[0]
    loss = torch.nn.functional.nll_loss(log_p, tokens[1:])
    expected = -np.log(model.probabilities(ids[2000:])[1:]).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-3)
