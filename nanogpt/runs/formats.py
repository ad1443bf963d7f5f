"""Writes the format version into the JSON files of a run, and converts files of older formats.

run.json, config.json, training.json and trial.json begin with two keys:

    "format": 1            the format of the file
    "nanogpt": "0.1.0"     the version of nanogpt that wrote it

A file of an older format is converted when it is read. A file of a newer format, or with an unknown
key, is rejected. To rename or remove a key, append a function to MIGRATIONS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..models import KINDS
from ..system.files import damaged_error, read_json
from ..system.schema import parse_dataclass, shorten
from ..version import VERSION

T = TypeVar("T")


def _convert_0_to_1(name: str, content: dict[str, Any]) -> None:
    """Remove the version of nanogpt from "versions" in run.json; in format 1, the header has it."""
    if name == "run.json" and isinstance(versions := content.get("versions"), dict):
        versions.pop("nanogpt", None)


MIGRATIONS: tuple[Callable[[str, dict[str, Any]], None], ...] = (_convert_0_to_1,)
"""MIGRATIONS[n](name, content) changes the content of a file from format n to format n + 1.

The content comes from a file that may be damaged, so a migration must accept any JSON object.
"""

FORMAT = len(MIGRATIONS)
"""The format that this version of nanogpt writes."""


def add_header(content: dict[str, Any]) -> dict[str, Any]:
    """Add the header (the keys "format" and "nanogpt") to the content of a JSON file."""
    return {"format": FORMAT, "nanogpt": VERSION, **content}


def read_dataclass(file: Path, cls: type[T]) -> T:
    """Read an instance of `cls` from a JSON file of any format up to FORMAT. Raises UserError."""
    return parse_file(file, read_json(file), cls)


def parse_file(file: Path, content: dict[str, Any], cls: type[T]) -> T:
    """Convert the content of a JSON file to an instance of the dataclass `cls`.

    The content may have any format up to FORMAT. Raises UserError.
    """
    try:
        return parse_dataclass(cls, _convert(file, content), KINDS)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged_error(file, error) from None


def _convert(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a file to the current format, and remove its header.

    Raises UserError if the format is newer, and ValueError if the header is not valid.
    """
    body = dict(content)
    number = body.pop("format", 0)  # format 0 has no header
    if type(number) is not int or number < 0:
        raise ValueError(f"the value of 'format' cannot be {shorten(number)}")
    if number > FORMAT:
        version = body.get("nanogpt")
        writer = f"nanogpt {version[:40]}" if isinstance(version, str) else "a newer nanogpt"
        raise UserError(
            f"{file} has format {number}, written by {writer}, but nanogpt {VERSION} reads "
            f"formats up to {FORMAT}: use the version that wrote the file, or a later one"
        )
    if number > 0 and not isinstance(version := body.pop("nanogpt", None), str):
        raise ValueError(f"the value of 'nanogpt' cannot be {shorten(version)}")
    for migration in MIGRATIONS[number:]:
        migration(file.name, body)
    return body
