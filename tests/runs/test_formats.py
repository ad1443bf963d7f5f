"""Runs of older formats can be read and resumed; runs of newer formats are refused."""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nanogpt import __version__
from nanogpt.data import Split
from nanogpt.errors import UserError
from nanogpt.evaluate import evaluate
from nanogpt.models import GPT, GPTConfig
from nanogpt.runs import formats
from nanogpt.runs.checkpoint import Best, Checkpoint, load_checkpoint, save_checkpoint
from nanogpt.runs.formats import FORMAT, add_header, parse_file, read_dataclass
from nanogpt.runs.run import load_run_text, read_description, read_run_config
from nanogpt.text.corpora import load_corpus
from nanogpt.text.encoding import encode_corpus
from nanogpt.text.tokenizers import CharTokenizer
from nanogpt.train import resume_training
from tests.same import metrics
from tests.signing import change_json, sign

FORMAT_0 = Path(__file__).parent / "format_0"
"""A run of an old nanogpt, in format 0; last/ was saved before the evaluation of step 4."""


@pytest.fixture
def old_run() -> Path:
    """A copy of a run that was saved in format 0."""
    shutil.copytree(FORMAT_0, "old")
    return Path("old")


@pytest.mark.parametrize(("checkpoint", "loss"), [("best", 1.3662309363736944), ("last", None)])
def test_a_checkpoint_of_format_0_loads(checkpoint: str, loss: float | None) -> None:
    loaded = load_checkpoint(FORMAT_0 / checkpoint)
    assert loaded.model.config == GPTConfig(1, 2, 8, 8, vocab_size=4)
    assert loaded.step == 4
    assert loaded.best is not None
    if loss is None:
        assert loaded.best == Best(2, 1.3726807206364002, 1.9803596683860232)
    else:
        assert loaded.best == Best(4, loss, 1.9710545966154138)
    # The expected loss was measured when this checkpoint was saved.
    corpus = load_corpus(str(FORMAT_0 / "text.txt"))
    validation = Split(encode_corpus(corpus, loaded.tokenizer, "val", 0.1))
    assert evaluate(loaded.model, validation).loss == pytest.approx(1.3662309363736944, abs=1e-5)


def test_a_run_json_of_format_0_is_read(old_run: Path) -> None:
    description = read_description(old_run)
    assert (description.parameters, description.bigram_loss) == (984, 1.29233824156744)
    assert description.versions.python == "3.11.7"
    assert description.config.train.steps == 4


def test_a_run_of_format_0_is_resumed(old_run: Path) -> None:
    before = metrics(old_run)
    config = read_run_config(old_run)
    config = replace(config, data=str(FORMAT_0 / "text.txt"), train=replace(config.train, steps=8))
    result = resume_training(old_run, config)
    assert result.last.step == 8
    assert metrics(old_run)[:3] == before[:3]
    assert [line["step"] for line in metrics(old_run)] == [0, 2, 3, 4, 6, 8]
    # At step 4, the resumed run evaluates the restored weights and averaged weights again.
    repeated = metrics(old_run)[3]
    for name in ("train_loss", "val_loss", "ema_val_loss"):
        assert repeated[name] == pytest.approx(before[3][name], abs=1e-5)
    for file in ("run.json", "last/config.json", "last/training.json", "best/config.json"):
        header = dict(list(json.loads((old_run / file).read_text()).items())[:2])
        assert header == {"format": FORMAT, "nanogpt": __version__}
    assert "nanogpt" not in json.loads((old_run / "run.json").read_text())["versions"]


NEWER = (
    rf"has format {FORMAT + 1}, written by nanogpt 9\.8\.7, but nanogpt {re.escape(__version__)} "
    rf"reads formats up to {FORMAT}: use the version that wrote the file, or a later one$"
)


@pytest.fixture
def checkpoint() -> Path:
    """A checkpoint of the current format."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3))
    save_checkpoint(Path("best"), Checkpoint(model, CharTokenizer("abc"), 7))
    return Path("best")


def test_a_checkpoint_of_a_newer_format_is_refused(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", format=FORMAT + 1, nanogpt="9.8.7", layers=[])
    with pytest.raises(UserError, match=rf"^best.config\.json {NEWER}"):
        load_checkpoint(checkpoint)


def test_a_newer_version_reads_a_newer_format(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_json(checkpoint / "config.json", format=FORMAT + 1, nanogpt="9.8.7")
    with pytest.raises(UserError, match=NEWER):
        load_checkpoint(checkpoint)
    monkeypatch.setattr(formats, "MIGRATIONS", (*formats.MIGRATIONS, lambda *_: None))
    monkeypatch.setattr(formats, "FORMAT", FORMAT + 1)
    assert load_checkpoint(checkpoint).step == 7


def test_a_run_of_a_newer_format_is_refused(old_run: Path) -> None:
    change_json(old_run / "last" / "training.json", format=FORMAT + 1, nanogpt="9.8.7", config=3)
    with pytest.raises(UserError, match=rf"^old.last.training\.json {NEWER}"):
        read_run_config(old_run)
    change_json(old_run / "run.json", format=FORMAT + 1, nanogpt="9.8.7", config=3)
    with pytest.raises(UserError, match=rf"^old.run\.json {NEWER}"):
        load_run_text(old_run)


def test_a_newer_format_is_refused_without_a_valid_version(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", format=99, nanogpt=["x"])
    with pytest.raises(UserError, match="has format 99, written by a newer nanogpt, but"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "1"}, "the value of 'format' cannot be '1'"),
        ({"format": True}, "the value of 'format' cannot be True"),
        ({"format": 1.0}, "the value of 'format' cannot be 1.0"),
        ({"format": -1}, "the value of 'format' cannot be -1"),
        ({"format": None}, "the value of 'format' cannot be None"),
        ({"format": 0}, "unknown key 'nanogpt'"),
        ({"nanogpt": 3}, "the value of 'nanogpt' cannot be 3"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_the_header_is_read_strictly(
    checkpoint: Path, change: dict[str, Any], message: str
) -> None:
    change_json(checkpoint / "config.json", **change)
    with pytest.raises(UserError, match=rf"config\.json is missing or damaged \({message}\)"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("key", "message"),
    [("format", "unknown key 'nanogpt'"), ("nanogpt", "the value of 'nanogpt' cannot be None")],
)
def test_a_header_with_a_missing_key_is_refused(checkpoint: Path, key: str, message: str) -> None:
    content = json.loads((checkpoint / "config.json").read_text())
    del content[key]
    (checkpoint / "config.json").write_text(json.dumps(content))
    sign(checkpoint)
    with pytest.raises(UserError, match=rf"config\.json is missing or damaged \({message}\)"):
        load_checkpoint(checkpoint)


@dataclass(frozen=True)
class Shape:
    """The content of a file whose key `size` had the name `n` in the previous format."""

    size: int


def test_the_next_format_converts_a_renamed_key(monkeypatch: pytest.MonkeyPatch) -> None:
    old = add_header({"n": 3})

    def rename(name: str, content: dict[str, Any]) -> None:
        if name == "shape.json":
            content["size"] = content.pop("n")

    monkeypatch.setattr(formats, "MIGRATIONS", (*formats.MIGRATIONS, rename))
    monkeypatch.setattr(formats, "FORMAT", FORMAT + 1)
    assert parse_file(Path("shape.json"), old, Shape) == Shape(3)
    new = add_header(asdict(Shape(3)))
    assert new == {"format": FORMAT + 1, "nanogpt": __version__, "size": 3}
    assert parse_file(Path("shape.json"), new, Shape) == Shape(3)
    with pytest.raises(UserError, match="unknown key 'n'"):
        parse_file(Path("shape.json"), add_header({"n": 3}), Shape)
    Path("shape.json").write_text(json.dumps(old))
    assert read_dataclass(Path("shape.json"), Shape) == Shape(3)


def test_an_unknown_key_of_format_0_is_refused(old_run: Path) -> None:
    change_json(old_run / "best" / "config.json", colour="red")
    with pytest.raises(UserError, match="unknown key 'colour'"):
        load_checkpoint(old_run / "best")
