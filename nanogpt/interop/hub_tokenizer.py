"""Any tokenizer as a tokenizer.json, which the libraries tokenizers and transformers read."""

import json
from typing import Any

from ..text.bpe import HubTokenizer, map_characters_to_bytes
from ..text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, parse_tokenizer


def convert_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a tokenizer.json that gives the same ids, and no others."""
    if isinstance(tokenizer, CharTokenizer):
        return _convert_characters(tokenizer.alphabet)
    if isinstance(tokenizer, ByteTokenizer):
        return _convert_bytes()
    # A post-processor may add special tokens at the start and at the end. nanogpt adds none.
    return {**tokenizer.to_json(), "post_processor": None}


def parse_hub_tokenizer(saved: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json. Raises ValueError if `saved` is not a tokenizer.

    A result of convert_tokenizer() gives the tokenizer that was converted.
    """
    if "kind" in saved:  # the format of nanogpt itself
        return parse_tokenizer(saved)
    tokenizer = HubTokenizer(saved)
    found = tokenizer.to_json()
    if found == _convert_bytes():
        return ByteTokenizer()
    alphabet = "".join(sorted(c for c in found["model"].get("vocab", {}) if len(c) == 1))
    if found["model"]["type"] == "WordLevel" and found == _convert_characters(alphabet):
        return CharTokenizer(alphabet)
    return tokenizer


def _convert_characters(alphabet: str) -> dict[str, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: i for i, character in enumerate(alphabet)}
    # An unknown character is an error, because no token has the name of the token for it.
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="unknown"))
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    found.decoder = decoders.Fuse()
    return dict(json.loads(found.to_str()))


def _convert_bytes() -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    found = Tokenizer(models.BPE(map_characters_to_bytes(), []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    return dict(json.loads(found.to_str()))
