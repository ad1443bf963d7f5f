"""Rewrites error messages for the command line.

The names of parameters become flags, and the box that tyro draws around an error is removed.
"""

import re
from collections.abc import Mapping


def name_flags(message: str, flags: Mapping[str, str]) -> str:
    """Replace the names of dataclass fields in a message with their flags.

    Only the first word of the message and words with an underscore can be names, as in `n_embd is
    128: it must be a multiple of n_head 3`.
    """
    return re.sub(
        r"^\w+|(?<![\w'\"./-])\w+_\w+",
        lambda match: flags.get(match[0], match[0]),
        message,
    )


def remove_drawing(text: str) -> str:
    """Return the words of a message on one line, without the box and colours that tyro adds."""
    text = re.sub(r"\x1b\[[\d;]*[A-Za-z]|[\u2500-\u259f]", " ", text)
    return " ".join(word for word in text.split() if not re.fullmatch(r"[|+=_*#~-]+", word))
