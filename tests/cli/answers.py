"""Helpers for the tests of the command line."""

import re
from collections.abc import Callable

Answer = tuple[int, str, str]
"""Exit status, standard output, standard error."""
Command = Callable[..., Answer]


def assert_refused(answer: Answer, message: str) -> None:
    """Assert that the status is 2, and that one error line with the message is the only output."""
    status, out, err = answer
    assert (status, out) == (2, "")
    assert re.fullmatch(r"nanogpt: [^\n]+\n", err), err
    assert message in err
