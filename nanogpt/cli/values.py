"""How the values of options are parsed, and marks for the fields of option dataclasses."""

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Optional, get_args

import tyro


def placeholder(text: str) -> Any:
    """Set the placeholder, such as [RUN], that the help shows for the value of a field."""
    return tyro.conf.arg(metavar=text)


def _make_value_error(value: str, requirement: str) -> ValueError:
    message = f"is {value!r}: it must be {requirement}"  # the caller puts the flag before it
    return ValueError(message)


def _parse_optional_run(values: list[str]) -> str:
    if len(values) > 1:
        raise _make_value_error(" ".join(values), "one run")
    return values[0] if values else ""


def _parse_runs(values: list[str]) -> list[Path]:
    if not values:
        raise ValueError("has no value: name one or more runs, or leave the option out")
    return [Path(value) for value in values]


positional: Any = tyro.conf.Positional
"""Marks a field that is given by its position, without a flag."""
flat = tyro.conf.arg(name="")
"""Marks a nested dataclass whose options have no prefix."""
OptionalString = Optional[str]  # noqa: UP045  `str | None` delays the start of tyro by 0.1 s
Run = Annotated[OptionalString, positional, placeholder("[RUN]")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
OptionalRun = Annotated[
    OptionalString,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[RUN]",
        instance_from_str=_parse_optional_run,
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: ["None"] if value is None else [value],
    ),
]
"""An option whose value is optional: None if the option is absent, "" if it has no value."""

_NUMBERS: dict[type, str] = {int: "an integer", float: "a number"}
REGISTRY = tyro.constructors.ConstructorRegistry()
"""The parsers below, for tyro.cli()."""


@REGISTRY.primitive_rule
def _make_number_spec(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Return a parser for numbers (int, float) and optional numbers; return None for other types.

    This parser replaces tyro's own parser, whose error messages have several lines.
    """
    kinds = set(get_args(info.type) or (info.type,))
    is_optional = NoneType in kinds
    kind = next(iter(kinds - {NoneType}), None)
    if len(kinds - {NoneType}) != 1 or kind not in _NUMBERS:
        return None
    accepted = (int, kind, NoneType) if is_optional else (int, kind)
    description = _NUMBERS[kind] + (" or None" if is_optional else "")

    def parse(values: list[str]) -> object:
        if is_optional and values[0] == "None":
            return None
        try:
            number = kind(values[0])
        except ValueError:
            raise _make_value_error(values[0], description) from None
        if not -(2**63) < number < 2**63:  # the comparison is also false for NaN
            limits = f"{_NUMBERS[kind]} between -2**63 and 2**63"
            raise _make_value_error(values[0], limits + (" or None" if is_optional else ""))
        return number

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, accepted),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _make_runs_spec(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Return a parser for several runs after one option; return None for other types."""
    if info.type != list[Path]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[RUN ...]",
        instance_from_str=_parse_runs,
        is_instance=lambda value: isinstance(value, list),
        str_from_instance=lambda runs: [str(run) for run in runs],
    )
