"""A gigabyte of text: how long it takes to prepare, in how much memory, and to train from.

    python benchmarks/corpora.py

The text is lines of Shakespeare in random order. Each start is a process of its own: the first
with an empty cache, the second with what the first left there. Both read the text (the first time
for its hash), learn byte pairs from it and encode it; the import of torch is not counted in the
seconds, but is in the memory. Then the preset tiny takes steps on tokens mapped from the cache and
on the same in memory, in turns. Written to benchmarks/results/corpora.json and .md.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, save

from nanogpt.fast.training import make_stepper
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.system.devices import describe_device, pick_device
from nanogpt.text import corpora
from nanogpt.text.encoding import encode_corpus, get_tokenizer
from nanogpt.text.readers import no_progress

VAL_FRACTION = 0.001


def make_text(file: Path, megabytes: int) -> None:
    """Write so many million bytes of lines of Shakespeare."""
    lines = corpora.load_corpus("shakespeare").text().splitlines()
    draw, size = random.Random(0), 0
    with file.open("w", encoding="utf-8") as opened:
        while size < megabytes * 10**6:
            size += opened.write("\n".join(draw.choices(lines, k=20_000)) + "\n")


def peak() -> float:
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # of Linux, in kilobytes


def start(file: Path, kind: str) -> dict[str, float]:
    """What it takes from a text to tokens that can be trained on."""
    imported, began = peak(), time.perf_counter()
    corpus = corpora.load_corpus(str(file))
    read = time.perf_counter()
    tokenizer = get_tokenizer(kind, corpus, VAL_FRACTION, no_progress)
    learned = time.perf_counter()
    tokens = [encode_corpus(corpus, tokenizer, name, VAL_FRACTION) for name in ("train", "val")]
    ended = time.perf_counter()
    return {
        "read_s": read - began,
        "learn_s": learned - read,
        "encode_s": ended - learned,
        "seconds": ended - began,
        "megabytes_per_second": corpus.facts.bytes / 1e6 / (ended - began),
        "tokens": sum(len(each.ids) for each in tokens),
        "imported_mb": imported,
        "peak_mb": peak(),
    }


def rates(file: Path, kind: str, repeats: int, out: Path) -> dict[str, float]:
    """Tokens a second of training, mapped and in memory: medians."""
    config = replace(PRESETS["tiny"].config, data=str(file), tokenizer=kind, out=out)
    run = prepare_run(replace(config, val_fraction=VAL_FRACTION))
    split = run.data.splits["train"]
    mapped, in_memory = split.tokens, split.tokens.clone()
    stepper, found = make_stepper(run, print), {"mapped": [0.0], "in_memory": [0.0]}
    for _ in range(repeats + 1):  # the first is not counted
        for name, tokens in (("mapped", mapped), ("in_memory", in_memory)):
            split.tokens, before, began = tokens, run.state.tokens, time.perf_counter()
            stepper.take(20, lambda: False)
            seconds = time.perf_counter() - began
            found[name].append((run.state.tokens - before) / seconds)
    run.lock.release()
    return {name: median(each[2:]) for name, each in found.items()}


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    first, second, training = found["first"], found["second"], found["training"]
    return f"""| {found["megabytes"]:,} MB of text, `--tokenizer {found["tokenizer"]}` | |
| --- | --- |
| first start | {first["seconds"]:.1f} s, {first["megabytes_per_second"]:.1f} MB/s |
| of it reading, learning, encoding | {first["read_s"]:.1f}, {first["learn_s"]:.1f}, \
{first["encode_s"]:.1f} s |
| peak memory, of which libraries | {first["peak_mb"]:.0f} MB, {first["imported_mb"]:.0f} MB |
| second start | {second["seconds"]:.2f} s |
| training from the cache, from memory | {training["mapped"]:,.0f}, \
{training["in_memory"]:,.0f} tokens/s: {training["mapped"] / training["in_memory"]:.3f} |

{found["device"]}, {found["repeats"]} repeats of 20 steps
"""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizer", default="bpe:8192")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        make_text(home / "large.txt", options.megabytes)
        os.environ["NANOGPT_CACHE"] = str(home / "cache")
        time.sleep(3)  # a text that is newer is not trusted to stay the same
        again = [sys.executable, __file__, "--tokenizer", options.tokenizer]
        again += ["--start", str(home / "large.txt")]
        first, second = (json.loads(subprocess.check_output(again)) for _ in range(2))
        found = {
            "megabytes": options.megabytes,
            "tokenizer": options.tokenizer,
            "device": describe_device(pick_device("cpu")),
            "repeats": options.repeats,
            "first": first,
            "second": second,
            "training": rates(home / "large.txt", options.tokenizer, options.repeats, home / "run"),
        }
    save(RESULTS / "corpora.json", found)
    (RESULTS / "corpora.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
