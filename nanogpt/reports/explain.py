"""Uses formulas to estimate the parameters, memory, operations and time of a run.

Dimensions: L n_layer, C n_embd, T block_size, N parameters.
"""

from dataclasses import dataclass

import torch

from ..models import BigramConfig, GPTConfig
from ..runs.config import RunConfig
from ..runs.memory import Line, count_memory, count_parameters
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


def explain_run(
    config: RunConfig, device: torch.device, precision: torch.dtype, rates: Rates
) -> Explanation:
    """Compute what the training steps of a run need; `rates` are the speeds of the device."""
    memory, operations = count_memory(config, device, precision), count_operations(config)
    return Explanation(
        count_parameters(config.model),
        memory,
        operations,
        estimate_time(config, device, memory, operations, rates),
    )


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
    formula = "sum" if lines else "reads one row of the table"
    batch = training.batch_size * model.block_size
    per_step = per_token * batch
    return [
        *lines,
        Line("per token", formula, per_token, True),
        Line("per step", f"× {format_count(batch)} tokens", per_step),
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
    rest = traffic / rates.memory
    flops = format_quantity(rates.products, "FLOP/s")
    bandwidth = format_quantity(rates.memory, "B/s")
    return [
        Line("matrix products", f"operations per step / {flops}", products),
        Line("other operations", f"({passes} activations + 28 N) / {bandwidth}", rest),
        Line("per step", "sum", products + rest, True),
        Line("all steps", f"× {training.steps:,}", (products + rest) * training.steps, True),
    ]
