"""Trains one run of a study, or resumes it after an interruption, and saves its result."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import Interrupted, Stopped, UserError, write_error
from ..runs.config import RunConfig, flatten_settings
from ..runs.formats import add_header, read_dataclass
from ..runs.reporter import Reporter
from ..runs.run import read_saved_run
from ..system.devices import describe_device
from ..system.files import dump_json, path_exists, write_atomically
from ..text import corpora
from ..text.readers import OUTPUT_MARK
from ..train import Result, resume_training, train

TRIAL_FILE = "trial.json"


@dataclass(frozen=True)
class Point:
    """One evaluation during a run."""

    tokens: int
    """Number of tokens that the run has trained on so far."""
    seconds: float
    """Training time so far in seconds, evaluations included."""
    loss: float
    """Validation loss of the weights or of their average, whichever is lower, in nats per token."""


@dataclass(frozen=True)
class Trial:
    """The result of one run of a study."""

    config: RunConfig
    """The configuration that the study requested."""
    text_sha256: str
    val_loss: float
    """Lowest validation loss, in nats per token."""
    bits_per_byte: float | None
    parameters: int
    train_tokens: int
    """Size of the training split in tokens."""
    tokens: int
    """Number of tokens that the run had trained on when it reached its lowest validation loss."""
    seconds: float
    """Training time in seconds, evaluations included."""
    device: str
    points: list[Point]


def run_trial(config: RunConfig, command: str, reporter: Reporter | None = None) -> Trial:
    """Train or resume the run of `config` in config.out; if the run is finished, read its result.

    `command` is the command line that resumes the whole study. Raises UserError if config.out
    contains a different run, Stopped for a failure, and Interrupted for a signal.
    """
    assert config.out is not None
    if trial := read_finished_trial(config):
        return trial
    try:
        if path_exists(config.out / "last"):
            saved = read_saved_run(config.out)
            # `config` may lack the vocabulary size, which is known only after reading the text.
            model = replace(config.model, vocab_size=saved.config.model.vocab_size)
            requested = replace(config, model=model)
            _require_same_settings(requested, saved.config)
            result = resume_training(saved, requested, reporter)
        else:
            result = train(config, reporter)
    except Interrupted as error:
        what = f"{config.name} {error.saved}" if error.saved else ""
        raise Interrupted(error.number, what, command) from None
    except Stopped as error:  # omit the advice: it may suggest settings that a trial cannot use
        raise Stopped(f"{config.name}: {error.reason}") from None
    trial = _summarise(config, result)
    content = add_header({**asdict(trial), "config": config.to_json()})
    with stop_on_disk_error(config.out):
        write_atomically(config.out / TRIAL_FILE, dump_json(content))
    return trial


def read_finished_trial(config: RunConfig) -> Trial | None:
    """Return the result in config.out, or None if the run is not finished.

    Raises UserError if the result is from a run with other settings or another text.
    """
    assert config.out is not None
    file = config.out / TRIAL_FILE
    if not path_exists(file):
        return None
    trial = read_dataclass(file, Trial)
    _require_same_settings(config, trial.config)
    corpora.load_corpus(
        config.data,
        config.column,
        config.separator,
        expected_sha256=trial.text_sha256,
        may_download=False,
    )
    return trial


def _require_same_settings(requested: RunConfig, found: RunConfig) -> None:
    """Raise UserError if the run in the directory does not have the requested settings.

    The paths and the device may differ. The caller compares the texts by their hashes, not by their
    paths.
    """
    settings, found_settings = flatten_settings(requested), flatten_settings(found)
    for each in (settings, found_settings):
        each["teachers"] = [Path(run).name for run in each["teachers"]]
        each["transfer"] = each["transfer"] and Path(each["transfer"]).name
    for name in sorted(settings.keys() | found_settings.keys()):
        value, found_value = str(settings.get(name)), str(found_settings.get(name))
        if name in ("out", "device", "data") or value == found_value:
            continue
        if name == "tokenizer" and Path(value).name == Path(found_value).name:
            continue
        raise UserError(
            f"{requested.out} holds a run with {name} {found_value}, but this study needs {value}: "
            f"name another directory with --out"
        )


def _summarise(config: RunConfig, result: Result) -> Trial:
    """Return the result of a finished run as a Trial."""
    run, best = result.run, result.best
    evaluations = [
        (record, evaluation)
        for record in run.journal.evaluations
        if (evaluation := record.best()) is not None
    ]
    return Trial(
        config=config,
        text_sha256=run.text_sha256,
        val_loss=best.val_loss,
        bits_per_byte=best.bits_per_byte,
        parameters=run.parameters,
        train_tokens=len(run.data.splits["train"].tokens),
        tokens=next(record.tokens for record, _ in evaluations if record.step == best.step),
        seconds=result.last.seconds,
        device=describe_device(run.device),
        points=[
            Point(record.tokens, record.seconds, evaluation.val_loss)
            for record, evaluation in evaluations
        ],
    )


@contextmanager
def stop_on_disk_error(out: Path) -> Iterator[None]:
    """Within this context, an OSError (for example, because the disk is full) becomes Stopped."""
    try:
        yield
    except OSError as error:
        raise Stopped(write_error(out, error).reason) from None


def make_directory(out: Path) -> Path:
    """Create the directory of a study if it does not exist. Raises UserError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / OUTPUT_MARK).touch()
        return out
    except OSError as error:
        raise UserError(
            f"cannot write in {out}: {error.strerror}; name another directory with --out"
        ) from None
