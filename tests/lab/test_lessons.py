"""The lab shows the lessons of the checkout, with their pictures and formulas."""

import re
from pathlib import Path

import pytest

from nanogpt.lab import lessons
from nanogpt.lab.lessons import find_file, list_lessons, render_lesson
from tests.lab.conftest import Client


def test_every_lesson_is_listed_and_rendered(client: Client) -> None:
    listed = client.get("lessons")
    assert [lesson["number"] for lesson in listed] == [*range(1, 17)]
    for lesson in listed:
        status, raw, headers = client.request(f"lessons/{lesson['file']}")
        page = raw.decode()
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/html")
        assert f"<h1>{lesson['title']}" in page
        prose = re.sub(r"<(pre|code)>.*?</\1>|<img [^>]*>", "", page, flags=re.DOTALL)
        assert "$" not in prose, re.findall(r".{40}\$.{40}", prose)  # no TeX formula is left
        for picture in re.findall(r'<img src="([^"]+)"', page):
            assert client.request(f"lessons/{picture}")[0] == 200
        for target in re.findall(r'<a href="([^"#]+)', page):
            assert target.startswith("https://") or find_file(target), target


def test_only_pages_and_pictures_are_sent(client: Client) -> None:
    for name in ("lesson.py", "../README.md", "%2e%2e/README.md", "..%2fREADME.md", "x.md", ""):
        assert client.request(f"lessons/{name}")[0] in (307, 404), name


def test_formulas_become_mathml() -> None:
    page = render_lesson("# T <b>\n\nthe loss $-\\ln p_i$, `$x$`, and\n\n$$a = b$$\n")
    assert "<title>T &lt;b&gt;</title>" in page
    assert "<msub><mi>p</mi><mi>i</mi></msub>" in page
    assert "<code>$x$</code>" in page
    assert 'display="block"' in page


def test_links_to_other_files_are_dropped() -> None:
    page = render_lesson("[a](../gpt.py) [b](02_bigram.md#x) [c](https://arxiv.org)")
    assert "<a>a</a>" in page
    assert '<a href="02_bigram.md#x">b</a>' in page
    assert '<a href="https://arxiv.org" target="_blank" rel="noopener">c</a>' in page


def test_a_wheel_has_no_lessons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lessons, "FOLDER", tmp_path / "missing")
    assert list_lessons() == []
    assert find_file("01_tensors.md") is None
