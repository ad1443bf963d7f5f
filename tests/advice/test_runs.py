"""If a user follows the advice in an error about a run, the command succeeds."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nanogpt.runs.directory import lock_run
from nanogpt.text.corpora import CORPORA
from tests.platforms import needs_links

from .cases import RESUME, SMALL, TRAIN, Command, follows, get_message, is_row, refuse


@follows("there is no run in runs/ yet")
def test_the_first_run(nanogpt: Command, world: Path) -> None:
    Path("runs").rename("old")
    for command in ("sample", "eval", "inspect", "train --resume"):
        message = refuse(nanogpt, command, "there is no run in runs/ yet")
    advised = re.search("`nanogpt (.+)`", message)
    assert advised
    assert not get_message(nanogpt, f"{advised[1]} --data words.txt {SMALL}")
    assert not get_message(nanogpt, "sample")


@follows("runs/tiny was stopped before")
def test_a_run_without_an_evaluation(nanogpt: Command, world: Path) -> None:
    shutil.rmtree("runs/tiny/best")
    message = refuse(nanogpt, "sample tiny", "runs/tiny was stopped before")
    assert not get_message(nanogpt, message.partition("nanogpt ")[2])
    assert not get_message(nanogpt, "sample tiny")


@follows(
    "my.txt is not the text that",
    f"there is no file or corpus my.txt: the corpora are {', '.join(CORPORA)}; if",
)
def test_a_text_that_is_gone(nanogpt: Command, trained: Path) -> None:
    """Every error about a changed or missing text advises --data, which accepts a new path."""
    text = (trained / "words.txt").read_text()
    Path("place").mkdir()
    place = Path("place/words.txt")
    place.write_text(text)
    assert not get_message(nanogpt, f"train --data place --out mine {SMALL}")
    before = nanogpt("eval", "mine", "--json")[1]
    Path("moved.txt").write_text(text)

    def change(raw: bytes) -> Callable[[], object]:
        return lambda: place.write_bytes(raw)

    for act in (
        change(b"another text"),
        change(b""),
        change(b"\xff"),
        change(b"\x1f\x8b"),
        lambda: place.rename("place/words.py"),
        lambda: shutil.rmtree("place"),
    ):
        act()
        for command in (
            "train --resume mine --train.steps 21 --sample-tokens 0",
            "eval mine --json",
        ):
            message = get_message(nanogpt, command)
            option = re.search(r"give its new path with (--data)$", message)
            assert option, message
            shutil.copytree("mine", "copy")
            assert not get_message(nanogpt, f"{command} {option[1]} moved.txt")
            shutil.rmtree("mine")
            Path("copy").rename("mine")  # run.json still contains the old path of the text
    out = nanogpt("eval", "mine", "--json", "--data", "moved.txt")[1]
    assert json.loads(out)["split"] == json.loads(before)["split"] == "val"
    Path("place").mkdir()
    place.write_text("another text")
    message = get_message(nanogpt, "eval mine")
    assert is_row(message.partition("; if")[0], "my.txt is not the text that")
    place.write_text(text)
    assert not get_message(nanogpt, "eval mine")


@follows()
def test_the_text_of_a_resumed_run_may_come_from_a_pipe(
    nanogpt: Command, world: Path, trained: Path
) -> None:
    """After resuming, training.json contains the path of the copy in the cache, not of the pipe."""
    raw = (trained / "words.txt").read_bytes()
    command = [sys.executable, "-m", "nanogpt", *shlex.split(RESUME), "--data", "-"]
    answer = subprocess.run(command, input=raw, capture_output=True)
    assert answer.returncode == 0, answer.stderr
    assert (
        "input-" in json.loads(Path("runs/tiny/last/training.json").read_text())["config"]["data"]
    )


@follows(
    "process 4711 is training in runs/tiny: wait for it, stop",
    "process 4711 is training in runs/tiny: wait for it or",
)
def test_a_run_that_another_process_trains(nanogpt: Command, world: Path) -> None:
    lock = lock_run(Path("runs/tiny"))
    refuse(nanogpt, RESUME, "process 4711 is training in runs/tiny: wait for it or")
    message = refuse(
        nanogpt,
        f"{TRAIN} --out runs/tiny",
        "process 4711 is training in runs/tiny: wait for it, stop",
    )
    assert not get_message(nanogpt, f"{TRAIN} {message.rpartition(' ')[2]} new")
    lock.release()
    assert not get_message(nanogpt, RESUME)


@needs_links
@follows("runs/tiny/run.json is a link", "runs/tiny/last is a link:")
def test_links_in_a_run(nanogpt: Command, world: Path) -> None:
    for name, place, command, row in (
        ("run.json", "elsewhere", "eval tiny", "runs/tiny/run.json is a link"),
        ("last", "runs/tiny/elsewhere", RESUME, "runs/tiny/last is a link:"),
    ):
        file = Path("runs/tiny", name)
        shutil.move(file, place)
        file.symlink_to(Path(place).resolve(), target_is_directory=name == "last")
        refuse(nanogpt, command, row)
        file.unlink()
        shutil.move(place, file)
        assert not get_message(nanogpt, command)


@follows("runs/tiny/last/config.json is missing")
def test_a_damaged_file(nanogpt: Command, world: Path) -> None:
    for name in ("run.json", "best/config.json", "best/model.safetensors", "last/training.json"):
        file = Path("runs/tiny", name)
        raw = file.read_bytes()
        command = RESUME if "last" in name else "eval tiny"
        for damaged in (raw[:-9], None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            refuse(nanogpt, command, "runs/tiny/last/config.json is missing")
            file.write_bytes(raw)
            assert not get_message(nanogpt, "eval tiny")
    Path("runs/tiny/best/config.json").unlink()
    message = refuse(nanogpt, "eval tiny", "runs/tiny/last/config.json is missing")
    assert message.endswith("or train again")
    assert not get_message(nanogpt, TRAIN)


@follows("the loss became nan")
def test_a_learning_rate_that_is_too_high(nanogpt: Command, world: Path) -> None:
    """Run the command that each error shows, until the learning rate is low enough."""
    command = f"{TRAIN} --optim.lr 1e18 --optim.warmup 0 --optim.grad-clip 0 --name nan"
    for _ in range(100):
        status, _, err = nanogpt(*shlex.split(command))
        if status == 0:
            break
        message = err.strip().rpartition("\n")[2].removeprefix("nanogpt: ")
        assert is_row(message, "the loss became nan"), err
        command = message.partition("for example: nanogpt ")[2] + " --sample-tokens 0"
    assert status == 0
    assert command.startswith("train --resume runs/nan --optim.lr")
