"""The Library of the lab finds runs, and keeps loaded models within a memory limit."""

import os
import shutil
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.lab.library import Library, read_metrics
from nanogpt.runs.history import list_snapshots


def test_models_are_loaded_once_within_the_memory(lab_run: Path) -> None:
    library = Library()
    steps = list_snapshots(lab_run)
    models = {step: library.load("one", step) for step in steps}
    assert all(library.load("one", step) is models[step] for step in steps)
    size = sum(p.nbytes for p in models[0].model.parameters())
    limited = Library(model_bytes=2 * size)
    first = limited.load("one", steps[0])
    limited.load("one", steps[1])
    assert limited.load("one", steps[0]) is first
    limited.load("one", steps[2])  # drops the model of steps[1], the least recently used model
    assert limited.load("one", steps[0]) is first
    assert Library(model_bytes=1).load("one").step == models[steps[-1]].step


def test_runs_outside_runs_are_offered_by_their_path(lab_run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    lab_run.rename(elsewhere)
    assert Library().directories() == {}
    library = Library([elsewhere])
    assert list(library.directories()) == [str(elsewhere)]
    assert library.describe(str(elsewhere)).steps == 60
    with pytest.raises(UserError, match="there is no run 'one' any more"):
        library.find("one")


def test_another_run_may_have_the_name_of_a_deleted_run(lab_run: Path, template: Path) -> None:
    library = Library()
    model, texts = library.load("one"), library.texts("one")
    shutil.rmtree(lab_run)
    shutil.copytree(template, lab_run)
    os.utime(lab_run / "run.json", (0, 0))
    assert library.load("one") is not model
    assert library.texts("one") is not texts


def test_incomplete_lines_are_not_read(lab_run: Path) -> None:
    records = read_metrics(lab_run)
    with (lab_run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99')
    assert read_metrics(lab_run) == records
    assert read_metrics(lab_run, start=3) == records[3:]
