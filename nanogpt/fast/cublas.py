"""Matrix products in bfloat16 by cuBLASLt, with the fastest of its algorithms.

cuBLASLt is a library of NVIDIA, which torch uses, too. For each product, the library proposes
several algorithms. torch takes the first one. Here, the first product with new shapes measures all
of them, and takes the fastest. The library can also apply GELU to the result, or multiply it by the
gradient of GELU, before it writes the result to memory. This saves passes over memory
(docs/log/gpt2.md).

torch has no functions for this, so this module calls the library with ctypes. The constants and
structures are those of its header file, cublasLt.h.
"""

import ctypes
from contextlib import suppress
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

FLOAT32, BFLOAT16 = 0, 14  # cudaDataType
SUMS_IN_FLOAT32 = 68  # cublasComputeType_t
TRANSPOSE, EPILOGUE, BIAS, Z, COLUMNS_OF_Z = 3, 7, 8, 11, 12
"""Attributes of a product (cublasLtMatmulDescAttributes_t)."""
EPILOGUES = {"none": 1, "bias": 4, "gelu": 160, "gelu bias": 164, "gelu gradient": 192}
"""What the library does before it stores a result (cublasLtEpilogue_t)."""
WORKSPACE = 32 << 20
"""Bytes of memory that an algorithm may use."""


class Algorithm(ctypes.Structure):
    """An algorithm that the library proposes (cublasLtMatmulHeuristicResult_t)."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@cache
def load() -> ctypes.CDLL | None:
    """Return the library that belongs to torch, or None if there is none."""
    try:
        return ctypes.CDLL(f"libcublasLt.so.{str(torch.version.cuda).split('.')[0]}")
    except OSError:
        return None


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library. Raises RuntimeError if it fails."""
    if status := getattr(load(), name)(*arguments):
        raise RuntimeError(f"{name}() of cuBLASLt failed with status {status}")


@cache
def prepare(device: torch.device) -> tuple[c_void_p, Tensor]:
    """Return a handle of the library for a GPU, and memory for its algorithms."""
    handle = c_void_p()
    with torch.cuda.device(device):
        call("cublasLtCreate", byref(handle))
    return handle, torch.empty(WORKSPACE, dtype=torch.uint8, device=device)


class Product:
    """Products of matrices with the shapes and the device of an example.

    The library stores matrices column by column, and torch row by row. So for the library, each
    matrix is transposed, and it computes outᵀ = bᵀ aᵀ, with b as its first matrix.
    """

    def __init__(self, a: Tensor, b: Tensor, out: Tensor, kind: str, transpose_b: bool) -> None:
        self.handle, self.workspace = prepare(out.device)
        self.description, preference = c_void_p(), c_void_p()
        call("cublasLtMatmulDescCreate", byref(self.description), SUMS_IN_FLOAT32, FLOAT32)
        self._set(TRANSPOSE, c_int(transpose_b))
        self._set(EPILOGUE, c_int(EPILOGUES[kind]))
        if "gelu" in kind:
            self._set(COLUMNS_OF_Z, c_int64(out.shape[1]))
        self.layouts = []
        for matrix in (b, a, out):
            layout, (rows, columns) = c_void_p(), matrix.shape
            sizes = c_uint64(columns), c_uint64(rows), c_int64(columns)
            call("cublasLtMatrixLayoutCreate", byref(layout), BFLOAT16, *sizes)
            self.layouts.append(layout)
        call("cublasLtMatmulPreferenceCreate", byref(preference))
        limit = c_uint64(WORKSPACE)
        call("cublasLtMatmulPreferenceSetAttribute", preference, 1, byref(limit), c_size_t(8))
        found, count = (Algorithm * 16)(), c_int()
        b_layout, a_layout, layout = self.layouts
        with suppress(RuntimeError):  # it fails if it has no algorithm
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
        self.algorithms = [found[i] for i in range(count.value) if found[i].status == 0]

    def _set(self, attribute: int, value: Any) -> None:
        size = c_size_t(ctypes.sizeof(value))
        call("cublasLtMatmulDescSetAttribute", self.description, attribute, byref(value), size)

    def run(
        self, algorithm: Algorithm, a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None,
        z: Tensor | None,
    ) -> None:  # fmt: skip
        """Compute `out`."""
        for attribute, tensor in ((BIAS, bias), (Z, z)):
            if tensor is not None:
                self._set(attribute, c_void_p(tensor.data_ptr()))
        one, zero, result = c_float(1), c_float(0), c_void_p(out.data_ptr())
        b_layout, a_layout, layout = self.layouts
        call(
            "cublasLtMatmul", self.handle, self.description,
            byref(one), c_void_p(b.data_ptr()), b_layout, c_void_p(a.data_ptr()), a_layout,
            byref(zero), result, layout, result, layout, byref(algorithm),
            c_void_p(self.workspace.data_ptr()), c_size_t(WORKSPACE),
            c_void_p(torch.cuda.current_stream(out.device).cuda_stream),
        )  # fmt: skip

    def choose(self, *arguments: Tensor | None) -> None:
        """Remove all algorithms except the fastest one."""
        times = [0.0] * len(self.algorithms)
        for _ in range(3):  # in turn, because the clock of the GPU changes
            for number, algorithm in enumerate(self.algorithms):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.run(algorithm, *arguments)  # type: ignore[arg-type]
                start.record()
                for _ in range(4):
                    self.run(algorithm, *arguments)  # type: ignore[arg-type]
                end.record()
                end.synchronize()
                times[number] += start.elapsed_time(end)
        self.algorithms = [self.algorithms[times.index(min(times))]]


products: dict[tuple[Any, ...], Product] = {}


def multiply(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    kind: str = "none",
    transpose_b: bool = False,
    bias: Tensor | None = None,
    z: Tensor | None = None,
) -> bool:
    """Write the product of a (i, k) and b to `out` (i, j), all of them in bfloat16 and on one GPU.

    b has the shape (k, j); if it is transposed before the product, (j, k). The result is

    - a b, if the kind is "none";
    - a b + bias, if it is "bias";
    - gelu(z) with z = a b, if it is "gelu", and with z = a b + bias, if it is "gelu bias"; z is
      stored, too;
    - (a b) · gelu'(z), if it is "gelu gradient".

    Here, gelu is the tanh approximation. Returns false, and computes nothing, if the library has no
    algorithm for this product.
    """
    # With the same algorithm in each run, the results are identical.
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (a.shape, b.shape, kind, transpose_b, out.device, deterministic)
    with torch.cuda.device_of(out):
        product = products.get(key)
        if product is None:
            product = Product(a, b, out, kind, transpose_b)
            if not torch.cuda.is_current_stream_capturing():  # a capture cannot measure
                if product.algorithms and not deterministic:
                    product.choose(a, b, out, bias, z)
                products[key] = product
        if product.algorithms:
            product.run(product.algorithms[0], a, b, out, bias, z)
    return bool(product.algorithms)
