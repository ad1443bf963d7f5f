"""Decode tokens in several calls, and encode text as UTF-8. Every tokenizer uses this module."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import UserError

MAX_CONTEXT = 256
"""Maximum number of earlier tokens that are decoded again, together with new tokens."""


class DecodeStream(Protocol):
    """Decodes tokens in several calls. The returned strings, joined, are the text of all tokens."""

    def push(self, *tokens: int) -> str:
        """Add tokens, and return the new text that no later token can change."""

    def end(self) -> str:
        """End the stream and return the remaining text."""


class ByteDecodeStream:
    """The decode stream of a tokenizer in which every token is a sequence of bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *tokens: int) -> str:
        """Add tokens, and return the characters that they complete."""
        return self._decoder.decode(b"".join(map(self._token_bytes, tokens)))

    def end(self) -> str:
        """End the stream; an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class TextDecodeStream:
    """The decode stream of a tokenizer in which the text of a token depends on its neighbours.

    Some of these tokenizers drop the space before the first token; others insert spaces between
    tokens. So new tokens are decoded together with earlier tokens, and the text of the earlier
    tokens is removed from the result.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        is_open: Callable[[int], bool],
        context: Sequence[int],
    ) -> None:
        """`is_open(token)` tells whether the token after `token` can change the text of `token`."""
        self._decode, self._is_open = decode, is_open
        self._before = [*context[-MAX_CONTEXT:]]
        self._new: list[int] = []
        """The tokens whose text has not been returned."""

    def push(self, *tokens: int) -> str:
        """Add tokens, and return the new text that no later token can change."""
        self._new += tokens
        if not self._new or self._is_open(self._new[-1]):
            return ""
        piece = self._decode_new()
        # A U+FFFD at the end may stand for the first bytes of an incomplete character.
        return "" if piece.endswith("\ufffd") else self._return(piece)

    def end(self) -> str:
        """End the stream and return the remaining text."""
        return self._return(self._decode_new())

    def _decode_new(self) -> str:
        before, whole = self._decode(self._before), self._decode(self._before + self._new)
        # A new invalid byte changes the text of the byte tokens directly before the new byte (see
        # BYTE_TOKEN in bpe.py). That text was already returned, so decode only the new tokens.
        return whole[len(before) :] if whole.startswith(before) else self._decode(self._new)

    def _return(self, piece: str) -> str:
        # The tokenizer drops spaces only at the beginning of a text. So, if the text of the new
        # tokens is not only spaces, these tokens are enough context for the tokens after them.
        has_text = bool(piece.strip())
        self._before = self._new if has_text else (self._before + self._new)[-MAX_CONTEXT:]
        self._new = []
        return piece


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
