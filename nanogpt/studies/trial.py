"""One run of a study: made once, gone on with when it was interrupted, and read when it is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import Interrupted, Stopped, UserError, write_error
from ..runs.config import RunConfig, flatten_settings
from ..runs.formats import add_header, read_dataclass
from ..runs.run import read_saved_run
from ..system.devices import describe_device
from ..system.files import dump_json, write_atomically
from ..text import corpora
from ..train import Reporter, Result, resume_training, train

FILE = "trial.json"


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


def trial(config: RunConfig, study: str, reporter: Reporter | None = None) -> Trial:
    """The run that config describes, in config.out: begun, gone on with, or read.

    study is the command that goes on with all runs. Raises UserError where the directory holds
    another run, Stopped or Interrupted where this one had to end.
    """
    assert config.out is not None
    if found := finished(config):
        return found
    try:
        if (config.out / "last").exists():
            begun = read_saved_run(config.out)
            # It follows from the text.
            model = replace(config.model, vocab_size=begun.config.model.vocab_size)
            asked = replace(config, model=model)
            _require_same(asked, begun.config)
            result = resume_training(begun, asked, reporter)
        else:
            result = train(config, reporter)
    except Interrupted as error:
        raise Interrupted(error.number, f"{config.name} {error.saved}", study) from None
    except Stopped as error:  # its advice would make another run of it
        raise Stopped(f"{config.name}: {error.reason}") from None
    found = _of(config, result)
    saved = add_header({**asdict(found), "config": config.to_json()})
    with stop_on_disk_error(config.out):
        write_atomically(config.out / FILE, dump_json(saved))
    return found


def finished(config: RunConfig) -> Trial | None:
    """What came of the run in config.out, if it is done.

    Raises UserError where that was another, or learned from another text.
    """
    assert config.out is not None
    file = config.out / FILE
    if not file.exists():
        return None
    found = read_dataclass(file, Trial)
    _require_same(config, found.config)
    corpora.load_corpus(
        config.data,
        config.column,
        config.separator,
        expected_sha256=found.text_sha256,
        may_download=False,
    )
    return found


def _require_same(asked: RunConfig, begun: RunConfig) -> None:
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


def _of(config: RunConfig, result: Result) -> Trial:
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


def made(out: Path) -> Path:
    """The directory of a study, made if it is not there. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return out
    except OSError as error:
        raise UserError(
            f"cannot write in {out}: {error.strerror}; name another directory with --out"
        ) from None
