"""The repository contains text and pictures, and no packages, corpora or large weights."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BINARY = {".png", ".safetensors"}
LARGEST = 1_000_000
"""Bytes of a file."""


def list_files() -> list[Path]:
    """The files that git tracks, and new files that it does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    try:
        listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_files_are_small_and_contain_text_except_for_pictures_and_test_weights() -> None:
    for file in list_files():
        assert file.stat().st_size <= LARGEST, file
        if file.suffix in BINARY:
            assert file.suffix == ".png" or file.is_relative_to(ROOT / "tests"), file
        else:
            text = file.read_bytes().decode()  # fails if it is not UTF-8
            assert "\0" not in text, file
