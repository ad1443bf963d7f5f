"""What a run takes, before it is begun: parameters, memory, operations, time, each by a formula.

Dimensions, named once: L n_layer, C n_embd, H n_head, T block_size, V vocab_size; n tokens that are
worked through at a time, N parameters, W of them weights of matrix products.
"""

from dataclasses import dataclass

import torch

from ..fast.training import STEPS_AHEAD
from ..models import BigramConfig, GPTConfig, Model, build, flops_per_token
from ..runs.config import RunConfig
from .rates import Rates, get_workspace_bytes


@dataclass(frozen=True)
class Line:
    """A number, and how it comes about."""

    part: str
    formula: str
    value: float
    total: bool = False
    """Whether it sums up the lines above."""


@dataclass(frozen=True)
class Explanation:
    """All that is known of a run before its first step."""

    parameters: list[Line]
    memory: list[Line]
    """Bytes."""
    operations: list[Line]
    """Additions and multiplications of numbers."""
    time: list[Line]
    """Seconds."""


def explain_run(
    config: RunConfig, device: torch.device, precision: torch.dtype, rates: Rates
) -> Explanation:
    """What a run takes on a device that works at these rates. Evaluations are not counted."""
    memory, operations = count_memory(config, device, precision), count_operations(config)
    return Explanation(
        count_parameters(config),
        memory,
        operations,
        estimate_time(config, device, memory, operations, rates),
    )


def build_on_meta(config: RunConfig) -> Model:
    """The run's model without its numbers: shapes alone."""
    with torch.device("meta"):
        return build(config.model)


def count_parameters(config: RunConfig) -> list[Line]:
    """How many numbers are learned, part by part."""
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
            lines.append(Line("head", "the token embedding again", 0))
        else:
            lines += [
                Line("look-back", "2 C", 2 * C),
                Line("attention", "L 4 C²", L * 4 * C * C),
                Line("feed-forward", "L 8 C²", L * 8 * C * C),
                Line("head", "V C", V * C),
            ]
    return [*lines, Line("parameters", "N, the sum", sum(line.value for line in lines), True)]


def count_memory(config: RunConfig, device: torch.device, precision: torch.dtype) -> list[Line]:
    """Bytes that a step of training takes, part by part, and the most at any time.

    The backward pass needs of the forward pass the inputs of every product and norm: the
    activations. Counted here is what torch's kernels for CUDA keep. The text is not counted.
    """
    optim, training = config.optim, config.train
    N = sum(p.numel() for p in build_on_meta(config).parameters())
    batch = training.batch_size * (config.model.block_size + 1)

    kept = [Line("weights", "4 N", 4 * N)]
    if optim.optimizer == "muon":
        blocks = build_on_meta(config).get_submodule("blocks")
        M = sum(p.numel() for p in blocks.parameters() if p.dim() == 2)
        kept.append(Line("optimizer", f"8 N − 4 M, M = {M:,} by Muon", 8 * N - 4 * M))
    else:
        kept.append(Line("optimizer", "8 N", 8 * N))
    if optim.ema:
        kept.append(Line("averaged weights", "4 N", 4 * N))
    kept.append(
        Line("coming batches", f"{STEPS_AHEAD} batch_size (T + 1) 2", STEPS_AHEAD * batch * 2)
    )
    if device.type == "cuda":
        streams = 1 + training.cuda_graph
        of_products = streams * get_workspace_bytes(device)
        kept.append(Line("workspace of the products", f"{streams} streams", of_products))

    gradients = Line("gradients", "4 N", 4 * N)
    activations = count_activations(config, device, precision)
    sizes = gradients.value, sum(line.value for line in activations)
    # Gradients come as activations go, but those of the first part are there in the second.
    in_parts = training.accumulation > 1
    most = Line(
        "most at a time",
        "all of it" if in_parts else "all of it; gradients or activations",
        sum(line.value for line in kept) + (sum(sizes) if in_parts else max(sizes)),
        total=True,
    )
    return [*kept, gradients, *activations, most]


def count_activations(
    config: RunConfig, device: torch.device, precision: torch.dtype
) -> list[Line]:
    """Bytes that a step needs between its way forward and its way back."""
    model, training = config.model, config.train
    V, n = model.vocab_size, training.batch_size // training.accumulation * model.block_size
    if isinstance(model, BigramConfig):
        return [Line("logits and their gradients", "12 n V", 12 * n * V)]
    C, H, L = model.n_embd, model.n_head, model.n_layer
    half, drops = precision != torch.float32, model.dropout > 0
    compiled = training.compile and device.type == "cuda"
    # Bytes of a number in the blocks; and numbers kept in each for every channel: the inputs of two
    # norms and four products, queries, keys and values, what is between up and down.
    b = 2 if half else 4
    if isinstance(model, GPTConfig):
        # In half the bytes, a layer norm that is not compiled keeps its input in all of them.
        c = 32 if half and compiled else 36 if half else 64
        small, said = 4 * H + 16, "4 H + 16"
        ends, of_logits = 4 + b, 4
    else:
        c, small, said = 18 * b, 12 * H + 8, "12 H + 8"
        ends, of_logits = 4 * b, 8
    ends += drops * isinstance(model, GPTConfig)
    c += 2 * drops  # masks, of a byte
    found = []
    if half:
        named = dict(build_on_meta(config).named_parameters())
        looked_up = {"position_embedding.weight", "look_back.weight"}
        if "head.weight" in named:
            looked_up.add("token_embedding.weight")
        W = sum(p.numel() for name, p in named.items() if p.dim() == 2 and name not in looked_up)
        found.append(Line("weights in half the bytes", f"2 W, W = {W:,} in products", 2 * W))
    return [
        *found,
        Line("activations of the blocks", f"n L ({c} C + {said})", n * L * (c * C + small)),
        Line("before and after", f"n ({ends} C + {of_logits} V)", n * (ends * C + of_logits * V)),
        Line("on the way back", f"n max({6 * b} C, 8 V)", n * max(6 * b * C, 8 * V)),
    ]


def count_operations(config: RunConfig) -> list[Line]:
    """Additions and multiplications of a token, a step and a run (models.flops_per_token)."""
    model, training, each = config.model, config.train, flops_per_token(build_on_meta(config))
    if isinstance(model, BigramConfig):
        lines = [Line("a token", "a row is looked up", each, True)]
    else:
        scores = 4 * model.n_layer * model.n_embd * model.block_size
        products = each // 3 - scores
        lines = [
            Line("products", f"2 for each of {products // 2:,} parameters", products),
            Line("attention", "4 L C T, what the mask hides too", scores),
            Line("backward", "twice as many", 2 * (products + scores)),
            Line("a token", "their sum", each, True),
        ]
    batch = training.batch_size * model.block_size
    return [
        *lines,
        Line("a step", f"× {batch:,} tokens", each * batch),
        Line("all steps", f"× {training.steps:,}", each * batch * training.steps, True),
    ]


def estimate_time(
    config: RunConfig,
    device: torch.device,
    memory: list[Line],
    operations: list[Line],
    rates: Rates,
) -> list[Line]:
    """Seconds of a step: its products, and what is read and written between them."""
    value = {line.part: line.value for line in [*memory, *operations]}
    training = config.train
    products = value["a step"] / rates.products
    activations = sum(v for part, v in value.items() if part.startswith(("activations", "logits")))
    # Written and read going forward and back, and their gradients, too; and what is not kept, which
    # is less where blocks are compiled (docs/explain.md has what was measured).
    passes = 8 if training.compile and device.type == "cuda" else 12
    moved = passes * training.accumulation * activations + 7 * value["weights"]
    step = products + moved / rates.memory
    fast, wide = f"{rates.products / 1e9:,.0f} G", f"{rates.memory / 1e6:,.0f} MB"
    return [
        Line("products", f"a step's operations / {fast} a second", products),
        Line("the rest", f"({passes} activations + 28 N) / {wide} a second", step - products),
        Line("a step", "their sum", step, True),
        Line("all steps", f"× {training.steps:,}", step * training.steps, True),
    ]
