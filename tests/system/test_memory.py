"""The memory of the machine, and the format of large numbers."""

import random
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.system import memory
from nanogpt.system.memory import format_count, format_quantity, get_memory, require_memory


def test_the_memory_of_this_machine_is_plausible() -> None:
    assert 1 << 28 < get_memory() <= 1 << 62


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "memory.max", tmp_path / "missing"))
    whole_machine = get_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert get_memory() == whole_machine
    (tmp_path / "memory.max").write_text("4096\n")
    assert get_memory() == 4096


def test_only_a_task_that_does_not_fit_is_refused() -> None:
    require_memory(get_memory(), "the task", "use less")
    with pytest.raises(UserError, match=r"^the task needs at least 8\.51e\+37 B of memory, but "):
        require_memory(2**126, "the task", "use less")


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
