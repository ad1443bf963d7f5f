"""Training: the loop.

It knows nothing of GPT. It takes one step after the other (step.py), and every so often saves where
it is, measures the whole validation split and keeps the best weights.
"""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from .errors import Interrupted, Stopped, write_error
from .evaluate import evaluate
from .optim import get_learning_rate
from .runs.background import BackgroundWriter
from .runs.checkpoint import Best, Contents, checkpoint_files, write_checkpoint
from .runs.config import RunConfig, TrainConfig
from .runs.finite import FiniteCheck
from .runs.journal import Journal, Record, is_overfitting
from .runs.run import Run, read_run_config
from .runs.start import prepare_run, resume_run
from .step import STEPS_AHEAD, Stepper, make_loss
from .system.devices import requested_memory
from .system.files import to_json, write_whole
from .system.gpu import CannotCapture, Snapshot, snapshot
from .system.interrupts import Interrupts


@dataclass(frozen=True)
class Result:
    """How a run went."""

    run: Run
    best: Best
    """The evaluation with the lowest validation loss; best/ holds its weights."""
    last: Record
    ended: str
    """Why it ended."""


class Reporter:
    """Hears how a run goes; this one keeps quiet."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Called while a large text is read and encoded: a corpora.Progress."""

    def started(self, run: Run) -> None:
        """Called once, before the first step."""

    def recorded(self, record: Record, best: Best | None) -> None:
        """Called for every line of metrics.jsonl; best is None until there is an evaluation."""

    def said(self, line: str) -> None:
        """Called with what the user should know."""


def train(config: RunConfig, reporter: Reporter | None = None) -> Result:
    """Make a run directory and train in it, from the first step to the last.

    Raises UserError before the first step, Stopped or Interrupted after it.
    """
    reporter = reporter or Reporter()
    return _fit(prepare_run(config, reporter.preparing), reporter)


def resume_training(directory: Path, config: RunConfig, reporter: Reporter | None = None) -> Result:
    """Go on with the run in a directory, from its last checkpoint; raises what train() raises."""
    reporter, steps = reporter or Reporter(), config.train.steps
    planned = read_run_config(directory).train.steps
    run = resume_run(directory, config, reporter.preparing)
    if steps != planned and config.optim.decay_steps is None:
        reporter.said(
            f"The learning rate was planned for {planned:,} steps; from here on it follows a plan "
            f"for {steps:,}."
        )
    return _fit(run, reporter)


def _fit(run: Run, reporter: Reporter) -> Result:
    beside = run.device.type != "cpu"  # a CPU is busy enough
    try:
        with Interrupts() as interrupts, BackgroundWriter(beside) as writer:
            reporter.started(run)
            ended = _loop(run, reporter, interrupts, writer)
        run.journal.draw()
    except BrokenPipeError:  # of the reporter's reader
        raise
    except OSError as error:
        raise write_error(run.out, error) from None
    except CannotCapture as error:
        raise Stopped(
            f"a step cannot be captured in a CUDA graph ({error})",
            f"; without, it is slower: nanogpt train --resume {run.out} --train.no-cuda-graph",
        ) from None
    except RuntimeError as error:
        if asked := requested_memory(error):
            raise _out_of_memory(run, asked) from None
        raise
    finally:
        with suppress(OSError):
            run.journal.draw()  # where it has not been
        run.lock.release()
    assert run.journal.best is not None
    return Result(run, run.journal.best, run.journal.records[-1], ended)


def _loop(run: Run, reporter: Reporter, interrupts: Interrupts, writer: BackgroundWriter) -> str:
    """From where the run is to a reason to stop, which it gives."""
    settings, model, state, journal = run.config.train, run.model, run.state, run.journal
    began = time.perf_counter() - state.seconds
    watch, warned = FiniteCheck(run), False

    def save() -> Snapshot:
        watch.check_model()  # what is wrong never gets to the disk
        state.seconds = round(time.perf_counter() - began, 3)
        weights = snapshot(model.state_dict())
        files = checkpoint_files(run.checkpoint(), weights, run.training())
        writer.submit(partial(_write_last, run, files))
        return weights

    weights, saved = save(), state.step
    writer.submit(lambda: write_whole(run.out / "run.json", to_json(run.describe())))

    stepper = Stepper(run, make_loss(run, reporter.said))

    while True:
        step = state.step
        due = settings.evaluates_at(step)
        if (due or interrupts.received) and step != saved:
            weights, saved = save(), step  # before the evaluation: a resume makes it again
        if interrupts.received:
            writer.wait()
            raise Interrupted(
                interrupts.received, f"at step {step:,}", f"nanogpt train --resume {run.out}"
            )

        if due or step % settings.log_every == 0:
            evaluation = evaluate(model, run.data.splits["val"]) if due else None
            if evaluation and not math.isfinite(evaluation.loss):
                raise watch.stopped(step - 1, "the validation loss", evaluation.loss)
            of_average = None
            if due and state.average:
                with state.averaged():
                    of_average = evaluate(model, run.data.splits["val"])
            record = Record(
                step=step,
                tokens=state.tokens,
                seconds=round(time.perf_counter() - began, 3),
                lr=get_learning_rate(step, settings.steps, run.config.optim),
                train_loss=state.losses.mean().item() if len(state.losses) else None,
                val_loss=evaluation.loss if evaluation else None,
                bits_per_byte=evaluation.bits_per_byte if evaluation else None,
                ema_val_loss=of_average.loss if of_average else None,
                ema_bits_per_byte=of_average.bits_per_byte if of_average else None,
            )
            state.losses = state.losses[:0]
            if journal.add(record):
                assert journal.best is not None
                if journal.best.averaged:
                    with state.averaged():
                        weights = snapshot(model.state_dict())
                files = checkpoint_files(run.checkpoint(), weights)
                writer.submit(partial(write_checkpoint, run.out / "best", files))
            if due:
                journal.draw_if_due()
            reporter.recorded(record, journal.best)
        if due and not warned and is_overfitting(journal.records):
            reporter.said(OVERFITTING)
            warned = True
        if due and (ended := reason_to_stop(journal, settings)):
            return ended

        until = (settings.eval_every, settings.log_every, STEPS_AHEAD)
        coming = min(settings.steps - step, *(every - step % every for every in until))
        found = stepper.take(coming, lambda: interrupts.received)
        watch.check(found)
        state.losses = torch.cat([state.losses, found[:, 0]])


def _write_last(run: Run, files: Contents) -> None:
    run.journal.flush()  # first the lines that the checkpoint counts on
    write_checkpoint(run.out / "last", files)


def _out_of_memory(run: Run, asked: str) -> Stopped:
    settings = run.config.train
    size, parts = settings.batch_size, settings.accumulation
    if parts == size:
        return Stopped(
            f"out of memory: {asked} more were asked for, with a batch in as many parts as can be",
            "; a smaller --model.n-embd or --model.block-size needs less",
        )
    more = next((n for n in range(parts + 1, min(size, 10_000)) if size % n == 0), size)
    return Stopped(
        f"out of memory: {asked} more were asked for",
        f"; the same batch in smaller parts needs less: "
        f"nanogpt train --resume {run.out} --train.batch-size {size} --train.accumulation {more}",
    )


OVERFITTING = (
    "Training loss keeps falling while validation loss rises: the model has begun to learn the "
    "training text by heart. More text, more dropout or a smaller model would help."
)


def reason_to_stop(journal: Journal, settings: TrainConfig) -> str | None:
    """Why training ends with the evaluation just made; None where it goes on."""
    last, best = journal.records[-1], journal.best
    assert best is not None
    target, patience = settings.stop_at_val_loss, settings.patience
    if target is not None and (found := last.best()) and found.val_loss <= target:
        return f"validation loss reached {target}"
    if patience and sum(record.step > best.step for record in journal.evaluations) >= patience:
        return f"no better validation loss in {patience} evaluations"
    if last.step == settings.steps:
        return f"all {settings.steps:,} steps done"
    return None
