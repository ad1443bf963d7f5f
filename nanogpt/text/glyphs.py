"""Tokens made visible."""


def readable(piece: bytes) -> str:
    """A token as text; what is no UTF-8 by itself in hexadecimal, as \\xf0."""
    return piece.decode("utf-8", "backslashreplace")


def make_visible(text: str) -> str:
    signs = {" ": "·", "\n": "↵", "\t": "→"}
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
