"""The advice after a lack of memory depends on what the run has already tried."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nanogpt.models import BigramConfig
from nanogpt.runs.config import RunConfig
from nanogpt.runs.failures import out_of_memory
from nanogpt.runs.start import prepare_run


@pytest.mark.parametrize(
    ("device", "model", "training", "advice"),
    [
        ("cuda", None, {}, "smaller parts .* --train.batch-size 8 --train.accumulation 2$"),
        ("cuda", None, {"accumulation": 8}, r"activations twice .* --resume \S+ --train.recompute"),
        ("cuda", None, {"accumulation": 8, "recompute": True}, "a smaller --model.n-embd or"),
        ("cuda", BigramConfig(block_size=16), {"accumulation": 8}, "a smaller --model.n-embd or"),
        ("cpu", None, {"accumulation": 8}, "a smaller --model.n-embd or"),
    ],
)
def test_a_lack_of_memory_has_advice(
    config: RunConfig,
    device: str,
    model: BigramConfig | None,
    training: dict[str, Any],
    advice: str,
) -> None:
    settings = replace(config.train, batch_size=8, **training)
    run = prepare_run(replace(config, model=model or config.model, train=settings))
    run.lock.release()
    error = out_of_memory(replace(run, device=torch.device(device)), "2.50 GiB")
    with pytest.raises(type(error), match=advice):
        raise error
