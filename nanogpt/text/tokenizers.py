"""Tokenizers convert text to ids and back, by characters, bytes or byte-pair encoding."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..system.files import path_exists, read_json
from ..system.schema import parse_dataclass
from .bpe import HubTokenizer, train_bpe
from .gpt2 import load_gpt2_tokenizer
from .streams import ByteDecodeStream, DecodeStream, encode_utf8

MAX_TOKENIZER_BYTES = 64 << 20
"""Maximum size of a tokenizer.json; the largest vocabularies in use need about 30 MB."""


class Tokenizer(Protocol):
    """The interface that every tokenizer implements."""

    @property
    def vocab_size(self) -> int:
        """The vocabulary size; the ids are from 0 to vocab_size - 1."""

    @property
    def unknown_id(self) -> int | None:
        """The id of the token for unknown text; None if the tokenizer has no such token."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises UserError if a character has no id."""

    def encode_array(self, text: str) -> NDArray[Any]:
        """Return the ids of a text as an array (N,); this is faster than a list."""

    @property
    def boundary(self) -> str:
        """A regular expression that matches the places where a text may be split for encoding."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; bytes that are not valid UTF-8 become U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, which may be only a part of a character."""

    def decode_stream(self, context: Sequence[int] = ()) -> DecodeStream:
        """Return a DecodeStream for the tokens that follow the tokens `context`."""

    def count_lost_bytes(self, text: str, ids: NDArray[Any]) -> int:
        """Count the bytes of the characters of `text` that `ids` do not reproduce."""

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer as a JSON object, which parse_tokenizer() reads."""


def parse_tokenizer(saved: dict[str, Any]) -> Tokenizer:
    """Make a tokenizer from a result of to_json(). Raises ValueError if `saved` is invalid."""
    if saved.get("kind") == "byte":
        return ByteTokenizer.from_json(saved)
    # JSON of the library `tokenizers` has the key "model" and no "kind".
    return HubTokenizer(saved) if "model" in saved else CharTokenizer.from_json(saved)


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a tokenizer.json of a run or of the library `tokenizers`. Raises UserError."""
    try:
        return parse_tokenizer(read_json(file, MAX_TOKENIZER_BYTES))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file} is not a tokenizer ({error}): name a tokenizer.json") from None


def parse_bpe_size(kind: str) -> int | None:
    """Return the vocabulary size: N for bpe:N, 2048 for bpe, None for another kind.

    Raises UserError for an invalid N.
    """
    name, colon, size = kind.partition(":")
    if name != "bpe":
        return None
    if colon and not re.fullmatch("[0-9]{1,7}", size):
        raise UserError(
            f"tokenizer is {kind}: give the vocabulary size as a number of at most 7 digits, as in "
            f"bpe:2048"
        )
    vocab_size = int(size) if colon else 2048
    if vocab_size < 257:
        raise UserError(
            f"tokenizer is {kind}: the first 256 tokens are the bytes, so use bpe:257 or larger"
        )
    return vocab_size


FIXED_SIZES = {"byte": 256, "gpt2": 50_257}
"""The vocabulary sizes of the kinds of tokenizers that do not depend on a text."""


def is_trained_on_text(kind: str) -> bool:
    """Return whether this kind of tokenizer is made from a text: true for char, bpe and bpe:N."""
    return kind == "char" or parse_bpe_size(kind) is not None


def is_tokenizer_kind(kind: str) -> bool:
    """Return whether `kind` is char, byte, gpt2, bpe or bpe:N. Raises UserError for a bad bpe:N."""
    return kind in FIXED_SIZES or is_trained_on_text(kind)


def make_tokenizer(kind: str, text: Iterable[str], training_text: Iterable[str]) -> Tokenizer:
    """Make a tokenizer of a kind: char, byte, gpt2, bpe, bpe:N, or the path of a tokenizer.json.

    `text` and `training_text` are iterables of chunks. A char tokenizer has a token for every
    character of `text`; a bpe tokenizer is trained only on `training_text`. Raises UserError.
    """
    if kind == "char":
        return CharTokenizer(set().union(*map(set, text)))
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        return load_gpt2_tokenizer()
    if size := parse_bpe_size(kind):
        return train_bpe(training_text, size)
    if not path_exists(kind):
        raise UserError(
            f"there is no tokenizer {kind}: use char, byte, gpt2, bpe, bpe:N, the path "
            f"of a tokenizer.json, or a run"
        )
    return read_tokenizer(Path(kind))


def describe_lost_text(lost: float) -> str:
    """Return a sentence about `lost`, the fraction of a text that the tokens do not reproduce."""
    share = f"{lost:.2%}" if lost >= 1e-4 else "less than 0.01%"
    return (
        f"The tokenizer does not reproduce {share} of the text: it does not know these characters, "
        f"or it changes or drops them."
    )


class CharTokenizer:
    """A tokenizer with one token for each character of an alphabet, in order of code points."""

    def __init__(self, alphabet: Iterable[str]) -> None:
        self.alphabet = "".join(sorted(set(alphabet)))
        code_points = [ord(character) for character in self.alphabet]
        # The id of each code point, or -1 if the alphabet lacks this character. The last entry, -1,
        # is for all code points above the largest code point of the alphabet.
        self._ids = np.full(max(code_points, default=-1) + 2, -1, dtype=np.int32)
        self._ids[code_points] = range(len(code_points))

    @property
    def vocab_size(self) -> int:
        """The vocabulary size; the ids are from 0 to vocab_size - 1."""
        return len(self.alphabet)

    unknown_id = None
    boundary = ""
    """The empty pattern matches everywhere: a text may be split anywhere."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises UserError if a character is not in the alphabet."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text as an array (N,)."""
        # Command-line arguments may contain unpaired surrogates, which are unknown characters here.
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids: NDArray[np.int32] = self._ids[code_points.clip(max=len(self._ids) - 1)]
        if len(ids) and ids.min() < 0:
            unknown = sorted(set(text) - set(self.alphabet))
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise UserError(
                f"the tokenizer does not know the character{'s'[: len(unknown) - 1]} "
                f"{shown}{more}; its {self.vocab_size} characters are {self.alphabet!r}"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text."""
        return "".join(self.alphabet[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the character of a token in UTF-8."""
        return self.alphabet[token].encode("utf-8", "replace")

    def decode_stream(self, context: Sequence[int] = ()) -> ByteDecodeStream:
        """Return a DecodeStream for the tokens that follow the tokens `context`."""
        return ByteDecodeStream(self.token_bytes)

    def count_lost_bytes(self, text: str, ids: NDArray[Any]) -> int:
        """Return 0, because the ids always reproduce the text."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer as a JSON object, which parse_tokenizer() reads."""
        return {"kind": "char", "alphabet": self.alphabet}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "CharTokenizer":
        """Make a tokenizer from a result of to_json(). Raises ValueError if `saved` is invalid."""
        alphabet = parse_dataclass(_SavedChar, saved, {}).alphabet
        tokenizer = cls(alphabet)
        if not alphabet or tokenizer.alphabet != alphabet:
            raise ValueError("the alphabet must contain each character once, sorted")
        return tokenizer


@dataclass(frozen=True)
class _SavedChar:
    kind: Literal["char"]
    alphabet: str


class ByteTokenizer:
    """A tokenizer with one token for each of the 256 bytes; it encodes any text as UTF-8."""

    vocab_size = 256
    unknown_id = None
    boundary = ""
    """The empty pattern matches everywhere: a text may be split anywhere."""

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return list(encode_utf8(text))

    def encode_array(self, text: str) -> NDArray[np.uint8]:
        """Return the bytes of a text as an array (N,)."""
        return np.frombuffer(encode_utf8(text), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; bytes that are not valid UTF-8 become U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the byte of a token."""
        return bytes([token])

    def decode_stream(self, context: Sequence[int] = ()) -> ByteDecodeStream:
        """Return a DecodeStream for the tokens that follow the tokens `context`."""
        return ByteDecodeStream(self.token_bytes)

    def count_lost_bytes(self, text: str, ids: NDArray[Any]) -> int:
        """Return 0, because the ids always reproduce the text."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer as a JSON object, which parse_tokenizer() reads."""
        return {"kind": "byte"}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "ByteTokenizer":
        """Make a tokenizer from a result of to_json(). Raises ValueError if `saved` is invalid."""
        parse_dataclass(_SavedByte, saved, {})
        return cls()


@dataclass(frozen=True)
class _SavedByte:
    kind: Literal["byte"]
