"""The option --resume of `nanogpt train`."""

import re
import shutil
from pathlib import Path

import pytest

from nanogpt.runs.checkpoint import load_checkpoint

from .answers import Command, assert_refused


@pytest.mark.parametrize(
    "how",
    [
        ("--resume", "mine"),
        ("--resume=mine",),
        ("--resume", "nope", "--resume", "mine"),
        ("--resume",),
    ],
)
def test_a_run_can_be_resumed(nanogpt: Command, run: Path, how: tuple[str, ...]) -> None:
    if how[-1] == "--resume":  # resumes the newest run in runs/
        Path("runs").mkdir()
        run = run.rename("runs/mine")
    status, out, err = nanogpt("train", *how, "--train.steps", 30)
    assert (status, err) == (0, "")
    assert f"{run}: GPT, " in out
    assert "resuming from step 20\n" in out
    assert "all 30 steps done" in out


def test_the_help_of_resume_has_the_settings_of_the_run(nanogpt: Command, run: Path) -> None:
    status, out, _ = nanogpt("train", "--resume", run, "--help")
    assert status == 0
    assert "Resume mine from its last checkpoint" in out
    assert "(default: 16)" in re.sub(r"[│\s]+", " ", out)  # the run has block size 16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("tiny --resume mine", "--resume keeps the settings of the run: leave out tiny"),
        ("tiny --resume", "--resume keeps the settings of the run: leave out tiny"),
        ("--resume mine tiny", "--resume is 'mine tiny': it must be one run"),
        ("--resume nope", "there is no run 'nope'"),
        ("--resume mine --train.steps 10", "--train.steps is 10, but mine is already at step 20"),
        ("--resume mine --seed 3", "--seed is 3, but this run was started with 1337: leave"),
        ("--resume mine --out other", "--out is other, but this run was started with mine: "),
        (
            "--resume mine --precision float64",
            "--precision is 'float64': it must be one of",
        ),
    ],
)
def test_resume_refuses_invalid_arguments(
    nanogpt: Command, run: Path, arguments: str, says: str
) -> None:
    assert_refused(nanogpt("train", *arguments.split()), says)


def test_resume_needs_only_the_last_checkpoint(nanogpt: Command, run: Path) -> None:
    shutil.rmtree(run / "best")
    assert nanogpt("train", "--resume", run)[0] == 0
    assert load_checkpoint(run / "best").step == 20
    (run / "last" / "training.json").unlink()
    assert_refused(
        nanogpt("train", "--resume", run), "mine/last/training.json is missing or damaged"
    )
