"""A mark for some values of a parametrized test."""

from typing import Any

import pytest


def slow(value: object) -> Any:
    """A value that is tested only with `-m slow`."""
    return pytest.param(value, marks=pytest.mark.slow)
