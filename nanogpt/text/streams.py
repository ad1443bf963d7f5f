"""Decode tokens one at a time, and encode text as UTF-8. Every tokenizer uses this module."""

import codecs
from collections.abc import Callable
from typing import Protocol

from ..errors import UserError


class DecodeStream(Protocol):
    """Decodes tokens one at a time. Returns complete characters only."""

    def push(self, token: int) -> str:
        """Add a token and return the characters that it completes."""

    def end(self) -> str:
        """End the stream and return the remaining text."""


class ByteDecodeStream:
    """The decode stream of a tokenizer in which every token is a sequence of bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Add a token and return the characters that it completes."""
        return self._decoder.decode(self._token_bytes(token))

    def end(self) -> str:
        """End the stream; an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


def encode_utf8(text: str) -> bytes:
    """Encode text as UTF-8. Raises UserError for an unpaired surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code_point = ord(text[error.start])
        raise UserError(
            f"the text has an unpaired surrogate (U+{code_point:04X}), which UTF-8 cannot encode: "
            f"remove it"
        ) from None
