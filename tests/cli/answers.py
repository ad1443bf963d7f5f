"""What tests of the commands share."""

import re
from collections.abc import Callable

Answer = tuple[int, str, str]
"""Exit status, standard output, standard error."""
Command = Callable[..., Answer]


def assert_refused(answer: Answer, message: str) -> None:
    """The command ended with status 2 and one line on standard error that has the message."""
    status, out, err = answer
    assert (status, out) == (2, "")
    assert re.fullmatch(r"nanogpt: [^\n]+\n", err), err
    assert message in err
