"""Each line of docs/errors.md has a test that follows its advice, here or in another file."""

from pathlib import Path

import pytest

from . import test_downloads, test_formats, test_runs
from .cases import FOLLOWED, ROWS
from .test_commands import COMMANDS
from .test_settings import SETTINGS

WITH_STEPS = (test_downloads, test_formats, test_runs)
"""Importing these modules completes FOLLOWED."""

TESTED_ELSEWHERE = {
    "cannot understand the arguments": "tests/cli/test_arguments.py",
    "blocks.0.norm1.weight has no gradient": "tests/test_optim.py",
    "there is no cuda:9": "tests/system/test_devices.py",
    "Tesla T4 does not support": "tests/system/test_devices.py",
    "a.parquet needs the library pyarrow": "tests/text/test_readers.py",
    "https://example.org/a.txt": "tests/text/test_corpora.py",
    "cannot download https": "tests/text/test_corpora.py",
    "hf:a/b": "tests/text/test_download.py",
    "cannot download hf": "tests/text/test_download.py",
    "my.txt changed while": "tests/text/test_corpora.py",
    "cannot get the corpus": "tests/text/test_corpora.py",
    "runs/tiny/best/tokenizer.json has": "tests/runs/test_checkpoint.py",
    "the model's logits": "tests/cli/test_main.py",
    "runs/tiny/last/training.json has format 2": "tests/runs/test_formats.py",
    "fitting a scaling law needs scipy": "tests/studies/test_law.py",
    "runs/ladder/gpt holds a run": "tests/studies/test_trial.py",
    "cannot write in runs/tiny (": "tests/test_survival.py",
    "a step cannot be captured": "tests/fast/test_training.py",
    "generation cannot be captured": "tests/fast/test_generation.py",
    "cannot access": "tests/test_access.py",
    "'  ' has no tokens": "tests/reports/test_inspection.py",
    "cannot write to standard output": "tests/cli/test_output.py",
    "out of memory": "tests/system/test_devices.py",
    "7x288": "tests/studies/test_processes.py",
    "gpt: cannot write": "tests/cli/test_study.py",
    "interrupted": "tests/test_survival.py",
}
"""The beginning of a line, and the tests of that error. Such an error needs something that these
tests lack: a CUDA device, a full disk, a server, a missing library, another version, a long run."""


@pytest.mark.parametrize("row", ROWS)
def test_every_line_of_the_page_is_tested(row: str) -> None:
    cases = [case.row for case in SETTINGS + COMMANDS]
    assert row.startswith((*cases, *FOLLOWED, *TESTED_ELSEWHERE))


@pytest.mark.parametrize("row", [*FOLLOWED, *TESTED_ELSEWHERE])
def test_every_entry_of_this_file_is_a_line_of_the_page(row: str) -> None:
    assert any(each.startswith(row) for each in ROWS)
    assert (Path(__file__).parents[2] / TESTED_ELSEWHERE.get(row, __file__)).exists()
