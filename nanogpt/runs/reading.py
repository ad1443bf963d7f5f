"""Reads and verifies the files of a checkpoint directory.

The files may come from an untrusted source. So sizes are compared with limits, and shapes with the
configuration, before memory is allocated. The checksum of each file is compared with SHA256SUMS
before the contents of the file are used.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..system.files import (
    compute_sha256,
    damaged_error,
    parse_json,
    read_limited,
    require_regular_file,
    resolve_interrupted_swap,
    unreadable_error,
)
from ..system.schema import shorten
from ..text.readers import require_encodable
from ..text.tokenizers import MAX_TOKENIZER_BYTES
from .formats import parse_file

T = TypeVar("T")

SUMS = "SHA256SUMS"
"""The file with the checksums of all other files of a checkpoint."""

DTYPES = {"F32": torch.float32, "U8": torch.uint8}
"""The types that a tensor in a checkpoint may have, by the name of the type in safetensors."""

HEADER_LIMIT = 1 << 20
"""Maximum bytes of a safetensors header: enough for thousands of tensors."""


def read_consistently(directory: Path, read: Callable[[Path], T]) -> T:
    """Return read(directory); repeat a call that fails because training replaced the directory."""
    while True:
        current = resolve_interrupted_swap(directory)
        identity = _get_identity(current)
        try:
            return read(current)
        except UserError:
            if _get_identity(resolve_interrupted_swap(directory)) == identity:
                raise


def _get_identity(directory: Path) -> tuple[int, int, int] | None:
    """Return numbers that change when the directory is replaced; None if it does not exist.

    The device and inode numbers are not enough, because file systems reuse inode numbers.
    """
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


class CheckpointFiles:
    """The files of a checkpoint directory, each compared with SHA256SUMS when it is read.

    If a file is missing or damaged, reading it raises a UserError that names the file.
    """

    def __init__(self, directory: Path) -> None:
        require_encodable(directory)  # the library safetensors needs a path in UTF-8
        self.directory = directory
        lines = read_limited(self._find(SUMS), limit=4096).decode("ascii", "replace").splitlines()
        self.checksums = {
            name: digest for digest, _, name in (line.partition("  ") for line in lines)
        }

    def damaged(self, name: str, reason: object) -> UserError:
        """Return the error to raise for a damaged file."""
        return damaged_error(self.directory / name, reason)

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file."""
        raw = read_limited(self._find(name), MAX_TOKENIZER_BYTES)
        self._check(name, hashlib.sha256(raw).hexdigest())
        return parse_json(raw, self.directory / name)

    def parse(self, name: str, cls: type[T]) -> T:
        """Return the content of a JSON file as the dataclass `cls`; old formats are accepted."""
        return parse_file(self.directory / name, self.json(name), cls)

    def count_tensors(self, name: str) -> int:
        """Return the number of tensors in a safetensors file."""
        with self._open(name) as file:
            return len(file.keys())

    def tensors(
        self,
        name: str,
        expected: Mapping[str, Tensor],
        optional: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Return the tensors in a safetensors file; each name must be in `expected` or `optional`.

        Each tensor of `expected` must be present, with the same shape and type. An optional
        tensor may be absent; if it is present, it must have type uint8 and at most 64 KiB.
        """
        with self._open(name) as file:
            names = set(file.keys())
            if missing := expected.keys() - names:
                raise self.damaged(name, f"{min(missing)} is missing")
            if unknown := names - expected.keys() - set(optional):
                raise self.damaged(name, f"unknown tensor {shorten(min(unknown))}")
            for tensor in names:
                header = file.get_slice(tensor)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if tensor not in expected:
                    if dtype != "U8" or math.prod(shape) > 1 << 16:
                        raise self.damaged(
                            name, f"{tensor} is {dtype} {shape}, not a small uint8 tensor"
                        )
                    continue
                like = expected[tensor]
                if shape != tuple(like.shape) or DTYPES.get(dtype) != like.dtype:
                    raise self.damaged(
                        name, f"{tensor} is {dtype} {shape}, not {like.dtype} {tuple(like.shape)}"
                    )
            # The sizes are right, so reading the file takes no more time and memory than expected.
            self._check(name, compute_sha256(self.directory / name))
            return {tensor: file.get_tensor(tensor) for tensor in names}

    def _find(self, name: str) -> Path:
        """Return the path of a file, which must be a regular file inside the directory."""
        return require_regular_file(self.directory, self.directory / name)

    def _check(self, name: str, digest: str) -> None:
        """Raise UserError if the SHA-256 of a file differs from the value in SHA256SUMS."""
        if self.checksums.get(name) != digest:
            raise self.damaged(name, f"its SHA-256 is not the one in {SUMS}")

    def _open(self, name: str) -> Any:
        """Open a safetensors file; this reads only its header."""
        return open_safetensors(self._find(name))


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file; this reads only its header. Raises UserError."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise damaged_error(path, f"its header has {length:,} bytes")
        return safe_open(path, framework="pt")
    except OSError as error:
        raise unreadable_error(path, error) from None
    except SafetensorError as error:
        raise damaged_error(path, error) from None
    except RuntimeError as error:  # torch maps the file into memory
        if "Cannot allocate memory" in str(error):
            raise MemoryError(str(error)) from None
        raise
