"""Every lesson runs, its page matches its script, and the scoreboards of all pages agree."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
HERE = ROOT / "lessons"
LESSONS = sorted(HERE.glob("[0-9][0-9]_*.py"))
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


def read_page(lesson: Path) -> str:
    return lesson.with_suffix(".md").read_text("utf-8")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module lessons/build.py."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("build")


@each_lesson
def test_the_page_matches_the_lesson(build: ModuleType, lesson: Path) -> None:
    """If this test fails, build the page again: `python lessons/build.py NN`."""
    page = read_page(lesson)
    expected, pictures = build.make_page(build.read_lesson(lesson), lesson)
    assert build.without_outputs(page) == build.without_outputs(expected)
    assert not pictures
    shown = re.findall(r"^!\[(.*)\]\((.*)\)$", page, re.MULTILINE)
    assert {file for _, file in shown} == {
        f"{lesson.stem}/{picture.name}" for picture in lesson.with_suffix("").glob("*")
    }
    assert all(len(alt) > 20 for alt, _ in shown)
    assert all((HERE / file).stat().st_size < 300_000 for _, file in shown)
    assert all("prefers-color-scheme" in (HERE / file).read_text("utf-8") for _, file in shown)


@each_lesson
def test_a_lesson_takes_at_most_15_minutes_to_read(build: ModuleType, lesson: Path) -> None:
    assert build.reading_minutes(lesson) <= 15


@each_lesson
def test_every_lesson_has_the_same_parts(lesson: Path) -> None:
    page = read_page(lesson)
    parts = ["**Before this lesson:**", "**You will see:**", "## Three common mistakes"]
    parts += ["## Exercises", "<details><summary>Solution</summary>"]
    places = [page.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert re.search(r"^2\. ", page[places[-2] :], re.MULTILINE)
    mistakes = page[places[2] : places[3]]
    assert len(re.findall(r"^\d\. ", mistakes, re.MULTILINE)) == 3


@each_lesson
def test_tests_are_hidden_and_solutions_run_only_on_request(
    build: ModuleType, lesson: Path
) -> None:
    cells = build.read_lesson(lesson).cells
    solutions = 0
    for cell in build.without_tests(build.read_lesson(lesson)).cells:
        if "solution" in cell.metadata.get("tags", []):
            assert cell.source.startswith("if SOLUTIONS:")
            solutions += 1
        elif cell.cell_type == "code":
            assert "FAST" not in cell.source
    assert solutions
    assert any("test" in cell.metadata.get("tags", []) for cell in cells)


@each_lesson
def test_a_notebook_hides_tests_and_folds_solutions(build: ModuleType, lesson: Path) -> None:
    notebook = build.make_notebook(lesson)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert ["test"] not in tags
    solutions = [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]
    assert solutions
    for cell in solutions:
        assert cell.metadata["jupyter"]["source_hidden"]
        first, _, code = cell.source.partition("\n")
        assert first == "if SOLUTIONS:  # solution; set SOLUTIONS = True to run it"
        assert code in lesson.read_text("utf-8")


def test_a_page_has_the_scoreboard_up_to_its_lesson() -> None:
    rows = json.loads((HERE / "scoreboard.json").read_text("utf-8"))
    numbers = [row["lesson"] for row in rows]
    assert numbers == sorted(numbers)
    for lesson in LESSONS:
        number = int(lesson.stem[:2])
        if number not in numbers:
            continue
        shown = re.findall(r"^ +(\d+)  (.*?) +(\d\.\d{3}) █+$", read_page(lesson), re.MULTILINE)
        assert [(int(n), model, float(loss)) for n, model, loss in shown] == [
            (row["lesson"], row["model"], row["loss"]) for row in rows if row["lesson"] <= number
        ]


@pytest.mark.slow
@each_lesson
def test_a_lesson_runs(lesson: Path) -> None:
    settings = {"NANOGPT_FAST": "1", "NANOGPT_SOLUTIONS": "1", "MPLBACKEND": "Agg"}
    environment = {**os.environ, **settings, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, lesson], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NANOGPT_FAST is set")
    pictures = re.findall(r"^picture: (.*)$", done.stdout, re.MULTILINE)
    assert pictures
    assert all(Path(picture).exists() for picture in pictures)


@pytest.mark.slow
@each_lesson
def test_a_lesson_runs_as_a_notebook(
    build: ModuleType, lesson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOGPT_FAST", "1")
    notebook = build.make_notebook(lesson)
    nbclient = importlib.import_module("nbclient")
    place = {"metadata": {"path": HERE}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()


def test_the_readme_has_every_lesson() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    linked = re.findall(r"^- \[\d\d\]\(lessons/(.*)\.md\) ", readme, re.MULTILINE)
    assert linked == [lesson.stem for lesson in LESSONS]


def test_every_name_in_the_glossary_exists() -> None:
    """A row names a file, and functions, classes or methods that this file defines."""
    glossary = (HERE / "glossary.md").read_text("utf-8")
    rows = re.findall(
        r"\| (?:((?:`[\w.]+`(?:, )?)+) in )?`(nanogpt/[\w/]+\.py)` \|$", glossary, re.M
    )
    assert len(rows) > 40
    for names, file in rows:
        code = (ROOT / file).read_text("utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"^ *(?:def|class) {part}\b", code, re.M), name


def test_the_glossary_names_existing_lessons() -> None:
    glossary = (HERE / "glossary.md").read_text("utf-8")
    numbers = {int(n) for row in re.findall(r"\| ([\d, ]+) \|", glossary) for n in row.split(",")}
    assert numbers <= {int(lesson.stem[:2]) for lesson in LESSONS}
    links = re.findall(r"\]\((.+?)\)", glossary)
    assert all((HERE / link).exists() for link in links)
