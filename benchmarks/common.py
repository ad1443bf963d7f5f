"""Functions that several benchmarks use: timed training runs, unseen text, result files."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nanogpt import load
from nanogpt.data import Split
from nanogpt.evaluate import evaluate
from nanogpt.text import corpora
from nanogpt.text.corpora import Corpus, make_corpus
from nanogpt.text.encoding import encode_corpus

RESULTS = Path(__file__).parent / "results"
SAMPLE_HEADING = "Sample:\n"
"""`nanogpt train` prints this line before its sample."""
ADVICE = "\nFor better text"
"""`nanogpt train` can print a line with this beginning after its sample."""


def run_timed(command: Sequence[str]) -> tuple[str, float, float]:
    """Run a command; return its standard output, duration in seconds and peak memory in MiB."""
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return output, time.time() - start, usage.ru_maxrss / 1024


def load_unseen_text() -> Corpus:
    """Return a text that was not used to choose settings.

    The text is as long as the validation split of Tiny Shakespeare. It is the beginning of
    `shakespeare-rest`: A Midsummer Night's Dream and a part of the next play. Neither of the two
    plays is in Tiny Shakespeare. Characters outside the alphabet of Tiny Shakespeare are left out.
    """
    tiny = corpora.load_corpus("tinyshakespeare")
    alphabet, size = set(tiny.text()), len("".join(tiny.read_split("val")))
    characters = corpora.load_corpus("shakespeare-rest").text()
    return make_corpus("".join(islice((c for c in characters if c in alphabet), size)))


def train_preset(
    preset: str, flags: Sequence[str] = (), keep: Path | None = None
) -> dict[str, Any]:
    """Train a preset in a separate process; return the evaluations, times and losses of the run.

    The `seconds` of an evaluation are the time from the start of the process until the evaluated
    weights are on disk. If the run also averages its weights, each evaluation measures two losses,
    and the result contains the lower loss. The best weights are also evaluated on the text of
    load_unseen_text(). If `keep` is given, the run directory is moved to this path.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        start = time.time()
        command = [sys.executable, "-m", "nanogpt", "train", preset, "--out", str(out), *flags]
        output, seconds, megabytes = run_timed(command)
        print(output, file=sys.stderr)
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        best_on_disk = (out / "best" / "SHA256SUMS").stat().st_mtime - start
        description = json.loads((out / "run.json").read_text())
        best_model = load(out)
        device = next(best_model.model.parameters()).device
        unseen = Split(encode_corpus(load_unseen_text(), best_model.tokenizer), device)
        unseen_loss = evaluate(best_model.model, unseen).loss
        if keep:
            shutil.move(out, keep)
    evaluations = [
        {
            "step": record["step"],
            "seconds": record["seconds"],
            "val_loss": min(record["val_loss"], record.get("ema_val_loss", record["val_loss"])),
        }
        for record in records
        if "val_loss" in record
    ]
    best = min(evaluations, key=lambda evaluation: evaluation["val_loss"])
    # The seconds in metrics.jsonl exclude the time of the imports and of writing the weights.
    # The offset adds these two times.
    offset = best_on_disk - best["seconds"]
    for evaluation in evaluations:
        evaluation["seconds"] += offset
    return {
        "best": best,
        "evaluations": evaluations,
        "unseen": unseen_loss,
        "seconds": seconds,
        "megabytes": megabytes,
        "parameters": description["parameters"],
        "device": description["device"],
        "precision": description["precision"],
        "sample": output.partition(SAMPLE_HEADING)[2].partition(ADVICE)[0],
    }


def save_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result to a file as JSON."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
