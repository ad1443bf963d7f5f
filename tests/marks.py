"""A mark for single values of a parametrized test."""

from typing import Any

import pytest


def slow(value: object) -> Any:
    """Mark a value of a parametrized test, so that it is tested only with `-m slow`."""
    return pytest.param(value, marks=pytest.mark.slow)
