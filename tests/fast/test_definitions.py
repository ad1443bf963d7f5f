"""The definitions that fast code repeats are unchanged, and a changed definition is noticed."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanogpt.fast.definitions import DIGESTS, are_unchanged, compute_digest
from nanogpt.models import gpt


def test_the_digests_are_those_of_the_definitions() -> None:
    """If this fails, change the fast code first, and run its tests on a GPU."""
    found = {definition: compute_digest(definition) for definition in DIGESTS}
    assert found == DIGESTS
    assert are_unchanged(*DIGESTS)


def import_copy(tmp_path: Path, name: str, old: str, new: str) -> Any:
    """Import a copy of models/gpt.py with another line."""
    source = inspect.getsource(gpt)
    assert source.count(old) == 1
    file = tmp_path / f"{name}.py"
    file.write_text(source.replace(old, new).replace("from .", "from nanogpt.models."), "utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


CHANGES = [
    ("Block", "x = x + self.feed_forward(self.norm2(x))", "x = x + self.feed_forward(x)"),
    ("CausalSelfAttention", "nn.Linear(C, C, bias)", "nn.Linear(C, C, True)"),
    ("FeedForward", 'nn.GELU(approximate="tanh")', "nn.ReLU()"),
]


@pytest.mark.parametrize(("name", "old", "new"), CHANGES)
def test_a_changed_definition_is_noticed(tmp_path: Path, name: str, old: str, new: str) -> None:
    copy = import_copy(tmp_path, f"changed_{name}", old, new)
    names = ["Block", "CausalSelfAttention", "FeedForward"]
    changed = [n for n in names if compute_digest(getattr(copy, n)) != DIGESTS[getattr(gpt, n)]]
    assert changed == [name]


def test_comments_and_docstrings_do_not_matter(tmp_path: Path) -> None:
    old = '"""Map the final residual stream (B, T, C) to logits (B, T, V)."""'
    copy = import_copy(tmp_path, "commented", old, '"""Other words."""\n        # A comment.\n')
    assert compute_digest(copy.GPT.unembed) == DIGESTS[gpt.GPT.unembed]


def test_only_listed_definitions_are_unchanged() -> None:
    class Own(gpt.GPT):
        def unembed(self, x: Any) -> Any:
            return super().unembed(x)

    assert not are_unchanged(Own.unembed)
    assert not are_unchanged(gpt.GPT.unembed, Own.unembed)
    assert not are_unchanged(eval("lambda x: x"))  # there is no source code
