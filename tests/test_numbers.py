"""The numbers of README.md and docs/ come from the files in benchmarks/results."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
UNITS = r"(?:ms|s|seconds|minutes|MB|GB|tokens/s|tokens (?:per|a) second)"
MEASURED = re.compile(
    r"(?<![\w.,])(?:"
    r"\d+\.\d{3,}"  # a loss
    r"|\d+\.\d+(?= times)"  # a ratio
    rf"|\d[\d,]*(?:\.\d+)?(?= {UNITS}\b)"  # a time, a size or a rate
    r"|\d+\.\d+(?=%)"  # a relative error
    r")(?!\d)"
)
"""Matches text that looks like a measured number."""
LOG = "measured once, in docs/log"
SETTING = "a setting"
CONSTANTS = {
    "README.md": {
        "1.4697": "published by nanoGPT",
        "260": "MB; the pip command after this number measures it",
    },
    "docs/corpora.md": {"0.001": SETTING},
    "docs/errors.md": {"0.001": SETTING},
    "docs/faq.md": {"1.4697": "published by nanoGPT"},
    "docs/results.md": {"1.4697": "published by nanoGPT"},
    "docs/studies.md": {
        "0.004": SETTING,
        "0.023": LOG,
        "1.529": LOG,
        "1.439": "a loss in the table of the scaling study",
        "0.015": LOG,
    },
}
"""Numbers that are in no file of benchmarks/results, and their sources."""


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module benchmarks/write_numbers.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("write_numbers")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_generated_parts_equal_the_results(page: Path, numbers: ModuleType) -> None:
    text = page.read_text("utf-8")
    assert numbers.render(text) == text, "run: python benchmarks/write_numbers.py"


@pytest.mark.parametrize("name", sorted({*NAMES} - {"docs/log.md"}))
def test_measured_numbers_are_in_generated_parts(name: str, numbers: ModuleType) -> None:
    """docs/log.md is left out: people write the numbers of this page by hand."""
    page = ROOT / name
    by_hand = numbers.PART.sub("", page.read_text("utf-8"))
    by_hand = re.sub(r"```.*?```|`[^`\n]*`|arXiv:[\d.]+|\]\([^)]+\)", "", by_hand, flags=re.DOTALL)
    assert set(MEASURED.findall(by_hand)) == set(CONSTANTS.get(name, {}))


@pytest.mark.parametrize(
    "text",
    ["a loss of 1.4697", "is 11.0 times as fast", "takes 51.9 ms", "9.7 MB", "off by 3.72%"],
)
def test_a_measured_number_is_recognised(text: str) -> None:
    assert MEASURED.search(text)


def test_a_wrong_number_on_a_page_is_corrected(numbers: ModuleType) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    changed = re.sub(r"(\d\.\d) times as fast", r"9\1 times as fast", text, count=1)
    assert changed != text
    assert numbers.render(changed) == text


def test_every_generated_part_is_on_exactly_one_page(numbers: ModuleType) -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    used = re.findall(r"<!-- results: ([\w-]+) -->", text)
    assert sorted(used) == sorted(numbers.PARTS)


def test_the_summary_compares_runs_of_one_file(numbers: ModuleType) -> None:
    for kind, preset in (("cpu", "tiny-fast"), ("cuda", "baby-fast")):
        result = numbers.read_result(f"versus_nanogpt_{kind}.json")
        theirs, ours = (
            numbers.get_median_seconds(result, program)
            for program in ("nanoGPT", f"nanogpt {preset}")
        )
        assert f"{theirs / ours:.1f} times as fast" in numbers.summary()


def test_the_runs_of_a_preset_are_counted_once(numbers: ModuleType) -> None:
    result = numbers.read_preset("baby-fast")
    # The runs in the nanoGPT comparison are already in the preset's own file, so none is added.
    assert result["compared"] == []
    losses = numbers.get_losses(numbers.read_preset("tiny-fast"))
    assert len(losses) == len(set(losses)) == 6
