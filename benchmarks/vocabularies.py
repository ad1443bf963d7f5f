"""Tokenizers on Tiny Shakespeare, in bits per byte, at equal size and at equal compute.

    python benchmarks/vocabularies.py --device cuda --at-a-time 4

The preset tiny with characters is what the others are held to. Same body: 4 layers, 128 wide, and
however many parameters the vocabulary adds. Same size: a width at which all parameters are nearest
to those of tiny. All train for the operations (models.flops_per_token) that tiny takes, with its
batch of 12 blocks of 64 tokens, its rates and its schedule, so that a larger vocabulary gets fewer
steps but has more text in each. The lowest validation loss of each run; means over seeds, with the
standard deviation. Written to benchmarks/results/vocabularies.json and .md.
"""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import RESULTS, save

from nanogpt.models import GPTConfig, build, flops_per_token
from nanogpt.runs.config import RunConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, pick_device
from nanogpt.text import corpora
from nanogpt.text.encoding import get_tokenizer
from nanogpt.text.readers import no_progress
from nanogpt.train import train

KINDS = ("char", "byte", "bpe:512", "bpe:2048", "bpe:8192")
TINY = PRESETS["tiny"].config


def parameters(model: GPTConfig) -> int:
    """How many numbers a model of this shape learns."""
    return sum(p.numel() for p in build(model).parameters())


def planned(kind: str, same: str) -> RunConfig:
    """The run of a tokenizer, with the same body or the same size as tiny."""
    assert isinstance(TINY.model, GPTConfig)
    corpus = corpora.load_corpus(TINY.data)
    vocab_size = get_tokenizer(kind, corpus, TINY.val_fraction, no_progress).vocab_size
    model = replace(TINY.model, vocab_size=vocab_size)
    tiny = replace(TINY.model, vocab_size=65)
    if same == "size":
        widths = range(2 * model.n_head, 2 * model.n_embd, 2 * model.n_head)
        each = [replace(model, n_embd=width) for width in widths]
        model = min(each, key=lambda shape: abs(parameters(shape) - parameters(tiny)))
    ratio = flops_per_token(build(tiny)) / flops_per_token(build(model))
    steps = round(TINY.train.steps * ratio)
    every = max(1, steps // 12)
    settings = replace(TINY.train, steps=steps, eval_every=every, compile=False)
    return replace(TINY, tokenizer=kind, model=model, train=settings)


def measured(device: str, run: tuple[str, str, int]) -> dict[str, Any]:
    """How well a tokenizer did, with one seed."""
    kind, same, seed = run
    config = planned(kind, same)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        result = train(replace(config, seed=seed, out=out, device=device))
    assert isinstance(config.model, GPTConfig)
    return {
        "tokenizer": kind,
        "same": same,
        "seed": seed,
        "tokens": result.run.tokenizer.vocab_size,
        "bytes_per_token": result.run.data.splits["val"].bytes_per_token,
        "n_embd": config.model.n_embd,
        "parameters": result.run.parameters,
        "steps": config.train.steps,
        "best_step": result.best.step,
        "bits_per_byte": result.best.bits_per_byte,
    }


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| same | tokenizer | bytes a token | wide | parameters | steps | best at | bits a byte |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for same, kind in product(("body", "size"), KINDS):
        runs = [run for run in found["runs"] if (run["same"], run["tokenizer"]) == (same, kind)]
        one, bits = runs[0], [run["bits_per_byte"] for run in runs]
        spread = f" ± {stdev(bits):.4f}" if len(bits) > 1 else ""
        lines.append(
            f"| {same} | `{kind}` | {one['bytes_per_token']:.2f} | {one['n_embd']} "
            f"| {one['parameters']:,} | {one['steps']:,} "
            f"| {mean(run['best_step'] for run in runs):,.0f} | {mean(bits):.4f}{spread} |"
        )
    return "\n".join(lines) + f"\n\n{found['device']}, {found['seeds']} seeds\n"


def main() -> None:
    """Train, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-a-time", type=int, default=1)
    options = parser.parse_args()
    every = [*product(KINDS, ("body", "size"), range(1, options.seeds + 1))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.at_a_time, mp_context=spawn) as pool:
        runs = [*pool.map(partial(measured, options.device), every)]
    device = describe_device(pick_device(options.device))
    found = {"device": device, "seeds": options.seeds, "runs": runs}
    save(RESULTS / "vocabularies.json", found)
    (RESULTS / "vocabularies.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
