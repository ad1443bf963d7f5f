"""nanogpt eval."""

import json

from ..errors import UserError
from .arguments import EvalArgs, parse_arguments


def evaluate(args: list[str]) -> None:
    """measure a trained model on a whole split"""
    from rich.console import Console

    from ..data import Split
    from ..evaluate import Ensemble
    from ..evaluate import evaluate as measure
    from ..runs.checkpoint import load_checkpoint
    from ..runs.directory import find_run
    from ..runs.run import load_run_text, read_description
    from ..system.devices import limit_threads, pick_device
    from ..text import corpora
    from ..text.encoding import encode_corpus
    from .progress import Bar

    options = parse_arguments(EvalArgs(), args, "nanogpt eval")
    limit_threads()
    device = pick_device(options.device)
    runs = [find_run(run) for run in options.runs or (None,)]
    every = [load_checkpoint(run / "best", device) for run in runs]
    with Bar(Console()) as bar:
        if options.data:
            corpus = corpora.load_corpus(options.data, options.column, options.separator, bar.tell)
            val_fraction = read_description(runs[0]).config.val_fraction
        else:
            corpus, val_fraction = load_run_text(runs[0], bar.tell)
    first = every[0]
    for run, one in zip(runs[1:], every[1:], strict=True):
        if not options.data:
            other, other_fraction = load_run_text(run)
            if other.facts != corpus.facts or other_fraction != val_fraction:
                raise UserError(f"{runs[0]} and {run} learned from two texts: name one with --data")
        if one.tokenizer.to_json() != first.tokenizer.to_json():
            raise UserError(f"{runs[0]} and {run} have two tokenizers: measure each by itself")
        if one.model.config.block_size != first.model.config.block_size:
            raise UserError(f"{runs[0]} and {run} have two contexts: measure each by itself")
    name = options.split
    if name == "auto":
        name = "all" if options.data and not corpus.token_folder else "val"
    part = None if name == "all" else name
    with Bar(Console()) as bar:
        split = Split(encode_corpus(corpus, first.tokenizer, part, val_fraction, bar.tell), device)
    split.require(1, name)
    model = first.model if len(every) == 1 else Ensemble([one.model for one in every])
    found = measure(model, split)
    if options.json:
        answer = {
            "runs": [str(run) for run in runs],
            "steps": [one.step for one in every],
            "split": name,
            "loss": found.loss,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
        }
        print(json.dumps(answer))
    else:
        which = " and ".join(f"{run}, step {c.step:,}" for run, c in zip(runs, every, strict=True))
        print(
            f"{which}: {name} loss {found.loss:.4f} nats per token, "
            f"{found.bits_per_byte:.4f} bits per byte, over {found.tokens:,} tokens"
        )
