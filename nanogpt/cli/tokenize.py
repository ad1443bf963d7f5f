"""nanogpt tokenize."""

import json
import os
from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from ..text.glyphs import decode_token_bytes, make_visible
from ..text.tokenizers import Tokenizer
from .arguments import TokenizeArgs, parse_arguments

COLOURS = ("#b3d9ff", "#ffd9b3", "#c6ecc6", "#f2c6ec", "#fff2b3")
"""Backgrounds that black can be read on, one after the other."""


def render_tokens(tokenizer: Tokenizer, ids: Sequence[int], width: int) -> Text:
    """Every token in a colour of its own, below it its id; spaces and line breaks made visible."""
    drawn = Text()
    above, below, used = Text(), Text(), 0

    def end_line() -> None:
        nonlocal above, below, used
        if used:
            drawn.append_text(above).append("\n").append_text(below).append("\n")
        above, below, used = Text(), Text(), 0

    for number, i in enumerate(ids):
        shown = make_visible(decode_token_bytes(tokenizer.token_bytes(i)))
        room = max(cell_len(shown), len(str(i)))
        if used + room + 1 > width:
            end_line()
        style = Style(color="black", bgcolor=COLOURS[number % len(COLOURS)])
        above.append(shown + " " * (room - cell_len(shown)), style).append(" ")
        below.append(f"{i:<{room}} ", "dim")
        used += room + 1
        if "\n" in decode_token_bytes(tokenizer.token_bytes(i)):
            end_line()
    end_line()
    drawn.rstrip()
    return drawn


def tokenize(args: list[str]) -> None:
    """show how a tokenizer cuts a text"""
    from rich.console import Console

    from ..runs.directory import find_run
    from ..text import corpora, tokenizers
    from ..text.encoding import get_tokenizer
    from ..text.readers import decode_utf8, empty_error, open_standard_input
    from .progress import Bar

    options = parse_arguments(TokenizeArgs(), args, "nanogpt tokenize")
    text = options.text
    if text is None:
        text = "".join(decode_utf8(open_standard_input(), "standard input"))
        if not text:
            raise empty_error("standard input")
    kind = options.tokenizer
    if not tokenizers.is_tokenizer_kind(kind) and not os.path.isfile(kind):
        kind = str(find_run(kind) / "best" / "tokenizer.json")
    with Bar(Console()) as bar:
        if tokenizers.is_trained_on_text(kind):
            learned = corpora.load_corpus(options.data, progress=bar.tell)
            tokenizer = get_tokenizer(kind, learned, 0.1, bar.tell)
        else:
            tokenizer = tokenizers.make_tokenizer(kind, (), ())
    ids = tokenizer.encode(text)
    size = len(text.encode())
    ratio = size / max(1, len(ids))
    if options.json:
        pieces = [decode_token_bytes(tokenizer.token_bytes(i)) for i in ids]
        answer = {"ids": ids, "tokens": pieces, "bytes": size, "bytes_per_token": ratio}
        print(json.dumps(answer))
        return
    console = Console(highlight=False)
    console.print(render_tokens(tokenizer, ids, console.width), soft_wrap=True)
    console.print(
        f"{len(ids):,} tokens of {tokenizer.vocab_size:,} for {size:,} bytes: "
        f"{ratio:.2f} bytes per token"
    )
