"""Formulas for the memory of a training step.

No model is built, so the result is immediate, even for an enormous model.

Dimensions: L = n_layer, C = n_embd, H = n_head, T = block_size, V = vocab_size. Numbers: n tokens
in one forward pass, N parameters, M weights in the matrix products of the blocks, P processes that
divide the weights, b bytes per value.
"""

from dataclasses import replace
from typing import NamedTuple

import torch

from ..models import BigramConfig, GPTConfig, ModelConfig, ModernConfig, PlainConfig
from ..system.gpu import get_workspace_bytes
from ..system.memory import format_count, require_memory
from .config import STEPS_AHEAD, RunConfig, is_float8_layer
from .parameters import (
    Line,
    count_float8_weights,
    count_matrix_weights,
    count_parameters,
    has_feed_forward,
    list_layers,
)

BLOCK_BYTES = 50_000
"""Minimum bytes of the Python objects of a block: modules, tensors, the autograd graph."""


def count_memory(
    config: RunConfig, device: torch.device, precision: torch.dtype, processes: int = 1
) -> list[Line]:
    """Count the bytes that each part of a training step uses, and the bytes in use at the peak.

    If several processes share each batch, the counts are those of one process. The memory for the
    text is not included. The backward pass needs the activations: the inputs of all matrix products
    and norms. The formulas count the tensors that PyTorch's CUDA kernels store.
    """
    config = get_share(config, processes)
    model, training = config.model, config.train
    N = count_parameters(model)[-1].value
    is_sharded = training.shard and processes > 1
    recompute = training.recompute and not isinstance(model, BigramConfig)
    P, divided = (processes, f", divided between {processes} processes") if is_sharded else (1, "")
    state = _count_state(config, device, precision, P, divided)
    gradients = Line("gradients", f"4 N{divided}", 4 * N // P)
    if is_sharded:
        # The complete weights are those of a block, of the next block and of the rest, and the
        # gradients of the rest. In addition, the gradients of one block are complete.
        blocks, B, R = _count_blocks_and_rest(model)
        k = 4 * min(blocks, 2)
        formula = f"{k} B + 8 R; a block has B = {format_count(B)}, the rest R = {format_count(R)}"
        complete = Line("complete weights", formula, k * B + 8 * R)
        gradients = Line("gradients", f"4 N{divided}, + 4 B", 4 * N // P + 4 * B)
    activations = count_activations(config, device, precision)
    stored = sum(line.value for line in activations)
    lines = [*state, gradients, *activations]

    # The backward pass allocates gradients while it frees activations, so the peak includes only
    # the larger of the two. If it computes activations again, those of one block are in memory
    # together with all gradients. With accumulation, the peak includes everything, because the
    # gradients stay in memory from one part of the batch to the next.
    formula = "sum, but only the larger of gradients and activations"
    passes = max(gradients.value, stored)
    if recompute:
        formula = "sum, but only the larger of gradients and stored activations"
        tokens = training.batch_size // training.accumulation * model.block_size
        block = _count_bytes_per_token(config, device, precision)
        passes = max(passes, gradients.value + tokens * (block.stored + block.gradients))
    if training.accumulation > 1:
        formula, passes = "sum", gradients.value + stored
    if is_sharded:
        lines.append(complete)
        passes += complete.value
    # The update comes after the backward pass, when the activations are no longer in memory.
    updates = []
    if config.optim.optimizer == "muon":
        updates.append(_count_muon_update(config, precision, processes))
    update = 4 * N // P + max([line.value for line in updates], default=0)  # and gradients
    if updates:
        formula = f"before the update: {formula}"
    if update > passes:
        formula = "in the update, without activations" + " and complete weights" * is_sharded
    most = sum(line.value for line in state) + max(passes, update)
    return [*lines, *updates, Line("peak", formula, most, total=True)]


def _count_state(
    config: RunConfig, device: torch.device, precision: torch.dtype, P: int, divided: str
) -> list[Line]:
    """Count the bytes that are in memory during the whole step.

    P processes divide the weights; `divided` is the end of the formulas.
    """
    optim, training = config.optim, config.train
    N = count_parameters(config.model)[-1].value
    lines = [Line("weights", f"4 N{divided}", 4 * N // P)]
    if optim.optimizer == "muon":
        M = count_matrix_weights(config.model)
        formula = f"8 N − 4 M{divided}; Muon trains M = {format_count(M)}"
        lines.append(Line("optimizer", formula, (8 * N - 4 * M) // P))
    else:
        lines.append(Line("optimizer", f"8 N{divided}", 8 * N // P))
    if optim.ema:
        lines.append(Line("averaged weights", f"4 N{divided}", 4 * N // P))
    if device.type == "cuda":
        is_captured = training.cuda_graph and P == 1
        if is_captured:
            blocks = STEPS_AHEAD * training.batch_size
            prefetched = blocks * (config.model.block_size + 1) * 2
            formula = f"{STEPS_AHEAD} × {training.batch_size} (T + 1) 2"
            lines.append(Line("prefetched batches", formula, prefetched))
        workspace = (1 + is_captured) * get_workspace_bytes(device)
        formula = "2 streams" if is_captured else "1 stream"
        has_products = precision == torch.bfloat16 and config.precision != "float8"
        if training.compile and has_products and not isinstance(config.model, BigramConfig):
            workspace += get_workspace_bytes(device)  # for the products of fast/cublas.py
            formula += ", and cuBLASLt"
        lines.append(Line("workspace of cuBLAS", formula, workspace))
    return lines


def get_share(config: RunConfig, processes: int) -> RunConfig:
    """Return the settings with the batch size of one of several processes."""
    share = config.train.batch_size // processes
    return replace(config, train=replace(config.train, batch_size=share))


def _count_blocks_and_rest(model: ModelConfig) -> tuple[int, int, int]:
    """Count the blocks, the parameters of a block, and those outside the blocks."""
    parts = ("attention", "feed-forward", "layer norms")  # including the norm after the blocks
    value = {line.part: int(line.value) for line in count_parameters(model)}
    if isinstance(model, BigramConfig):
        return 0, 0, value["parameters"]
    block = sum(value.get(part, 0) for part in parts) // model.n_layer
    return model.n_layer, block, value["parameters"] - model.n_layer * block


def _count_muon_update(config: RunConfig, precision: torch.dtype, processes: int) -> Line:
    """Count the bytes of the temporary values that Muon needs to update the matrices of a shape."""
    model, optim, b = config.model, config.optim, 4 if precision == torch.float32 else 2
    assert not isinstance(model, BigramConfig), "a bigram has no matrices"
    P = processes if config.train.shard else 1
    L, C = model.n_layer, model.n_embd
    # For each shape: the formula, the number of matrices, the smaller and the larger dimension.
    stacks = [("4 L C²", 4 * L, C, C)]
    if has_feed_forward(model):
        is_gated = isinstance(model, ModernConfig) and model.activation == "swiglu"
        hidden = model.n_hidden if isinstance(model, ModernConfig) else 4 * C
        pairs = 2 if is_gated else 1
        stacks.append((f"{pairs} L C {hidden}", pairs * L, min(C, hidden), max(C, hidden)))

    def count(matrices: int, ratio: float) -> float:
        """Return the bytes per weight: two copies, and the temporary values of the largest part."""
        share = -(-matrices // processes) / matrices  # a process orthogonalises this share
        orthogonalise = b * (2 + 2 * ratio) * share
        gather = b * (2 * processes + 1) * share * (processes > 1)
        collect = 4 * (P > 1)
        directions = 4 if optim.normalise_rows else b
        normalise = (12 if b == 4 else 14) * optim.normalise_rows
        decay = (directions + 4 + collect + 9) * optim.cautious_decay
        return 4 / P + 4 + max(orthogonalise, gather, collect, normalise, decay)

    lines = []
    for formula, matrices, smaller, larger in stacks:
        per_weight = count(matrices, smaller / larger)
        size = int(per_weight * matrices * smaller * larger)
        lines.append(Line("update by Muon", f"{per_weight:.3g} · {formula}", size))
    return max(lines, key=lambda line: line.value)


class _BytesPerToken(NamedTuple):
    """The bytes of activations for each token of a batch."""

    stored: int
    """Bytes that the forward pass of a block stores."""
    stored_formula: str
    gradients: int
    """Bytes of the gradients of activations in the backward pass of a block."""
    sum_formula: str
    """The formula for `stored` + `gradients`."""
    per_channel: int
    """Bytes that the embedding and the output layer store for each channel."""
    per_logit: int
    """Bytes that the output layer and the cross-entropy store for each logit."""


def _count_bytes_per_token(
    config: RunConfig, device: torch.device, precision: torch.dtype
) -> _BytesPerToken:
    model = config.model
    assert not isinstance(model, BigramConfig), "a bigram has no blocks"
    C, H, L = model.n_embd, model.n_head, model.n_layer
    is_half, has_dropout = precision != torch.float32, model.dropout > 0
    is_compiled = config.train.compile and device.type == "cuda"
    b = 2 if is_half else 4  # bytes per value in the blocks
    # In the backward pass, a block needs memory for g gradients per token and channel (measured).
    g = 2 if isinstance(model, GPTConfig) else 5
    g += isinstance(model, PlainConfig) and model.feed_forward
    g = 6 if device.type == "cuda" else g
    # c is the number of bytes per token and channel in a block. Each block stores the queries, keys
    # and values, and the inputs of its two norms, four matrix products and activation function.
    if isinstance(model, GPTConfig):
        # In half precision, a layer norm that is not compiled stores its input in float32.
        norms = 4 if is_half and is_compiled else 8
        c, extra, extra_formula = 14 * b + norms, 4 * H + 16, "4 H + 16"
        ends, logits = 4 + b, 4
        if isinstance(model, PlainConfig):  # no norms; feed-forward layers are optional
            c, extra, extra_formula = (14 if model.feed_forward else 5) * b, 4 * H, "4 H"
            ends = b
    else:
        c, extra, extra_formula = 18 * b, 12 * H + 8, "12 H + 8"
        ends, logits = 4 * b, 8
        if model.activation == "swiglu":  # the inputs and outputs of silu and of the product
            c -= 8 * b
            extra += 4 * b * model.n_hidden
            extra_formula += f" + {4 * b} · {model.n_hidden}"
        # Other outputs that skips add are stored anyway, because the next block needs them.
        ends += b if model.skips and L % 2 == 0 else 0
    if _is_end_compiled(config, device):
        logits = b
    ends += has_dropout * isinstance(model, GPTConfig)
    c += has_dropout * (1 + has_feed_forward(model))  # dropout masks of one byte per value
    if config.precision == "float8":
        # The compiler does not store the inputs of products in float8: the backward pass computes
        # them again. (Attention stores the input of the projection anyway.)
        norms, hidden = _count_float8_inputs(model)
        if isinstance(model, ModernConfig) and model.activation == "swiglu":
            extra_formula += f" − {b} · {hidden}"
            extra -= b * hidden
        else:
            norms += hidden
        c -= b * norms // C
    formulas = f"{c} C + {extra_formula}", f"{c + g * b} C + {extra_formula}"
    return _BytesPerToken(c * C + extra, formulas[0], g * b * C, formulas[1], ends, logits)


def _count_float8_inputs(model: GPTConfig | ModernConfig) -> tuple[int, int]:
    """Count the values per token in a block that are inputs of products in float8 and nothing else.

    Returns the number of outputs of norms, and of outputs of the activation function.
    """
    first, _, feed_forward = list_layers(model)
    up, down = feed_forward
    norms = all(is_float8_layer(K, N) for K, N in first) + is_float8_layer(*up)
    return norms * model.n_embd, is_float8_layer(*down) * down[0]


def _is_end_compiled(config: RunConfig, device: torch.device) -> bool:
    """Return whether one function computes the output layer and the cross-entropy."""
    settings = config.train
    has_soft_targets = config.teachers or settings.ngram_weight or settings.mean_teacher
    return settings.compile and device.type == "cuda" and not has_soft_targets


def count_activations(
    config: RunConfig, device: torch.device, precision: torch.dtype
) -> list[Line]:
    """Count the bytes of the activations that the backward pass needs, and of their gradients."""
    model, training = config.model, config.train
    V, n = model.vocab_size, training.batch_size // training.accumulation * model.block_size
    if isinstance(model, BigramConfig):
        return [Line("logits and their gradients", "12 n V", 12 * n * V)]
    C, L, is_half = model.n_embd, model.n_layer, precision != torch.float32
    b = 2 if is_half else 4
    per_token = _count_bytes_per_token(config, device, precision)
    lines = []
    if is_half:
        # With recomputation, only one block has such weights at a time. The head has them, too.
        # The backward pass computes weights in float8 again.
        W = count_matrix_weights(model)
        W -= count_float8_weights(model) if config.precision == "float8" else 0
        W = W // (L if training.recompute else 1) + V * C
        formula = f"2 W; products use W = {format_count(W)}"
        lines.append(Line("weights in half precision", formula, 2 * W))
    if training.recompute:  # the activations of a single block at a time
        lines.append(Line("inputs of the blocks", f"n L {b} C", n * L * b * C))
        last, formula = "one block, or the head", per_token.sum_formula
        block = per_token.stored + per_token.gradients
    else:
        formula, size = f"n L ({per_token.stored_formula})", n * L * per_token.stored
        lines.append(Line("activations of the blocks", formula, size))
        last, formula = "gradients of activations", f"{per_token.gradients // C} C"
        block = per_token.gradients
    end_formula = f"n ({per_token.per_channel} C + {per_token.per_logit} V)"
    end = n * (per_token.per_channel * C + per_token.per_logit * V)
    lines.append(Line("embedding and head", end_formula, end))
    if _is_end_compiled(config, device):
        # The gradient of the logits takes the place of the logits. When the gradient of the output
        # layer is computed, the blocks do not need memory yet; when they do, the logits are free.
        w = 6 if is_half else 4  # in half precision, this gradient is copied to float32
        most = max(n * (block - b * V), n * b * C + w * C * V)
        return [*lines, Line(last, f"max(n ({formula} − {b} V), n {b} C + {w} C V)", most)]
    lines.append(Line(last, f"n max({formula}, 8 V)", n * max(block, 8 * V)))
    if training.mean_teacher and not (training.compile and device.type == "cuda"):
        lines[-1] = max(lines[-1], _count_teacher(model, n, b), key=lambda line: line.value)
    return lines


def _count_teacher(model: GPTConfig | ModernConfig, n: int, b: int) -> Line:
    """Count the bytes of the temporary values in the mean teacher's forward pass.

    These are the values in one block, and, with skips, the inputs of all blocks.
    """
    C, L = model.n_embd, model.n_layer
    formula, values = f"{10 * b} C", 10 * C
    if isinstance(model, ModernConfig):
        formula, values = f"{14 * b} C", 14 * C
        if model.activation == "swiglu":
            hidden = model.n_hidden
            formula, values = f"{2 * b} C + {4 * b} · {hidden}", 2 * C + 4 * hidden
        if model.skips:
            formula, values = f"{formula} + {b} L C", values + L * C
    return Line("forward pass of the mean teacher", f"n ({formula})", n * b * values)


def count_host_memory(
    config: RunConfig, device: torch.device, precision: torch.dtype, processes: int = 1
) -> int:
    """Count the bytes of host memory that a run, or one of its processes, needs at minimum.

    With a CUDA device, only the initial weights and the Python objects are counted.
    """
    model, training = config.model, get_share(config, processes).train
    value = {line.part: line.value for line in count_memory(config, device, precision, processes)}
    blocks = 0 if isinstance(model, BigramConfig) else model.n_layer * BLOCK_BYTES
    initial = 4 * int(count_parameters(model)[-1].value)  # each process builds the whole model
    if device.type == "cuda":
        return initial + blocks
    batch = 16 * training.batch_size * (model.block_size + 1)  # 64-bit positions and tokens
    return max(initial, int(value["peak"]) + batch) + blocks


def require_run_memory(
    config: RunConfig, device: torch.device, precision: torch.dtype, processes: int = 1
) -> None:
    """Raise UserError if the machine has too little memory for a run, or for one of its processes.

    This check comes before the model is built. It does not check the memory of a GPU: torch raises
    an error if a GPU has too little memory.
    """
    parameters = count_parameters(config.model)[-1].value
    size = f"training a model with {format_count(parameters)} parameters"
    single_token = replace(
        config,
        model=replace(config.model, block_size=1),
        train=replace(config.train, batch_size=processes, accumulation=1),
        precision="auto",  # float8 would refuse a block_size of 1
    )
    require_memory(
        count_host_memory(single_token, device, precision, processes),
        size,
        "use a smaller --model.n-layer or --model.n-embd, or a tokenizer with fewer tokens",
    )
    T, batch_size = config.model.block_size, config.train.batch_size // processes
    require_memory(
        count_host_memory(config, device, precision, processes),
        f"{size} on {batch_size:,} blocks of {T:,} tokens",
        "use a smaller --train.batch-size or --model.block-size, or a larger --train.accumulation",
    )
