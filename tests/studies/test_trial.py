"""A trial is trained only once: an interrupted trial resumes, and a finished trial is read."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt.errors import Interrupted, Stopped, UserError
from nanogpt.runs.checkpoint import Best
from nanogpt.runs.config import RunConfig
from nanogpt.runs.journal import Record
from nanogpt.runs.reporter import Reporter
from nanogpt.runs.run import Run
from nanogpt.studies import trial as module
from nanogpt.studies.trial import make_directory, read_finished_trial, run_trial


class InterruptAt(Reporter):
    """Interrupts a run at a step, like Ctrl-C."""

    def __init__(self, step: int) -> None:
        self.step = step

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def requested(config: RunConfig) -> RunConfig:
    return replace(config, out=Path("study/one"))


def test_trial_summarises_the_run(requested: RunConfig) -> None:
    trial = run_trial(requested, "command")
    lines = [json.loads(line) for line in Path("study/one/metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert trial.val_loss == min(losses)
    assert [point.loss for point in trial.points] == losses
    assert trial.points[-1].tokens == 60 * 8 * 16
    assert trial.train_tokens == 5400
    best = losses.index(min(losses))
    assert trial.tokens == trial.points[best].tokens
    assert trial.parameters == json.loads(Path("study/one/run.json").read_text())["parameters"]


def test_finished_trial_is_read(requested: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_finished_trial(requested) is None
    trial = run_trial(requested, "command")
    monkeypatch.setattr(module, "train", None)
    assert run_trial(requested, "command") == trial
    assert run_trial(replace(requested, device="cuda:7"), "command").val_loss == trial.val_loss


@pytest.mark.slow
def test_interrupted_trial_resumes_to_the_same_result(requested: RunConfig) -> None:
    whole = run_trial(replace(requested, out=Path("study/whole")), "command")
    with pytest.raises(Interrupted, match=r"small at step 2\d; resume with: nanogpt study x$"):
        run_trial(requested, "nanogpt study x", InterruptAt(25))
    assert read_finished_trial(requested) is None
    parts = run_trial(requested, "nanogpt study x")
    assert (parts.val_loss, parts.tokens) == (whole.val_loss, whole.tokens)
    assert [p.loss for p in parts.points] == [p.loss for p in whole.points]


def test_finished_run_with_other_settings_is_refused(requested: RunConfig) -> None:
    run_trial(requested, "command")
    with pytest.raises(UserError, match="holds a run with seed 1337, but this study needs 7"):
        run_trial(replace(requested, seed=7), "command")


def test_interrupted_run_with_other_settings_is_refused(requested: RunConfig) -> None:
    with pytest.raises(Interrupted):
        run_trial(requested, "command", InterruptAt(25))
    decays = replace(requested, optim=replace(requested.optim, weight_decay=2.4))
    with pytest.raises(UserError, match=r"holds a run with optim\.weight_decay 0\.1, .* 2\.4"):
        run_trial(decays, "command")
    with pytest.raises(UserError, match=r"holds a run with train\.steps 60, .* needs 90"):
        run_trial(replace(requested, train=replace(requested.train, steps=90)), "command")


def test_text_may_move_but_not_change(requested: RunConfig) -> None:
    trial = run_trial(requested, "command")
    elsewhere = Path("elsewhere.txt").absolute()
    elsewhere.write_bytes(Path(requested.data).read_bytes())
    assert run_trial(replace(requested, data=str(elsewhere)), "command") == trial
    elsewhere.write_text(elsewhere.read_text()[::-1])
    with pytest.raises(UserError, match=r"elsewhere\.txt is not the text"):
        run_trial(replace(requested, data=str(elsewhere)), "command")


def test_stopped_trial_gives_no_advice_that_changes_its_settings(
    requested: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", full)
        error = r"^cannot write in study/one \(No space left on device\)$"
        with pytest.raises(Stopped, match=error):
            run_trial(requested, "command")
    hot = replace(
        requested, name="hot", out=Path("study/hot"), optim=replace(requested.optim, lr=1e30)
    )
    with pytest.raises(Stopped, match=r"^hot: .* at learning rate [\de+.]+$"):
        run_trial(hot, "command")


@pytest.mark.parametrize("content", ["", "{}", '{"val_loss": 1}', "[]"])
def test_damaged_result_is_reported(requested: RunConfig, content: str) -> None:
    make_directory(Path("study/one"))
    Path("study/one/trial.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged"):
        run_trial(requested, "command")


def test_make_directory_refuses_a_path_below_a_file(text_file: Path) -> None:
    with pytest.raises(UserError, match="name another directory with --out"):
        make_directory(text_file / "study")


def test_run_killed_before_its_first_checkpoint_starts_again(requested: RunConfig) -> None:
    class Killed(Reporter):
        def started(self, run: Run) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_trial(requested, "command", Killed())
    assert not Path("study/one/last").exists()
    assert run_trial(requested, "command").points


def test_run_killed_after_its_last_step_loses_nothing(requested: RunConfig) -> None:
    trial = run_trial(requested, "command")
    Path("study/one/trial.json").unlink()
    again = run_trial(requested, "command")
    assert (again.val_loss, again.tokens) == (trial.val_loss, trial.tokens)
    assert [p.loss for p in again.points] == [p.loss for p in trial.points]
