"""The journal of a run: metrics.jsonl, loss.png and the best evaluation."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt.runs.checkpoint import Best
from nanogpt.runs.journal import Journal, Record, is_overfitting


def record(step: int, train: float | None, val: float | None = None) -> Record:
    return Record(step, step * 10, step / 2, 0.1, train, val, val)


def test_each_record_is_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a run", 2.5)
    for r in (record(0, None, 4.0), record(1, 3.0), record(2, 2.5, 2.75)):
        journal.add(r)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    clock = {"lr": 0.1}
    assert lines == [
        {"step": 0, "tokens": 0, "seconds": 0, **clock, "val_loss": 4.0, "bits_per_byte": 4.0},
        {"step": 1, "tokens": 10, "seconds": 0.5, **clock, "train_loss": 3.0},
        {"step": 2, "tokens": 20, "seconds": 1.0, **clock, "train_loss": 2.5}
        | {"val_loss": 2.75, "bits_per_byte": 2.75},
    ]


def test_the_best_is_the_first_of_equal_lowest_losses(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a run", 2.5)
    for step, val in enumerate([4.0, 3.0, 2.0, 2.0, 2.5]):
        journal.add(record(step, 1.0, val))
        journal.add(record(step, 0.5))  # no effect, because this record has no validation loss
    assert journal.best is not None
    assert journal.best.step == 2


def test_the_best_may_belong_to_the_averaged_weights(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a run", 2.5)
    assert journal.add(replace(record(1, 1.0, 3.0), ema_val_loss=3.5, ema_bits_per_byte=5.0))
    assert journal.best == Best(1, 3.0, 3.0, averaged=False)
    assert journal.add(replace(record(2, 1.0, 3.2), ema_val_loss=2.5, ema_bits_per_byte=4.0))
    assert journal.best == Best(2, 2.5, 4.0, averaged=True)
    assert not journal.add(replace(record(3, 1.0, 2.6), ema_val_loss=2.7, ema_bits_per_byte=4.1))


def test_the_plot_is_updated_during_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """draw_if_due() draws the plot after 60 seconds; draw() draws it again after a new record."""
    now, plot = time.perf_counter(), tmp_path / "loss.png"
    journal = Journal(tmp_path, "a run", 2.5)
    journal.add(record(0, None, 4.0))
    journal.draw_if_due()
    assert not plot.exists()
    monkeypatch.setattr("nanogpt.runs.journal.time.perf_counter", lambda: now + 60)
    journal.draw_if_due()
    first = plot.read_bytes()
    assert first.startswith(b"\x89PNG")
    journal.add(record(1, 3.0, 3.0))
    journal.draw()
    assert plot.read_bytes() != first


def test_a_plot_without_new_records_is_not_drawn_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a run", 2.5)
    journal.add(record(0, None, 4.0))
    journal.draw()
    (tmp_path / "loss.png").unlink()
    journal.draw()
    assert not (tmp_path / "loss.png").exists()
    journal.add(record(1, 3.0))
    journal.draw()
    assert (tmp_path / "loss.png").exists()


def test_a_plot_without_records_can_be_drawn(tmp_path: Path) -> None:
    Journal(tmp_path, "a run", 2.5).draw()
    assert (tmp_path / "loss.png").exists()


def test_overfitting_means_that_only_the_validation_loss_rises() -> None:
    def run(train: list[float], val: list[float]) -> bool:
        records = [record(0, None, 4.0)]
        for i, (t, v) in enumerate(zip(train, val, strict=True), start=1):
            # Between two evaluations, the three training losses are noisy; their mean is `t`.
            records += [record(3 * i - 2, t - 0.5), record(3 * i - 1, t + 0.5), record(3 * i, t, v)]
        return is_overfitting(records)

    assert run([2.0, 1.5, 1.4, 1.3], [1.8, 1.5, 1.6, 1.7])
    assert not run([2.0, 1.5, 1.4, 1.3], [1.8, 1.7, 1.6, 1.5])  # both losses fall
    assert not run([2.0, 1.5, 1.4, 1.3], [1.8, 1.7, 1.6, 1.65])  # a single rise may be noise
    assert not run([2.0, 1.5, 1.6, 1.7], [1.8, 1.5, 1.6, 1.7])  # both losses rise
    assert not run([2.0, 1.5], [1.8, 1.9])
    assert not is_overfitting([])


def test_a_plot_that_another_program_shows_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, an open file cannot be replaced; the training continues without a new plot."""

    def write(*_: object) -> None:
        raise PermissionError(13, "The process cannot access the file")

    monkeypatch.setattr("nanogpt.runs.journal.write_atomically", write)
    journal = Journal(tmp_path, "a run", 2.5)
    journal.add(record(0, None, 4.0))
    journal.draw()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (ImportError("no PIL"), "no PIL"),
        (SystemError("error return without exception set"), "error return without exception set"),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
    ],
)
def test_a_plot_that_cannot_be_drawn_causes_only_a_note(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    journal = Journal(tmp_path, "a run", 2.5)
    journal.add(record(0, None, 4.0))
    monkeypatch.setattr("nanogpt.runs.journal.draw_loss", fail)
    journal.draw()
    assert capsys.readouterr().err == f"nanogpt: loss.png is not drawn: {reason}\n"
