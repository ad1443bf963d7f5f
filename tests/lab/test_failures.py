"""In a real browser, the page of the lab reports failures or recovers from them.

The server runs in a separate process, as if a user had started it in a terminal.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanogpt.lab.library import read_metrics
from nanogpt.lab.training import is_locked
from nanogpt.models import GPTConfig
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.system.memory import format_quantity, get_memory
from nanogpt.train import train
from tests.cli.test_lab import read_address
from tests.lab.chromium import VIEWS, expect, needs_browser, open_page, open_view
from tests.ports import free_port

pytestmark = [pytest.mark.slow, needs_browser]
STREAM = "text/event-stream"
LOST = "Failed to load resource"
"""The browser's console message for a request that gets no answer or the status 403."""


@contextmanager
def start_lab(directory: Path, *options: object) -> Iterator[tuple[Any, str]]:
    """Start a server in a directory; yield the server's process and the address of the page."""
    command = [sys.executable, "-m", "nanogpt", "lab", "--no-browser", *map(str, options)]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, read_address(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Path]:
    """The directory of the lab, with the run `one`. At the end, stop all training processes."""
    directory = tmp_path_factory.mktemp("lab")
    shutil.copytree(template, directory / "runs/one")
    yield directory
    for file in directory.glob("runs/lab-*/.pid"):
        if is_locked(file.parent):
            os.kill(int(file.read_text("ascii")), signal.SIGTERM)


@pytest.fixture(scope="module")
def address(directory: Path) -> Iterator[str]:
    """The address of the page of a server that most tests share."""
    with start_lab(directory) as (_, address):
        yield address


def start_training(page: Any, text: str, steps: int = 1_000_000) -> str:
    """Start a small run in the page, and return the name of the run."""
    fill(page, Layers=1, Heads=1, Channels=16, Context=16, Steps=steps)
    page.get_by_role("combobox", name="Text").select_option("paste")
    page.locator("textarea").fill(text)
    with page.expect_response(re.compile("/train$")) as answer:
        page.get_by_role("button", name="Start").click()
    return str(answer.value.json()["run"])


def fill(page: Any, **sizes: object) -> None:
    """Type sizes into the form for a new run."""
    page.get_by_role("button", name="Start").wait_for()
    for label, size in sizes.items():
        page.get_by_label(label, exact=True).fill(str(size))


def find_state(page: Any, name: str, state: str) -> Any:
    """Find the line in the view Train with a run's name and `state` (for example, `is paused`)."""
    return page.locator("#view p", has_text=re.compile(f"^{name} {state}")).first


def count_steps(run: Path) -> int:
    records = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    return int(records[-1]["step"]) if records else 0


def wait_for_steps(run: Path, seconds: float = 60) -> int:
    """Wait until a run records a later step, and return this step."""
    before, end = count_steps(run), time.monotonic() + seconds
    while (step := count_steps(run)) <= before:
        assert time.monotonic() < end, f"the training has stopped at step {before}"
        time.sleep(0.05)
    return step


def pause(page: Any, name: str) -> None:
    page.get_by_role("button", name="Pause").click()
    find_state(page, name, "is paused").wait_for()


def test_a_training_continues_while_the_page_is_closed(
    browser: Any, address: str, directory: Path, text: str
) -> None:
    with open_page(browser, address + "#view=train") as page:
        name = start_training(page, text)
        find_state(page, name, "trains: step").wait_for()
    step = wait_for_steps(directory / "runs" / name)
    with open_page(browser, address) as page:  # shows the newest run
        expect(page.locator("#run")).to_have_value(name)
        open_view(page, "Train")
        find_state(page, name, "trains: step").wait_for()
        shown = page.locator("#view .muted").first
        expect(shown).to_contain_text(re.compile(r"step [\d,]+ · [\d,]+ tokens/s"))
        first = int(shown.inner_text().split()[1].replace(",", ""))
        assert first >= step
        expect(shown).not_to_contain_text(f"step {first:,} ")
        expect(page.locator(".chart path")).to_have_count(2)  # of the training, of the validation
        pause(page, name)


def test_a_killed_server_stops_no_training_and_the_page_says_what_to_do(
    browser: Any, directory: Path, text: str
) -> None:
    port = free_port()
    with (
        start_lab(directory, "--port", port) as (process, before),
        open_page(browser, before + "#view=train", LOST) as page,
    ):
        name = start_training(page, text)
        find_state(page, name, "trains: step").wait_for()
        process.kill()
        expect(page.locator("#problem")).to_have_text(
            "the lab does not answer: start nanogpt lab again, and open the address that the "
            "terminal prints"
        )
        wait_for_steps(directory / "runs" / name)
        with start_lab(directory, "--port", port) as (_, after):
            assert after != before
            expect(page.locator("#problem")).to_have_text(
                "the lab was started again: open the address that the terminal prints"
            )
            with open_page(browser, after) as other:
                open_view(other, "Train")
                find_state(other, name, "trains: step").wait_for()
                pause(other, name)
                other.get_by_role("button", name="Resume").click()
                find_state(other, name, "trains: step").wait_for()
                wait_for_steps(directory / "runs" / name)
                pause(other, name)


def test_a_page_recovers_when_the_server_answers_again(browser: Any, address: str) -> None:
    with open_page(browser, address + "#view=look&run=one&prompt=abc", LOST) as page:
        page.context.set_offline(True)
        page.get_by_label("Prompt").fill("ab")
        expect(page.locator("#problem")).to_contain_text("the lab does not answer")
        page.context.set_offline(False)
        expect(page.locator("#problem")).to_be_hidden()
        page.get_by_label("Prompt").fill("abcd")
        expect(page.locator(".tokens span")).to_have_count(4)


def test_a_curve_is_not_drawn_twice_after_a_lost_connection(
    browser: Any, address: str, directory: Path
) -> None:
    records = {"run": "one", "start": 0, "records": read_metrics(directory / "runs/one")}
    body = f"retry: 100\nevent: records\ndata: {json.dumps(records)}\n\n"  # then the stream ends
    with open_page(browser, address + "#view=train&run=one") as page:
        # This line comes last, and changes the scale.
        page.locator(".chart text", has_text="-grams").wait_for()
        curve = page.locator(".chart path").first
        before = curve.get_attribute("d")
        page.route("**/events?*", lambda route: route.fulfill(content_type=STREAM, body=body))
        open_view(page, "Look inside")
        open_view(page, "Train")
        for _ in range(3):
            with page.expect_response(re.compile("/events")):
                pass
        page.wait_for_timeout(100)
        expect(curve).to_have_attribute("d", before)


def test_a_deleted_run_is_reported_and_others_still_work(
    browser: Any, address: str, directory: Path
) -> None:
    run = shutil.copytree(directory / "runs/one", directory / "runs/gone")
    with open_page(browser, address + "#view=train&run=gone&prompt=abc") as page:
        tokens, problem = page.locator(".tokens span"), page.locator("#problem")
        expect(page.locator("#run")).to_have_value("gone")
        moved = run.rename(directory / "moved")
        expect(problem).to_have_text("there is no run 'gone' any more: choose another run")
        moved.rename(run)
        expect(problem).to_be_hidden()
        open_view(page, "Look inside")
        expect(tokens).to_have_count(3)
        shutil.rmtree(run)
        page.get_by_label("Prompt").fill("ab")
        expect(problem).to_have_text(re.compile("^there is no run .?gone.? any more"))
        for title in VIEWS:
            open_view(page, title)
            expect(problem).to_have_text(re.compile("^there is no run .?gone.? any more"))
        open_view(page, "Look inside")
        page.locator("#run").select_option("one")
        expect(tokens).to_have_count(2)
        expect(problem).to_be_hidden()


def test_a_deleted_run_of_the_lab_is_not_listed(
    browser: Any, address: str, directory: Path, text: str
) -> None:
    with open_page(browser, address + "#view=train&run=one") as page:
        name = start_training(page, text, steps=2)
        find_state(page, name, "is done").wait_for()
        shutil.rmtree(directory / "runs" / name)
        expect(page.locator("#view p", has_text=name)).to_have_count(0)


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def change(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, change])
def test_a_damaged_snapshot_is_named_and_others_still_work(
    browser: Any, address: str, directory: Path, damage: Callable[[bytes], bytes]
) -> None:
    name = f"damaged-{damage.__name__}"
    run = shutil.copytree(directory / "runs/one", directory / "runs" / name)
    steps = sorted(int(file.name) for file in (run / "history").iterdir())
    weights = run / f"history/{steps[1]}/model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with open_page(browser, f"{address}#view=time&run={name}&prompt=abc") as page:
        slider, problem = page.get_by_label("Snapshot"), page.locator("#problem")
        for index in (1, 0, 1, 2):
            slider.fill(str(index))
            page.get_by_text(f"step {steps[index]}", exact=True).wait_for()
            sample = page.locator(".generated")
            if index == 1:
                expect(problem).to_contain_text(f"runs/{name}/history/1/model.safetensors")
                expect(page.locator(".film")).to_be_hidden()
                expect(sample).to_have_text("")
            else:
                expect(problem).to_be_hidden()
                expect(page.locator(".tokens span")).to_have_count(3)
                expect(sample).to_have_text(re.compile(r"\S{3}"))
        page.reload()
        page.locator("#step").select_option(str(steps[2]))
        expect(problem).to_be_hidden()


def make_tokenizer(*tokens: str) -> str:
    """Return the JSON of a tokenizer that splits a text at | and knows only these tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(("|", *tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="|"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("|", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return str(tokenizer.to_str())


def test_hostile_runs_tokens_and_prompts_are_only_text(
    browser: Any, config: RunConfig, tmp_path: Path
) -> None:
    image, end = "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>"
    text, tokenizer = tmp_path / "hostile.txt", tmp_path / "tokenizer.json"
    text.write_text(f"{image}|{end}|" * 300, "utf-8", newline="\n")
    tokenizer.write_text(make_tokenizer(image, end), "utf-8")
    run = tmp_path / f"{end}&run=x%20#{image}"
    model = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    settings = TrainConfig(steps=2, batch_size=2, eval_every=2, history=2)
    train(
        replace(
            config, out=run, data=str(text), tokenizer=str(tokenizer), model=model, train=settings
        )
    )
    with (
        start_lab(tmp_path, run) as (_, address),
        open_page(browser, address) as page,
    ):
        expect(page.locator("#run")).to_have_value(str(run))
        for title in VIEWS:
            open_view(page, title)
            page.wait_for_timeout(300)
            assert page.locator("#problem").is_hidden(), title
        open_view(page, "Look inside")
        page.get_by_label("Prompt").fill(f"{image}|{end}")
        expect(page.locator(".tokens span")).to_have_text([image.replace(" ", "·"), "|", end])
        page.reload()  # the address contains the prompt
        expect(page.locator(".tokens span")).to_have_text([image.replace(" ", "·"), "|", end])
        open_view(page, "Generate")
        page.get_by_role("button", name="Generate").last.click()
        expect(page.locator(".generated")).to_contain_text(end)
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1


def test_a_run_without_snapshots_shows_its_best_weights(
    browser: Any, address: str, directory: Path
) -> None:
    run = shutil.copytree(directory / "runs/one", directory / "runs/no-history")
    shutil.rmtree(run / "history")
    with open_page(browser, f"{address}#view=time&run=no-history&prompt=abc") as page:
        page.get_by_text("This run has no snapshots").wait_for()
        expect(page.locator(".tokens span")).to_have_count(3)
        expect(page.locator(".generated")).to_have_text(re.compile(r"\S{3}"))
        expect(page.get_by_role("button", name="Play")).to_be_disabled()
        assert page.locator("#step").locator("option").all_inner_texts() == ["best"]
        for title in VIEWS:
            open_view(page, title)
            page.wait_for_timeout(300)
            assert page.locator("#problem").is_hidden(), title


def test_a_text_that_is_too_short_is_reported(browser: Any, address: str, text: str) -> None:
    with open_page(browser, address + "#view=train&run=one") as page:
        name = start_training(page, text[:20])
        expect(page.locator("#problem")).to_have_text(re.compile(f"^{name}: the text is too short"))
        find_state(page, name, "the text is too short").wait_for()


def test_a_run_that_does_not_fit_into_memory_is_refused_before_it_starts(
    browser: Any, address: str, directory: Path
) -> None:
    runs = {*(directory / "runs").iterdir()}
    memory = format_quantity(get_memory(), "B")
    with open_page(browser, address + "#view=train&run=one") as page:
        problem, expected = page.locator("#problem"), page.get_by_text("for all steps")
        expected.wait_for()
        page.get_by_label("Channels").fill("")
        with page.expect_response(re.compile("n_embd=1000&")) as late:  # measures the processor
            page.get_by_label("Channels").press_sequentially("100000")
        late.value.finished()
        message = (
            r"^training a model with 480,\d{3},\d{3},\d{3} parameters needs at least [\d.]+ TB of "
            rf"memory, but only {memory} are available: choose smaller sizes$"
        )
        expect(problem).to_have_text(re.compile(message))
        expect(expected).to_be_hidden()
        page.get_by_role("button", name="Start").click()
        page.wait_for_timeout(300)
        expect(problem).to_have_text(re.compile(message))
        for size, text in (
            ("9" * 200, "^n_embd is 9{200}: it must be at least 1 and less than"),
            ("1e3", "^n_embd is '1e3': it must be a whole number$"),
            ("1028", "^n_embd is 1028: it must be between 1 and 1024$"),
        ):
            page.get_by_label("Channels").fill(size)
            expect(problem).to_have_text(re.compile(text))
        page.get_by_label("Channels").fill("16")
        expect(expected).to_be_visible()
        expect(problem).to_be_hidden()
    assert {*(directory / "runs").iterdir()} - runs <= {directory / "runs/.lab"}
