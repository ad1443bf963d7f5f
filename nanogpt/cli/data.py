"""nanogpt data."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..errors import UserError, print_note
from ..reports.survey import Survey, bits
from ..text.corpora import Corpus
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
        numbers = (f"{each.entropy:.4f}", f"{bits(each.entropy):.4f}", f"{each.val_loss:.4f}")
        ngrams.add_row(name, *numbers)
    return [facts, ngrams] if found.ngrams else [facts]


def data(args: list[str]) -> None:
    """show what a text is like, and what is to be beaten on it"""
    from rich.console import Console

    from ..reports.survey import survey
    from ..text import corpora
    from .progress import Bar

    options = parse_arguments(DataArgs(), args, "nanogpt data")
    with Bar(Console()) as bar:
        load = partial(corpora.load_corpus, column=options.column, separator=options.separator)
        corpus = load(options.data, progress=bar.tell)
        if options.save:
            save_text(corpus, options.save)
        found = survey(corpus, bar.tell)
    if options.json:
        print(json.dumps(asdict(found)))
        return
    console = Console(highlight=False)
    for table in survey_tables(found):
        console.print(table)
        console.print()


def save_text(corpus: Corpus, file: Path) -> None:
    """Write the text of a corpus to a new file in UTF-8. Raises UserError if the file exists."""
    try:
        with file.open("x", encoding="utf-8", newline="") as opened:  # line endings stay the same
            try:
                opened.writelines(corpus.pieces())
            except BaseException:
                opened.close()  # Windows cannot delete an open file
                file.unlink()
                raise
    except FileExistsError:
        raise UserError(
            f"{file} already exists: name another file with --save, or delete it first"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror}; name another file with --save"
        ) from None
    print_note(f"the text is in {file}")
