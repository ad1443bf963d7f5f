"""Arguments and interruptions of `nanogpt study`. tests/studies/ has the tests of the studies."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.platforms import posix_only

Command = Callable[..., tuple[int, str, str]]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("ladder --steps 0", "--steps is 0: it must be at least 1"),
        ("ladder --seed -1", "--seed is -1"),
        ("ladder --device cuda:99", "cuda"),
        ("ladder --data nowhere.txt", "nowhere.txt"),
        ("scaling --sizes 3", "--sizes is 3: it must be at least 4 and at most 7"),
        ("scaling --at-a-time 0", "--at-a-time is 0: it must be at least 1"),
        ("scaling --steps 0", "--steps is 0"),
        ("scaling --device tpu", "there is no device 'tpu'"),
    ],
)
def test_a_mistake_prints_one_line(nanogpt: Command, flags: str, says: str) -> None:
    status, _, err = nanogpt("study", *flags.split())
    assert (status, err.count("\n")) == (2, 1)
    assert says in err
    assert not list(Path().rglob("trial.json"))


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("name", ["ladder", "scaling"])
def test_an_interrupted_study_prints_the_command_that_resumes_it(
    process: Process, text_file: Path, name: str
) -> None:
    """Ctrl-C also reaches the child processes of the study; only the parent prints a message."""
    flags = ["--steps", "100000", "--device", "cpu", "--out", "a study"]
    flags += ["--data", str(text_file)] if name == "ladder" else ["--sizes", "4"]
    with process("study", name, *flags) as studying:
        while not [*Path("a study").glob("last"), *Path("a study").glob("*/last")]:
            assert studying.poll() is None
            time.sleep(0.1)
        os.killpg(studying.pid, signal.SIGINT)
        _, err = studying.communicate()
    assert studying.returncode == 128 + signal.SIGINT
    assert err.splitlines()[-1].endswith(f" with: nanogpt study {name} {shlex.join(flags)}")
    assert "Traceback" not in err


def test_help_lists_the_studies(nanogpt: Command) -> None:
    out = nanogpt("study", "--help")[1]
    assert "{ladder,scaling,distillation}" in out
    assert "Train models of many sizes" in out
    assert "--at-a-time" in nanogpt("study", "scaling", "--help")[1]
