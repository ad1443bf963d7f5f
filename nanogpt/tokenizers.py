"""Text to ids and back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import UserError
from .schema import parse


class CharTokenizer:
    """One id for each character of an alphabet, in the order of their code points."""

    def __init__(self, alphabet: Iterable[str]) -> None:
        self.alphabet = "".join(sorted(set(alphabet)))
        self._ids = {character: i for i, character in enumerate(self.alphabet)}

    @property
    def vocab_size(self) -> int:
        """How many ids there are: 0 up to and not including this."""
        return len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """The id of each character. A character outside the alphabet is a UserError."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            stranger = error.args[0]
            raise UserError(
                f"the tokenizer does not know the character {stranger!r} "
                f"(U+{ord(stranger):04X}); its {self.vocab_size} characters are {self.alphabet!r}"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text that encode() made these ids from."""
        return "".join(self.alphabet[i] for i in ids)

    def to_json(self) -> dict[str, object]:
        """What from_json() needs to make this tokenizer again."""
        return {"kind": "char", "alphabet": self.alphabet}

    @classmethod
    def from_json(cls, saved: dict[str, object]) -> "CharTokenizer":
        """The tokenizer that to_json() saved. Anything else is a ValueError."""
        alphabet = parse(_Saved, saved, {}).alphabet
        tokenizer = cls(alphabet)
        if not alphabet or tokenizer.alphabet != alphabet:
            raise ValueError("the alphabet must have every character once, in order")
        return tokenizer


@dataclass(frozen=True)
class _Saved:
    """What to_json() gives."""

    kind: Literal["char"]
    alphabet: str
