"""Every view works in a real browser, even with names that contain HTML.

The page sends requests only to the lab, and a saved view sends no requests.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.models import GPTConfig
from nanogpt.runs.checkpoint import load_checkpoint
from nanogpt.runs.config import RunConfig, TrainConfig
from nanogpt.train import train
from tests.lab.chromium import VIEWS, expect, needs_browser, open_page, open_view
from tests.lab.conftest import Client

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture
def page(browser: Any, client: Client) -> Iterator[Any]:
    """A browser page that shows the lab of the fixture `client`."""
    with open_page(browser, client.address) as page:
        yield page


def test_every_view_shows_the_model(page: Any, client: Client, lab_run: Path) -> None:
    for title in VIEWS:
        open_view(page, title)
        assert page.locator("#problem").is_hidden()
    open_view(page, "Look inside")
    page.get_by_label("Prompt").fill("abc de")
    expect(page.locator(".tokens span")).to_have_text(["a", "b", "c", "·", "d", "e"])
    checkpoint = load_checkpoint(lab_run / "best")
    ids = torch.tensor([checkpoint.tokenizer.encode("abc de")])
    p = checkpoint.model(ids)[0, -1].softmax(-1).max().item()
    first = page.locator(".bar span").first.inner_text()
    assert first.startswith(f"{100 * p:.{2 if p < 0.1 else 1}f}"), (first, p)


def test_the_slider_moves_through_the_snapshots(page: Any) -> None:
    open_view(page, "Time machine")
    page.get_by_label("Prompt").fill("abc de")
    slider = page.get_by_label("Snapshot")
    expect(page.locator(".tokens span")).to_have_count(6)
    last = page.locator(".generated").first.inner_text()
    slider.fill("0")
    page.get_by_text("step 0", exact=True).wait_for()
    expect(page.locator(".generated").first).not_to_have_text(last)
    assert page.locator("#step").input_value() == "0"  # the other views also show this step
    page.get_by_role("button", name="Play").click()
    page.get_by_text("step 60", exact=True).wait_for()


def test_parts_are_switched_off(page: Any, client: Client) -> None:
    open_view(page, "Take it apart")
    page.get_by_label("Prompt").fill("abc")
    page.get_by_text("with all parts").wait_for()
    page.get_by_role("button", name="head 1.2").click()
    result = page.locator(".big", has_text="(")
    result.wait_for()
    loss = client.get("ablate", run="one", off="head 1.2", only_loss=1)["loss"]
    assert f"loss {loss:.3f} nats" in result.inner_text()
    page.get_by_role("button", name="Rank all parts").click()
    expect(page.locator("table tr")).to_have_count(9)


def test_text_is_generated(page: Any) -> None:
    open_view(page, "Generate")
    page.get_by_label("Prompt").fill("abc")
    page.get_by_label("Tokens").fill("20")
    page.get_by_role("button", name="Generate").last.click()
    expect(page.locator(".generated")).to_have_text(re.compile(r"abc[\s\S]{20}"))


def test_two_tabs_do_not_disturb_each_other(page: Any) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    for each, prompt in ((page, "abc"), (other, "de")):
        open_view(each, "Look inside")
        each.get_by_label("Prompt").fill(prompt)
    for each, count in ((page, 3), (other, 2)):
        expect(each.locator(".tokens span")).to_have_count(count)


def test_a_mistake_is_explained_in_the_page(page: Any) -> None:
    open_view(page, "Look inside")
    page.get_by_label("Prompt").fill("XYZ")
    problem = page.locator("#problem")
    problem.wait_for()
    assert problem.inner_text().startswith("the tokenizer does not know the characters")
    page.get_by_label("Prompt").fill("abc")
    expect(problem).to_be_hidden()


def test_hostile_names_and_tokens_are_only_text(
    page: Any, config: RunConfig, tmp_path: Path
) -> None:
    text = tmp_path / "hostile.txt"
    text.write_text("<img src=x onerror=alert(1)></script>\n" * 100, "utf-8", newline="\n")
    name = "<img src=x onerror=alert(2)>"
    model = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    settings = TrainConfig(steps=2, batch_size=2, eval_every=2, history=2)
    train(replace(config, name=name, data=str(text), model=model, train=settings))
    page.reload()
    page.get_by_label("Run").select_option(name)
    for title in VIEWS:
        open_view(page, title)
        page.wait_for_timeout(300)
    open_view(page, "Look inside")
    page.get_by_label("Prompt").fill("<img src=x onerror=alert(1)>")
    expect(page.locator(".tokens span")).to_have_count(8)
    assert page.locator("#view img").count() == 0


def test_a_saved_view_needs_no_lab(page: Any, tmp_path: Path) -> None:
    prompt = "abc de"
    open_view(page, "Time machine")
    page.get_by_label("Prompt").fill(prompt)
    expect(page.locator(".tokens span")).to_have_count(6)
    page.get_by_label("Snapshot").fill("1")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save view").click()
    assert download.value.suggested_filename == "nanogpt-time-one.html"
    file = tmp_path / "saved.html"
    download.value.save_as(file)
    texts = [page.locator(".generated").inner_text(), page.locator(".bar span").all_inner_texts()]
    saved = page.context.new_page()
    requests: list[str] = []
    saved.on("request", lambda request: requests.append(request.url))
    saved.on("pageerror", lambda error: requests.append(str(error)))
    saved.goto(file.as_uri())
    expect(saved.locator(".tokens span")).to_have_count(6)
    assert saved.get_by_label("Snapshot").input_value() == "1"
    expect(saved.locator(".generated")).to_have_text(texts[0])
    assert saved.locator(".bar span").all_inner_texts() == texts[1]
    saved.get_by_label("Snapshot").fill("0")
    saved.get_by_text("step 0", exact=True).wait_for()
    expect(saved.locator(".generated")).not_to_have_text(texts[0])
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]


def test_a_saved_view_says_what_it_does_not_have(page: Any, tmp_path: Path) -> None:
    open_view(page, "Take it apart")
    page.get_by_text("with all parts").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save view").click()
    download.value.save_as(tmp_path / "saved.html")
    saved = page.context.new_page()
    saved.goto((tmp_path / "saved.html").as_uri())
    saved.get_by_role("button", name="head 1.2").click()
    problem = "this saved page does not have the answer: ask the lab that has the run"
    expect(saved.locator("#problem")).to_have_text(problem)
    page.get_by_role("button", name="head 1.2").click()  # the lab can compute this answer
    page.get_by_text("(+").or_(page.get_by_text("(-")).first.wait_for()


@pytest.mark.parametrize("title", VIEWS)
def test_every_view_can_be_saved(page: Any, tmp_path: Path, title: str) -> None:
    open_view(page, title)
    page.wait_for_timeout(1500)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save view").click()
    download.value.save_as(tmp_path / "saved.html")
    text = page.locator("#view").inner_text()
    saved = page.context.new_page()
    faults: list[str] = []
    saved.on("pageerror", lambda error: faults.append(str(error)))
    saved.goto((tmp_path / "saved.html").as_uri())
    expect(saved.locator("#view")).to_contain_text(text.splitlines()[0])
    assert saved.locator("#problem").is_hidden()
    assert not faults


def test_a_saved_view_has_the_answers_that_are_late(browser: Any, client: Client) -> None:
    """The button "Save view" waits for them."""
    context = browser.new_context()
    page = context.new_page()

    def answer_late(route: Any) -> None:
        time.sleep(1)
        route.continue_()

    page.route(re.compile("setup|explain"), answer_late)
    page.goto(client.address)
    page.get_by_role("tab", name="Train").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save view").click()
    download.value.save_as("saved.html")
    saved = context.new_page()
    saved.goto(Path("saved.html").absolute().as_uri())
    expect(saved.locator("#view")).to_contain_text("for all steps")
    assert saved.locator("#problem").is_hidden()
    context.close()


def test_a_bug_of_the_lab_is_reported(browser: Any, client: Client) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route(
        "**/inspect?*", lambda route: route.fulfill(status=500, body="Internal Server Error")
    )
    page.goto(client.address)
    open_view(page, "Look inside")
    expect(page.locator("#problem")).to_have_text("the lab failed: its terminal says why")
    context.close()


def test_a_view_links_to_its_lesson(page: Any) -> None:
    open_view(page, "Copied or invented?")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="11").click()
    expect(opened.value.locator("h1")).to_have_text(re.compile("^11. "))
    assert opened.value.locator("math").count() > 3
    for picture in opened.value.locator("img").all():
        assert picture.evaluate("image => image.naturalWidth") > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_is_wider_than_a_phone(browser: Any, client: Client, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(client.address)
    page.get_by_role("tab").first.wait_for()
    for title in VIEWS:
        open_view(page, title)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, title
    context.close()


def test_views_are_reached_by_the_keyboard(page: Any) -> None:
    open_view(page, "Train")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Time machine").get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="Generate").get_attribute("aria-selected") == "true"
