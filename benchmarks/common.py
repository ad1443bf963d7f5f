"""What the benchmarks share: a run of nanogpt in a process of its own, timed from its start.

And a text that no setting was chosen by, as the validation split is one that many were.
"""

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


def timed(command: Sequence[str]) -> tuple[str, float, float]:
    """Run a command: its standard output, its seconds, its peak memory in MB."""
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return output, time.time() - began, usage.ru_maxrss / 1024


def unseen_text() -> Corpus:
    """A Midsummer Night's Dream and some more, as long as the validation split.

    The beginning of the plays that are not in Tiny Shakespeare, without what it has no symbol for.
    """
    known = corpora.load_corpus("tinyshakespeare")
    symbols, size = set(known.text()), len("".join(known.read_split("val")))
    kept = (c for c in corpora.load_corpus("shakespeare-rest").text() if c in symbols)
    return make_corpus("".join(islice(kept, size)))


def nanogpt_train(
    preset: str, flags: Sequence[str] = (), keep: Path | None = None
) -> dict[str, Any]:
    """Train a preset: its evaluations, best and last, with seconds from process start.

    An evaluation counts from when its weights are on the disk. With averaged weights, its loss is
    the lower of the two. The best weights are measured on the unseen text, too. The run is moved to
    keep if that is given.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        began = time.time()
        command = [sys.executable, "-m", "nanogpt", "train", preset, "--out", str(out), *flags]
        output, wall, memory = timed(command)
        print(output, file=sys.stderr)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        written = (out / "best" / "SHA256SUMS").stat().st_mtime - began
        read_description = json.loads((out / "run.json").read_text())
        kept = load(out)
        tokens = Split(
            encode_corpus(unseen_text(), kept.tokenizer), next(kept.model.parameters()).device
        )
        unseen = evaluate(kept.model, tokens).loss
        if keep:
            shutil.move(out, keep)
    evaluations = [
        {
            "step": line["step"],
            "seconds": line["seconds"],
            "val_loss": min(line["val_loss"], line.get("ema_val_loss", line["val_loss"])),
        }
        for line in lines
        if "val_loss" in line
    ]
    best = min(evaluations, key=lambda e: e["val_loss"])
    before_loop = written - best["seconds"]
    for evaluation in evaluations:
        evaluation["seconds"] += before_loop
    return {
        "best": best,
        "evaluations": evaluations,
        "unseen": unseen,
        "seconds": wall,
        "megabytes": memory,
        "parameters": read_description["parameters"],
        "device": read_description["device"],
        "precision": read_description["precision"],
        "sample": output.partition("It writes:\n")[2],
    }


def save(file: Path, record: dict[str, Any]) -> None:
    """Write a result as JSON."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
