"""Shows the lessons as web pages, so that links from the views to lessons need no network.

The lessons are only in a checkout of the repository; an installed wheel has none.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

FOLDER = Path(__file__).parents[2] / "lessons"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="../page/page.css">
<link rel="stylesheet" href="../page/lesson.css">
</head>
<body>
{body}
</body>
</html>
"""


def list_lessons() -> list[dict[str, Any]]:
    """Return the number, the title and the file of each lesson."""
    lessons = []
    for file in sorted(FOLDER.glob("[0-9][0-9]_*.md")):
        title = file.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lessons.append({"number": int(file.name[:2]), "title": title, "file": file.name})
    return lessons


def find_file(name: str) -> Path | None:
    """Return the file of a lesson or picture, given its path below FOLDER; None for other paths."""
    return {
        file.relative_to(FOLDER).as_posix(): file
        for pattern in ("*.md", "*/*.svg")
        for file in FOLDER.glob(pattern)
    }.get(name)


def render_lesson(markdown: str) -> str:
    """Convert a lesson from Markdown to HTML, and its formulas to MathML."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.use(dollarmath_plugin, renderer=_render_formula, allow_space=False)
    parser.add_render_rule("link_open", _open_link)
    title = re.search(r"^# (.+)", markdown)
    return PAGE.format(title=escape(title[1] if title else ""), body=parser.render(markdown))


def _render_formula(formula: str, options: dict[str, Any]) -> str:
    return convert(formula, display="block" if options["display_mode"] else "inline")


def _open_link(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
) -> str:
    """Make links to other sites open in a new tab; remove links to files the lab does not show."""
    token = tokens[index]
    target = str(token.attrs["href"])
    if target.startswith("https:"):
        token.attrs |= {"target": "_blank", "rel": "noopener"}
    elif find_file(target.partition("#")[0]) is None:
        del token.attrs["href"]
    return renderer.renderToken(tokens, index, options, env)
