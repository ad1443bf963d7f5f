"""nanogpt tokenize: show how a tokenizer encodes a text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from ..system.files import is_file
from ..text import tokenizers
from ..text.glyphs import decode_token_bytes, make_visible
from ..text.readers import decode_utf8, empty_error, open_standard_input
from ..text.tokenizers import Tokenizer, describe_lost_text
from .arguments import parse_arguments
from .progress import Bar, PlainConsole
from .values import Flag, OptionalString, placeholder, positional

COLOURS = ("#b3d9ff", "#ffd9b3", "#c6ecc6", "#f2c6ec", "#fff2b3")
"""Background colours of consecutive tokens; black text is readable on all of them."""


@dataclass(frozen=True)
class TokenizeArgs:
    """Show how a tokenizer encodes a text: each token with its id."""

    text: Annotated[OptionalString, positional, placeholder("[TEXT]")] = None
    """Text to encode; by default the text from standard input."""
    tokenizer: str = "char"
    """char, byte, gpt2, bpe or bpe:N (N is the size of the vocabulary); the path of a
    tokenizer.json; or a run, to use its tokenizer."""
    data: str = "tinyshakespeare"
    """Text that char and bpe are trained on; see --data of nanogpt train."""
    column: str = "text"
    """Column with the text, in datasets (hf:) and in .jsonl and .parquet files."""
    separator: str = "\n\n"
    """Text inserted between documents."""
    json: Flag = False
    """Print one JSON object instead of coloured text."""

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        if name not in ("data", "column", "separator"):
            return ""
        if not tokenizers.is_trained_on_text(self.tokenizer):
            return f"the tokenizer {self.tokenizer} is not trained on --data"

        from ..text import corpora  # a slow import

        return corpora.explain_unused(name, self.data)


def tokenize(args: list[str]) -> None:
    """Print the tokens of a text."""
    options = parse_arguments(TokenizeArgs(), args, "nanogpt tokenize")
    text = options.text
    if text is None:
        text = "".join(decode_utf8(open_standard_input(), "standard input"))
        if not text:
            raise empty_error("standard input")
    tokenizer = _get_tokenizer(options)
    array = tokenizer.encode_array(text)
    ids, size = array.tolist(), len(text.encode())
    lost_bytes = tokenizer.count_lost_bytes(text, array)
    ratio = size / max(1, len(ids))
    if options.json:
        tokens = [decode_token_bytes(tokenizer.token_bytes(i)) for i in ids]
        answer = {"ids": ids, "tokens": tokens, "bytes": size, "bytes_per_token": ratio}
        print(json.dumps(answer | {"lost_bytes": lost_bytes}))
        return
    console = PlainConsole()
    console.print(render_tokens(tokenizer, ids, console.width), soft_wrap=True)
    console.print(
        f"{len(ids):,} tokens for {size:,} bytes: {ratio:.2f} bytes per token; "
        f"vocabulary {tokenizer.vocab_size:,}"
    )
    if lost_bytes:
        console.print(describe_lost_text(lost_bytes / size), style="yellow", soft_wrap=True)


def _get_tokenizer(options: TokenizeArgs) -> Tokenizer:
    """Return the chosen tokenizer; train it on the text of --data if necessary."""
    kind = options.tokenizer
    # The imports below are slow, so import each module only if it is needed.
    if not tokenizers.is_tokenizer_kind(kind) and not is_file(kind):
        from ..runs.directory import find_tokenizer

        kind = find_tokenizer(kind)
    if not tokenizers.is_trained_on_text(kind):
        return tokenizers.make_tokenizer(kind, (), ())

    from ..text import corpora
    from ..text.encoding import get_tokenizer

    with Bar(PlainConsole()) as bar:
        corpus = corpora.load_corpus(options.data, options.column, options.separator, bar.update)
        return get_tokenizer(kind, corpus, 0.1, bar.update)


def render_tokens(tokenizer: Tokenizer, ids: Sequence[int], width: int) -> Text:
    """Render each token on a coloured background, with its id below; make white space visible."""
    lines = Text()
    tokens_line, ids_line, columns = Text(), Text(), 0

    def end_line() -> None:
        nonlocal tokens_line, ids_line, columns
        if columns:
            lines.append_text(tokens_line).append("\n").append_text(ids_line).append("\n")
        tokens_line, ids_line, columns = Text(), Text(), 0

    for index, i in enumerate(ids):
        token = decode_token_bytes(tokenizer.token_bytes(i))
        visible = make_visible(token)
        cells = max(cell_len(visible), len(str(i)))
        if columns + cells + 1 > width:
            end_line()
        style = Style(color="black", bgcolor=COLOURS[index % len(COLOURS)])
        tokens_line.append(visible + " " * (cells - cell_len(visible)), style).append(" ")
        ids_line.append(f"{i:<{cells}} ", "dim")
        columns += cells + 1
        if "\n" in token:
            end_line()
    end_line()
    lines.rstrip()
    return lines
