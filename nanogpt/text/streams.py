"""What tokenizers share: ids to text as they come, and UTF-8."""

import codecs
from collections.abc import Callable
from typing import Protocol

from ..errors import UserError


class Stream(Protocol):
    """Ids to text as they come: whole characters only, however their bytes are spread over ids."""

    def push(self, token: int) -> str:
        """What is whole with this id."""

    def end(self) -> str:
        """What is left of a text that ends here."""


class PieceStream:
    """The stream of a tokenizer whose every id stands for some bytes."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What is whole with this id."""
        return self._decoder.decode(self._piece(token))

    def end(self) -> str:
        """What is left: half a character as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        stranger = ord(text[error.start])
        raise UserError(
            f"the text has half a surrogate pair (U+{stranger:04X}), which is no character: "
            f"leave it out"
        ) from None
