"""Matrix products in bfloat16 by cuBLASLt, with the fastest of its algorithms.

cuBLASLt is a library of NVIDIA. torch also uses it, or cuBLAS, but with an algorithm that it does
not measure. Here, the first product with new shapes measures up to 16 algorithms that cuBLASLt
proposes, and takes the fastest one. The library can also apply GELU to the result, or multiply it
by the gradient of GELU, before it writes the result to memory. This saves passes over memory
(docs/log/gpt2.md).

torch has no functions for this, so this module calls the library with ctypes. The constants and
structures are those of its header file, cublasLt.h. All products on a GPU share one buffer, so they
must follow each other: several threads or streams may use this module, but not at the same time.
"""

import ctypes
from contextlib import suppress
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..system.gpu import get_workspace_bytes

FLOAT32, BFLOAT16 = 0, 14  # cudaDataType
COMPUTE_32F = 68  # cublasComputeType_t
TRANSA, EPILOGUE, BIAS_POINTER, EPILOGUE_AUX_POINTER, EPILOGUE_AUX_LD = 3, 7, 8, 11, 12
"""Attributes of a product (cublasLtMatmulDescAttributes_t). "AUX" is the matrix z."""
MAX_WORKSPACE_BYTES = 1
"""A limit for the proposed algorithms (cublasLtMatmulPreferenceAttributes_t)."""
EPILOGUES = {"none": 1, "bias": 4, "gelu": 160, "gelu bias": 164, "gelu gradient": 192}
"""What the library does before it stores a result (cublasLtEpilogue_t)."""
ALIGNMENT = 256
"""The library expects that the address of each matrix is a multiple of this number of bytes."""


class Algorithm(ctypes.Structure):
    """An algorithm that the library proposes (cublasLtMatmulHeuristicResult_t)."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Failed(RuntimeError):
    """A function of the library failed."""


@cache
def load() -> ctypes.CDLL | None:
    """Return the library, which torch has already loaded, or None if torch has none."""
    try:
        return ctypes.CDLL(f"libcublasLt.so.{str(torch.version.cuda).split('.')[0]}")
    except OSError:
        return None


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library. Raises Failed."""
    if status := getattr(load(), name)(*arguments):
        raise Failed(f"{name}() of cuBLASLt failed with status {status}")


@cache
def prepare(device: torch.device) -> tuple[c_void_p, Tensor]:
    """Return a handle of the library for the current GPU, and memory for its algorithms."""
    handle = c_void_p()
    call("cublasLtCreate", byref(handle))
    return handle, torch.empty(get_workspace_bytes(device), dtype=torch.uint8, device=device)


class Matrices(NamedTuple):
    """The arguments of multiply() that are tensors."""

    a: Tensor
    b: Tensor
    out: Tensor
    bias: Tensor | None
    z: Tensor | None


class Product:
    """Products of matrices with the shapes and the device of an example.

    The library stores matrices column by column, and torch row by row. So for the library, each
    matrix is transposed, and it computes outᵀ = bᵀ aᵀ, with b as its first matrix.
    """

    def __init__(self, example: Matrices, kind: str, transpose_b: bool) -> None:
        self.handle, self.workspace = prepare(example.out.device)
        self.description, preference = c_void_p(), c_void_p()
        call("cublasLtMatmulDescCreate", byref(self.description), COMPUTE_32F, FLOAT32)
        self._set(TRANSA, c_int(transpose_b))
        self._set(EPILOGUE, c_int(EPILOGUES[kind]))
        if "gelu" in kind:
            self._set(EPILOGUE_AUX_LD, c_int64(example.out.shape[1]))
        self._set_addresses(example)  # the library proposes algorithms that suit their alignment
        self.layouts = []
        for matrix in (example.b, example.a, example.out):
            layout, (rows, columns) = c_void_p(), matrix.shape
            sizes = c_uint64(columns), c_uint64(rows), c_int64(columns)
            call("cublasLtMatrixLayoutCreate", byref(layout), BFLOAT16, *sizes)
            self.layouts.append(layout)
        call("cublasLtMatmulPreferenceCreate", byref(preference))
        limit = byref(c_uint64(self.workspace.numel())), c_size_t(8)
        call("cublasLtMatmulPreferenceSetAttribute", preference, MAX_WORKSPACE_BYTES, *limit)
        found, count = (Algorithm * 16)(), c_int()
        b_layout, a_layout, layout = self.layouts
        call(
            "cublasLtMatmulAlgoGetHeuristic",
            self.handle,
            self.description,
            *(b_layout, a_layout, layout, layout),
            preference,
            len(found),
            found,
            byref(count),
        )
        call("cublasLtMatmulPreferenceDestroy", preference)
        self.algorithms = [found[i] for i in range(count.value) if found[i].status == 0]

    def _set(self, attribute: int, value: Any) -> None:
        size = c_size_t(ctypes.sizeof(value))
        call("cublasLtMatmulDescSetAttribute", self.description, attribute, byref(value), size)

    def _set_addresses(self, matrices: Matrices) -> None:
        pointers = {BIAS_POINTER: matrices.bias, EPILOGUE_AUX_POINTER: matrices.z}
        for attribute, tensor in pointers.items():
            if tensor is not None:
                self._set(attribute, c_void_p(tensor.data_ptr()))

    def run(self, algorithm: Algorithm, matrices: Matrices) -> None:
        """Compute `out` and, if the kind is "gelu" or "gelu bias", z. Raises Failed."""
        self._set_addresses(matrices)
        a, b, out = (c_void_p(matrix.data_ptr()) for matrix in matrices[:3])
        b_layout, a_layout, layout = self.layouts
        call(
            "cublasLtMatmul",
            self.handle,
            self.description,
            byref(c_float(1)),
            *(b, b_layout),
            *(a, a_layout),
            byref(c_float(0)),
            *(out, layout),
            *(out, layout),
            byref(algorithm),
            *(c_void_p(self.workspace.data_ptr()), c_size_t(self.workspace.numel())),
            c_void_p(torch.cuda.current_stream(self.workspace.device).cuda_stream),
        )

    def choose(self, matrices: Matrices) -> None:
        """Keep only the fastest algorithm, if any works. This computes the product many times."""
        times: list[tuple[float, int]] = []
        for number, algorithm in enumerate(self.algorithms):
            with suppress(Failed):
                times.append((self._measure(algorithm, matrices), number))
        # Measure again, in turn, because the clock of the GPU changes.
        times = [(time + self._measure(self.algorithms[i], matrices), i) for time, i in times]
        self.algorithms = [self.algorithms[i] for _, i in sorted(times)[:1]]

    def _measure(self, algorithm: Algorithm, matrices: Matrices) -> float:
        """Return the milliseconds of five products."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.run(algorithm, matrices)
        start.record()
        for _ in range(5):
            self.run(algorithm, matrices)
        end.record()
        end.synchronize()
        time: float = start.elapsed_time(end)
        return time


products: dict[tuple[Any, ...], Product | None] = {}
"""The products of multiply(), or None if the library cannot compute a product."""


def multiply(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    kind: str = "none",
    *,
    transpose_b: bool = False,
    bias: Tensor | None = None,
    z: Tensor | None = None,
) -> bool:
    """Write the product of a (i, k) and b to `out` (i, j), on a GPU.

    b has the shape (k, j); if it is transposed before the product, (j, k). The result is

    - a b, if the kind is "none";
    - a b + bias, if it is "bias", where the bias has the shape (j,);
    - gelu(z), if it is "gelu", where z (i, j) becomes a b, or if it is "gelu bias", where z becomes
      a b + bias;
    - (a b) · gelu'(z), if it is "gelu gradient".

    Here, gelu is the tanh approximation. All tensors must be contiguous and in bfloat16. Returns
    false, and leaves `out` undefined, if the library cannot compute this product.
    """
    matrices = Matrices(a, b, out, bias, z)
    if not all(is_plain(matrix) for matrix in matrices if matrix is not None):
        return False
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (a.shape, b.shape, kind, transpose_b, out.device, deterministic)
    with torch.cuda.device_of(out):
        if key not in products:
            products[key] = make_product(matrices, kind, transpose_b, deterministic)
        product = products[key]
        while product and product.algorithms:
            with suppress(Failed):
                product.run(product.algorithms[0], matrices)
                return True
            del product.algorithms[0]
    return False


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is in bfloat16, contiguous and aligned."""
    is_aligned = tensor.data_ptr() % ALIGNMENT == 0
    return tensor.dtype == torch.bfloat16 and tensor.is_contiguous() and is_aligned


def make_product(
    example: Matrices, kind: str, transpose_b: bool, deterministic: bool
) -> Product | None:
    """Return a product for multiply(), or None if the library does not know such a product.

    Its first algorithm is the fastest one, or, without a measurement, the library's first proposal.
    """
    try:
        product = Product(example, kind, transpose_b)
        # A measurement can end differently in each run, and is not possible in a captured step.
        if not deterministic and not torch.cuda.is_current_stream_capturing():
            product.choose(example)
    except Failed:
        return None
    return product
