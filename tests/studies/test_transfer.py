"""The transfer text consists of the texts of all runs."""

from dataclasses import replace
from pathlib import Path

import torch

from nanogpt.api import load
from nanogpt.runs.config import RunConfig
from nanogpt.runs.run import load_run_text
from nanogpt.studies.transfer import PROMPT, generate_transfer_text
from nanogpt.train import train


def test_each_run_continues_passages_of_the_training_text(config: RunConfig) -> None:
    runs = [train(replace(config, out=Path(f"run-{seed}"), seed=seed)).run.out for seed in (1, 2)]
    cpu = torch.device("cpu")
    text = generate_transfer_text(runs, texts=3, tokens=40, seed=5, device=cpu)
    assert len(text) == 2 * 3 * 40 + 5
    assert generate_transfer_text(runs, 3, 40, 5, cpu) == text
    assert generate_transfer_text(runs, 3, 40, 6, cpu) != text

    # The first token of each text is one of the most likely tokens after its passage.
    training = load_run_text(runs[0])[0].text()
    trained = load(runs[0], "cpu")
    generator = torch.Generator().manual_seed(5)
    ids = trained.tokenizer.encode(training)
    n = int(0.9 * len(ids))
    starts = torch.randint(n - PROMPT, (3,), generator=generator).tolist()
    prompts = [trained.tokenizer.decode(ids[start : start + PROMPT]) for start in starts]
    assert all(prompt in training for prompt in prompts)
    alone = generate_transfer_text(runs[:1], 3, 40, 5, cpu)
    assert text.startswith(alone + "\n")
