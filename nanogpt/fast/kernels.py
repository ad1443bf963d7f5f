"""GPU kernels for decoding, written in Triton: linear layers and attention for a few tokens.

In a decoding step, each block computes on one vector of each text, with about 15 short operations.
fuse() lets the blocks of a model use two kernels instead, with five or six launches for a block.
The results are those of models/gpt.py and models/modern.py, except for rounding
(docs/log/generation.md).

Dimensions: B texts, C channels, H heads, D = C / H channels of a head, S slots of the cache; K
inputs and N outputs of a linear layer.
"""

# Triton compiles the functions with the decorator `jit`, so they have no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import GPT, Model, Modern, gpt, modern
from ..models.cache import Cache
from .definitions import Definition, are_unchanged

RMS_EPS = torch.finfo(torch.float32).eps
"""The eps that modern.norm() uses, also in half precision."""
OF_GPT: tuple[Definition, ...] = (gpt.CausalSelfAttention, gpt.FeedForward, gpt.Block)
"""The definitions that decode_gpt() repeats."""
OF_MODERN: tuple[Definition, ...] = (modern.norm, modern.rotate, modern.Attention)
OF_MODERN += (modern.SquaredReLU, modern.FeedForward, modern.Block)
"""The definitions that decode_modern() repeats."""


@triton.jit
def _linear(
    X, W, BIAS, GAIN, SHIFT, ADD, OUT, B, N, eps,
    K: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write ADD + activation(norm(X) Wᵀ + BIAS) to OUT (B, N), for X (B, K) and W (N, K).

    Each instance computes COLUMNS outputs of ROWS rows, and reads STEP inputs at a time.
    """
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, STEP)
    mean = tl.zeros((ROWS, 1), tl.float32)
    r = mean + 1
    if NORM != "none":
        total = tl.zeros((ROWS, STEP), tl.float32)
        if NORM == "layer":
            for first in tl.static_range(0, K, STEP):
                inside = (row < B) & (first + k < K)[None, :]
                total += tl.load(X + row * K + first + k[None, :], inside, 0.0).to(tl.float32)
            mean = tl.sum(total, 1)[:, None] / K
            total = tl.zeros((ROWS, STEP), tl.float32)
        for first in tl.static_range(0, K, STEP):
            inside = (row < B) & (first + k < K)[None, :]
            centred = tl.load(X + row * K + first + k[None, :], inside, 0.0).to(tl.float32) - mean
            total += tl.where(inside, centred * centred, 0.0)
        r = tl.rsqrt(tl.sum(total, 1)[:, None] / K + eps)
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((COLUMNS, STEP), tl.float32)
    for first in tl.range(0, K, STEP):
        is_k = first + k < K
        inside = (row < B) & is_k[None, :]
        is_weight = (column < N)[:, None] & is_k[None, :]
        w = tl.load(W + column[:, None] * K + first + k[None, :], is_weight, 0.0)
        x = tl.load(X + row * K + first + k[None, :], inside, 0.0)
        if NORM != "none":
            n = (x.to(tl.float32) - mean) * r
            if GAIN is not None:
                n *= tl.load(GAIN + first + k, is_k, 0.0).to(tl.float32)[None, :]
            if SHIFT is not None:
                n += tl.load(SHIFT + first + k, is_k, 0.0).to(tl.float32)[None, :]
            x = tl.where(inside, n, 0.0).to(w.dtype)
        if ROWS == 1:  # tensor cores need at least 16 rows
            products += w.to(tl.float32) * x.to(tl.float32)
        else:
            result = tl.dot(x, tl.trans(w), result, input_precision="ieee")
    if ROWS == 1:
        result = tl.sum(products, 1)[None, :]
    if BIAS is not None:
        result += tl.load(BIAS + column, column < N, 0.0).to(tl.float32)[None, :]
    if ACTIVATION == "gelu":  # the approximation with tanh; 0.797... is √(2 / π)
        u = 0.7978845608028654 * (result + 0.044715 * result * result * result)
        result *= 1 - 1 / (1 + tl.exp(2 * u))  # 0.5 · (1 + tanh(u))
    if ACTIVATION == "relu2":
        result = tl.maximum(result, 0.0)
        result *= result
    inside = (row < B) & (column < N)[None, :]
    place = row * N + column[None, :]
    if ADD is not None:
        result = result.to(W.dtype.element_ty).to(tl.float32)
        result += tl.load(ADD + place, inside, 0.0).to(tl.float32)
    tl.store(OUT + place, result, inside)


def linear(
    x: Tensor,
    layer: nn.Linear,
    norm: nn.LayerNorm | None = None,
    rms_norm: bool = False,
    activation: Literal["none", "gelu", "relu2"] = "none",
    add: Tensor | None = None,
) -> Tensor:
    """Return add + activation(layer(norm(x))) for x (B, 1, K): shape (B, 1, N).

    The norm is a layer norm, or modern.norm() if `rms_norm` is true, or left out.
    """
    (B, _, K), N = x.shape, layer.out_features
    out = x.new_empty(B, 1, N)
    # The fastest of the sizes that we tried for one row of 768 inputs, and for 64 rows of 384.
    rows, columns, step = (1, 2, 1024) if B == 1 else (16, 32, 1024 // x.element_size())
    _linear[triton.cdiv(N, columns), triton.cdiv(B, rows)](
        x,
        layer.weight,
        layer.bias,
        norm.weight if norm else None,
        norm.bias if norm else None,
        add,
        out,
        B,
        N,
        norm.eps if norm else RMS_EPS,
        K=K,
        NORM="layer" if norm else "rms" if rms_norm else "none",
        ACTIVATION=activation,
        ROWS=rows,
        COLUMNS=columns,
        STEP=min(step, max(16, triton.next_power_of_2(K))),
        num_warps=4,
        num_stages=2,
    )
    return out


@triton.jit
def _attend(
    QUERIES, KEYS, VALUES, MEMORY, LENGTHS, COS, SIN, OUT,
    qk_stride, v_stride, H, S, plane, scale, eps,
    D: tl.constexpr, ROTATE: tl.constexpr, HALF: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Compute attention of one new token of a text in one head; store its key and its value.

    Vectors are loaded as two halves, because a rotation combines their channels d and d + D / 2.
    """
    text, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HALF)
    is_d = d < D // 2
    qk_at = text * qk_stride + head * D + d
    v_at = text * v_stride + head * D + d
    qa = tl.load(QUERIES + qk_at, is_d, 0.0).to(tl.float32)
    qb = tl.load(QUERIES + qk_at + D // 2, is_d, 0.0).to(tl.float32)
    ka = tl.load(KEYS + qk_at, is_d, 0.0).to(tl.float32)
    kb = tl.load(KEYS + qk_at + D // 2, is_d, 0.0).to(tl.float32)
    va = tl.load(VALUES + v_at, is_d, 0.0).to(tl.float32)
    vb = tl.load(VALUES + v_at + D // 2, is_d, 0.0).to(tl.float32)
    if ROTATE:  # rotate(norm(q)) and rotate(norm(k)) of modern.py
        cos = tl.load(COS + text * (D // 2) + d, is_d, 0.0).to(tl.float32)
        sin = tl.load(SIN + text * (D // 2) + d, is_d, 0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(qa * qa + qb * qb, 0) / D + eps)
        qa, qb = r * (qa * cos - qb * sin), r * (qb * cos + qa * sin)
        r = tl.rsqrt(tl.sum(ka * ka + kb * kb, 0) / D + eps)
        ka, kb = r * (ka * cos - kb * sin), r * (kb * cos + ka * sin)
        kind = MEMORY.dtype.element_ty
        qa, qb = qa.to(kind).to(tl.float32), qb.to(kind).to(tl.float32)
        ka, kb = ka.to(kind).to(tl.float32), kb.to(kind).to(tl.float32)
    length = tl.load(LENGTHS + text)
    keys = MEMORY + (text * H + head).to(tl.int64) * S * D
    values = keys + plane
    new = length * D + d
    tl.store(keys + new, ka, is_d)
    tl.store(keys + new + D // 2, kb, is_d)
    tl.store(values + new, va, is_d)
    tl.store(values + new + D // 2, vb, is_d)
    # The softmax over the slots is computed in one pass, as in flash attention. It starts with the
    # new token, whose key and value other threads may not see in memory yet.
    largest = tl.sum(qa * ka + qb * kb, 0) * scale
    total = 1.0
    s = tl.arange(0, SLOTS)
    for first in range(0, length, SLOTS):
        is_filled = first + s < length
        inside = is_filled[:, None] & is_d[None, :]
        at = (first + s)[:, None] * D + d[None, :]
        a = tl.load(keys + at, inside, 0.0).to(tl.float32)
        b = tl.load(keys + at + D // 2, inside, 0.0).to(tl.float32)
        scores = tl.sum(a * qa[None, :] + b * qb[None, :], 1) * scale
        scores = tl.where(is_filled, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 0))
        p = tl.exp(scores - larger)
        shrink = tl.exp(largest - larger)
        a = tl.load(values + at, inside, 0.0).to(tl.float32)
        b = tl.load(values + at + D // 2, inside, 0.0).to(tl.float32)
        va = va * shrink + tl.sum(a * p[:, None], 0)
        vb = vb * shrink + tl.sum(b * p[:, None], 0)
        total = total * shrink + tl.sum(p, 0)
        largest = larger
    out = OUT + (text * H + head) * D + d
    tl.store(out, va / total, is_d)
    tl.store(out + D // 2, vb / total, is_d)


def attend(
    attention: gpt.CausalSelfAttention | modern.Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Store k and v in the cache of `attention`; return the attention output (B, 1, C).

    q, k and v are the vectors (B, 1, C) of one token of each text. If `angles` is given (cosines
    and sines, (B, 1, 1, D/2) each), q and k are first normalised and rotated.
    """
    B, _, C = v.shape
    H = attention.n_head
    D = C // H
    memory = cache.reserve(attention, v.new_empty(2, B, H, 1, D))
    out = v.new_empty(B, 1, C)
    cos, sin = angles or (None, None)
    half = triton.next_power_of_2(D // 2)
    _attend[B, H](
        q,
        k,
        v,
        memory,
        cache.lengths,
        cos,
        sin,
        out,
        q.stride(0),
        v.stride(0),
        H,
        memory.shape[-2],
        memory.stride(0),
        D**-0.5,
        RMS_EPS,
        D=D,
        ROTATE=angles is not None,
        HALF=half,
        SLOTS=min(256, max(16, 8192 // half)),
        num_warps=4,
    )
    return out


def decode_gpt(block: gpt.Block, x: Tensor, cache: Cache) -> Tensor:
    """Do the same as block(x, cache) for the vector of one token of each text, x (B, 1, C)."""
    attention, (up, _, down, _) = block.attention, block.feed_forward
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    q, k, v = linear(x, attention.qkv, block.norm1).chunk(3, dim=-1)
    x = linear(attend(attention, q, k, v, cache), attention.projection, add=x)
    return linear(linear(x, up, block.norm2, activation="gelu"), down, add=x)


def decode_modern(block: modern.Block, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
    """Do the same as block(x, cos, sin, cache) for one token of each text, x (B, 1, C)."""
    attention, feed_forward = block.attention, block.feed_forward
    q, k = linear(x, attention.qk, rms_norm=True).chunk(2, dim=-1)
    v = linear(x, attention.v, rms_norm=True)
    x = linear(attend(attention, q, k, v, cache, (cos, sin)), attention.projection, add=x)
    if feed_forward.is_gated:
        a, b = linear(x, feed_forward.up, rms_norm=True).chunk(2, dim=-1)
        hidden = F.silu(a) * b
    else:
        hidden = linear(x, feed_forward.up, rms_norm=True, activation="relu2")
    return linear(hidden, feed_forward.down, add=x)


def has_even_heads(model: GPT) -> bool:
    """Return whether each head has an even number of channels."""
    return model.config.n_embd // model.config.n_head % 2 == 0


@contextmanager
def fuse(model: Model) -> Iterator[None]:
    """Within this context, the blocks of `model` use the kernels to decode a token of each text.

    Other models do not change, nor a model whose blocks a reader has changed, nor a GPT with an odd
    number of channels in each head: the kernels load each vector of a head as two halves.
    """
    decode: Callable[..., Tensor]
    if isinstance(model, Modern) and are_unchanged(*OF_MODERN):
        decode = decode_modern
    elif type(model) is GPT and has_even_heads(model) and are_unchanged(*OF_GPT):
        decode = decode_gpt  # not for plain.py, whose blocks lack parts
    else:
        yield
        return

    def forward(block: Any, x: Tensor, *args: Any) -> Tensor:
        is_decoding = x.shape[1] == 1 and isinstance(args[-1], Cache)
        return (decode if is_decoding else type(block).forward)(block, x, *args)

    blocks = list(model.blocks)
    for block in blocks:
        vars(block)["forward"] = partial(forward, block)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]
