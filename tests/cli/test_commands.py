"""The commands that cut, count and explain, as a user runs them."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanogpt.runs.checkpoint import load_checkpoint
from nanogpt.text.tokenizers import make

Command = Callable[..., tuple[int, str, str]]


def refused(answer: tuple[int, str, str], says: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert re.fullmatch(r"nanogpt: [^\n]+\n", err), err
    assert says in err


@pytest.mark.parametrize("kind", ["byte", "bpe:300", "hub"])
def test_with_any_tokenizer_from_nothing_to_text(
    nanogpt: Command, small: list[str], tmp_path: Path, kind: str, text: str
) -> None:
    """It travels with the checkpoint: nothing names it again, and a resume needs no file of it."""
    text = text.replace("a", "é").replace("b", "问")
    words = tmp_path / "words.txt"
    words.write_text(text, encoding="utf-8")
    if kind == "hub":
        kind = "mine.json"
        Path(kind).write_text(json.dumps(make("bpe:280", [], [text]).to_json()))
    status, out, err = nanogpt(
        "train", "--tokenizer", kind, "--data", words, "--out", "mine", *small
    )
    assert (status, err) == (0, "")
    assert "It writes:" in out
    Path("mine.json").unlink(missing_ok=True)
    metrics = [json.loads(line) for line in Path("mine/metrics.jsonl").read_text().splitlines()]
    answer = json.loads(nanogpt("eval", "mine", "--json")[1])
    best = min((m for m in metrics if "val_loss" in m), key=lambda m: m["val_loss"])
    assert answer["bits_per_byte"] == pytest.approx(best["bits_per_byte"])
    val = text[int(0.9 * len(text)) :]
    ids = load_checkpoint(Path("mine/best")).tokenizer.encode(val)
    assert answer["tokens"] == len(ids) - 1
    per_byte = answer["loss"] / math.log(2) * len(ids) / len(val.encode())
    assert answer["bits_per_byte"] == pytest.approx(per_byte)
    resumed = ("train", "--resume", "mine", "--train.steps", 30)
    assert nanogpt(*resumed)[0] == 0
    says = f"--tokenizer is char, but this run was started with {kind}"
    refused(nanogpt(*resumed, "--tokenizer", "char"), says)
    assert nanogpt("sample", "mine", "--prompt", "问é, 😀", "--max-new-tokens", 5)[0] == 0


def test_what_a_text_is_like(nanogpt: Command, text_file: Path, text: str) -> None:
    status, out, err = nanogpt("data", text_file)
    assert (status, err) == (0, "")
    assert "6,000 bytes, 6,000 characters" in out
    assert re.search(r"trigrams +\d\.\d{4} +\d\.\d{4} +\d\.\d{4}", out)
    answer = json.loads(nanogpt("data", text_file, "--json")[1])
    assert answer["alphabet"] == "".join(sorted(set(text)))
    assert [each["n"] for each in answer["ngrams"]] == [1, 2, 3]
    refused(nanogpt("data", "nope.txt"), "there is no file nope.txt")


def test_a_run_of_many_documents_goes_on(
    nanogpt: Command, small: list[str], text: str, tmp_path: Path
) -> None:
    rows = [{"body": text[i : i + 600]} for i in range(0, 6000, 600)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts").mkdir()
    Path("a.jsonl").rename("texts/a.jsonl")
    for data, out in (("texts/*.jsonl", "mine"), ("texts", "other")):
        how = ("--data", data, "--column", "body", "--separator", "|")
        assert nanogpt("train", *how, "--out", out, *small)[::2] == (0, "")
        assert nanogpt("train", "--resume", out, "--train.steps", 30)[::2] == (0, "")
        answer = json.loads(nanogpt("eval", out, "--json")[1])
        assert answer["tokens"] == 6000 + 9 - int(0.9 * 6009) - 1
        answer = json.loads(nanogpt("eval", out, *how, "--json")[1])
        assert answer["tokens"] == 6000 + 9 - 1
    refused(nanogpt("train", "--data", "texts", *small), "line 1, has no column text")


def test_how_a_text_is_cut(
    nanogpt: Command, run: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = nanogpt("tokenize", "--tokenizer", "byte", "aé\n b")
    assert (status, err) == (0, "")
    drawn = [line.split() for line in out.splitlines()]
    assert drawn[:2] == [["a", "\\xc3", "\\xa9", "↵"], ["97", "195", "169", "10"]]
    assert drawn[2:4] == [["·", "b"], ["32", "98"]]
    assert "6 tokens of 256 for 6 bytes: 1.00 bytes per token" in out
    answer = json.loads(nanogpt("tokenize", "--tokenizer", run, "bad,", "--json")[1])
    assert answer["tokens"] == ["b", "a", "d", ","]
    assert answer["ids"] == load_checkpoint(run / "best").tokenizer.encode("bad,")
    how = ("--tokenizer", "bpe:300", "--data", text_file, "bad,", "--json")
    text = text_file.read_text() + "bad," * 160  # most of it in the last tenth
    text_file.write_text(text)
    learned = make("bpe:300", [], [text[: int(0.9 * len(text))]])
    assert json.loads(nanogpt("tokenize", *how)[1])["ids"] == learned.encode("bad,")
    typed = "bad, é".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    _, out, _ = nanogpt("tokenize", "--tokenizer", "byte", "--json")
    assert json.loads(out)["ids"] == list(typed)
    for arguments, says in (
        (("--tokenizer", "nope", "x"), "there is no run nope"),
        (("--tokenizer", "bpe:9", "x"), "tokenizer is bpe:9: 256 tokens are the bytes"),
        (("--tokenizer", run, "é"), "the tokenizer does not know the character 'é' (U+00E9)"),
    ):
        refused(nanogpt("tokenize", *arguments), says)


def test_tokens_of_nanogpt_from_nothing_to_text(
    nanogpt: Command, small: list[str], text: str
) -> None:
    tokenizer = make("bpe:280", [], [text])
    Path("mine.json").write_text(json.dumps(tokenizer.to_json()))
    Path("tokens").mkdir()
    for name, part in (("train", text[:5400]), ("val", text[5400:])):
        np.array(tokenizer.encode(part), dtype=np.uint16).tofile(f"tokens/{name}.bin")
    how = ("train", "--data", "tokens", *small, "--out", "mine")
    refused(nanogpt(*how), "holds tokens, train.bin and val.bin, and not their text")
    status, out, err = nanogpt(*how, "--tokenizer", "mine.json")
    assert (status, err) == (0, "")
    assert "It writes:" in out
    of_tokens = json.loads(nanogpt("eval", "mine", "--json")[1])
    Path("words.txt").write_text(text)
    of_text = json.loads(nanogpt("eval", "mine", "--data", "words.txt", "--split=val", "--json")[1])
    assert of_tokens == of_text
    assert json.loads(nanogpt("eval", "mine", "--data", "tokens", "--json")[1]) == of_text
    assert nanogpt("train", "--resume", "mine", "--train.steps", 30)[::2] == (0, "")
    refused(nanogpt("data", "tokens"), "holds tokens")


def test_another_part_to_measure_with(nanogpt: Command, small: list[str], text_file: Path) -> None:
    how = ("train", "--data", text_file, "--val-fraction", 0.25, *small, "--out", "mine")
    assert nanogpt(*how)[::2] == (0, "")
    assert json.loads(nanogpt("eval", "mine", "--json")[1])["tokens"] == 1500 - 1
    again = ("eval", "mine", "--data", text_file, "--split", "val", "--json")
    assert json.loads(nanogpt(*again)[1])["tokens"] == 1500 - 1
    assert nanogpt("train", "--data", text_file, *small, "--out", "other")[0] == 0
    refused(nanogpt("eval", "mine", "other"), "mine and other learned from two texts: name one")
    assert "--val-fraction is 0.1, but this run was started with 0.25" in " ".join(
        nanogpt("train", "--resume", "mine", "--val-fraction", 0.1)[2].split()
    )
