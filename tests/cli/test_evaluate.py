"""The command `nanogpt eval`."""

import json
import re
from pathlib import Path

import pytest

from .answers import Command


def test_eval_repeats_the_loss_of_training(nanogpt: Command, run: Path) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min((m for m in metrics if "val_loss" in m), key=lambda m: m["val_loss"])
    status, out, _ = nanogpt("eval", run, "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer == {
        "runs": ["mine"],
        "steps": [best["step"]],
        "split": "val",
        "loss": pytest.approx(best["val_loss"]),
        "bits_per_byte": pytest.approx(best["bits_per_byte"]),
        "tokens": 599,
    }
    _, out, _ = nanogpt("eval", run, "--split", "train")
    assert re.fullmatch(
        r"mine, step \d+: train loss \d\.\d{4} nats per token, \d\.\d{4} bits per byte, "
        r"over 5,399 tokens\n",
        out,
    )


def test_several_runs_are_evaluated_as_one_model(
    nanogpt: Command, run: Path, small: list[str], text_file: Path
) -> None:
    """With averaged probabilities, two runs have a lower loss than the mean of their losses."""
    nanogpt("train", "--data", text_file, "--out", "other", "--seed", 1, *small)
    losses = [json.loads(nanogpt("eval", r, "--json")[1])["loss"] for r in (run, "other")]
    status, out, err = nanogpt("eval", run, "other", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["runs"] == ["mine", "other"]
    assert json.loads(out)["loss"] < sum(losses) / 2
    _, out, _ = nanogpt("eval", run, "other")
    assert re.match(r"mine, step \d+ and other, step \d+: val loss \d\.\d{4} nats", out)


def test_another_text_is_evaluated_as_a_whole(nanogpt: Command, run: Path, text_file: Path) -> None:
    train, val, whole = Path("train.txt"), Path("val.txt"), Path("all.txt")
    text = text_file.read_text()
    for file, part in ((train, text[:5400]), (val, text[5400:]), (whole, text)):
        file.write_text(part)
    for file, split in ((train, "train"), (val, "val")):
        whole_text = json.loads(nanogpt("eval", run, "--data", file, "--json")[1])
        split_of_run = json.loads(nanogpt("eval", run, "--split", split, "--json")[1])
        assert (whole_text["split"], whole_text["tokens"]) == ("all", split_of_run["tokens"])
        assert whole_text["loss"] == pytest.approx(split_of_run["loss"], abs=1e-6)
    _, same_text, _ = nanogpt("eval", run, "--data", whole, "--json")  # the same text, another path
    assert same_text == nanogpt("eval", run, "--json")[1]


def test_runs_that_do_not_fit_together_are_refused(
    nanogpt: Command, run: Path, small: list[str], text_file: Path
) -> None:
    Path("other.txt").write_text(text_file.read_text()[::-1])
    Path("more.txt").write_text(text_file.read_text() + "!")
    nanogpt("train", "--data", "other.txt", "--out", "other", *small)
    nanogpt("train", "--data", "more.txt", "--out", "more", *small)
    nanogpt("train", "--data", text_file, "--out", "short", *small, "--model.block-size", 8)
    for other, says in (
        ("other", "mine and other were trained on different texts: choose a text with --data"),
        ("short", "mine and short have different block sizes: evaluate them one by one"),
    ):
        assert nanogpt("eval", run, other) == (2, "", f"nanogpt: {says}\n")
    says = "mine and more have different tokenizers: evaluate them one by one"
    assert nanogpt("eval", run, "more", "--data", text_file) == (2, "", f"nanogpt: {says}\n")
    Path("one.txt").write_text("a")
    says = "the text is too short: its all split has 1 token; use a longer text"
    assert nanogpt("eval", run, "--data", "one.txt") == (2, "", f"nanogpt: {says}\n")
