"""Estimates the parameters, memory, operations and time of a run with formulas.

Dimensions: L n_layer, C n_embd, H n_head, T block_size, V vocab_size; n tokens in one forward pass,
N parameters, W weights in matrix products.
"""

from dataclasses import dataclass

import torch

from ..fast.training import STEPS_AHEAD
from ..models import BigramConfig, GPTConfig, Model, build, flops_per_token
from ..runs.config import RunConfig
from .rates import Rates, get_workspace_bytes


@dataclass(frozen=True)
class Line:
    """One row of a table: a quantity, its formula and its value."""

    part: str
    formula: str
    value: float
    total: bool = False
    """Whether the value summarises the rows above."""


@dataclass(frozen=True)
class Explanation:
    """What a run needs."""

    parameters: list[Line]
    memory: list[Line]
    """In bytes."""
    operations: list[Line]
    """Floating-point additions and multiplications."""
    time: list[Line]
    """In seconds."""


def explain_run(
    config: RunConfig, device: torch.device, precision: torch.dtype, rates: Rates
) -> Explanation:
    """Compute what the training steps of a run need on a device with the given rates."""
    memory, operations = count_memory(config, device, precision), count_operations(config)
    return Explanation(
        count_parameters(config),
        memory,
        operations,
        estimate_time(config, device, memory, operations, rates),
    )


def build_on_meta(config: RunConfig) -> Model:
    """Build the model of a run on the meta device, where tensors have shapes but use no memory."""
    with torch.device("meta"):
        return build(config.model)


def count_matrix_weights(model: Model) -> int:
    """Count the weights in model.matrices(), which are the matrices of the blocks."""
    return sum(model.get_parameter(name).numel() for name in model.matrices())


def count_parameters(config: RunConfig) -> list[Line]:
    """Count the parameters of each part of the model, and their sum."""
    model = config.model
    V, T = model.vocab_size, model.block_size
    if isinstance(model, BigramConfig):
        lines = [Line("table", "V V", V * V)]
    else:
        C, L = model.n_embd, model.n_layer
        lines = [Line("token embedding", "V C", V * C)]
        if isinstance(model, GPTConfig):
            lines.append(Line("position embedding", "T C", T * C))
            if model.bias:
                lines += [
                    Line("attention", "L (4 C² + 4 C)", L * (4 * C * C + 4 * C)),
                    Line("feed-forward", "L (8 C² + 5 C)", L * (8 * C * C + 5 * C)),
                    Line("layer norms", "(2 L + 1) 2 C", (2 * L + 1) * 2 * C),
                ]
            else:
                lines += [
                    Line("attention", "L 4 C²", L * 4 * C * C),
                    Line("feed-forward", "L 8 C²", L * 8 * C * C),
                    Line("layer norms", "(2 L + 1) C", (2 * L + 1) * C),
                ]
            lines.append(Line("head", "shared with the token embedding", 0))
        else:
            lines += [
                Line("look-back", "2 C", 2 * C),
                Line("attention", "L 4 C²", L * 4 * C * C),
                Line("feed-forward", "L 8 C²", L * 8 * C * C),
                Line("head", "V C", V * C),
            ]
    return [*lines, Line("parameters", "N, the sum", sum(line.value for line in lines), True)]


def count_memory(config: RunConfig, device: torch.device, precision: torch.dtype) -> list[Line]:
    """Count the bytes of each part of a training step, and the peak. The text is not counted.

    The backward pass needs the activations: the inputs of all matrix products and norms. The
    formulas count the tensors that PyTorch's CUDA kernels store.
    """
    optim, training = config.optim, config.train
    model = build_on_meta(config)
    N = sum(p.numel() for p in model.parameters())
    batch = training.batch_size * (config.model.block_size + 1)

    static = [Line("weights", "4 N", 4 * N)]
    if optim.optimizer == "muon":
        M = count_matrix_weights(model)
        static.append(Line("optimizer", f"8 N − 4 M, M = {M:,} with Muon", 8 * N - 4 * M))
    else:
        static.append(Line("optimizer", "8 N", 8 * N))
    if optim.ema:
        static.append(Line("averaged weights", "4 N", 4 * N))
    prefetched = STEPS_AHEAD * batch * 2
    static.append(Line("prefetched batches", f"{STEPS_AHEAD} batch_size (T + 1) 2", prefetched))
    if device.type == "cuda":
        streams = 1 + training.cuda_graph
        workspace = streams * get_workspace_bytes(device)
        static.append(Line("workspace of cuBLAS", f"{streams} streams", workspace))

    gradients = Line("gradients", "4 N", 4 * N)
    activations = count_activations(config, device, precision)
    dynamic = gradients.value, sum(line.value for line in activations)
    # The backward pass allocates gradients while it frees activations, so the peak includes only
    # the larger of the two. With accumulation, the peak includes both, because the gradients stay
    # in memory from one part of the batch to the next.
    accumulates = training.accumulation > 1
    peak = Line(
        "peak",
        "sum of all" if accumulates else "sum, but only the larger of gradients and activations",
        sum(line.value for line in static) + (sum(dynamic) if accumulates else max(dynamic)),
        total=True,
    )
    return [*static, gradients, *activations, peak]


def count_activations(
    config: RunConfig, device: torch.device, precision: torch.dtype
) -> list[Line]:
    """Count the bytes that a step stores between its forward and its backward pass."""
    model, training = config.model, config.train
    V, n = model.vocab_size, training.batch_size // training.accumulation * model.block_size
    if isinstance(model, BigramConfig):
        return [Line("logits and their gradients", "12 n V", 12 * n * V)]
    C, H, L = model.n_embd, model.n_head, model.n_layer
    is_half, has_dropout = precision != torch.float32, model.dropout > 0
    is_compiled = training.compile and device.type == "cuda"
    b = 2 if is_half else 4  # bytes per value in the blocks
    # c: bytes per token and channel in a block. A block stores queries, keys and values, and also
    # the inputs of seven operations: two norms, four matrix products and the activation function.
    if isinstance(model, GPTConfig):
        # In half precision, a layer norm that is not compiled stores its input in float32.
        c = 32 if is_half and is_compiled else 36 if is_half else 64
        extra, extra_formula = 4 * H + 16, "4 H + 16"
        ends, logits = 4 + b, 4
    else:
        c, extra, extra_formula = 18 * b, 12 * H + 8, "12 H + 8"
        ends, logits = 4 * b, 8
    ends += has_dropout * isinstance(model, GPTConfig)
    c += 2 * has_dropout  # two dropout masks of one byte per value
    lines = []
    if is_half:
        W = count_matrix_weights(build_on_meta(config)) + V * C  # the blocks and the head
        lines.append(Line("weights in half precision", f"2 W, W = {W:,} in products", 2 * W))
    blocks = n * L * (c * C + extra)
    return [
        *lines,
        Line("activations of the blocks", f"n L ({c} C + {extra_formula})", blocks),
        Line("embedding and head", f"n ({ends} C + {logits} V)", n * (ends * C + logits * V)),
        Line("gradients of activations", f"n max({6 * b} C, 8 V)", n * max(6 * b * C, 8 * V)),
    ]


def count_operations(config: RunConfig) -> list[Line]:
    """Count the operations per token, per step and for the run; see flops_per_token()."""
    model, training = config.model, config.train
    per_token = flops_per_token(build_on_meta(config))
    if isinstance(model, BigramConfig):
        lines = [Line("per token", "reads one row of the table", per_token, True)]
    else:
        scores = 4 * model.n_layer * model.n_embd * model.block_size
        products = per_token // 3 - scores
        lines = [
            Line("matrix products", f"2 for each of {products // 2:,} weights", products),
            Line("attention", "4 L C T, masked scores included", scores),
            Line("backward pass", "twice the forward pass", 2 * (products + scores)),
            Line("per token", "sum", per_token, True),
        ]
    batch = training.batch_size * model.block_size
    per_step = per_token * batch
    return [
        *lines,
        Line("per step", f"× {batch:,} tokens", per_step),
        Line("all steps", f"× {training.steps:,}", per_step * training.steps, True),
    ]


def estimate_time(
    config: RunConfig,
    device: torch.device,
    memory: list[Line],
    operations: list[Line],
    rates: Rates,
) -> list[Line]:
    """Estimate the seconds of a step and of a run, from matrix products and memory traffic."""
    value = {line.part: line.value for line in [*memory, *operations]}
    training = config.train
    products = value["per step"] / rates.products
    activations = sum(v for part, v in value.items() if part.startswith(("activations", "logits")))
    # The forward and backward passes read and write the activations, their gradients, and
    # temporary values. Compiled blocks have fewer temporary values. docs/explain.md compares this
    # estimate with measured times.
    passes = 8 if training.compile and device.type == "cuda" else 12
    traffic = passes * training.accumulation * activations + 7 * value["weights"]
    step = products + traffic / rates.memory
    flops, bandwidth = f"{rates.products / 1e9:,.0f} GFLOP/s", f"{rates.memory / 1e6:,.0f} MB/s"
    return [
        Line("matrix products", f"operations per step / {flops}", products),
        Line("the rest", f"({passes} activations + 28 N) / {bandwidth}", step - products),
        Line("per step", "sum", step, True),
        Line("all steps", f"× {training.steps:,}", step * training.steps, True),
    ]
