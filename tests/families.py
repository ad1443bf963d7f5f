"""Small tokenizers of the library `tokenizers` from common families, with different decoders."""

import tokenizers as library
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

WORDS = ["to", "be", "or", "not", "the", "then", ",", ".", "!", "é", "'", "n't"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def number(tokens: list[str]) -> dict[str, int]:
    """Give each token an id; the ids have a gap, as in some published tokenizers."""
    return {token: i + 3 * (i > 4) for i, token in enumerate(dict.fromkeys(tokens))}


def byte_level() -> library.Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = library.Tokenizer(models.BPE(number([*sorted(alphabet), "th"]), [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_level_in_a_sequence() -> library.Tokenizer:
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1)])
    return tokenizer


def word_piece() -> library.Tokenizer:
    vocabulary = number(["[UNK]", *WORDS, "##n", "##e", "##o", "t", "##t"])
    tokenizer = library.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def llama() -> library.Tokenizer:
    pieces = ["▁", "t", "o", "b", "e", "h", "▁t", "▁to", "▁b", "▁be", "th"]
    merges = [("▁", "t"), ("▁t", "o"), ("▁", "b"), ("▁b", "e"), ("t", "h")]
    vocabulary = number(["<unk>", "<s>", "</s>", *BYTES, *pieces])
    tokenizer = library.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def unigram(byte_fallback: bool = False) -> library.Tokenizer:
    pieces = ["<unk>", "▁", *BYTES, *"tobrne,.!'", "▁to", "▁be", "▁the", "he"]
    scores = [(piece, -float(i % 7)) for i, piece in enumerate(pieces)]
    tokenizer = library.Tokenizer(models.Unigram(scores, 0, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def unigram_with_bytes() -> library.Tokenizer:
    tokenizer = unigram(byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def word_level() -> library.Tokenizer:
    tokenizer = library.Tokenizer(models.WordLevel(number(["[UNK]", *WORDS]), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens([AddedToken("</s>", lstrip=True, rstrip=True)])
    return tokenizer


def end_of_word() -> library.Tokenizer:
    vocabulary = number(["<unk>", "t", "o", "b", "e", "o</w>", "e</w>", "to</w>", "be</w>"])
    merges = [("t", "o</w>"), ("b", "e</w>")]
    tokenizer = library.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def ctc() -> library.Tokenizer:
    vocabulary = number(["<pad>", "|", *"tobernh'"])
    tokenizer = library.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.CTC()
    return tokenizer


def replacing_words() -> library.Tokenizer:
    """A tokenizer whose decoder replaces matches of a regular expression.

    A match can span several tokens, so a later token can change earlier text.
    """
    tokenizer = llama()
    replace = decoders.Replace(Regex("to+ b"), "2 b")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), replace])
    return tokenizer


def replacing_a_phrase() -> library.Tokenizer:
    """Like replacing_words(), but the decoder replaces a fixed string."""
    tokenizer = llama()
    replace = decoders.Replace("to b", "2 b")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), replace])
    return tokenizer


def stripping_spaces() -> library.Tokenizer:
    """A tokenizer whose decoder drops up to three spaces at the beginning of a text."""
    tokenizer = llama()
    decode = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 3)]
    tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


FAMILIES = [
    *(byte_level, byte_level_in_a_sequence, word_piece, llama, unigram, unigram_with_bytes),
    *(word_level, end_of_word, ctc, replacing_words, replacing_a_phrase, stripping_spaces),
]
