"""nanogpt data: show statistics of a text, and the losses of n-gram models."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Optional

from rich.table import Table

from ..errors import UserError, print_note
from ..reports.survey import Survey, nats_to_bits, survey_text
from ..text import corpora
from ..text.corpora import Corpus
from ..text.glyphs import make_visible
from ..text.kneser_ney import MAX_ORDER
from .arguments import parse_arguments
from .progress import Bar, PlainConsole
from .values import Flag, placeholder, positional


@dataclass(frozen=True)
class DataArgs:
    """Show statistics of a text, entropies of its n-grams, and validation losses of n-gram models.

    A model with a lower validation loss than the n-gram models has learned more than n-grams.
    """

    data: Annotated[str, positional, placeholder("[DATA]")] = "tinyshakespeare"
    """Corpus, file, directory, glob pattern or URL, as for --data of nanogpt train."""
    column: str = "text"
    """Column with the text, in datasets (hf:) and in .jsonl and .parquet files."""
    separator: str = "\n\n"
    """Text inserted between documents."""
    refresh: Flag = False
    """Download the text again, even if the cache has it."""
    save: Optional[Path] = None  # noqa: UP045  `Path | None` delays the start of tyro by 0.1 s
    """Also write the text to this file, which must not exist yet."""
    json: Flag = False
    """Print one JSON object instead of tables."""

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        return corpora.explain_unused(name, self.data)


def data(args: list[str]) -> None:
    """Print statistics of a text."""
    options = parse_arguments(DataArgs(), args, "nanogpt data")
    with Bar(PlainConsole()) as bar:
        if options.refresh:
            corpora.refresh_text(options.data, options.column, options.separator, bar.update)
        corpus = corpora.load_corpus(
            options.data,
            column=options.column,
            separator=options.separator,
            progress=bar.update,
        )
        if options.save:
            save_text(corpus, options.save)
        result = survey_text(corpus, bar.update)
    if options.json:
        print(json.dumps(asdict(result)))
        return
    console = PlainConsole()
    for table in make_survey_tables(result):
        console.print(table)
        console.print()


def make_survey_tables(survey: Survey) -> list[Table]:
    """Return a table of text statistics, and a table of n-grams if the text is long enough."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    characters = " ".join(map(make_visible, survey.alphabet[:200]))
    characters += " …" if survey.alphabet[200:] else ""
    rows = {
        "size": f"{survey.bytes:,} bytes, {survey.characters:,} characters, "
        f"{survey.lines:,} lines, {survey.words:,} words",
        "training": f"{survey.train:,} characters, the first 90%",
        "validation": f"{survey.val:,} characters, the last 10%",
        "alphabet": f"{len(survey.alphabet):,}: {characters}",
        "frequent words": ", ".join(f"{word} {count:,}" for word, count in survey.frequent),
    }
    for name, value in rows.items():
        facts.add_row(name, value)
    columns = ("nats per character", "entropy", "entropy in bits", "validation loss of n-grams")
    ngrams = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for each, name in zip(survey.ngrams, ("unigrams", "bigrams", "trigrams"), strict=False):
        ngrams.add_row(
            name, f"{each.entropy:.4f}", f"{nats_to_bits(each.entropy):.4f}", f"{each.val_loss:.4f}"
        )
    if survey.kneser_ney_loss is not None:
        ngrams.add_row(f"{MAX_ORDER}-grams, smoothed", "", "", f"{survey.kneser_ney_loss:.4f}")
    return [facts, ngrams] if survey.ngrams else [facts]


def save_text(corpus: Corpus, file: Path) -> None:
    """Write the text of a corpus to a new file in UTF-8. Raises UserError if that fails."""
    try:
        with file.open("x", encoding="utf-8", newline="") as opened:  # keeps all line endings
            try:
                opened.writelines(corpus.chunks())
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
