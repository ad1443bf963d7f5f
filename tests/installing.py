"""A helper that checks the pip commands of error messages without installing anything."""

import re
import shlex
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8"))


def assert_installs(message: str, module: str) -> None:
    """Assert that each pip command in a message allows the installed version of `module`."""
    commands = re.findall(r"pip install ((?:-e )?[^\s`,]+)", message)
    assert commands, message
    for command in commands:
        name = shlex.split(command)[-1]
        extra = name.removeprefix(".[").removesuffix("]")
        extras = PROJECT["project"]["optional-dependencies"]
        requirements = map(Requirement, extras[extra] if name.startswith(".[") else [name])
        found = {each.name: each.specifier for each in requirements}
        (distribution,) = found.keys() & {*packages_distributions()[module]}
        assert version(distribution) in found[distribution], command
