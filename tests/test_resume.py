"""A run that is stopped and resumed gives the same results as a run without a stop."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt.errors import Interrupted, UserError
from nanogpt.models import BigramConfig, GPTConfig, ModernConfig
from nanogpt.optim import OptimConfig
from nanogpt.runs.checkpoint import Best, load_checkpoint
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.runs.directory import lock_run
from nanogpt.runs.journal import Record
from nanogpt.runs.reporter import Reporter
from nanogpt.runs.run import read_run_config
from nanogpt.system.devices import Precision
from nanogpt.train import resume_training, train
from tests.marks import slow
from tests.same import assert_same, metrics

Command = Callable[..., tuple[int, str, str]]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    """The configuration of a run that takes about a second and uses dropout."""
    return RunConfig(
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1),
        optim=OptimConfig(lr=1e-2, warmup=10),
        train=TrainConfig(steps=60, batch_size=8, eval_every=20, log_every=5),
    )


class Interrupter(Reporter):
    """Sends SIGINT to this process after the line of step `step` is written to metrics.jsonl."""

    def __init__(self, step: int) -> None:
        self.step = step

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            signal.raise_signal(signal.SIGINT)


def train_with_interruptions(config: RunConfig, out: Path, *steps: int) -> None:
    """Train a run that is interrupted at each of these steps and resumed each time."""
    with pytest.raises(Interrupted):
        train(replace(config, out=out), Interrupter(steps[0]))
    for step in steps[1:]:
        with pytest.raises(Interrupted):
            resume_training(out, read_run_config(out), Interrupter(step))
    resume_training(out, read_run_config(out))


VARIANTS = {
    "adamw": {},
    "adam": {"optim": OptimConfig("adam", lr=1e-2, warmup=10)},
    "no warm-up, no clipping": {"optim": OptimConfig(lr=1e-2, warmup=0, grad_clip=0.0)},
    "muon": {
        "model": ModernConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1),
        "optim": OptimConfig("muon", lr=1e-2, warmup=10, schedule="linear"),
    },
    "rows": {
        "model": ModernConfig(
            n_layer=2,
            n_head=2,
            n_embd=32,
            block_size=16,
            dropout=0.1,
            activation="swiglu",
            skips=True,
        ),
        "optim": OptimConfig("muon", lr=1e-2, normalise_rows=True, cautious_decay=True, ema=0.9),
        "train": TrainConfig(60, 8, eval_every=20, log_every=5, mean_teacher=0.3),
    },
    "averaged": {"optim": OptimConfig(lr=3e-2, warmup=10, ema=0.9)},
    "epochs": {"train": TrainConfig(60, 8, order="epochs", eval_every=20, log_every=5)},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "bigram": {"model": BigramConfig(block_size=16)},
    "parts": {"train": TrainConfig(60, 8, accumulation=4, eval_every=20, log_every=5)},
}
QUICK = ["muon"]


@pytest.mark.parametrize(
    "variant", [variant if variant in QUICK else slow(variant) for variant in VARIANTS]
)
def test_a_resumed_run_equals_a_run_without_a_stop(config: RunConfig, variant: str) -> None:
    config = replace(config, **VARIANTS[variant])  # type: ignore[arg-type]
    train(replace(config, out=Path("straight")))
    # Stop before the first step, soon after a checkpoint, at a checkpoint, and between checkpoints.
    train_with_interruptions(config, Path("stopped"), 0, 5, 20, 35)
    assert_same(Path("straight"), Path("stopped"))


def test_a_run_of_twice_30_steps_equals_a_run_of_60_steps(config: RunConfig) -> None:
    """Because of decay_steps, both runs have the same learning-rate schedule."""
    settings = replace(config.train, eval_every=30)
    config = replace(config, optim=replace(config.optim, decay_steps=60), train=settings)
    train(replace(config, out=Path("straight")))
    train(replace(config, out=Path("half"), train=replace(config.train, steps=30)))
    assert metrics(Path("half"))[-1]["step"] == 30
    resume_training(Path("half"), replace(read_run_config(Path("half")), train=config.train))
    assert_same(Path("straight"), Path("half"))


@pytest.mark.parametrize(("decay_steps", "times"), [(None, 1), (60, 0)])
def test_a_changed_schedule_is_reported(
    config: RunConfig, decay_steps: int | None, times: int
) -> None:
    class LineRecorder(Reporter):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def said(self, line: str) -> None:
            self.lines.append(line)

    optim = replace(config.optim, decay_steps=decay_steps)
    train(replace(config, out=Path("run"), optim=optim, train=replace(config.train, steps=20)))
    saved, recorder = read_run_config(Path("run")), LineRecorder()
    resume_training(Path("run"), saved, recorder)
    assert recorder.lines == []
    resume_training(Path("run"), replace(saved, train=config.train), recorder)
    message = (
        "The learning-rate schedule was planned for 20 steps; from here on, "
        "it is planned for 60 steps."
    )
    assert recorder.lines == [message] * times


def test_a_run_that_dies_at_any_step_is_resumed_exactly(config: RunConfig) -> None:
    """The run ends after it records a step, without another checkpoint, as in a power failure."""

    class PowerFailure(Reporter):
        def __init__(self, step: int) -> None:
            self.step = step

        def recorded(self, record: Record, best: Best | None) -> None:
            if record.step == self.step:
                raise KeyboardInterrupt

    train(replace(config, out=Path("straight")))
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, out=Path("failed")), PowerFailure(0))
    for step in (15, 20, 55, 60):  # at step 20, the run ends after best/ is written
        with pytest.raises(KeyboardInterrupt):
            resume_training(Path("failed"), read_run_config(Path("failed")), PowerFailure(step))
    with Path("failed/metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "tok')  # half a line
    resume_training(Path("failed"), read_run_config(Path("failed")))
    assert_same(Path("straight"), Path("failed"))


def test_resuming_a_finished_run_changes_nothing(config: RunConfig) -> None:
    first = train(replace(config, out=Path("run")))
    before = metrics(Path("run"))
    again = resume_training(Path("run"), read_run_config(Path("run")))
    assert again.ended == first.ended == "all 60 steps done"
    assert again.best == first.best
    assert metrics(Path("run")) == before


def test_a_run_can_be_resumed_in_another_directory(config: RunConfig) -> None:
    train(replace(config, out=Path("straight")))
    with pytest.raises(Interrupted):
        train(replace(config, out=Path("old")), Interrupter(35))
    shutil.move("old", "new")
    resume_training(Path("new"), read_run_config(Path("new")))
    assert_same(Path("straight"), Path("new"))
    assert json.loads(Path("new/run.json").read_text())["config"]["out"] == "new"


def test_best_is_kept_if_later_evaluations_are_worse(config: RunConfig) -> None:
    train(replace(config, out=Path("run"), train=replace(config.train, steps=30)))
    best = load_checkpoint("run/best")
    worse = replace(read_run_config(Path("run")), optim=replace(config.optim, lr=10.0))
    result = resume_training(Path("run"), replace(worse, train=config.train))
    assert result.best == best.best
    assert load_checkpoint("run/best").step == best.step


def test_a_run_can_be_resumed_without_best(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(replace(config, out=Path("run")), Interrupter(25))
    shutil.rmtree("run/best")
    result = resume_training(Path("run"), read_run_config(Path("run")))
    assert load_checkpoint("run/best").best == result.best
    assert result.best.step in (40, 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"seed": 1},
            "--seed is 1, but this run was started with 1337: leave the option out, or start",
        ),
        ({"name": "other"}, "--name is other, but this run was started with gpt"),
        ({"out": Path("other")}, "--out is other, but this run was started with run"),
        (
            {"model": GPTConfig(n_layer=3)},
            r"--model\.block-size is 256, but this run was started",
        ),
        (
            {"model": BigramConfig(12, 16)},
            r"--model\.bias is None, but this run was started",
        ),
        (
            {"optim": OptimConfig("adam")},
            r"--optim\.optimizer is adam, but this run was started with ad",
        ),
        (
            {"train": TrainConfig(steps=10)},
            r"--train\.steps is 10, but run is already at step 21: ch",
        ),
        ({"data": "nowhere.txt"}, "there is no file or corpus nowhere.txt"),
        ({"data": "other.txt"}, "other.txt is not the text that this run was trained on"),
    ],
)
def test_settings_of_another_run_are_refused(
    config: RunConfig, change: dict[str, object], message: str
) -> None:
    Path("other.txt").write_text("other " * 1000)
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, out=Path("run")), Interrupter(20))
    before = {file: file.read_bytes() for file in Path("run").rglob("[!.]*") if file.is_file()}
    # Keep the error: its traceback refers to the lock object. If Python deleted this object, that
    # would release the lock, and the test could not show that resume_training() releases it.
    with pytest.raises(UserError, match=message) as _error:
        resume_training(Path("run"), replace(read_run_config(Path("run")), **change))  # type: ignore[arg-type]
    lock_run(Path("run")).release()  # succeeds only if the lock was released
    assert before == {f: f.read_bytes() for f in Path("run").rglob("[!.]*") if f.is_file()}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (3, "3 lines, but the checkpoint was saved after line 4"),
        (0, "0 lines, but the checkpoint was saved after line 4"),
        (None, "Expecting"),
        (-1, "3 lines, but the checkpoint was saved after line 4"),
    ],
)
def test_changed_metrics_are_refused(config: RunConfig, lines: int | None, message: str) -> None:
    train(replace(config, out=Path("run"), train=replace(config.train, steps=20)))
    file = Path("run/metrics.jsonl")
    kept = file.read_text().splitlines(keepends=True)[:lines] if lines is not None else ["x\n"] * 9
    file.write_text("".join(kept) if lines != -1 else "".join(kept)[:-1])  # without the last \n
    with pytest.raises(UserError, match=rf"run.metrics\.jsonl is missing or damaged \({message}"):
        resume_training(Path("run"), read_run_config(Path("run")))


def gpu_flags(out: str, steps: int) -> list[object]:
    """Return arguments for a compiled run of the preset `baby` on a text of 6,000 characters."""
    return [
        *("train", "baby", "--data", "words.txt", "--out", out, "--device", "cuda"),
        *("--train.steps", steps, "--train.eval-every", 25, "--optim.decay-steps", 100),
        "--deterministic",
    ]


@pytest.mark.gpu
def test_a_deterministic_run_on_a_gpu_is_resumed_exactly(process: Process, text_file: Path) -> None:
    """Each run is a new process: cuBLAS and the compiler are configured only once per process."""
    for arguments in (
        gpu_flags("straight", 100),
        gpu_flags("half", 40),
        ["train", "--resume", "half", "--train.steps", 100],
    ):
        with process(*arguments) as training:
            _, err = training.communicate()
            assert (training.returncode, err) == (0, "")
    assert_same(Path("straight"), Path("half"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_interruptions_hardly_change_the_losses(
    config: RunConfig, precision: Precision
) -> None:
    train_config = replace(config.train, compile=False)
    config = replace(config, device="cuda", precision=precision, train=train_config)
    straight = train(replace(config, out=Path("straight")))
    train_with_interruptions(config, Path("stopped"), 20, 35)
    for one, other in zip(metrics(Path("straight")), metrics(Path("stopped")), strict=True):
        assert one == pytest.approx(other, abs=0.05)
    assert straight.best.val_loss < 2.4


@pytest.mark.gpu
def test_a_run_can_be_resumed_on_another_device(config: RunConfig) -> None:
    config = replace(config, device="cuda", train=replace(config.train, compile=False))
    with pytest.raises(Interrupted):
        train(replace(config, out=Path("run")), Interrupter(20))
    result = resume_training(Path("run"), replace(read_run_config(Path("run")), device="cpu"))
    assert result.last.step == 60
    assert result.best.val_loss < 2.4


@pytest.mark.gpu
def test_out_of_memory_suggests_smaller_parts(
    nanogpt: Command, text_file: Path, process: Process
) -> None:
    arguments = [*gpu_flags("large", 1)[:-1], "--train.batch-size", 16384, "--train.no-compile"]
    with process(*arguments) as training:
        _, err = training.communicate()
        assert training.returncode == 1
    match = re.fullmatch(
        r"nanogpt: out of memory: [\d.]+ GiB more was requested; the same batch in smaller parts "
        r"needs less memory: nanogpt (train --resume large --train.batch-size 16384 "
        r"--train.accumulation 2)\n",
        err,
    )
    assert match, err
    with process(*match[1].replace("accumulation 2", "accumulation 64").split()) as training:
        _, err = training.communicate()
        assert (training.returncode, err) == (0, "")
