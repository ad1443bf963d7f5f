"""nanogpt data."""

import json
from dataclasses import asdict
from functools import partial

from rich.markup import escape
from rich.table import Table

from ..reports.survey import Survey, nats_to_bits
from ..text.glyphs import make_visible
from .arguments import DataArgs, parse_arguments


def survey_tables(found: Survey) -> list[Table]:
    """What a text is like, and its n-grams."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shown = " ".join(map(make_visible, found.alphabet[:200])) + (
        " …" if found.alphabet[200:] else ""
    )
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
        numbers = (
            f"{each.entropy:.4f}",
            f"{nats_to_bits(each.entropy):.4f}",
            f"{each.val_loss:.4f}",
        )
        ngrams.add_row(name, *numbers)
    return [facts, ngrams] if found.ngrams else [facts]


def data(args: list[str]) -> None:
    """show what a text is like, and what is to be beaten on it"""
    from rich.console import Console

    from ..reports.survey import survey_text
    from ..text import corpora
    from .progress import Bar

    options = parse_arguments(DataArgs(), args, "nanogpt data")
    with Bar(Console()) as bar:
        load = partial(corpora.load_corpus, column=options.column, separator=options.separator)
        found = survey_text(load(options.data, progress=bar.tell), bar.tell)
    if options.json:
        print(json.dumps(asdict(found)))
        return
    console = Console(highlight=False)
    for table in survey_tables(found):
        console.print(table)
        console.print()
