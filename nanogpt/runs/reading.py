"""Reads the files of a checkpoint directory strictly."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..models import KINDS
from ..system.files import (
    compute_sha256,
    damaged_error,
    parse_json,
    read_limited,
    require_regular_file,
    resolve_interrupted_swap,
)
from ..system.schema import parse_dataclass, shorten
from ..text.tokenizers import MAX_TOKENIZER_BYTES

T = TypeVar("T")


SUMS = "SHA256SUMS"


DTYPES = {"F32": torch.float32, "U8": torch.uint8}
"""The types of the tensors in our files."""


HEADER_LIMIT = 1 << 20
"""Bytes of a safetensors header: room for thousands of tensors."""


def _steady(directory: Path, read: Callable[[Path], T]) -> T:
    """What read gives, again if a training replaced the directory while it was read."""
    while True:
        found = resolve_interrupted_swap(directory)
        before = _identity(found)
        try:
            return read(found)
        except UserError:
            if _identity(resolve_interrupted_swap(directory)) == before:
                raise


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Files:
    """The files of a checkpoint directory, each compared with SHA256SUMS as it is read.

    Whatever is missing or damaged is a UserError that names the file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        lines = read_limited(self._file(SUMS), limit=4096).decode("ascii", "replace").splitlines()
        self.sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def damaged(self, name: str, reason: object) -> UserError:
        """The error to raise for a file."""
        return damaged_error(self.directory / name, reason)

    def _file(self, name: str) -> Path:
        return require_regular_file(self.directory, self.directory / name)

    def _compare(self, name: str, digest: str) -> None:
        if self.sums.get(name) != digest:
            raise self.damaged(name, f"its SHA-256 is not the one in {SUMS}")

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        raw = read_limited(self._file(name), MAX_TOKENIZER_BYTES)
        self._compare(name, hashlib.sha256(raw).hexdigest())
        return parse_json(raw, self.directory / name)

    def parse(self, name: str, cls: type[T]) -> T:
        """The dataclass in a file."""
        try:
            return parse_dataclass(cls, self.json(name), KINDS)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, error) from None

    def _open(self, name: str) -> Any:
        """A safetensors file: its header read, its tensors still on the disk."""
        file = self._file(name)
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
            if length > HEADER_LIMIT:
                raise self.damaged(name, f"a header of {length:,} bytes")
            return safe_open(file, framework="pt")
        except OSError as error:
            raise self.damaged(name, error.strerror or error) from None
        except SafetensorError as error:
            raise self.damaged(name, error) from None

    def count(self, name: str) -> int:
        """How many tensors a file holds."""
        with self._open(name) as opened:
            return len(opened.keys())

    def tensors(
        self,
        name: str,
        expected: Mapping[str, Tensor],
        optional: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The tensors in a file, if they have exactly the names, shapes and types expected."""
        with self._open(name) as opened:
            names = set(opened.keys())
            if missing := expected.keys() - names:
                raise self.damaged(name, f"{min(missing)} is missing")
            if unknown := names - expected.keys() - set(optional):
                raise self.damaged(name, f"unknown tensor {shorten(min(unknown))}")
            for tensor in names:
                found = opened.get_slice(tensor)
                shape, dtype = tuple(found.get_shape()), found.get_dtype()
                if tensor not in expected:
                    if dtype != "U8" or math.prod(shape) > 1 << 16:
                        raise self.damaged(name, f"{tensor} is {dtype} {shape}, not a few bytes")
                    continue
                like = expected[tensor]
                if shape != tuple(like.shape) or DTYPES.get(dtype) != like.dtype:
                    raise self.damaged(
                        name, f"{tensor} is {dtype} {shape}, not {like.dtype} {tuple(like.shape)}"
                    )
            # Sizes are right, so that this takes no longer and no more memory than it should.
            self._compare(name, compute_sha256(self.directory / name))
            return {tensor: opened.get_tensor(tensor) for tensor in names}
