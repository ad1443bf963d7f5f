"""nanogpt eval: measure the loss of a trained model on a whole split."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..data import Split
from ..errors import UserError, make_line
from ..evaluate import Evaluation
from ..fast.parallel import evaluate as evaluate_split
from ..models.ensemble import Ensemble
from ..runs.checkpoint import Checkpoint, load_checkpoint
from ..runs.directory import find_run
from ..runs.run import load_run_text, read_description
from ..runs.start import require_tokens
from ..system import distributed, launch
from ..system.agreement import agreement, require_equal
from ..system.devices import keep_freed_memory, limit_threads, pick_device
from ..text import corpora
from ..text.download import REFRESHING, require_single_process
from ..text.encoding import encode_corpus
from ..text.readers import Progress, no_progress
from ..text.tokenizers import describe_lost_text
from ..version import VERSION
from .arguments import parse_arguments
from .progress import NO_BITS, Bar, PlainConsole
from .values import Flag, placeholder, positional


@dataclass(frozen=True)
class EvalArgs:
    """Measure the loss of a trained model on a whole split of a text.

    Several runs are evaluated as one model, which averages the probabilities of their models.
    """

    runs: Annotated[tuple[str, ...], positional, placeholder("[RUN ...]")] = ()
    """Run directories, or their names below runs/; by default the newest run."""
    split: Literal["auto", "val", "train", "all"] = "auto"
    """train: the first part of the text. val: the held-out last part. all: both parts. auto: val
    for the text of the run and for a directory with train.bin and val.bin, otherwise all."""
    data: str | None = None
    """Another text to evaluate on; see --data of nanogpt train."""
    column: str = "text"
    """Column with the text, in datasets (hf:) and in .jsonl and .parquet files."""
    separator: str = "\n\n"
    """Text inserted between documents."""
    refresh: Flag = False
    """Download the text of --data again, even if the cache has it."""
    json: Flag = False
    """Print one JSON object instead of a sentence."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def explain_unused(self, name: str) -> str:
        """Return the reason why the option `name` has no effect; "" if it has an effect."""
        if self.data:
            return corpora.explain_unused(name, self.data)
        is_for_data = name in ("column", "separator", "refresh")
        return "it belongs to --data, which is missing" if is_for_data else ""


def evaluate(args: list[str]) -> None:
    """Print the loss of one run, or of several runs as one model.

    If torchrun started several processes, each of them evaluates a share of the windows.
    """
    limit_threads()
    keep_freed_memory()
    with distributed.join("evaluates a run"):
        with agreement():
            options = parse_arguments(EvalArgs(), args, "nanogpt eval")
            if options.refresh:
                require_single_process(*REFRESHING)
        bar = nullcontext() if distributed.rank() else Bar(PlainConsole())
        with bar as shown:
            progress = shown.update if shown else no_progress
            with agreement():
                runs, checkpoints, name, split, text_sha256 = _load(options, progress)
        require_equal(
            {
                "nanogpt": VERSION,
                "weights": [checkpoint.weights_sha256 for checkpoint in checkpoints],
                "split": name,
                "text": text_sha256,
                "tokens": len(split.tokens),
            }
        )
        models = [checkpoint.model for checkpoint in checkpoints]
        model = models[0] if len(models) == 1 else Ensemble(models)
        with distributed.watch():
            evaluation = evaluate_split(model, split)
    if launch.get_rank() == 0:
        _show(options, runs, checkpoints, name, split, evaluation)


def _load(
    options: EvalArgs, progress: Progress
) -> tuple[list[Path], list[Checkpoint], str, Split, str]:
    """Return the run directories, their best checkpoints, and the split with its name and text.

    The text is given as its SHA-256.
    """
    device = pick_device(options.device)
    runs = [find_run(run) for run in options.runs or (None,)]
    checkpoints = [load_checkpoint(run / "best", device) for run in runs]
    if options.data:
        source = options.data, options.column, options.separator, progress
        if options.refresh:
            corpora.refresh_text(*source)
        corpus = corpora.load_corpus(*source)
        val_fraction = read_description(runs[0]).config.val_fraction
    else:
        corpus, val_fraction = load_run_text(runs[0], progress)
    first = checkpoints[0]
    for run, checkpoint in zip(runs[1:], checkpoints[1:], strict=True):
        if not options.data:
            other_corpus, other_fraction = load_run_text(run)
            if other_corpus.facts != corpus.facts or other_fraction != val_fraction:
                raise UserError(
                    f"{runs[0]} and {run} were trained on different texts: "
                    f"choose a text with --data"
                )
        if checkpoint.tokenizer.to_json() != first.tokenizer.to_json():
            raise UserError(
                f"{runs[0]} and {run} have different tokenizers: evaluate them one by one"
            )
        if checkpoint.model.config.block_size != first.model.config.block_size:
            raise UserError(
                f"{runs[0]} and {run} have different block sizes: evaluate them one by one"
            )
    name: Literal["auto", "val", "train", "all"] = options.split
    if name == "auto":
        is_own = corpus.facts.sha256 == read_description(runs[0]).text_sha256
        name = "val" if is_own or corpus.token_folder else "all"
    part = None if name == "all" else name
    split = Split(encode_corpus(corpus, first.tokenizer, part, val_fraction, progress), device)
    require_tokens([(name, split)], 1)
    return runs, checkpoints, name, split, corpus.facts.sha256


def _show(
    options: EvalArgs,
    runs: Sequence[Path],
    checkpoints: Sequence[Checkpoint],
    name: str,
    split: Split,
    evaluation: Evaluation,
) -> None:
    """Print the result as a sentence or as JSON."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    if options.json:
        answer = {
            "runs": [str(run) for run in runs],
            "steps": steps,
            "split": name,
            "loss": evaluation.loss,
            "bits_per_byte": evaluation.bits_per_byte,
            "tokens": evaluation.tokens,
        }
        print(json.dumps(answer))
    else:
        bits_per_byte = evaluation.bits_per_byte
        bits = "" if bits_per_byte is None else f", {bits_per_byte:.4f} bits per byte"
        if split.lost:
            print(f"{describe_lost_text(split.lost)} {NO_BITS}", file=sys.stderr)
        subject = " and ".join(
            f"{make_line(run)}, step {step:,}" for run, step in zip(runs, steps, strict=True)
        )
        print(
            f"{subject}: {name} loss {evaluation.loss:.4f} nats per token{bits}, "
            f"over {evaluation.tokens:,} tokens"
        )
