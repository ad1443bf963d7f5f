"""Helpers that change files of a checkpoint and update the checksums, as an attacker would."""

import hashlib
import json
from pathlib import Path

from nanogpt.runs.reading import SUMS


def sign(directory: Path) -> None:
    """Write the file SHA256SUMS with checksums of the current files of a checkpoint."""
    files = sorted(file for file in directory.iterdir() if file.name != SUMS)
    sums = (f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    (directory / SUMS).write_text("".join(sums))


def change_json(file: Path, *keys: str, **changes: object) -> None:
    """Set values in the object of a JSON file, or in the nested object at the path `keys`."""
    content = json.loads(file.read_text())
    inner = content
    for key in keys:
        inner = inner[key]
    inner |= changes
    file.write_text(json.dumps(content))
    if (file.parent / SUMS).exists():
        sign(file.parent)
