"""The commands as a user runs them, and every mistake that a user can make with them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from nanogpt import __version__
from nanogpt.cli.main import COMMANDS
from nanogpt.runs.checkpoint import load_checkpoint, save_checkpoint
from nanogpt.runs.presets import PRESETS

Command = Callable[..., tuple[int, str, str]]
Process = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def test_from_nothing_to_text(nanogpt: Command, small: list[str], text_file: Path) -> None:
    status, out, err = nanogpt("train", "--data", text_file, *small)
    assert (status, err) == (0, "")
    assert "runs/tiny: GPT, " in out
    assert re.search(r"bigram baseline: validation loss \d\.\d{4}", out)
    assert re.search(r"step +20  train +\d\.\d{4}  val +\d\.\d{4}", out)
    assert re.search(r"best validation loss +\d\.\d{4} nats per token, at step (10|20)", out)
    assert re.search(r"bits per byte +\d\.\d{4}", out)
    written = out.partition("It writes:\n")[2]
    assert len(written) == 500 + 1
    assert set(written) <= set(text_file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "loss"), [("tiny", 1.78), ("tiny-fast", 1.88)])
def test_the_main_job(nanogpt: Command, preset: str, loss: float) -> None:
    """The README's first command, whole: Tiny Shakespeare, below nanoGPT's CPU recipe."""
    status, out, err = nanogpt("train", preset, "--device", "cpu")
    assert (status, err) == (0, "")
    _, answer, _ = nanogpt("eval", "--json")
    assert json.loads(answer)["loss"] < loss
    assert json.loads(answer)["tokens"] == 111_539
    assert len(out.partition("It writes:\n")[2]) == 500 + 1


def test_the_same_command_works_twice(nanogpt: Command, small: list[str], text_file: Path) -> None:
    for directory in ("runs/tiny", "runs/tiny-2"):
        _, out, _ = nanogpt("train", "tiny", "--data", text_file, *small)
        assert f"kept in               {directory}" in out
    _, out, _ = nanogpt("eval", "--json")
    assert json.loads(out)["runs"] == ["runs/tiny-2"]  # the newest


def test_the_bigram_is_a_preset_too(nanogpt: Command, text_file: Path) -> None:
    settings = ("--train.steps", 20, "--model.block-size", 16, "--device", "cpu")
    status, out, _ = nanogpt("train", "bigram", "--data", text_file, *settings)
    assert status == 0
    assert "runs/bigram: Bigram, " in out


def test_eval_gives_the_loss_that_training_gave(nanogpt: Command, run: Path) -> None:
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


def test_several_runs_are_measured_as_one(
    nanogpt: Command, run: Path, small: list[str], text_file: Path
) -> None:
    """By the mean of what they think: better than they are on average."""
    nanogpt("train", "--data", text_file, "--out", "other", "--seed", 1, *small)
    losses = [json.loads(nanogpt("eval", r, "--json")[1])["loss"] for r in (run, "other")]
    status, out, err = nanogpt("eval", run, "other", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["runs"] == ["mine", "other"]
    assert json.loads(out)["loss"] < sum(losses) / 2
    _, out, _ = nanogpt("eval", run, "other")
    assert re.match(r"mine, step \d+ and other, step \d+: val loss \d\.\d{4} nats", out)


def test_another_text_is_measured_whole(nanogpt: Command, run: Path, text_file: Path) -> None:
    train, val, whole = Path("train.txt"), Path("val.txt"), Path("all.txt")
    text = text_file.read_text()
    for file, part in ((train, text[:5400]), (val, text[5400:]), (whole, text)):
        file.write_text(part)
    for file, split in ((train, "train"), (val, "val"), (whole, "all")):
        there = json.loads(nanogpt("eval", run, "--data", file, "--json")[1])
        here = json.loads(nanogpt("eval", run, "--split", split, "--json")[1])
        assert (there["split"], there["tokens"]) == ("all", here["tokens"])
        assert there["loss"] == pytest.approx(here["loss"], abs=1e-6)


def test_runs_that_cannot_be_measured_together_are_named(
    nanogpt: Command, run: Path, small: list[str], text_file: Path
) -> None:
    Path("other.txt").write_text(text_file.read_text()[::-1])
    Path("more.txt").write_text(text_file.read_text() + "!")
    nanogpt("train", "--data", "other.txt", "--out", "other", *small)
    nanogpt("train", "--data", "more.txt", "--out", "more", *small)
    nanogpt("train", "--data", text_file, "--out", "short", *small, "--model.block-size", 8)
    for other, says in (
        ("other", "mine and other learned from two texts: name one with --data"),
        ("short", "mine and short have two contexts: measure each by itself"),
    ):
        assert nanogpt("eval", run, other) == (2, "", f"nanogpt: {says}\n")
    says = "mine and more have two tokenizers: measure each by itself"
    assert nanogpt("eval", run, "more", "--data", text_file) == (2, "", f"nanogpt: {says}\n")
    Path("one.txt").write_text("a")
    says = "the text is too short: its all split has 1 tokens; give more text"
    assert nanogpt("eval", run, "--data", "one.txt") == (2, "", f"nanogpt: {says}\n")


def test_names_are_no_markup(nanogpt: Command, small: list[str], text_file: Path) -> None:
    odd = text_file.rename("[red]$x$.txt")
    status, out, err = nanogpt("train", "--data", odd, "--name", "[bold]$\\frac$", *small)
    assert (status, err) == (0, "")
    assert "runs/[bold]$\\frac$: GPT" in out
    assert "[red]$x$.txt: " in out


def test_presets_are_listed(nanogpt: Command) -> None:
    status, out, _ = nanogpt("presets")
    assert status == 0
    for name, preset in PRESETS.items():
        assert re.search(rf"{name} +.*{preset.config.train.steps:,}", out)


@pytest.mark.parametrize("asked", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(nanogpt: Command, asked: tuple[str, ...]) -> None:
    status, out, _ = nanogpt(*asked)
    assert status == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out


def test_help_shows_the_actual_defaults(nanogpt: Command) -> None:
    for name, preset in PRESETS.items():
        status, out, _ = nanogpt("train", name, "--help")
        flat = re.sub(r"[│\s]+", " ", out)
        assert status == 0
        assert f"(default: {preset.config.train.batch_size})" in flat
        assert f"(default: {preset.config.optim.lr})" in flat
    for command in ("sample", "eval"):
        assert nanogpt(command, "--help")[0] == 0


def test_version(nanogpt: Command) -> None:
    assert nanogpt("--version") == (0, f"nanogpt {__version__}\n", "")


# What a user gets wrong: one line that says what and what to do, status 2, nothing lost.


def refused(answer: tuple[int, str, str], says: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert re.fullmatch(r"nanogpt: [^\n]+\n", err), err
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("trian", "there is no command 'trian': did you mean train?"),
        ("frob", "there is no command 'frob': use one of train, sample, eval, data, tokenize, ins"),
        (
            "train tinny",
            "no preset 'tinny': did you mean tiny? The presets are bigram, tiny, tiny-fast, baby",
        ),
        ("train xyz", "there is no preset 'xyz': the presets are bigram, tiny, tiny-fast, baby"),
        ("train --train.stps 3", "--train.stps, 3; did you mean --train.steps"),
        ("train --train.steps", "Missing value for argument '--train.steps'"),
        ("train --train.steps many", "Error parsing --train.steps"),
        ("train --precision float8", "Expected one of ('auto', 'float32', 'bfloat16', 'float16')"),
        ("train tiny --model.n-head 3", "n_embd is 128, which n_head 3 does not divide: try"),
        ("train tiny --model.n-layer 0", "n_layer is 0: it must be at least 1"),
        ("train --train.batch-size 0", "batch_size is 0: it must be at least 1"),
        ("train --optim.lr -1", "lr is -1.0: it must be more than 0"),
        ("train --data nope.txt", "there is no file nope.txt, and the known corpora are tinysha"),
        ("train --device tpu", "there is no device 'tpu': use auto, cpu"),
        ("sample", "there is no run in runs/ yet: train one with `nanogpt train`"),
        ("sample nope", "there is no run nope"),
        ("train --seed -1", "nanogpt: seed is -1: it must be at least 0 and less than 2**63"),
        ("train --name a/b", "nanogpt: name is 'a/b': it must be a file name without slashes"),
        ("train --name=", "nanogpt: name is '': it must be a file name"),
        ("sample --samples 0", "samples is 0: it must be at least 1"),
        ("sample --seed 99999999999999999999", "must be at least 0 and less than 2**63"),
        ("eval --split test", "Expected one of ('auto', 'val', 'train', 'all')"),
        ("presets all", "presets takes no arguments"),
    ],
)
def test_a_mistake_is_one_line(nanogpt: Command, arguments: str, says: str) -> None:
    refused(nanogpt(*arguments.split()), says)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "own.txt is empty: name a file with text in it"),
        (b"fine so far \xe9 no more", "own.txt is not UTF-8: byte 12 is 0xe9; convert it"),
        (b"short", "the text is too short: its train split has 4 tokens, and block_size 64 needs"),
        (b"a" * 200, "the text is too short: its val split has 20 tokens, and block_size 64 needs"),
    ],
)
def test_a_text_that_cannot_be_learned(nanogpt: Command, raw: bytes, says: str) -> None:
    Path("own.txt").write_bytes(raw)
    refused(nanogpt("train", "tiny", "--data", "own.txt", "--device", "cpu"), says)
    assert not Path("runs").exists()


def test_a_directory_that_holds_a_run_is_left_alone(
    nanogpt: Command, run: Path, text_file: Path, small: list[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("[!.]*")}
    again = nanogpt("train", "--data", text_file, "--out", run, *small)
    refused(again, "mine already holds a run: name another directory, such as --out mine-2")
    assert {file: file.stat().st_mtime_ns for file in run.rglob("[!.]*")} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(
    nanogpt: Command, text_file: Path, small: list[str]
) -> None:
    Path("locked").mkdir(mode=0o500)
    answer = nanogpt("train", "--data", text_file, "--out", "locked/run", *small)
    refused(answer, "cannot write in locked/run: Permission denied; name another directory")


def test_a_directory_that_cannot_be(nanogpt: Command, text_file: Path, small: list[str]) -> None:
    answer = nanogpt("train", "--data", text_file, "--out", text_file / "run", *small)
    refused(answer, "Not a directory; name another directory with --out")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--prompt", "bad é"), "the tokenizer does not know the character 'é' (U+00E9); its 12 "),
        (("--temperature", "-1", "--prompt", "bad"), "temperature is -1.0: it must be 0 (always "),
        (("--top-k", "0"), "top-k is 0: it must be at least 1, or left out"),
        (("--top-p", "2"), "top-p is 2.0: it must be more than 0 and at most 1, or left out"),
        (("--prompt-file", "nope"), "cannot read nope: No such file or directory"),
    ],
)
def test_what_cannot_be_sampled(
    nanogpt: Command, run: Path, options: tuple[str, ...], says: str
) -> None:
    refused(nanogpt("sample", run, *options), says)


def test_a_damaged_run_is_named(nanogpt: Command, run: Path) -> None:
    weights = run / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for command in ("sample", "eval"):
        refused(nanogpt(command, run), "mine/best/model.safetensors is missing or damaged")
    (run / "best" / "config.json").write_text('{"model": ')
    refused(nanogpt("sample", run), "mine/best/config.json is missing or damaged")


def test_weights_that_are_not_finite_end_with_status_1(nanogpt: Command, run: Path) -> None:
    best = load_checkpoint(run / "best")
    with torch.no_grad():
        next(best.model.parameters()).fill_(float("nan"))
    save_checkpoint(run / "best", best)
    status, _, err = nanogpt("sample", run, "--prompt", "a")
    assert status == 1
    assert re.fullmatch(r"nanogpt: the model's logits are not finite, [^\n]+\n", err)


@pytest.mark.parametrize("how", [("--resume", "mine"), ("--resume=mine",), ("--resume",)])
def test_a_run_goes_on(nanogpt: Command, run: Path, how: tuple[str, ...]) -> None:
    if how == ("--resume",):  # the newest
        Path("runs").mkdir()
        run = run.rename("runs/mine")
    status, out, err = nanogpt("train", *how, "--train.steps", 30)
    assert (status, err) == (0, "")
    assert f"{run}: GPT, " in out
    assert "going on from step 20\n" in out
    assert "all 30 steps done" in out


def test_the_help_of_a_run_that_goes_on_has_its_own_settings(nanogpt: Command, run: Path) -> None:
    status, out, _ = nanogpt("train", "--resume", run, "--help")
    assert status == 0
    assert "Go on with mine, from its last checkpoint" in out
    assert "(default: 16)" in re.sub(r"[│\s]+", " ", out)  # its block size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("tiny --resume mine", "a run that goes on has its settings already: leave tiny out"),
        ("--resume nope", "there is no run nope"),
        ("--resume mine --train.steps 10", "--train.steps is 10, but mine is already at step 2"),
        (
            "--resume mine --seed 3",
            "--seed is 3, but this run was started with 1337: leave the option",
        ),
        ("--resume mine --out other", "--out is other, but this run was started with mine: leave"),
        ("--resume mine --precision float8", "Expected one of ('auto', 'float32'"),
    ],
)
def test_what_cannot_go_on(nanogpt: Command, run: Path, arguments: str, says: str) -> None:
    refused(nanogpt("train", *arguments.split()), says)


def test_a_run_of_nothing_but_a_last_checkpoint_goes_on(nanogpt: Command, run: Path) -> None:
    shutil.rmtree(run / "best")
    assert nanogpt("train", "--resume", run)[0] == 0
    assert load_checkpoint(run / "best").step == 20
    (run / "last" / "training.json").unlink()
    refused(nanogpt("train", "--resume", run), "mine/last/training.json is missing or damaged")


def test_a_bug_of_ours_keeps_its_traceback(
    nanogpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: list[str]) -> None:
        raise ValueError("not a mistake of the user's")

    monkeypatch.setattr("nanogpt.cli.presets.presets", broken)
    with pytest.raises(ValueError, match="not a mistake"):
        nanogpt("presets")


# As a process of its own.


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, nanogpt.cli; nanogpt.cli.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "nanogpt.cli" in loaded
    assert not {"torch", "numpy", "matplotlib", "pooch"} & loaded


def test_a_reader_that_has_seen_enough_is_no_error(process: Process, run: Path) -> None:
    with process("sample", run, "--prompt", "a", "--max-new-tokens", 100_000) as writing:
        assert writing.stdout is not None
        assert writing.stderr is not None
        assert len(writing.stdout.read(10)) == 10  # streamed: it is here long before the end
        writing.stdout.close()
        assert writing.wait(timeout=60) == 0
        assert writing.stderr.read() == ""
