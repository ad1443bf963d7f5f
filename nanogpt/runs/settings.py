"""Reads the settings of a run from a JSON file: the run.json of a run, or a part of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models import KINDS
from ..system.files import advise, read_json
from ..system.schema import parse_dataclass
from .config import RunConfig
from .formats import parse_file
from .run import Description


def apply_settings(config: RunConfig, file: Path) -> RunConfig:
    """Return `config` with the settings in a JSON file, except for the directory of the run.

    The file contains a run.json, or an object with some settings, such as
    {"train": {"steps": 100}}. Raises UserError.
    """
    with advise("name a run.json, or a file with some of its settings"):
        settings: Any = read_json(file)
        if "config" in settings:
            settings = parse_file(file, settings, Description).config.to_json()
    settings.pop("out", None)
    if isinstance(model := settings.get("model"), dict):
        model.pop("vocab_size", None)  # the tokenizer determines it
    merged = _merge(config.to_json(), settings)
    del merged["out"]
    try:
        return replace(parse_dataclass(RunConfig, merged, KINDS), out=config.out)
    except ValueError as error:
        raise UserError(
            f"{file} has no valid settings ({error}): use a run.json, or some of its settings, as "
            f'in {{"train": {{"steps": 100}}}}'
        ) from None


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return `old` with the values of `new`; nested objects of the same kind are merged, too."""
    merged = dict(old)
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            is_same_kind = value.get("kind", before.get("kind")) == before.get("kind")
            value = _merge(before, value) if is_same_kind else value
        merged[name] = value
    return merged
