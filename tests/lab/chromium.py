"""Opens the page of the lab in a real browser, for the tests."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
needs_browser = pytest.mark.skipif(
    not (PROGRAM and importlib.util.find_spec("playwright")),
    reason="these tests need the browser Chromium and the library playwright",
)
VIEWS = ["Train", "Time machine", "Look inside", "Take it apart", "Against counting"]
VIEWS += ["Copied or invented?", "Compare", "Generate"]


@contextmanager
def open_page(browser: Any, address: str, ignored: str = "nothing") -> Iterator[Any]:
    """Open the page; at the end, fail if it had errors or sent requests to other addresses.

    An error is allowed if its text contains the value of `ignored`.
    """
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(90_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    allowed = address.partition("#")[0], "data:", "blob:"

    def check(request: Any) -> None:
        if not request.url.startswith(allowed):
            faults.append(request.url)

    page.on("request", check)
    page.goto(address)
    page.get_by_role("tab").first.wait_for()
    yield page
    context.close()
    faults = [fault for fault in faults if ignored not in fault]
    assert not faults, faults


def expect(locator: Any) -> Any:
    """Return assertions about an element of the page. They wait up to 90 seconds to become true."""
    from playwright.sync_api import expect

    expect.set_options(timeout=90_000)
    return expect(locator)


def open_view(page: Any, title: str) -> None:
    page.get_by_role("tab", name=title).click()
