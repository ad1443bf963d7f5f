"""The commands nanogpt inspect and nanogpt explain."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from nanogpt.api import load
from nanogpt.models import GPTConfig, PlainConfig, build
from nanogpt.reports.inspection import inspect_text, render_page
from nanogpt.runs.checkpoint import Checkpoint, save_checkpoint
from nanogpt.runs.config import RunConfig
from nanogpt.runs.run import Description, Versions
from nanogpt.text.tokenizers import CharTokenizer

Command = Callable[..., tuple[int, str, str]]
LETTERS = CharTokenizer("\n abcdefgh")
MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=LETTERS.vocab_size)
TEXT = "bad cab\nhead"


def refused(answer: tuple[int, str, str], says: str) -> None:
    status, out, err = answer
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.fixture
def run() -> Path:
    save_checkpoint(Path("runs/one/best"), Checkpoint(build(MODEL), LETTERS, 7))
    return Path("runs/one")


def test_the_command_writes_a_page(nanogpt: Command, run: Path) -> None:
    status, out, err = nanogpt("inspect", "one", "--prompt", TEXT, "--device", "cpu")
    assert (status, out, err) == (0, "runs/one/inspect.html\n", "")
    trained = load(run, "cpu")
    N = sum(p.numel() for p in trained.model.parameters())
    title = f"runs/one: GPT, {N:,} parameters, step 7"
    found = inspect_text(trained.model, trained.tokenizer, TEXT, title)
    written = (run / "inspect.html").read_text("utf-8")
    assert written == render_page(found)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=|@import", written)
    status, out, _ = nanogpt("inspect", "--out", "other.html", "--device", "cpu")
    assert (status, out) == (0, "other.html\n")
    _, _, err = nanogpt("inspect", "one", "--prompt", "abc" * 9, "--device", "cpu")
    assert err == "nanogpt: the model reads the last 16 of the prompt's 27 tokens\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("one", "--prompt", "Q"), "'Q'"),
        (("two",), "there is no run two"),
        (("one", "--out", "no/where.html"), "cannot write no/where.html"),
        (("one", "--out", "."), ". is a directory: name a file with --out"),
        (("one", "--out", "runs"), "runs is a directory"),
    ],
)
def test_mistakes_are_one_line(
    nanogpt: Command, run: Path, flags: tuple[str, ...], says: str
) -> None:
    refused(nanogpt("inspect", *flags), says)


def test_explain_says_the_same_in_a_table_and_as_json(nanogpt: Command) -> None:
    status, table, _ = nanogpt("explain", "tiny", "--device", "cpu", "--model.n-layer", 2)
    assert status == 0
    status, out, _ = nanogpt("explain", "tiny", "--device", "cpu", "--model.n-layer", 2, "--json")
    found = json.loads(out)
    assert set(found) == {"parameters", "memory", "operations", "time"}
    for line in found["parameters"]:
        assert re.search(rf"{re.escape(line['part'])}.*{line['value']:,}", table)
    most = found["memory"][-1]["value"]
    assert f"{most / 1e6:,.1f} MB" in table


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:300"])
def test_explain_knows_how_many_tokens_there_are(
    nanogpt: Command, text_file: Path, small: list[str], tokenizer: str
) -> None:
    flags = "--data", text_file, "--tokenizer", tokenizer, "--model.n-embd", 16
    _, out, _ = nanogpt("explain", "tiny", *flags, "--json")
    assert nanogpt("train", "tiny", *flags, "--train.steps", 1)[0] == 0
    read_description = json.loads(Path("runs/tiny/run.json").read_text())
    assert json.loads(out)["parameters"][-1]["value"] == read_description["parameters"]
    _, table, _ = nanogpt("explain", "tiny", *flags)
    V = read_description["config"]["model"]["vocab_size"]
    assert "tiny on cpu in float32: L = 4 (layers), C = 16 (channels)" in " ".join(table.split())
    assert f"V = {V} (vocabulary)" in " ".join(table.split())
    refused(nanogpt("explain", "tiny", "--data", "nowhere.txt"), "nowhere.txt")


def test_explain_takes_a_run(nanogpt: Command, text_file: Path, small: list[str]) -> None:
    assert nanogpt("train", "tiny", "--data", text_file, *small)[0] == 0
    read_description = json.loads(Path("runs/tiny/run.json").read_text())
    _, out, _ = nanogpt("explain", "runs/tiny", "--json")
    assert json.loads(out)["parameters"][-1]["value"] == read_description["parameters"]
    status, _, err = nanogpt("explain", "tinny")
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean tiny" in err
    says = "there is no run nowhere; the runs in runs/: runs/tiny; the presets: bigram, tiny, "
    refused(nanogpt("explain", "nowhere"), says)


def test_only_whole_models_are_explained(nanogpt: Command) -> None:
    config = PlainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    Path("runs/one/best").mkdir(parents=True)
    read_description = Description(
        RunConfig(model=config), "", 0, 0.0, "cpu", "float32", Versions()
    )
    written = {**asdict(read_description), "config": read_description.config.to_json()}
    Path("runs/one/run.json").write_text(json.dumps(written))
    status, out, err = nanogpt("explain", "runs/one")
    refused((status, out, err), "runs/one is a GPT with parts left out")
