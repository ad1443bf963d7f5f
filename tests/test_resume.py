"""A run that was stopped, in whatever way, and went on is the run that it would have been."""

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
from nanogpt.runs.run import read_run_config
from nanogpt.system.devices import Precision
from nanogpt.train import Reporter, resume_training, train
from tests.same import assert_same, metrics

Command = Callable[..., tuple[int, str, str]]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def config(text_file: Path) -> RunConfig:
    """A run of a second, with everything in it that draws random numbers."""
    return RunConfig(
        data=str(text_file),
        device="cpu",
        precision="float32",
        model=GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1),
        optim=OptimConfig(lr=1e-2, warmup=10),
        train=TrainConfig(steps=60, batch_size=8, eval_every=20, log_every=5),
    )


class Stop(Reporter):
    """Asks the run to end, as the user would, when a line of a step is written."""

    def __init__(self, step: int, how: signal.Signals = signal.SIGINT) -> None:
        self.step, self.how = step, how

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            signal.raise_signal(self.how)


def interrupted(config: RunConfig, out: Path, *steps: int) -> None:
    """A run that is stopped at the steps given, each time going on, and then ends."""
    with pytest.raises(Interrupted):
        train(replace(config, out=out), Stop(steps[0]))
    for step in steps[1:]:
        with pytest.raises(Interrupted):
            resume_training(out, read_run_config(out), Stop(step))
    resume_training(out, read_run_config(out))


VARIANTS = {
    "adamw": {},
    "adam": {"optim": OptimConfig("adam", lr=1e-2, warmup=10)},
    "no warm-up, no clipping": {"optim": OptimConfig(lr=1e-2, warmup=0, grad_clip=0.0)},
    "muon": {
        "model": ModernConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1),
        "optim": OptimConfig("muon", lr=1e-2, warmup=10, schedule="linear"),
    },
    "averaged": {"optim": OptimConfig(lr=3e-2, warmup=10, ema=0.9)},
    "epochs": {"train": TrainConfig(60, 8, order="epochs", eval_every=20, log_every=5)},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "bigram": {"model": BigramConfig(block_size=16)},
    "parts": {"train": TrainConfig(60, 8, accumulation=4, eval_every=20, log_every=5)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_exact_to_the_bit(config: RunConfig, variant: str) -> None:
    config = replace(config, **VARIANTS[variant])  # type: ignore[arg-type]
    train(replace(config, out=Path("straight")))
    # Where a checkpoint is due anyway, just after one, between two lines, and at the first step.
    interrupted(config, Path("stopped"), 0, 5, 20, 35)
    assert_same(Path("straight"), Path("stopped"))


def test_going_further_is_exact_too(config: RunConfig) -> None:
    """N steps, and N more, by a schedule that does not depend on where it ends."""
    settings = replace(config.train, eval_every=30)
    config = replace(config, optim=replace(config.optim, decay_steps=60), train=settings)
    train(replace(config, out=Path("straight")))
    train(replace(config, out=Path("half"), train=replace(config.train, steps=30)))
    assert metrics(Path("half"))[-1]["step"] == 30
    resume_training(Path("half"), replace(read_run_config(Path("half")), train=config.train))
    assert_same(Path("straight"), Path("half"))


@pytest.mark.parametrize(("decay_steps", "times"), [(None, 1), (60, 0)])
def test_a_plan_that_changes_is_said(
    config: RunConfig, decay_steps: int | None, times: int
) -> None:
    class Ears(Reporter):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def said(self, line: str) -> None:
            self.heard.append(line)

    optim = replace(config.optim, decay_steps=decay_steps)
    train(replace(config, out=Path("run"), optim=optim, train=replace(config.train, steps=20)))
    begun, ears = read_run_config(Path("run")), Ears()
    resume_training(Path("run"), begun, ears)
    assert ears.heard == []
    resume_training(Path("run"), replace(begun, train=config.train), ears)
    says = "The learning rate was planned for 20 steps; from here on it follows a plan for 60."
    assert ears.heard == [says] * times


def test_it_is_the_same_when_it_ends_anywhere_else(config: RunConfig) -> None:
    """An end that saves nothing: as if the plug had been pulled after a line was written."""

    class Pull(Reporter):
        def __init__(self, step: int) -> None:
            self.step = step

        def recorded(self, record: Record, best: Best | None) -> None:
            if record.step == self.step:
                raise KeyboardInterrupt

    train(replace(config, out=Path("straight")))
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, out=Path("pulled")), Pull(0))
    for step in (15, 20, 55, 60):  # best/ of step 20 is written by then, its line is not
        with pytest.raises(KeyboardInterrupt):
            resume_training(Path("pulled"), read_run_config(Path("pulled")), Pull(step))
    with Path("pulled/metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "tok')  # half a line
    resume_training(Path("pulled"), read_run_config(Path("pulled")))
    assert_same(Path("straight"), Path("pulled"))


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(config: RunConfig) -> None:
    first = train(replace(config, out=Path("run")))
    before = metrics(Path("run"))
    again = resume_training(Path("run"), read_run_config(Path("run")))
    assert again.ended == first.ended == "all 60 steps done"
    assert again.best == first.best
    assert metrics(Path("run")) == before


def test_it_can_move_house(config: RunConfig) -> None:
    train(replace(config, out=Path("straight")))
    with pytest.raises(Interrupted):
        train(replace(config, out=Path("old")), Stop(35))
    shutil.move("old", "new")
    resume_training(Path("new"), read_run_config(Path("new")))
    assert_same(Path("straight"), Path("new"))
    assert json.loads(Path("new/run.json").read_text())["config"]["out"] == "new"


def test_the_best_is_kept_though_what_follows_is_worse(config: RunConfig) -> None:
    train(replace(config, out=Path("run"), train=replace(config.train, steps=30)))
    best = load_checkpoint("run/best")
    worse = replace(read_run_config(Path("run")), optim=replace(config.optim, lr=10.0))
    result = resume_training(Path("run"), replace(worse, train=config.train))
    assert result.best == best.best
    assert load_checkpoint("run/best").step == best.step


def test_the_best_may_have_been_deleted(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(replace(config, out=Path("run")), Stop(25))
    shutil.rmtree("run/best")
    result = resume_training(Path("run"), read_run_config(Path("run")))
    assert load_checkpoint("run/best").best == result.best
    assert result.best.step in (40, 60)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "--seed is 1, and this run began with 1337: leave it out, or begin another"),
        ({"name": "other"}, "--name is other, and this run began with gpt"),
        ({"out": Path("other")}, "--out is other, and this run began with run"),
        (
            {"model": GPTConfig(n_layer=3)},
            r"--model\.block-size is 256, and this run began",
        ),
        (
            {"model": BigramConfig(12, 16)},
            r"--model\.bias is None, and this run began",
        ),
        ({"optim": OptimConfig("adam")}, r"--optim\.optimizer is adam, and this run began with ad"),
        ({"train": TrainConfig(steps=10)}, r"--train\.steps is 10, and run is at step 21: name a"),
        ({"data": "nowhere.txt"}, "there is no file nowhere.txt"),
        ({"data": "other.txt"}, "other.txt is not the text that this run was trained on"),
    ],
)
def test_another_run_is_refused(config: RunConfig, change: dict[str, object], says: str) -> None:
    Path("other.txt").write_text("other " * 1000)
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, out=Path("run")), Stop(20))
    before = {file: file.read_bytes() for file in Path("run").rglob("[!.]*") if file.is_file()}
    with pytest.raises(UserError, match=says) as _error:  # keeps what the run held alive
        resume_training(Path("run"), replace(read_run_config(Path("run")), **change))  # type: ignore[arg-type]
    lock_run(Path("run")).release()  # it is free for another try
    assert before == {f: f.read_bytes() for f in Path("run").rglob("[!.]*") if f.is_file()}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (3, "3 lines, and the checkpoint was made after 4"),
        (0, "0 lines, and the checkpoint was made after 4"),
        (None, "Expecting"),
        (-1, "3 lines, and the checkpoint was made after 4"),
    ],
)
def test_metrics_that_were_changed_are_named(
    config: RunConfig, lines: int | None, says: str
) -> None:
    train(replace(config, out=Path("run"), train=replace(config.train, steps=20)))
    file = Path("run/metrics.jsonl")
    kept = file.read_text().splitlines(keepends=True)[:lines] if lines is not None else ["x\n"] * 9
    file.write_text("".join(kept) if lines != -1 else "".join(kept)[:-1])  # the last one cut
    with pytest.raises(UserError, match=rf"run.metrics\.jsonl is missing or damaged \({says}"):
        resume_training(Path("run"), read_run_config(Path("run")))


# By signals, from outside.


def gpu_flags(out: str, steps: int) -> list[object]:
    """The shape of baby, compiled, on a text of 6,000 characters."""
    return [
        *("train", "baby", "--data", "words.txt", "--out", out, "--device", "cuda"),
        *("--train.steps", steps, "--train.eval-every", 25, "--optim.decay-steps", 100),
        "--deterministic",
    ]


@pytest.mark.gpu
def test_on_a_gpu_it_is_exact_when_asked(process: Process, text_file: Path) -> None:
    """In processes of their own, as cuBLAS and the compiler are set up once for each."""
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
def test_on_a_gpu_a_stopped_run_learns_as_well(config: RunConfig, precision: Precision) -> None:
    train_config = replace(config.train, compile=False)
    config = replace(config, device="cuda", precision=precision, train=train_config)
    straight = train(replace(config, out=Path("straight")))
    interrupted(config, Path("stopped"), 20, 35)
    for one, other in zip(metrics(Path("straight")), metrics(Path("stopped")), strict=True):
        assert one == pytest.approx(other, abs=0.05)
    assert straight.best.val_loss < 2.4


@pytest.mark.gpu
def test_a_run_goes_on_on_another_device(config: RunConfig) -> None:
    config = replace(config, device="cuda", train=replace(config.train, compile=False))
    with pytest.raises(Interrupted):
        train(replace(config, out=Path("run")), Stop(20))
    result = resume_training(Path("run"), replace(read_run_config(Path("run")), device="cpu"))
    assert result.last.step == 60
    assert result.best.val_loss < 2.4


@pytest.mark.gpu
def test_out_of_memory_says_what_to_change(
    nanogpt: Command, text_file: Path, process: Process
) -> None:
    arguments = [*gpu_flags("large", 1)[:-1], "--train.batch-size", 16384, "--train.no-compile"]
    with process(*arguments) as training:
        _, err = training.communicate()
        assert training.returncode == 1
    says = re.fullmatch(
        r"nanogpt: out of memory: [\d.]+ GiB more were asked for; the same batch in smaller parts "
        r"needs less: nanogpt (train --resume large --train.batch-size 16384 "
        r"--train.accumulation 2)\n",
        err,
    )
    assert says, err
    with process(*says[1].replace("accumulation 2", "accumulation 64").split()) as training:
        _, err = training.communicate()
        assert (training.returncode, err) == (0, "")
