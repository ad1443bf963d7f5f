"""Dataclasses out of JSON, strictly: every key known, every value of its field's type."""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


Kinds = Mapping[str, type]
"""Names of dataclasses: where a field may be one of several, the key "kind" says which."""


def parse_dataclass(cls: type[T], value: object, kinds: Kinds) -> T:
    """The dataclass cls from a JSON object; nested dataclasses from nested objects.

    Raises ValueError that names the key.
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
    return cls(**{name: _as(hints[name], value[name], name, kinds) for name in value})


def _as(hint: Any, value: Any, key: str, kinds: Kinds) -> object:
    """The value, if it is of the type that hint says."""
    arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    if isinstance(value, dict) and all(map(is_dataclass, arms)):
        value = dict(value)
        arm = arms[0] if len(arms) == 1 else kinds.get(str(value.pop("kind", None)))
        if arm is None or arm not in arms:
            raise ValueError(f"{key}: its kind must be one of {', '.join(kinds)}")
        try:
            return parse_dataclass(arm, value, kinds)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    (hint,) = arms if len(arms) == 1 else (None,)
    if get_origin(hint) is Literal and isinstance(value, str) and value in get_args(hint):
        return value
    if get_origin(hint) is list and isinstance(value, list):
        return [_as(get_args(hint)[0], item, key, kinds) for item in value]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float) and math.isfinite(number := _float(value)):
        return number
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise ValueError(f"{key} cannot be {shorten(value)}")


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shorten(value: object) -> str:
    """A value of a stranger's, cut to fit into a line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
