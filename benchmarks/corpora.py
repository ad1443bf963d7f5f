"""Measure the time and memory to prepare a gigabyte of text, and the speed of training on it.

    python benchmarks/corpora.py

The text consists of random lines of Shakespeare. The script prepares the text twice, each time in a
separate process, as at the start of a run. At the first start, the cache is empty: the process
reads and hashes the text, trains a byte-pair tokenizer and encodes the text. At the second start,
the process finds these results in the cache. The measured time excludes the import of torch; the
measured memory includes this import. Then the script trains the preset `tiny` alternately on
tokens that are memory-mapped from the cache and on a copy of these tokens in memory. The results go
to benchmarks/results/corpora.json.
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

from common import RESULTS, save_result
from tables import corpora_table

from nanogpt.fast.training import make_stepper
from nanogpt.runs.presets import PRESETS
from nanogpt.runs.start import prepare_run
from nanogpt.system.devices import describe_device, pick_device
from nanogpt.text import corpora
from nanogpt.text.encoding import encode_corpus, get_tokenizer
from nanogpt.text.readers import no_progress

VAL_FRACTION = 0.001
STEPS = 20


def write_text(file: Path, megabytes: int) -> None:
    """Write random lines of Shakespeare until the file has `megabytes` million characters."""
    lines = corpora.load_corpus("shakespeare").text().splitlines()
    generator, size = random.Random(0), 0
    with file.open("w", encoding="utf-8") as opened:
        while size < megabytes * 10**6:
            size += opened.write("\n".join(generator.choices(lines, k=20_000)) + "\n")


def get_peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # in kilobytes on Linux


def measure_start(file: Path, kind: str) -> dict[str, float]:
    """Measure the seconds and the memory that are needed to turn a text into tokens."""
    imported_mb, start = get_peak_memory(), time.perf_counter()
    corpus = corpora.load_corpus(str(file))
    read = time.perf_counter()
    tokenizer = get_tokenizer(kind, corpus, VAL_FRACTION, no_progress)
    trained = time.perf_counter()
    splits = [encode_corpus(corpus, tokenizer, name, VAL_FRACTION) for name in ("train", "val")]
    end = time.perf_counter()
    return {
        "read_s": read - start,
        "learn_s": trained - read,
        "encode_s": end - trained,
        "seconds": end - start,
        "megabytes_per_second": corpus.facts.bytes / 1e6 / (end - start),
        "tokens": sum(len(split.ids) for split in splits),
        "imported_mb": imported_mb,
        "peak_mb": get_peak_memory(),
    }


def measure_training(file: Path, kind: str, repeats: int, out: Path) -> dict[str, float]:
    """Measure the median tokens per second of training on mapped tokens and on tokens in memory."""
    config = replace(PRESETS["tiny"].config, data=str(file), tokenizer=kind, out=out)
    run = prepare_run(replace(config, val_fraction=VAL_FRACTION))
    split = run.data.splits["train"]
    mapped, in_memory = split.tokens, split.tokens.clone()
    stepper = make_stepper(run, print)
    rates: dict[str, list[float]] = {"mapped": [], "in_memory": []}
    for _ in range(repeats + 1):
        for name, tokens in (("mapped", mapped), ("in_memory", in_memory)):
            split.tokens, before, start = tokens, run.state.tokens, time.perf_counter()
            stepper.take(STEPS, lambda: False)
            seconds = time.perf_counter() - start
            rates[name].append((run.state.tokens - before) / seconds)
    run.lock.release()
    # The first measurement of each kind is a warm-up, so the median leaves it out.
    return {name: median(measured[1:]) for name, measured in rates.items()}


def main() -> None:
    """Measure the two starts and the training, save the result and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the text in MB")
    parser.add_argument("--tokenizer", default="bpe:8192", help="tokenizer to train")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the training")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(measure_start(args.start, args.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        text = home / "large.txt"
        write_text(text, args.megabytes)
        os.environ["NANOGPT_CACHE"] = str(home / "cache")
        time.sleep(3)  # a text that changed in the last 2 seconds is not cached
        command = [sys.executable, __file__, "--tokenizer", args.tokenizer, "--start", str(text)]
        first, second = (json.loads(subprocess.check_output(command)) for _ in range(2))
        result = {
            "megabytes": args.megabytes,
            "tokenizer": args.tokenizer,
            "device": describe_device(pick_device("cpu")),
            "repeats": args.repeats,
            "first": first,
            "second": second,
            "training": measure_training(text, args.tokenizer, args.repeats, home / "run"),
        }
    save_result(RESULTS / "corpora.json", result)
    print(corpora_table(result))


if __name__ == "__main__":
    main()
