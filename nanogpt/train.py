"""The training loop: take steps, log, save checkpoints, evaluate, keep the best weights, stop.

The loop can train any kind of model. The model and its state are in a Run (runs/run.py), which
prepare_run() creates and resume_run() restores.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .evaluate import Evaluation
from .fast.parallel import evaluate, make_stepper
from .optim import get_learning_rate
from .runs.background import BackgroundWriter
from .runs.checkpoint import Best
from .runs.config import RunConfig, TrainConfig
from .runs.failures import advise_resuming, explain_failures
from .runs.finite import FiniteCheck
from .runs.journal import OVERFITTING, Journal, Record, is_overfitting
from .runs.keeper import CheckpointKeeper
from .runs.reporter import Reporter
from .runs.run import Run, SavedRun
from .runs.start import prepare_run, resume_run
from .system import distributed
from .system.interrupts import Interrupts


@dataclass(frozen=True)
class Result:
    """The result of train() and resume_training()."""

    run: Run
    best: Best
    """The evaluation with the lowest validation loss; best/ holds its weights."""
    last: Record
    ended: str
    """The reason why the run ended."""


def train(config: RunConfig, reporter: Reporter | None = None) -> Result:
    """Create a run directory, then train a new model until there is a reason to stop.

    Raises UserError for a mistake in the input, Stopped for a failure, Interrupted for a signal.
    """
    reporter = reporter or Reporter()
    return _fit(prepare_run(config, reporter.preparing), reporter)


def resume_training(
    saved: SavedRun | Path, config: RunConfig, reporter: Reporter | None = None
) -> Result:
    """Resume a run from its last checkpoint; raises the same errors as train().

    `saved` is the run directory, or a SavedRun that was already read from it.
    """
    reporter = reporter or Reporter()
    run = resume_run(saved, config, reporter.preparing)
    steps = config.train.steps
    if steps != run.planned_steps and config.optim.decay_steps is None:
        reporter.said(
            f"The learning-rate schedule was planned for {run.planned_steps:,} steps; from here "
            f"on, it is planned for {steps:,} steps."
        )
    return _fit(run, reporter)


def _fit(run: Run, reporter: Reporter) -> Result:
    """Train a run, then release the lock of the run, even after an error."""
    in_background = run.device.type != "cpu"  # on a CPU, a thread would only slow the training down
    try:
        with explain_failures(run):
            with (
                Interrupts() as interrupts,
                BackgroundWriter(in_background) as writer,
                distributed.watch(advise_resuming(run), writer.wait),
            ):
                reporter.started(run)
                ended = _loop(run, reporter, interrupts, CheckpointKeeper(run, writer))
            run.journal.draw()
    finally:
        run.lock.release()
    assert run.journal.best is not None
    return Result(run, run.journal.best, run.journal.records[-1], ended)


def _loop(run: Run, reporter: Reporter, interrupts: Interrupts, keeper: CheckpointKeeper) -> str:
    """Train until there is a reason to stop, and return the reason."""
    settings, state, journal = run.config.train, run.state, run.journal
    start = time.perf_counter() - state.seconds
    check, has_warned = FiniteCheck(run), False
    keeper.save_last(start)
    keeper.describe_run()
    stepper = make_stepper(run, reporter.said)

    while True:
        interrupts.agree()
        is_evaluation = settings.evaluates_at(state.step)
        if is_evaluation or interrupts.received:
            keeper.save_last(start)  # if the evaluation fails, the resumed run repeats it
        if interrupts.received:
            raise keeper.interrupted(interrupts.received)
        if state.step in settings.snapshot_steps:
            keeper.save_snapshot()

        if is_evaluation or state.step % settings.log_every == 0:
            record = _measure(run, check, is_evaluation, start)
            if journal.add(record):
                keeper.save_best()
            reporter.recorded(record, journal.best)
        if is_evaluation:
            journal.draw_if_due()
            if not has_warned and is_overfitting(journal.records):
                reporter.said(OVERFITTING)
                has_warned = True
            if reason := reason_to_stop(journal, settings):
                return reason

        steps = settings.steps_until_event(state.step)
        results = stepper.take(steps, interrupts.should_stop)
        check.check(results)
        state.losses = torch.cat([state.losses, results[:, 0]])
        state.gradient_norm = results[-1, 1:].norm().item()


def _measure(run: Run, check: FiniteCheck, is_evaluation: bool, start: float) -> Record:
    """Return the next line of metrics.jsonl; an evaluation uses the whole validation split."""
    state, validation = run.state, run.data.splits["val"]
    loss: Evaluation | None = None
    averaged_loss: Evaluation | None = None
    if is_evaluation:
        loss = evaluate(run.model, validation)
        check.check_validation(loss.loss)
        if state.average:
            with state.averaged():
                averaged_loss = evaluate(run.model, validation)
    train_loss = state.losses.mean().item() if len(state.losses) else None
    state.losses = state.losses[:0]
    return Record(
        step=state.step,
        tokens=state.tokens,
        seconds=round(time.perf_counter() - start, 3),
        lr=get_learning_rate(state.step, run.config.train.steps, run.config.optim),
        train_loss=train_loss,
        val_loss=loss.loss if loss else None,
        bits_per_byte=loss.bits_per_byte if loss else None,
        ema_val_loss=averaged_loss.loss if averaged_loss else None,
        ema_bits_per_byte=averaged_loss.bits_per_byte if averaged_loss else None,
        gradient_norm=state.gradient_norm if math.isfinite(state.gradient_norm) else None,
    )


def reason_to_stop(journal: Journal, settings: TrainConfig) -> str | None:
    """Return why training ends after the latest evaluation; return None if training continues."""
    last, best = journal.records[-1], journal.best
    assert best is not None
    target, patience = settings.stop_at_val_loss, settings.patience
    if target is not None and (lowest := last.best()) and lowest.val_loss <= target:
        return f"validation loss reached {target}"
    if patience and sum(record.step > best.step for record in journal.evaluations) >= patience:
        return f"no better validation loss in {patience} evaluations"
    if last.step == settings.steps:
        return f"all {settings.steps:,} steps done"
    return None
