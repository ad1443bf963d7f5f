"""Generates the transfer text of the distillation study: the text of trained models."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ..fast.generation import generate
from ..models import Model
from ..runs.checkpoint import load_checkpoint
from ..runs.reading import SUMS
from ..runs.run import load_run_text
from ..system.devices import pick_precision
from ..text.encoding import encode_corpus

PROMPT = 16
"""Number of tokens of each prompt; the generated texts do not contain their prompts."""


def name_transfer_text(runs: Sequence[Path], texts: int, tokens: int, seed: int) -> str:
    """Return a file name that depends on the weights of the runs and on all other arguments."""
    sums = [(run / "best" / SUMS).read_bytes() for run in runs]
    digest = hashlib.sha256(repr((sums, texts, tokens, seed)).encode()).hexdigest()
    return f"transfer-{digest[:8]}.txt"


def generate_transfer_text(
    runs: Sequence[Path], texts: int, tokens: int, seed: int, device: torch.device
) -> str:
    """Let each run generate `texts` texts of `tokens` tokens, and return all of them, joined.

    Each text continues PROMPT tokens from a random position of the training text of the run. The
    texts are joined by line breaks, if the training text has any.
    """
    parts: list[str] = []
    for number, run in enumerate(runs):
        parts += _generate(run, texts, tokens, seed + number, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the students need the memory
    has_lines = any("\n" in chunk for chunk in load_run_text(runs[0])[0].chunks())
    return ("\n" if has_lines else "").join(parts)


def _generate(run: Path, texts: int, tokens: int, seed: int, device: torch.device) -> list[str]:
    checkpoint = load_checkpoint(run / "best", device)
    corpus, val_fraction = load_run_text(run)
    ids = encode_corpus(corpus, checkpoint.tokenizer, "train", val_fraction).ids
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - PROMPT, (texts,), generator=generator).tolist()
    prompts = [ids[start : start + PROMPT].tolist() for start in starts]
    model: Model = checkpoint.model
    if device.type == "cuda":
        model = model.to(pick_precision("auto", device))
    steps = generate(model, prompts, tokens, seed=seed)
    generated = zip(*(step.tokens for step in steps), strict=True)
    return [checkpoint.tokenizer.decode(list(text)) for text in generated]
