"""Every lesson runs, and its page matches its script."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module lessons/build.py."""
    monkeypatch.syspath_prepend(str(ROOT / "lessons"))
    return importlib.import_module("build")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_the_page_matches_the_lesson(build: ModuleType, lesson: Path) -> None:
    """The page has the text and code of the script; if not, run `python lessons/build.py NN`."""
    page = lesson.with_suffix(".md").read_text("utf-8")
    expected, pictures = build.page(build.notebook(lesson), lesson.stem)
    assert build.without_outputs(page) == build.without_outputs(expected)
    assert not pictures
    shown = re.findall(r"^!\[(.*)\]\((.*)\)$", page, re.MULTILINE)
    assert {file for _, file in shown} == {
        f"{lesson.stem}/{picture.name}" for picture in lesson.with_suffix("").glob("*")
    }
    assert all(len(alt) > 20 for alt, _ in shown)
    assert all((ROOT / "lessons" / file).stat().st_size < 300_000 for _, file in shown)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_reading_a_lesson_takes_at_most_15_minutes(lesson: Path) -> None:
    page = lesson.with_suffix(".md").read_text("utf-8")
    prose = re.sub(r"^```.*?^```$|<!--.*?-->", "", page, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) / 200 <= 15


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_every_lesson_has_exercises_with_solutions(lesson: Path) -> None:
    page = lesson.with_suffix(".md").read_text("utf-8")
    exercises = page.partition("## Exercises")[2]
    assert re.search(r"^2\. ", exercises, re.MULTILINE)
    assert "<details><summary>Solution</summary>" in exercises
    assert "assert " in exercises


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_runs(lesson: Path) -> None:
    fast = {**os.environ, "NANOGPT_FAST": "1", "MPLBACKEND": "Agg", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, lesson], env=fast, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_every_lesson() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    linked = re.findall(r"^- \[\d\d\]\(lessons/(.*)\.md\) ", readme, re.MULTILINE)
    assert linked == [lesson.stem for lesson in LESSONS]
