"""Show tokens on a terminal or a web page."""

GLYPHS = {" ": "·", "\n": "↵", "\t": "→"}


def decode_token_bytes(raw: bytes) -> str:
    """Decode the bytes of one token; bytes that are not valid UTF-8 become escapes like \\xf0."""
    return raw.decode("utf-8", "backslashreplace")


def make_visible(text: str) -> str:
    """Replace spaces, line breaks, tabs and unprintable characters with visible characters."""
    return "".join(GLYPHS.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
