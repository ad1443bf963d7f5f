"""Dataclasses can be converted to JSON and back; a wrong key or value is an error."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from nanogpt.system.schema import parse_dataclass, shorten


@dataclass(frozen=True)
class Circle:
    radius: float

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"radius is {self.radius}: it must be 0 or more")


@dataclass(frozen=True)
class Square:
    side: int = 1


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square
    name: str = "none"
    file: Path | None = None
    colour: Literal["red", "blue"] = "red"
    filled: bool = False
    frame: Square = field(default_factory=Square)
    points: list[float] = field(default_factory=list)
    limit: int | None = None


KINDS = {"circle": Circle, "square": Square}


def test_a_dataclass_survives_a_round_trip() -> None:
    drawing = Drawing(Circle(0.5), "a", Path("b/c"), "blue", True, Square(3), [1.0, 2.5], 7)
    raw = {**asdict(drawing), "file": "b/c", "shape": {"kind": "circle", "radius": 0.5}}
    assert parse_dataclass(Drawing, json.loads(json.dumps(raw)), KINDS) == drawing


def test_a_field_with_a_default_may_be_missing() -> None:
    assert parse_dataclass(Drawing, {"shape": {"kind": "square"}}, KINDS) == Drawing(Square())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "green"}, "colour cannot be 'green'"),
        ({"size": 1}, "unknown key 'size'"),
        ({"name": 3}, "name cannot be 3"),
        ({"name": None}, "name cannot be None"),
        ({"filled": 1}, "filled cannot be 1"),
        ({"limit": True}, "limit cannot be True"),
        ({"limit": 2.0}, "limit cannot be 2.0"),
        ({"frame": {"side": "1"}}, "frame: side cannot be '1'"),
        ({"frame": {"sides": 1}}, "frame: unknown key 'sides'"),
        ({"frame": [1]}, r"frame cannot be \[1\]"),
        ({"points": [1.0, "2"]}, "points cannot be '2'"),
        ({"points": 1.0}, "points cannot be 1.0"),
        ({"shape": {"radius": 1}}, "shape: its kind must be one of circle, square"),
        ({"shape": {"kind": ["circle"]}}, "shape: its kind must be one of circle, square"),
        ({"shape": {"kind": "circle"}}, "shape: the key 'radius' is missing"),
        ({"shape": {"kind": "circle", "radius": 10**400}}, "shape: radius cannot be 1000"),
        ({"shape": {"kind": "circle", "radius": -1}}, r"shape: radius is -1\.0: it must be 0"),
        ({"file": 3}, "file cannot be 3"),
    ],
)
def test_the_key_of_a_wrong_value_is_named(change: dict[str, Any], says: str) -> None:
    raw = {"shape": {"kind": "square", "side": 1}} | change
    with pytest.raises(ValueError, match=says):
        parse_dataclass(Drawing, raw, KINDS)


def test_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an object, found \[\]"):
        parse_dataclass(Drawing, [], KINDS)


def test_a_long_value_is_shortened() -> None:
    assert shorten("ab") == "'ab'"
    assert len(shorten("x" * 1000)) < 50
