"""Byte pairs that were learned from a text, and whatever else a Hugging Face tokenizer.json has.

They are learned by the library tokenizers, and encoded by tiktoken where it does the same, faster.
"""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .streams import PieceStream, Stream, utf8

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

# GPT-2's way to cut a text before any pair is merged, so that no token crosses from a word into
# what follows it: contractions, words, numbers, other signs, each with a space before it; spaces.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

AT_SPACES, AT_LINES = r"(?<=\S)[ \n]", r"(?<=\n)"


def train_bpe(parts: Iterable[str], vocab_size: int) -> "HubTokenizer":
    """Byte-pair encoding as GPT-2 has it: from the 256 bytes on, the most frequent pair is merged.

    Sennrich et al. 2016 (arXiv:1508.07909); on bytes, Radford et al. 2019, 2.2. A text too small
    for so many tokens is a UserError.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(parts, trainer)
    if (found := bpe.get_vocab_size()) < vocab_size:
        raise UserError(
            f"the training text has pairs enough for {found} tokens, not for {vocab_size}: give "
            f"more text, or take "
            + (f"--tokenizer bpe:{found} or less" if found > 256 else "--tokenizer byte")
        )
    return HubTokenizer(json.loads(bpe.to_str()))


class HubTokenizer:
    """One that the library tokenizers knows, from its JSON: GPT-2's, say, or train_bpe()'s.

    Byte-pair encoding as GPT-2 has it is encoded by the library tiktoken, which gives the same ids
    in a quarter of the time.
    """

    def __init__(self, saved: dict[str, Any]) -> None:
        """Raises ValueError where the library cannot make a tokenizer of it."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer: tokenizers.Tokenizer = Tokenizer.from_str(json.dumps(saved))
        except Exception as error:  # the library has no other type
            raise ValueError(str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab()
        if not vocabulary:
            raise ValueError("its vocabulary is empty")
        self.vocab_size = max(vocabulary.values()) + 1
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added}
        if self.vocab_size > 2 * len(vocabulary) + 1000:
            raise ValueError(f"its ids go up to {self.vocab_size}, of which most are not used")

    def encode(self, text: str) -> list[int]:
        """The ids of a text; what marks the beginning or the end of one is not added."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """encode(), as an array (N,); several threads can do it at a time."""
        utf8(text)
        if self._fast:
            with suppress(ValueError):  # a million spaces in a row are too many for it
                return self._fast.encode_to_numpy(
                    text, allowed_special=self._special, disallowed_special=()
                )
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint32)

    @property
    def boundary(self) -> str:
        """Where a text may be cut and encoded in parts, as a regular expression of what follows.

        With GPT-2's pattern no token goes across a space that follows no space, and nothing looks
        back. Of other tokenizers nothing is known: at the start of a line a cut does least harm.
        """
        spaced = any(re.search(r"\s", token) for token in self._special)
        return AT_SPACES if self._fast and not spaced else AT_LINES

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Bytes that are no UTF-8, as a model may write them, become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def piece(self, token: int) -> bytes:
        """What an id stands for; alone, where it depends on its neighbours."""
        return self._pieces[token] if self._pieces else self.decode([token]).encode()

    def stream(self) -> Stream:
        """decode(), id by id."""
        if self._pieces:
            return PieceStream(self.piece)
        return _HubStream(self._tokenizer)

    def to_json(self) -> dict[str, Any]:
        """The tokenizer.json that the library itself would read."""
        saved: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return saved

    @cached_property
    def _pieces(self) -> list[bytes] | None:
        """The bytes of each id, where there are such: in byte-level encodings."""
        saved = self.to_json()
        if (saved["decoder"] or {}).get("type") != "ByteLevel":
            return None
        table, pieces = _bytes_of_signs(), [b""] * self.vocab_size
        for token, i in self._tokenizer.get_vocab().items():
            known = all(sign in table for sign in token)
            pieces[i] = bytes(table[sign] for sign in token) if known else token.encode()
        for added in saved["added_tokens"]:  # they are written as they are read
            pieces[added["id"]] = added["content"].encode()
        return pieces

    @cached_property
    def _fast(self) -> "tiktoken.Encoding | None":
        """The same as an encoding of tiktoken, if it is byte-pair encoding as GPT-2 has it."""
        saved = self.to_json()
        model, added, pieces = saved["model"], saved["added_tokens"], self._pieces
        plain = ("lstrip", "rstrip", "single_word", "normalized")
        is_gpt2 = (
            pieces is not None
            and model["type"] == "BPE"
            and saved["normalizer"] is None
            and (saved["pre_tokenizer"] or {}).get("type") == "ByteLevel"
            and saved["pre_tokenizer"].get("use_regex", True)
            and not saved["pre_tokenizer"]["add_prefix_space"]
            and not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback"))
            and not any(model.get(key) for key in _AFFIXES)
            and not model.get("ignore_merges")
            and not any(token[key] for token in added for key in plain)
        )
        if not is_gpt2:
            return None
        assert pieces is not None
        special = {token["content"]: token["id"] for token in added}
        merges = [model["vocab"].get("".join(pair)) for pair in model["merges"]]
        ranks = {pieces[i]: i for token, i in model["vocab"].items() if token not in special}
        # tiktoken merges the pair with the lowest id first: it must have been merged first.
        single = {bytes([byte]) for byte in range(256)}
        if merges != sorted(set(merges)) or set(merges) != {
            i for piece, i in ranks.items() if piece not in single
        }:
            return None
        if not single <= ranks.keys():
            return None
        import tiktoken

        # Without a special token tiktoken looks for the empty one, at every character, which takes
        # as long as all the rest. This one is never allowed, so that it is text as any other.
        special = special or {"<|never|>": self.vocab_size}
        fast = tiktoken.Encoding(
            "nanogpt", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        # Threads whose first word is the first of all take twice as long for every other.
        fast.encode_ordinary("a word")
        return fast


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


class _HubStream:
    """The stream of a tokenizer whose ids do not stand for bytes of their own."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=False)

    def push(self, token: int) -> str:
        """What is whole with this id."""
        return self._stream.step(self._tokenizer, token) or ""

    def end(self) -> str:
        """Nothing: the library does not give half a character away."""
        return ""


def _bytes_of_signs() -> dict[str, int]:
    """The byte that each sign of a byte-level vocabulary stands for.

    GPT-2 writes bytes that are visible in Latin-1 as themselves, and the others, in their order, as
    the characters from U+0100 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
