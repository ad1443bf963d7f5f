"""For each error in docs/errors.md, a test follows the advice in the error.

NOT_FOLLOWED lists the exceptions.
"""

from pathlib import Path

import pytest

from . import test_downloads, test_formats, test_runs
from .cases import FOLLOWED, ROWS
from .test_commands import COMMANDS
from .test_settings import SETTINGS

WITH_STEPS = (test_downloads, test_formats, test_runs)
"""Importing these modules completes FOLLOWED."""

FULL = "cannot write in runs/tiny (No space left on device): free disk space"
FOLLOWED_ELSEWHERE = {
    "cannot understand the arguments": "tests/cli/test_arguments.py",
    "blocks.0.norm1.weight has no gradient": "tests/test_optim.py",
    "there is no cuda:9": "tests/system/test_devices.py",
    "Tesla T4 does not support": "tests/system/test_devices.py",
    "cannot access runs/mine/run.json": "tests/test_access.py",
    "cannot access runs/mine/.lock": "tests/test_access.py",
    "a.parquet needs the library pyarrow": "tests/text/test_readers.py",
    "https://example.org/a.txt is a web page": "tests/text/test_corpora.py",
    "https://example.org/a.txt has the SHA-256": "tests/text/test_corpora.py",
    "cannot download https://example": "tests/text/test_corpora.py",
    "cannot download https://openai": "tests/text/test_gpt2.py",
    "hf:a/b needs the library": "tests/text/test_hub.py",
    "hf: has no dataset": "tests/text/test_hub.py",
    "cannot download hf:a/b (Dataset": "tests/text/test_hub.py",
    "cannot download hf:a/b (Couldn't": "tests/text/test_hub.py",
    "cannot download hf:a/b (Revision": "tests/text/test_hub.py",
    "cannot download hf:a/b (Server": "tests/text/test_hub.py",
    "my.txt changed while": "tests/text/test_corpora.py",
    "cannot get the corpus": "tests/text/test_corpora.py",
    "'  ' has no tokens": "tests/reports/test_inspection.py",
    "runs/tiny/best/tokenizer.json has": "tests/runs/test_checkpoint.py",
    "runs/tiny/last/training.json has format 2": "tests/runs/test_formats.py",
    "fitting a scaling law needs scipy": "tests/studies/test_law.py",
    "runs/ladder/gpt holds a run": "tests/studies/test_ladder.py",
    f"{FULL}, then resume": "tests/test_survival.py",
    f"{FULL}, then start again": "tests/test_survival.py",
    "cannot write in runs/tiny (Read-only": "tests/test_access.py",
    "a step cannot be captured": "tests/fast/test_training.py",
    "the model cannot be compiled": "tests/fast/test_training.py",
    "generation cannot be captured": "tests/fast/test_training.py",
    "out of memory: 2.50 GiB more was requested; the same": "tests/test_errors.py",
    "out of memory: 2.50 GiB more was requested, and each": "tests/test_errors.py",
    "out of memory: 372.53": "tests/test_errors.py",
    "7x288-1-of-1-free was killed": "tests/studies/test_processes.py",
    "gpt: cannot write": "tests/studies/test_ladder.py",
    "cannot write to standard output": "tests/cli/test_output.py",
    "the model's logits": "tests/cli/test_main.py",
    "port is 0": "tests/cli/test_lab.py",
    "cannot listen": "tests/cli/test_lab.py",
    "--host 0.0.0.0": "tests/cli/test_lab.py",
    "the lab needs more libraries": "tests/cli/test_lab.py",
    "there is no run 'tiny' any more": "tests/lab/test_answers.py",
    "the run 'tiny' has no snapshot": "tests/lab/test_answers.py",
    "step is 'x'": "tests/lab/test_answers.py",
    "--teachers has no value": "tests/test_distillation.py",
    "the teacher runs/a has": "tests/test_distillation.py",
    "the teacher runs/a reads": "tests/test_distillation.py",
    "the number of --teachers": "tests/test_distillation.py",
    "transfer_share is 0.1, so": "tests/test_distillation.py",
    "--transfer: there": "tests/test_distillation.py",
    "this run was started with a transfer": "tests/test_distillation.py",
    "this run was started without a transfer": "tests/test_distillation.py",
    "ngram_weight is 0.2, but": "tests/test_distillation.py",
    "the kernels cannot be compiled": "tests/fast/test_generation.py",
    "compile needs Triton": "tests/fast/test_generation.py",
    "torchrun can only": "tests/fast/test_parallel.py",
    "this machine has 2 GPUs": "tests/system/test_devices.py",
    "the GPUs cannot communicate": "tests/system/test_distributed.py",
    "processes 0 and 1 use": "tests/system/test_distributed.py",
    "2 processes cannot use": "tests/fast/test_parallel.py",
    "2 processes cannot read": "tests/fast/test_parallel.py",
    "process 0 starts": "tests/fast/test_parallel.py",
    "MASTER_PORT is not set": "tests/system/test_launch.py",
    "RANK is 2": "tests/system/test_launch.py",
    "WORLD_SIZE is two": "tests/system/test_launch.py",
    "2 processes cannot train": "tests/fast/test_parallel.py",
    "--train.batch-size is 24: 2": "tests/runs/test_sharing.py",
    "mean_teacher is 0.5, but shard": "tests/fast/test_sharding.py",
    "seed is 0 in process 0": "tests/fast/test_parallel.py",
    "process 1: ": "tests/system/test_distributed.py",
    "the 2 processes cannot": "tests/system/test_distributed.py",
    "another process of this run": "tests/fast/test_lost_processes.py",
    **dict.fromkeys(
        (
            "gpt2 is not a folder",
            "the model in gpt2 is",
            "activation_function is relu",
            "the output layer in gpt2",
            "gpt2 has only pickled",
            "gpt2 has no weights",
            "gpt2/config.json is missing",
            "gpt2 has no tokenizer",
            "the tokenizer in gpt2",
        ),
        "tests/interop/test_refused_imports.py",
    ),
    **dict.fromkeys(
        (
            "nanogpt import needs",
            "runs/gpt2 has no last",
            "hf:gpt2 needs",
            "runs/gpt2 was imported",
            "runs/gpt2 has another tokenizer",
            "n_layer is 3, but",
            "runs/gpt2 has a GPT",
        ),
        "tests/interop/test_import.py",
    ),
    "cannot upload": "tests/interop/test_upload.py",
    "--track wandb needs": "tests/interop/test_trackers.py",
    "mine.json": "tests/runs/test_settings.py",
    "runs/tiny/hf exists": "tests/interop/test_export.py",
    "transformers has no class": "tests/interop/test_export.py",
    "llama.cpp cannot compute": "tests/interop/test_export.py",
    "llama.cpp has no tokenizer": "tests/interop/test_export.py",
    "--to gguf needs": "tests/interop/test_export.py",
    "cannot write runs/tiny/hf": "tests/interop/test_export.py",
    "runs/a/best/ does not have": "tests/test_distillation.py",
    "temperature is 'hot'": "tests/lab/test_answers.py",
    "the model has no part": "tests/reports/test_ablation.py",
    "the text is too long to count": "tests/lab/test_answers.py",
    "the training text is too long": "tests/lab/test_answers.py",
    "the two runs have": "tests/lab/test_answers.py",
    "2 runs are training": "tests/lab/test_training.py",
    "the run 'tiny' is not training": "tests/lab/test_training.py",
    "'seed' cannot": "tests/lab/test_training.py",
    "n_layer is 99": "tests/lab/test_training.py",
    "training a model with 480,018": "tests/lab/test_failures.py",
    "n_embd is '1e3'": "tests/lab/test_failures.py",
    "'n_layer' is not": "tests/lab/test_training.py",
    "this text is not": "tests/lab/test_training.py",
    "the text has 30": "tests/lab/test_training.py",
    "the text is not UTF-8": "tests/lab/test_training.py",
    "the request is too long": "tests/lab/test_training.py",
    "this request is invalid": "tests/lab/test_training.py",
    "the lab does not answer": "tests/lab/test_failures.py",
    "the lab was started again": "tests/lab/test_failures.py",
    "this saved page does not": "tests/lab/test_browser.py",
    "interrupted; saved": "tests/test_survival.py",
}
"""The beginnings of lines, and the tests that follow their advice. Most of these errors need
something that the tests here lack: a full disk, a server, a missing library, another version, a
long run. The tests of the two lines about CUDA graphs need a CUDA device, so they run only with
-m gpu."""

NOT_FOLLOWED = {
    "the lab failed: its terminal says why": (
        "tests/lab/test_browser.py",
        "the advice is to report a bug",
    ),
    "7x288-1-of-1-free failed: see the traceback above": (
        "tests/studies/test_processes.py",
        "the advice is to report a bug",
    ),
    "interrupted": ("tests/test_survival.py", "nothing was saved, so there is no advice"),
}
"""Whole lines; for each line, the tests of its error and why no test follows its advice."""

FILES = FOLLOWED_ELSEWHERE | {row: file for row, (file, _) in NOT_FOLLOWED.items()}


@pytest.mark.parametrize("row", ROWS)
def test_every_line_of_the_page_is_tested(row: str) -> None:
    cases = [case.row for case in SETTINGS + COMMANDS]
    assert row.startswith((*cases, *FOLLOWED, *FOLLOWED_ELSEWHERE)) or row in NOT_FOLLOWED


@pytest.mark.parametrize("row", [*FOLLOWED, *FILES])
def test_every_entry_of_this_file_is_a_line_of_the_page(row: str) -> None:
    assert any(each.startswith(row) for each in ROWS)
    assert (Path(__file__).parents[2] / FILES.get(row, __file__)).exists()
