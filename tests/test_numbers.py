"""The numbers of the README and of docs/ are those of the files in benchmarks/results."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
RESULT = re.compile(r"(?<![\w.,])\d\.\d{4}(?!\d)|\d+\.\d times|\d\d,\d{3} tokens")
"""What looks like a measured number: a loss with four decimals, a ratio, a rate."""
CONSTANTS = {"1.4697"}
"""Published by nanoGPT."""


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes the numbers."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("write_numbers")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_generated_parts_are_those_of_the_results(page: Path, numbers: ModuleType) -> None:
    text = page.read_text("utf-8")
    assert numbers.render(text) == text, "run: python benchmarks/write_numbers.py"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"])
def test_no_measured_number_is_written_by_hand(page: Path, numbers: ModuleType) -> None:
    """Except in the log, which is a notebook of single measurements."""
    by_hand = numbers.PART.sub("", page.read_text("utf-8"))
    by_hand = re.sub(r"```.*?```", "", by_hand, flags=re.DOTALL)
    assert set(RESULT.findall(by_hand)) <= CONSTANTS


def test_a_changed_number_is_noticed(numbers: ModuleType) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    changed = re.sub(r"(\d)\.(\d) times faster", r"9\1.\2 times faster", text, count=1)
    assert changed != text
    assert numbers.render(changed) == text


def test_every_part_is_used(numbers: ModuleType) -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    used = re.findall(r"<!-- results: ([\w-]+) -->", text)
    assert sorted(used) == sorted(numbers.PARTS)


def test_each_result_of_a_comparison_comes_from_one_file(numbers: ModuleType) -> None:
    record = numbers.read("versus_nanogpt_cpu.json")
    ratio = numbers.time_to_target(record, "nanoGPT") / numbers.time_to_target(
        record, "nanogpt tiny-fast"
    )
    assert f"{ratio:.1f} times faster" in numbers.summary()
