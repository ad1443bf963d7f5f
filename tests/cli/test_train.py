"""The command `nanogpt train`: training, the sample at the end, refused arguments."""

import gc
import json
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from nanogpt.api import Trained, load
from nanogpt.runs.checkpoint import load_checkpoint
from nanogpt.runs.directory import find_run
from nanogpt.runs.run import Run
from nanogpt.text.tokenizers import make_tokenizer
from tests.families import word_level
from tests.marks import slow
from tests.platforms import posix_only

from .answers import Command, assert_refused


def test_train_ends_with_a_sample(nanogpt: Command, small: list[str], text_file: Path) -> None:
    status, out, err = nanogpt("train", "--data", text_file, *small)
    assert (status, err) == (0, "")
    assert "runs/tiny: GPT, " in out
    assert re.search(r"bigram baseline: validation loss \d\.\d{4}", out)
    assert re.search(r"step +20  train +\d\.\d{4}  val +\d\.\d{4}", out)
    assert re.search(r"best validation loss +\d\.\d{4} nats per token, at step (10|20)", out)
    assert re.search(r"bits per byte +\d\.\d{4}", out)
    sample, line_break, advice = out.partition("Sample:\n")[2][20:].partition("\n")
    assert (sample, line_break) == ("", "\n")
    better = f"nanogpt train laptop --data {text_file}"
    assert advice == f"For better text, train for about 3 minutes: {better}\n"
    assert set(out.partition("Sample:\n")[2][:20]) <= set(text_file.read_text())


@pytest.mark.parametrize("tracker", [(), ("--track", "tensorboard")])
def test_the_sample_can_use_the_memory_of_the_run(
    nanogpt: Command,
    small: list[str],
    text_file: Path,
    tracker: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count_things() -> int:
        return sum(isinstance(thing, Run | nn.Module) for thing in gc.get_objects())

    def count_and_load(path: str, device: str) -> Trained:
        counts.append(count_things())
        return load(path, device)

    monkeypatch.setattr("nanogpt.cli.train.load", count_and_load)
    gc.collect()
    counts = [count_things()]
    assert nanogpt("train", "--data", text_file, *small, *tracker)[0] == 0
    before, during = counts
    assert during <= before


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "loss"), [("tiny", 1.62), ("tiny-fast", 1.89)])
def test_the_presets_for_a_cpu_reach_their_loss(nanogpt: Command, preset: str, loss: float) -> None:
    """`tiny` reaches a lower loss than nanoGPT's recipe for a CPU (1.88), `tiny-fast` about 1.86.

    Its loss depends a little on the processor.
    """
    status, out, err = nanogpt("train", preset, "--device", "cpu")
    assert (status, err) == (0, "")
    _, answer, _ = nanogpt("eval", "--json")
    assert json.loads(answer)["loss"] < loss
    assert json.loads(answer)["tokens"] == 111_539
    sample = out.partition("Sample:\n")[2].partition("\nFor better text")[0]
    assert len(sample.removesuffix("\n")) == 500


def test_a_run_can_be_in_the_directory_of_its_text(
    nanogpt: Command, small: list[str], text_file: Path
) -> None:
    assert nanogpt("train", "--data", ".", *small)[::2] == (0, "")
    more = ("--train.steps", 30, "--sample-tokens", 0)
    assert nanogpt("train", "--resume", "runs/tiny", *more)[::2] == (0, "")
    assert nanogpt("eval", "tiny", "--device", "cpu")[::2] == (0, "")
    assert nanogpt("train", "--data", ".", *small)[::2] == (0, "")
    hashes = [
        json.loads(file.read_text())["text_sha256"] for file in Path("runs").glob("*/run.json")
    ]
    assert len(hashes) == 2
    assert len({*hashes}) == 1


def test_a_repeated_command_makes_another_run(
    nanogpt: Command, small: list[str], text_file: Path
) -> None:
    for directory in ("runs/tiny", "runs/tiny-2"):
        _, out, _ = nanogpt("train", "tiny", "--data", text_file, *small)
        assert f"saved in              {directory};" in out
    _, out, _ = nanogpt("eval", "--json")
    assert json.loads(out)["runs"] == ["runs/tiny-2"]  # the newest run


def test_the_bigram_preset_trains_a_bigram(nanogpt: Command, text_file: Path) -> None:
    settings = ("--train.steps", 20, "--model.block-size", 16, "--device", "cpu")
    status, out, _ = nanogpt("train", "bigram", "--data", text_file, *settings)
    assert status == 0
    assert "runs/bigram: Bigram, " in out


@pytest.mark.parametrize("kind", [slow("byte"), slow("bpe:300"), "hub"])
def test_a_run_contains_its_tokenizer(
    nanogpt: Command, small: list[str], tmp_path: Path, kind: str, text: str
) -> None:
    """Later commands need no --tokenizer; a resumed run does not need the tokenizer's file."""
    text = text.replace("a", "é").replace("b", "问")
    words = tmp_path / "words.txt"
    words.write_text(text, encoding="utf-8")
    if kind == "hub":
        kind = "mine.json"
        Path(kind).write_text(json.dumps(make_tokenizer("bpe:280", [], [text]).to_json()))
    status, out, err = nanogpt(
        "train", "--tokenizer", kind, "--data", words, "--out", "mine", *small
    )
    assert (status, err) == (0, "")
    assert "Sample:" in out
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
    assert_refused(nanogpt(*resumed, "--tokenizer", "char"), says)
    assert nanogpt("sample", "mine", "--prompt", "问é, 😀", "--max-new-tokens", 5)[0] == 0


@pytest.mark.slow
def test_a_run_may_be_the_tokenizer_of_another_run(
    nanogpt: Command, small: list[str], text: str
) -> None:
    """The option --tokenizer takes the path or the name of a run."""
    Path("words.txt").write_text(text)
    Path("short.txt").write_text(text[:1500])  # bpe would learn other tokens from this text
    train = ("train", *small, "--data", "words.txt", "--tokenizer", "bpe:280", "--name", "one")
    assert nanogpt(*train)[0] == 0
    expected = Path("runs/one/best/tokenizer.json").read_text()
    for name in ("one", "runs/one", str(Path("runs/one").resolve())):
        again = ("train", *small, "--data", "short.txt", "--tokenizer", name, "--name", "two")
        status, _, err = nanogpt(*again)
        assert (status, err) == (0, "")
        newest = find_run(None)
        assert newest.name.startswith("two")
        assert (newest / "best" / "tokenizer.json").read_text() == expected
        _, out, _ = nanogpt("explain", "tiny", "--data", "short.txt", "--tokenizer", name)
        assert "V = 280 (vocabulary)" in out
        assert nanogpt("train", "--resume", newest, "--train.steps", 25)[0] == 0
    assert_refused(nanogpt(*again, "--tokenizer", "runs/two/best"), "is not a run: it has no best/")
    assert_refused(nanogpt(*again, "--tokenizer", "three"), "there is no tokenizer three: use char")


def test_a_tokenizer_that_loses_text_gets_no_bits_per_byte(
    nanogpt: Command, text_file: Path, small: list[str]
) -> None:
    """All unknown words become the same token, which is easy to predict."""
    Path("words.json").write_text(word_level().to_str())
    train = ("train", "--tokenizer", "words.json", "--data", text_file, "--out", "mine", *small)
    status, out, err = nanogpt(*train)
    assert (status, err) == (0, "")
    share = re.search(r"The tokenizer does not reproduce ([0-9.]+)% of the text: ", out)
    assert share
    assert 30 < float(share[1]) < 100
    assert "Bits per byte are not shown" in out
    assert "bits per byte " not in out
    assert "bits_per_byte" not in Path("mine/metrics.jsonl").read_text()
    assert json.loads(nanogpt("eval", "mine", "--json")[1])["bits_per_byte"] is None
    status, out, err = nanogpt("eval", "mine")
    assert "bits per byte" not in out
    assert "Bits per byte are not shown" in err
    assert nanogpt("train", "--resume", "mine", "--train.steps", 30)[0] == 0


@pytest.mark.slow
def test_a_run_on_many_documents_can_be_resumed(
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
        answer = json.loads(nanogpt("eval", out, *how, "--split", "all", "--json")[1])
        assert answer["tokens"] == 6000 + 9 - 1
    assert_refused(nanogpt("train", "--data", "texts", *small), "line 1: there is no column 'text'")


def test_a_run_on_encoded_tokens_needs_their_tokenizer(
    nanogpt: Command, small: list[str], text: str
) -> None:
    tokenizer = make_tokenizer("bpe:280", [], [text])
    Path("mine.json").write_text(json.dumps(tokenizer.to_json()))
    Path("tokens").mkdir()
    for name, part in (("train", text[:5400]), ("val", text[5400:])):
        np.array(tokenizer.encode(part), dtype=np.uint16).tofile(f"tokens/{name}.bin")
    how = ("train", "--data", "tokens", *small, "--out", "mine")
    assert_refused(nanogpt(*how), "contains tokens (train.bin and val.bin), not text")
    status, out, err = nanogpt(*how, "--tokenizer", "mine.json")
    assert (status, err) == (0, "")
    assert "Sample:" in out
    of_tokens = json.loads(nanogpt("eval", "mine", "--json")[1])
    Path("words.txt").write_text(text)
    of_text = json.loads(nanogpt("eval", "mine", "--data", "words.txt", "--split=val", "--json")[1])
    assert of_tokens == of_text
    assert json.loads(nanogpt("eval", "mine", "--data", "tokens", "--json")[1]) == of_text
    assert nanogpt("train", "--resume", "mine", "--train.steps", 30)[::2] == (0, "")
    assert_refused(nanogpt("data", "tokens"), "contains tokens")


def test_the_validation_fraction_can_be_chosen(
    nanogpt: Command, small: list[str], text_file: Path
) -> None:
    how = ("train", "--data", text_file, "--val-fraction", 0.25, *small, "--out", "mine")
    assert nanogpt(*how)[::2] == (0, "")
    assert json.loads(nanogpt("eval", "mine", "--json")[1])["tokens"] == 1500 - 1
    again = ("eval", "mine", "--data", text_file, "--split", "val", "--json")
    assert json.loads(nanogpt(*again)[1])["tokens"] == 1500 - 1
    assert nanogpt("train", "--data", text_file, *small, "--out", "other")[0] == 0
    assert_refused(
        nanogpt("eval", "mine", "other"), "mine and other were trained on different texts"
    )
    assert "--val-fraction is 0.1, but this run was started with 0.25" in " ".join(
        nanogpt("train", "--resume", "mine", "--val-fraction", 0.1)[2].split()
    )


def test_names_are_not_interpreted_as_markup(
    nanogpt: Command, small: list[str], text_file: Path
) -> None:
    odd = text_file.rename("[red]$x$ :cat:.txt")
    status, out, err = nanogpt("train", "--data", odd, "--name", "[bold]$\\frac$", *small)
    assert (status, err) == (0, "")
    assert "runs/[bold]$\\frac$: GPT" in out
    assert "[red]$x$ :cat:.txt: " in out


@posix_only
def test_a_printed_command_can_be_copied_whatever_the_name(
    nanogpt: Command, small: list[str], text_file: Path
) -> None:
    name = 'it\'s "my" [red]run :cat: $x 文本\x1b[2J\nend ' + "long " * 20
    status, out, err = nanogpt("train", "--data", text_file, "--name", name, *small)
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    (line,) = (line for line in out.splitlines() if line.startswith("saved in"))
    printed = line.partition("generate more text with: nanogpt ")[2]
    split = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {printed}"], capture_output=True, check=True
    )
    assert split.stdout.decode().split("\0") == ["sample", f"runs/{name}", ""]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "own.txt is empty: name a file with text in it"),
        (b"fine so far \xe9 no more", "own.txt is not UTF-8: byte 12 is 0xe9; convert it"),
        (b"short", "the text is too short: its val split has 1 token; use a longer text"),
        (b"a" * 200, "the text is too short: its val split has 20 tokens, and block_size 64 needs"),
    ],
)
def test_an_unsuitable_text_is_refused(nanogpt: Command, raw: bytes, says: str) -> None:
    Path("own.txt").write_bytes(raw)
    assert_refused(nanogpt("train", "tiny", "--data", "own.txt", "--device", "cpu"), says)
    assert not Path("runs").exists()


def test_a_directory_with_a_run_is_not_changed(
    nanogpt: Command, run: Path, text_file: Path, small: list[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("[!.]*")}
    again = nanogpt("train", "--data", text_file, "--out", run, *small)
    assert_refused(again, "mine already holds a run: name another directory, such as --out mine-2")
    assert {file: file.stat().st_mtime_ns for file in run.rglob("[!.]*")} == before


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the user must not be root"
)
def test_a_directory_without_write_permission_is_refused(
    nanogpt: Command, text_file: Path, small: list[str]
) -> None:
    Path("locked").mkdir(mode=0o500)
    answer = nanogpt("train", "--data", text_file, "--out", "locked/run", *small)
    assert_refused(answer, "cannot write in locked/run: Permission denied; name another directory")


def test_a_directory_below_a_file_is_refused(
    nanogpt: Command, text_file: Path, small: list[str]
) -> None:
    answer = nanogpt("train", "--data", text_file, "--out", text_file / "run", *small)
    assert_refused(answer, "Not a directory; name another directory with --out")


LARGEST = 2**31 - 1
ENORMOUS = {
    "--model.n-layer": 10**9,
    "--model.n-embd": 2 * 10**9,
    "--train.batch-size": LARGEST,
    "--train.batch-size=2147483647 --train.accumulation": LARGEST,
}


@pytest.mark.parametrize("option", ENORMOUS)
def test_a_run_that_needs_more_memory_than_the_machine_has_is_refused(
    nanogpt: Command, text_file: Path, small: list[str], option: str
) -> None:
    flags = "--data", text_file, *small
    enormous = *option.split(), ENORMOUS[option]
    answer = nanogpt("train", *flags, *enormous)
    assert_refused(answer, "B of memory, but only ")
    assert option.split("=")[0] in answer[2].partition("use a smaller")[2]
    assert not Path("runs").exists()
    if "train" in option:  # a resumed run may change training settings, but not model settings
        assert nanogpt("train", *flags)[0] == 0
        assert_refused(nanogpt("train", "--resume", *enormous), "B of memory, but only ")


@pytest.mark.parametrize("size", ["n-layer", "n-head", "n-embd", "block-size", "vocab-size"])
@pytest.mark.parametrize("command", ["train", "explain"])
def test_sizes_of_a_model_are_limited(nanogpt: Command, command: str, size: str) -> None:
    answer = nanogpt(command, "tiny", f"--model.{size}", LARGEST + 1)
    assert_refused(
        answer, f"--model.{size} is {LARGEST + 1}: it must be at least 1 and less than 2"
    )
