"""Byte-pair encoding, and any other tokenizer in the tokenizer.json format of Hugging Face.

The library `tokenizers` of Hugging Face trains a tokenizer. The library `tiktoken` encodes faster,
so nanogpt encodes with `tiktoken` if it gives the same tokens, and otherwise with `tokenizers`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .streams import ByteDecodeStream, DecodeStream, TextDecodeStream, encode_utf8

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2 first splits a text into parts: contractions, words, numbers, other symbols and spaces. A
word, number or symbol includes one space before it. Pairs are merged only within a part, so no
token spans two parts."""

SPACE_BOUNDARY, LINE_BOUNDARY = r"(?<=\S)[ \n]", r"(?<=\n)"
"""Regular expressions that match the places where a text may be split before encoding."""

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
"""Matches the tokens of the 256 bytes in a tokenizer with byte fallback. Its decoder `ByteFallback`
decodes successive byte tokens together: if one of them is invalid, all of them become U+FFFD."""
TOKEN_DECODERS = ("ByteLevel", "BPEDecoder", "CTC", "Metaspace", "WordPiece")
"""Decoders that change each token separately. After the decoder `Fuse`, which joins all tokens,
these decoders would change the whole text."""
STABLE_DECODERS = ("ByteFallback", "Fuse", "Replace", "Strip")
"""Decoders that never change earlier text when more tokens follow. They may also stand after
`Fuse`, but `Replace` may then replace only a single character."""


def train_bpe(chunks: Iterable[str], vocab_size: int) -> "HubTokenizer":
    """Train a tokenizer with byte-pair encoding as in GPT-2.

    Training starts with the 256 bytes, and repeatedly merges the most frequent pair of adjacent
    tokens into a new token. See Sennrich et al. 2016 (arXiv:1508.07909) and, for bytes, Radford et
    al. 2019, section 2.2. Raises UserError if the text has too few different pairs for vocab_size
    tokens.
    """
    from tokenizers import pre_tokenizers, trainers

    bpe = _make_byte_level_bpe({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(chunks, trainer)
    if (actual_size := bpe.get_vocab_size()) < vocab_size:
        raise UserError(
            f"the training text has enough pairs for {actual_size} tokens, not for {vocab_size}: "
            f"use more text, or the tokenizer "
            + (f"bpe:{actual_size}" if actual_size > 256 else "byte")
        )
    return HubTokenizer(json.loads(bpe.to_str()))


def make_bpe(
    vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], special: Sequence[str] = ()
) -> "HubTokenizer":
    """Make a tokenizer like GPT-2's from a vocabulary and a list of merges, in training order.

    GPT-2 has its vocabulary in vocab.json and its merges in merges.txt. In both files, each byte
    is written as one character: for example, a space is "Ġ". `special` lists the special tokens,
    which are in the vocabulary but are not merged from others. Raises ValueError if a token of a
    merge is not in the vocabulary.
    """
    try:
        bpe = _make_byte_level_bpe(vocab, merges)
        bpe.add_special_tokens(list(special))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` raises Exception, and panics, which are not
        raise ValueError(str(error)) from None
    return HubTokenizer(json.loads(bpe.to_str()))


def _make_byte_level_bpe(
    vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bpe = Tokenizer(models.BPE(dict(vocab), list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


class HubTokenizer:
    """A tokenizer of the library `tokenizers`, made from the content of a tokenizer.json.

    If the tokenizer uses byte-pair encoding as GPT-2 does, the library `tiktoken` encodes texts,
    because it returns the same ids and is four times as fast as `tokenizers`.
    """

    def __init__(self, saved: dict[str, Any]) -> None:
        """Make a tokenizer from `saved`. Raises ValueError if `saved` is not a valid tokenizer."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer: tokenizers.Tokenizer = Tokenizer.from_str(json.dumps(saved))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # `tokenizers` raises Exception, and panics, which are not
            raise ValueError(str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab()
        if not vocabulary:
            raise ValueError("its vocabulary is empty")
        self.vocab_size = max(vocabulary.values()) + 1
        added_tokens = self._tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added_tokens}
        if self.vocab_size > 2 * len(vocabulary) + 1000:
            raise ValueError(f"its largest id is {self.vocab_size - 1}, but most ids are unused")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; add no special token at the beginning or the end."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of a text as an array (N,). This method is thread-safe."""
        encode_utf8(text)  # raises UserError for an unpaired surrogate
        if self._tiktoken:
            with suppress(ValueError):  # tiktoken fails for a million spaces in a row
                return self._tiktoken.encode_to_numpy(
                    text, allowed_special=self._special, disallowed_special=()
                )
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # `tokenizers` raises a plain Exception
            raise UserError(
                f"the tokenizer cannot encode the text: {error}; use a tokenizer that has a token "
                f"for unknown text, or remove the characters and words that have no token"
            ) from None
        return np.array(ids, dtype=np.uint32)

    @property
    def boundary(self) -> str:
        """A regular expression that matches the places where a text may be split before encoding.

        Suppose that a tokenizer uses GPT2_PATTERN, and that none of its special tokens contains
        whitespace. Then a space or line break after a visible character always starts a new token.
        A split directly before this space or line break does not change the ids. For other
        tokenizers, the start of a line is the safest place to split.
        """
        has_space_in_special = any(re.search(r"\s", token) for token in self._special)
        is_safe = self._tiktoken is not None and not has_space_in_special
        return SPACE_BOUNDARY if is_safe else LINE_BOUNDARY

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; bytes that are not valid UTF-8 become U+FFFD."""
        if self._bytes_by_id:
            return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        if not ids:  # some decoders of `tokenizers` fail if there are no ids
            return ""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, which is decoded alone, without other tokens."""
        return self._bytes_by_id[token] if self._bytes_by_id else self.decode([token]).encode()

    def decode_stream(self, context: Sequence[int] = ()) -> DecodeStream:
        """Return a DecodeStream for the tokens that follow the tokens `context`."""
        if self._bytes_by_id:
            return ByteDecodeStream(self.token_bytes)
        return TextDecodeStream(self.decode, self._is_open, context)

    def count_lost_bytes(self, text: str, ids: NDArray[Any]) -> int:
        """Count the bytes of the lost characters of `text`, which `ids` do not reproduce.

        A character is lost if the tokenizer does not know it, changes it (for example, "A" to "a")
        or drops it (for example, a line break). The method compares only how often each character
        occurs in `text` and in the decoded ids, not the order of the characters.
        """
        if self._tiktoken:
            return 0
        decoded = self.decode(ids.tolist())
        if self.unknown_id is not None:
            decoded = decoded.replace(self._tokenizer.id_to_token(self.unknown_id) or "", "")
        lost = Counter(text) - Counter(decoded)
        return sum(count * len(character.encode()) for character, count in lost.items())

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of the token for unknown text; None if the tokenizer has no such token."""
        model = self._saved["model"]
        unknown: str | None = model.get("unk_token")
        return model.get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)

    def _is_open(self, token: int) -> bool:
        """Return whether the token after `token` can change the text of `token`."""
        content = self._tokenizer.id_to_token(token)
        # An unused id has no text. Such an id may occur between the bytes of one character.
        is_open = content is None or BYTE_TOKEN.fullmatch(content) is not None
        return is_open or not self._is_decoded_in_parts

    @cached_property
    def _is_decoded_in_parts(self) -> bool:
        """Whether later tokens never change decoded text that ends with a complete character."""
        decoder = self._saved["decoder"] or {}
        is_fused = False
        for step in decoder.get("decoders", [decoder] if decoder else []):
            kind, pattern = step["type"], step.get("pattern", {}).get("String", "")
            if kind == "Replace" and is_fused and len(pattern) != 1:
                return False
            if kind not in STABLE_DECODERS and (is_fused or kind not in TOKEN_DECODERS):
                return False
            is_fused = is_fused or kind in ("Fuse", "ByteLevel")
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the content of a tokenizer.json, which the library `tokenizers` can read."""
        return dict(self._saved)

    @cached_property
    def _saved(self) -> dict[str, Any]:
        """The content of tokenizer.json, made only once because a vocabulary can be very large."""
        saved: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return saved

    @cached_property
    def _bytes_by_id(self) -> list[bytes] | None:
        """The bytes of each token; None if the tokenizer is not byte-level."""
        saved = self._saved
        if (saved["decoder"] or {}).get("type") != "ByteLevel":
            return None
        byte_of = map_characters_to_bytes()
        bytes_by_id = [b""] * self.vocab_size
        for token, i in self._tokenizer.get_vocab().items():
            is_byte_level = all(character in byte_of for character in token)
            bytes_by_id[i] = (
                bytes(byte_of[character] for character in token)
                if is_byte_level
                else token.encode()
            )
        for added in saved["added_tokens"]:  # stored as plain text
            bytes_by_id[added["id"]] = added["content"].encode()
        return bytes_by_id

    @cached_property
    def _tiktoken(self) -> "tiktoken.Encoding | None":
        """A tiktoken.Encoding with the same ids; None if tiktoken cannot encode in this way."""
        saved = self._saved
        model, added_tokens, bytes_by_id = saved["model"], saved["added_tokens"], self._bytes_by_id
        if bytes_by_id is None or not is_gpt2_bpe(saved):
            return None
        special = {token["content"]: token["id"] for token in added_tokens}
        ranks = {bytes_by_id[i]: i for token, i in model["vocab"].items() if token not in special}
        # tiktoken first merges the pair whose merged token has the lowest id. So the ids must be in
        # the order of the merges.
        merged_ids = [model["vocab"].get("".join(pair)) for pair in model["merges"]]
        single_bytes = {bytes([byte]) for byte in range(256)}
        long_ids = {i for token, i in ranks.items() if token not in single_bytes}
        if merged_ids != sorted(set(merged_ids)) or set(merged_ids) != long_ids:
            return None
        if not single_bytes <= ranks.keys():
            return None
        import tiktoken

        # Without special tokens, tiktoken searches for an empty token at every character, which
        # doubles the encoding time. So add a special token. encode_array() never uses it: its
        # characters are ordinary characters there.
        special = special or {"<|never|>": self.vocab_size}
        encoding = tiktoken.Encoding(
            "nanogpt", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        # Make the first call here: if several threads make the first calls at the same time, every
        # later call in these threads takes twice as long (docs/log/text.md).
        encoding.encode_ordinary("a word")
        return encoding


def is_gpt2_bpe(saved: dict[str, Any]) -> bool:
    """Return whether a byte-level tokenizer.json splits texts and merges pairs as GPT-2 does."""
    model, pre_tokenizer = saved["model"], saved["pre_tokenizer"] or {}
    unsupported = (
        *("dropout", "unk_token", "byte_fallback", "ignore_merges"),
        *("continuing_subword_prefix", "end_of_word_suffix"),
    )
    matching_rules = ("lstrip", "rstrip", "single_word", "normalized")
    return (
        model["type"] == "BPE"
        and saved["normalizer"] is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer["add_prefix_space"]
        and not any(model.get(key) for key in unsupported)
        and not any(token[key] for token in saved["added_tokens"] for key in matching_rules)
    )


def map_characters_to_bytes() -> dict[str, int]:
    """Map each character of a byte-level vocabulary to its byte.

    If a byte is the code point of a visible Latin-1 character, GPT-2 writes the byte as that
    character. GPT-2 writes the other bytes, in order, as the characters from U+0100 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible}
    return byte_of | {chr(256 + i): byte for i, byte in enumerate(others)}
