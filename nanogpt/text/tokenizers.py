"""Text to ids and back: by characters, by bytes, or by byte pairs that were learned from a text."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..system.files import read_json
from ..system.schema import parse_dataclass
from .bpe import AT_SPACES as AT_SPACES
from .bpe import HubTokenizer, train_bpe
from .streams import PieceStream, Stream, utf8

JSON_LIMIT = 64 << 20
"""Bytes of a tokenizer.json. Those of the largest vocabularies in use have about 30 MB."""


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are: 0 up to and not including this."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises UserError where it has none."""

    def encode_array(self, text: str) -> NDArray[Any]:
        """encode(), as an array (N,): for much text at once."""

    @property
    def boundary(self) -> str:
        """Where a text may be cut and encoded in parts, as a regular expression of what follows."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Bytes that are no UTF-8, as a model may write them, become U+FFFD."""

    def piece(self, token: int) -> bytes:
        """What an id stands for: half a character, even."""

    def stream(self) -> Stream:
        """decode(), id by id."""

    def to_json(self) -> dict[str, Any]:
        """What from_json() needs to make this tokenizer again."""


def from_json(saved: dict[str, Any]) -> Tokenizer:
    """The tokenizer that to_json() saved. Anything else is a ValueError."""
    if saved.get("kind") == "byte":
        return ByteTokenizer.from_json(saved)
    # The JSON of the library tokenizers has no kind, but a model.
    return HubTokenizer(saved) if "model" in saved else CharTokenizer.from_json(saved)


def from_file(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, one of a run or of the Hugging Face Hub. UserError."""
    try:
        return from_json(read_json(file, JSON_LIMIT))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file} is no tokenizer ({error}): name a tokenizer.json") from None


def bpe_size(kind: str) -> int | None:
    """How many tokens bpe or bpe:N asks for; None where kind is no such thing. UserError."""
    name, colon, size = kind.partition(":")
    if name != "bpe":
        return None
    if colon and not re.fullmatch("[0-9]{1,9}", size):
        raise UserError(f"tokenizer is {kind}: after bpe: comes how many tokens, as in bpe:2048")
    if (found := int(size) if colon else 2048) < 257:
        raise UserError(f"tokenizer is {kind}: 256 tokens are the bytes, so ask for 257 or more")
    return found


def learns(kind: str) -> bool:
    """Whether a tokenizer of this kind learns from a text."""
    return kind == "char" or bpe_size(kind) is not None


def is_kind(kind: str) -> bool:
    """Whether this is char, byte, bpe or bpe:N, and not a path. Raises UserError."""
    return kind == "byte" or learns(kind)


def make(kind: str, whole: Iterable[str], training: Iterable[str]) -> Tokenizer:
    """The tokenizer that kind asks for: char, byte, bpe, bpe:N, or the path of a tokenizer.json.

    char knows every character of the whole text, given in parts; bpe learns from the training part
    of it alone. Raises UserError.
    """
    if kind == "char":
        return CharTokenizer(set().union(*map(set, whole)))
    if kind == "byte":
        return ByteTokenizer()
    if size := bpe_size(kind):
        return train_bpe(training, size)
    if not os.path.exists(kind):
        raise UserError(
            f"there is no tokenizer {kind}: take char, byte, bpe, bpe:N, or the path of a "
            f"tokenizer.json"
        )
    return from_file(Path(kind))


class CharTokenizer:
    """One id for each character of an alphabet, in the order of their code points."""

    def __init__(self, alphabet: Iterable[str]) -> None:
        self.alphabet = "".join(sorted(set(alphabet)))
        points = [ord(character) for character in self.alphabet]
        # The id of each code point; -1 where it has none, as the one after the last.
        self._ids = np.full(max(points, default=-1) + 2, -1, dtype=np.int32)
        self._ids[points] = range(len(points))

    @property
    def vocab_size(self) -> int:
        """How many ids there are: 0 up to and not including this."""
        return len(self.alphabet)

    boundary = ""
    """A text may be cut anywhere."""

    def encode(self, text: str) -> list[int]:
        """The id of each character. Characters outside the alphabet are a UserError."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """encode(), as an array (N,)."""
        # Half a surrogate pair, as the arguments of a program may have, is no character of ours.
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids: NDArray[np.int32] = self._ids[points.clip(max=len(self._ids) - 1)]
        if len(ids) and ids.min() < 0:
            strangers = sorted(set(text) - set(self.alphabet))
            named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in strangers[:5])
            more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
            raise UserError(
                f"the tokenizer does not know the character{'s'[: len(strangers) - 1]} "
                f"{named}{more}; its {self.vocab_size} characters are {self.alphabet!r}"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text that encode() made these ids from."""
        return "".join(self.alphabet[i] for i in ids)

    def piece(self, token: int) -> bytes:
        """The character of an id in UTF-8."""
        return self.alphabet[token].encode("utf-8", "replace")

    def stream(self) -> PieceStream:
        """decode(), id by id."""
        return PieceStream(self.piece)

    def to_json(self) -> dict[str, Any]:
        """What from_json() needs to make this tokenizer again."""
        return {"kind": "char", "alphabet": self.alphabet}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "CharTokenizer":
        """The tokenizer that to_json() saved. Anything else is a ValueError."""
        alphabet = parse_dataclass(_SavedChar, saved, {}).alphabet
        tokenizer = cls(alphabet)
        if not alphabet or tokenizer.alphabet != alphabet:
            raise ValueError("the alphabet must have every character once, in order")
        return tokenizer


@dataclass(frozen=True)
class _SavedChar:
    kind: Literal["char"]
    alphabet: str


class ByteTokenizer:
    """The bytes of UTF-8 as they are: 256 ids, and every text there can be."""

    vocab_size = 256
    boundary = ""
    """A text may be cut anywhere."""

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(utf8(text))

    def encode_array(self, text: str) -> NDArray[np.uint8]:
        """encode(), as an array (N,)."""
        return np.frombuffer(utf8(text), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of bytes; those that are no UTF-8, as a model may write them, become U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The byte itself."""
        return bytes([token])

    def stream(self) -> PieceStream:
        """decode(), id by id."""
        return PieceStream(self.piece)

    def to_json(self) -> dict[str, Any]:
        """What from_json() needs to make this tokenizer again."""
        return {"kind": "byte"}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "ByteTokenizer":
        """The tokenizer that to_json() saved. Anything else is a ValueError."""
        parse_dataclass(_SavedByte, saved, {})
        return cls()


@dataclass(frozen=True)
class _SavedByte:
    kind: Literal["byte"]
