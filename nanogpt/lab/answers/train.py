"""Answers for the view "Train": the loss of n-grams, and the size and time of a planned run."""

import math
from typing import Any

import torch

from ...reports.explain import explain_run
from ...reports.rates import Rates, measure_rates
from ...runs.presets import PRESETS
from ...system.devices import pick_device
from ...text.corpora import CORPORA
from ..training import SIZES, plan_run
from ..worker import Check
from .question import Question


def baselines(question: Question, check: Check) -> dict[str, Any]:
    """Return the order n and the validation loss of the smoothed n-gram model, for the charts."""
    return question.library.baselines(question.run)


def list_choices() -> dict[str, Any]:
    """Return the presets, the corpora and the largest sizes that a new run can have."""
    presets = []
    for name, preset in PRESETS.items():
        if preset.config.data not in CORPORA:  # too large for the lab
            continue
        model = preset.config.model
        sizes = {size: getattr(model, size) for size in SIZES if hasattr(model, size)}
        steps = preset.config.train.steps
        presets.append({"name": name, "purpose": preset.purpose, "steps": steps, "sizes": sizes})
    return {"presets": presets, "corpora": [*CORPORA], "limits": SIZES}


_rates: dict[tuple[int, int], Rates] = {}


def explain(query: dict[str, str]) -> dict[str, Any]:
    """Return a planned run's number of parameters, estimated time (s) and memory (bytes)."""
    sizes = {name: query[name] for name in (*SIZES, "steps") if query.get(name)}
    config = plan_run(query.get("preset", "tiny"), sizes)
    device = pick_device("cpu")
    tokens = config.train.batch_size * config.model.block_size
    width = getattr(config.model, "n_embd", config.model.vocab_size)
    if (tokens, width) not in _rates:
        _rates[tokens, width] = measure_rates(device, torch.float32, tokens, width)
    explained = explain_run(config, device, torch.float32, _rates[tokens, width])
    seconds = explained.time[-1].value
    return {
        "parameters": explained.parameters[-1].value,
        "seconds": seconds if math.isfinite(seconds) else None,
        "memory": explained.memory[-1].value,
    }
