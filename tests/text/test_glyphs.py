"""Spaces, control characters and incomplete characters in tokens become visible."""

from nanogpt.text.glyphs import decode_token_bytes, make_visible


def test_token_bytes_that_are_not_utf8_become_escapes() -> None:
    assert decode_token_bytes("é ".encode()) == "é "
    assert decode_token_bytes(b"a\xf0") == "a\\xf0"


def test_spaces_and_unprintable_characters_become_visible() -> None:
    assert make_visible("a b\n\té\x00\u200b") == "a·b↵→é\\u0000\\u200b"
