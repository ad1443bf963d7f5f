"""Makes dataclasses from JSON; rejects unknown keys, and values that have the wrong type."""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Kinds = Mapping[str, type]
"""Dataclasses by name. If a field accepts several dataclasses, the key "kind" selects one."""


def parse_dataclass(cls: type[T], value: object, kinds: Kinds) -> T:
    """Make an instance of the dataclass `cls` from JSON; nested objects become nested dataclasses.

    If a key is unknown or missing, or its value has the wrong type, raises a ValueError that names
    this key.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {shorten(value)}")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := value.keys() - known.keys():
        raise ValueError(f"unknown key {shorten(min(unknown))}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"the key {name!r} is missing")
    return cls(**{name: _parse_value(hints[name], value[name], name, kinds) for name in value})


def _parse_value(hint: Any, value: Any, key: str, kinds: Kinds) -> object:
    """Convert the value of a key to the type `hint`. Raises ValueError if that is impossible."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if isinstance(value, dict) and all(map(is_dataclass, options)):
        value = dict(value)
        cls = options[0] if len(options) == 1 else kinds.get(str(value.pop("kind", None)))
        if cls is None or cls not in options:
            raise ValueError(f"{key}: its kind must be one of {', '.join(kinds)}")
        try:
            return parse_dataclass(cls, value, kinds)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    (hint,) = options if len(options) == 1 else (None,)
    if get_origin(hint) is Literal and isinstance(value, str) and value in get_args(hint):
        return value
    if get_origin(hint) is list and isinstance(value, list):
        return [_parse_value(get_args(hint)[0], item, key, kinds) for item in value]
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and type(value) in (int, float) and math.isfinite(number := _to_float(value)):
        return number
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise ValueError(f"{key} cannot be {shorten(value)}")


def convert_fields(config: object) -> None:
    """Convert the fields of a frozen dataclass, and of dataclasses in it, to their declared types.

    If the declared type requires this, an int becomes a float, a str becomes a Path, and a Path
    becomes a str. If a value has another type, raises a ValueError that names its field.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value) and isinstance(value, get_args(hint) or hint):
            convert_fields(value)
        else:
            value = str(value) if isinstance(value, Path) else value
            object.__setattr__(config, name, _parse_value(hint, value, name, {}))


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shorten(value: object) -> str:
    """Return the repr of a value, cut after 40 characters so that an error fits on one line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
