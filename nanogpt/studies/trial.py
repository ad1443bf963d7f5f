"""One run of a study: made once, gone on with when it was interrupted, and read when it is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import Interrupted, Stopped, UserError, write_error
from ..models import KINDS
from ..runs.config import RunConfig, flatten_settings
from ..runs.run import read_run_config
from ..system.devices import describe_device
from ..system.files import damaged_error, dump_json, read_json, write_atomically
from ..system.schema import parse_dataclass
from ..text import corpora
from ..train import Reporter, Result, resume_training, train

TRIAL_FILE = "trial.json"


@dataclass(frozen=True)
class Point:
    """An evaluation on the way."""

    tokens: int
    seconds: float
    loss: float
    """Nats per token on the validation split; of the averaged weights where there are any."""


@dataclass(frozen=True)
class Trial:
    """What came of a run."""

    config: RunConfig
    """As it was asked for."""
    text_sha256: str
    val_loss: float
    """The lowest, in nats per token."""
    bits_per_byte: float
    parameters: int
    train_tokens: int
    """Tokens of the training split."""
    tokens: int
    """Tokens trained on when the loss was lowest."""
    seconds: float
    """Of training, evaluations included."""
    device: str
    points: list[Point]


def run_trial(config: RunConfig, command: str, reporter: Reporter | None = None) -> Trial:
    """The run that config describes, in config.out: begun, gone on with, or read.

    study is the command that goes on with all runs. Raises UserError where the directory holds
    another run, Stopped or Interrupted where this one had to end.
    """
    assert config.out is not None
    if found := read_finished_trial(config):
        return found
    try:
        if (config.out / "last").exists():
            begun = read_run_config(config.out)
            # It follows from the text.
            model = replace(config.model, vocab_size=begun.model.vocab_size)
            asked = replace(config, model=model)
            _require_same_settings(asked, begun)
            result = resume_training(config.out, asked, reporter)
        else:
            result = train(config, reporter)
    except Interrupted as error:
        raise Interrupted(error.number, f"{config.name} {error.saved}", command) from None
    except Stopped as error:  # its advice would make another run of it
        raise Stopped(f"{config.name}: {error.reason}") from None
    found = _summarise(config, result)
    saved = {**asdict(found), "config": config.to_json()}
    with stop_on_disk_error(config.out):
        write_atomically(config.out / TRIAL_FILE, dump_json(saved))
    return found


def read_finished_trial(config: RunConfig) -> Trial | None:
    """What came of the run in config.out, if it is done.

    Raises UserError where that was another, or learned from another text.
    """
    assert config.out is not None
    file = config.out / TRIAL_FILE
    if not file.exists():
        return None
    try:
        found = parse_dataclass(Trial, read_json(file), KINDS)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged_error(file, error) from None
    _require_same_settings(config, found.config)
    corpora.load_corpus(config.data, found.text_sha256, config.column, config.separator)
    return found


def _require_same_settings(asked: RunConfig, begun: RunConfig) -> None:
    """Raise UserError unless the settings are those that the run in the directory has.

    But for where files are: that the text is the same is for its hash to say.
    """
    want, has = flatten_settings(asked), flatten_settings(begun)
    for name in sorted(want.keys() | has.keys()):
        a, b = str(want.get(name)), str(has.get(name))
        if name in ("out", "device", "data") or a == b:
            continue
        if name == "tokenizer" and Path(a).name == Path(b).name:
            continue
        raise UserError(
            f"{asked.out} holds a run with {name} {b}, and this study asks for {a}: "
            f"name another directory with --out"
        )


def _summarise(config: RunConfig, result: Result) -> Trial:
    run, best = result.run, result.best
    evaluated = [(record, record.best()) for record in run.journal.evaluations]
    return Trial(
        config=config,
        text_sha256=run.text_sha256,
        val_loss=best.val_loss,
        bits_per_byte=best.bits_per_byte,
        parameters=run.parameters,
        train_tokens=len(run.data.splits["train"].tokens),
        tokens=next(r.tokens for r, found in evaluated if found and r.step == best.step),
        seconds=result.last.seconds,
        device=describe_device(run.device),
        points=[Point(r.tokens, r.seconds, found.val_loss) for r, found in evaluated if found],
    )


@contextmanager
def stop_on_disk_error(out: Path) -> Iterator[None]:
    """Within it, a disk that is full is a reason to stop. Raises Stopped."""
    try:
        yield
    except OSError as error:
        raise Stopped(write_error(out, error).reason) from None


def make_directory(out: Path) -> Path:
    """The directory of a study, made if it is not there. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return out
    except OSError as error:
        raise UserError(
            f"cannot write in {out}: {error.strerror}; name another directory with --out"
        ) from None
