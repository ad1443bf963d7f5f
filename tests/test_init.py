"""The public names of the package, listed in nanogpt.__all__."""

import importlib

import pytest

import nanogpt


def test_every_public_name_exists() -> None:
    for name in nanogpt.__all__:
        assert getattr(nanogpt, name) is not None


def test_no_public_name_hides_a_module() -> None:
    for name in nanogpt.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"nanogpt.{name}")


def test_an_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nanogpt' has no attribute 'GTP'"):
        _ = nanogpt.GTP


def test_dir_lists_the_public_names() -> None:
    assert set(nanogpt.__all__) <= set(dir(nanogpt))
