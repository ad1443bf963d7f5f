"""Adapts the library tyro through two private modules; other versions of tyro may lack them."""

import contextlib
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast


def listen(reject: Callable[[Any], None]) -> contextlib.AbstractContextManager[None]:
    """Return a context in which tyro passes its errors to `reject`.

    If tyro has no hook for this, the context has no effect, and tyro prints its errors itself.
    """
    try:
        listening = import_module("tyro._errors").on_parse_error(reject)
    except (ImportError, AttributeError, TypeError):
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[None]", listening)


def join_help_lines() -> None:
    """Make tyro join the lines of each paragraph in the help.

    Without this change, tyro keeps many line breaks of the docstrings.
    """
    with contextlib.suppress(ImportError, AttributeError):
        strings: Any = import_module("tyro._strings")
        assert callable(strings.remove_single_line_breaks)
        strings.remove_single_line_breaks = lambda text: "\n\n".join(
            " ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)
        )
