"""Uses formulas to estimate the parameters, memory, operations and time of a run.

Dimensions: L n_layer, C n_embd, T block_size, N parameters.
"""

from dataclasses import dataclass, replace

import torch

from ..models import BigramConfig, GPTConfig
from ..runs.config import RunConfig
from ..runs.memory import count_activations, count_memory, get_share
from ..runs.parameters import (
    Line,
    count_float8_weights,
    count_matrix_weights,
    count_parameters,
)
from ..system.memory import format_count, format_quantity
from .rates import Rates


@dataclass(frozen=True)
class Explanation:
    """What a run needs: its parameters, memory, operations and time."""

    parameters: list[Line]
    memory: list[Line]
    """The values are in bytes."""
    operations: list[Line]
    """The values are numbers of floating-point additions and multiplications."""
    time: list[Line]
    """The values are in seconds."""
    peaks: list[Line]
    """The peak memory of a process, in bytes, with each combination of the settings recompute and
    shard; empty for a single process."""


def explain_run(
    config: RunConfig,
    device: torch.device,
    precision: torch.dtype,
    rates: Rates,
    processes: int = 1,
) -> Explanation:
    """Compute what the training steps of a run need; `rates` are the speeds of the device.

    If several processes share each batch, the memory and the time are those of one process. The
    operations are those of all processes together.
    """
    operations = count_operations(config)
    return Explanation(
        count_parameters(config.model),
        count_memory(config, device, precision, processes),
        operations,
        estimate_time(config, device, precision, operations, rates, processes),
        count_peaks(config, device, precision, processes) if processes > 1 else [],
    )


def count_peaks(
    config: RunConfig, device: torch.device, precision: torch.dtype, processes: int
) -> list[Line]:
    """Count the peak memory with each combination of the settings recompute and shard.

    For a bigram, recompute is left out: it has no blocks. With a mean teacher, shard is left out,
    because the two do not work together.
    """
    is_bigram = isinstance(config.model, BigramConfig)
    lines = []
    for shard in [False] if config.train.mean_teacher else [False, True]:
        for recompute in [False] if is_bigram else [False, True]:
            training = replace(config.train, recompute=recompute, shard=shard)
            changed = replace(config, train=training)
            peak = count_memory(changed, device, precision, processes)[-1].value
            flags = ["--train.shard"] * shard + ["--train.recompute"] * recompute
            lines.append(Line(" ".join(flags) or "neither", "", peak))
    return lines


def count_operations(config: RunConfig) -> list[Line]:
    """Count the operations per token, per step and for the run; see flops_per_token()."""
    model, training = config.model, config.train
    lines: list[Line] = []
    per_token: float = 0
    if not isinstance(model, BigramConfig):
        count = {line.part: line.value for line in count_parameters(model)}
        table = "position embedding" if isinstance(model, GPTConfig) else "token embedding"
        weights = count["parameters"] - count[table]  # each token only looks up a row of the table
        scores = 4 * model.n_layer * model.n_embd * model.block_size
        per_token = 6 * weights + 3 * scores
        lines = [
            Line("matrix products", f"2 for each of {format_count(weights)} weights", 2 * weights),
            Line("attention", "4 L C T, masked scores included", scores),
            Line("backward pass", "twice the forward pass", 2 * (2 * weights + scores)),
        ]
        if training.recompute:
            again = 2 * count_matrix_weights(model) + scores
            lines.append(Line("recomputation", "the forward pass of the blocks", again))
            per_token += again
    formula = "sum" if lines else "reads one row of the table"
    batch = training.batch_size * model.block_size
    per_step = per_token * batch
    return [
        *lines,
        Line("per token", formula, per_token, True),
        Line("per step", f"× {format_count(batch)} tokens", per_step),
        Line("all steps", f"× {training.steps:,}", per_step * training.steps, True),
    ]


def _count_float8_operations(config: RunConfig) -> int:
    """Count the operations per step in the blocks' products in float8."""
    model, training = config.model, config.train
    if isinstance(model, BigramConfig):
        return 0
    per_weight = 8 if training.recompute else 6
    return per_weight * count_float8_weights(model) * training.batch_size * model.block_size


def estimate_time(
    config: RunConfig,
    device: torch.device,
    precision: torch.dtype,
    operations: list[Line],
    rates: Rates,
    processes: int = 1,
) -> list[Line]:
    """Estimate the seconds of a step and of a run, from matrix products and memory traffic."""
    training, per_step = config.train, {line.part: line.value for line in operations}["per step"]
    share = f" / {processes}" if processes > 1 else ""
    flops = format_quantity(rates.products, "FLOP/s")
    in_float8 = _count_float8_operations(config) if rates.float8 else 0
    products = (per_step - in_float8) / processes / rates.products
    lines = [Line("matrix products", f"operations per step{share} / {flops}", products)]
    if in_float8:
        flops8 = format_quantity(rates.float8, "FLOP/s")
        faster = in_float8 / processes / rates.float8
        count = format_quantity(in_float8, "FLOP")
        lines = [
            Line("products in float8", f"{count}{share} / {flops8}", faster),
            Line("other products", f"(operations per step − {count}){share} / {flops}", products),
        ]
        products += faster
    whole = get_share(replace(config, train=replace(training, recompute=False)), processes)
    activations = sum(
        line.value
        for line in count_activations(whole, device, precision)
        if line.part.startswith(("activations", "logits"))
    )
    # The forward and backward passes read and write the activations, their gradients, and
    # temporary values. Compiled blocks have fewer temporary values. docs/explain.md compares this
    # estimate with measured times.
    N = count_parameters(config.model)[-1].value
    passes = 8 if training.compile and device.type == "cuda" else 12
    passes += passes // 3 if training.recompute else 0
    owned = N / processes if training.shard else N
    traffic = passes * training.accumulation * activations + 28 * owned
    rest = traffic / rates.memory
    update = f"28 N{share}" if training.shard else "28 N"
    bandwidth = format_quantity(rates.memory, "B/s")
    return [
        *lines,
        Line("other operations", f"({passes} activations + {update}) / {bandwidth}", rest),
        Line("per step", "sum", products + rest, True),
        Line("all steps", f"× {training.steps:,}", (products + rest) * training.steps, True),
    ]
