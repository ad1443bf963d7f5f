"""A run of a study: made once, gone on with, read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt.errors import Interrupted, Stopped, UserError
from nanogpt.runs.checkpoint import Best
from nanogpt.runs.config import RunConfig
from nanogpt.runs.journal import Record
from nanogpt.runs.run import Run
from nanogpt.studies import trial as module
from nanogpt.studies.trial import make_directory, read_finished_trial, run_trial
from nanogpt.train import Reporter


class Sigint(Reporter):
    """Interrupts a run at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def recorded(self, record: Record, best: Best | None) -> None:
        if record.step == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def asked(config: RunConfig) -> RunConfig:
    return replace(config, out=Path("study/one"))


def test_it_says_what_came_of_the_run(asked: RunConfig) -> None:
    found = run_trial(asked, "again")
    lines = [json.loads(line) for line in Path("study/one/metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert found.val_loss == min(losses)
    assert [point.loss for point in found.points] == losses
    assert found.points[-1].tokens == 60 * 8 * 16
    assert found.train_tokens == 5400
    best = losses.index(min(losses))
    assert found.tokens == found.points[best].tokens
    assert found.parameters == json.loads(Path("study/one/run.json").read_text())["parameters"]


def test_what_is_done_is_read(asked: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_finished_trial(asked) is None
    found = run_trial(asked, "again")
    monkeypatch.setattr(module, "train", None)
    assert run_trial(asked, "again") == found
    assert run_trial(replace(asked, device="cuda:7"), "again").val_loss == found.val_loss


def test_interrupted_it_goes_on_and_is_the_same(asked: RunConfig) -> None:
    whole = run_trial(replace(asked, out=Path("study/whole")), "again")
    with pytest.raises(Interrupted, match=r"small at step 2\d; go on with: nanogpt study x$"):
        run_trial(asked, "nanogpt study x", Sigint(25))
    assert read_finished_trial(asked) is None
    parts = run_trial(asked, "nanogpt study x")
    assert (parts.val_loss, parts.tokens) == (whole.val_loss, whole.tokens)
    assert [p.loss for p in parts.points] == [p.loss for p in whole.points]


def test_another_run_is_refused(asked: RunConfig) -> None:
    run_trial(asked, "again")
    with pytest.raises(UserError, match="holds a run with seed 1337, and this study asks for 7"):
        run_trial(replace(asked, seed=7), "again")


def test_another_run_that_was_interrupted_is_refused(asked: RunConfig) -> None:
    with pytest.raises(Interrupted):
        run_trial(asked, "again", Sigint(25))
    decays = replace(asked, optim=replace(asked.optim, weight_decay=2.4))
    with pytest.raises(UserError, match=r"holds a run with optim\.weight_decay 0\.1, .* 2\.4"):
        run_trial(decays, "again")
    with pytest.raises(UserError, match=r"holds a run with train\.steps 60, .* asks for 90"):
        run_trial(replace(asked, train=replace(asked.train, steps=90)), "again")


def test_where_the_text_is_does_not_matter_but_what_it_is(asked: RunConfig) -> None:
    found = run_trial(asked, "again")
    elsewhere = Path("elsewhere.txt").absolute()
    elsewhere.write_bytes(Path(asked.data).read_bytes())
    assert run_trial(replace(asked, data=str(elsewhere)), "again") == found
    elsewhere.write_text(elsewhere.read_text()[::-1])
    with pytest.raises(UserError, match=r"elsewhere\.txt is not the text"):
        run_trial(replace(asked, data=str(elsewhere)), "again")


def test_what_stops_a_run_stops_the_study_without_advice_for_it(
    asked: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", full)
        says = r"^cannot write in study/one \(No space left on device\)$"
        with pytest.raises(Stopped, match=says):
            run_trial(asked, "again")
    hot = replace(asked, name="hot", out=Path("study/hot"), optim=replace(asked.optim, lr=1e30))
    with pytest.raises(Stopped, match=r"^hot: .* at learning rate [\de+.]+$"):
        run_trial(hot, "again")


@pytest.mark.parametrize("content", ["", "{}", '{"val_loss": 1}', "[]"])
def test_a_damaged_file_is_said(asked: RunConfig, content: str) -> None:
    make_directory(Path("study/one"))
    Path("study/one/trial.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged"):
        run_trial(asked, "again")


def test_a_directory_that_cannot_be(text_file: Path) -> None:
    with pytest.raises(UserError, match="name another directory with --out"):
        make_directory(text_file / "study")


def test_a_run_killed_before_its_first_checkpoint_begins_again(asked: RunConfig) -> None:
    class Killed(Reporter):
        def started(self, run: Run) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_trial(asked, "again", Killed())
    assert not Path("study/one/last").exists()
    assert run_trial(asked, "again").points


def test_killed_after_its_last_step_nothing_is_lost(asked: RunConfig) -> None:
    found = run_trial(asked, "again")
    Path("study/one/trial.json").unlink()
    again = run_trial(asked, "again")
    assert (again.val_loss, again.tokens) == (found.val_loss, found.tokens)
    assert [p.loss for p in again.points] == [p.loss for p in found.points]
