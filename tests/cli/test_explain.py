"""nanogpt explain."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from nanogpt.cli.explain import format_quantity
from nanogpt.models import PlainConfig
from nanogpt.runs.config import RunConfig
from nanogpt.runs.run import Description, Versions
from tests.marks import slow

from .answers import Command, assert_refused


def test_tables_and_json_have_the_same_values(nanogpt: Command) -> None:
    status, table, _ = nanogpt("explain", "tiny", "--device", "cpu", "--model.n-layer", 2)
    assert status == 0
    status, out, _ = nanogpt("explain", "tiny", "--device", "cpu", "--model.n-layer", 2, "--json")
    answer = json.loads(out)
    assert set(answer) == {"parameters", "memory", "operations", "time"}
    for line in answer["parameters"]:
        assert re.search(rf"{re.escape(line['part'])}.*{line['value']:,}", table)
    largest = answer["memory"][-1]["value"]
    assert f"{largest / 1e6:,.1f} MB" in table


@pytest.mark.parametrize("tokenizer", ["char", slow("byte"), "bpe:300"])
def test_the_vocabulary_follows_from_the_tokenizer(
    nanogpt: Command, text_file: Path, small: list[str], tokenizer: str
) -> None:
    flags = "--data", text_file, "--tokenizer", tokenizer, "--model.n-embd", 16
    _, out, _ = nanogpt("explain", "tiny", *flags, "--json")
    assert nanogpt("train", "tiny", *flags, "--train.steps", 1, "--sample-tokens", 0)[0] == 0
    description = json.loads(Path("runs/tiny/run.json").read_text())
    assert json.loads(out)["parameters"][-1]["value"] == description["parameters"]
    _, table, _ = nanogpt("explain", "tiny", *flags)
    V = description["config"]["model"]["vocab_size"]
    assert "tiny on cpu in float32: L = 4 (layers), C = 16 (channels)" in " ".join(table.split())
    assert f"V = {V} (vocabulary)" in " ".join(table.split())
    assert_refused(nanogpt("explain", "tiny", "--data", "nowhere.txt"), "nowhere.txt")


def test_a_run_can_be_explained(nanogpt: Command, text_file: Path, small: list[str]) -> None:
    assert nanogpt("train", "tiny", "--data", text_file, *small)[0] == 0
    description = json.loads(Path("runs/tiny/run.json").read_text())
    _, out, _ = nanogpt("explain", "runs/tiny", "--json")
    assert json.loads(out)["parameters"][-1]["value"] == description["parameters"]
    status, _, err = nanogpt("explain", "tinny")
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean tiny" in err
    says = "there is no run nowhere; the runs in runs/: runs/tiny; the presets: bigram, tiny, "
    assert_refused(nanogpt("explain", "nowhere"), says)


def test_a_model_with_parts_left_out_is_refused(nanogpt: Command) -> None:
    config = PlainConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    Path("runs/one/best").mkdir(parents=True)
    description = Description(RunConfig(model=config), "", 0, 0.0, "cpu", "float32", Versions())
    written = {**asdict(description), "config": description.config.to_json()}
    Path("runs/one/run.json").write_text(json.dumps(written))
    status, out, err = nanogpt("explain", "runs/one")
    assert_refused((status, out, err), "runs/one is a GPT without some of its parts")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 s"),
        (1.5e-6, "1.5 µs"),
        (0.0234, "23.4 ms"),
        (1, "1 s"),
        (12_345, "12.3 ks"),
        (999_600, "1 Ms"),
    ],
)
def test_quantities_have_a_fitting_prefix(value: float, words: str) -> None:
    assert format_quantity(value, "s") == words
