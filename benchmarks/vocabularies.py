"""Compare tokenizers on Tiny Shakespeare, in bits per byte, at the same number of operations.

    python benchmarks/vocabularies.py --device cuda --at-a-time 4

The reference is a model like that of the preset `tiny`, whose tokens are characters. It trains for
2,400 steps. Each tokenizer is measured with two models. The model with the "same body" has the 4
layers and 128 channels of the reference; a larger vocabulary adds parameters to this model. For the
model of the "same size", the script chooses the number of channels so that the model has about as
many parameters as the reference. Every model trains for as many operations as the reference,
counted with models.flops_per_token(). A model with more operations per token therefore trains for
fewer steps. The batch size (12 blocks of 64 tokens), the learning rates and the schedule are the
same for all models. Most byte-pair tokens are longer than a character, so a step with byte-pair
tokens trains on more text.

The results go to benchmarks/results/vocabularies.json. They contain the lowest validation loss of
each run, in bits per byte.
"""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from common import RESULTS, save_result
from tables import VOCABULARIES, vocabularies_table

from nanogpt.models import GPTConfig, build, flops_per_token
from nanogpt.runs.config import RunConfig
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, pick_device
from nanogpt.text import corpora
from nanogpt.text.encoding import get_tokenizer
from nanogpt.text.readers import no_progress
from nanogpt.train import train

_PRESET = PRESETS["tiny"].config
TINY = replace(
    _PRESET,
    precision="float32",
    optim=replace(_PRESET.optim, lr=5e-3, schedule="cosine", warmup=200, weight_decay=0.1),
    train=replace(_PRESET.train, steps=2400, batch_size=12, eval_every=300),
)


def count_parameters(model: GPTConfig) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in build(model).parameters())


def plan_run(kind: str, same: str) -> RunConfig:
    """Plan a run with the tokenizer `kind`.

    If `same` is "body", the model has the layers and channels of `tiny`. If `same` is "size", the
    model has about as many parameters as `tiny`.
    """
    assert isinstance(TINY.model, GPTConfig)
    corpus = corpora.load_corpus(TINY.data)
    vocab_size = get_tokenizer(kind, corpus, TINY.val_fraction, no_progress).vocab_size
    model = replace(TINY.model, vocab_size=vocab_size)
    tiny = replace(TINY.model, vocab_size=65)
    if same == "size":
        widths = range(2 * model.n_head, 2 * model.n_embd, 2 * model.n_head)
        candidates = [replace(model, n_embd=width) for width in widths]
        size = count_parameters(tiny)
        model = min(candidates, key=lambda candidate: abs(count_parameters(candidate) - size))
    ratio = flops_per_token(build(tiny)) / flops_per_token(build(model))
    steps = round(TINY.train.steps * ratio)
    settings = replace(TINY.train, steps=steps, eval_every=max(1, steps // 12), compile=False)
    return replace(TINY, tokenizer=kind, model=model, train=settings)


def train_run(device: str, run: tuple[str, str, int]) -> dict[str, Any]:
    """Train one run, given as (tokenizer, "body" or "size", seed), and return the result."""
    kind, same, seed = run
    config = plan_run(kind, same)
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


def main() -> None:
    """Train all runs, save the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; seeds are 1, 2, ...")
    parser.add_argument("--at-a-time", type=int, default=1, help="number of runs at the same time")
    args = parser.parse_args()
    plan = [*product(VOCABULARIES, ("body", "size"), range(1, args.seeds + 1))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.at_a_time, mp_context=spawn) as pool:
        runs = [*pool.map(partial(train_run, args.device), plan)]
    device = describe_device(pick_device(args.device))
    result = {"device": device, "seeds": args.seeds, "runs": runs}
    save_result(RESULTS / "vocabularies.json", result)
    print(vocabularies_table(result))


if __name__ == "__main__":
    main()
