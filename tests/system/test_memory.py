"""The format of large numbers."""

import random

import pytest

from nanogpt.system.memory import format_count, format_quantity


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 s"),
        (1.5e-6, "1.5 µs"),
        (0.0234, "23.4 ms"),
        (1, "1 s"),
        (12_345, "12.3 ks"),
        (999_600, "1 Ms"),
        (2**63, "9.22 Es"),
        (2e32, "200 Qs"),
        (999.9e30, "1e+33 s"),
        (2**300, "2.04e+90 s"),
    ],
)
def test_quantities_have_a_fitting_prefix(value: float, words: str) -> None:
    assert format_quantity(value, "s") == words


def test_numbers_of_any_size_are_short() -> None:
    draw = random.Random(0)
    for _ in range(1000):
        value = draw.randrange(1 << draw.randint(1, 900))
        text = format_count(value)
        assert len(text) <= 19
        assert text == f"{value:,}" or value >= 10**15
