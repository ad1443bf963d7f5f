"""Tokens, and what a text is like, on a terminal."""

from collections.abc import Callable, Generator, Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text

from .explain import Explanation, Line
from .studies.ladder import Rung
from .survey import Survey, bits
from .tokenizers import Tokenizer

COLOURS = ("#b3d9ff", "#ffd9b3", "#c6ecc6", "#f2c6ec", "#fff2b3")
"""Backgrounds that black can be read on, one after the other."""


def readable(piece: bytes) -> str:
    """A token as text; what is no UTF-8 by itself in hexadecimal, as \\xf0."""
    return piece.decode("utf-8", "backslashreplace")


def drawn_tokens(tokenizer: Tokenizer, ids: Sequence[int], width: int) -> Text:
    """Every token in a colour of its own, below it its id; spaces and line breaks made visible."""
    drawn = Text()
    above, below, used = Text(), Text(), 0

    def end_line() -> None:
        nonlocal above, below, used
        if used:
            drawn.append_text(above).append("\n").append_text(below).append("\n")
        above, below, used = Text(), Text(), 0

    for number, i in enumerate(ids):
        shown = _visible(readable(tokenizer.piece(i)))
        room = max(cell_len(shown), len(str(i)))
        if used + room + 1 > width:
            end_line()
        style = Style(color="black", bgcolor=COLOURS[number % len(COLOURS)])
        above.append(shown + " " * (room - cell_len(shown)), style).append(" ")
        below.append(f"{i:<{room}} ", "dim")
        used += room + 1
        if "\n" in readable(tokenizer.piece(i)):
            end_line()
    end_line()
    drawn.rstrip()
    return drawn


def _visible(text: str) -> str:
    signs = {" ": "·", "\n": "↵", "\t": "→"}
    return "".join(signs.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def survey_tables(found: Survey) -> list[Table]:
    """What a text is like, and its n-grams."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shown = " ".join(map(_visible, found.alphabet[:200])) + (" …" if found.alphabet[200:] else "")
    rows = {
        "size": f"{found.bytes:,} bytes, {found.characters:,} characters, {found.lines:,} lines, "
        f"{found.words:,} words",
        "to train on": f"{found.train:,} characters, the first 90%",
        "to measure with": f"{found.val:,} characters, the last 10%",
        "alphabet": f"{len(found.alphabet):,}: {shown}",
        "frequent words": ", ".join(f"{word} {count:,}" for word, count in found.frequent),
    }
    for name, value in rows.items():
        facts.add_row(name, escape(value))
    columns = ("nats a character", "entropy", "bits", "validation loss by counting")
    ngrams = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for each, name in zip(found.ngrams, ("unigrams", "bigrams", "trigrams"), strict=False):
        numbers = (f"{each.entropy:.4f}", f"{bits(each.entropy):.4f}", f"{each.val_loss:.4f}")
        ngrams.add_row(name, *numbers)
    return [facts, ngrams] if found.ngrams else [facts]


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3:07 min or 1:02:03 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{s:02} h"
    return f"{minutes}:{s:02} min" if minutes else f"{s} s"


def ladder_rows() -> Generator[str, Rung, None]:
    """First the names of columns, then for each rung that is sent a row."""
    form = "{:13} {:>8} {:>8} {:>9} {:>11} {:>9}  {}"
    row = form.format("rung", "val loss", "gain", "bits/byte", "parameters", "time", "writes")
    before = None
    while True:
        rung = yield row
        gain = "" if before is None else f"{before - rung.val_loss:+.4f}"
        before = rung.val_loss
        row = form.format(
            rung.name,
            f"{rung.val_loss:.4f}",
            gain,
            f"{rung.bits_per_byte:.4f}",
            f"{rung.parameters:,}",
            duration(rung.seconds),
            rung.sample,
        )


def explanation_tables(found: Explanation) -> list[Table]:
    """What a run takes: parameters, memory, operations, time."""

    def table(title: str, lines: Sequence[Line], shown: Callable[[float], str]) -> Table:
        drawn = Table(title, "by", "", box=None, padding=(0, 2, 0, 0), header_style="bold")
        drawn.columns[2].justify = "right"
        for line in lines:
            style = "bold" if line.total else ""
            drawn.add_row(line.part, line.formula, shown(line.value), style=style)
        return drawn

    return [
        table("parameters", found.parameters, lambda value: f"{value:,.0f}"),
        table("memory", found.memory, bytes_like(max(line.value for line in found.memory))),
        table("operations", found.operations, lambda value: scaled(value, "")),
        table("time", found.time, lambda s: duration(s) if s >= 60 else scaled(s, "s")),
    ]


def bytes_like(largest: float) -> Callable[[float], str]:
    """How to write bytes, in one unit for all of which none is more than this."""
    size, unit = (1e3, "kB") if largest < 1e6 else (1e6, "MB")
    return lambda value: f"{value / size:,.1f} {unit}"


def scaled(value: float, unit: str) -> str:
    """A number in the unit of which there are at least one and less than a thousand: 1.23 ms."""
    prefixes = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
    value = float(f"{value:.3g}")  # before its unit is chosen: 999,600 are 1 M
    size = next((size for size in prefixes if value >= size), 1.0)
    return f"{value / size:.3g} {prefixes[size]}{unit}".strip()
